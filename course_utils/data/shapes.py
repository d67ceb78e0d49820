"""The four shapes of data, TRL's own, and a validator that names the first fault.

| kind              | columns                  | trains                |
|-------------------|--------------------------|-----------------------|
| prompt-only       | prompt                   | PPO, GRPO, RLOO       |
| prompt-completion | prompt, completion       | SFT                   |
| preference        | prompt, chosen, rejected | reward model, DPO     |
| unpaired          | prompt, completion, label| KTO                   |

Each is *standard* (every cell a string) or *conversational* (a list of {role, content} messages).
Further columns are allowed. Source: TRL, docs/source/dataset_formats.md.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.data.report import RowFault, shorten
from course_utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

KINDS: dict[str, tuple[str, ...]] = {
    "prompt-only": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
}
ROLES = ("system", "user", "assistant")
Message = dict[str, str]  # {"role": ..., "content": ...}

_BATCH = 64  # rows in memory at a time
_EMPTY = "fill it in or drop the row"


@dataclass(frozen=True)
class Shape:
    """What a dataset is: its kind, and whether its cells are message lists."""

    kind: str
    conversational: bool


def detect(dataset: "Dataset") -> Shape:
    """The shape of a dataset, from its columns and its first row.

    Raises:
        DataError: the columns belong to none of the four shapes.
    """
    _require_dataset(dataset, "the dataset")
    columns = set(dataset.column_names)
    # The longest match wins: {prompt, completion, label} is unpaired, not prompt-completion.
    for kind in sorted(KINDS, key=lambda k: -len(KINDS[k])):
        if columns.issuperset(KINDS[kind]):
            return Shape(kind, _is_conversational(dataset))
    shapes = "; ".join(f"{kind} {{{', '.join(names)}}}" for kind, names in KINDS.items())
    raise DataError(
        f"no known shape has the columns {_listed(dataset.column_names)}; rename them to one of: "
        f"{shapes}"
    )


def validate(dataset: "Dataset", kind: str, source: str) -> None:
    """Checks every row, in bounded memory, and raises on the first fault.

    Args:
        dataset: a `datasets.Dataset`; standard or conversational, further columns are fine.
        kind: one of KINDS.
        source: the name of the dataset in messages: a file, a Hub id, "the world's demonstrations".

    Raises:
        DataError: names source, 1-based row, column, what was seen and the fix.
    """
    _require_dataset(dataset, source)
    names = KINDS.get(kind)
    if names is None:
        raise DataError(f'unknown kind of data "{kind}"; use one of {_listed(KINDS)}')
    for name in names:
        if name not in dataset.column_names:
            fault = missing_column(name, dataset.column_names)
            raise DataError(f"{source}: {fault}")
    if len(dataset) == 0:
        raise DataError(f"{source}: the dataset has no rows; give it at least one")
    conversational = _is_conversational(dataset)
    for number, row in enumerate(_rows(dataset, names), 1):
        try:
            check_row(row, kind, conversational)
        except RowFault as fault:
            raise fault.at(f"{source} row {number}") from None


def check_row(row: dict[str, Any], kind: str, conversational: bool) -> None:
    """Raises RowFault when one row does not fit its kind."""
    for name in KINDS[kind]:
        if name == "label":
            if not isinstance(row[name], bool):
                seen = f'column "label" is {describe(row[name])}, not true or false'
                raise RowFault("wrong type", seen, "true: a good completion, false: a bad one")
        elif conversational:
            check_messages(row[name], name)
        else:
            check_text(row[name], name)
    if kind == "preference" and same(row["chosen"], row["rejected"]):
        raise RowFault(
            "chosen = rejected",
            f'"chosen" equals "rejected" ({describe(row["chosen"])})',
            "a pair without a difference teaches nothing: drop the row",
        )


def check_text(value: Any, column: str) -> None:
    """Raises RowFault unless `value` is a string with something in it."""
    if value is None:
        raise RowFault("empty value", f'column "{column}" has no value', _EMPTY)
    if not isinstance(value, str):
        raise RowFault(
            "wrong type",
            f'column "{column}" is {describe(value)}, not text',
            "write it as a string",
        )
    if not value.strip():
        raise RowFault("empty value", f'column "{column}" is empty', _EMPTY)


def check_messages(value: Any, column: str) -> None:
    """Raises RowFault unless `value` is a good message list for its column.

    A prompt is [system,] user [, assistant, user ...]: it ends with a user turn. Every other column
    is an answer: assistant [, user, assistant ...].
    """
    if value is None or value == []:
        raise RowFault("empty value", f'column "{column}" has no messages', _EMPTY)
    if not isinstance(value, list):
        fix = "write it as [{role, content}, ...], like the other rows"
        raise RowFault("wrong type", f'column "{column}" is {describe(value)}, not messages', fix)
    expected = ("system", "user") if column == "prompt" else ("assistant",)
    for turn, message in enumerate(value, 1):
        place = f'column "{column}", turn {turn}'
        _check_message(message, place)
        role = message["role"]
        if role not in expected:
            raise RowFault(
                "turn order",
                f'{place} is from "{role}" where "{expected[-1]}" must speak',
                "a prompt runs [system,] user, assistant, user; an answer starts with assistant; "
                "turns alternate",
            )
        expected = ("assistant",) if role == "user" else ("user",)
    last = "user" if column == "prompt" else "assistant"
    if value[-1]["role"] != last:
        raise RowFault(
            "turn order",
            f'column "{column}" ends with "{value[-1]["role"]}"',
            f'end it with "{last}"',
        )


def _check_message(message: Any, place: str) -> None:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        fix = 'write each turn as {"role": "user", "content": "..."}'
        raise RowFault(
            "wrong type", f"{place} is {describe(message)} without role and content", fix
        )
    if message["role"] not in ROLES:
        seen = f"{place} has the role {message['role']!r}"
        raise RowFault("unknown role", seen, 'use "system", "user" or "assistant"')
    content = message["content"]
    if content is not None and not isinstance(content, str):
        seen = f"{place} has {describe(content)} as content, not text"
        raise RowFault("wrong type", seen, "write the content as one string")
    if not content or not content.strip():
        raise RowFault("empty value", f"{place} is empty", _EMPTY)


def same(a: Any, b: Any) -> bool:
    """Whether two cells say the same; spaces around a text do not count."""
    if isinstance(a, str) and isinstance(b, str):
        return a.strip() == b.strip()
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return all(
            x["role"] == y["role"] and x["content"].strip() == y["content"].strip()
            for x, y in zip(a, b, strict=True)
        )
    return False


def missing_column(name: str, columns: Sequence[str], aliases: Sequence[str] = ()) -> RowFault:
    """The fault of a table without the column `name`; suggests a column spelt nearly so."""
    candidates = [name, *aliases]
    near = [c for c in columns if difflib.get_close_matches(c.strip().lower(), candidates, 1, 0.7)]
    found = f"it has {_listed(columns)}" if columns else "it has no columns"
    if near:
        fix = f'did you mean "{near[0]}"? rename it to "{name}"'
    else:
        fix = f'add a column "{name}"'
        if aliases:
            fix += f" (or one of {_listed(aliases)})"
    return RowFault("missing column", f'no column "{name}"; {found}', fix)


def describe(value: Any) -> str:
    """A short description of a value for a message: its type and its beginning."""
    if value is None:
        return "nothing"
    if isinstance(value, bool | int | float):
        return f"the {'truth value' if isinstance(value, bool) else 'number'} {value}"
    if isinstance(value, str):
        return f'the text "{shorten(value, 40)}"'
    if isinstance(value, bytes):
        return "binary data"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {_listed(value)}" if value else "an empty object"
    return f"of type {type(value).__name__}"


def features(kind: str) -> "Features":
    """The conversational schema of a kind of data."""
    from datasets import Features, Value

    messages = [{"role": Value("string"), "content": Value("string")}]
    return Features({n: Value("bool") if n == "label" else messages for n in KINDS[kind]})


def to_conversational(dataset: "Dataset") -> "Dataset":
    """Standard -> conversational: a prompt becomes a user turn, every answer an assistant turn.

    Further columns are kept. A conversational dataset is returned as it is.
    """
    shape = detect(dataset)
    if shape.conversational:
        return dataset
    schema = dataset.features.copy()
    schema.update({k: v for k, v in features(shape.kind).items() if k != "label"})
    names = _text_columns(shape.kind)
    return dataset.map(_wrap, fn_kwargs={"names": names}, features=schema, writer_batch_size=_BATCH)


def to_standard(dataset: "Dataset") -> "Dataset":
    """Conversational -> standard, for prompts of one user turn and answers of one assistant turn.

    Raises:
        DataError: a row has a system message or several turns, which one string cannot hold.
    """
    from datasets import Value

    shape = detect(dataset)
    if not shape.conversational:
        return dataset
    names = _text_columns(shape.kind)
    for number, row in enumerate(_rows(dataset, names), 1):
        for name in names:
            role = "user" if name == "prompt" else "assistant"
            if not isinstance(row[name], list) or [m["role"] for m in row[name]] != [role]:
                raise DataError(
                    f'row {number}: column "{name}" is not one single {role} turn, so it does not '
                    "fit in a string; keep the dataset conversational, or render it with "
                    "tokenizer.apply_chat_template"
                )
    schema = dataset.features.copy()
    schema.update({name: Value("string") for name in names})
    return dataset.map(
        _unwrap, fn_kwargs={"names": names}, features=schema, writer_batch_size=_BATCH
    )


def _text_columns(kind: str) -> list[str]:
    return [name for name in KINDS[kind] if name != "label"]


def _wrap(row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    roles = {name: "user" if name == "prompt" else "assistant" for name in names}
    return {name: [{"role": roles[name], "content": row[name]}] for name in names}


def _unwrap(row: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: row[name][0]["content"] for name in names}


def _rows(dataset: "Dataset", names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows as Python values, a few at a time, other columns unread."""
    for batch in dataset.select_columns(list(names)).with_format(None).iter(_BATCH):
        for cells in zip(*(batch[name] for name in names), strict=True):
            yield dict(zip(names, cells, strict=True))


def _is_conversational(dataset: "Dataset") -> bool:
    if len(dataset):
        return isinstance(next(_rows(dataset, ["prompt"]))["prompt"], list)
    return str(dataset.features.arrow_schema.field("prompt").type).startswith(
        ("list", "large_list")
    )


def _require_dataset(dataset: Any, source: str) -> None:
    from datasets import Dataset

    if isinstance(dataset, Dataset):
        return
    if isinstance(dataset, dict):
        raise DataError(f'{source} has splits {_listed(dataset)}; choose one: dataset["train"]')
    fix = "make one with datasets.Dataset.from_list(rows)"
    raise DataError(f"{source} is a {type(dataset).__name__}, not a datasets.Dataset; {fix}")


def _listed(names: Any, limit: int = 12) -> str:
    names = [f'"{shorten(str(n), 40)}"' for n in names]
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
