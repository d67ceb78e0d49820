"""4-bit weights from scratch: code books, blockwise absmax, double quantization, 4-bit layers.

    q = quantize(weight, "nf4", block=64, double=True)
    weight_again = dequantize(q)          # q.bits_per_parameter is 4.127
    report = quantize_model(model)        # every nn.Linear but the head; LoRA trains through it

Source: QLoRA (Dettmers et al. 2023). The numbers are bitsandbytes' own, bit for bit on a CPU.
"""

from course_utils.quantization.blockwise import (
    SECOND_BLOCK,
    Quantized,
    bits_per_parameter,
    dequantize,
    pack,
    quantize,
    unpack,
)
from course_utils.quantization.codebooks import FORMATS, CodeBook, code_book
from course_utils.quantization.compare import ErrorRow, error_table, format_table, smollm2_weights
from course_utils.quantization.linear import (
    Linear4bit,
    QuantizationReport,
    linear_weights,
    quantize_model,
)

__all__ = [
    "FORMATS",
    "SECOND_BLOCK",
    "CodeBook",
    "ErrorRow",
    "Linear4bit",
    "QuantizationReport",
    "Quantized",
    "bits_per_parameter",
    "code_book",
    "dequantize",
    "error_table",
    "format_table",
    "linear_weights",
    "pack",
    "quantize",
    "quantize_model",
    "smollm2_weights",
    "unpack",
]
