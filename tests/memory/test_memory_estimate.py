"""The estimate's arithmetic against closed forms, what must grow with what, and bad input."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from course_utils.cli import main
from course_utils.errors import CourseError
from course_utils.memory import (
    GPUS,
    RECIPES,
    Recipe,
    answers,
    estimate,
    find_shape,
    fits,
    gpu,
    held,
    largest_batch,
    nf4_bits,
    recipe,
)

GIB = 2**30
SMALL = find_shape("smollm2-135m")
BIG = find_shape("llama-65b")


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys, course_utils.memory as m, course_utils.memory.command, "
        "course_utils.memory.cases; m.answers(m.estimate(m.find_shape('gpt2'), m.recipe('lora'), "
        "64, 1)); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_65b_qlora_fits_48_gb_and_full_fine_tuning_does_not() -> None:
    """Dettmers et al. 2023, abstract; theirs: rank 64 on all matrices, 512 tokens."""
    found = estimate(BIG, recipe("qlora", rank=64), 512, 1)
    assert found.total <= 48e9
    assert found.total + found.paged <= 48e9  # even with the optimizer's states on the GPU
    said = " ".join(found.assumptions)
    for word in ("NF4", "4.127", "paged", "computed again", "rank 64", "CUDA context"):
        assert word in said
    # "the average memory requirements of finetuning a 65B model from >780GB": 12 bytes a parameter
    full = estimate(BIG, recipe("full-bf16", checkpointing=True), 512, 1)
    assert full.total > 8 * BIG.parameters
    assert not any(fits(full).values())


def test_4_bit_weights_have_4_127_bits() -> None:
    """Dettmers et al. 2023, §3: 0.127 bits of scales a parameter with double quantization."""
    assert nf4_bits() == pytest.approx(4.127, abs=5e-4)
    assert nf4_bits(double_quant=False) == 4.5
    sizes = held(BIG, recipe("qlora")).weights
    assert sizes["weights: blocks' matrices (NF4)"] * 8 / BIG.linear_weights == pytest.approx(
        nf4_bits(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("optimizer", "a_parameter"),
    [("adamw", 8), ("sgd", 0), ("sgd-momentum", 4), ("adamw-8bit", 2 + 8 / 256)],
)
def test_optimizer_states(optimizer: str, a_parameter: float) -> None:
    size = held(SMALL, recipe("full", optimizer=optimizer)).optimizer
    assert size == pytest.approx(a_parameter * SMALL.parameters, rel=2e-3, abs=0)
    assert held(SMALL, recipe("full", optimizer="adafactor")).optimizer < 0.01 * size or not size


def test_lora_parameters_in_closed_form() -> None:
    r, d, kv, f, layers = 8, 576, 192, 1536, 30  # SmolLM2-135M
    wanted = layers * r * (2 * (d + d) + 2 * (d + kv) + 3 * (d + f))
    found = held(SMALL, recipe("lora", rank=r))
    assert found.gradients == 4 * wanted
    some = held(SMALL, recipe("lora", rank=r, targets=("q_proj", "v_proj")))
    assert some.gradients == 4 * layers * r * (d + d + d + kv)


def test_logits_are_three_fp32_tensors_of_the_vocabulary() -> None:
    found = estimate(SMALL, recipe("full"), 512, 4, completion=500)
    logits = found.moments["backward of the loss"]["logits"]
    assert logits == 3 * 4 * 4 * 500 * 49152


def test_key_value_cache_in_closed_form() -> None:
    shape = find_shape("llama-3-8b")
    found = estimate(shape, recipe("inference"), 2048, 4, completion=1024)
    assert found.terms["KV cache"] == 2 * 32 * 8 * 128 * 2 * 4 * 2048


def test_checkpointing_keeps_a_block_input_a_layer() -> None:
    shape = find_shape("mistral-7b")
    kept = estimate(shape, recipe("qlora"), 1024, 2).moments["end of the forward pass"]
    assert kept["checkpoints (inputs of the blocks)"] == 32 * 2 * 1024 * 4096 * 2


@pytest.mark.parametrize("name", RECIPES)
def test_memory_grows_with_batch_and_length(name: str) -> None:
    base = estimate(SMALL, RECIPES[name], 128, 2).total
    assert base < estimate(SMALL, RECIPES[name], 128, 4).total
    assert base < estimate(SMALL, RECIPES[name], 256, 2).total


def test_what_saves_memory_does() -> None:
    def total(**changes: Any) -> int:
        return estimate(SMALL, recipe("full", **changes), 512, 4).peak

    assert total(checkpointing=True) < total() < total(attention="eager")
    assert total(optimizer="adamw-8bit") < total()
    assert total(logits="tiled") < total() < total(accumulate=True)
    sizes = [estimate(BIG, recipe(n), 512, 1).total for n in ("qlora", "lora", "full")]
    assert sizes == sorted(sizes)
    held_twice = estimate(SMALL, recipe("dpo"), 128, 1).terms
    assert "reference model" in held_twice
    assert "reference model" not in estimate(SMALL, recipe("dpo-lora"), 128, 1).terms


def test_terms_add_up() -> None:
    found = estimate(SMALL, recipe("ppo"), 256, 4, completion=128)
    assert sum(found.terms.values()) == found.peak
    assert found.total == found.peak + found.context + found.fragmentation
    assert found.peak == max(sum(terms.values()) for terms in found.moments.values())
    assert all(size >= 0 for terms in found.moments.values() for size in terms.values())


def test_largest_batch_is_the_last_that_fits() -> None:
    made = recipe("lora")
    best = largest_batch(SMALL, made, 512, "T4")
    _, room = gpu("T4")
    assert estimate(SMALL, made, 512, best).total <= room
    assert estimate(SMALL, made, 512, best + 1).total > room
    assert largest_batch(BIG, made, 512, "T4") == 0
    rows = answers(estimate(BIG, recipe("qlora"), 512, 1))
    assert {row["gpu"] for row in rows} == set(GPUS)
    assert all(row["fits"] == (row["largest_batch"] >= 1) for row in rows)
    by_name = {row["gpu"]: row for row in rows}
    assert by_name["A6000"]["fits"]
    assert not by_name["L4"]["fits"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seq": 0}, "seq must be a whole number"),
        ({"batch": 0}, "batch must be"),
        ({"seq": 100_000}, "beyond the context"),
        ({"seq": 1}, "at least 2"),
        ({"completion": 128}, "completion must be from 1 to 127"),
        ({"completion": 0}, "completion must be"),
        ({"rank": 0}, "rank 0 does not fit"),
        ({"rank": 193}, "from 1 to 192"),
        ({"targets": ("q_prj",)}, "did you mean q_proj"),
        ({"optimizer": "adam"}, "did you mean adamw"),
        ({"autocast": "fp16"}, "two 16-bit types"),
        ({"rollouts": -1}, "rollouts is -1"),
        ({"speed": 3}, "no field 'speed'"),
    ],
)
def test_bad_input(wrong: dict[str, Any], said: str) -> None:
    where = {"seq": 128, "batch": 2} | {k: v for k, v in wrong.items() if k in WHERE}
    changes = {k: v for k, v in wrong.items() if k not in WHERE}
    with pytest.raises(CourseError, match=said):
        estimate(SMALL, recipe("lora", **changes), **where)


WHERE = ("seq", "batch", "completion")


def test_unknown_recipe_and_gpu() -> None:
    with pytest.raises(CourseError, match="did you mean qlora"):
        recipe("qlorra")
    with pytest.raises(CourseError, match="did you mean A6000"):
        gpu("A600")
    with pytest.raises(CourseError, match="no adapter to switch off"):
        Recipe("x", task="dpo", reference="adapter-off")


def test_command_prints_terms_assumptions_and_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["memory", "llama-65b", "--recipe", "qlora", "--seq", "512", "--batch", "1"]
    assert main(line) == 0
    text = capsys.readouterr().out
    for part in ("NF4", "paged optimizer states", "Assumptions:", "A6000", "largest batch"):
        assert part in text
    assert main([*line, "--rank", "64", "--gpu", "48GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] <= 48e9
    assert [row["gpu"] for row in found["gpus"]] == ["A6000"]
    assert found["peak"] == sum(found["terms"].values())


def test_command_explains_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "llama-65", "--offline"]) == 2
    assert "llama-65b" in capsys.readouterr().err
    assert main(["memory", "gpt2", "--seq", "4096"]) == 2
    assert "1024 tokens" in capsys.readouterr().err
    assert main(["memory", "gpt2", "--recipe", "lora", "--targets", "q_proj"]) == 2
    assert "attn.c_attn" in capsys.readouterr().err
    assert main(["memory", "gpt2", "--gpu", "RTX"]) == 2


def test_every_field_of_a_recipe_is_checked() -> None:
    for field in dataclasses.fields(Recipe):
        if field.type == "str" and field.name != "name":
            with pytest.raises(CourseError):
                estimate(SMALL, recipe("lora", **{field.name: "nonsense"}), 64, 1)
