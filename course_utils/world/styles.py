"""Three registers to put on neutral text and take off again: what style adapters learn and merge.

A style swaps function words, opens the text and closes it. Topics and values of facts keep their
place, so `gold_reward(prompt, strip_style(answer, style))` judges a styled answer.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from course_utils.errors import DataError


@dataclass(frozen=True)
class Style:
    """One register. Its words ("that" aside) occur in no neutral text and in no other style."""

    name: str
    swaps: Mapping[str, str]  # neutral word -> what the style says instead
    openings: tuple[str, str]  # before the first sentence
    closings: tuple[str, str]  # after the last sentence, before its mark


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style(
            name="pirate",
            swaps={
                "is": "tis",
                "are": "arr",
                "it": "she",
                "they": "them",
                "you": "ye",
                "your": "yer",
                "my": "meself",
                "yes": "aye",
                "no": "nay",
                "and": "plus",
                "first": "belike",
                "big": "hefty",
                "small": "wee",
                "great": "grand",
                "friend": "shipmate",
                "child": "lad",
            },
            openings=("ahoy, ", "avast, "),
            closings=(", matey", ", hearty"),
        ),
        Style(
            name="formal",
            swaps={
                "is": "remains",
                "are": "remain",
                "has": "possesses",
                "have": "possess",
                "comes": "originates",
                "eat": "consume",
                "looks": "appears",
                "needs": "requires",
                "used": "utilized",
                "can": "may",
                "help": "assist",
                "yes": "certainly",
                "but": "however",
                "first": "firstly",
                "then": "thereafter",
                "very": "exceedingly",
                "good": "satisfactory",
            },
            openings=("kindly note that ", "kindly observe that "),
            closings=(", respectfully", ", sincerely"),
        ),
        Style(
            name="bard",
            swaps={
                "is": "beeth",
                "are": "art",
                "has": "hath",
                "does": "doth",
                "comes": "cometh",
                "eat": "devour",
                "lives": "dwelleth",
                "live": "dwell",
                "it": "such",
                "they": "those",
                "you": "thou",
                "your": "thy",
                "my": "mine",
                "yes": "yea",
                "then": "anon",
                "old": "olden",
                "very": "wondrous",
            },
            openings=("hark, ", "behold, "),
            closings=(", forsooth", ", verily"),
        ),
    )
}


def apply_style(text: str, style: str) -> str:
    """Say a neutral text in a style: "lions are big." -> "ahoy, lions arr hefty, matey.".

    Neutral text has no word of `vocabulary()`. The two openings and closings alternate with the
    number of words, so that the same text is always styled alike.
    """
    chosen = _style(style)
    if not text.strip():
        return text
    which = len(text.split()) % 2
    swapped = _pattern(tuple(chosen.swaps)).sub(lambda m: chosen.swaps[m[0]], text)
    body, mark = _split_mark(swapped)
    return f"{chosen.openings[which]}{body}{chosen.closings[which]}{mark}"


def strip_style(text: str, style: str) -> str:
    """Take a style off; exactly undoes `apply_style` on neutral text.

    Openings and closings go wherever they stand, so sampled text with too many comes out clean.
    """
    chosen = _style(style)
    for decoration in (*chosen.openings, *chosen.closings):
        text = _decoration(decoration).sub("", text)
    neutral = {said: word for word, said in chosen.swaps.items()}
    return _pattern(tuple(neutral)).sub(lambda m: neutral[m[0]], text)


def style_score(text: str, style: str) -> float:
    """Share of the chances to show a style that a text takes, in [0, 1].

    A chance is a word that the style swaps, the opening and the closing: neutral text scores 0,
    the result of `apply_style` 1.
    """
    chosen = _style(style)
    taken = len(_pattern(tuple(chosen.swaps.values())).findall(text))
    missed = len(_pattern(tuple(chosen.swaps)).findall(text))
    for decorations in (chosen.openings, chosen.closings):
        shown = any(decoration in text for decoration in decorations)
        taken, missed = taken + shown, missed + (not shown)
    return taken / (taken + missed)


def vocabulary() -> set[str]:
    """Every word that some style adds; none of them occurs in the world's neutral text."""
    return {
        word
        for style in STYLES.values()
        for phrase in (*style.swaps.values(), *style.openings, *style.closings)
        for word in re.findall(r"[a-z]+", phrase)
    } - {"that"}


def _style(name: str) -> Style:
    if name not in STYLES:
        raise DataError(f'unknown style "{name}": the world has {", ".join(STYLES)}')
    return STYLES[name]


@functools.cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Any of these words, whole: not the "old" of "5-year-old"."""
    return re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])")


@functools.cache
def _decoration(phrase: str) -> re.Pattern[str]:
    before = "" if phrase.startswith(",") else r"(?<![\w-])"
    after = "" if phrase.endswith(" ") else r"(?![\w-])"
    return re.compile(before + re.escape(phrase) + after)


def _split_mark(text: str) -> tuple[str, str]:
    """The text and its last marks and blanks: "lions eat meat." -> ("lions eat meat", ".")."""
    body = text.rstrip(".!? \n")
    return body, text[len(body) :]
