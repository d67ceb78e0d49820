"""LoRA, low-rank adaptation (Hu et al. 2021): W' = W + (α/r)·B A, and only A and B are trained.

The lecture writes ΔW = A·Bᵀ with A ∈ R^{d×r} and B ∈ R^{k×r}; PEFT and this file write the same
product as B·A, with B (d, R) and A (R, k). Either way R·(d + k) numbers stand for d·k.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from course_utils.adapters.record import check_free, finish, require, restore, start
from course_utils.adapters.sites import (
    check_finite,
    check_whole_number,
    find_linears,
    is_linear,
    linear_shape,
    replace_module,
)
from course_utils.errors import CourseError

__all__ = [
    "LoRALinear",
    "apply_lora",
    "lora_layers",
    "lora_parameters",
    "lora_scaling",
    "merge_and_remove_lora",
    "merge_lora",
    "remove_lora",
    "unmerge_lora",
]

KIND = "LoRA"


def lora_scaling(rank: int, alpha: float, rslora: bool = False) -> float:
    """α/r (Hu et al. 2021, section 4.1), or α/√r, which keeps the size of the update the same at
    any rank (rsLoRA, Kalajdzievski 2023)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def lora_parameters(d: int, k: int, rank: int) -> int:
    """Trained numbers of one adapted (d, k) weight: A has R·k, B has d·R."""
    return rank * (d + k)


