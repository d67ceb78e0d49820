"""The sampler against Hugging Face's generate and against a second forward pass."""

import logging
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from course_utils import generation
from course_utils.errors import CourseError
from course_utils.generation import (
    completion_texts,
    encode_prompts,
    generate_texts,
    pad_left,
    sample,
    stop_ids,
)
from course_utils.models import token_logprobs

PROMPTS = [
    "hello",
    "explain the moon landing to a 6 year old",
    "should i add chorizo to my paella ?",
    "why",
    "explain black holes to a 5 year old please",
]


def sharpened(model: Any, factor: float = 6.0) -> Any:
    """Random weights give nearly uniform distributions; larger embeddings make choices matter."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(factor)
        model.get_output_embeddings().weight.mul_(factor)
    return model.eval()


def gpt2(tokenizer: Any) -> Any:
    """Learned absolute positions: wrong position ids show at once, unlike with rotary ones."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(20)
    return sharpened(model)


@pytest.fixture(params=["llama", "gpt2"])
def model(request: Any, tiny_tokenizer: Any, tiny_model: Any) -> Any:
    return sharpened(tiny_model) if request.param == "llama" else gpt2(tiny_tokenizer)


def draw(model: Any, tokenizer: Any, batch: Any, **settings: Any) -> Any:
    chosen = {
        "max_new_tokens": 12,
        "eos_token_ids": stop_ids(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "generator": torch.Generator().manual_seed(3),
        **settings,
    }
    return sample(model, batch.input_ids, batch.attention_mask, **chosen)


def test_greedy_is_hugging_faces_greedy(model, tiny_tokenizer) -> None:
    batch = encode_prompts(tiny_tokenizer, PROMPTS)
    ours = draw(model, tiny_tokenizer, batch, temperature=0.0)
    theirs = model.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        do_sample=False,
        max_new_tokens=12,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )[:, batch.input_ids.shape[1] :]
    assert len(ours.completion_ids.unique()) > 3  # not one token over and over
    assert torch.equal(ours.completion_ids, theirs)


def some_end_early(sampled: Any) -> bool:
    return int(sampled.ended.sum()) > 0 and len(sampled.lengths.unique()) > 1


def ending_often(model: Any, tokenizer: Any) -> list[int]:
    """Stop at any of these: with a random model the answers then have all sorts of lengths."""
    return [tokenizer.eos_token_id, *range(10, 22)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_captured_logprobs_are_those_of_a_second_forward(
    model, tiny_tokenizer, temperature
) -> None:
    """Points 6, 8, 9, 28: temperature, shift, left padding, captured against recomputed (fp32)."""
    batch = encode_prompts(tiny_tokenizer, PROMPTS * 4)
    eos = ending_often(model, tiny_tokenizer)
    s = draw(model, tiny_tokenizer, batch, temperature=temperature, eos_token_ids=eos)
    assert some_end_early(s)
    again = token_logprobs(
        model, s.input_ids, s.attention_mask, batch.input_ids.shape[1], temperature
    )
    torch.testing.assert_close(s.logprobs, again.detach(), atol=1e-5, rtol=1e-5)
    # and by hand for one row without any padding
    row, prompt = 5, batch.input_ids[5][batch.attention_mask[5].bool()]
    answer = s.completion_ids[row][s.completion_mask[row]]
    with torch.no_grad():
        logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0]
    logp = torch.log_softmax(logits / temperature, -1)[len(prompt) - 1 : -1]
    by_hand = logp.gather(1, answer[:, None]).squeeze(1)
    torch.testing.assert_close(s.logprobs[row, : len(answer)], by_hand, atol=1e-5, rtol=1e-5)


def test_values_are_those_of_the_state_before_each_token(tiny_model, tiny_tokenizer) -> None:
    head = torch.nn.Linear(32, 1)
    batch = encode_prompts(tiny_tokenizer, PROMPTS)
    s = draw(tiny_model, tiny_tokenizer, batch, value_head=head)
    from course_utils.models import parts_of

    with torch.no_grad():
        hidden = parts_of(tiny_model).hidden(s.input_ids, s.attention_mask)
        again = head(hidden[:, batch.input_ids.shape[1] - 1 : -1]).squeeze(-1)
    torch.testing.assert_close(s.values, again * s.completion_mask, atol=1e-5, rtol=1e-5)


def test_more_left_padding_changes_nothing(model, tiny_tokenizer) -> None:
    """Point 9: positions count from the first real token."""
    batch = encode_prompts(tiny_tokenizer, PROMPTS)
    pad = torch.full((len(PROMPTS), 7), tiny_tokenizer.pad_token_id)
    wider = generation.Encoded(
        torch.cat([pad, batch.input_ids], 1),
        torch.cat([torch.zeros_like(pad), batch.attention_mask], 1),
    )
    a, b = draw(model, tiny_tokenizer, batch), draw(model, tiny_tokenizer, wider)
    assert torch.equal(a.completion_ids, b.completion_ids)
    torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-5, rtol=1e-5)


