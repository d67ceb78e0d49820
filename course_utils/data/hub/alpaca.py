"""Instructions with one answer, some about a given text: Alpaca.

Source: Taori et al. 2023, Stanford Alpaca.
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
)
