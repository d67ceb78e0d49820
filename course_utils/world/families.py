"""What people ask in the world: prompt families, paraphrases, and the fixed train/held-out split.

A prompt is held out when one of its topics, its ingredient, its task or its paraphrase is. Held-out
prompts may appear in the base model's web corpus, and are never trained on after pretraining.
"""

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from course_utils.errors import DataError
from course_utils.world.knowledge import Knowledge, Topic, load

LECTURE_PROMPTS = (
    "explain black holes to a 5-year-old",
    "explain the moon landing to a 6-year-old",
    "should i add chorizo to my paella?",
)

CHILDREN = ("a 5-year-old", "a 6-year-old", "a child", "my little sister")
EXPERTS = ("an expert", "a student", "a scientist")

# family -> (paraphrases to train on, held-out paraphrases)
TEMPLATES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "explain": (
        (
            "explain {t} to {aud}",
            "can you explain {t} to {aud}?",
            "please explain {t} to {aud}",
        ),
        ("how would you explain {t} to {aud}?",),
    ),
    "describe": (
        ("tell me about {t}", "what do you know about {t}?", "describe {t}"),
        ("give me some facts about {t}",),
    ),
    "ask": (("{ask}?", "please tell me, {ask}?"), ("quick question, {ask}?",)),
    "add": (
        ("should i add {a} to my {b}?", "can i put {a} in my {b}?"),
        ("is it a good idea to add {a} to {b}?",),
    ),
    "compare": (
        ("compare {x} and {y}", "what is the difference between {x} and {y}?"),
        ("how do {x} and {y} differ?",),
    ),
    "which": (
        ("which of these {which}, {x}, {y} or {z}?", "{x}, {y} or {z}, which of these {which}?"),
        ("only one of these {which}, {x}, {y} or {z}, which one?",),
    ),
    "story": (
        ("write a short story about {t}", "tell me a story about {t}"),
        ("make up a story about {t}",),
    ),
    "review": (
        ("write a review of {t}", "please review {t}"),
        ("what would you say in a review of {t}?",),
    ),
    "math": (
        ("what is {expr}?", "compute {expr}", "what does print({expr}) show?"),
        ("how much is {expr}?",),
    ),
    "howto": (
        ("how do i {do}?", "how can i {do}?", "what is the best way to {do}?"),
        ("teach me to {do}",),
    ),
}
# How often each family is drawn; "howto" splits evenly into harmful and harmless tasks.
WEIGHTS = {
    "explain": 0.22,
    "describe": 0.14,
    "ask": 0.12,
    "add": 0.08,
    "compare": 0.08,
    "which": 0.08,
    "story": 0.06,
    "review": 0.05,
    "math": 0.05,
    "howto": 0.12,
}
FAMILIES = tuple(WEIGHTS)
REVIEWED_DOMAINS = ("food", "places", "tools", "music", "sports")
HELD_OUT_TOPICS = ("black holes", "the moon landing")  # and one or two more of each domain


@dataclass(frozen=True)
class Prompt:
    """One thing a user says, with what the world knows about it."""

    text: str
    family: str
    topics: tuple[str, ...]  # names of the topics asked about; for "add": (ingredient, dish)
    audience: str | None  # "child", "expert" or None
    split: str  # "train" or "heldout"
    detail: str = ""  # ask/which: the attribute; math: the expression; howto: the task


def normalise(text: str) -> str:
    """The world's own spelling: lower case, single spaces, "5-year-old"."""
    text = re.sub(r"\s+", " ", text.lower()).strip()
    text = re.sub(r"\b(\d+)[ -]years?[ -]old\b", r"\1-year-old", text)
    return re.sub(r"\s+([.,!?])", r"\1", text)


