"""Conversations: the last answer is the completion, what was said before it the prompt.

Sources: Ding et al. 2023 (UltraChat), filtered by the makers of Zephyr (Tunstall et al. 2023);
Allal et al. 2025 (SmolTalk); Lambert et al. 2024 (Tulu 3); ShareGPT as cleaned for Vicuna.
"""

from typing import Any

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source


def chat(row: Row) -> Row:
    """{messages} -> {prompt, completion}; user turns after the last answer are left out."""
    return split(row["messages"], "messages")


def shared(row: Row) -> Row:
    """{conversations: [{from: human | gpt | system, value}]}; long ones were cut into pieces, so
    that some begin with an answer, to a question that is not there: it is left out."""
    said = turns.messages(row["conversations"] or [])
    while said and said[0].get("role") == "assistant":
        said = said[1:]
    return split(said, "conversations")


def split(said: Any, column: str) -> Row:
    while isinstance(said, list) and said and said[-1].get("role") == "user":
        said = said[:-1]
    prompt, completion = turns.split_conversation(said, column)
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
    Source(
        id="HuggingFaceTB/smoltalk",
        kind="prompt-completion",
        licence="apache-2.0",
        rows="1.04M + 55k",
        note="what SmolLM2-Instruct was tuned on; config= takes one part",
        columns=("messages",),
        row=chat,
        heldout="test",
        config="all",
        configs=(
            "all",
            "everyday-conversations",
            "smol-magpie-ultra",
            "smol-constraints",
            "smol-rewrite",
            "smol-summarize",
            "systemchats-30k",
        ),
        large=True,
    ),
    Source(
        id="allenai/tulu-3-sft-mixture",
        kind="prompt-completion",
        licence="odc-by",
        rows="939,343",
        note="a mixture, parts of which are not for commercial use",
        columns=("messages",),
        row=chat,
        large=True,
    ),
    Source(
        id="anon8231489123/ShareGPT_Vicuna_unfiltered",
        kind="prompt-completion",
        licence="apache-2.0 (as tagged)",
        rows="about 53k",
        note="users' chats with ChatGPT; one JSON file of 673 MB, downloaded whole",
        columns=("conversations",),
        row=shared,
        files={"train": "ShareGPT_V3_unfiltered_cleaned_split.json"},
    ),
)
