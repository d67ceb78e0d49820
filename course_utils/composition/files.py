"""A LoRA adapter apart from its model: weights, config, and which base it was trained on.

    Adapter.of(peft_model).save("runs/pirate");  Adapter.load("runs/pirate")

The directory is PEFT's own format (PeftModel.from_pretrained reads it) with one file more,
course_base.json: an adapter is a change of one base's weights and means nothing on another.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.adapters.sites import check_whole_number
from course_utils.errors import CourseError
from course_utils.files import atomic_dir
from course_utils.training.trl_common import fingerprint

__all__ = [
    "Adapter",
    "check_config",
    "check_fit",
    "check_mergeable",
    "check_same_base",
    "describe_base",
    "lora_layers",
    "lora_tensors",
]

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "course_base.json"
PREFIX = "base_model.model."  # of the names in PEFT's files
UNSUPPORTED = ("use_dora", "lora_bias", "modules_to_save", "target_parameters", "layer_replication")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One LoRA adapter; `weights` are copies, under PEFT's names: lora_A (R, k), lora_B (d, R)."""

    config: Any  # peft.LoraConfig
    weights: dict[str, Tensor]
    base: dict[str, Any] | None  # see `describe_base`; None: not known

    @classmethod
    def of(
        cls, model: Any, name: str | None = None, base: dict[str, Any] | None = None
    ) -> "Adapter":
        """The adapter that a PEFT model carries: the one of this name, or the active one.

        Args: base: its description if that is known already; None looks at the model.
        """
        if not hasattr(model, "get_base_model") or not hasattr(model, "peft_config"):
            raise CourseError("the model carries no PEFT adapter; make it with peft.get_peft_model")
        name = model.active_adapter if name is None else name
        if name not in model.peft_config:
            raise CourseError(f"no adapter {name!r}; the model has {', '.join(model.peft_config)}")
        weights = {key: t.detach().cpu().clone() for key, t in lora_tensors(model, name).items()}
        base = describe_base(model) if base is None else base
        return cls(copy.deepcopy(model.peft_config[name]), weights, base)

    def save(self, directory: Path | str) -> Path:
        """Writes a directory that `load` and PEFT read; it appears whole or not at all."""
        from safetensors.torch import save_file

        directory = Path(directory)
        with atomic_dir(directory) as staging:
            self.config.save_pretrained(staging)
            weights = {key: tensor.contiguous() for key, tensor in self.weights.items()}
            save_file(weights, staging / WEIGHTS, metadata={"format": "pt"})
            (staging / BASE).write_text(json.dumps(self.base, indent=1) + "\n", encoding="utf-8")
        return directory

    @classmethod
    def load(cls, directory: Path | str) -> "Adapter":
        """Reads a directory that `save` or PEFT wrote.

        Raises: CourseError when files are missing or damaged, or the weights are pickled.
        """
        from peft import PeftConfig
        from safetensors.torch import load_file

        directory = Path(directory)
        missing = [name for name in (CONFIG, WEIGHTS) if not (directory / name).is_file()]
        if missing:
            raise CourseError(
                f"{directory} is no saved adapter: {' and '.join(missing)} missing; "
                "Adapter.save and PEFT's save_pretrained write both"
            )
        try:
            config = PeftConfig.from_pretrained(str(directory))
            weights = load_file(directory / WEIGHTS)
            base = None
            if (directory / BASE).is_file():
                base = json.loads((directory / BASE).read_text(encoding="utf-8"))
        except Exception as error:  # safetensors', json's and PEFT's own
            raise CourseError(f"the adapter in {directory} cannot be read: {error}") from error
        return cls(config, weights, base)


def lora_layers(model: Any) -> dict[str, Any]:
    """PEFT's LoRA layers by the name of the module that they wrap, as in the plain model."""
    from peft.tuners.lora import LoraLayer

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {name: m for name, m in inner.named_modules() if isinstance(m, LoraLayer)}


