"""OpenAssistant: trees of messages, given as flat rows that name their parent.

Every message may have several answers, ranked by people: 0 is the best. From a prompter's message
come one conversation (its best answer) and one preference (the best answer and the worst ranked).
Source: Köpf et al. 2023, "OpenAssistant Conversations".
"""

from collections.abc import Iterable, Iterator

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.report import RowFault

_COLUMNS = ("message_id", "parent_id", "text", "role", "rank", "deleted")


def questions(rows: Iterable[Row]) -> Iterator[Row]:
    """Flat messages -> {said, answers} for each prompter's message that was answered.

    said: what was said up to it, first to last. answers: the replies by rank, best first, those
    without a rank last. Deleted messages and all below them are left out.
    """
    by_id = {row["message_id"]: row for row in rows if not row["deleted"]}
    replies: dict[str, list[Row]] = {}
    for row in by_id.values():
        if row["parent_id"] in by_id:
            replies.setdefault(row["parent_id"], []).append(row)
    for id, answers in replies.items():
        if by_id[id]["role"] != "prompter":
            continue
        said = [by_id[id]]
        while said[0]["parent_id"] in by_id:
            said.insert(0, by_id[said[0]["parent_id"]])
        if said[0]["parent_id"] is not None:  # below a deleted message
            continue
        ranked = sorted(answers, key=lambda row: (row["rank"] is None, row["rank"] or 0))
        yield {**dict.fromkeys(_COLUMNS), "said": said, "answers": ranked}


def _messages(rows: list[Row]) -> list[Row]:
    return turns.messages([{"role": row["role"], "content": row["text"]} for row in rows])


def conversation(row: Row) -> Row:
    """The best answer, or the only one."""
    prompt, answer = _messages(row["said"]), _messages(row["answers"][:1])
    return {
        "prompt": turns.as_prompt(prompt, "text"),
        "completion": turns.as_answer(answer, "text"),
    }


def preference(row: Row) -> Row:
    """The best answer against the worst; RowFault without two that are ranked apart."""
    ranked = [answer for answer in row["answers"] if answer["rank"] is not None]
    if len(ranked) < 2:
        seen = f"{len(row['answers'])} answers, {len(ranked)} of them ranked"
        raise RowFault("not ranked", seen, "a pair needs two ranked answers")
    if ranked[0]["rank"] == ranked[-1]["rank"]:
        raise RowFault("tie", f"all answers have rank {ranked[0]['rank']}", "drop the row")
    names = ("text", "text of the best", "text of the worst")
    best, worst = _messages(ranked[:1]), _messages(ranked[-1:])
    return turns.split_pair(_messages(row["said"]), best, worst, names)


def _sources(id: str, messages: str) -> tuple[Source, Source]:
    def one(kind: str, row, note: str) -> Source:
        return Source(
            id=id,
            kind=kind,
            licence="apache-2.0",
            rows=f"{messages} messages",
            note=note,
            columns=_COLUMNS,
            row=row,
            heldout="validation",
            gather=questions,
        )

    return (
        one("prompt-completion", conversation, "written by people in 35 languages; best answers"),
        one("preference", preference, "the best ranked answer against the worst"),
    )


SOURCES = (
    *_sources("OpenAssistant/oasst1", "84,437 + 4,401"),
    *_sources("OpenAssistant/oasst2", "128,575 + 6,599"),
)
