"""What an adapter changed, kept on the model: so that it can be taken off, saved and loaded.

One adapter at a time. `apply_*` freezes every parameter of the base and notes which ones were
trainable; `remove_*` puts back the very same modules, values and flags.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.adapters.sites import check_finite
from course_utils.errors import CourseError

__all__ = ["Applied", "adapter_state", "applied", "load_adapter_state"]

SETTING = "setting."  # what an adapter's numbers need beside its weights: LoRA's scaling


@dataclasses.dataclass
class Applied:
    """What was done to a model. Parameters are kept by name, which survives a deep copy."""

    kind: str  # "LoRA", "Houlsby", "prompt tuning", "prefix tuning", "BitFit"
    remove: str  # the function that takes it off
    flags: dict[str, bool]  # requires_grad of each parameter before
    names: list[str] = dataclasses.field(default_factory=list)  # the adapter's own parameters
    before: dict[str, Tensor] = dataclasses.field(default_factory=dict)  # trained base parameters
    settings: dict[str, float] = dataclasses.field(default_factory=dict)


def applied(model: Any) -> Applied | None:
    """The record of the adapter that the model carries, if any."""
    return getattr(model, "course_adapter", None)


def check_free(model: Any, kind: str) -> None:
    """Raises a CourseError if the model carries an adapter, ours or PEFT's."""
    if hasattr(model, "peft_config"):
        raise CourseError(f"the model carries a PEFT adapter; {kind} here needs the plain model")
    record = applied(model)
    if record is not None:
        raise CourseError(
            f"the model already carries {record.kind}, and one adapter at a time is all it takes; "
            f"call {record.remove}(model) first, or use copy.deepcopy of the plain model"
        )


def start(model: nn.Module, kind: str, remove: str, **settings: float) -> Applied:
    """Freezes the whole model and notes what was trainable. Call it after every check."""
    record = Applied(kind, remove, {n: p.requires_grad for n, p in model.named_parameters()})
    record.settings = settings
    model.requires_grad_(False)
    return record


def finish(model: Any, record: Applied) -> None:
    """After the base was frozen, whatever asks for gradients is the adapter."""
    record.names = [name for name, p in model.named_parameters() if p.requires_grad]
    model.course_adapter = record


def train_base_parameter(record: Applied, name: str, parameter: nn.Parameter) -> None:
    """Trains a parameter of the base itself; its value is kept, to be put back."""
    record.before[name] = parameter.detach().clone()
    parameter.requires_grad_(True)


def require(model: Any, kind: str) -> Applied:
    """The record, if the model carries this kind of adapter; a CourseError if it does not."""
    record = applied(model)
    if record is None:
        raise CourseError(f"the model carries no adapter, so there is no {kind} to work on")
    if record.kind != kind:
        raise CourseError(
            f"the model carries {record.kind}, not {kind}; use {record.remove}(model)"
        )
    return record


def restore(model: Any, record: Applied) -> None:
    """Values and flags as they were. Call it when the modules are back in their places."""
    for name, parameter in model.named_parameters():
        if name in record.before:
            with torch.no_grad():
                parameter.copy_(record.before[name])
            parameter.grad = None
        parameter.requires_grad_(record.flags.get(name, parameter.requires_grad))
    del model.course_adapter


# ---- the adapter's weights alone ---------------------------------------------------------------


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The adapter's weights alone, by name: copies, small enough to save many of them.

    LoRA's scaling α/r goes with them (`setting.scaling`, a 0-dim float64 tensor): the same A and B
    under another scaling are another adapter.
    Raises: CourseError when the model carries no adapter of this package.
    """
    record = _require_any(model)
    values = dict(model.named_parameters())
    state = {name: values[name].detach().clone() for name in record.names}
    for key, value in record.settings.items():
        state[SETTING + key] = torch.tensor(value, dtype=torch.float64)
    return state


def load_adapter_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copies weights from `adapter_state` into the adapter that the model carries.

    Nothing is changed unless everything fits.
    Raises: CourseError for missing or unknown names, other shapes, non-finite values, another
        scaling, or a LoRA that is merged.
    """
    record = _require_any(model)
    values = dict(model.named_parameters())
    expected = [*record.names, *(SETTING + key for key in record.settings)]
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise CourseError(
            f"these weights are not of the {record.kind} that the model carries: {len(missing)} "
            f"are missing{_first(missing)}, {len(unknown)} are unknown{_first(unknown)}; apply the "
            "same adapter with the same modules first"
        )
    for name in record.names:
        here, there = tuple(values[name].shape), tuple(state[name].shape)
        if here != there:
            raise CourseError(f"{name} is {here} here and {there} in the weights to load")
        check_finite(state[name], f"{name} in the weights to load")
    for key, value in record.settings.items():
        saved = float(state[SETTING + key])
        if abs(saved - value) > 1e-9 * abs(value):
            raise CourseError(
                f"the weights were trained with {key} = {saved:g}, the model's adapter has "
                f"{value:g}; apply it with the same alpha, rank and rslora"
            )
    if any(getattr(module, "merged", False) is True for module in model.modules()):
        raise CourseError("the LoRA is merged into the weights; call unmerge_lora(model) first")
    with torch.no_grad():
        for name in record.names:
            values[name].copy_(state[name])


def _require_any(model: Any) -> Applied:
    record = applied(model)
    if record is None:
        raise CourseError("the model carries no adapter; apply one first, for example apply_lora")
    return record


def _first(names: list[str]) -> str:
    return f" (first: {names[0]})" if names else ""
