"""Loading, the trunk and the head, scoring, the value head, copies and references."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from course_utils import models
from course_utils.errors import CourseError
from course_utils.models import (
    PolicyWithValue,
    count_parameters,
    disable_dropout,
    load_policy,
    parts_of,
    reference_of,
    token_logprobs,
    with_value,
)


@pytest.fixture
def saved(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Any) -> Any:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# ---- loading -----------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_in_fp32_without_dropout(saved, tiny_model) -> None:
    model, tokenizer = load_policy(str(saved))
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert tokenizer.padding_side == "left"
    assert tokenizer.chat_template
    ids = torch.arange(10, 20)[None]
    torch.testing.assert_close(model(ids).logits, tiny_model(ids).logits)


def test_an_unknown_or_unreachable_model_says_what_to_do(tmp_path) -> None:
    with pytest.raises(CourseError, match=r"cannot load the model 'nobody/nothing': it is not in"):
        load_policy("nobody/nothing")  # the tests are offline
    with pytest.raises(CourseError, match="cannot load the model"):
        load_policy(str(tmp_path / "missing"))


def test_pickled_weights_are_not_loaded(saved) -> None:
    weights = LlamaForCausalLM.from_pretrained(saved).state_dict()
    (saved / "model.safetensors").unlink()
    torch.save(weights, saved / "pytorch_model.bin")
    with pytest.raises(CourseError, match="safetensors"):
        load_policy(str(saved))


def test_a_missing_chat_template_is_an_error_or_chatml(saved, tiny_tokenizer, caplog) -> None:
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(CourseError, match="no chat template"):
        load_policy(str(saved))
    tiny_tokenizer.chat_template = None
    tiny_tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tiny_tokenizer.pad_token = None
    models.add_chat_template(tiny_tokenizer, "base")
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    text = tiny_tokenizer.apply_chat_template(turns, tokenize=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    asked = tiny_tokenizer.apply_chat_template(
        turns[:1], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith(asked)
    assert tiny_tokenizer.eos_token == "<|im_end|>"
    assert tiny_tokenizer.pad_token_id is not None
    assert "ChatML" in caplog.text


def test_dropout_is_disabled_everywhere() -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=0.5,
    )
    model = nn.Sequential(LlamaForCausalLM(config).train(), nn.Dropout(0.5))
    disable_dropout(model)
    disable_dropout(model[0])
    assert model[1].p == 0
    assert config.attention_dropout == 0
    ids = torch.arange(8)[None]
    assert torch.equal(model[0](ids).logits, model[0](ids).logits)  # in train mode


# ---- parts and scoring -------------------------------------------------------------------------


def test_trunk_and_head_give_the_models_logits(tiny_model) -> None:
    parts = parts_of(tiny_model)
    ids = torch.arange(10, 18).view(2, 4)
    hidden = parts.hidden(ids, torch.ones_like(ids))
    torch.testing.assert_close(parts.logits(hidden), tiny_model(ids).logits)
    assert parts_of(tiny_model) is parts


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite", "gpt2"])
def test_families_that_change_their_logits_are_known(family) -> None:
    """Softcapping, scaling, learned positions: checked against the model's own forward."""
    from transformers import AutoConfig

    shape: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    extra = {
        "gemma2": {"final_logit_softcapping": 0.05},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 4.0},
        "gpt2": {},
    }[family]
    if family == "gpt2":
        shape = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape, **extra)).eval()
    parts = parts_of(model)
    ids = torch.arange(10, 20)[None]
    ours = parts.logits(parts.hidden(ids, torch.ones_like(ids)))
    torch.testing.assert_close(ours, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_model_that_does_something_else_to_its_logits_is_refused(tiny_model) -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits + 3
            return output

    odd = Odd(tiny_model.config)
    with pytest.raises(CourseError, match="does more to its logits"):
        parts_of(odd)
    with pytest.raises(CourseError, match="not a decoder"):
        parts_of(tiny_model.model)


def test_prompt_tuning_is_refused_with_the_reason(tiny_model) -> None:
    from peft import PromptTuningConfig, get_peft_model

    tuned = get_peft_model(
        tiny_model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(CourseError, match="use LoRA"):
        parts_of(tuned)


def test_token_logprobs_match_the_full_logits_and_ignore_padding(tiny_model) -> None:
    """Points 8 and 9: shift and left padding."""
    ids = torch.randint(10, 60, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[1, 9:] = 0
    found = token_logprobs(tiny_model, ids, mask, completion_start=5, temperature=0.8)
    assert found.shape == (3, 7)
    for row, start, end in ((0, 4, 12), (1, 0, 9), (2, 0, 12)):
        real = ids[row : row + 1, start:end]
        logp = (tiny_model(real).logits[0] / 0.8).log_softmax(-1)
        every = logp[:-1].gather(1, real[0, 1:, None]).squeeze(1)  # entry t: token t + 1
        wanted = every[5 - start - 1 :]
        torch.testing.assert_close(found[row, : len(wanted)], wanted, atol=1e-5, rtol=1e-5)
    assert not bool(found[1, 4:].any())
    for start in (0, 12):
        with pytest.raises(ValueError, match="completion_start"):
            token_logprobs(tiny_model, ids, mask, start)


# ---- value head, copies, references ------------------------------------------------------------


def test_with_value_scores_tokens_and_starts_at_zero(tiny_model) -> None:
    state = torch.get_rng_state()
    actor = with_value(tiny_model)
    assert torch.equal(state, torch.get_rng_state())  # making it draws no random numbers
    ids = torch.arange(10, 26).view(2, 8)
    where = torch.tensor([3, 4, 8 + 5])
    scored = actor(ids, where, temperature=0.7, entropy=True)
    logp = (tiny_model(ids).logits / 0.7).log_softmax(-1).flatten(0, 1)[where]
    wanted = logp.gather(1, ids.flatten()[where + 1][:, None]).squeeze(1)
    torch.testing.assert_close(scored.logprobs, wanted)
    torch.testing.assert_close(scored.entropy, -(logp.exp() * logp).sum(-1))
    assert not bool(scored.values.any())
    assert count_parameters(actor)[0] == count_parameters(tiny_model)[0] + 33
    assert isinstance(actor, PolicyWithValue)


def test_parameters_are_counted_once_when_tied() -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    total = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    model.model.norm.requires_grad_(False)
    assert count_parameters(model) == (total, total - 8)


def test_a_reference_is_frozen_and_apart(tiny_model) -> None:
    tiny_model.train()
    reference = reference_of(tiny_model)
    assert not reference.training
    assert tiny_model.training
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad for p in tiny_model.parameters())
    with torch.no_grad():
        tiny_model.lm_head.weight.add_(1)
    assert not torch.equal(reference.lm_head.weight, tiny_model.lm_head.weight)


def test_the_worlds_model_loads_for_the_tier_tiny() -> None:
    from course_utils.world.tokenizer import assets

    if not (assets() / "model.safetensors").exists():
        pytest.skip("the world's weights have not been built")
    model, tokenizer = load_policy("tiny")
    assert model.config.vocab_size == len(tokenizer)
    assert model.device.type in ("cpu", "cuda", "mps")
