"""AdapterSet: LoRA adapters on one base, by name; swapping, weighing, combining, merging."""

import contextlib
import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.adapters.lora import lora_scaling
from course_utils.adapters.record import applied
from course_utils.adapters.sites import check_finite
from course_utils.composition.files import (
    Adapter,
    check_config,
    check_fit,
    check_mergeable,
    check_same_base,
    describe_base,
    lora_layers,
    lora_tensors,
)
from course_utils.composition.methods import METHODS, check_density, near, resulting_rank
from course_utils.errors import CourseError

__all__ = ["AdapterSet"]

LARGEST_WEIGHT = 1e6  # beyond it float32 keeps nothing of the base


class AdapterSet:
    """LoRA adapters on one base, for using them: they are frozen, the model is in eval mode.

    `set_weights` copies no weight, it changes the factors α/r, so it can follow a slider. It adds
    up exactly the updates Σ w·ΔW, as the method "cat" does; "linear" does not (see METHODS).

    Args:
        model: a plain Transformers model (changed in place: LoRA layers are put into it; `remove`
            takes them out), or a PEFT model, whose LoRA adapters become members.
    Raises: CourseError for a model that carries another kind of adapter, or a merged one.
    """

    def __init__(self, model: Any) -> None:
        if applied(model) is not None:
            raise CourseError("the model carries an adapter of course_utils.adapters; take it off")
        if hasattr(model, "peft_config") and not hasattr(model, "get_base_model"):
            raise CourseError("this is the inside of a PEFT model; pass the PEFT model itself")
        self.model = model  # a PEFT model as long as there are adapters, else the base
        for name, config in self._configs.items():
            check_config(config, name)
        self._layers: dict[str, Any] = {}  # LoRA layers by the name of the module that they wrap
        self._weights: dict[str, float] = {}  # of the active adapters; none is 0
        self._before: dict[str, Tensor] | None = None  # the base's weights, while merged
        self._flags = {name: p.requires_grad for name, p in model.named_parameters()}
        if self.names:
            self._layers = lora_layers(model)
            if any(layer.merged for layer in self._layers.values()):
                raise CourseError("the PEFT model is merged; call its unmerge_adapter() first")
            model.requires_grad_(False)
            self._apply(dict.fromkeys(model.active_adapters, 1.0))
        self.base = describe_base(model)
        model.eval()

    # ---- who is there --------------------------------------------------------------------------

    @property
    def _configs(self) -> dict[str, Any]:
        return getattr(self.model, "peft_config", {})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._configs)

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every adapter in what the model computes now; 0 for the inactive ones."""
        return {name: self._weights.get(name, 0.0) for name in self.names}

    @property
    def merged(self) -> bool:
        return self._before is not None

    def rank(self, name: str) -> int:
        """R of an adapter; the largest, if its modules differ."""
        self._check_known(name)
        return max(self._ranks(name))

    def __str__(self) -> str:
        lines = [f"{'adapter':<20}{'rank':>6}{'modules':>9}{'weight':>9}"]
        for name, weight in self.weights.items():
            modules = len(self._ranks(name))
            lines.append(f"{name:<20}{self.rank(name):>6}{modules:>9}{weight:>9.3g}")
        return "\n".join(lines + ["(merged)"] * self.merged)

    def _ranks(self, name: str) -> list[int]:
        return [layer.r[name] for layer in self._layers.values() if name in layer.r]

    def _check_known(self, *names: str) -> None:
        for name in names:
            if name not in self.names:
                raise CourseError(f"there is no adapter {name!r}{near(name, self.names)}")

    def _check_new(self, name: str) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise CourseError(f"an adapter's name has letters, digits, _ and - only, not {name!r}")
        if hasattr(nn.ModuleDict, name):
            raise CourseError(f"torch keeps the name {name!r} for itself; choose another")
        if name in self.names:
            raise CourseError(f"there is an adapter {name!r} already; delete it, or choose another")

    def _check_unmerged(self) -> None:
        if self.merged:
            raise CourseError("the adapters are merged into the weights; call unmerge() first")

    # ---- adding and taking away ----------------------------------------------------------------

    def add(self, name: str, adapter: Adapter | Path | str, any_base: bool = False) -> None:
        """Adds an adapter, inactive: what the model computes does not change.

        Args:
            adapter: from `Adapter.of(peft_model)`, or a directory of `Adapter.save` or of PEFT.
            any_base: take it even if it was trained on another base, or says nothing of its base.
        Raises: CourseError for a taken name, another base, modules or shapes that do not fit,
            weights that are not finite; the set is then unchanged.
        """
        self._check_unmerged()
        self._check_new(name)
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        check_config(adapter.config, name)
        for key, tensor in adapter.weights.items():
            check_finite(tensor, f"{key} of {name}")
        if not any_base:
            check_same_base(name, adapter, self.base)
        with self._all_or_nothing(name):
            self._inject(name, adapter.config)
            places = lora_tensors(self.model, name)
            check_fit(name, places, adapter.weights)
            with torch.no_grad():
                for key, place in places.items():
                    place.copy_(adapter.weights[key])

    def _inject(self, name: str, config: Any) -> None:
        """Puts an adapter's layers into the model. Their first values do not matter, but some ways
        to initialise (PiSSA, OLoRA) would change the base, so the plain one is taken."""
        from peft import get_peft_model

        config = copy.deepcopy(config)
        config.init_lora_weights, config.inference_mode = True, True
        if self.names:
            self.model.add_adapter(name, config)
        else:
            self.model = get_peft_model(self.model, config, adapter_name=name)
        self.model.eval()

    @contextlib.contextmanager
    def _all_or_nothing(self, name: str) -> Iterator[None]:
        """Inside, an adapter is made; an error takes it away again. Weights are as before."""
        before = dict(self._weights)
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            self._drop(name)
            if isinstance(error, ValueError | RuntimeError):  # PEFT's and torch's
                raise CourseError(f"{name} cannot be put on this model: {error}") from error
            raise
        finally:
            if self.names:
                self._layers = lora_layers(self.model)
            self._apply(before)

    def delete(self, name: str) -> None:
        """Takes an adapter away; the others keep their weights."""
        self._check_unmerged()
        self._check_known(name)
        rest = {other: weight for other, weight in self._weights.items() if other != name}
        self._drop(name)
        self._apply(rest)

    def remove(self) -> Any:
        """Deletes all adapters and returns the plain base: modules, weights and flags as before."""
        if self.merged:
            self.unmerge()
        for name in self.names:
            self.delete(name)
        return self.model

    def _drop(self, name: str) -> None:
        if name in self.names and len(self.names) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT chooses another active one; so do we, after
                self.model.delete_adapter(name)
            if self.model.active_adapter not in self.names:
                self.model.active_adapter = self.names[0]
            self._layers = lora_layers(self.model)
        elif name in self.names:
            self.model = _plain(self.model)
            self._layers = {}
            for key, parameter in self.model.named_parameters():
                parameter.requires_grad_(self._flags.get(key, parameter.requires_grad))

    def take(self, name: str) -> Adapter:
        """A copy of an adapter, to be saved or added to another set."""
        self._check_known(name)
        return Adapter.of(self.model, name, base=self.base)

    # ---- swapping and weighing -----------------------------------------------------------------

    def set(self, name: str | None) -> None:
        """Only this adapter, with weight 1; None: the base alone."""
        self.set_weights({} if name is None else {name: 1.0})

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """W' = W + Σ w·ΔW from the next forward on; those left out get 0. No weight is copied.

        Args:
            weights: name -> w, any finite number; negative ones take an adapter's effect away.
        Raises: CourseError for unknown names or weights that are not numbers; nothing is changed.
        """
        self._check_unmerged()
        self._apply(self._checked(weights))

    def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        self._check_known(*weights)
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not abs(weight) <= LARGEST_WEIGHT:  # NaN compares false
                raise CourseError(
                    f"the weight of {name} is {weight!r}; it must be a finite number (0: off, 1: "
                    f"as trained, below 0: the opposite), at most {LARGEST_WEIGHT:g} in size"
                )
        return {name: float(weight) for name, weight in weights.items()}

    def _apply(self, weights: Mapping[str, float]) -> None:
        """Makes these the active ones: with weight 0 an adapter is not even computed."""
        self._weights = {name: weight for name, weight in weights.items() if weight != 0}
        active = list(self._weights)
        for layer in self._layers.values():
            if layer.active_adapters != active:
                layer.set_adapter(active, inference_mode=True)
        if self.names:
            self.model.base_model.active_adapter = active
        self._scale(self._weights)

    def _scale(self, weights: Mapping[str, float]) -> None:
        """Sets the factor before B A x to w·α/r in every layer; adapters left out get plain α/r."""
        rslora = {name: config.use_rslora for name, config in self._configs.items()}
        for layer in self._layers.values():
            for name, rank in layer.r.items():
                unit = lora_scaling(rank, layer.lora_alpha[name], rslora[name])
                layer.scaling[name] = weights.get(name, 1.0) * unit

    # ---- combining -----------------------------------------------------------------------------

    def combine(
        self,
        name: str,
        weights: Mapping[str, float],
        method: str = "cat",
        *,
        density: float | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> int:
        """Makes a new adapter of several, inactive, and returns its rank.

        Args:
            weights: name -> w. A single adapter is just scaled, whatever the method.
            method: a key of METHODS, which says what each does.
            density: share of numbers kept, (0, 1], for the methods that drop some; None: 0.5.
            rank: see `resulting_rank`. seed: of what DARE drops.
        Raises: CourseError for unknown names or methods, ranks that do not go together, no weights,
            weights that are not finite, settings the method does not have; nothing is then changed.
        Source: PEFT's add_weighted_adapter; TIES: Yadav et al. 2023; DARE: Yu et al. 2023.
        """
        self._check_unmerged()
        self._check_new(name)
        wanted = self._checked(weights)
        new_rank = resulting_rank(method, {n: self.rank(n) for n in wanted}, rank)
        self._check_modules(wanted, method, new_rank)
        share = check_density(method, density)
        self._scale({})  # PEFT multiplies by the factors that it finds
        with self._all_or_nothing(name):
            torch.manual_seed(seed)
            self.model.add_weighted_adapter(
                list(wanted),
                list(wanted.values()),
                name,
                combination_type=method,
                svd_rank=new_rank if method.endswith("svd") else None,
                svd_full_matrices=False,
                density=share,
            )
            # PEFT copies it from the first adapter, and would scale the finished sum by √R again
            self._configs[name].use_rslora = False
            for key, tensor in lora_tensors(self.model, name).items():
                check_finite(tensor, f"{key} of {name}")
        return new_rank

    def _check_modules(self, names: Mapping[str, float], method: str, rank: int) -> None:
        if METHODS[method].equal_ranks and len({r for n in names for r in self._ranks(n)}) > 1:
            raise CourseError(
                f"{method} needs one rank in all modules, and a rank_pattern gives these adapters "
                "several; cat and svd take them"
            )
        for path, layer in self._layers.items() if method.endswith("svd") else ():
            least = min(layer.in_features, layer.out_features)
            if rank > least and any(name in layer.r for name in names):
                raise CourseError(f"rank {rank} is more than min(d, k) = {least} of {path}")

    # ---- merging -------------------------------------------------------------------------------

    def merge(self) -> None:
        """Adds Σ w·ΔW to the weights themselves: the plain model's speed, until `unmerge`.

        The weights are kept, so that `unmerge` gives them back bit for bit (PEFT's own subtracts
        ΔW again, and rounding is left behind).
        Raises: CourseError if merged already, nothing is active, or the base is quantized or tied.
        """
        self._check_unmerged()
        if not self._weights:
            raise CourseError("no adapter is active, so there is nothing to merge; set one first")
        check_mergeable(self.model, self._layers)
        bases = {name: layer.get_base_layer() for name, layer in self._layers.items()}
        self._before = {name: base.weight.detach().clone() for name, base in bases.items()}
        try:
            for layer in self._layers.values():
                layer.merge(safe_merge=True, adapter_names=list(self._weights))
        except ValueError as error:
            self.unmerge()
            raise CourseError(f"the merged weights are not finite: {error}") from error

    @torch.no_grad()
    def unmerge(self) -> None:
        """Every weight as it was before `merge`, bit for bit."""
        if self._before is None:
            raise CourseError("the adapters are not merged, so there is nothing to unmerge")
        for name, layer in self._layers.items():
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.copy_(self._before[name])
        self._before = None

    def merged_copy(self) -> Any:
        """A plain model of its own with the present weights merged in, ready to be saved."""
        twin: AdapterSet = copy.deepcopy(self)
        if not self.merged and self._weights:
            twin.merge()
        for layer in twin._layers.values():
            layer.merged_adapters.clear()  # what is in the weights stays there
        twin._before = None
        return twin.remove()


def _plain(model: Any) -> Any:
    """The base with its own modules again, without what PEFT leaves on it."""
    base = model.unload() if hasattr(model, "get_base_model") else model
    if hasattr(base, "peft_config"):
        del base.peft_config
    return base
