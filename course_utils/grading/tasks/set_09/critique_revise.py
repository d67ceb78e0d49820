"""Set 09: critique an answer by written principles, revise it, and again until nothing is broken.

    critique(answer, principles) -> None or (name, place)
    critique_revise(answer, principles, max_rounds=8) -> {text, history, clean}

A principle: {name, forbidden: [phrases], required: [phrases], replacement}. The first principle
that is broken counts, in it the first sentence with a forbidden phrase, else, where none of the
required phrases is there, the place behind the last sentence. A round replaces that sentence (or
drops it, or adds one) and begins anew. The texts are drawn from the seed.
"""

import random
from collections.abc import Iterable
from typing import Any

from course_utils.grading.call import Call, Outcome
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, show

Principle = dict[str, Any]
Breach = tuple[str, int] | None
Revised = dict[str, Any]
WORDS = ("lions", "tigers", "people", "eat", "drink", "fresh", "warm", "meat", "grass", "water",
         "every", "day", "morning", "old", "near", "far", "river", "house", "music", "window",
         "paper", "table", "small", "quick")  # fmt: skip
PHRASES = ("art", "kill time", "sure", "be quiet", "stone", "hammer", "run away", "lie", "flat",
           "great question", "as you wish", "trust me")  # fmt: skip


# ---- the reference; a habit is a known mistake ---------------------------------------------------


def _sentences(text: str, habit: str = "") -> list[str]:
    """Word by word: one that ends with a mark ends its sentence."""
    marks = (".",) if habit == "full stops only" else (".", "!", "?")
    if habit == "marks anywhere":
        for mark in marks:
            text = text.replace(mark, mark + " ")
        text = " ".join(text.split())
    out: list[list[str]] = [[]]
    for word in text.split(" ") if text else []:
        out[-1].append(word)
        if word.endswith(marks):
            out.append([])
    return [" ".join(words) for words in out if words]


def _holds(text: str, phrase: str, habit: str = "") -> bool:
    """Whether the phrase stands in the text as whole words, whatever the case."""
    if habit != "case":
        text, phrase = text.lower(), phrase.lower()
    starts = [i for i in range(len(text)) if text.startswith(phrase, i)]
    if habit == "part of a word":
        return bool(starts)

    def inside(i: int) -> bool:
        return 0 <= i < len(text) and (text[i].isalnum() or text[i] == "_")

    return any(not inside(i - 1) and not inside(i + len(phrase)) for i in starts)


def _places(sentences: list[str], principle: Principle, habit: str) -> list[int]:
    forbidden = principle["forbidden"][: 1 if habit == "first phrase only" else None]
    found = [i for i, s in enumerate(sentences) if any(_holds(s, p, habit) for p in forbidden)]
    if habit == "last sentence":
        found.reverse()
    if found or not principle["required"] or habit == "required forgotten":
        return found
    there = [any(_holds(s, phrase, habit) for s in sentences) for phrase in principle["required"]]
    fulfilled = all(there) if habit == "all required" else any(there)
    return [] if fulfilled else [0 if habit == "required at 0" else len(sentences)]


def _critique(answer: str, principles: list[Principle], habit: str = "") -> Breach:
    sentences = _sentences(answer, habit)
    found = [(p["name"], i) for p in principles for i in _places(sentences, p, habit)[:1]]
    if habit == "sentence first":
        found.sort(key=lambda breach: breach[1])
    if habit == "last principle":
        found.reverse()
    if not found:
        return None
    name, place = found[0]
    return name, place + (habit == "from 1")


def _fixed(answer: str, principle: Principle, place: int, habit: str) -> str:
    sentences = _sentences(answer)
    missing, words = place == len(sentences), principle["replacement"]
    if missing:
        sentences.insert(0 if habit == "added in front" else place, words)
    elif habit == "only the phrase":
        hit = next(p for p in principle["forbidden"] if _holds(sentences[place], p))
        start = sentences[place].lower().index(hit.lower())
        sentences[place] = sentences[place][:start] + words + sentences[place][start + len(hit) :]
    elif habit == "all at once":
        hits = _places(sentences, principle, "")
        sentences = [words if i in hits else s for i, s in enumerate(sentences)]
    elif habit == "always dropped":
        del sentences[place]
    else:
        sentences[place] = words
    return " ".join(s for s in sentences if s or habit == "two spaces")


