"""Anthropic's HH-RLHF: two transcripts that part at the last answer.

There is no prompt column: the prompt is what both transcripts begin with. Source: Bai et al. 2022,
"Training a Helpful and Harmless Assistant with RLHF".
"""

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.report import RowFault
from course_utils.data.shapes import check_text

_NAMES = ("prompt", "chosen", "rejected")


def transcripts(row: Row) -> Row:
    """{chosen, rejected}, each "Human: … Assistant: …", -> {prompt, chosen, rejected}."""
    for name in _NAMES[1:]:
        check_text(row[name], name)
        if turns.transcript(row[name]) is None:
            seen = f'column "{name}" is not a "Human: … Assistant: …" transcript'
            raise RowFault("not a transcript", seen, "drop the row")
    return turns.split_pair(None, row["chosen"], row["rejected"], _NAMES)


SOURCES = (
    Source(
        id="Anthropic/hh-rlhf",
        kind="preference",
        licence="mit",
        rows="161k + 8.6k",
        note="rude and harmful text on purpose; config= takes one folder",
        columns=("chosen", "rejected"),
        row=transcripts,
        heldout="test",
        configs=("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"),
        folders=True,
    ),
)
