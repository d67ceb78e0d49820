"""The world's facts: complete, consistent, small in vocabulary, and read without torch."""

import copy
import re
import subprocess
import sys
import tomllib
from importlib import resources

import pytest

from course_utils.errors import DataError
from course_utils.world import knowledge
from course_utils.world.knowledge import DETAIL, SIMPLE, load, parse


@pytest.fixture
def raw() -> dict:
    text = resources.files("course_utils.world").joinpath("knowledge.toml").read_text()
    return copy.deepcopy(tomllib.loads(text))


def test_shape_of_the_world() -> None:
    world = load()
    assert len(world.domains) == 10
    assert [len(d.topics) for d in world.domains] == [10] * 10
    for domain in world.domains:
        assert [a.name for a in domain.plain] == ["kind", *(a.name for a in domain.askable)]
        assert len(domain.askable) == 3
        assert 3 <= len(domain.values("kind")) <= 6
        for attribute in domain.askable:
            assert 4 <= len(domain.values(attribute.name)) <= 7, (domain.name, attribute.name)
        assert 4 <= len(domain.values(DETAIL)) <= 6, domain.name
        assert len(domain.values(SIMPLE)) == 10
    assert {"black holes", "paella", "the moon landing"} <= {t.name for t in world.topics}


def test_values_are_short_and_words_are_few() -> None:
    world = load()
    for topic in world.topics:
        for value in topic.values.values():
            assert 1 <= len(value.split()) <= 5, (topic.name, value)
    assert len(world.vocabulary()) <= 1300
    assert all(re.fullmatch("[a-z]+", word) for word in world.vocabulary())


def test_sentences_and_questions() -> None:
    world = load()
    lions, sun = world.topic("lions"), world.topic("the sun")
    assert lions.sentence("food") == "lions eat meat"
    assert lions.sentence("food", "fish") == "lions eat fish"
    assert lions.pronoun_sentence("kind") == "they are big wild cats"
    assert lions.predicate("food", "fish") == "eat fish"
    assert lions.question("food") == "what do lions eat"
    assert lions.attribute("food").which.format(value="meat") == "eats meat"
    assert sun.sentence(SIMPLE) == "the sun is like a giant fire far away"
    assert sun.pronoun_sentence("color") == "it looks yellow"
    assert sun.question("place") == "where is the sun found"
    assert world.domain_of(sun).name == "space"
    assert [*sun.values][0::4] == ["kind", SIMPLE]
    holes = world.topic("black holes")
    assert holes.sentence(DETAIL) == "black holes formed from collapsed massive stars"


def test_a_wrong_kind_agrees_in_number() -> None:
    space = load().domain("space")
    sun, holes = load().topic("the sun"), load().topic("black holes")
    assert set(space.wrong_values(sun, "kind")) == {"a rocky planet", "a giant planet"}
    assert set(space.wrong_values(holes, "kind")) == {"small wandering bodies", "giant clouds"}
    assert "hot plasma" in space.wrong_values(holes, "matter")
    assert space.values("kind", plural=False) == ("a star", "a rocky planet", "a giant planet")
    assert [t.name for t in space.topics_with("color", "red")] == ["nebulas", "mars"]


def test_no_wrong_fact_is_a_true_one() -> None:
    world = load()
    true = {t.sentence(a) for t in world.topics for a in t.values}
    assert len(true) == 600
    for topic in world.topics:
        for attribute in topic.values:
            false = world.domain_of(topic).wrong_values(topic, attribute)
            wrong = {topic.sentence(attribute, value) for value in false}
            assert wrong
            assert not wrong & true


