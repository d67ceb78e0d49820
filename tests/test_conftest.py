"""The fixtures themselves: what other tests rely on."""

import socket

import pytest


def test_chat_template_gives_the_documented_text_and_the_assistant_mask(tiny_tokenizer) -> None:
    turn = [{"role": "user", "content": "hello"}]
    both = [*turn, {"role": "assistant", "content": "answer"}]
    text = tiny_tokenizer.apply_chat_template(both, tokenize=False)
    assert text.split() == ["<|user|>", "hello", "<|assistant|>", "answer", "<|end|>"]
    prompt = tiny_tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)
    encoded = tiny_tokenizer.apply_chat_template(
        both, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    words = tiny_tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert words == ["<|user|>", "hello", "<|assistant|>", "answer", "<|end|>"]
    assert encoded["assistant_masks"] == [0, 0, 0, 1, 1]
    more = [*both, *turn, {"role": "assistant", "content": ""}]  # two turns, the last answer empty
    encoded = tiny_tokenizer.apply_chat_template(
        more, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert encoded["assistant_masks"] == [0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert tiny_tokenizer.pad_token_id != tiny_tokenizer.eos_token_id


def test_the_tiny_model_is_the_same_every_time(tiny_model, tiny_tokenizer) -> None:
    import torch

    from_tests = torch.tensor([tiny_tokenizer.encode("hello answer")])
    first = tiny_model(from_tests).logits
    assert first.shape == (1, 2, len(tiny_tokenizer))
    assert torch.equal(first, tiny_model(from_tests).logits)


def test_the_network_is_closed_and_loopback_is_open() -> None:
    with pytest.raises(PermissionError, match="network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(PermissionError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 443)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with socket.create_connection(server.getsockname(), timeout=1):
            pass
