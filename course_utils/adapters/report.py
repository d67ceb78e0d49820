"""How many parameters train, counted by kind: the lecture's "0.1 to 1%", measured."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from course_utils.adapters.houlsby import is_norm
from course_utils.adapters.record import applied
from course_utils.adapters.sites import is_linear, linear_shape

__all__ = ["TrainableReport", "TrainableRow", "trainable_report"]

ORDER = ("embedding", "attention", "feed-forward", "norm", "bias", "head", "other")


@dataclasses.dataclass(frozen=True)
class TrainableRow:
    """One kind of parameters."""

    kind: str
    parameters: int  # numbers of this kind
    trainable: int  # of them
    share: float  # trainable, in % of all the model's parameters, adapter included


@dataclasses.dataclass(frozen=True)
class TrainableReport:
    """Rows by kind and their sums; print it for a table."""

    rows: tuple[TrainableRow, ...]

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        return sum(row.trainable for row in self.rows)

    @property
    def share(self) -> float:  # %
        return 100 * self.trainable / max(self.parameters, 1)

    def __iter__(self) -> Iterator[TrainableRow]:
        return iter(self.rows)

    def __str__(self) -> str:
        total = TrainableRow("all", self.parameters, self.trainable, self.share)
        lines = [f"{'kind':<24}{'parameters':>18}{'trainable':>16}{'% of all':>12}"]
        for row in (*self.rows, total):
            numbers = f"{row.parameters:>18,}{row.trainable:>16,}{row.share:>12.4f}"
            lines.append(f"{row.kind:<24}{numbers}")
        return "\n".join(lines)


def trainable_report(model: Any) -> TrainableReport:
    """Counts a model's parameters by kind, tied ones once, 4-bit ones as the numbers they store.

    Works for plain models, ours and PEFT's, and on the meta device (no memory needed).
    """
    record = applied(model)
    added = set() if record is None else set(record.names) - set(record.flags)
    modules = dict(model.named_modules())
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        if record is not None and name in added and record.kind != "BitFit":
            kind = record.kind
        else:
            kind = _kind_of(name)
        size = _numbers(modules[name.rpartition(".")[0]], name, parameter)
        row = counts.setdefault(kind, [0, 0])
        row[0] += size
        row[1] += size if parameter.requires_grad else 0
    total = max(sum(size for size, _ in counts.values()), 1)
    kinds = sorted(counts, key=lambda kind: ORDER.index(kind) if kind in ORDER else len(ORDER))
    rows = []
    for kind in kinds:
        size, trainable = counts[kind]
        rows.append(TrainableRow(kind, size, trainable, 100 * trainable / total))
    return TrainableReport(tuple(rows))


def _kind_of(name: str) -> str:
    """The kind of a base parameter, by its name in the Llama, Qwen, GPT-2 and OPT families."""
    if "lora_" in name:  # PEFT's names
        return "LoRA"
    if name.endswith("bias"):
        return "bias"
    if is_norm(name):
        return "norm"
    rules = {
        "attention": ("attn", "attention"),
        "feed-forward": ("mlp", "fc1", "fc2"),
        "embedding": ("embed", "wte", "wpe"),
        "head": ("head", "score"),
    }
    for kind, parts in rules.items():
        if any(part in name for part in parts):
            return kind
    return "other"


def _numbers(module: nn.Module, name: str, parameter: Any) -> int:
    """A 4-bit weight is stored packed, two numbers to a byte: its shape says how many there are."""
    if name.endswith("weight") and is_linear(module) and not parameter.is_floating_point():
        d, k = linear_shape(module)
        return d * k
    return parameter.numel()
