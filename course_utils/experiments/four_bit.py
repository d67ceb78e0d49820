"""LoRA on the full-precision model and on the same model in 4 bits, ready for the same training.

The lesson on QLoRA trains both. Without bitsandbytes the 4-bit model is made of the course's own
layers, so that a comparison is possible everywhere.
"""

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from course_utils import qlora
from course_utils.adapters import apply_lora
from course_utils.models import load_policy
from course_utils.quantization import quantize_model
from course_utils.tiers import TierChoice
from course_utils.training.trl_common import quiet_libraries

if TYPE_CHECKING:
    from course_utils.lab import Lab


def has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def lora_model(lab: "Lab", rank: int = 16) -> tuple[Any, Any]:
    """(PEFT model, tokenizer): the QLoRA lesson's model unquantized, a LoRA on every linear map.

    α is 2R, as in `qlora_model`. Raises: CourseError as `load_policy`.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with quiet_libraries(progress=False):
        model, tokenizer = load_policy(unquantized(lab))
        return get_peft_model(model, config).eval(), tokenizer


def qlora_model(lab: "Lab", rank: int = 16) -> tuple[Any, Any]:
    """(model, tokenizer): the same in NF4 with double quantization, by bitsandbytes if it is here.

    Raises: CourseError as `qlora.prepare`.
    """
    with quiet_libraries(progress=False):
        if has_bitsandbytes():
            return qlora.prepare(lab.choice, rank, 2.0 * rank)
        model, tokenizer = load_policy(unquantized(lab))
        quantize_model(model)
        return apply_lora(model, rank, 2.0 * rank), tokenizer


def unquantized(lab: "Lab") -> TierChoice:
    """The lab's tier with the QLoRA lesson's model as its policy, in full precision."""
    return replace(
        lab.choice, tier=replace(lab.tier, policy=lab.tier.qlora_policy, quantized=False)
    )


def same_start(model: nn.Module, seed: int) -> nn.Module:
    """Draws every LoRA's A from the seed, as PEFT would, in place; B stays zero.

    Two models with adapters on the same maps then start from the same adapters.
    """
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if p.requires_grad and ("lora_A." in name or name.endswith(".A")):
            drawn = torch.empty(p.shape)  # on the CPU: the same numbers for every device
            nn.init.kaiming_uniform_(drawn, a=5**0.5)
            p.data.copy_(drawn)
    return model