def _coin(key: str, share: float) -> bool:
    """A fixed pseudo-random choice by name, the same on every machine and in every release."""
    digest = hashlib.sha256(f"split:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@functools.cache
def held_out_topics() -> frozenset[str]:
    """Two topics of each domain: the named ones, then the first by hash."""
    chosen: set[str] = set()
    for domain in load().domains:
        names = sorted(t.name for t in domain.topics)
        named = [n for n in names if n in HELD_OUT_TOPICS]
        rest = sorted(
            (n for n in names if n not in HELD_OUT_TOPICS and n != "paella"),
            key=lambda n: hashlib.sha256(n.encode()).hexdigest(),
        )
        chosen.update((named + rest)[:2])
    return frozenset(chosen)


def held_out_item(kind: str, name: str) -> bool:
    """Whether an (ingredient, dish) pair, a sum or a how-to task belongs to the held-out fifth."""
    return name == "chorizo|paella" or _coin(f"{kind}:{name}", 0.2)


def calculate(expression: str) -> int | None:
    """The value of `a + b`, `a - b` or `a * b` in whole numbers; None for anything else."""
    match = re.fullmatch(r"(\d{1,3}) ([+*-]) (\d{1,3})", expression)
    if not match:
        return None
    a, operator, b = int(match[1]), match[2], int(match[3])
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def expressions() -> tuple[str, ...]:
    """Every small sum of the world: results lie in 0..24."""
    sums = [f"{a} + {b}" for a in range(13) for b in range(13)]
    differences = [f"{a} - {b}" for a in range(13) for b in range(a + 1)]
    products = [f"{a} * {b}" for a in range(6) for b in range(5)]
    return tuple(sums + differences + products)


@dataclass(frozen=True)
class _Item:
    """What fills a family's templates once, and what the world knows about it."""

    slots: dict[str, str]  # template slot -> text
    topics: tuple[str, ...]
    held: bool  # held out, whatever the paraphrase
    audience: str | None = None
    detail: str = ""


def _about(slots: dict[str, str], *topics: Topic, **fields: str) -> _Item:
    names = tuple(t.name for t in topics)
    return _Item(slots, names, any(n in held_out_topics() for n in names), **fields)


def _items(family: str, know: Knowledge) -> Iterator[_Item]:
    """Every item of a family."""
    if family == "explain":
        for topic in know.topics:
            for audience in CHILDREN + EXPERTS:
                kind = "child" if audience in CHILDREN else "expert"
                yield _about({"t": topic.name, "aud": audience}, topic, audience=kind)
    elif family in ("describe", "story", "review"):
        for topic in know.topics:
            if family != "review" or topic.domain_name in REVIEWED_DOMAINS:
                yield _about({"t": topic.name}, topic)
    elif family == "ask":
        for topic in know.topics:
            for attribute in know.domain_of(topic).askable:
                slots = {"ask": topic.question(attribute.name)}
                yield _about(slots, topic, detail=attribute.name)
    elif family == "compare":
        for domain in know.domains:
            for x, y in itertools.permutations(domain.topics, 2):
                yield _about({"x": x.name, "y": y.name}, x, y)
    elif family == "which":
        yield from _which_items(know)
    elif family == "add":
        for rule in know.dish_rules:
            for a in rule.ingredients:
                held = rule.dish in held_out_topics() or held_out_item("add", f"{a}|{rule.dish}")
                yield _Item({"a": a, "b": rule.dish}, (a, rule.dish), held)
    elif family == "math":
        for expression in expressions():
            held = held_out_item("math", expression)
            yield _Item({"expr": expression}, (), held, detail=expression)
    else:
        for task in know.howtos:
            held = held_out_item("howto", task.name)
            yield _Item({"do": task.name}, (), held, detail=task.name)


def _which_items(know: Knowledge) -> Iterator[_Item]:
    """For each topic and asked attribute, two fixed pairs of distractors for which it is false."""
    for topic in know.topics:
        domain = know.domain_of(topic)
        for attribute in domain.askable:
            value = topic.value(attribute.name)
            others = [t for t in domain.topics if t.value(attribute.name) != value]
            rng = random.Random(f"which:{topic.name}:{attribute.name}")
            for _ in range(2 if len(others) >= 2 else 0):
                distractors = rng.sample(others, 2)
                shown = [topic, *distractors]
                rng.shuffle(shown)
                slots = dict(zip("xyz", (t.name for t in shown), strict=True))
                slots["which"] = attribute.which.format(value=value)
                # `topics` names the answer first; the order shown is only in the text.
                yield _about(slots, topic, *distractors, detail=attribute.name)


@functools.cache
def catalogue() -> dict[str, tuple[Prompt, ...]]:
    """Every prompt of the world by family (about ten thousand; built once)."""
    know = load()
    result: dict[str, tuple[Prompt, ...]] = {}
    for family, (train, held) in TEMPLATES.items():
        found = []
        for item in _items(family, know):
            for template in train + held:
                split = "heldout" if item.held or template in held else "train"
                text = template.format(**item.slots)
                found.append(Prompt(text, family, item.topics, item.audience, split, item.detail))
        result[family] = tuple(found)
    return result


@functools.cache
def _index() -> dict[str, Prompt]:
    return {_key(p.text): p for prompts in catalogue().values() for p in prompts}


def _key(text: str) -> str:
    return normalise(text).rstrip(".!? ")


def find(text: str) -> Prompt | None:
    """The world's prompt behind a user's text, or None when the world does not know it.

    Case, spacing, "5 year old" and closing punctuation do not matter; any order of the three
    topics of a "which" prompt and unlisted small sums are recognised too.
    """
    prompt = _index().get(_key(text))
    if prompt is None:
        prompt = _find_expression(_key(text))
    return prompt


def _find_expression(key: str) -> Prompt | None:
    for template in itertools.chain(*TEMPLATES["math"]):
        pattern = re.escape(_key(template)).replace(re.escape("{expr}"), r"(\d+ [+*\-] \d+)")
        match = re.fullmatch(pattern, key)
        if match and calculate(match[1]) is not None:
            return Prompt(key, "math", (), None, "heldout", match[1])
    return None


def prompts(
    split: str = "train",
    n: int | None = None,
    seed: int = 0,
    families: Iterable[str] | None = None,
) -> list[Prompt]:
    """Distinct prompts of a split, drawn by family weight.

    Args:
        split: "train", "heldout" or "all".
        n: how many; None gives every prompt of the split, in catalogue order.
        seed: of the draw.
        families: the families to draw from; None for all (see WEIGHTS).

    Raises:
        DataError: unknown split or family, or fewer than `n` prompts exist.
    """
    chosen = FAMILIES if families is None else tuple(families)
    if split not in ("train", "heldout", "all"):
        raise DataError(f'unknown split "{split}": use "train", "heldout" or "all"')
    if unknown := [f for f in chosen if f not in WEIGHTS]:
        raise DataError(
            f"unknown prompt family {unknown[0]!r}: the world has {', '.join(FAMILIES)}"
        )
    pools = {f: [p for p in catalogue()[f] if split in (p.split, "all")] for f in chosen}
    if n is None:
        return [p for pool in pools.values() for p in pool]
    available = sum(len(pool) for pool in pools.values())
    if n > available:
        raise DataError(f"{n} {split} prompts asked for, the world has {available}; lower n")
    rng = random.Random(f"prompts:{split}:{seed}")
    for pool in pools.values():
        rng.shuffle(pool)
    _balance_howto(pools)
    drawn: list[Prompt] = []
    while len(drawn) < n:
        open_families = [f for f in chosen if pools[f]]
        family = rng.choices(open_families, [WEIGHTS[f] for f in open_families])[0]
        drawn.append(pools[family].pop())
    return drawn


def _balance_howto(pools: dict[str, list[Prompt]]) -> None:
    """Interleaves harmful and harmless tasks, so that both are drawn equally often."""
    if "howto" not in pools:
        return
    know = load()
    harmful = [p for p in pools["howto"] if know.howto(p.detail).harmful]
    harmless = [p for p in pools["howto"] if not know.howto(p.detail).harmful]
    paired = itertools.zip_longest(harmful, harmless)
    pools["howto"] = [p for pair in paired for p in pair if p is not None][::-1]
