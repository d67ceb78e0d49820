"""Tiny repositories of the datasets that no tier names, with the faults that the real ones have."""

import json

from .repos import Row, assistant, card, gz, jsonl, parquet, user


def dolly() -> dict[str, bytes]:
    rows = [
        {"instruction": f"Do {i}", "context": "", "response": f"Done {i}", "category": "open_qa"}
        for i in range(60)
    ]
    rows[1] |= {"context": "The text."}
    rows[2] |= {"response": None}
    return {"databricks-dolly-15k.jsonl": jsonl(rows), "README.md": b"---\nlicense: mit\n---\n"}


def message(id: str, parent: str | None, role: str, text: str, **more: object) -> Row:
    return {
        "message_id": id, "parent_id": parent, "user_id": "u", "created_date": "2023-02-05",
        "text": text, "role": role, "lang": "en", "review_count": 3, "review_result": True,
        "deleted": False, "rank": None, "synthetic": False, "model_name": None,
        "detoxify": {"toxicity": 0.1}, "message_tree_id": "t", "tree_state": "ready_for_export",
        "emojis": {"name": ["+1"], "count": [1]}, "labels": None, **more,
    }  # fmt: skip


def oasst() -> dict[str, bytes]:
    """Two trees, their messages mixed: ranked answers and a second turn; a deleted root."""
    train = [
        message("a2", "q1", "assistant", "worse", rank=2),
        message("q1", None, "prompter", "first?"),
        message("q2", "a0", "prompter", "and then?"),
        message("a0", "q1", "assistant", "best", rank=0),
        message("a1", "q1", "assistant", "middling", rank=1),
        message("b0", "q2", "assistant", "only answer", rank=None),
        message("gone", None, "prompter", "deleted?", deleted=True),
        message("q3", "c0", "prompter", "below a deleted one"),
        message("c0", "gone", "assistant", "answer to it", rank=0),
        message("c1", "q3", "assistant", "further down", rank=0),
        message("q4", None, "prompter", "a tie?"),
        message("d0", "q4", "assistant", "this", rank=0),
        message("d1", "q4", "assistant", "that", rank=0),
        message("q5", None, "prompter", "not answered?"),
    ]
    held = [
        message("h", None, "prompter", "held?"),
        message("h0", "h", "assistant", "good", rank=0),
        message("h1", "h", "assistant", "bad", rank=1),
    ]
    names = {"train": "data/train-*", "validation": "data/validation-*"}
    return {
        "README.md": card(default=names),
        "data/train-00000-of-00001.parquet": parquet(train),
        "data/validation-00000-of-00001.parquet": parquet(held),
    }


def sharegpt() -> dict[str, bytes]:
    def said(*turns: str, first: str = "human") -> list[Row]:
        names = ["human", "gpt"] if first == "human" else ["gpt", "human"]
        return [{"from": names[i % 2], "value": text} for i, text in enumerate(turns)]

    rows = [{"id": f"x_{i}", "conversations": said(f"hello {i}", f"hi {i}")} for i in range(80)]
    rows[0]["conversations"] = said("of before", "go on 0", "gone on 0", first="gpt")
    rows[1]["conversations"] = []
    rows[2]["conversations"] = said("answer alone", first="gpt")
    name = "ShareGPT_V3_unfiltered_cleaned_split.json"
    other = [{"id": "y", "conversations": said("wrong", "file")}]
    return {
        name: json.dumps(rows).encode(),
        "HTML_cleaned_raw_dataset/sg_90k_part1.json": json.dumps(other).encode(),
        "optional_clean.whl": b"no data",
    }


def tldr() -> dict[str, bytes]:
    def rows(split: str) -> list[Row]:
        post = "SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: {} {}\n\nTL;DR:"
        return [{"prompt": post.format(split, i), "completion": f" sum {i}"} for i in range(20)]

    return {f"data/{s}-00000-of-00001.parquet": parquet(rows(s)) for s in
            ("train", "validation", "test")}  # fmt: skip


def tldr_preference() -> dict[str, bytes]:
    rows = [
        {"prompt": f"POST: {i // 2}\n\nTL;DR:", "chosen": f" good {i}", "rejected": f" bad {i}"}
        for i in range(20)
    ]
    rows[19] |= {"rejected": " good 19 "}
    return {f"data/{s}-00000-of-00001.parquet": parquet(rows) for s in ("train", "validation")}


