"""Conversations: the last answer is the completion, what was said before it the prompt.

Sources: Ding et al. 2023 (UltraChat), filtered by the makers of Zephyr (Tunstall et al. 2023).
"""

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source


def chat(row: Row) -> Row:
    """{messages} -> {prompt, completion}; user turns after the last answer are left out."""
    said = row["messages"]
    while isinstance(said, list) and said and said[-1].get("role") == "user":
        said = said[:-1]
    prompt, completion = turns.split_conversation(said, "messages")
    return {"prompt": prompt, "completion": completion}


SOURCES = (
    Source(
        id="HuggingFaceH4/ultrachat_200k",
        kind="prompt-completion",
        licence="mit",
        rows="207,865 + 23,110",
        note="several turns; its splits are called train_sft and test_sft",
        columns=("messages",),
        row=chat,
        train="train_sft",
        heldout="test_sft",
        large=True,
    ),
)
