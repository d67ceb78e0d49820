"""Saving and restoring training state bit for bit: safetensors and JSON, no pickle.

A directory holds `state.json` (everything that is not a tensor) and one safetensors file for each
module, for each optimizer and for the random states. Use it inside `RunLog.save_checkpoint`, which
makes the directory whole-or-absent and hashes it:

    parts = {"policy": model}, {"adam": optimizer}
    log.save_checkpoint(step, lambda directory: save_training_state(directory, *parts, extra))
    step, directory = log.latest_checkpoint()
    extra = load_training_state(directory, *parts)
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from course_utils.errors import CheckpointError

Generator = torch.Generator | np.random.Generator | random.Random
_STATE = "state.json"


class _Packer:
    """Splits nested Python data into JSON and a dict of tensors, keeping tuples and int keys."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def pack(self, value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor):
            self.tensors[path] = value
            return {"tensor": path}
        if isinstance(value, np.ndarray):
            self.tensors[path] = torch.from_numpy(value.astype(np.int64))
            return {"array": path, "dtype": str(value.dtype)}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.pack(item, f"{path}.{i}") for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            items = [[key, self.pack(item, f"{path}.{key}")] for key, item in value.items()]
            if all(isinstance(key, str | int) for key, _ in items):
                return {"dict": items}
        raise CheckpointError(
            f"cannot save {path}: {type(value).__name__} {value!r} is no plain data"
        )


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy().astype(value["dtype"])
    if "dict" in value:
        return {key: _unpack(item, tensors) for key, item in value["dict"]}
    kind, items = next(iter(value.items()))
    unpacked = [_unpack(item, tensors) for item in items]
    return unpacked if kind == "list" else tuple(unpacked)


# ---- random states ---------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """State of torch's (CPU and CUDA), Python's and NumPy's global generators."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the legacy global generator is what libraries use
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the global generators to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if torch.cuda.is_available() and len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(list(state["cuda"]))


def _generator_state(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state


def _restore_generator(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


# ---- modules ---------------------------------------------------------------------------------


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous; copied where two share a storage, which safetensors refuses."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return apart


def _save_module(path: Path, module: Any) -> dict[str, str]:
    """Writes the module's tensors; returns {name: other name} for those that are one (tied)."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in module.state_dict().items():
        where = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and where in first:
            aliases[name] = first[where]
        else:
            first[where] = name
            tensors[name] = tensor
    save_file(_apart(tensors), path)
    return aliases


def _load_module(path: Path, module: Any, aliases: Mapping[str, str]) -> None:
    """Copies the saved values into the module's own tensors, of the same names and shapes."""
    saved = _read(path)
    target = module.state_dict()
    names = set(saved) | set(aliases)
    if names != set(target):
        odd = sorted(names ^ set(target))
        raise CheckpointError(
            f"{path} is of another model: {len(odd)} names differ (first: {odd[0]}); resume with "
            "the model that the run was started with"
        )
    for name, tensor in target.items():
        value = saved[aliases.get(name, name)]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path}: {name} is {value.dtype} {tuple(value.shape)}, the model's is "
                f"{tensor.dtype} {tuple(tensor.shape)}; resume with the model that the run was "
                "started with"
            )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(saved[aliases.get(name, name)])


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint file {path} is missing; delete {path.parent}") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"checkpoint file {path} is corrupted ({error}); delete {path.parent}"
        ) from None


# ---- the two functions -----------------------------------------------------------------------


def save_training_state(
    directory: Path | str,
    modules: Mapping[str, Any],
    optimizers: Mapping[str, Any] | None = None,
    extra: Any = None,
    generators: Mapping[str, Generator] | None = None,
) -> None:
    """Writes modules, optimizers (also schedulers: all with state_dict), random states and `extra`.

    Modules and optimizers are anything with state_dict, a module's being the tensors themselves.
    `extra` is plain data (numbers, text, lists, tuples, dicts, tensors, None). Besides the named
    `generators`, the global generators of torch, Python and NumPy are always saved.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {"aliases": {}, "optimizers": {}}
    for name, module in modules.items():
        state["aliases"][name] = _save_module(directory / f"{name}.safetensors", module)
    for name, optimizer in (optimizers or {}).items():
        packer = _Packer()
        state["optimizers"][name] = packer.pack(optimizer.state_dict(), name)
        save_file(_apart(packer.tensors), directory / f"optimizer-{name}.safetensors")
    packer = _Packer()
    named = {name: _generator_state(g) for name, g in (generators or {}).items()}
    state["random"] = packer.pack({"global": random_state(), "named": named}, "random")
    state["extra"] = packer.pack(extra, "extra")
    save_file(_apart(packer.tensors), directory / "random.safetensors")
    (directory / _STATE).write_text(json.dumps(state), encoding="utf-8")


def load_training_state(
    directory: Path | str,
    modules: Mapping[str, Any],
    optimizers: Mapping[str, Any] | None = None,
    generators: Mapping[str, Generator] | None = None,
) -> Any:
    """Restores in place what `save_training_state` wrote, and returns its `extra`.

    Raises CheckpointError when a file is missing or damaged, or is of another model.
    """
    directory = Path(directory)
    try:
        state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint file {directory / _STATE} is missing") from None
    except ValueError as error:
        raise CheckpointError(
            f"checkpoint file {directory / _STATE} is corrupted ({error}); delete {directory}"
        ) from None
    tensors = _read(directory / "random.safetensors")
    randoms = _unpack(state["random"], tensors)
    wanted = {
        "module": (set(modules), set(state["aliases"])),
        "optimizer": (set(optimizers or {}), set(state["optimizers"])),
        "generator": (set(generators or {}), set(randoms["named"])),
    }
    for kind, (asked, saved) in wanted.items():
        if not asked <= saved:
            raise CheckpointError(
                f"{directory} holds no {kind} {sorted(asked - saved)}, only {sorted(saved)}"
            )
    for name, module in modules.items():
        _load_module(directory / f"{name}.safetensors", module, state["aliases"][name])
    for name, optimizer in (optimizers or {}).items():
        values = _read(directory / f"optimizer-{name}.safetensors")
        optimizer.load_state_dict(_unpack(state["optimizers"][name], values))
    for name, generator in (generators or {}).items():
        _restore_generator(generator, randoms["named"][name])
    restore_random_state(randoms["global"])
    return _unpack(state["extra"], tensors)