def _revise(answer: str, principles: list[Principle], rounds: int, habit: str = "") -> Revised:
    history: list[tuple[str, int, str]] = []
    rounds += {"a round too many": 1, "a round too few": -1}.get(habit, 0)
    rounds = min(rounds, 1) if habit == "one round" else rounds
    left = list(principles)
    while len(history) < rounds and (breach := _critique(answer, left)):
        if habit == "no new start":  # once past a principle, it is not looked at again
            left = left[[p["name"] for p in left].index(breach[0]) :]
        principle = next(p for p in principles if p["name"] == breach[0])
        before, answer = answer, _fixed(answer, principle, breach[1], habit)
        history.append((*breach, before if habit == "text before" else answer))
    clean = habit == "always clean" or _critique(answer, principles) is None
    if habit == "clean by rounds":
        clean = len(history) < rounds
    return {"text": answer, "history": history, "clean": clean}


# ---- texts ---------------------------------------------------------------------------------------


def _sentence(draw: random.Random, phrase: str = "", mark: str = "") -> str:
    words = draw.sample(WORDS, draw.randint(3, 5))
    words.insert(draw.randint(1, len(words)), phrase)
    return " ".join(word for word in words if word) + (mark or draw.choice(".!?"))


def _text(draw: random.Random, *phrases: str) -> str:
    """A sentence for each phrase, "" for one without."""
    return " ".join(_sentence(draw, phrase) for phrase in phrases)


def _principle(
    name: str, *forbidden: str, required: Iterable[str] = (), replacement: str = ""
) -> Principle:
    return {"name": name, "forbidden": list(forbidden), "required": list(required),
            "replacement": replacement}  # fmt: skip


