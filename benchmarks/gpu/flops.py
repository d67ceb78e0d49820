"""Model FLOPs of a step, and what a GPU can do at most: the two sides of MFU. No torch.

MFU (model FLOPs utilization; Chowdhery et al. 2022, appendix B) = FLOPs that the mathematics of a
step asks for / seconds / the GPU's peak. Work done twice (recomputed activations, logits of prompt
tokens) and work beside the matrix products (norms, the optimizer) count for nothing.
"""

import re

from course_utils.memory import ModelShape

T = 1e12
# Dense FLOP/s from NVIDIA's data sheets; where a sheet gives the number "with sparsity", half of
# it. fp32 is that of the ordinary cores: torch multiplies fp32 matrices without TF32 by default.
# name as torch shows it, as a pattern: ({precision: FLOP/s}, source)
PEAKS: dict[str, tuple[dict[str, float], str]] = {
    r"T4": ({"fp32": 8.1 * T, "fp16": 65 * T}, "NVIDIA T4 data sheet"),
    r"V100-SXM2": ({"fp32": 15.7 * T, "fp16": 125 * T}, "NVIDIA V100 data sheet"),
    r"L4": ({"fp32": 30.3 * T, "fp16": 121 * T, "bf16": 121 * T}, "NVIDIA L4 data sheet / 2"),
    r"L40S": (
        {"fp32": 91.6 * T, "fp16": 362 * T, "bf16": 362 * T},
        "NVIDIA L40S data sheet",
    ),
    r"A10": ({"fp32": 31.2 * T, "fp16": 125 * T, "bf16": 125 * T}, "NVIDIA A10 data sheet"),
    r"A40": ({"fp32": 37.4 * T, "fp16": 149.7 * T, "bf16": 149.7 * T}, "NVIDIA A40 data sheet"),
    r"RTX A6000": (
        {"fp32": 38.7 * T, "fp16": 154.8 * T, "bf16": 154.8 * T},
        "NVIDIA RTX A6000 data sheet / 2",
    ),
    r"A100": ({"fp32": 19.5 * T, "fp16": 312 * T, "bf16": 312 * T}, "NVIDIA A100 data sheet"),
    r"H100 PCIe": (
        {"fp32": 51 * T, "fp16": 756.5 * T, "bf16": 756.5 * T},
        "NVIDIA H100 data sheet / 2",
    ),
    r"H100 NVL": (
        {"fp32": 60 * T, "fp16": 835.5 * T, "bf16": 835.5 * T},
        "NVIDIA H100 data sheet / 2",
    ),
    r"H100 80GB HBM3": (  # SXM
        {"fp32": 67 * T, "fp16": 989.5 * T, "bf16": 989.5 * T},
        "NVIDIA H100 data sheet / 2",
    ),
    r"H200 NVL": (
        {"fp32": 60 * T, "fp16": 835.5 * T, "bf16": 835.5 * T},
        "NVIDIA H200 data sheet / 2",
    ),
    r"H200": (
        {"fp32": 67 * T, "fp16": 989.5 * T, "bf16": 989.5 * T},
        "NVIDIA H200 data sheet / 2",
    ),
}


def peak(name: str, precision: str) -> tuple[float, str] | None:
    """(FLOP/s, source) of a GPU by torch's name for it; None if it is not known for certain."""
    if "MIG" in name or re.search(r"-\d+[A-Z]$", name):  # a slice of a GPU, or a virtual one
        return None
    for pattern, (peaks, source) in PEAKS.items():
        if re.search(rf"(?<![\w]){pattern}(?![\w])", name) and precision in peaks:
            return peaks[precision], source
    return None


def forward_parts(shape: ModelShape, rows: int, seq: int, scored: int) -> tuple[float, float]:
    """FLOPs of one forward pass: (products with weights, products in attention).

    Args: rows: B. seq: T, tokens of a row. scored: C, tokens of a row whose logits are needed.

    A weight costs a multiplication and an addition for each token. Attention's scores and weighted
    sums cost 2 · 2 · q_width for each pair of a query and a key, half of which are masked.
    """
    head = shape.vocabulary * (shape.embedding or shape.hidden)
    weights = 2 * shape.linear_weights * rows * seq + 2 * head * rows * scored
    attention = shape.layers * 2 * shape.q_width * seq**2 * rows
    return float(weights), float(attention)


def forward(shape: ModelShape, rows: int, seq: int, scored: int) -> float:
    """FLOPs of one forward pass."""
    return sum(forward_parts(shape, rows, seq, scored))


def training(shape: ModelShape, rows: int, seq: int, scored: int, full: bool = True) -> float:
    """FLOPs of a forward and a backward pass.

    Backward, every product costs twice its forward; with frozen weights (LoRA) once, as these need
    no gradient. The adapters' own products are not counted.
    """
    weights, attention = forward_parts(shape, rows, seq, scored)
    return weights * (3 if full else 2) + attention * 3


def utilization(flops: float, seconds: float, name: str, precision: str) -> float | None:
    """MFU, a share; None for a GPU whose peak is not known."""
    found = peak(name, precision)
    return None if found is None else flops / seconds / found[0]
