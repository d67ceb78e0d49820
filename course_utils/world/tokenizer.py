"""The world's tokenizer: one word, one token; unknown words fall back to their letters."""

import functools
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, END = "<|pad|>", "<|unk|>", "<|bos|>", "<|end|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (PAD, UNK, BOS, END, USER, ASSISTANT, SYSTEM)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?()+-*='\":;/"
MAX_LENGTH = 256  # tokens; the base model's positions

# A turn is "<|user|>words" or "<|assistant|>words<|end|>"; the assistant's words are generated.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'system' %}<|system|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def words_of(text: str) -> set[str]:
    """The words of a text as the tokenizer counts them: lower case, closing marks cut off."""
    without_special = re.sub(r"<\|\w+\|>", " ", text.lower())
    return {w for raw in without_special.split() if (w := re.split(r"[(]", raw)[0].rstrip(".,!?)"))}


def vocabulary() -> list[str]:
    """Every word of the world, sorted: prompts, answers, encyclopedia, styles and domains."""
    from course_utils.world import domains, phrases, styles
    from course_utils.world.families import catalogue, expressions
    from course_utils.world.knowledge import load

    know = load()
    words: set[str] = set()
    for family in catalogue().values():
        for prompt in family:
            words |= words_of(prompt.text)
    for text in know.vocabulary():
        words |= words_of(text)
    for phrase in phrases.every():
        words |= words_of(re.sub(r"{\w+}", "", phrase))
    words |= words_of(" ".join(expressions())) | {"it", "they"} | {str(n) for n in range(31)}
    words |= styles.vocabulary() | domains.vocabulary()
    return sorted(words - set(LETTERS))


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """Makes the tokenizer from the world's words.

    A Unigram model in which a whole word costs less than its letters, so that every known word is
    one token ("▁lions"), marks are tokens of their own, and an unknown word is spelled out.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(f"▁{word}", -1.0) for word in vocabulary()]
    pieces += [(f"▁{letter}", -8.0) for letter in LETTERS]
    pieces += [(letter, -10.0) for letter in LETTERS]
    backend = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL_TOKENS.index(UNK)))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"(?<=\d)[ \-]years?[ \-]old\b"), "-year-old"),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def assets() -> Path:
    """The folder of the world's shipped files (tokenizer, weights, checksums)."""
    return Path(str(resources.files("course_utils.world"))) / "assets"


@functools.cache
def _shipped() -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(assets()))


def load_tokenizer() -> "PreTrainedTokenizerFast":
    """The shipped tokenizer (a fresh copy: changing one does not change another)."""
    import copy

    return copy.deepcopy(_shipped())
