"""Tiny repositories in the schemas of the real ones, with the faults that the real ones have."""

import gzip
import io
import json
from typing import Any

import yaml

Row = dict[str, Any]


def parquet(rows: list[Row], schema: Any = None, group: int = 50) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=group)
    return file.getvalue()


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def card(**configs: dict[str, str]) -> bytes:
    """A README whose YAML names the files of each configuration's splits."""
    listed = [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": path} for split, path in files.items()],
        }
        for name, files in configs.items()
    ]
    return f"---\n{yaml.safe_dump({'configs': listed})}---\n# a card\n".encode()


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def alpaca(n: int = 120) -> dict[str, bytes]:
    """Rows 0-4: no input, an input, "<noinput>", an empty output, row 0 again."""
    rows = [
        {"instruction": f"Name thing {i}.", "input": "", "output": f"Thing {i}."} for i in range(n)
    ]
    rows[1] |= {"input": "Birds:\nwren, owl"}
    rows[2] |= {"input": "<noinput>"}
    rows[3] |= {"output": ""}
    rows[4] = dict(rows[0])
    for row in rows:
        row["text"] = f"Below is an instruction.\n\n{row['instruction']}\n\n{row['output']}"
    return {"data/train-00000-of-00001-a09b74b3ef9c3b56.parquet": parquet(rows)}


def transcript(*said: str) -> str:
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[i % 2]}: {text}" for i, text in enumerate(said))


def hh(n: int = 60) -> dict[str, bytes]:
    """Rows of train: 0 of three turns, 1 the same twice, 2 an empty answer, 3 no transcript."""

    def rows(folder: str, first: int, count: int) -> list[Row]:
        return [
            {
                "chosen": transcript(f"{folder}: how do I do {i}?", f"yes like {i}"),
                "rejected": transcript(f"{folder}: how do I do {i}?", "no"),
            }
            for i in range(first, first + count)
        ]

    files = {}
    for folder in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled"):
        made = rows(folder, 0, n)
        start = "May I ask?", "Yes.", f"{folder}: what is 5?"
        made[0] = {"chosen": transcript(*start, "Five."), "rejected": transcript(*start, "No.")}
        made[1] |= {"rejected": made[1]["chosen"]}
        made[2] |= {"rejected": made[2]["chosen"].replace("yes like 2", "")}
        made[3] = {"chosen": "no transcript", "rejected": "neither"}
        files[f"{folder}/train.jsonl.gz"] = gz(jsonl(made))
        files[f"{folder}/test.jsonl.gz"] = gz(jsonl(rows(folder, n - 2, 20)))  # 2 are in train too
    files["red-team-attempts/red_team_attempts.jsonl.gz"] = gz(
        jsonl([{"transcript": "…", "rating": 4.0, "tags": None}])
    )
    files["README.md"] = b"---\nlicense: mit\n---\n"
    return files


def ultrachat(n: int = 150) -> dict[str, bytes]:
    """Row 0 has one turn, row 1 four, row 2 ends with the user, row 3 is empty."""

    def rows(split: str) -> list[Row]:
        made = []
        for i in range(n):
            said = [user(f"{split} {i}?"), assistant(f"Yes, {i}.")]
            if i == 1:
                said += [user("Sure?"), assistant("Quite.")]
            if i == 2:
                said += [user("And now?")]
            made.append({"prompt": f"{split} {i}?", "prompt_id": f"{i:04x}", "messages": said})
        made[3]["messages"] = []
        return made

    files = {}
    for split in ("train_sft", "test_sft", "train_gen", "test_gen"):
        for shard in range(2 if split.startswith("train") else 1):
            name = f"data/{split}-{shard:05d}-of-00002-f7dfac4afe5b93f4.parquet"
            files[name] = parquet(rows(f"{split} {shard}"))
    globs = {s: f"data/{s}-*" for s in ("train_sft", "test_sft", "train_gen", "test_gen")}
    return {"README.md": card(default=globs), **files}


def ultrafeedback(n: int = 120) -> dict[str, bytes]:
    """Rows 0-3: a tie, the same answer twice, two prompts that differ, the prompt of row 5."""

    def rows(split: str) -> list[Row]:
        made = []
        for i in range(n):
            asked = user(f"{split} {i}?")
            made.append(
                {
                    "prompt": asked["content"],
                    "prompt_id": f"{i:04x}",
                    "chosen": [asked, assistant(f"yes {i}")],
                    "rejected": [asked, assistant("no")],
                    "messages": [asked, assistant(f"yes {i}")],
                    "score_chosen": 8.0,
                    "score_rejected": 4.5,
                }
            )
        made[0] |= {"score_rejected": 8.0}
        made[1] |= {"rejected": made[1]["chosen"]}
        made[2] |= {"rejected": [user("something else"), assistant("no")]}
        made[3] |= {"chosen": made[5]["chosen"], "rejected": made[5]["rejected"]}
        return made

    splits = [f"{part}_{use}" for use in ("prefs", "sft", "gen") for part in ("train", "test")]
    files = {f"data/{s}-00000-of-00001.parquet": parquet(rows(s)) for s in splits}
    return {"README.md": card(default={s: f"data/{s}-*" for s in splits}), **files}


def noise(length: int, seed: int) -> str:
    """Text that does not compress away."""
    import random

    return random.Random(seed).randbytes(length // 2).hex()
