"""GGUF, the one-file format of llama.cpp: weights, shape and tokenizer of a trained policy.

    export_gguf(policy, tokenizer, "assistant.gguf", "q8_0")     # for llama.cpp, Ollama, LM Studio
    AutoModelForCausalLM.from_pretrained(".", gguf_file="assistant.gguf")   # transformers reads it

The `gguf` package writes the file and rounds the weights; here is what goes where. Llama, Qwen2 and
Qwen3 are known, with byte-level BPE (SmolLM2, Llama 3, Qwen). The world's tokenizer rewrites text
(lower case, "5 year old") before it looks up words, which the format has no place for: such a model
is written with tokenizer=None, and its tokenizer stays in transformers.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from course_utils.errors import CourseError
from course_utils.files import explain_full_disk

__all__ = ["ARCHITECTURES", "TYPES", "export_gguf"]

TYPES = ("f32", "f16", "bf16", "q8_0")
BLOCK = 32  # weights of one row that share a scale in Q8_0
# How Llama 3 and Qwen cut text; they differ in how many digits stay together.
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {CUT % "{1,3}": "llama-bpe", CUT % "": "qwen2"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of token, llama.cpp's numbers


# model_type -> whether llama.cpp keeps the two halves of a rotary pair next to each other
ARCHITECTURES = {"llama": True, "qwen2": False, "qwen3": False}


def export_gguf(
    model: Any, tokenizer: Any, path: Path | str, type: str = "f16", name: str = "course policy"
) -> Path:
    """Writes a policy as one GGUF file, whole or not at all; the model is not changed.

    Args:
        model: a causal language model of `ARCHITECTURES`; PEFT adapters must be merged before.
        tokenizer: byte-level BPE; None leaves it out (readers then take token ids only).
        type: of the matrices: "f32", "f16", "bf16", or "q8_0" (8 bits and an fp16 scale for 32
            weights, 8.5 bits in all). Vectors stay f32. A matrix whose rows are no multiple of 32
            stays f16 in "q8_0".
        name: what readers show as the model's name.
    Raises: CourseError for what the format, or its reader in transformers, cannot express.
    """
    gguf = _package()
    if type not in TYPES:
        raise CourseError(f"unknown GGUF type {type!r}; choose from {', '.join(TYPES)}")
    config = _check(model)
    path = Path(path)
    with _whole_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, config.model_type)
        writer.add_name(name)
        writer.add_file_type(
            gguf.LlamaFileType[f"{'MOSTLY' if type != 'f32' else 'ALL'}_{type.upper()}"]
        )
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config)
        _add_tokenizer(writer, tokenizer, config.vocab_size)
        _add_weights(writer, gguf, model, config, type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


def _package() -> Any:
    try:
        import gguf
    except ModuleNotFoundError:
        raise CourseError(
            "GGUF files are written by the package `gguf`: pip install 'course_utils[smollm2]'"
        ) from None
    return gguf


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yields a file beside `path` that takes its place if the block ends well, else vanishes."""
    if path.is_dir():
        raise CourseError(f"{path} is a directory; give a file name, such as {path / 'model.gguf'}")
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            temporary = Path(folder) / path.name
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)


# ---- what can be written ------------------------------------------------------------------------


def _check(model: Any) -> Any:
    """The model's configuration. Raises: CourseError for one that readers would read wrongly."""
    if hasattr(model, "peft_config") or hasattr(model, "course_adapter"):
        raise CourseError(
            "the model carries an adapter, and a GGUF file holds one model: merge it first "
            "(merge_and_unload() of PEFT, merge_and_remove_lora(model) of the course)"
        )
    config = model.config
    if config.model_type not in ARCHITECTURES or model.get_output_embeddings() is None:
        raise CourseError(
            f"a {model.__class__.__name__} ({config.model_type}) cannot be written as GGUF here; "
            f"causal language models of {', '.join(ARCHITECTURES)} can, the others by llama.cpp's "
            "own convert_hf_to_gguf.py from a saved model"
        )
    rope = config.rope_parameters
    wrong = {
        "quantized weights": any(not p.is_floating_point() for p in model.parameters()),
        f"scaled rotary positions ({rope.get('rope_type')})": rope.get("rope_type") != "default",
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        "a sliding window": bool(getattr(config, "use_sliding_window", False)),
        "biases in the attention": bool(getattr(config, "attention_bias", False)),
        "biases in the feed-forward": bool(getattr(config, "mlp_bias", False)),
    }
    if found := [what for what, is_so in wrong.items() if is_so]:
        raise CourseError(f"this model has {found[0]}, which is not written as GGUF here")
    return config


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# ---- shape and weights --------------------------------------------------------------------------


def _add_shape(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_vocab_size(config.vocab_size)


def _add_weights(writer: Any, gguf: Any, model: Any, config: Any, type: str) -> None:
    kind = getattr(gguf.MODEL_ARCH, config.model_type.upper())
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # readers take the embedding for both
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise CourseError(f"GGUF's {config.model_type} has no place for the weight {name}")
        part = target.split(".")[2] if target.startswith("blk.") else target
        if ARCHITECTURES[config.model_type] and part in heads:
            value = interleave(value, heads[part])
        data = value.detach().cpu().float().contiguous().numpy()
        stored = _stored_as(gguf, data.shape, type)
        writer.add_tensor(target, gguf.quantize(data, stored), raw_dtype=stored)


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key map (heads · d, k), reordered within each head from transformers' two
    halves x₀…, y₀… to llama.cpp's pairs x₀ y₀ x₁ y₁ … (Su et al. 2021 rotate pairs (xᵢ, yᵢ))."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _stored_as(gguf: Any, shape: tuple[int, ...], type: str) -> Any:
    if len(shape) == 1:
        type = "f32"
    elif type == "q8_0" and shape[-1] % BLOCK:
        type = "f16"
    return gguf.GGMLQuantizationType[type.upper()]


# ---- the tokenizer ------------------------------------------------------------------------------


def _add_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    if tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    splitting = _splitting(found)
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise CourseError(f"the tokenizer has the id {max(by_id)}, and the model {size} embeddings")
    added = {token["id"]: token["special"] for token in found["added_tokens"]}
    kinds = [
        (CONTROL if added[i] else USER_DEFINED) if i in added else NORMAL if i in by_id else UNUSED
        for i in range(size)
    ]
    merges = found["model"]["merges"]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add(index)
    first = tokenizer("a").input_ids[0]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(found: dict[str, Any]) -> str:
    """llama.cpp's name for how text is cut before the merges; a CourseError if it has none."""
    steps = found.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if found["model"]["type"] != "BPE" or found.get("normalizer") not in (None, {"type": "NFC"}):
        kinds = []
    if kinds == ["ByteLevel"] and not steps[0]["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"].get("Regex") in CUTS:
        return CUTS[steps[0]["pattern"]["Regex"]]
    normalizer = (found.get("normalizer") or {}).get("type")
    raise CourseError(
        f"this tokenizer ({found['model']['type']}, text rewritten by {normalizer}, cut by "
        f"{kinds or steps[0].get('type')}) has no place in a GGUF file; byte-level BPE of SmolLM2, "
        "GPT-2, Llama 3 or Qwen has. tokenizer=None writes the weights alone: readers then take "
        "the token ids that this tokenizer makes"
    )
