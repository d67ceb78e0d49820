"""Hallucinated or seen: every claim of a caption is held against the scene.

A caption claims things ("a circle"), their colours and sizes, and relations between them. Its
hallucination rate is the share of claims that are false; its coverage, the share of the scene's
facts that it tells, keeps silence from being the best answer.

Source: CHAIR, the share of mentioned objects that are not in the picture (Rohrbach et al. 2018,
"Object hallucination in image captioning", §2.2), extended from objects to their attributes.
"""

import functools
from dataclasses import dataclass, field

from course_utils.vision.captions import RELATIONS, relation_of, split_words
from course_utils.vision.scenes import COLOURS, SHAPES, SIZES, Scene, Thing


@dataclass
class Mention:
    """One thing that a caption names; what it does not say is None."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    relation: str | None = None  # to the mention before it: "left of" says that one is left of this
    places: dict[str, list[int]] = field(default_factory=dict, compare=False)  # where in the words

    def claims(self) -> dict[str, str]:
        """What is said of the thing itself: {"colour": "red", "shape": "circle"}."""
        said = {"size": self.size, "colour": self.colour, "shape": self.shape}
        return {name: value for name, value in said.items() if value is not None}


def attributes(caption: str) -> tuple[Mention, ...]:
    """The mentions of a caption, in order. Never fails on a caption that is bad grammar.

        attributes("a red circle left of a small square.")
        -> (Mention(shape="circle", colour="red"),
            Mention(shape="square", size="small", relation="left of"))

    Raises: DataError on words that the vocabulary does not have.
    """
    words = split_words(caption)
    mentions: list[Mention] = []
    relation: tuple[str, list[int]] | None = None
    kinds = {**dict.fromkeys(SIZES, "size"), **dict.fromkeys(COLOURS, "colour")}
    kinds.update(dict.fromkeys(SHAPES, "shape"))
    fresh = True  # whether the next attribute starts a new mention
    for place, word in enumerate(words):
        pair = " ".join(words[place : place + 2])
        if pair in RELATIONS or word in RELATIONS:
            width = 2 if pair in RELATIONS else 1
            relation, fresh = (" ".join(words[place : place + width]), [place]), True
            if width == 2:
                relation[1].append(place + 1)
        elif word in ("a", "and", "."):
            fresh = True
        elif (kind := kinds.get(word)) is not None:
            if fresh or getattr(mentions[-1], kind) is not None:
                mentions.append(Mention())
                if relation is not None and len(mentions) > 1:
                    mentions[-1].relation, mentions[-1].places["relation"] = relation
                relation = None
            setattr(mentions[-1], kind, word)
            mentions[-1].places[kind] = [place]
            fresh = kind == "shape"
    return tuple(mentions)


@dataclass(frozen=True)
class Judgement:
    """A caption held against a scene."""

    claims: int  # how many there are
    false: int  # of these
    coverage: float  # share of the scene's facts (shape, colour, size of each thing) that are told
    named: int  # things of the scene that a mention describes with no false word
    things: int  # in the scene
    verdicts: tuple[tuple[str, bool | None], ...]  # each word: True seen, False not there, None

    @property
    def hallucinated(self) -> float:
        """False claims over all claims, in [0, 1]; 0 for a caption that claims nothing."""
        return self.false / self.claims if self.claims else 0.0

    @property
    def correct(self) -> bool:
        """Nothing false is said, and nothing in the scene is left out."""
        return self.false == 0 and self.named == self.things


def _true_claims(mention: Mention, thing: Thing | None, before: Thing | None) -> set[str]:
    """Which claims hold if the mention speaks of `thing`, and the mention before it of `before`."""
    if thing is None:
        return set()
    said = mention.claims().items()
    found = {name for name, value in said if getattr(thing, name) == value}
    if before is not None and mention.relation in relation_of(before, thing):
        found.add("relation")
    return found


def _best_match(mentions: tuple[Mention, ...], things: tuple[Thing, ...]) -> list[set[str]]:
    """The claims that hold, mention by mention, under the match that makes most claims true.

    Each thing answers to at most one mention. Of equal matches, the one with more mentions that
    are right as a whole.
    """

    @functools.cache
    def best(
        i: int, free: tuple[Thing, ...], before: Thing | None
    ) -> tuple[int, int, list[set[str]]]:
        if i == len(mentions):
            return 0, 0, []
        options = []
        for thing in (*free, None):
            true = _true_claims(mentions[i], thing, before)
            left = tuple(other for other in free if other is not thing)
            claims, whole, rest = best(i + 1, left, thing)
            whole += mentions[i].shape is not None and mentions[i].claims().keys() <= true
            options.append((claims + len(true), whole, [true, *rest]))
        return max(options, key=lambda option: option[:2])

    return best(0, things, None)[2]


def judge(scene: Scene, caption: str) -> Judgement:
    """Every claim of a caption held against the scene.

    Which mention speaks of which thing is decided in the caption's favour: of all ways to give
    each thing at most one mention, the one that makes most claims true. A mention left without a
    thing is hallucinated whole.
    """
    mentions = attributes(caption)
    claims = false = told = named = 0
    marks: dict[int, bool] = {}  # place of a word: whether its claim holds
    for mention, true in zip(mentions, _best_match(mentions, scene.things), strict=True):
        for name, places in mention.places.items():  # one entry a claim
            marks.update(dict.fromkeys(places, name in true))
        claims += len(mention.places)
        false += len(mention.places) - len(true)
        told += len(true - {"relation"})
        named += mention.shape is not None and mention.claims().keys() <= true
    return Judgement(
        claims=claims,
        false=false,
        coverage=told / (3 * len(scene.things)),
        named=named,
        things=len(scene.things),
        verdicts=tuple((word, marks.get(i)) for i, word in enumerate(split_words(caption))),
    )


def hallucination_rate(scene: Scene, caption: str) -> float:
    """The share of what the caption claims that is not in the scene, in [0, 1]; see `judge`."""
    return judge(scene, caption).hallucinated
