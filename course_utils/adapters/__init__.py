"""Parameter-efficient fine-tuning from scratch: LoRA, Houlsby adapters, prompts, prefixes, BitFit.

    lora      W' = W + (α/r)·B A, merging; the same numbers as PEFT
    houlsby   two bottleneck adapters per layer, the identity at the start
    prompt    prompt tuning: trained vectors before the text
    prefix    prefix tuning: trained keys and values in every layer
    bitfit    biases only
    peft_format  our LoRA in PEFT's files
    svd       how many directions a weight change has
    record    the adapter's weights alone: adapter_state, load_adapter_state
    report    what trains, by kind
    sites     finding modules by name; inputs: what prompt and prefix tuning share

`apply_*(model, ...)` works in place on any decoder of the Llama, Qwen, GPT-2 and OPT families and
freezes the rest; `remove_*(model)` gives the model back bit for bit.
"""

from course_utils.adapters.bitfit import apply_bitfit, remove_bitfit
from course_utils.adapters.houlsby import (
    AdaptedOutput,
    Bottleneck,
    apply_houlsby,
    houlsby_parameters,
    remove_houlsby,
)
from course_utils.adapters.lora import (
    LoRALinear,
    apply_lora,
    lora_layers,
    lora_parameters,
    lora_scaling,
    merge_and_remove_lora,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from course_utils.adapters.peft_format import save_as_peft
from course_utils.adapters.prefix import (
    Prefix,
    apply_prefix_tuning,
    fold_prefix,
    remove_prefix_tuning,
)
from course_utils.adapters.prompt import SoftPrompt, apply_prompt_tuning, remove_prompt_tuning
from course_utils.adapters.record import adapter_state, applied, load_adapter_state
from course_utils.adapters.report import TrainableReport, TrainableRow, trainable_report
from course_utils.adapters.svd import effective_rank, lora_from_svd, rank_for_energy, svd_energy

__all__ = [
    "AdaptedOutput",
    "Bottleneck",
    "LoRALinear",
    "Prefix",
    "SoftPrompt",
    "TrainableReport",
    "TrainableRow",
    "adapter_state",
    "applied",
    "apply_bitfit",
    "apply_houlsby",
    "apply_lora",
    "apply_prefix_tuning",
    "apply_prompt_tuning",
    "effective_rank",
    "fold_prefix",
    "houlsby_parameters",
    "load_adapter_state",
    "lora_from_svd",
    "lora_layers",
    "lora_parameters",
    "lora_scaling",
    "merge_and_remove_lora",
    "merge_lora",
    "rank_for_energy",
    "remove_bitfit",
    "remove_houlsby",
    "remove_lora",
    "remove_prefix_tuning",
    "remove_prompt_tuning",
    "save_as_peft",
    "svd_energy",
    "trainable_report",
    "unmerge_lora",
]