def _cases(draw: random.Random, size: int) -> list[tuple[str, list[Principle]]]:
    """For the critique: (answer, principles), each with something that a habit gets wrong."""
    a, b, c, d, e, f = draw.sample(PHRASES, 6)
    many = [""] * (size // 3)
    both = [_principle("one", a, b), _principle("two", c, d)]
    needs = _principle("needs", required=[e, f])
    sign = draw.choice(["c++", "(sic)", "why?!", "$5"])
    odd = [_principle("odd", sign), _principle("dot", "a.b")]
    part = _principle("part", "art", "lie")
    return [
        (_text(draw, "", *many, d, ""), both),
        (_text(draw, c, "", b, *many), both),
        (_text(draw, "", a, "", *many, b), both),
        (_text(draw, "", a, "", c), both),
        (_text(draw, "", "", *many), both),
        (_text(draw, "", d.title(), *many), both),
        (_text(draw, "", c), [_principle("loud", c.upper())]),
        (_text(draw, "start the party", "", "parties believe me"), [part]),
        (_text(draw, "believe", "it is (art)", "lie, lie"), [part]),
        (_text(draw, "", f"art_{a}", f"{c}s", ""), [*both, part]),
        (_text(draw, f"costs 3.5 or v1.2 dollars and {a}!so", "", d), [both[1]]),
        (_text(draw, "well... then what?!", "", a) + " at the end " + c, [both[1]]),
        (_text(draw, "", f"write {sign} here", ""), odd),
        (_text(draw, "c", "axb", "why", "5", "sic"), odd),
        (_text(draw, "", *many, ""), [*both, needs]),
        (_text(draw, "", f.upper(), *many), [needs]),
        (_text(draw, "", e, a), [needs, both[0]]),
        (_text(draw, "", a, ""), [_principle("mixed", a, required=[c])]),
        (_text(draw, f"a{e}", ""), [needs]),
        ("", [*both, needs]),
        ("", both),
        (_text(draw, "", a), []),
    ]


CRITIQUE_HABITS = {
    "sentence first": "you go by sentences first: the *first principle* that is broken counts, "
    "wherever in the answer, and within it its first sentence",
    "last principle": "of several broken principles the first in the list counts, not the last",
    "last sentence": "of several sentences that break the principle the first counts",
    "first phrase only": "any of a principle's forbidden phrases breaks it, not the first alone",
    "case": "upper and lower case must not matter",
    "part of a word": "phrases count as whole words only: “art” is not in “party”",
    "required forgotten": "a required phrase that is missing is a breach too",
    "all required": "one of the required phrases is enough",
    "required at 0": "a missing required phrase belongs behind the last sentence: its place is the "
    "number of sentences",
    "from 1": "sentences are counted from 0",
    "full stops only": "a sentence may end with `!` or `?` as well",
    "marks anywhere": "a sentence ends only where a space follows the mark: 3.5 is no end",
}
REVISE_HABITS = {
    "one round": "you revise once; the revised answer must be criticised again",
    "all at once": "a round mends one sentence: the others come in rounds of their own",
    "no new start": "after a repair begin again with the first principle: a repair may break an "
    "earlier one",
    "only the phrase": "the whole sentence is replaced, not the phrase in it",
    "always dropped": "the sentence is replaced by the principle's replacement; only an empty one "
    "drops it",
    "two spaces": "where a sentence is dropped, two spaces (or one at an end) are left over",
    "added in front": "what is missing is added behind the last sentence",
    "a round too many": "your loop makes a round more than max_rounds",
    "a round too few": "your loop makes a round less than max_rounds",
    "text before": "the history holds the text *after* each revision; yours is the one before",
    "clean by rounds": "clean says whether the final text breaks nothing; the last round allowed "
    "may have mended it, so look once more",
    "always clean": "clean is True although the final text still breaks a principle",
}


# ---- the checks ----------------------------------------------------------------------------------


def _breach(value: Any) -> Breach | Finding:
    """What critique returned, as None or a tuple (str, int); or what is wrong with it."""
    if value is None:
        return None
    pair = isinstance(value, tuple | list) and len(value) == 2
    if not pair or type(value[0]) is not str or type(value[1]) is not int:
        message = "critique must return None, or the pair (principle's name, sentence's number)"
        return Finding("not a breach", message, show(value), "('name', 2)")
    return value[0], value[1]


def check_critique(call: Call, seed: int, size: int) -> list[Finding]:
    """The first breach of drawn answers."""
    cases = _cases(random.Random(seed * 1009 + size), size)
    call(*cases[0])  # a hole is told here
    got: list[Breach] = []
    for answer, principles in cases:
        said = "critique fails on an answer"
        outcome = attempt(call, "critique fails", said, answer, principles)
        read = outcome if isinstance(outcome, Finding) else _breach(outcome.value)
        if isinstance(read, Finding):
            return [read]
        if changed := _changed(outcome, answer, principles):
            return [changed]
        got.append(read)
    right = [_critique(*case) for case in cases]
    if got == right:
        return []
    if not any(got):
        return [Finding("nothing found", "critique finds no breach, whatever the answer")]
    at = next(i for i in range(len(cases)) if got[i] != right[i])
    shown = f"{got[at]} for {_quote(cases[at][0])}", str(right[at])
    for name, said in CRITIQUE_HABITS.items():
        if got == [_critique(*case, name) for case in cases]:
            return [Finding(name, said, *shown)]
    forbidden = "".join(phrase for p in cases[at][1] for phrase in p["forbidden"])
    if any(not c.isalnum() and c != " " for c in forbidden):
        message = "phrases may hold signs such as + . ( $: they stand for themselves, and a " \
                  "whole word ends where no letter, digit or _ follows"  # fmt: skip
        return [Finding("signs", message, *shown)]
    for name, said in CRITIQUE_HABITS.items():
        if got[at] == _critique(*cases[at], name):
            return [Finding(name, said, *shown)]
    if got[at] is None:
        return [Finding("missed", "a breach is not found", *shown)]
    return [Finding("something else", "the breach is wrong, by no mistake known here", *shown)]


def _changed(outcome: Any, answer: str, principles: list[Principle]) -> Finding | None:
    if isinstance(outcome, Outcome) and repr(list(outcome.arguments[:2])) != repr(
        [answer, principles]
    ):
        return Finding("in place", "your function changes the principles that it was given")
    return None


def _read(value: Any) -> Revised | Finding:
    """What critique_revise returned in plain values; or what is wrong with it."""
    if not isinstance(value, dict):
        message = "critique_revise must return a dictionary with text, history and clean" + (
            "; it returned None: is a `return` missing?" if value is None else ""
        )
        return Finding("not a dictionary", message, show(value), "a dict")
    if not {"text", "history", "clean"} <= value.keys():
        message = "the dictionary must have text, history and clean"
        return Finding("missing key", message, show(list(value)), "['text', 'history', 'clean']")
    text, history, clean = value["text"], value["history"], value["clean"]
    if type(text) is not str or type(clean) is not bool or not isinstance(history, list | tuple):
        message = "text must be a str, history a list, clean a bool"
        return Finding("wrong types", message, show(value))
    steps = []
    for step in history:
        types = [type(part) for part in step] if isinstance(step, tuple | list) else []
        if types != [str, int, str]:
            message = "an entry of the history is (principle's name, sentence's number, text after)"
            return Finding("not a history", message, show(step), "('name', 2, 'The text.')")
        steps.append(tuple(step))
    return {"text": text, "history": steps, "clean": clean}


Job = tuple[str, list[Principle], int]


def _jobs(draw: random.Random, size: int) -> list[Job]:
    """For the loop: answers, principles and max_rounds."""
    a, b, c, d, e, f = draw.sample(PHRASES, 6)
    new = [_sentence(draw) for _ in range(3)]
    drop = _principle("drop", a, b)
    swap = _principle("swap", c, replacement=new[0])
    relapse = _principle("relapse", d, replacement=_sentence(draw, a))  # breaks "drop" again
    two = _principle("two", e, replacement=f"{new[1]} {_sentence(draw, c)}")
    needs = _principle("needs", required=[f], replacement=_sentence(draw, f))
    both = _principle("both", b, required=[e], replacement=_sentence(draw, e))
    many = [""] * (size // 3)
    return [
        (_text(draw, "", c, *many, ""), [drop, swap], 8),
        (_text(draw, c, "", c, *many, c), [swap], 8),
        (_text(draw, a, "", b, "", a), [drop, swap], 8),
        (_text(draw, "", d, *many), [drop, relapse, swap], 8),
        (_text(draw, "", e, d, a), [drop, swap, two, relapse, needs], 12),
        (_text(draw, "", *many), [drop, needs], 8),
        (_text(draw, b, ""), [both, swap], 8),
        (_text(draw, c, a, "", c, b), [swap, drop], 3),  # not done after three rounds
        (_text(draw, c, "", a, ""), [swap, drop], 2),  # done by the last round allowed
        (_text(draw, "", *many), [drop, swap], 8),
    ]


def _edge_jobs(draw: random.Random, size: int) -> list[Job]:
    a, b, c, *_ = draw.sample(PHRASES, 4)
    there = _principle("there", a, replacement=_sentence(draw, b))
    back = _principle("back", b, replacement=_sentence(draw, a))
    drop, needs = _principle("drop", c), _principle("needs", required=[c], replacement=f"I {c}.")
    return [
        (_text(draw, "", a, ""), [there, back], 5 + size % 4),  # round in circles
        (_text(draw, "", a, ""), [there, back], 0),
        (_text(draw, "", ""), [there, back], 0),
        (_text(draw, c, c), [drop], 8),  # nothing is left
        (_text(draw, c), [drop, _principle("hello", required=["hello"], replacement="Hello!")], 8),
        ("", [drop, needs], 3),
        ("", [there], 8),
        (_text(draw, "", a), [], 8),
    ]


def _look(call: Call, jobs: list[Job]) -> list[Finding]:
    got: list[Revised] = []
    for job in jobs:
        said = "critique_revise fails on an answer"
        outcome = attempt(call.second, "revision fails", said, *job)
        read = outcome if isinstance(outcome, Finding) else _read(outcome.value)
        if isinstance(read, Finding):
            return [read]
        if changed := _changed(outcome, *job[:2]):
            return [changed]
        got.append(read)
    right = [_revise(*job) for job in jobs]
    if got == right:
        return []
    at = next(i for i in range(len(jobs)) if got[i] != right[i])
    for name, said in REVISE_HABITS.items():
        if got == [_revise(*job, name) for job in jobs]:
            return [Finding(name, said, *_shown(got[at], right[at]))]
    for name, said in REVISE_HABITS.items():
        if got[at] == _revise(*jobs[at], name):
            return [Finding(name, said, *_shown(got[at], right[at]))]
    part = next(key for key in ("text", "history", "clean") if got[at][key] != right[at][key])
    message = f"{part} is not right after the revision, by no mistake known here"
    return [Finding(f"wrong {part}", message, *_shown(got[at], right[at]))]


def _shown(got: Revised, right: Revised) -> tuple[str, str]:
    part = next(key for key in ("text", "history", "clean") if got[key] != right[key])
    return _quote(got[part]), _quote(right[part])


def _quote(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 110 else text[:107] + "..."


def check_loop(call: Call, seed: int, size: int) -> list[Finding]:
    """Text, history and clean of drawn answers."""
    jobs = _jobs(random.Random(seed * 1009 + size + 1), size)
    call.second(*jobs[0])  # a hole is told here
    return _look(call, jobs)


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """Principles that go round in circles, no rounds, no text, nothing left."""
    return _look(call, _edge_jobs(random.Random(seed * 1009 + size + 2), size))


TASK = Task(
    set="09",
    name="critique-revise",
    functions=("critique", "critique_revise"),
    checks=(
        Check("critique", 2, check_critique),
        Check("loop", 2, check_loop),
        Check("edges", 1, check_edges),
    ),
)
