"""QLoRA with bitsandbytes and PEFT: a 4-bit base, LoRA on every linear map, and the way back.

    model, tokenizer = qlora.prepare("tiny")                 # or a Hub id, a directory, a tier
    train_sft(model, tokenizer, rows, SFTSettings(steps=100, optimizer=qlora.OPTIMIZER))
    merged, error = qlora.merge_qlora(model)                 # an ordinary model again

The recipe of Dettmers et al. 2023: NF4, double quantization, LoRA everywhere, paged optimizer. How
it works inside is in `course_utils.quantization`.
"""

import copy
import difflib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.tiers import TIERS, Precision, Tier, TierChoice, choose_tier

logger = logging.getLogger(__name__)

# AdamW whose two moments have 8 bits and move to the CPU's memory when a long batch needs the room;
# off the GPU there is nothing to page and it is plain 8-bit AdamW. The moments of small tensors
# (under 4096 numbers, such as a LoRA on the world's model) stay in fp32.
OPTIMIZER: Literal["paged_adamw_8bit"] = "paged_adamw_8bit"
FORMATS = ("nf4", "fp4")  # bitsandbytes' 4-bit formats

# ---- loading ---------------------------------------------------------------------------------


def compute_dtype(device: str, precision: Precision | None = None) -> torch.dtype:
    """In what the matrix products are computed: 4 bits are for keeping weights only.

    bf16 on Ampere and later, fp16 on a T4, fp32 on a CPU, whose fp16 takes eight times as long.

    Args: precision: the tier's; None: the best that this GPU computes natively.
    """
    if not device.startswith("cuda"):
        return torch.float32
    if precision is None:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if native else "fp16"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def four_bit_options(
    format: str = "nf4", device: str | None = None, precision: Precision | None = None
) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a 4-bit model; what is not 4-bit is bf16 or fp32.

    Raises: CourseError for a format that bitsandbytes does not have, or a device without it.
    """
    from transformers import BitsAndBytesConfig

    check_format(format)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not device.startswith(("cuda", "cpu")):
        raise CourseError(f'4-bit weights need a CUDA GPU or a CPU, not {device!r}; device="cpu"')
    dtype = compute_dtype(device, precision)
    return {
        # fp32, not fp16, for norms and embeddings on a T4: fp16 weights cannot be trained
        "dtype": torch.bfloat16 if dtype == torch.bfloat16 else torch.float32,
        "device_map": _device_map(device),
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=format,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    }


def check_format(format: str) -> None:
    """Raises CourseError unless bitsandbytes has this 4-bit format."""
    if format not in FORMATS:
        near = difflib.get_close_matches(str(format).lower(), FORMATS, n=1, cutoff=0.3)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise CourseError(f'quantization is {format!r}{hint} bitsandbytes has "nf4" and "fp4"')


def _device_map(device: str) -> Any:
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # one process for each GPU
        return {"": int(os.environ["LOCAL_RANK"])}
    return "auto" if device == "cuda" else {"": device}


def four_bit_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The model's bitsandbytes 4-bit layers with their names."""
    try:
        from bitsandbytes.nn import Linear4bit
    except ImportError:
        return
    yield from ((n, m) for n, m in model.named_modules() if isinstance(m, Linear4bit))


def guard_cpu(model: nn.Module) -> int:
    """Keeps bitsandbytes from repacking 4-bit weights on a CPU; returns the number of layers.

    On CPUs with AVX512-BF16, bitsandbytes (0.50.2) rewrites a layer's weight in place, in a format
    of its own, the first time that the layer is used in evaluation mode. Afterwards no gradient
    passes through it and dequantizing it gives garbage, all without an error: a training with
    evaluations in between quietly ends worse, and a merge is ruined. Call this right after loading
    (`load_policy` does); on a GPU it changes nothing.

    Raises: CourseError when a layer has been repacked already.
    """
    count = 0
    for name, layer in four_bit_layers(model):
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            raise CourseError(
                f"{name} was used in evaluation mode and its 4-bit weight is repacked for this "
                "CPU; load the model again and call guard_cpu(model) right after loading"
            )
        layer.support_avx512bf16_for_cpu = False
        count += 1
    _warn_of_wrong_scales(model)
    return count


