"""Statistics over the tokens that count: masked sums, means, variances, whitening; EOS masks.

A mask is bool or 0/1, True (1) on the tokens that count, and has the shape of the values. Values at
masked positions may be anything, NaN and inf included: they are replaced before any arithmetic, so
that they reach neither the result nor the gradient (`0 * nan` would be `nan`).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def check_same_shape(**tensors: Tensor | None) -> None:
    """Raise ValueError showing every shape unless all have the same one; None is skipped."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if len(set(shapes.values())) > 1:
        seen = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"the tensors must have the same shape, got {seen}")


def check_dims(name: str, tensor: Tensor, letters: str) -> None:
    """Raise ValueError unless `tensor` has one axis for each of `letters`, e.g. "BT" for (B, T)."""
    if tensor.dim() != len(letters):
        wanted = "(" + ", ".join(letters) + ("," if len(letters) == 1 else "") + ")"
        raise ValueError(f"{name} must have shape {wanted}, got {tuple(tensor.shape)}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise ValueError unless value is finite and low <= value <= high."""
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and in [{low:g}, {high:g}], got {value!r}")


def as_mask(mask: Tensor) -> Tensor:
    """The mask as bool, any shape. Other dtypes may hold only 0 and 1: weights are an error."""
    if mask.dtype == torch.bool:
        return mask
    result = mask != 0
    if not torch.equal(result.to(mask.dtype), mask):
        raise ValueError(f"a mask holds only 0 and 1, got values in [{mask.min()}, {mask.max()}]")
    return result


def zero_masked(values: Tensor, mask: Tensor) -> Tensor:
    """values where mask is 1, else 0; shapes equal. The gradient at masked positions is exactly 0.

    Apply it to the *inputs* of exp, log or a division, not to their results: the gradient of
    where(mask, exp(x), 0) is 0 * exp(x), which is NaN when the masked x is inf.
    """
    check_same_shape(values=values, mask=mask)
    return torch.where(
        as_mask(mask), values, torch.zeros((), dtype=values.dtype, device=values.device)
    )


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum of the values that count, in all (scalar) or along `dim`; 0 where nothing counts.

    Args:
        values: (...). mask: (...), same shape. dim: axis to sum over; None sums over all.
    """
    kept = zero_masked(values, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(
    values: Tensor,
    mask: Tensor,
    dim: int | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Mean of the values that count: sum(mask * values) / sum(mask).

    Args:
        values: (...). mask: (...), same shape.
        dim: axis to average along; None averages over all values.
        denominator: divide by this instead of the number of values that count. With micro-batches
            pass the count of the *whole* minibatch: the micro-batch losses (and gradients) then add
            up to the minibatch's, whereas a mean of unequal means would weight short answers'
            tokens more.

    Returns: scalar, or values.shape without `dim`.
    Raises: ValueError if nothing counts (in any slice along `dim`) and no denominator is given.
    """
    total = masked_sum(values, mask, dim)
    if denominator is not None:
        if not bool(torch.as_tensor(denominator > 0).all()):
            raise ValueError(f"denominator must be positive, got {denominator}")
        return total / denominator
    keep = as_mask(mask)
    count = keep.sum() if dim is None else keep.sum(dim)
    if bool((count == 0).any()):
        empty = "" if dim is None else f" in slices {(count == 0).nonzero().squeeze(-1).tolist()}"
        raise ValueError(
            f"the mask of shape {tuple(mask.shape)} selects no token{empty}: nothing to average; "
            "drop such rows, or pass the denominator of the whole minibatch"
        )
    return total / count


def masked_var(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance of the values that count, a scalar: sum(mask * (x - mean)²) / (n - 1).

    Args:
        values: (...). mask: (...), same shape. unbiased: divide by n - 1 (as
            torch.var and TRL do), else by n.
    Raises: ValueError if nothing counts, or a single value with unbiased=True (n - 1 = 0).
    """
    keep = as_mask(mask)
    count = int(keep.sum())
    if unbiased and count == 1:
        raise ValueError(
            "the unbiased variance of one value is 0/0: the mask selects a single token; "
            "use a larger batch, or unbiased=False"
        )
    centred = values - masked_mean(values, mask)  # may be NaN where masked; zeroed in the next line
    variance = zero_masked(centred, mask).square().sum() / max(count, 1)
    return variance * (count / (count - 1)) if unbiased else variance


def masked_whiten(
    values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the values that count; masked positions become 0.

    Whiten advantages once over the whole batch, before it is cut into minibatches. Rewards, if at
    all, with shift_mean=False, which scales but keeps the mean (and so the sign of the score).

    Args:
        values: (...). mask: (...), same shape.
        shift_mean: True gives mean 0; False adds the mean back: mean + (x - mean) / std.
        eps: added to the variance, keeps constant values at 0 instead of 0/0.
    Returns: (...), same shape.
    Raises: ValueError if fewer than two values count.
    Source: `masked_whiten` of TRL (through 1.12), unbiased variance; Ziegler et al. 2019's code.
    """
    mean = masked_mean(values, mask)
    scale = torch.rsqrt(masked_var(values, mask) + eps)
    whitened = (zero_masked(values, mask) - mean) * scale
    return zero_masked(whitened if shift_mean else whitened + mean, mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - Var(R - V) / Var(R): 1 the critic explains all, 0 no better than a constant, < 0 worse.

    Args:
        values: (B, T) V(s_t). returns: (B, T) R_t. mask: (B, T), None counts all.
    Returns: scalar without gradient; 0 if the returns vary by rounding only (nothing to explain).
    """
    check_same_shape(values=values, returns=returns, mask=mask)
    mask = torch.ones_like(returns, dtype=torch.bool) if mask is None else mask
    with torch.no_grad():
        total = masked_var(returns, mask, unbiased=False)
        left = masked_var(returns - values, mask, unbiased=False)
        rounding = 10 * torch.finfo(returns.dtype).eps * zero_masked(returns, mask).abs().max()
        return torch.where(total > rounding**2, 1 - left / total, torch.zeros_like(total))


def completion_mask_from_eos(completion_ids: Tensor, eos_token_id: int | Iterable[int]) -> Tensor:
    """True up to and including each row's first end-of-sequence token; all True without one.

    Built from the *position* of EOS, not from `id != pad`: when pad and EOS share an id that would
    cut the EOS itself, and a pad id that the policy happened to sample would cut a real answer.

    Args:
        completion_ids: (B, C) sampled tokens, without the prompt. eos_token_id: one id or several.
    Returns: (B, C) bool.
    """
    check_dims("completion_ids", completion_ids, "BC")
    ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    is_eos = torch.isin(completion_ids, torch.tensor(ids, device=completion_ids.device))  # (B, C)
    ended_before = is_eos.cumsum(dim=1) - is_eos.long()  # (B, C) EOS tokens strictly before t
    return ended_before == 0


def last_token_index(mask: Tensor) -> Tensor:
    """Index of each row's last True, whatever side the padding is on: (B, T) -> (B,) int64.

    Raises: ValueError naming the rows in which nothing counts.
    """
    check_dims("mask", mask, "BT")
    keep = as_mask(mask)
    empty = ~keep.any(dim=1)  # (B,)
    if bool(empty.any()):
        rows = empty.nonzero().squeeze(-1).tolist()
        raise ValueError(
            f"rows {rows} of the mask {tuple(mask.shape)} select no token: empty answers"
        )
    positions = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    return torch.where(keep, positions, -1).amax(dim=1)