def lora_tensors(model: Any, name: str) -> dict[str, Tensor]:
    """The parameters of one adapter, the tensors themselves, under the names of PEFT's files.

    (PEFT's own function looks for the adapter's name anywhere in a parameter's name, so that "q"
    would find every q_proj.)
    """
    found: dict[str, Tensor] = {}
    for path, layer in lora_layers(model).items():
        for part in ("lora_A", "lora_B"):
            if name in getattr(layer, part):
                found[f"{PREFIX}{path}.{part}.weight"] = getattr(layer, part)[name].weight
        for part in ("lora_embedding_A", "lora_embedding_B"):
            if name in getattr(layer, part):
                found[f"{PREFIX}{path}.{part}"] = getattr(layer, part)[name]
    return found


# ---- the base ----------------------------------------------------------------------------------


@torch.no_grad()
def describe_base(model: Any) -> dict[str, Any]:
    """What tells a base from another: {fingerprint, parameters, dtype, name}, adapters left out."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    named = [
        (name.replace(".base_layer.", "."), parameter)
        for name, parameter in inner.named_parameters()
        if ".lora_" not in name
    ]
    return {
        "fingerprint": fingerprint(named),
        "parameters": sum(parameter.numel() for _, parameter in named),
        "dtype": " ".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in named})),
        "name": str(getattr(inner, "name_or_path", "") or ""),
    }


def _said(base: dict[str, Any]) -> str:
    return (
        f"{base['name'] or 'unnamed'}, {base['parameters']:,} parameters, {base['dtype']}, "
        f"fingerprint {base['fingerprint'][:8]}"
    )


# ---- checks ------------------------------------------------------------------------------------


def check_same_base(name: str, adapter: Adapter, base: dict[str, Any]) -> None:
    """Raises a CourseError unless the adapter was trained on the base described.

    An adapter without our file is taken if it names the model that this one was loaded from.
    """
    if adapter.base is None:
        says = getattr(adapter.config, "base_model_name_or_path", None) or ""
        if says and says == base["name"]:
            return
        raise CourseError(
            f"{name} has no {BASE}; it says its base is {says or 'nothing'!r}, and this model is "
            f"{base['name'] or 'unnamed'!r}; if you know that it was trained on this model, pass "
            "any_base=True"
        )
    if adapter.base["fingerprint"] != base["fingerprint"]:
        raise CourseError(
            f"{name} was trained on another base ({_said(adapter.base)}) than this model "
            f"({_said(base)}), so its ΔW would be added to the wrong weights; load its base, or "
            "pass any_base=True to try it all the same"
        )


def check_config(config: Any, name: str) -> None:
    """Raises a CourseError unless it is plain LoRA: ΔW = (α/r)·B A and nothing else."""
    kind = getattr(config, "peft_type", type(config).__name__)
    if getattr(kind, "value", kind) != "LORA":
        raise CourseError(f"{name} is of the kind {kind}; only LoRA adapters can be combined")
    check_whole_number(config.r, 1, f"the rank of {name}")
    extra = [field for field in UNSUPPORTED if getattr(config, field, None)]
    extra += ["bias"] if config.bias != "none" else []
    if extra:
        raise CourseError(
            f"{name} was trained with {', '.join(extra)}, which changes more than ΔW = (α/r)·B A; "
            "train a plain LoRA"
        )


def check_fit(name: str, places: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raises a CourseError unless there is a weight of the right shape for every place."""
    missing = [key for key in places if key not in weights]
    unknown = [key for key in weights if key not in places]
    if missing or unknown:
        raise CourseError(
            f"the weights of {name} do not fit this model: {len(missing)} are missing, "
            f"{len(unknown)} unknown (first: {(missing + unknown)[0]})"
        )
    for key, place in places.items():
        if place.shape != weights[key].shape:
            raise CourseError(
                f"{key} of {name} is {tuple(weights[key].shape)}, and this model takes "
                f"{tuple(place.shape)}: it was trained on a model of another size"
            )


def check_mergeable(model: Any, layers: Mapping[str, Any]) -> None:
    """Raises a CourseError for weights that ΔW cannot be added to."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if not weight.is_floating_point():
            raise CourseError(
                f"{name} is stored as {weight.dtype} (quantized), where ΔW would be rounded away; "
                "course_utils.qlora.merge_qlora dequantizes first"
            )
        if owners[id(weight)] > 1:
            raise CourseError(
                f"{name} shares its weight with another module, and merging would change both; "
                "train without this module, or untie the weights"
            )
