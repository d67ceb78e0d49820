"""Loading a tier's model or any Hub model as a policy: fp32 weights, no dropout, a chat template.

Reached as `course_utils.models.load_policy`.
"""

import logging
from typing import Any

import torch
from torch import nn

from course_utils.errors import CourseError
from course_utils.tiers import TIERS, WORLD, Tier, TierChoice, choose_tier

logger = logging.getLogger(__name__)

# One turn is "<|im_start|>user\nwords<|im_end|>\n"; for base models that have the tokens but no
# template. The generation marks tell a trainer which tokens are the assistant's.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def load_policy(source: str | Tier | TierChoice, device: str | None = None) -> tuple[Any, Any]:
    """(model, tokenizer), ready to be sampled from and trained: fp32, evaluation mode, no dropout.

    Args:
        source: a tier's name, a Tier or TierChoice, a Hub id ("HuggingFaceTB/SmolLM2-135M") or a
            directory with a saved model. The tier "tiny" is the embedded world's base model and
            needs neither network nor cache.
        device: where to put the model; None: the tier choice's, else the CPU.
    Raises: CourseError for an unknown id, no network, pickled weights, a missing chat template.
    """
    if isinstance(source, str) and source.strip().lower() in TIERS:
        source = choose_tier(source)
    if isinstance(source, TierChoice):
        device = device or source.device
        source = source.tier
    name, quantized = (
        (source.policy, source.quantized) if isinstance(source, Tier) else (source, False)
    )
    if name == WORLD:
        from course_utils import world

        model, tokenizer = world.load_base_model(), world.load_tokenizer()
    else:
        model, tokenizer = _from_hub(name, quantized)
    add_chat_template(tokenizer, name)
    disable_dropout(model)
    if device is not None and not quantized:
        model = model.to(device)
    return model.eval(), tokenizer


def _from_hub(name: str, quantized: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": torch.float32}
    if quantized:
        options = {
            "dtype": torch.bfloat16,
            "quantization_config": _four_bit(),
            "device_map": "auto",
        }
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise CourseError(_why_not(name, error)) from error
    return model, tokenizer


def _four_bit() -> Any:
    """NF4 with double quantization and bf16 arithmetic: QLoRA's recipe (Dettmers et al. 2023)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _why_not(name: str, error: Exception) -> str:
    """The library's error as one sentence with the fix."""
    said = str(error).strip() or type(error).__name__
    chain = f"{said} {error.__cause__!r} {error.__context__!r}".lower()
    if "bitsandbytes" in chain:
        fix = "4-bit loading needs bitsandbytes and a GPU: pip install 'course_utils[gpu]'"
    elif "gated" in chain or "401 client" in chain or "403 client" in chain:
        fix = "it is gated: accept its terms on its Hub page and log in with `hf auth login`"
    elif "offline" in chain or "connect" in chain or "cached" in chain:
        fix = (
            "it is not in the local cache and the Hub cannot be reached; connect to the network, "
            'unset HF_HUB_OFFLINE, or use the tier "tiny", which needs neither'
        )
    elif "not a valid model identifier" in chain or "not found" in chain:
        fix = (
            f"there is no such model on the Hub and no such directory; a Hub id looks like "
            f'"HuggingFaceTB/SmolLM2-135M", the tiers are {", ".join(TIERS)}'
        )
    elif "safetensors" in chain:
        fix = "it has no safetensors weights, and pickled ones are not loaded; choose another model"
    elif "trust_remote_code" in chain or "custom code" in chain:
        fix = "it needs code from the Hub, which is not run here; choose another model"
    else:
        fix = said.splitlines()[0]
    return f"cannot load the model {name!r}: {fix}"


def add_chat_template(tokenizer: Any, name: str = "") -> None:
    """Makes sure that the tokenizer has a chat template and a padding token, in place.

    A base model with ChatML's tokens gets ChatML, and its answers then end with <|im_end|>.
    Raises: CourseError when there is no template and none fits.
    """
    if not getattr(tokenizer, "chat_template", None):
        known = tokenizer.get_vocab()
        if not {"<|im_start|>", "<|im_end|>"} <= known.keys():
            raise CourseError(
                f"the tokenizer of {name!r} has no chat template, so prompts cannot be put to the "
                "model; set tokenizer.chat_template, or choose an instruction-tuned model"
            )
        tokenizer.chat_template = CHATML
        tokenizer.eos_token = "<|im_end|>"
        logger.warning("%s has no chat template: using ChatML, answers end with <|im_end|>", name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # lengths are kept explicitly: see generation.py
    tokenizer.padding_side = "left"


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to 0, in place.

    With dropout the probabilities that are scored are those of another, random model than the one
    that sampled: the KL to the reference is not 0 at the start and the ratio is not 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "attn_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items() if config is not None else ()):
        if isinstance(value, float) and (name.endswith("pdrop") or "dropout" in name):
            setattr(config, name, 0.0)
