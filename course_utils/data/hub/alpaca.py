"""Instructions with one answer, some about a given text: Alpaca and Dolly.

Sources: Taori et al. 2023, Stanford Alpaca; Conover et al. 2023, Free Dolly.
"""

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.shapes import check_text

_NO_INPUT = ("", "<noinput>", "noinput", "no input", "n/a")  # as Alpaca's generator wrote "none"


def instruction(row: Row, about: str, answer: str) -> Row:
    """{instruction, the text it is about, its answer} -> {prompt, completion}."""
    asked, context = row["instruction"], row[about]
    check_text(asked, "instruction")
    if isinstance(context, str) and context.strip().lower() not in _NO_INPUT:
        asked = f"{asked.strip()}\n\n{context.strip()}"
    return {
        "prompt": turns.as_prompt(asked, "instruction"),
        "completion": turns.as_answer(row[answer], answer),
    }


def alpaca(row: Row) -> Row:
    """{instruction, input, output, text}; `text` repeats the others in a template: unread."""
    return instruction(row, "input", "output")


def dolly(row: Row) -> Row:
    """{instruction, context, response, category}; the context is "" in most rows."""
    return instruction(row, "context", "response")


SOURCES = (
    Source(
        id="tatsu-lab/alpaca",
        kind="prompt-completion",
        licence="cc-by-nc-4.0",
        rows="52,002",
        note="written by text-davinci-003; some answers are wrong or empty",
        columns=("instruction", "input", "output"),
        row=alpaca,
    ),
    Source(
        id="databricks/databricks-dolly-15k",
        kind="prompt-completion",
        licence="cc-by-sa-3.0",
        rows="15,011",
        note="written by people; the text asked about is joined to the instruction",
        columns=("instruction", "context", "response"),
        row=dolly,
    ),
)
