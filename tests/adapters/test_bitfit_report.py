"""BitFit's biases, and the report that counts what trains."""

import copy
from typing import Any

import pytest
import torch

from course_utils.adapters import (
    adapter_state,
    apply_bitfit,
    apply_houlsby,
    apply_lora,
    lora_parameters,
    remove_bitfit,
    trainable_report,
)
from course_utils.errors import CourseError


def test_biases_and_nothing_else(model: Any, text: Any) -> None:
    family = model.config.model_type
    if family == "llama":
        with pytest.raises(CourseError, match=r"has no biases .* add_missing=True .* 14 linear"):
            apply_bitfit(model)
        assert all(p.requires_grad for p in model.parameters())
        return
    names = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    assert set(adapter_state(apply_bitfit(model))) == names
    # per layer: GPT-2's two norms, qkv and output, two of the feed-forward; Qwen2's q, k, v
    assert len(names) == {"gpt2": 2 * 6 + 1, "opt": 2 * 8 + 1, "qwen2": 2 * 3}[family]


def test_added_biases_do_what_biases_do(tools: Any, text: Any) -> None:
    """Llama with added biases equals a Llama whose config has them, at the same values."""
    ours = tools.randomize(apply_bitfit(tools.build("llama"), add_missing=True))
    theirs = tools.build("llama", attention_bias=True, mlp_bias=True)
    theirs.load_state_dict(ours.state_dict())
    got, wanted = ours(text, labels=text), theirs(text, labels=text)
    torch.testing.assert_close(got.logits, wanted.logits)
    mine, other = tools.gradients(ours, got.loss), tools.gradients(theirs, wanted.loss)
    assert len(mine) == 14
    for name, grad in mine.items():
        torch.testing.assert_close(grad, other[name])


def test_qwen_gets_only_those_it_lacks(tools: Any) -> None:
    model = tools.build("qwen2")
    own = dict(model.named_parameters())
    state = adapter_state(apply_bitfit(model, add_missing=True))
    assert len(state) == 14
    assert sum(name in own for name in state) == 6
    remove_bitfit(model)
    assert model.model.layers[0].mlp.up_proj.bias is None
    assert list(dict(model.named_parameters())) == list(own)


# ---- the report --------------------------------------------------------------------------------


def test_counts_by_kind_by_hand(tools: Any) -> None:
    """Llama of 2 layers: D 16, feed-forward 24, 2 of 4 key-value heads, 61 tokens, untied head."""
    model = tools.build("llama")
    rows = {row.kind: row.parameters for row in trainable_report(model)}
    assert rows == {
        "embedding": 61 * 16,
        "attention": 2 * (2 * 16 * 16 + 2 * 16 * 8),
        "feed-forward": 2 * 3 * 16 * 24,
        "norm": 5 * 16,
        "head": 61 * 16,
    }
    report = trainable_report(apply_lora(model, 3, targets=["q_proj", "v_proj"]))
    lora = 2 * (lora_parameters(16, 16, 3) + lora_parameters(8, 16, 3))
    assert report.trainable == lora == {row.kind: row.trainable for row in report}["LoRA"]
    assert report.parameters == sum(rows.values()) + lora
    assert report.share == pytest.approx(100 * lora / (sum(rows.values()) + lora))
    assert report.share == pytest.approx(sum(row.share for row in report))


def test_every_parameter_is_counted_once_in_a_known_kind(model: Any) -> None:
    for adapted in (model, apply_houlsby(copy.deepcopy(model), 3), apply_lora(model, 2)):
        report = trainable_report(adapted)
        known = {id(p): p.numel() for p in adapted.parameters()}
        assert report.parameters == sum(known.values())
        assert "other" not in {row.kind for row in report}


def test_agrees_with_peft(tools: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tools.build("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    report = trainable_report(model)
    assert (report.trainable, report.parameters) == model.get_nb_trainable_parameters()
    assert {row.kind: row.trainable for row in report}["LoRA"] == report.trainable


def test_prints_a_table(tools: Any) -> None:
    lines = str(trainable_report(apply_bitfit(tools.build("gpt2")))).splitlines()
    assert lines[0].split() == ["kind", "parameters", "trainable", "%", "of", "all"]
    assert [line.split()[0] for line in lines[1:]] == [
        "embedding",
        "attention",
        "feed-forward",
        "norm",
        "bias",
        "all",
    ]
    assert len({len(line) for line in lines}) == 1


def test_llama_7b_without_its_memory() -> None:
    """On the meta device; the LoRA paper's q and v at rank 8: 4.2M of 6.7B, 0.0622%."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())  # the defaults are Llama 7B's
    report = trainable_report(apply_lora(model, 8, targets=["q_proj", "v_proj"]))
    assert report.trainable == 32 * 2 * 8 * (4096 + 4096) == 4_194_304
    assert report.parameters - report.trainable == 6_738_415_616
    assert f"{report.share:.4f}" == "0.0622"
