"""Bottleneck adapters (Houlsby et al. 2019): two small two-layer networks inside every layer.

One stands after attention's output projection, one after the feed-forward's, each before the
residual sum (figure 2 of the paper). They compute h + W_up f(W_down h + b_down) + b_up. Unlike
LoRA's, this change is not linear in h, so it cannot be merged into a weight: it costs time at
every forward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.adapters.record import (
    check_free,
    finish,
    require,
    restore,
    start,
    train_base_parameter,
)
from course_utils.adapters.sites import (
    check_finite,
    check_whole_number,
    decoder_layers,
    find_linears,
    is_linear,
    linear_shape,
    replace_module,
)
from course_utils.errors import CourseError

__all__ = ["AdaptedOutput", "Bottleneck", "apply_houlsby", "houlsby_parameters", "remove_houlsby"]

KIND = "Houlsby adapters"
ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense")  # within the attention module
FEED_FORWARD_OUT = ("mlp.down_proj", "mlp.c_proj", "mlp.fc2", "fc2")  # OPT's fc2 has no `mlp`


def houlsby_parameters(hidden: int, bottleneck: int) -> int:
    """Numbers in one adapter: 2·D·M + D + M (section 2.1 of the paper)."""
    return 2 * hidden * bottleneck + hidden + bottleneck


class Bottleneck(nn.Module):
    """h -> h + up(f(down(h))), with D inputs and M < D features in the middle.

    Args:
        size: D. bottleneck: M, 1 to D. nonlinearity: f.
        std: of the weights at the start (normal, cut off at two standard deviations; the paper
            takes 0.01, which is nearly the identity). None: `up` starts at zero, exactly the
            identity, and `down` at 0.01.
    """

    def __init__(
        self,
        size: int,
        bottleneck: int,
        nonlinearity: nn.Module | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(size, bottleneck)
        self.nonlinearity = nn.GELU() if nonlinearity is None else nonlinearity
        self.up = nn.Linear(bottleneck, size)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        down_std = 0.01 if std is None else std
        nn.init.trunc_normal_(self.down.weight, std=down_std, a=-2 * down_std, b=2 * down_std)
        if std is None:
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.trunc_normal_(self.up.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, h: Tensor) -> Tensor:  # (..., D) -> (..., D)
        narrow = self.nonlinearity(self.down(h.to(self.down.weight.dtype)))  # (..., M)
        return h + self.up(narrow).to(h.dtype)


class AdaptedOutput(nn.Module):
    """A sub-layer's output projection with an adapter behind it.

    Where the model drops out features between projection and residual sum (GPT-2, OPT), it does so
    after the adapter.
    """

    def __init__(self, base: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.train(base.training)

    def forward(self, x: Tensor) -> Tensor:  # (..., k) -> (..., D)
        return self.adapter(self.base(x))

    @property
    def weight(self) -> Tensor:
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias  # type: ignore[return-value]


def output_projections(model: Any) -> list[str]:
    """Full names of every layer's two output projections, attention's first."""
    paths = {id(module): name for name, module in model.named_modules()}
    found = []
    for number, layer in enumerate(decoder_layers(model)):
        inside = {n: m for n, m in layer.named_modules() if is_linear(m)}
        attention = [n for n in inside if "attn" in n or "attention" in n]
        attention = [n for n in attention if n.rsplit(".", 1)[-1] in ATTENTION_OUT]
        feed_forward = [n for n in inside if n in FEED_FORWARD_OUT]
        if len(attention) != 1 or len(feed_forward) != 1:
            raise CourseError(
                f"layer {number} ({type(layer).__name__}) should have one output projection of "
                f"attention and one of the feed-forward; found {attention} and {feed_forward} "
                f"among {', '.join(inside)}; pass targets=[...] with their names"
            )
        found += [paths[id(inside[name])] for name in (attention[0], feed_forward[0])]
    return found


def apply_houlsby(
    model: Any,
    bottleneck: int = 16,
    *,
    targets: Sequence[str] | None = None,
    nonlinearity: nn.Module | None = None,
    std: float | None = None,
    train_norms: bool = False,
) -> Any:
    """Puts an adapter behind each sub-layer's output projection; returns the model (in place).

    Args:
        bottleneck: M, features in the middle; 1 to D.
        targets: names of the projections, e.g. ["self_attn.o_proj", "mlp.down_proj"]; None finds
            them in the Llama, Qwen, GPT-2 and OPT families.
        nonlinearity, std: see `Bottleneck`; the module is shared by all adapters.
        train_norms: train the layers' normalisation weights too, as the paper does.
    Raises: CourseError for unknown names, a bottleneck that does not fit, weights that are not
        finite, or a model that carries an adapter; the model is then unchanged.
    """
    check_free(model, KIND)
    check_whole_number(bottleneck, 1, "bottleneck")
    sites = find_linears(model, output_projections(model) if targets is None else targets)
    for name, base in sites.items():
        size, _ = linear_shape(base)
        if bottleneck > size:
            raise CourseError(f"bottleneck {bottleneck} is wider than {name}, which has {size}")
        check_finite(base.weight, f"{name}.weight")  # type: ignore[arg-type]
    record = start(model, KIND, "remove_houlsby")
    if train_norms:
        for name, parameter in model.named_parameters():
            if is_norm(name):
                train_base_parameter(record, name, parameter)
    for name, base in sites.items():
        adapter = Bottleneck(linear_shape(base)[0], bottleneck, nonlinearity, std)
        weight: Any = base.weight
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        replace_module(model, name, AdaptedOutput(base, adapter.to(weight.device, dtype)))
    finish(model, record)
    return model


def remove_houlsby(model: Any) -> Any:
    """Takes the adapters off: modules, weights and flags are as before."""
    record = require(model, KIND)
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedOutput):
            replace_module(model, name, module.base)
    restore(model, record)
    return model


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a layer norm, by its module's name."""
    module = name.rsplit(".", 2)[-2] if "." in name else ""
    return "norm" in module or module.startswith("ln_")
