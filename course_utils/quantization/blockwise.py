"""Blockwise absmax quantization, double quantization, and two 4-bit codes in a byte.

A block of 64 neighbouring weights shares one scale, its largest magnitude (absmax): one outlier
then spoils 64 weights instead of a whole matrix. Double quantization stores the scales themselves
in 8 bits, in blocks of 256 (Dettmers et al. 2023, section 3).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.quantization.codebooks import CodeBook, code_book, dynamic_book

SECOND_BLOCK = 256  # scales that share one second-level scale
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TINY = 1e-38  # the least scale to divide by: a block of zeros stays zero


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor in 4 bits. N numbers, M = ⌈N / block⌉ blocks; made by `quantize`."""

    codes: Tensor  # (⌈N/2⌉,) uint8: two codes in a byte, the first in the upper half
    absmax: Tensor  # (M,) float32: the blocks' scales; with double quantization uint8 codes of them
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the tensor that was quantized
    format: str  # "nf4", "fp4" or "int4"
    block: int  # weights that share a scale
    absmax_absmax: Tensor | None = None  # (⌈M/256⌉,) float32: the scales' scales
    absmax_mean: Tensor | None = None  # () float32: subtracted from the scales, which are all > 0

    @property
    def book(self) -> CodeBook:
        return code_book(self.format)

    @property
    def double(self) -> bool:
        """Whether the scales are quantized too."""
        return self.absmax_absmax is not None

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes of everything stored for this tensor; the code book is shared by all."""
        parts = (self.codes, self.absmax, self.absmax_absmax, self.absmax_mean)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def bits_per_parameter(self) -> float:
        """Bits stored per number, counted: a ragged tail or a tiny tensor costs more than the
        formula of the function `bits_per_parameter` says."""
        return 8 * self.nbytes / self.numel

    def scales(self) -> Tensor:
        """The blocks' scales, (M,) float32, rebuilt if they are stored in 8 bits."""
        if self.absmax_absmax is None or self.absmax_mean is None:
            return self.absmax
        centred = decode(self.absmax, self.absmax_absmax, dynamic_book(), SECOND_BLOCK)
        return centred + self.absmax_mean


def bits_per_parameter(block: int = 64, double: bool = False) -> float:
    """Bits per weight of a large tensor: 4 + 32/block, or 4 + 8/block + 32/(256·block) with double.

    >>> bits_per_parameter(64), round(bits_per_parameter(64, double=True), 3)
    (4.5, 4.127)
    """
    check_block(block)
    return 4 + (8 / block + 32 / (block * SECOND_BLOCK) if double else 32 / block)


def quantize(
    weights: Tensor, format: str = "nf4", block: int = 64, double: bool = False
) -> Quantized:
    """Rounds a tensor to 4 bits in blocks of its flattened (row-major) order.

    Args:
        weights: any shape, also one that no block divides; a floating dtype; all values finite.
        format: "nf4", "fp4" or "int4". block: weights per scale, >= 1.
        double: quantize the scales to 8 bits, after subtracting their mean.
    Raises: CourseError for an unknown format, a block that is not a positive whole number, and
        weights that are empty, integers, without values (meta) or not finite.
    """
    book = code_book(format)
    check_block(block)
    check_weights(weights)
    codes, absmax = encode(weights.detach().float().flatten(), book, block)
    second = mean = None
    if double:
        mean = absmax.mean()
        absmax, second = encode(absmax - mean, dynamic_book(), SECOND_BLOCK)
    return Quantized(
        codes=pack(codes, book.zero),
        absmax=absmax,
        shape=tuple(weights.shape),
        dtype=weights.dtype,
        format=book.name,
        block=block,
        absmax_absmax=second,
        absmax_mean=mean,
    )


def dequantize(q: Quantized, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor that the codes stand for, in its old shape; dtype None: that of the original.

    |result - original| <= book.half_gap · absmax of the block; double quantization adds the error
    of the scale, at most 1/128 or so of the spread of the scales.
    """
    flat = decode(unpack(q.codes, q.numel), q.scales(), q.book, q.block)
    return flat.reshape(q.shape).to(q.dtype if dtype is None else dtype)


# ---- one level -------------------------------------------------------------------------------


def encode(x: Tensor, book: CodeBook, block: int) -> tuple[Tensor, Tensor]:
    """(N,) float32 -> codes (N,) uint8 and scales (⌈N/block⌉,) float32."""
    blocks = F.pad(x, (0, -len(x) % block)).view(-1, block)  # zeros change no maximum
    absmax = blocks.abs().amax(dim=1)  # (M,)
    # times the reciprocal, as the library does: a division may round differently in the last bit
    scaled = blocks * (1.0 / absmax.clamp(min=TINY)).unsqueeze(1)  # (M, block) in [-1, 1]
    return book.nearest(scaled).flatten()[: len(x)], absmax


def decode(codes: Tensor, absmax: Tensor, book: CodeBook, block: int) -> Tensor:
    """codes (N,) and scales (M,) -> (N,) float32."""
    values = book.values.to(codes.device).index_select(0, codes.int())  # (N,)
    full = len(codes) // block * block  # a tail shorter than a block is scaled by itself
    values[:full].view(-1, block).mul_(absmax[: full // block].unsqueeze(1))
    if full < len(codes):
        values[full:].mul_(absmax[-1])
    return values


def pack(codes: Tensor, fill: int = 0) -> Tensor:
    """(N,) codes 0 … 15 -> (⌈N/2⌉,) bytes, the first of a pair in the upper half.

    An odd count is filled up with one code `fill`.
    """
    codes = F.pad(codes.to(torch.uint8), (0, len(codes) % 2), value=fill)
    return (codes[::2] << 4) | codes[1::2]


def unpack(packed: Tensor, count: int) -> Tensor:
    """The inverse: (⌈count/2⌉,) bytes -> (count,) codes, uint8."""
    return torch.stack([packed >> 4, packed & 0x0F], dim=1).flatten()[:count]


# ---- what can be wrong -----------------------------------------------------------------------


def check_block(block: Any) -> None:
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise CourseError(
            f"the block size must be a whole number of at least 1, got {block!r}; 64 is usual"
        )


def check_weights(weights: Any, name: str = "the tensor") -> None:
    """Raises CourseError unless `weights` is a tensor of finite floating-point numbers."""
    if not isinstance(weights, Tensor):
        raise CourseError(f"{name} is a {type(weights).__name__}; only tensors can be quantized")
    if weights.device.type == "meta":
        raise CourseError(f"{name} has no values (meta device); load the weights first")
    if weights.dtype not in FLOATS:
        raise CourseError(
            f"{name} holds {weights.dtype}, not floating-point numbers; if it is quantized "
            "already, dequantize it first"
        )
    if weights.numel() == 0:
        raise CourseError(f"{name} is empty, shape {tuple(weights.shape)}: nothing to quantize")
    bad = weights.numel() - int(torch.isfinite(weights.float()).sum())
    if bad:
        raise CourseError(
            f"{name} has {bad} values of {weights.numel()} that are nan, inf or too large for "
            "float32; reload the model, and if it was trained, lower the learning rate"
        )
