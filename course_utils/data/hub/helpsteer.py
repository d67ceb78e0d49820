"""HelpSteer: answers with marks, or pairs with a signed preference.

Sources: Wang et al. 2024, "HelpSteer2"; Wang et al. 2025, "HelpSteer3-Preference".
"""

from collections.abc import Iterable, Iterator

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.report import RowFault
from course_utils.data.shapes import check_text

_NAMES = ("prompt", "chosen", "rejected")


def neighbours(rows: Iterable[Row]) -> Iterator[Row]:
    """HelpSteer2 marks one answer a row; two rows in a row with one prompt are a pair."""
    before: Row | None = None
    for row in rows:
        if before is not None and before["prompt"] == row["prompt"]:
            yield {"prompt": row["prompt"], "answers": [before, row]}
            before = None
        else:
            before = row


def by_helpfulness(row: Row) -> Row:
    """Two answers marked 0 to 4 -> the more helpful one is chosen; equal marks are a tie."""
    first, second = row["answers"]
    marks = first["helpfulness"], second["helpfulness"]
    if None in marks or marks[0] == marks[1]:
        raise RowFault("tie", f"both answers have helpfulness {marks[0]}", "drop the pair")
    better, worse = (first, second) if marks[0] > marks[1] else (second, first)
    check_text(row["prompt"], "prompt")
    if "<extra_id_1>" in row["prompt"]:  # the mark between turns of a longer conversation
        seen = 'several turns in one text, with "<extra_id_1>" between them'
        raise RowFault("several turns", seen, "drop the row")
    return turns.split_pair(row["prompt"], better["response"], worse["response"], _NAMES)


def by_sign(row: Row) -> Row:
    """overall_preference from -3 (response1 much better) to 3 (response2 much better); 0: a tie."""
    preference = row["overall_preference"]
    if not preference:
        raise RowFault("tie", f"overall_preference is {preference}", "drop the row")
    better, worse = ("response1", "response2") if preference < 0 else ("response2", "response1")
    return turns.split_pair(row["context"], row[better], row[worse], ("context", better, worse))


SOURCES = (
    Source(
        id="nvidia/HelpSteer2",
        kind="preference",
        licence="cc-by-4.0",
        rows="20.3k + 1.04k answers",
        note="pairs of answers with different helpfulness, marked by people",
        columns=("prompt", "response", "helpfulness"),
        row=by_helpfulness,
        heldout="validation",
        files={"train": "train.jsonl.gz", "validation": "validation.jsonl.gz"},
        gather=neighbours,
    ),
    Source(
        id="nvidia/HelpSteer3",
        kind="preference",
        licence="cc-by-4.0",
        rows="38,459 + 2k",
        note="general, code, STEM and multilingual; ties dropped",
        columns=("context", "response1", "response2", "overall_preference"),
        row=by_sign,
        heldout="validation",
        files={
            "train": "preference/train.jsonl.gz",
            "validation": "preference/validation.jsonl.gz",
        },
        large=True,
    ),
)
