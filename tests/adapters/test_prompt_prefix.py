"""Prompt and prefix tuning against PEFT with copied weights, and against real words in front."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from course_utils.adapters import (
    adapter_state,
    apply_prefix_tuning,
    apply_prompt_tuning,
    fold_prefix,
    load_adapter_state,
    remove_prefix_tuning,
    trainable_report,
)
from course_utils.adapters.sites import decoder_of
from course_utils.errors import CourseError

N = 4
MASK = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [0] * 4 + [1] * 3])


def peft_twin(model: Any, config: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(copy.deepcopy(model), config)


# ---- PEFT --------------------------------------------------------------------------------------


def prompt_pair(model: Any, tools: Any) -> tuple[Any, Any]:
    from peft import PromptTuningConfig

    theirs = peft_twin(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N))
    ours = tools.randomize(apply_prompt_tuning(model, N))
    with torch.no_grad():
        theirs.prompt_encoder.default.embedding.weight.copy_(decoder_of(ours).soft_prompt.vectors)
    return ours, theirs


def prefix_pair(model: Any, tools: Any, hidden: int | None) -> tuple[Any, Any]:
    from peft import PrefixTuningConfig

    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=N,
        prefix_projection=hidden is not None,
        encoder_hidden_size=hidden,
    )
    theirs = peft_twin(model, config)
    ours = tools.randomize(apply_prefix_tuning(model, N, hidden=hidden))
    prefix, encoder = decoder_of(ours).prefix, theirs.prompt_encoder.default
    with torch.no_grad():
        if hidden is None:
            encoder.embedding.weight.copy_(as_peft(prefix.keys, prefix.values))
        else:
            encoder.embedding.weight.copy_(prefix.embedding)
            for mine, other in ((prefix.inner, 0), (prefix.outer, 2)):
                encoder.transform[other].weight.copy_(mine.weight)
                encoder.transform[other].bias.copy_(mine.bias)
    return ours, theirs


def as_peft(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(L, H, N, d_h) twice -> PEFT's table (N, L·2·H·d_h)."""
    both = torch.stack([keys, values], dim=1)  # (L, 2, H, N, d_h)
    return both.permute(3, 0, 1, 2, 4).reshape(keys.shape[2], -1)