def test_the_pad_id_does_not_matter_even_when_it_is_eos(model, tiny_tokenizer) -> None:
    """Points 10, 11: lengths are explicit; a pad that equals EOS or a word is harmless."""
    rows = generation.prompt_tokens(tiny_tokenizer, PROMPTS)
    eos = ending_often(model, tiny_tokenizer)
    results = []
    for pad in (tiny_tokenizer.pad_token_id, tiny_tokenizer.eos_token_id, 30):
        s = draw(model, tiny_tokenizer, pad_left(rows, pad), eos_token_ids=eos, pad_token_id=pad)
        assert some_end_early(s)
        assert bool((s.completion_ids[~s.completion_mask] == pad).all())
        results.append(s)
    for other in results[1:]:
        assert torch.equal(results[0].completion_mask, other.completion_mask)
        assert torch.equal(results[0].logprobs, other.logprobs)
        mask = other.completion_mask
        assert torch.equal(results[0].completion_ids[mask], other.completion_ids[mask])


def test_each_row_ends_with_its_eos_and_the_mask_keeps_it(model, tiny_tokenizer) -> None:
    """Point 10: EOS itself counts, nothing after it does; a row without EOS counts whole."""
    eos = ending_often(model, tiny_tokenizer)
    s = draw(model, tiny_tokenizer, encode_prompts(tiny_tokenizer, PROMPTS * 6), eos_token_ids=eos)
    assert some_end_early(s)
    assert not bool(s.ended.all())
    for ids, mask, ended in zip(s.completion_ids, s.completion_mask, s.ended, strict=True):
        real = ids[mask].tolist()
        assert bool(ended) == (real[-1] in eos)
        assert not set(real[:-1]) & set(eos)
        assert ended or len(real) == s.completion_ids.shape[1]