class LoRALinear(nn.Module):
    """A frozen linear map and its low-rank change: y = W x + b + (α/r)·B A dropout(x).

    B starts at zero, so the model starts as it was; A starts random, or nothing would ever move
    (the gradient of B is proportional to A x). A and B are float32 on a half-precision or
    quantized base.

    Args:
        base: nn.Linear, GPT-2's Conv1D, or a quantized layer with in_features and out_features.
        rank: R, 1 to min(d, k). alpha: α > 0. dropout: share of inputs dropped, [0, 1).
        rslora: scale by α/√r instead of α/r.
    Raises: CourseError for a base that is no linear map, or settings out of these ranges.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float = 16.0,
        dropout: float = 0.0,
        rslora: bool = False,
    ) -> None:
        super().__init__()
        _check_settings(base, rank, alpha, dropout, type(base).__name__)
        d, k = linear_shape(base)
        weight: Any = base.weight
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        self.base = base
        self.A = nn.Parameter(torch.empty(rank, k, dtype=dtype, device=weight.device))  # (R, k)
        self.B = nn.Parameter(torch.zeros(d, rank, dtype=dtype, device=weight.device))  # (d, R)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # uniform within ±1/√k
        self.dropout = nn.Dropout(dropout)
        self.scaling = lora_scaling(rank, alpha, rslora)
        self.merged = False
        self._before: Tensor | None = None  # W, while merged
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:  # (..., k) -> (..., d)
        out = self.base(x)
        if self.merged:
            return out
        narrow = F.linear(self.dropout(x.to(self.A.dtype)), self.A)  # (..., R)
        return out + (self.scaling * F.linear(narrow, self.B)).to(out.dtype)

    def delta(self) -> Tensor:
        """ΔW = (α/r)·B A, (d, k), whichever way round the base keeps its weight."""
        return self.scaling * self.B @ self.A

    @torch.no_grad()
    def merge(self) -> None:
        """Adds ΔW into the base's weight: the adapted model at the cost of the plain one.

        W is kept, so that `unmerge` is exact: subtracting ΔW again would leave rounding behind.
        Raises: CourseError if merged already, if ΔW is not finite, or for a quantized weight.
        """
        weight: Any = self.base.weight
        if self.merged:
            raise CourseError("this LoRA is merged already; unmerge() undoes it")
        if not weight.is_floating_point():
            raise CourseError(
                f"the base weight is stored as {weight.dtype} (quantized), where ΔW would be "
                "rounded away; dequantize the base first, then merge"
            )
        delta = self.delta()
        check_finite(delta, "ΔW = (α/r)·B A")
        self._before = weight.detach().clone()
        delta = delta.T if isinstance(self.base, Conv1D) else delta  # Conv1D: (k, d)
        weight.copy_(weight.to(delta.dtype) + delta)
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts the base's weight back, bit for bit. Raises: CourseError if it is not merged."""
        if not self.merged or self._before is None:
            raise CourseError("this LoRA is not merged, so there is nothing to unmerge")
        weight: Any = self.base.weight
        weight.copy_(self._before)
        self._before, self.merged = None, False

    @property
    def weight(self) -> Tensor:
        """The base's weight (W, or W' while merged), for code that looks at its shape or dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]


# ---- a whole model -----------------------------------------------------------------------------


def apply_lora(
    model: Any,
    rank: int = 8,
    alpha: float = 16.0,
    *,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
) -> Any:
    """Puts a LoRA on linear maps of a decoder, freezes all else, and returns the model (in place).

    Args:
        targets: module names, for example ["q_proj", "v_proj"] (the LoRA paper's choice on Llama)
            or ["c_attn"] (GPT-2); None takes every linear map in the layers (QLoRA's choice).
        rank, alpha, dropout, rslora: see `LoRALinear`.
    Raises: CourseError for unknown names (near ones are listed), a rank that does not fit, weights
        that are not finite, or a model that carries an adapter; the model is then unchanged.
    """
    check_free(model, KIND)
    sites = find_linears(model, targets)
    for name, base in sites.items():
        _check_settings(base, rank, alpha, dropout, name)
        check_finite(base.weight, f"{name}.weight")  # type: ignore[arg-type]
    scaling = lora_scaling(rank, alpha, rslora)
    record = start(model, KIND, "remove_lora", scaling=scaling)
    for name, base in sites.items():
        replace_module(model, name, LoRALinear(base, rank, alpha, dropout, rslora))
    finish(model, record)
    return model


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The model's LoRA layers by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def remove_lora(model: Any) -> Any:
    """Takes the LoRA off: modules, weights (also if it was merged) and flags are as before."""
    record = require(model, KIND)
    for name, layer in lora_layers(model).items():
        if layer.merged:
            layer.unmerge()
        replace_module(model, name, layer.base)
    restore(model, record)
    return model


def merge_lora(model: Any) -> Any:
    """Merges every LoRA layer into its weight; `unmerge_lora` undoes it exactly."""
    require(model, KIND)
    layers = lora_layers(model)
    _check_untied(model, layers)
    for name, layer in layers.items():  # all checks first, so that no half is merged
        if layer.merged:
            raise CourseError(f"{name} is merged already; call unmerge_lora(model) first")
        check_finite(layer.delta(), f"ΔW of {name}")
    for layer in layers.values():
        layer.merge()
    return model


def unmerge_lora(model: Any) -> Any:
    """Every weight as it was before `merge_lora`, bit for bit."""
    require(model, KIND)
    for layer in lora_layers(model).values():
        layer.unmerge()
    return model


def merge_and_remove_lora(model: Any) -> Any:
    """Merges for good and takes the LoRA layers off: a plain model again, ready to be saved."""
    record = require(model, KIND)
    layers = lora_layers(model)
    if not all(layer.merged for layer in layers.values()):
        merge_lora(model)
    for name, layer in layers.items():
        replace_module(model, name, layer.base)
    restore(model, record)
    return model


def _check_settings(base: nn.Module, rank: int, alpha: float, dropout: float, name: str) -> None:
    if not is_linear(base):
        raise CourseError(f"{name} is a {type(base).__name__}, not a linear map")
    check_whole_number(rank, 1, "rank")
    least = min(linear_shape(base))
    if rank > least:
        raise CourseError(
            f"rank {rank} is more than min(d, k) = {least} of {name}: B A would have more "
            f"directions than the weight itself; use at most {least}"
        )
    if not (alpha > 0 and math.isfinite(alpha)):
        raise CourseError(
            f"alpha must be above 0 (the update is scaled by alpha/rank), got {alpha}"
        )
    if not 0 <= dropout < 1:
        raise CourseError(f"dropout must be in [0, 1), got {dropout}")


def _check_untied(model: nn.Module, layers: dict[str, LoRALinear]) -> None:
    """A weight that two modules share must not be merged into: the other one would change too."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, layer in layers.items():
        others = names[id(layer.base.weight)]
        if len(others) > 1:
            raise CourseError(
                f"{name} shares its weight with {' and '.join(others)}: merging would change both; "
                "leave this module out of the targets, or untie the weights"
            )