def test_prompt_tuning_equals_peft(model: Any, text: Any, tools: Any) -> None:
    ours, theirs = prompt_pair(model, tools)
    labels = text.clone()
    labels[:, :3] = -100
    out, expected = ours(text, labels=labels), theirs(input_ids=text, labels=labels)
    torch.testing.assert_close(out.logits, expected.logits[:, N:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.loss, expected.loss)
    got = tools.gradients(ours, out.loss)
    wanted = tools.gradients(theirs, expected.loss)
    assert len(got) == len(wanted) == 1
    torch.testing.assert_close(*got.values(), *wanted.values(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("hidden", [None, 6])
def test_prefix_tuning_equals_peft(model: Any, text: Any, tools: Any, hidden: int | None) -> None:
    """With a ragged mask and explicit positions; PEFT shifts them by N, and so do we."""
    ours, theirs = prefix_pair(model, tools, hidden)
    positions = (MASK.cumsum(dim=1) - 1).clamp(min=0)
    labels = text.masked_fill(MASK == 0, -100)
    inputs = {"attention_mask": MASK, "position_ids": positions, "labels": labels}
    out, expected = ours(text, **inputs), theirs(input_ids=text, **inputs)
    real = MASK.bool()
    torch.testing.assert_close(out.logits[real], expected.logits[real], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.loss, expected.loss)
    got = tools.gradients(ours, out.loss)
    wanted = {n.split("default.")[1]: g for n, g in tools.gradients(theirs, expected.loss).items()}
    prefix = {n.rsplit("prefix.", 1)[1]: grad for n, grad in got.items()}
    if hidden is None:
        table = as_peft(prefix["keys"], prefix["values"])
        torch.testing.assert_close(table, wanted["embedding.weight"], rtol=1e-4, atol=1e-6)
        return
    names = {
        "embedding": "embedding.weight",
        "inner.weight": "transform.0.weight",
        "inner.bias": "transform.0.bias",
        "outer.weight": "transform.2.weight",
        "outer.bias": "transform.2.bias",
    }
    assert set(prefix) == set(names)
    for mine, other in names.items():
        torch.testing.assert_close(prefix[mine], wanted[other], rtol=1e-4, atol=1e-6)


def test_generation_equals_peft(model: Any, text: Any, tools: Any) -> None:
    ours, theirs = prefix_pair(model, tools, None)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(text)}
    for one in (ours, theirs):
        one.generation_config.eos_token_id = None
        one.config.eos_token_id = None
    got = ours.generate(text, **settings)
    assert torch.equal(got, theirs.generate(input_ids=text, **settings))


# ---- real words --------------------------------------------------------------------------------


@pytest.mark.parametrize("apply", [apply_prompt_tuning, apply_prefix_tuning])
def test_from_token_ids_is_as_if_they_stood_in_front(model: Any, text: Any, apply: Any) -> None:
    """Before training, words' embeddings or activations do what the words themselves would do."""
    words = torch.tensor([7, 8, 30, 9, 7])
    with torch.no_grad():
        wanted = model(torch.cat([words.expand(3, -1), text], dim=1)).logits[:, 5:]
        got = apply(model, token_ids=words)(text).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_word_activations_are_those_without_dropout(model: Any) -> None:
    model.train()
    first, second = (
        adapter_state(apply_prefix_tuning(copy.deepcopy(model), token_ids=[5, 6])) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(module.training for module in model.modules())


def test_padding_without_positions_changes_nothing(model: Any, text: Any, tools: Any) -> None:
    """Positions are counted from the mask: PEFT leaves them to the model, which counts padding."""
    ids, mask = tools.padded(text, 5)
    for apply in (apply_prompt_tuning, apply_prefix_tuning):
        tuned = tools.randomize(apply(copy.deepcopy(model), N))
        with torch.no_grad():
            got = tuned(ids, attention_mask=mask).logits[:, 5:]
            torch.testing.assert_close(got, tuned(text).logits, rtol=1e-4, atol=2e-5)


def test_embeddings_for_tokens(model: Any, text: Any, tools: Any) -> None:
    for apply in (apply_prompt_tuning, apply_prefix_tuning):
        tuned = tools.randomize(apply(copy.deepcopy(model), N))
        embeds = tuned.get_input_embeddings()(text)
        assert torch.equal(tuned(inputs_embeds=embeds).logits, tuned(text).logits)


def test_prefix_by_hand() -> None:
    """One layer of one head: softmax over [prefix; text], each query seeing the text up to itself.

    head = Attention(q, [P_K; K], [P_V; V]), He et al. 2022, equation 7.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(
        vocab_size=11,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        n_positions=9,
        **ids,
    )
    model = apply_prefix_tuning(GPT2LMHeadModel(config).eval(), 2)
    prefix = model.transformer.prefix
    nn.init.normal_(prefix.keys)
    nn.init.normal_(prefix.values)
    attention = model.transformer.h[0].attn
    seen = {}
    attention.c_attn.register_forward_hook(lambda m, args, out: seen.update(qkv=out[0]))
    attention.c_proj.register_forward_pre_hook(lambda m, args: seen.update(heads=args[0][0]))
    model(torch.tensor([[3, 1, 4]]))
    query, key, value = seen["qkv"].split(4, dim=1)  # (T, 4) each
    for t in range(3):
        keys = torch.cat([prefix.keys[0, 0], key[: t + 1]])
        values = torch.cat([prefix.values[0, 0], value[: t + 1]])
        weights = torch.softmax(keys @ query[t] / 2.0, dim=0)  # √d_h = 2
        torch.testing.assert_close(seen["heads"][t], weights @ values)


# ---- folding, counting, refusing ---------------------------------------------------------------


def test_folding_the_network_keeps_the_function(model: Any, text: Any, tools: Any) -> None:
    before = tools.snapshot(model)
    tuned = tools.randomize(apply_prefix_tuning(model, N, hidden=6))
    with torch.no_grad():
        wanted = tuned(text).logits
        torch.testing.assert_close(fold_prefix(tuned)(text).logits, wanted, rtol=1e-5, atol=1e-6)
    state = adapter_state(tuned)
    assert sorted(name.rsplit(".", 1)[1] for name in state) == ["keys", "values"]
    with pytest.raises(CourseError, match="no reparametrisation"):
        fold_prefix(tuned)
    tools.assert_restored(remove_prefix_tuning(tuned), before)
    load_adapter_state(apply_prefix_tuning(model, N), state)
    torch.testing.assert_close(model(text).logits, wanted, rtol=1e-5, atol=1e-6)


def test_counts(model: Any) -> None:
    heads = 2 if model.config.model_type in ("llama", "qwen2") else 4
    assert trainable_report(apply_prompt_tuning(copy.deepcopy(model), N)).trainable == N * 16
    report = trainable_report(apply_prefix_tuning(model, N))
    assert report.trainable == 2 * 2 * N * heads * 4  # layers, keys and values, N, H, d_h


def test_virtual_tokens_need_room_in_the_context(model: Any) -> None:
    ids = torch.full((1, 62), 5)
    for apply in (apply_prompt_tuning, apply_prefix_tuning):
        tuned = apply(copy.deepcopy(model), 3)
        tuned(ids[:, :61])
        with pytest.raises(CourseError, match=r"62 tokens .* 3 virtual .* shorten the text to 61"):
            tuned(ids)


@pytest.mark.parametrize("apply", [apply_prompt_tuning, apply_prefix_tuning])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length must be a whole number of at least 1"),
        ({"length": 2.5}, "length must be a whole number"),
        ({"token_ids": []}, "token_ids must be a list"),
        ({"token_ids": [[1, 2]]}, "token_ids must be a list"),
        ({"token_ids": [0.5]}, "whole numbers"),
        ({"token_ids": [3, 61]}, r"in \[0, 60\].* got 3 to 61"),
        ({"token_ids": [-1]}, r"in \[0, 60\]"),
        ({"token_ids": [3, 4], "length": 3}, "length is 3 but there are 2 token_ids"),
    ],
)
def test_bad_settings_change_nothing(
    tools: Any, apply: Any, settings: dict[str, Any], message: str
) -> None:
    model = tools.build("opt")
    before = tools.snapshot(model)
    with pytest.raises(CourseError, match=message):
        apply(model, **settings)
    tools.assert_restored(model, before)


def test_what_cannot_work_is_refused(tools: Any, text: Any) -> None:
    from transformers import StaticCache

    model = tools.build("gpt2")
    with pytest.raises(CourseError, match="leave `hidden` out"):
        apply_prefix_tuning(model, token_ids=[3], hidden=4)
    with pytest.raises(CourseError, match="hidden must be a whole number"):
        apply_prefix_tuning(model, hidden=0)
    with pytest.raises(CourseError, match="not a Transformers decoder"):
        apply_prompt_tuning(nn.Linear(2, 2))
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(CourseError, match="sdpa"):
        apply_prefix_tuning(model)
    model.config._attn_implementation = "sdpa"
    apply_prompt_tuning(model, 2)
    with pytest.raises(CourseError, match="attention mask"):
        model(text, attention_mask=torch.ones(3, 1, 7, 7))
    with pytest.raises(CourseError, match="token_type_ids"):
        model(text, token_type_ids=torch.zeros_like(text))
    cache = StaticCache(config=model.config, max_cache_len=9)
    with pytest.raises(CourseError, match="static cache"):
        model(text, past_key_values=cache)


def test_packed_texts(model: Any, tools: Any) -> None:
    """Two texts in one row, told apart by positions that start again: each sees the prefix.

    A soft prompt stands before the row, out of the second text's sight: refused.
    """
    first, second = torch.tensor([[5, 9, 30, 31]]), torch.tensor([[7, 44, 8]])
    row, positions = torch.cat([first, second], dim=1), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    packed = {"position_ids": positions, "use_cache": False}
    with pytest.raises(CourseError, match="packed"):
        apply_prompt_tuning(copy.deepcopy(model), N)(row, **packed)
    tuned = tools.randomize(apply_prefix_tuning(model, N))
    if model.config.model_type == "opt":
        return  # Transformers' OPT does not tell packed texts apart
    with torch.no_grad():
        alone = torch.cat([tuned(first).logits, tuned(second).logits], dim=1)
        together = tuned(row, **packed).logits
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=2e-5)


def test_a_window_slides_over_the_text_not_over_the_prefix(text: Any, tools: Any) -> None:
    """Mistral's layers see the last four tokens, and the prefix always; with and without cache."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.3,
        pad_token_id=2,
    )
    model = tools.randomize(apply_prefix_tuning(MistralForCausalLM(config).eval(), N))
    mask = torch.ones_like(text)
    wanted = tools.greedy_without_cache(model, text, mask, 6)
    model.generation_config.eos_token_id = None
    got = model.generate(text, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(got[:, 7:], wanted)


def test_a_static_cache_holds_the_text_only(model: Any, text: Any, tools: Any) -> None:
    tuned = tools.randomize(apply_prefix_tuning(model, N))
    wanted = tools.greedy_without_cache(tuned, text, torch.ones_like(text), 5)
    tuned.generation_config.eos_token_id = None
    settings = {"max_new_tokens": 5, "do_sample": False, "disable_compile": True}
    got = tuned.generate(
        text, attention_mask=torch.ones_like(text), cache_implementation="static", **settings
    )
    assert torch.equal(got[:, 7:], wanted)