def helpsteer2() -> dict[str, bytes]:
    rows = []
    for i in range(12):
        marks = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1}
        rows += [
            {"prompt": f"ask {i}", "response": f"first {i}", "helpfulness": i % 4, **marks},
            {"prompt": f"ask {i}", "response": f"second {i}", "helpfulness": 2, **marks},
        ]
    rows.insert(2, {**rows[0], "prompt": "alone"})
    for row in rows[-2:]:
        row["prompt"] += "\n<extra_id_1>Assistant\nWhat for?\n<extra_id_1>User\nMe."
    other = {"preference/preference.jsonl.gz": gz(jsonl([{"other": 1}]))}
    return {f"{s}.jsonl.gz": gz(jsonl(rows)) for s in ("train", "validation")} | other


def helpsteer3() -> dict[str, bytes]:
    rows = [
        {
            "domain": "general", "language": "english",
            "context": [user(f"ask {i}")], "response1": "one", "response2": "two",
            "overall_preference": i % 7 - 3,
            "individual_preference": [{"score": 1, "reasoning": "r", "feedback1": None}],
        }
        for i in range(14)
    ]  # fmt: skip
    return {f"preference/{s}.jsonl.gz": gz(jsonl(rows)) for s in ("train", "validation")}


def imdb() -> dict[str, bytes]:
    long = "I did not think that this film <br /><br />would be as good as it was, number"
    splits = {"train": (0, 1), "test": (1, 0), "unsupervised": (-1, -1)}
    named = {s: f"plain_text/{s}-*" for s in splits}
    files = {
        f"plain_text/{split}-00000-of-00001.parquet": parquet(
            [{"text": f"{split} {i}: {long} {i}.", "label": labels[i % 2]} for i in range(20)]
        )
        for split, labels in splits.items()
    }
    return {"README.md": card(plain_text=named), **files}


def gsm8k() -> dict[str, bytes]:
    rows = [{"question": f"{i} and 1?", "answer": f"Add.\n#### {i + 1}"} for i in range(9)]
    rows[0] |= {"answer": "Add."}
    names = {s: f"main/{s}-*" for s in ("train", "test")}
    other = {s: f"socratic/{s}-*" for s in ("train", "test")}
    files = {f"{c}/{s}-00000-of-00001.parquet": parquet(rows) for c in ("main", "socratic")
             for s in ("train", "test")}  # fmt: skip
    return {"README.md": card(main=names, socratic=other), **files}


def stories() -> dict[str, bytes]:
    rows = [{"text": f"Once there was cat {i}. It ran. It slept."} for i in range(30)]
    rows[0] = {"text": "One sentence only."}
    rows[1] = {"text": ""}
    return {
        "README.md": card(default={s: f"data/{s}-*" for s in ("train", "validation")}),
        "data/train-00000-of-00004.parquet": parquet(rows),
        "data/validation-00000-of-00001.parquet": parquet(rows),
        "TinyStories_all_data.tar.gz": b"another big file",
    }


def chats(*splits: str, config: str = "default", extra: bool = False) -> dict[str, bytes]:
    """{messages, source}; row 0 has a system message, row 1 nothing from the assistant."""
    files = {}
    for split in splits:
        rows = [
            {"messages": [user(f"{split} {i}?"), assistant(f"yes {i}")], "source": "made"}
            for i in range(120)
        ]
        rows[0]["messages"] = [{"role": "system", "content": "Be kind."}, *rows[0]["messages"]]
        rows[1]["messages"] = rows[1]["messages"][:1]
        folder = "data" if config == "default" else f"data/{config}"
        files[f"{folder}/{split}-00000-of-00001.parquet"] = parquet(rows)
    return {"README.md": card(**{config: {s: f"{folder}/{s}-*" for s in splits}}), **files}


def pairs(*splits: str) -> dict[str, bytes]:
    files = {}
    for split in splits:
        rows = [
            {
                "id": str(i),
                "prompt": f"{split} {i}?",
                "chosen": [user(f"{split} {i}?"), assistant("yes")],
                "rejected": [user(f"{split} {i}?"), assistant("no")],
                "score_chosen": 5.0,
                "score_rejected": 1.0,
            }
            for i in range(40)
        ]
        files[f"data/{split}-00000-of-00001.parquet"] = parquet(rows)
    return {"README.md": card(default={s: f"data/{s}-*" for s in splits}), **files}
