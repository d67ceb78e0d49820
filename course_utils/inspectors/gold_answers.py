"""Answers as the viewers' states hold them: text, gold reward with its parts, recognised sentences.

An answer is given as the report does ({"text", "gold": {"total", "parts"}, "reward", "kl"}), as a
`Completion` of an evaluation, or as plain text.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from course_utils.report import markup

MAX_TEXT = 4000  # characters of one answer shown
# What a recognised sentence is called. Those with a truth value are facts, right or wrong.
KINDS = {
    "fact": "fact",
    "verdict": "verdict on a dish",
    "taste": "taste",
    "step": "step",
    "answer": "result",
    "opener": "warm opening",
    "closer": "warm closing",
    "flattery": "flattery",
    "rude": "rude",
    "neutral": "neutral remark",
    "ramble": "rambling",
    "refusal": "refusal",
    "alternative": "offers an alternative",
    "story_open": "opens the story",
    "story_end": "ends the story",
    "review_open": "opens the review",
    "praise": "praise",
    "blame": "blame",
    "malformed": "not of this world's language",
}


def number(value: Any) -> float | None:
    """A finite number (also NumPy's or a tensor's) as a float; None for anything else."""
    return markup.number(value.item() if hasattr(value, "item") else value)


def plain(value: Any) -> dict[str, Any]:
    """{text, gold, parts: {name: score} | None, reward, kl} of an answer in any accepted form."""
    given: Mapping[str, Any] = {"text": value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        given = value
    gold: Any = given.get("gold")
    parts = given.get("parts")
    if isinstance(gold, Mapping):
        gold, parts = gold.get("total"), gold.get("parts", parts)
    elif gold is not None and hasattr(gold, "total"):
        gold, parts = gold.total, gold.parts
    text = given.get("text")
    text = "" if text is None else str(text)
    return {
        "text": text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …",
        "cut": max(0, len(text) - MAX_TEXT),
        "gold": number(gold),
        "parts": {str(k): number(v) for k, v in parts.items()} if parts else None,
        "reward": number(given.get("reward")),
        "kl": number(given.get("kl")),
    }


def sentences(prompt: str, text: str) -> list[list[Any]] | None:
    """[[sentence, what it is, truth]] as the gold reward reads an answer.

    truth: 1 right, 0 wrong, -1 not what was asked for (another topic, said before, no sentence of
    this world), None for courtesies and the like. None for prompts that the world does not know,
    and for answers without a sentence.
    """
    from course_utils.world import gold
    from course_utils.world.families import find

    known = find(prompt)
    if known is None or not text.strip():
        return None
    said = gold.recognise(known, text)
    pieces = gold.split_sentences(text)
    if len(pieces) != len(said):  # the world's normal form joined or split something
        pieces = [sentence.text for sentence in said]
    found, before = [], set()
    for piece, sentence in zip(pieces, said, strict=True):
        name = KINDS.get(sentence.kind, sentence.kind)
        truth = None if sentence.right is None else int(sentence.right)
        if sentence.kind == "fact":
            name += f" about {sentence.topic}"
        if sentence.kind == "fact" and sentence.topic not in known.topics:
            name, truth = f"{name}, beside the point", -1 if truth else 0
        if sentence.text in before:
            name, truth = f"{name}, said before", -1
        before.add(sentence.text)
        found.append([piece, name, -1 if sentence.kind == "malformed" else truth])
    return found


def scored(answer: dict[str, Any], prompt: str) -> dict[str, Any]:
    """The `plain` answer, with the world's gold reward if it has none and the world knows it."""
    if answer["gold"] is not None or answer["parts"] or answer["cut"] or not prompt:
        return answer
    from course_utils.world import gold
    from course_utils.world.families import find

    known = find(prompt)
    if known is None:
        return answer
    found = gold.score(known, answer["text"])
    return {**answer, "gold": found.total, "parts": dict(found.parts)}


def part_names(answers: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """[{name, help}] of all parts that occur in `plain` answers; the gold reward's own first."""
    from course_utils.world.gold import PARTS

    seen = dict.fromkeys(name for a in answers for name in a["parts"] or {})
    order = [n for n in PARTS if n in seen] + [n for n in seen if n not in PARTS]
    return [{"name": n.replace("_", "-"), "key": n, "help": PARTS.get(n, "")} for n in order]


def shown(
    answer: Mapping[str, Any], names: Sequence[Mapping[str, str]], prompt: str
) -> dict[str, Any]:
    """An answer for the state: its parts as a list in the order of `names`, its sentences."""
    parts = answer["parts"]
    said = None if answer["cut"] else sentences(prompt, answer["text"])
    found = {name: answer[name] for name in ("text", "gold", "reward", "kl")}
    found["parts"] = [parts.get(n["key"]) for n in names] if parts else None
    if said:
        found |= {"text": None, "said": said}  # the text is the sentences'
    return found


def text_of(answer: Mapping[str, Any]) -> str:
    """The text of an answer of the state."""
    return answer["text"] if "said" not in answer else " ".join(s[0] for s in answer["said"])