def _warn_of_wrong_scales(model: nn.Module) -> None:
    """Says so when bitsandbytes gives a layer's blocks each other's scales.

    Its AVX512 kernel (0.50.2) counts blocks by rows, though they were cut from the flattened
    weight; the two differ when a row, in_features, is no multiple of the block size.
    """
    wrong = []
    for name, layer in four_bit_layers(model):
        state, packed = layer.weight.quant_state, layer.weight.data
        if packed.device.type != "cpu" or layer.in_features % state.blocksize == 0:
            continue
        flat = copy.copy(state)
        flat.shape = torch.Size([state.shape.numel()])
        seen, right = (_dequantized(packed, s).flatten() for s in (state, flat))
        if not torch.equal(seen, right):
            wrong.append(f"{name} ({layer.in_features} inputs)")
    if wrong:
        logger.warning(
            "bitsandbytes mixes up the scales of %d 4-bit layers on this CPU, the first is %s: "
            "their inputs are no multiple of 64. Use a GPU, a model with such widths, or "
            "course_utils.quantization.quantize_model",
            len(wrong),
            wrong[0],
        )


def _dequantized(packed: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, state)


# ---- one call --------------------------------------------------------------------------------


def prepare(
    source: str | Tier | TierChoice,
    rank: int = 16,
    alpha: float = 32.0,
    *,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
    quantization: str = "nf4",
    device: str | None = None,
    recompute: bool = False,
) -> tuple[Any, Any]:
    """(PEFT model, tokenizer): the base in 4 bits and frozen, a fresh LoRA in fp32 to be trained.

    Args:
        source: as `load_policy`; of a tier it is the model of the QLoRA lesson.
        rank, alpha, dropout: LoRA's R, α and the share of its inputs dropped.
        targets: names of the layers that get a LoRA; None: all that are in 4 bits.
        quantization: "nf4" or "fp4".
        recompute: activations in the backward pass, for 30 % more time and far less memory.
    Raises: CourseError for unknown names (near ones are listed), a rank below 1, and as
        `load_policy`.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from course_utils.loading import load_policy

    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise CourseError(f"the rank must be a whole number of at least 1, got {rank!r}")
    if isinstance(source, str) and source.strip().lower() in TIERS:
        source = choose_tier(source)
    if isinstance(source, TierChoice):
        source = replace(source, tier=replace(source.tier, policy=source.tier.qlora_policy))
    elif isinstance(source, Tier):
        source = replace(source, policy=source.qlora_policy)
    model, tokenizer = load_policy(source, device, quantization)
    check_targets(model, targets)
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if targets is None else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config).eval(), tokenizer


def check_targets(model: nn.Module, targets: Sequence[str] | None) -> None:
    """Raises CourseError for a name that no 4-bit layer has."""
    if isinstance(targets, str):
        raise CourseError(f"targets must be a list of names, got {targets!r}; use [{targets!r}]")
    names = [name for name, _ in four_bit_layers(model)]
    last = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
    for wanted in targets or ():
        if not any(name == wanted or name.endswith("." + wanted) for name in names):
            near = difflib.get_close_matches(wanted, last, n=3, cutoff=0.4)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise CourseError(
                f"no 4-bit layer is named {wanted!r}.{hint} There are: {', '.join(last) or 'none'}"
            )


# ---- merging ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeError:
    """How far a merged model is from the model with its adapter."""

    weights: float  # RMS of W' - (Ŵ + ΔW) over the adapted layers, Ŵ the dequantized base
    update: float  # RMS of ΔW itself: an error of this size wipes out what was learned
    logits: float  # largest |difference| of a logit on the probe

    def __str__(self) -> str:
        return (
            f"weights off by {self.weights:.2e} RMS (the update is {self.update:.2e}), "
            f"logits by at most {self.logits:.2e}"
        )


class Merged(NamedTuple):
    """What `merge_qlora` returns."""

    model: Any
    error: MergeError


def merge_qlora(
    model: Any,
    how: Literal["dequantize", "requantize"] = "dequantize",
    *,
    probe: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Merged:
    """Merges the active LoRA into its 4-bit base, and measures what that changed.

    - "dequantize": the base becomes an ordinary model of `dtype`, then W' = Ŵ + ΔW: exact up to
      rounding in that dtype, and eight times the memory in fp32.
    - "requantize": W' is rounded to 4 bits again and stays small. The rounding is about as coarse
      as the first and falls on ΔW too.

    Args:
        model: from `prepare`, trained; it is not changed (a copy is merged).
        probe: (B, T) token ids on which logits are compared; None: 32 from all over the vocabulary.
    Raises: CourseError for a model without LoRA on a 4-bit base, several active adapters, an
        unknown `how`, or weights that are not finite.
    """
    if how not in ("dequantize", "requantize"):
        raise CourseError(f'how is {how!r}; it must be "dequantize" or "requantize"')
    targets = _targets_of_merge(model)  # W' of every adapted layer by name, in fp32
    merged = copy.deepcopy(model)
    if how == "requantize":
        merged = merged.merge_and_unload()
    else:
        merged = _dequantized_with_adapter(merged, dtype).merge_and_unload()
    return Merged(merged.eval(), _merge_error(model, merged, targets, probe))


def _dequantized_with_adapter(model: Any, dtype: torch.dtype) -> Any:
    """Takes the LoRA off a PEFT model, dequantizes the base, puts the LoRA back on; in place."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = model.peft_config[model.active_adapter]
    adapter = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    adapter = {name: tensor.clone() for name, tensor in adapter.items()}
    base = model.unload().dequantize(dtype=dtype).to(dtype)
    base.is_loaded_in_4bit = False  # else trainers go on treating it as a 4-bit model
    again = get_peft_model(base, config)
    found = set_peft_model_state_dict(again, adapter)
    if found.unexpected_keys:
        raise CourseError(f"the adapter does not fit its base: {found.unexpected_keys[:3]}")
    return again