def test_cooking() -> None:
    world = load()
    assert len(world.dish_rules) == 8
    for rule in world.dish_rules:
        sizes = (len(rule.traditional), len(rule.possible), len(rule.clashing))
        assert sizes == (4, 3, 3), rule.dish
        assert rule.verdict("the moon") == "unknown"
    paella = world.dish_rule("paella")
    assert paella.verdict("chorizo") == "possible"
    assert paella.verdict("rice") == "traditional"
    assert paella.verdict("chocolate") == "clashing"
    assert world.ingredient("chorizo").taste == "smoky"
    names = {i.name for i in world.ingredients}
    assert names == {i for rule in world.dish_rules for i in rule.ingredients}
    # most ingredients get more than one verdict, so the dish must be read
    verdicts = {n: {r.verdict(n) for r in world.dish_rules} - {"unknown"} for n in names}
    assert sum(len(v) > 1 for v in verdicts.values()) >= 12


def test_howtos() -> None:
    world = load()
    lookalikes = [h for h in world.harmless if h.lookalike]
    assert (len(world.harmless), len(world.harmful), len(world.alternatives)) == (24, 20, 3)
    assert len(lookalikes) >= 12
    assert all(h.harmful and not h.lookalike for h in world.harmful)
    assert not any(h.harmful for h in world.harmless)
    # a look-alike begins with the verb of a harmful task: the first word decides nothing
    verbs = {h.name.split()[0] for h in world.harmful}
    assert all(h.name.split()[0] in verbs for h in lookalikes)
    vague = {step for h in world.harmful for step in h.steps}
    assert not vague & {step for h in world.harmless for step in h.steps}
    assert world.howto("steal a bike").harmful


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(DataError, match='no topic "dragons"; known: lions'):
        load().topic("dragons")
    with pytest.raises(DataError, match='has no attribute "wings"'):
        load().topic("lions").sentence("wings")
    with pytest.raises(DataError, match="has no question"):
        load().topic("lions").question("kind")


def _break_words(raw: dict) -> None:
    raw["domain"][0]["topics"][0]["food"] = "Meat, raw"


def _break_attribute(raw: dict) -> None:
    del raw["domain"][0]["topics"][0]["food"]


def _break_order(raw: dict) -> None:
    raw["domain"][0]["attributes"].reverse()


def _break_unique_analogy(raw: dict) -> None:
    topics = raw["domain"][0]["topics"]
    topics[0]["simple"] = topics[1]["simple"]


def _break_two_readings(raw: dict) -> None:
    raw["domain"][0]["attributes"][2] |= {"singular": "eats", "plural": "eat"}
    raw["domain"][0]["topics"][0]["home"] = "fish"


def _break_dish(raw: dict) -> None:
    raw["cooking"]["dishes"][0]["possible"][0] = "rice"


def _break_ingredient(raw: dict) -> None:
    raw["cooking"]["dishes"][0]["possible"][0] = "sand"


def _break_question(raw: dict) -> None:
    raw["domain"][0]["attributes"][1]["which"] = "eats"


def _break_number(raw: dict) -> None:
    raw["domain"][2]["topics"][4]["kind"] = "giant clouds"


def _break_key(raw: dict) -> None:
    del raw["howto"]["harmful"]


def _break_steps(raw: dict) -> None:
    raw["howto"]["harmful"][0]["steps"] = ["tell nobody"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_words, "lower-case words"),
        (_break_attribute, 'topic "lions": missing or unknown food'),
        (_break_order, "animals: attributes must be kind"),
        (_break_unique_analogy, "occur twice: a giant cat with stripes"),
        (_break_two_readings, '"eats fish" is both food and home'),
        (_break_dish, 'ingredients of "paella" occur twice: rice'),
        (_break_ingredient, "without a taste: sand"),
        (_break_question, "animals.food"),
        (_break_number, "shared by singular and plural"),
        (_break_key, "lacks the key 'harmful'"),
        (_break_steps, "needs two steps"),
    ],
)
def test_an_inconsistent_world_is_refused(raw: dict, damage, message: str) -> None:
    parse(raw)  # whole before the damage
    damage(raw)
    with pytest.raises(DataError, match=message):
        parse(raw)


def test_reading_facts_needs_no_torch() -> None:
    code = (
        "import sys; from course_utils.world import knowledge; knowledge.load();"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert knowledge.load() is knowledge.load()
