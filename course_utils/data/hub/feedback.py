"""Preferences whose answers are whole conversations, the prompt inside them.

Sources: Cui et al. 2023 (UltraFeedback), binarized by the makers of Zephyr (Tunstall et al. 2023)
and again for TRL; Lambert et al. 2024 (Tulu 3).
"""

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.report import RowFault

_NAMES = ("prompt", "chosen", "rejected")


def pair(row: Row) -> Row:
    """{chosen, rejected} with the prompt in both -> {prompt, chosen, rejected}.

    A `prompt` column beside them repeats the first turn, and both would put the question twice:
    the messages are what is read. Equal scores say that nobody preferred anything.
    """
    scores = row.get("score_chosen"), row.get("score_rejected")
    if None not in scores and scores[0] == scores[1]:
        seen = f'"score_chosen" and "score_rejected" are both {scores[0]}'
        raise RowFault("tie", seen, "no answer is the better one: drop the row")
    return turns.split_pair(None, row["chosen"], row["rejected"], _NAMES)


SOURCES = (
    Source(
        id="HuggingFaceH4/ultrafeedback_binarized",
        kind="preference",
        licence="mit",
        rows="61.1k + 2k",
        note="judged by GPT-4; its splits are called train_prefs and test_prefs",
        columns=("chosen", "rejected", "score_chosen", "score_rejected"),
        row=pair,
        train="train_prefs",
        heldout="test_prefs",
        large=True,
    ),
    Source(
        id="trl-lib/ultrafeedback_binarized",
        kind="preference",
        licence="none stated",
        rows="62.1k + 1k",
        note="the same in TRL's implicit shape, without a prompt column",
        columns=("chosen", "rejected", "score_chosen", "score_rejected"),
        row=pair,
        heldout="test",
        large=True,
    ),
    Source(
        id="allenai/llama-3.1-tulu-3-8b-preference-mixture",
        kind="preference",
        licence="odc-by",
        rows="271,409",
        note="a mixture, parts of which are not for commercial use",
        columns=("chosen", "rejected"),
        row=pair,
        large=True,
    ),
)