def _lora_layers(model: Any) -> dict[str, Any]:
    """The LoRA layers over 4-bit layers, by the base layer's name."""
    from peft.tuners.lora import LoraLayer

    inside = {id(layer) for _, layer in four_bit_layers(model)}
    layers = model.get_base_model().named_modules()
    return {
        n: m for n, m in layers if isinstance(m, LoraLayer) and id(m.get_base_layer()) in inside
    }


def _targets_of_merge(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """(Ŵ + ΔW, ΔW) of each adapted layer, after checking that there is something to merge."""
    layers = _lora_layers(model) if hasattr(model, "peft_config") else {}
    if not layers:
        raise CourseError(
            f"{type(model).__name__} has no LoRA on a 4-bit base; qlora.prepare makes one. A LoRA "
            "on an ordinary model is merged by model.merge_and_unload()"
        )
    active = model.base_model.active_adapters
    if len(active) != 1:
        raise CourseError(f"{len(active)} adapters are active ({active}); set_adapter to one")
    targets = {}
    for name, layer in layers.items():
        delta = layer.get_delta_weight(active[0]).detach().float()
        if not bool(torch.isfinite(delta).all()):
            raise CourseError(
                f"the LoRA on {name} has values that are nan or inf; train again with a lower "
                "learning rate"
            )
        targets[name] = (weight_of(layer.get_base_layer()) + delta, delta)
    return targets


@torch.no_grad()
def weight_of(layer: Any) -> Tensor:
    """The weight of a linear map in fp32, (d, k), dequantized where it is in 4 bits."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.detach().float()
    return _dequantized(layer.weight.data, state).float()


@torch.no_grad()
def _merge_error(
    model: Any, merged: Any, targets: dict[str, tuple[Tensor, Tensor]], probe: Tensor | None
) -> MergeError:
    from course_utils.models import evaluating

    squares = updates = 0.0
    count = 0
    for name, (wanted, delta) in targets.items():
        seen = weight_of(merged.get_submodule(name))
        squares += float((seen - wanted).double().square().sum())
        updates += float(delta.double().square().sum())
        count += delta.numel()
    if probe is None:
        size = model.config.get_text_config().vocab_size
        probe = torch.linspace(0, size - 1, 32).long().unsqueeze(0)
    probe = probe.to(model.device)
    with evaluating(model):
        before = model(input_ids=probe, use_cache=False).logits.float()
    after = merged(input_ids=probe, use_cache=False).logits.float()
    return MergeError(
        weights=math.sqrt(squares / count),
        update=math.sqrt(updates / count),
        logits=float((after - before).abs().max()),
    )
