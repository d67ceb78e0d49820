"""How many directions a weight change really has: singular values, energy, rank, best factors."""

import torch
from torch import Tensor

from course_utils.adapters.sites import check_finite, check_whole_number
from course_utils.errors import CourseError

__all__ = ["effective_rank", "lora_from_svd", "rank_for_energy", "svd_energy"]


def svd_energy(matrix: Tensor) -> Tensor:
    """Share of the matrix's squared length that its best rank-r approximation keeps.

    energy[r - 1] = (σ_1² + ... + σ_r²) / (σ_1² + ... + σ_n²), rising to 1 (Eckart and Young 1936).

    Args:
        matrix: (d, k), for instance ΔW = W_tuned - W_base.
    Returns: (min(d, k),) float64 in (0, 1].
    Raises: CourseError when it is not a matrix, not finite, or all zeros (a fresh LoRA's ΔW).
    """
    squares = _singular_values(matrix) ** 2
    return squares.cumsum(dim=0) / squares.sum()


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values' shares p_i = σ_i / Σσ (Roy and Vetterli 2007).

    n equal singular values give n; one that outweighs all others gives nearly 1.
    """
    values = _singular_values(matrix)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())  # entr(p) = -p log p, and 0 at p = 0


def rank_for_energy(matrix: Tensor, share: float) -> int:
    """The least rank whose best approximation keeps `share` (0 < share <= 1) of the energy."""
    if not 0 < share <= 1:
        raise CourseError(f"share must be above 0 and at most 1 (0.9 is 90%), got {share}")
    enough = svd_energy(matrix) >= share - 1e-12  # the sums carry rounding of about 1e-15
    return int(enough.nonzero()[0]) + 1


def lora_from_svd(delta: Tensor, rank: int, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """The A and B whose `scaling`·B A is the best rank-r approximation of `delta`.

    With U diag(σ) Vᵀ = delta, B = U_r √σ_r and A = √σ_r V_rᵀ (half of each σ to either side, so
    that neither factor is much larger than the other), divided by √scaling.

    Args:
        delta: (d, k). rank: R, 1 to min(d, k). scaling: the α/r that the factors are used with.
    Returns: A (R, k) and B (d, R), in delta's dtype.
    """
    _check_matrix(delta)
    check_whole_number(rank, 1, "rank")
    if rank > min(delta.shape):
        raise CourseError(
            f"rank {rank} is more than min(d, k) = {min(delta.shape)} of a {tuple(delta.shape)} "
            "matrix, which has no more directions than that"
        )
    if not scaling > 0:
        raise CourseError(f"scaling must be above 0, got {scaling}")
    left, values, right = torch.linalg.svd(delta.detach().double(), full_matrices=False)
    half = (values[:rank] / scaling).sqrt()  # (R,)
    return (half[:, None] * right[:rank]).to(delta.dtype), (left[:, :rank] * half).to(delta.dtype)


def _singular_values(matrix: Tensor) -> Tensor:
    _check_matrix(matrix)
    values = torch.linalg.svdvals(matrix.detach().double())
    if not values[0] > 0:
        raise CourseError("the matrix is all zeros (a fresh LoRA's ΔW is): it has no energy")
    return values


def _check_matrix(matrix: Tensor) -> None:
    if matrix.dim() != 2 or matrix.numel() == 0:
        raise CourseError(f"need a (d, k) matrix, got a tensor of shape {tuple(matrix.shape)}")
    check_finite(matrix, "the matrix")
