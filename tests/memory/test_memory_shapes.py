"""Shapes: parameter counts against transformers on the meta device and published totals."""

import json
from pathlib import Path
from typing import Any

import pytest

from course_utils.errors import CourseError
from course_utils.memory import MODELS, find_shape, from_config, typical_shape

PUBLISHED = {  # parameters of the released checkpoints, tied heads once
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen2.5-0.5b": 494_032_768,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name: str) -> None:
    assert find_shape(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    "name",
    ["gpt2", "opt-350m", "opt-1.3b", "smollm2-135m", "smollm3-3b", "qwen2.5-0.5b", "qwen3-0.6b"],
)
def test_counts_are_those_of_the_model_itself(name: str) -> None:
    """Every linear layer too, which LoRA's and NF4's numbers rest on."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    fields = {"tie_word_embeddings": True, **MODELS[name]} if name != "x" else {}
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = from_config(config, name)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    inside = [
        m for m in model.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head
    ]
    assert shape.linear_weights == sum(m.weight.numel() for m in inside)


@pytest.mark.parametrize(
    "changed",
    [{"attention_bias": True, "mlp_bias": True}, {"head_dim": 24}, {"tie_word_embeddings": True}],
)
def test_config_entries_that_change_the_count(changed: dict[str, Any]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **changed,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert from_config(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Llama-65B", "llama-65b"),
        ("huggyllama/llama-7b", "llama-7b"),
        ("Qwen/Qwen3-0.6B-Base", "qwen3-0.6b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b"),
    ],
)
def test_names_as_people_write_them(written: str, name: str) -> None:
    assert find_shape(written, online=False).name == name


@pytest.mark.parametrize(("text", "count"), [("65B", 65e9), ("350M", 350e6), ("1.5b", 1.5e9)])
def test_a_size_gets_a_typical_shape(text: str, count: float) -> None:
    shape = find_shape(text)
    assert shape.parameters == pytest.approx(count, rel=0.03)
    assert not shape.exact


def test_a_directory_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["gpt2"]))
    assert find_shape(str(tmp_path)).parameters == PUBLISHED["gpt2"]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CourseError, match="num_attention_heads"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CourseError, match="not a model's config"):
        find_shape(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(CourseError, match=r"config\.json cannot be read"):
        find_shape(str(tmp_path))


def test_unknown_names_say_what_is_near() -> None:
    with pytest.raises(CourseError, match="did you mean llama-65b"):
        find_shape("llama65b")
    with pytest.raises(CourseError, match="mixtral"):
        from_config({"model_type": "mixtral"}, "m")
    with pytest.raises(CourseError, match="neither in the built-in table nor in the local cache"):
        find_shape("nobody/nothing-7b", online=False)
    with pytest.raises(CourseError, match="sizes are for"):
        typical_shape(10)
