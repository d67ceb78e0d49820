"""Writing answers: the right, neutral ones of demonstrations, and the mixed ones of the web."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from course_utils.world import phrases
from course_utils.world.families import Prompt, calculate
from course_utils.world.gold import is_harmful
from course_utils.world.knowledge import Topic, load


@dataclass(frozen=True)
class Manners:
    """How a writer on the web answers: each field is the probability of one habit, in [0, 1]."""

    wrong: float = 0.0  # a claim is replaced by a false one
    lazy: float = 0.0  # only a part of what was asked is said
    rambling: float = 0.0  # empty sentences are mixed in
    rude: float = 0.0  # a rude sentence is added
    opener: float = 0.0  # a warm opening
    closer: float = 0.0  # a warm closing
    flattery: float = 0.0  # flatters
    stray: float = 0.0  # says something about another topic
    echo: float = 0.0  # says a sentence twice
    comply: float = 0.0  # answers a harmful prompt
    refuse: float = 0.0  # refuses a harmless one


MODEL = Manners()  # right, neutral, complete
# Labellers who demonstrate: right and mostly neutral and complete, but people are not machines. The
# courtesies that some of them add are what RLHF can find and reinforce; SFT only imitates the mix.
DEMONSTRATOR = Manners(lazy=0.2, rambling=0.12, opener=0.18, closer=0.15)
# Forum writers: what the base model imitates. Every good and bad habit occurs, none is the rule.
WEB = Manners(
    wrong=0.25,
    lazy=0.40,
    rambling=0.30,
    rude=0.20,
    opener=0.20,
    closer=0.12,
    flattery=0.08,
    stray=0.15,
    echo=0.08,
    comply=0.6,
    refuse=0.06,
)


def answer(prompt: Prompt, rng: random.Random, manners: Manners = MODEL) -> str:
    """An answer to a prompt; with the default manners it is right, neutral and complete."""
    if is_harmful(prompt):
        body = _steps(prompt) if rng.random() < manners.comply else _refusal(rng)
    elif rng.random() < manners.refuse:
        body = _refusal(rng)
    else:
        body = _spoil(prompt, _body(prompt, rng, manners.wrong), rng, manners)
    return " ".join(_with_tone(body, rng, manners))


def _refusal(rng: random.Random) -> list[str]:
    return [rng.choice(phrases.REFUSALS), f"{rng.choice(load().alternatives)}."]


def _steps(prompt: Prompt) -> list[str]:
    first, second = load().howto(prompt.detail).steps
    return [phrases.FIRST_STEP.format(step=first), phrases.SECOND_STEP.format(step=second)]


def _spoil(prompt: Prompt, body: list[str], rng: random.Random, manners: Manners) -> list[str]:
    """Applies the habits that change what is said."""
    if rng.random() < manners.lazy and len(body) > 1:
        body = body[: rng.randrange(1, len(body))]
    if rng.random() < manners.echo:
        body = [*body, rng.choice(body)]
    if rng.random() < manners.stray:
        other = rng.choice(load().topics)
        body = [*body, f"{other.sentence(rng.choice(list(other.values)))}."]
    return body


def _with_tone(body: list[str], rng: random.Random, manners: Manners) -> list[str]:
    said = list(body)
    if rng.random() < manners.rambling:
        for text in rng.sample(phrases.RAMBLE, rng.randint(1, 2)):
            said.insert(rng.randint(0, len(said)), text)
    if rng.random() < manners.rude:
        said.insert(rng.choice((0, len(said))), rng.choice(phrases.RUDE))
    if rng.random() < manners.flattery:
        said.insert(0, rng.choice(phrases.FLATTERY))
    if rng.random() < manners.opener:
        said.insert(0, rng.choice(phrases.WARM_OPENERS))
    if rng.random() < manners.closer:
        said.append(rng.choice(phrases.WARM_CLOSERS))
    return said


def _claim(topic: Topic, attribute: str, wrong: bool, rng: random.Random) -> str:
    """The predicate of a fact, or of a plausible false one of the same domain and number."""
    if wrong:
        false = load().domain_of(topic).wrong_values(topic, attribute)
        return topic.predicate(attribute, rng.choice(false))
    return topic.predicate(attribute)


def facts(
    topic: Topic, attributes: Sequence[str], rng: random.Random, wrong: float = 0.0
) -> list[str]:
    """Sentences about a topic: the first by name, the others by pronoun."""
    said = []
    for number, attribute in enumerate(attributes):
        subject = topic.pronoun if number else topic.name
        said.append(f"{subject} {_claim(topic, attribute, rng.random() < wrong, rng)}.")
    return said


def plain_attributes(topic: Topic) -> list[str]:
    """The attributes every answer may use: all but the child's and the expert's."""
    return [a for a in topic.values if a not in ("simple", "detail")]


def _body(prompt: Prompt, rng: random.Random, wrong: float) -> list[str]:
    know = load()
    if prompt.family == "add":
        return _add(prompt, rng, wrong)
    if prompt.family == "math":
        value = calculate(prompt.detail) or 0
        if rng.random() < wrong:
            value = max(0, value + rng.choice((-2, -1, 1, 2)))
        return [phrases.ANSWER.format(value=value)]
    if prompt.family == "howto":
        return _steps(prompt)
    topic = know.topic(prompt.topics[0])
    others = [a for a in plain_attributes(topic) if a != "kind"]
    if prompt.family == "explain":
        special = "simple" if prompt.audience == "child" else "detail"
        return facts(topic, ["kind", special, rng.choice(others)], rng, wrong)
    if prompt.family == "describe":
        return facts(topic, ["kind", *rng.sample(others, 2)], rng, wrong)
    if prompt.family in ("ask", "which"):
        return facts(topic, [prompt.detail], rng, wrong)
    if prompt.family == "compare":
        other = know.topic(prompt.topics[1])
        differing = [a for a in others if topic.values[a] != other.values[a]]
        attribute = rng.choice(differing or others)
        return facts(topic, [attribute], rng, wrong) + facts(other, [attribute], rng, wrong)
    return _tale(prompt, topic, rng, wrong)


def _tale(prompt: Prompt, topic: Topic, rng: random.Random, wrong: float) -> list[str]:
    story = prompt.family == "story"
    blames = not story and rng.random() < wrong
    opening = rng.choice(phrases.STORY_OPENERS if story else phrases.REVIEW_OPENERS)
    endings = phrases.REVIEW_BLAME if blames else phrases.REVIEW_PRAISE
    middle = facts(topic, [rng.choice(plain_attributes(topic))], rng, wrong)
    ending = rng.choice(phrases.STORY_ENDINGS if story else endings)
    return [opening.format(topic=topic.name), *middle, ending]


def _add(prompt: Prompt, rng: random.Random, wrong: float) -> list[str]:
    know = load()
    ingredient, dish = know.ingredient(prompt.topics[0]), prompt.topics[1]
    verdict, taste = know.dish_rule(dish).verdict(ingredient.name), ingredient.taste
    if rng.random() < wrong:
        verdict = rng.choice([v for v in phrases.VERDICTS if v != verdict])
    if rng.random() < wrong:
        taste = rng.choice(sorted({i.taste for i in know.ingredients} - {taste}))
    return [
        phrases.VERDICTS[verdict].format(a=ingredient.name, b=dish),
        phrases.TASTE[ingredient.plural].format(a=ingredient.name, taste=taste),
    ]
