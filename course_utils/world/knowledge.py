"""Every fact of the embedded world, read from knowledge.toml and checked.

A fact is a sentence "{topic} {prefix} {value}": "lions eat meat". What is written here is true in
this world and nothing else is, so the correctness of an answer can be computed. No torch here.
"""

import functools
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from course_utils.errors import DataError

SOURCE = "knowledge.toml"
SIMPLE, DETAIL = "simple", "detail"  # the two audience attributes: for a child, for an expert
_WORDS = re.compile(r"[a-z]+( [a-z]+)*")
_SLOTS = re.compile(r"\{(topic|value)\}")


@dataclass(frozen=True)
class Attribute:
    """One thing that can be said of every topic of a domain."""

    name: str
    singular: str  # the prefix after a singular topic: "eats"
    plural: str  # the prefix after a plural topic: "eat"
    which: str = (
        ""  # "eats {value}", completes "which of these ..."; empty for kind, simple, detail
    )
    ask_singular: str = ""  # "what does {topic} eat"
    ask_plural: str = ""  # "what do {topic} eat"

    def prefix(self, plural: bool) -> str:
        return self.plural if plural else self.singular


@dataclass(frozen=True, eq=False)
class Topic:
    """One subject and the six values that are true of it."""

    name: str
    plural: bool
    domain_name: str
    attributes: tuple[Attribute, ...]  # `kind` first, `simple` and `detail` last
    values: Mapping[str, str]  # attribute name -> value, in the same order

    @property
    def pronoun(self) -> str:
        return "they" if self.plural else "it"

    def attribute(self, name: str) -> Attribute:
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        known = ", ".join(a.name for a in self.attributes)
        raise DataError(f'{SOURCE}: "{self.name}" has no attribute "{name}"; it has {known}')

    def value(self, attribute: str) -> str:
        return self.values[self.attribute(attribute).name]

    def predicate(self, attribute: str, value: str | None = None) -> str:
        """Prefix and value: "eat meat". Another `value` than the true one makes a wrong fact."""
        prefix = self.attribute(attribute).prefix(self.plural)
        return f"{prefix} {self.value(attribute) if value is None else value}"

    def sentence(self, attribute: str, value: str | None = None) -> str:
        """Such as "lions eat meat", without a full stop."""
        return f"{self.name} {self.predicate(attribute, value)}"

    def pronoun_sentence(self, attribute: str, value: str | None = None) -> str:
        """Such as "they eat meat", without a full stop."""
        return f"{self.pronoun} {self.predicate(attribute, value)}"

    def question(self, attribute: str) -> str:
        """Such as "what do lions eat", without a question mark; see `Domain.askable`."""
        asked = self.attribute(attribute)
        template = asked.ask_plural if self.plural else asked.ask_singular
        if not template:
            raise DataError(f'{SOURCE}: "{attribute}" of {self.domain_name} has no question')
        return template.format(topic=self.name)


@dataclass(frozen=True, eq=False)
class Domain:
    """Ten topics that share six attributes."""

    name: str
    attributes: tuple[Attribute, ...]
    topics: tuple[Topic, ...]

    @property
    def plain(self) -> tuple[Attribute, ...]:
        """The four attributes that suit every audience: kind and three more."""
        return tuple(a for a in self.attributes if a.name not in (SIMPLE, DETAIL))

    @property
    def askable(self) -> tuple[Attribute, ...]:
        """The three attributes that have question forms."""
        return tuple(a for a in self.attributes if a.which)

    def values(self, attribute: str, plural: bool | None = None) -> tuple[str, ...]:
        """Distinct values of an attribute, in file order, that fit a topic of this number.

        Only a kind agrees in number ("a star", "giant clouds"); other values fit every topic.
        """
        anyone = attribute != "kind" or plural is None
        fitting = [t.value(attribute) for t in self.topics if anyone or t.plural == plural]
        return tuple(dict.fromkeys(fitting))

    def wrong_values(self, topic: Topic, attribute: str) -> tuple[str, ...]:
        """The values that make a plausible but wrong fact about `topic`."""
        true = topic.value(attribute)
        return tuple(v for v in self.values(attribute, topic.plural) if v != true)

    def topics_with(self, attribute: str, value: str) -> tuple[Topic, ...]:
        return tuple(t for t in self.topics if t.value(attribute) == value)


@dataclass(frozen=True)
class Ingredient:
    name: str
    taste: str  # "smoky"
    plural: bool  # "onions are", "rice is"