def test_batch_of_one_and_leaving_rows_change_nothing(
    model, tiny_tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = encode_prompts(tiny_tokenizer, PROMPTS * 4)
    noise = torch.rand(20, 12, dtype=torch.float64)
    eos = ending_often(model, tiny_tokenizer)
    together = draw(model, tiny_tokenizer, batch, uniforms=noise, eos_token_ids=eos)
    monkeypatch.setattr(generation, "LEAVE_WHEN", 2.0)  # nobody ever leaves
    staying = draw(model, tiny_tokenizer, batch, uniforms=noise, eos_token_ids=eos)
    assert torch.equal(together.completion_ids, staying.completion_ids)
    torch.testing.assert_close(together.logprobs, staying.logprobs, atol=1e-5, rtol=1e-5)
    for i in range(5):
        one = generation.Encoded(batch.input_ids[i : i + 1], batch.attention_mask[i : i + 1])
        alone = draw(model, tiny_tokenizer, one, uniforms=noise[i : i + 1], eos_token_ids=eos)
        length = int(together.lengths[i])
        assert int(alone.lengths[0]) == length
        assert torch.equal(alone.completion_ids[0, :length], together.completion_ids[i, :length])


def test_samples_follow_the_models_distribution(tiny_tokenizer, tiny_model) -> None:
    """Point 5: pure sampling, at the given temperature: frequencies of 20,000 first tokens."""
    sharpened(tiny_model, 4.0)
    batch = encode_prompts(tiny_tokenizer, ["hello"] * 20_000)
    with torch.no_grad():
        logits = tiny_model(input_ids=batch.input_ids[:1]).logits[0, -1]
    for temperature in (1.0, 0.6):
        s = draw(tiny_model, tiny_tokenizer, batch, max_new_tokens=1, temperature=temperature)
        seen = torch.bincount(s.completion_ids[:, 0], minlength=len(logits)) / 20_000
        wanted = torch.softmax(logits / temperature, -1)
        sd = (wanted * (1 - wanted) / 20_000).sqrt()
        assert float(((seen - wanted).abs() / (sd + 1e-5)).max()) < 5


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.full((3, 5), float("-inf"))
    logits[:, 1] = 0.0
    logits[:, 3] = 0.0
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs, _ = generation._choose(logits, 1.0, uniform)
    assert tokens.tolist() == [1, 3, 3]
    torch.testing.assert_close(logprobs, torch.full((3,), 0.5).log())


def test_the_seed_decides_and_global_randomness_does_not(tiny_model, tiny_tokenizer) -> None:
    sharpened(tiny_model, 2.0)
    torch.manual_seed(1)
    a = generate_texts(tiny_model, tiny_tokenizer, PROMPTS, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    b = generate_texts(tiny_model, tiny_tokenizer, PROMPTS, seed=5, batch_size=2)
    assert torch.equal(state, torch.get_rng_state())
    assert a == b
    assert a != generate_texts(tiny_model, tiny_tokenizer, PROMPTS, seed=6)


def test_texts_come_in_the_order_of_the_prompts_without_special_tokens(
    tiny_model, tiny_tokenizer
) -> None:
    sharpened(tiny_model)
    greedy = {p: generate_texts(tiny_model, tiny_tokenizer, [p], temperature=0)[0] for p in PROMPTS}
    assert len(set(greedy.values())) > 1
    all_of_them = generate_texts(tiny_model, tiny_tokenizer, PROMPTS, temperature=0, batch_size=2)
    assert all_of_them == [greedy[p] for p in PROMPTS]
    assert not any("<|" in text for text in all_of_them)
    chats = [[{"role": "user", "content": p}] for p in PROMPTS]
    assert generate_texts(tiny_model, tiny_tokenizer, chats, temperature=0) == all_of_them
    assert generate_texts(tiny_model, tiny_tokenizer, []) == []


def test_the_mode_of_every_module_is_restored(tiny_model, tiny_tokenizer) -> None:
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    before = [m.training for m in tiny_model.modules()]
    generate_texts(tiny_model, tiny_tokenizer, ["hello"], max_new_tokens=2)
    assert [m.training for m in tiny_model.modules()] == before


def test_results_can_be_trained_on(tiny_model, tiny_tokenizer) -> None:
    s = draw(tiny_model, tiny_tokenizer, encode_prompts(tiny_tokenizer, PROMPTS))
    (token_logprobs(tiny_model, s.input_ids, s.attention_mask, 12) * 2).sum().backward()
    assert not s.logprobs.is_inference()


def test_sliding_windows_keep_their_own_cache(tiny_tokenizer) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        max_position_embeddings=64,
    )
    model = sharpened(MistralForCausalLM(config))
    batch = encode_prompts(tiny_tokenizer, PROMPTS)
    s = draw(model, tiny_tokenizer, batch)
    again = token_logprobs(model, s.input_ids, s.attention_mask, batch.input_ids.shape[1])
    torch.testing.assert_close(s.logprobs, again.detach(), atol=1e-5, rtol=1e-5)


def test_overlong_prompts_are_an_error_or_are_cut_with_a_notice(
    tiny_model, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    long = "hello " * 300
    with pytest.raises(CourseError, match=r"prompt 1 has 30\d tokens and only 208 fit"):
        generate_texts(tiny_model, tiny_tokenizer, ["why", long])
    with caplog.at_level(logging.WARNING):
        batch = encode_prompts(tiny_tokenizer, ["why", long], 20, overlong="truncate")
    assert batch.input_ids.shape == (2, 20)
    # cut from the left: the end, where the answer begins, is what counts
    whole = encode_prompts(tiny_tokenizer, [long]).input_ids
    assert torch.equal(batch.input_ids[1], whole[0, -20:])
    assert "1 of 2 prompts are longer than 20 tokens" in caplog.text


def test_bad_input_is_named(tiny_model, tiny_tokenizer) -> None:
    with pytest.raises(CourseError, match="no prompts"):
        encode_prompts(tiny_tokenizer, [])
    with pytest.raises(CourseError, match="prompt 1 is 7"):
        encode_prompts(tiny_tokenizer, ["hello", 7])
    for settings, message in [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 999}, "context of 256"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"temperature": float("nan")}, "temperature must be >= 0"),
        ({"batch_size": 0}, "batch_size"),
    ]:
        with pytest.raises(CourseError, match=message):
            generate_texts(tiny_model, tiny_tokenizer, ["hello"], **settings)
    tiny_tokenizer.chat_template = None
    with pytest.raises(CourseError, match="no chat template"):
        generate_texts(tiny_model, tiny_tokenizer, ["hello"])


def test_without_eos_there_is_an_error_and_without_pad_there_is_none(
    tiny_model, tiny_tokenizer
) -> None:
    expected = generate_texts(tiny_model, tiny_tokenizer, PROMPTS)
    tiny_tokenizer.pad_token = None
    assert generate_texts(tiny_model, tiny_tokenizer, PROMPTS) == expected
    tiny_tokenizer.eos_token = None
    tiny_model.generation_config.eos_token_id = None
    with pytest.raises(CourseError, match="no EOS token"):
        generate_texts(tiny_model, tiny_tokenizer, PROMPTS)


def test_stop_ids_add_those_of_the_generation_config(tiny_model, tiny_tokenizer) -> None:
    tiny_model.generation_config.eos_token_id = [tiny_tokenizer.eos_token_id, 9, 10**6]
    assert stop_ids(tiny_tokenizer, tiny_model) == [tiny_tokenizer.eos_token_id, 9]


def test_completion_texts_uses_the_mask(tiny_tokenizer) -> None:
    ids = torch.tensor([tiny_tokenizer.convert_tokens_to_ids(["yes", "<|end|>", "no"])])
    assert completion_texts(tiny_tokenizer, ids, torch.tensor([[True, True, False]])) == ["yes"]


def test_a_model_with_one_layer_and_grouped_heads(tiny_tokenizer) -> None:
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(6)
    batch = encode_prompts(tiny_tokenizer, PROMPTS)
    s = draw(model.eval(), tiny_tokenizer, batch)
    again = token_logprobs(model, s.input_ids, s.attention_mask, batch.input_ids.shape[1])
    torch.testing.assert_close(s.logprobs, again.detach(), atol=1e-5, rtol=1e-5)
