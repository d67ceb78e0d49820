"""Known models by name, a directory with a config.json, a Hub id, or a size such as "65B"."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.memory.shape import ModelShape, from_config


def _llama(
    vocabulary: int,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int = 0,
    context: int = 2048,
    kind: str = "llama",
    **more: Any,
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "max_position_embeddings": context,
        **more,
    }


def _qwen3(hidden: int, ffn: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    more: dict[str, Any] = {"head_dim": 128, "tie_word_embeddings": tied}
    return _llama(151936, hidden, ffn, layers, heads, 8, 40960, "qwen3", **more)


def _gpt2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": heads}
    return {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, **sizes}


def _opt(hidden: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "ffn_dim": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        **more,
    }


TIED: dict[str, Any] = {"tie_word_embeddings": True}

# The published config numbers. A name is lower case; the Hub's own ids are found too.
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "smollm2-135m": _llama(49152, 576, 1536, 30, 9, 3, 8192, **TIED),
    "smollm2-360m": _llama(49152, 960, 2560, 32, 15, 5, 8192, **TIED),
    "smollm2-1.7b": _llama(49152, 2048, 8192, 24, 32, 32, 8192, **TIED),
    "smollm3-3b": _llama(128256, 2048, 11008, 36, 16, 4, 65536, "smollm3", **TIED),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, False),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, False),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, False),
    "qwen2.5-0.5b": _llama(151936, 896, 4864, 24, 14, 2, 32768, "qwen2", **TIED),
    "qwen2.5-1.5b": _llama(151936, 1536, 8960, 28, 12, 2, 32768, "qwen2", **TIED),
    "qwen2.5-7b": _llama(152064, 3584, 18944, 28, 28, 4, 32768, "qwen2"),
    "tinyllama-1.1b": _llama(32000, 2048, 5632, 22, 32, 4),
    "llama-7b": _llama(32000, 4096, 11008, 32, 32),
    "llama-13b": _llama(32000, 5120, 13824, 40, 40),
    "llama-33b": _llama(32000, 6656, 17920, 60, 52),
    "llama-65b": _llama(32000, 8192, 22016, 80, 64),
    "llama-2-7b": _llama(32000, 4096, 11008, 32, 32, 32, 4096),
    "llama-2-13b": _llama(32000, 5120, 13824, 40, 40, 40, 4096),
    "llama-2-70b": _llama(32000, 8192, 28672, 80, 64, 8, 4096),
    "llama-3-8b": _llama(128256, 4096, 14336, 32, 32, 8, 8192),
    "llama-3-70b": _llama(128256, 8192, 28672, 80, 64, 8, 8192),
    "llama-3.2-1b": _llama(128256, 2048, 8192, 16, 32, 8, 131072, head_dim=64, **TIED),
    "llama-3.2-3b": _llama(128256, 3072, 8192, 28, 24, 8, 131072, head_dim=128, **TIED),
    "mistral-7b": _llama(32000, 4096, 14336, 32, 32, 8, 32768, "mistral"),
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
}
ALIASES = {"llama-30b": "llama-33b"}
SUFFIXES = ("-instruct", "-base", "-hf", "-chat", "-it", "-v0.1", "-v0.2", "-v0.3")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([mb])", re.IGNORECASE)
SMALLEST, LARGEST = 1e6, 2e12  # parameters of a size that we make up a shape for


def find_shape(source: str, online: bool = True) -> ModelShape:
    """The shape of a model named in any of these ways.

    Args:
        source: "llama-65b" (see MODELS), "65B" (a typical shape of that size), a directory with a
            config.json, or a Hub id ("org/name"), whose config.json is fetched if it is not cached.
        online: False: the Hub is not asked.
    Raises: CourseError naming near matches, or why the Hub did not answer.
    """
    text = source.strip()
    path = Path(text).expanduser()
    if text and path.is_dir():
        return _from_directory(path)
    known = _known(text)
    if known is not None:
        return from_config(MODELS[known], known)
    size = SIZE.fullmatch(text)
    if size:
        return typical_shape(float(size[1]) * (1e9 if size[2].lower() == "b" else 1e6))
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return _from_hub(text, online)
    near = difflib.get_close_matches(text.lower(), MODELS, n=4, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(MODELS)}."
    raise CourseError(
        f'unknown model {source!r}; {hint} A size ("65B"), a Hub id ("org/name") or a directory '
        "with a config.json will do too"
    )


def _known(text: str) -> str | None:
    """The table's name of "Qwen/Qwen3-0.6B-Base", "huggyllama/llama-7b", "Llama-65B"."""
    name = text.lower().split("/")[-1] if text.count("/") <= 1 else ""
    name = name.removeprefix("meta-")
    for _ in range(2):  # "-instruct-v0.2"
        for suffix in SUFFIXES:
            name = name.removesuffix(suffix)
    name = ALIASES.get(name, name)
    return name if name in MODELS else None


def _from_directory(path: Path) -> ModelShape:
    file = path / "config.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(
            f"{path} is a directory, but its config.json cannot be read ({error}); name a "
            "directory that save_pretrained() wrote"
        ) from None
    if not isinstance(fields, dict):
        raise CourseError(f"{file} holds a {type(fields).__name__}, not a model's config")
    return from_config(fields, path.name)


def _from_hub(name: str, online: bool) -> ModelShape:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            name, trust_remote_code=False, local_files_only=not online
        )
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(name.lower().split("/")[-1], MODELS, n=3, cutoff=0.5)
        hint = f" ({' or '.join(near)} needs no network)" if near else ""
        raise CourseError(
            f"cannot read the config of {name!r}: {str(error).splitlines()[0]} It is neither in "
            "the built-in table nor in the local cache; check the id and the network (and "
            f'HF_HUB_OFFLINE), or give a directory with config.json, or a size such as "7B"{hint}'
        ) from None
    return from_config(config, name)


def typical_shape(parameters: float) -> ModelShape:
    """A Llama-like shape with about that many parameters.

    Heads of 128, 2.7 D wide MLPs, 32,000 tokens, untied head, D / L near 110: the proportions of
    LLaMA 7B to 65B (Touvron et al. 2023, table 2). Small ones come out a few percent off.
    """
    if not SMALLEST <= parameters <= LARGEST:
        raise CourseError(
            f"a model of {parameters:.3g} parameters is outside of what sizes are for (1M to "
            '2000B); write "350M" or "65B"'
        )
    step = 128 if parameters >= 1e9 else 64  # of D; heads of as many features
    best: tuple[float, int, int] = (float("inf"), 0, 0)
    for hidden in range(step, 32768, step):
        rest = parameters - 2 * 32000 * hidden
        layers = max(1, round(rest / _block(hidden)))
        miss = abs(2 * 32000 * hidden + layers * _block(hidden) - parameters) / parameters
        aspect = abs(hidden / layers / 110 - 1)
        best = min(best, (miss * 10 + aspect, hidden, layers))
    _, hidden, layers = best
    config = _llama(32000, hidden, _ffn(hidden), layers, hidden // step, context=4096)
    size = f"{parameters / 1e9:g}B" if parameters >= 1e9 else f"{parameters / 1e6:g}M"
    shape = from_config(config, f"a typical {size}")
    return ModelShape(**{**vars(shape), "exact": False})


def _ffn(hidden: int) -> int:
    return round(8 / 3 * hidden / 256 + 0.3) * 256  # 8/3 D, rounded up to a multiple of 256


def _block(hidden: int) -> int:
    return 4 * hidden**2 + 3 * hidden * _ffn(hidden)