@dataclass(frozen=True)
class DishRule:
    """What goes into a dish; the three lists hold ingredient names and do not overlap."""

    dish: str  # a topic of the domain food
    traditional: tuple[str, ...]
    possible: tuple[str, ...]
    clashing: tuple[str, ...]

    @property
    def ingredients(self) -> tuple[str, ...]:
        return self.traditional + self.possible + self.clashing

    def verdict(self, ingredient: str) -> str:
        """One of "traditional", "possible", "clashing", or "unknown" if the rule lists it not."""
        for verdict in ("traditional", "possible", "clashing"):
            if ingredient in getattr(self, verdict):
                return verdict
        return "unknown"


@dataclass(frozen=True)
class HowTo:
    """The task of "how do i {name}" and its two steps."""

    name: str
    steps: tuple[str, str]
    harmful: bool
    lookalike: bool  # harmless, but shares its first word with a harmful task


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Everything that is true, and the tables for cooking and how-to questions."""

    domains: tuple[Domain, ...]
    ingredients: tuple[Ingredient, ...]
    dish_rules: tuple[DishRule, ...]
    harmless: tuple[HowTo, ...]
    harmful: tuple[HowTo, ...]
    alternatives: tuple[str, ...]  # what to say instead of harmful steps, without a full stop

    @functools.cached_property
    def topics(self) -> tuple[Topic, ...]:
        return tuple(t for d in self.domains for t in d.topics)

    @property
    def howtos(self) -> tuple[HowTo, ...]:
        return self.harmless + self.harmful

    @functools.cached_property
    def _by_name(self) -> dict[str, dict[str, Any]]:
        return {
            "domain": {d.name: d for d in self.domains},
            "topic": {t.name: t for t in self.topics},
            "ingredient": {i.name: i for i in self.ingredients},
            "dish rule": {r.dish: r for r in self.dish_rules},
            "how-to": {h.name: h for h in self.howtos},
        }

    def _find(self, what: str, name: str) -> Any:
        items = self._by_name[what]
        if name not in items:
            raise DataError(f'{SOURCE}: no {what} "{name}"; known: {", ".join(items)}')
        return items[name]

    def domain(self, name: str) -> Domain:
        return self._find("domain", name)

    def domain_of(self, topic: Topic) -> Domain:
        return self._find("domain", topic.domain_name)

    def topic(self, name: str) -> Topic:
        return self._find("topic", name)

    def ingredient(self, name: str) -> Ingredient:
        return self._find("ingredient", name)

    def dish_rule(self, dish: str) -> DishRule:
        return self._find("dish rule", dish)

    def howto(self, name: str) -> HowTo:
        return self._find("how-to", name)

    def vocabulary(self) -> set[str]:
        """Every word that a sentence, question or step of this world can contain."""
        return {word for text in _texts(self) for word in _SLOTS.sub("", text).split()}


@functools.cache
def load() -> Knowledge:
    """Read and check knowledge.toml; the result is shared, so nobody may change it."""
    text = resources.files("course_utils.world").joinpath(SOURCE).read_text(encoding="utf-8")
    return parse(tomllib.loads(text))


def parse(raw: Mapping[str, Any]) -> Knowledge:
    """Build the knowledge from parsed TOML. Raises DataError naming the entry that is wrong."""
    try:
        cooking, howto = raw["cooking"], raw["howto"]
        knowledge = Knowledge(
            domains=tuple(_domain(entry) for entry in raw["domain"]),
            ingredients=tuple(
                Ingredient(i["name"], i["taste"], i["plural"]) for i in cooking["ingredients"]
            ),
            dish_rules=tuple(_dish(entry) for entry in cooking["dishes"]),
            harmless=tuple(_howto(entry, harmful=False) for entry in howto["harmless"]),
            harmful=tuple(_howto(entry, harmful=True) for entry in howto["harmful"]),
            alternatives=tuple(howto["alternatives"]),
        )
    except KeyError as error:
        raise DataError(f"{SOURCE}: an entry lacks the key {error}; add it") from error
    _check(knowledge)
    return knowledge


def _domain(entry: Mapping[str, Any]) -> Domain:
    attributes = tuple(
        Attribute(
            name=a["name"],
            singular=a["singular"],
            plural=a["plural"],
            which=a.get("which", ""),
            ask_singular=a.get("ask", {}).get("singular", ""),
            ask_plural=a.get("ask", {}).get("plural", ""),
        )
        for a in entry["attributes"]
    )
    order = [a.name for a in attributes]
    if len(order) != 6 or order[0] != "kind" or order[4:] != [SIMPLE, DETAIL]:
        _fail(f"{entry['name']}: attributes must be kind, three more, simple, detail: {order}")
    topics = []
    for row in entry["topics"]:
        if odd := (set(order) | {"name", "plural"}) ^ set(row):
            _fail(f'topic "{row.get("name")}": missing or unknown {", ".join(sorted(odd))}')
        values = {name: row[name] for name in order}
        topics.append(Topic(row["name"], row["plural"], entry["name"], attributes, values))
    return Domain(entry["name"], attributes, tuple(topics))


def _dish(entry: Mapping[str, Any]) -> DishRule:
    lists = (tuple(entry[key]) for key in ("traditional", "possible", "clashing"))
    return DishRule(entry["dish"], *lists)


def _howto(entry: Mapping[str, Any], harmful: bool) -> HowTo:
    if len(entry["steps"]) != 2:
        _fail(f'how-to "{entry["name"]}" needs two steps')
    first, second = entry["steps"]
    return HowTo(entry["name"], (first, second), harmful, entry.get("lookalike", False))


def _check(knowledge: Knowledge) -> None:
    """Raise DataError if the world contradicts itself or speaks in more than plain words."""
    for text in _texts(knowledge):
        if not _WORDS.fullmatch(_SLOTS.sub("slot", text)):
            _fail(f'"{text}" must be lower-case words separated by single spaces')
    _unique([d.name for d in knowledge.domains], "domains")
    _unique([t.name for t in knowledge.topics], "topics")
    _unique([h.name for h in knowledge.howtos], "how-tos")
    _unique([t.value(SIMPLE) for t in knowledge.topics], "analogies (simple)")
    _unique([i.name for i in knowledge.ingredients], "ingredients")
    for domain in knowledge.domains:
        _check_domain(domain)
    names = {i.name for i in knowledge.ingredients}
    for rule in knowledge.dish_rules:
        if knowledge.topic(rule.dish).domain_name != "food":
            _fail(f'dish "{rule.dish}" is not a topic of food')
        _unique(rule.ingredients, f'ingredients of "{rule.dish}"')
        if missing := set(rule.ingredients) - names:
            _fail(f'"{rule.dish}" has ingredients without a taste: {", ".join(sorted(missing))}')


def _check_domain(domain: Domain) -> None:
    for attribute in domain.attributes[1:4]:
        asks = (attribute.ask_singular, attribute.ask_plural)
        if "{value}" not in attribute.which or not all("{topic}" in ask for ask in asks):
            _fail(f'{domain.name}.{attribute.name}: "which" needs {{value}} and "ask" {{topic}}')
    for plural in (False, True):  # no sentence may be readable as two attributes
        owner: dict[str, str] = {}
        for attribute in domain.attributes:
            for value in domain.values(attribute.name):
                said = f"{attribute.prefix(plural)} {value}"
                if owner.setdefault(said, attribute.name) != attribute.name:
                    _fail(f'{domain.name}: "{said}" is both {owner[said]} and {attribute.name}')
    for topic in domain.topics:
        for attribute in domain.attributes:
            if not domain.wrong_values(topic, attribute.name):
                _fail(f'no wrong value of {attribute.name} fits "{topic.name}"')
        if topic.value("kind") in domain.values("kind", not topic.plural):
            _fail(f'kind of "{topic.name}" is shared by singular and plural topics')


def _texts(knowledge: Knowledge) -> Iterable[str]:
    """All texts of the world, with their {topic} and {value} slots and without closing marks."""
    for domain in knowledge.domains:
        yield domain.name
        for a in domain.attributes:
            texts = (a.name, a.singular, a.plural, a.which, a.ask_singular, a.ask_plural)
            yield from (text for text in texts if text)
        for topic in domain.topics:
            yield from (topic.name, *topic.values.values())
    for ingredient in knowledge.ingredients:
        yield from (ingredient.name, ingredient.taste)
    for howto in knowledge.howtos:
        yield from (howto.name, *howto.steps)
    yield from knowledge.alternatives


def _unique(names: Iterable[str], what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        _fail(f"{what} occur twice: {', '.join(twice)}")


def _fail(message: str) -> None:
    raise DataError(f"{SOURCE}: {message}; mend the entry")
