"""Singular-value tools against closed forms."""

import math

import pytest
import torch

from course_utils.adapters import (
    LoRALinear,
    effective_rank,
    lora_from_svd,
    rank_for_energy,
    svd_energy,
)
from course_utils.errors import CourseError


def matrix_with(values: list[float], d: int = 6, k: int = 5) -> torch.Tensor:
    """(d, k) with the given singular values: random orthonormal columns on either side."""
    n = len(values)
    left = torch.linalg.qr(torch.randn(d, n, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(k, n, dtype=torch.float64))[0]
    return left * torch.tensor(values, dtype=torch.float64) @ right.T


def test_energy_is_the_share_of_squares() -> None:
    energy = svd_energy(matrix_with([4.0, 2.0, 2.0, 1.0]))
    wanted = torch.tensor([16, 20, 24, 25, 25], dtype=torch.float64) / 25
    torch.testing.assert_close(energy, wanted)


def test_effective_rank_closed_forms() -> None:
    assert effective_rank(matrix_with([3.0])) == pytest.approx(1.0)
    assert effective_rank(torch.eye(7) * 0.1) == pytest.approx(7.0)
    half_quarter_quarter = 2**1.5  # exp(ln 2 · (1/2 + 2/4 + 2/4))
    assert effective_rank(matrix_with([2.0, 1.0, 1.0])) == pytest.approx(half_quarter_quarter)


def test_rank_for_energy() -> None:
    matrix = matrix_with([4.0, 2.0, 2.0, 1.0])  # shares 0.64, 0.80, 0.96, 1
    wanted = {0.5: 1, 0.64: 1, 0.65: 2, 0.8: 2, 0.9: 3, 0.97: 4, 1.0: 4}
    assert {share: rank_for_energy(matrix, share) for share in wanted} == wanted
    assert rank_for_energy(torch.eye(5), 0.6) == 3


@pytest.mark.parametrize("scaling", [1.0, 0.25])
def test_best_factors(scaling: float) -> None:
    """The rank-r error is the energy left out (Eckart and Young), and no more can be had."""
    values = [4.0, 2.0, 2.0, 1.0, 0.5]
    matrix = matrix_with(values)
    for rank in range(1, 6):
        a, b = lora_from_svd(matrix, rank, scaling)
        assert (a.shape, b.shape) == ((rank, 5), (6, rank))
        error = (matrix - scaling * b @ a).norm().item()
        assert error == pytest.approx(math.sqrt(sum(v * v for v in values[rank:])), abs=1e-12)
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))  # half of σ on either side


def test_factors_of_a_lora_give_it_back() -> None:
    layer = LoRALinear(torch.nn.Linear(7, 5), rank=3, alpha=6.0)
    with torch.no_grad():
        layer.B.normal_()
    delta = layer.delta().detach()
    assert rank_for_energy(delta, 1.0) == 3
    with torch.no_grad():
        a, b = lora_from_svd(delta, 3, layer.scaling)
        layer.A.copy_(a)
        layer.B.copy_(b)
    torch.testing.assert_close(layer.delta(), delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tool", [svd_energy, effective_rank, lambda m: lora_from_svd(m, 1)])
def test_what_is_no_matrix(tool) -> None:
    for wrong, message in [
        (torch.ones(3), "shape"),
        (torch.ones(2, 3, 4), "shape"),
        (torch.ones(0, 4), "shape"),
        (torch.full((2, 2), torch.nan), "nan or inf"),
    ]:
        with pytest.raises(CourseError, match=message):
            tool(wrong)


def test_refusals() -> None:
    with pytest.raises(CourseError, match="all zeros"):
        svd_energy(LoRALinear(torch.nn.Linear(4, 4), rank=2).delta())
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(CourseError, match="share"):
            rank_for_energy(torch.eye(2), share)
    for rank in (0, 4):
        with pytest.raises(CourseError, match="rank"):
            lora_from_svd(torch.ones(3, 5), rank)
    with pytest.raises(CourseError, match="scaling"):
        lora_from_svd(torch.ones(3, 5), 1, 0.0)
