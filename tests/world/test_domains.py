"""The other trades' documents: fixed by the seed, in their own words, true to their grammar."""

import re

import pytest

from course_utils.errors import DataError
from course_utils.world import domains
from course_utils.world.domains import DOMAINS, OFFENCES, WEATHER, domain_corpus
from course_utils.world.knowledge import load


@pytest.mark.parametrize("name", DOMAINS)
def test_documents_depend_on_the_seed_alone(name: str) -> None:
    documents = domain_corpus(name, 300, seed=1)
    assert len(documents) == 300
    assert documents == domain_corpus(name, 300, seed=1)
    assert documents[:50] == domain_corpus(name, 50, seed=1)
    other = set(domain_corpus(name, 300, seed=2))
    assert len(other & set(documents)) < 10
    assert len(set(documents)) > 290


@pytest.mark.parametrize("name", DOMAINS)
def test_text_is_written_as_the_world_writes(name: str) -> None:
    for text in domain_corpus(name, 100):
        assert re.fullmatch(r"[a-z0-9]+,?( [a-z0-9]+,?)*\.( [a-z0-9]+,?( [a-z0-9]+,?)*\.)+", text)
        assert 30 <= len(text.split()) <= 60


def test_vocabulary_is_exact() -> None:
    words = {
        word
        for name in DOMAINS
        for text in domain_corpus(name, 3000)
        for word in re.findall(r"[a-z0-9]+", text)
    }
    assert words == domains.vocabulary()
    new = {w for w in words if not w.isdigit()} - load().vocabulary()
    assert 90 <= len(new) <= 170


def test_later_sentences_follow_from_earlier_ones() -> None:
    for text in domain_corpus("ship", 200):
        (weather,) = (w for w in WEATHER if w in text)
        sails, (low, high), end = WEATHER[weather]
        assert sails in text
        assert text.endswith(end)
        leagues = re.search(r"we logged (\d+) leagues", text)
        assert leagues
        assert low <= int(leagues[1]) <= high
        assert ("a reef" in text) == ("we tacked at once." in text)
    for text in domain_corpus("court", 200):
        offence = re.search(r"the charge is (\w+)\.", text)
        assert offence
        saw, penalty = OFFENCES[offence[1]]
        assert f"that {saw}." in text
        free = "the prisoner is discharged." in text
        assert free == ("the jury acquits." in text)
        assert free != bool(re.search(penalty.replace("{n}", r"\d+"), text))


def test_unknown_domain_is_named() -> None:
    with pytest.raises(DataError, match='unknown domain "kitchen": the world has ship, court'):
        domain_corpus("kitchen", 1)
