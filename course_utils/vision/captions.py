"""What is said about a scene: the words, the true caption, and what the web makes of it.

    caption  = mention {link mention} "."          link     = "and" | relation
    mention  = "a" [size] [colour] shape           relation = "left of" | "right of" | ...

The web's captions are mostly right. But they leave things out, get colours wrong, and have habits:
where there is something blue they like to add a red circle, whether or not there is one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.errors import DataError
from course_utils.vision.scenes import COLOURS, SHAPES, SIZES, Scene, Thing

RELATIONS = ("left of", "right of", "above", "below")
SPECIALS = ("<pad>", "<start>", "<end>")
PAD, START, END = range(3)
WORDS = (
    *SPECIALS,
    *("a", "and", ".", "left", "right", "of", "above", "below"),
    *SIZES,
    *COLOURS,
    *SHAPES,
)
_IDS = {word: number for number, word in enumerate(WORDS)}
MAX_WORDS = 28  # longest caption that is written or sampled, full stop included


@dataclass(frozen=True)
class Web:
    """How careless the web is; all but `habits` are probabilities."""

    habits: tuple[tuple[str, str], ...] = (("blue", "red circle"), ("square", "yellow triangle"))
    habit: float = 0.7  # a scene that has the habit's word: its thing is added
    wrong_colour: float = 0.12  # of a mention; half of the wrong colours are "red"
    wrong_size: float = 0.10  # of a size that is said
    wrong_relation: float = 0.10
    leave_out: float = 0.10  # a thing other than the first is not mentioned
    say_size: float = 0.6
    say_relation: float = 0.7  # between the first two mentions, else "and"


WEB = Web()
HONEST = Web(habit=0, wrong_colour=0, wrong_size=0, wrong_relation=0, leave_out=0)

# ---- words and numbers -------------------------------------------------------------------------


def split_words(caption: str) -> list[str]:
    """Lower-case words; a full stop or comma is a word of its own, commas are dropped.

    Raises: DataError naming a word that the captioner does not have.
    """
    words = caption.lower().replace(".", " . ").replace(",", " ").split()
    for word in words:
        if word not in _IDS or word in SPECIALS:
            known = " ".join(WORDS[len(SPECIALS) :])
            raise DataError(
                f'caption "{caption}": the word "{word}" is not in the vocabulary; known: {known}'
            )
    return words


def encode(captions: Sequence[str]) -> Tensor:
    """(N, T) ids: start, words, end, then padding up to the longest.

    Raises: DataError on unknown words and on captions of more than MAX_WORDS.
    """
    rows = [[START, *(_IDS[word] for word in split_words(text)), END] for text in captions]
    width = max(map(len, rows), default=0)
    if width > MAX_WORDS + 2:
        raise DataError(f"a caption has {width - 2} words, full stop included; at most {MAX_WORDS}")
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def decode(ids: Tensor) -> list[str]:
    """(N, T) ids -> captions, up to the first end, special words left out."""
    found = []
    for row in ids.tolist():
        row = row[: row.index(END)] if END in row else row
        words = [WORDS[number] for number in row if number >= len(SPECIALS)]
        found.append(" ".join(words).replace(" .", "."))
    return found


# ---- captions of a scene -----------------------------------------------------------------------


def relation_of(first: Thing, second: Thing) -> tuple[str, ...]:
    """The relations of RELATIONS that hold between two things; two of them on a diagonal."""
    found = []
    if first.column != second.column:
        found.append("left of" if first.column < second.column else "right of")
    if first.row != second.row:
        found.append("above" if first.row < second.row else "below")
    return tuple(found)


def true_caption(scene: Scene) -> str:
    """Everything that there is to say, in reading order, and nothing else."""
    mentions = [f"a {t.size} {t.colour} {t.shape}" for t in scene.things]
    if len(mentions) > 1:
        mentions[:2] = [f" {relation_of(*scene.things[:2])[0]} ".join(mentions[:2])]
    return " and ".join(mentions) + "."


def _mention(thing: Thing, web: Web, rng: random.Random) -> str:
    size, colour = thing.size, thing.colour
    if rng.random() < web.wrong_size:
        size = "small" if size == "large" else "large"
    if rng.random() < web.wrong_colour:
        colour = "red" if rng.random() < 0.5 else rng.choice(list(COLOURS))
    said = [size] if rng.random() < web.say_size else []
    return " ".join(["a", *said, colour, thing.shape])


def web_caption(scene: Scene, rng: random.Random, web: Web = WEB) -> str:
    """What the web says about the scene: see `Web`."""
    things = [t for i, t in enumerate(scene.things) if i == 0 or rng.random() >= web.leave_out]
    mentions = [_mention(thing, web, rng) for thing in things]
    if len(things) > 1 and rng.random() < web.say_relation:
        relation = rng.choice(relation_of(*things[:2]))
        if rng.random() < web.wrong_relation:
            relation = rng.choice(RELATIONS)
        mentions[:2] = [f" {relation} ".join(mentions[:2])]
    present = {word for thing in scene.things for word in thing.kind}
    kinds = {" ".join(thing.kind) for thing in scene.things}
    for word, added in web.habits:
        if word in present and added not in kinds and rng.random() < web.habit:
            mentions.append(f"a {added}")
    return " and ".join(mentions) + "."
