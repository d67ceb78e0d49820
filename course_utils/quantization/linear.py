"""A linear map whose weight is kept in 4 bits, and a model in which every nn.Linear is one."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from course_utils.errors import CourseError
from course_utils.quantization.blockwise import (
    Quantized,
    check_block,
    check_weights,
    dequantize,
    quantize,
)
from course_utils.quantization.codebooks import code_book

HEADS = ("lm_head", "embed_out", "score")  # outputs stay as they are, like the embeddings


class DequantizingMatmul(torch.autograd.Function):
    """y = x Wᵀ, where W exists only while it is used: it is built from its 4 bits in the forward
    pass, dropped, and built again in the backward pass. W itself gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Quantized) -> Tensor:  # (..., k) -> (..., d)
        ctx.weight = weight
        return x @ dequantize(weight, x.dtype).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # (..., d) -> (..., k)
        (grad,) = grads
        return grad @ dequantize(ctx.weight, grad.dtype), None


class Linear4bit(nn.Module):
    """y = W x + b with W (d, k) frozen in 4 bits; the gradient flows through to x (and b).

    So a LoRA on top is trained as over the full-precision map, and the layers below get their
    gradients too. Its `weight` are the packed codes (uint8), as in bitsandbytes.

    Args:
        linear: nn.Linear, or GPT-2's Conv1D; not changed, its bias is shared.
        format, block, double: see `quantize`.
        compute_dtype: of the matrix product; None: autocast's if it is on, else the input's.
    Raises: CourseError for a module without a (d, k) weight, and as `quantize`.
    """

    def __init__(
        self,
        linear: nn.Module,
        format: str = "nf4",
        block: int = 64,
        double: bool = True,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        q = quantize(weight_of(linear), format, block, double)
        self.out_features, self.in_features = q.shape
        self.format, self.block, self.dtype = q.format, q.block, q.dtype
        self.compute_dtype = compute_dtype
        self.bias = getattr(linear, "bias", None)
        self.register_buffer("weight", q.codes)
        self.register_buffer("absmax", q.absmax)
        self.register_buffer("absmax_absmax", q.absmax_absmax)
        self.register_buffer("absmax_mean", q.absmax_mean)
        self.train(linear.training)

    @property
    def quantized(self) -> Quantized:
        """W as it is stored."""
        parts: dict[str, Any] = self._buffers
        return Quantized(
            codes=parts["weight"],
            absmax=parts["absmax"],
            shape=(self.out_features, self.in_features),
            dtype=self.dtype,
            format=self.format,
            block=self.block,
            absmax_absmax=parts["absmax_absmax"],
            absmax_mean=parts["absmax_mean"],
        )

    def forward(self, x: Tensor) -> Tensor:  # (..., k) -> (..., d), in x's dtype
        device = x.device.type
        dtype = x.dtype if self.compute_dtype is None else self.compute_dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        y: Tensor = DequantizingMatmul.apply(x.to(dtype), self.quantized)
        if self.bias is not None:
            y = y + self.bias.to(dtype)
        return y.to(x.dtype)

    def dequantize(self) -> nn.Linear:
        """An ordinary nn.Linear with the rounded weights: what a LoRA is merged into."""
        weight = dequantize(self.quantized)
        linear = torch.nn.utils.skip_init(
            nn.Linear, self.in_features, self.out_features, bias=False, device=weight.device
        )
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias
        return linear.train(self.training)

    def _apply(self, fn: Any, recurse: bool = True) -> "Linear4bit":
        """Moves with the model, but model.half() or .to(bfloat16) leaves the scales in float32."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self.format}, block={self.block}, "
            f"{self.quantized.bits_per_parameter:.3f} bits/parameter"
        )


def weight_of(linear: nn.Module, name: str = "") -> Tensor:
    """The weight as (d, k) = (outputs, inputs); Conv1D keeps it the other way round.

    Raises: CourseError for a module that is no linear map, or has no weight.
    """
    name = name or type(linear).__name__
    weight = getattr(linear, "weight", None)
    if not isinstance(linear, nn.Linear | Conv1D):
        raise CourseError(f"{name} is a {type(linear).__name__}, not an nn.Linear or Conv1D")
    if not isinstance(weight, Tensor) or weight.dtype == torch.uint8:
        seen = "has no weight" if weight is None else "is quantized already"
        raise CourseError(f"{name} {seen}; give a layer with floating-point weights")
    return weight.T if isinstance(linear, Conv1D) else weight


# ---- a whole model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class QuantizationReport:
    """What `quantize_model` did."""

    replaced: tuple[str, ...]  # names of the layers now in 4 bits
    skipped: tuple[str, ...]  # linear maps left as they were
    parameters: int  # numbers in the replaced weights
    bytes_before: int  # of those weights
    bytes_after: int

    @property
    def bits_per_parameter(self) -> float:
        return 8 * self.bytes_after / self.parameters

    def __str__(self) -> str:
        left = f"; left as they were: {', '.join(self.skipped)}" if self.skipped else ""
        return (
            f"{len(self.replaced)} linear maps, {self.parameters:,} weights: "
            f"{self.bytes_before / 2**20:.2f} MiB -> {self.bytes_after / 2**20:.2f} MiB, "
            f"{self.bits_per_parameter:.3f} bits per weight{left}"
        )


def quantize_model(
    model: nn.Module,
    format: str = "nf4",
    block: int = 64,
    double: bool = True,
    skip: Sequence[str] = HEADS,
    compute_dtype: torch.dtype | None = None,
) -> QuantizationReport:
    """Puts a Linear4bit in place of every linear map (nn.Linear, Conv1D) of a model, in place.

    Embeddings and norms are no linear maps and stay, and so does a head that shares its weight with
    the embedding. Quantize first, then add adapters.

    Args:
        skip: names of layers to leave: "lm_head" means every module of that name, "mlp.up_proj"
            only those within an `mlp`.
        format, block, double, compute_dtype: see `Linear4bit`.
    Raises: CourseError, with the model unchanged: as `quantize`, naming the layer; for a name in
        `skip` that is not there (near ones are listed); when there is nothing to quantize.
    """
    code_book(format)
    check_block(block)
    chosen, skipped = _choose(model, skip)
    shared: dict[int, Linear4bit] = {}  # a layer used in two places stays one layer
    for name, layer in chosen.items():  # all of them before the first is replaced
        check_weights(weight_of(layer, name), f"{name}.weight")
        if id(layer) not in shared:
            shared[id(layer)] = Linear4bit(layer, format, block, double, compute_dtype)
    before = {id(layer): weight_of(layer).nbytes for layer in chosen.values()}
    after = [layer.quantized for layer in shared.values()]
    for name, layer in chosen.items():
        model.set_submodule(name, shared[id(layer)])
    return QuantizationReport(
        replaced=tuple(chosen),
        skipped=skipped,
        parameters=sum(q.numel for q in after),
        bytes_before=sum(before.values()),
        bytes_after=sum(q.nbytes for q in after),
    )


def linear_weights(model: nn.Module, skip: Sequence[str] = HEADS) -> dict[str, Tensor]:
    """The weights, (d, k) by layer name, that `quantize_model` would put into 4 bits."""
    return {name: weight_of(layer, name) for name, layer in _choose(model, skip)[0].items()}


def _choose(model: nn.Module, skip: Sequence[str]) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """(linear maps to quantize by name, names of those to leave)."""
    if isinstance(skip, str):
        raise CourseError(f"skip must be a list of names, got the string {skip!r}; use [{skip!r}]")
    if hasattr(model, "peft_config"):
        raise CourseError(
            "the model carries PEFT adapters, whose own small matrices must stay trainable; "
            "quantize the base model first, then add the adapters"
        )
    modules = {n: m for n, m in model.named_modules(remove_duplicate=False) if n}
    linears = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
    for wanted in skip:
        if wanted not in HEADS and not any(_means(wanted, name) for name in modules):
            last = sorted({name.rsplit(".", 1)[-1] for name in linears})
            near = difflib.get_close_matches(wanted.rsplit(".", 1)[-1], last, n=3, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise CourseError(
                f"skip names {wanted!r}, and the model has no such module.{hint} Its linear maps "
                f"are: {', '.join(last) or 'none'}"
            )
    embedded = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    left = {
        name
        for name, layer in linears.items()
        if id(layer.weight) in embedded or any(_inside(wanted, name) for wanted in skip)
    }
    chosen = {name: layer for name, layer in linears.items() if name not in left}
    if not chosen:
        quantized = any(isinstance(m, Linear4bit) for m in model.modules())
        seen = "is quantized already" if quantized else "has no linear map left to quantize"
        raise CourseError(f"{type(model).__name__} {seen}; skip is {tuple(skip)}")
    return chosen, tuple(sorted(left))


def _means(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def _inside(wanted: str, name: str) -> bool:
    """Whether `wanted` names this module or one around it."""
    parts = name.split(".")
    return any(_means(wanted, ".".join(parts[: i + 1])) for i in range(len(parts)))
