"""BitFit (Ben Zaken et al. 2022): train the biases, freeze everything else.

GPT-2 and OPT have biases in every linear map and norm. Llama has none at all and Qwen2 only in the
queries, keys and values; there `add_missing=True` gives the layers' linear maps biases of zero,
which leaves the model as it is until they are trained.
"""

from typing import Any

import torch
from torch import nn

from course_utils.adapters.record import (
    check_free,
    finish,
    require,
    restore,
    start,
    train_base_parameter,
)
from course_utils.adapters.sites import check_finite, decoder_of, find_linears, linear_shape
from course_utils.errors import CourseError

__all__ = ["apply_bitfit", "remove_bitfit"]

KIND = "BitFit"


def apply_bitfit(model: Any, *, add_missing: bool = False) -> Any:
    """Freezes all but the decoder's biases, and returns the model (in place).

    Args:
        add_missing: give linear maps in the layers that have no bias one of zeros. A model merged
            of such biases can not be saved as a plain Llama; save `adapter_state(model)`.
    Raises: CourseError when there are no biases and none may be added, or the model carries an
        adapter; the model is then unchanged.
    """
    check_free(model, KIND)
    inside = {id(p) for p in decoder_of(model).parameters()}
    biases = {
        name: p
        for name, p in model.named_parameters()
        if id(p) in inside and name.rsplit(".", 1)[-1] == "bias"
    }
    linears = find_linears(model).items()
    bare: dict[str, Any] = {name: m for name, m in linears if getattr(m, "bias", None) is None}
    if not biases and not add_missing:
        raise CourseError(
            f"{type(model).__name__} has no biases to train (Llama's linear maps and norms go "
            f"without); pass add_missing=True to give its {len(bare)} linear maps biases of zero, "
            "or use LoRA"
        )
    for name, bias in biases.items():
        check_finite(bias, name)
    record = start(model, KIND, "remove_bitfit")
    for name, bias in biases.items():
        train_base_parameter(record, name, bias)
    for module in bare.values() if add_missing else ():
        weight = module.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        zeros = torch.zeros(linear_shape(module)[0], dtype=dtype, device=weight.device)
        module.bias = nn.Parameter(zeros)
    finish(model, record)
    return model


def remove_bitfit(model: Any) -> Any:
    """Puts the biases back to their values, takes the added ones away, restores the flags."""
    record = require(model, KIND)
    for name in record.names:
        if name not in record.before:
            model.get_submodule(name.rpartition(".")[0]).bias = None
    restore(model, record)
    return model
