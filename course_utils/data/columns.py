"""Which of a file's columns gives what, and one raw row -> one conversational row."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from course_utils.data import turns
from course_utils.data.report import LoadReport, RowFault
from course_utils.data.shapes import KINDS, Message, check_text, describe, missing_column

# What users call the columns. The first name is ours; of several, the first in this order is taken.
ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction", "question", "query", "input", "user", "text"),
    "context": ("context", "input"),  # joined to an instruction or question (Alpaca, Dolly)
    "system": ("system", "system_prompt"),
    "messages": ("messages", "conversations", "conversation"),
    "completion": ("completion", "response", "answer", "output", "assistant", "reply"),
    "chosen": ("chosen", "preferred", "accepted", "better"),
    "rejected": ("rejected", "dispreferred", "worse"),
    "label": ("label",),
}
_JOINED = ("instruction", "question")  # prompt columns that may have a context beside them
_LABELS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Plan:
    """The file's name of each column we read; None: it has no such column, or we need none."""

    prompt: str | None = None
    context: str | None = None
    system: str | None = None
    messages: str | None = None
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    label: str | None = None

    def names(self) -> set[str]:
        return {name for name in astuple(self) if name is not None}


def find_columns(columns: Sequence[str], kind: str) -> Plan:
    """The columns a kind of data is read from.

    Raises:
        RowFault: a column is missing; names the ones found and suggests the nearest.
    """
    by_name = {name.strip().lower(): name for name in reversed(columns)}

    def find(part: str, taken: Iterable[str | None] = ()) -> str | None:
        names = (by_name[alias] for alias in ALIASES[part] if alias in by_name)
        return next((name for name in names if name not in taken), None)

    found = {part: find(part) for part in KINDS[kind]}
    apart = found["prompt"] and ("completion" not in found or found["completion"])
    if kind != "preference" and find("messages") and not apart:
        found |= {"prompt": None, "completion": None, "messages": find("messages")}
        needed = [part for part in KINDS[kind] if part == "label"]
    else:
        # A preference may lack the prompt: it is then what both answers begin with.
        needed = [part for part in KINDS[kind] if (kind, part) != ("preference", "prompt")]
    for part in needed:
        if found[part] is None:
            raise missing_column(part, columns, ALIASES[part][1:])
    if prompt := found["prompt"]:
        found["system"] = find("system")
        if prompt.strip().lower() in _JOINED:
            found["context"] = find("context", found.values())
    return Plan(**found)


class Planner:
    """Finds the columns once for each set of names that occurs, and tells the user of aliases."""

    def __init__(self, report: LoadReport) -> None:
        self.kind, self._report = report.kind, report
        self._plans: dict[tuple[str, ...], Plan] = {}
        self.columns: tuple[str, ...] | None = None  # of the whole table, for messages

    def plan(self, columns: Iterable[str]) -> Plan:
        key = tuple(columns)
        if key not in self._plans:
            if len(self._plans) >= 100:  # every row has other keys: keep memory bounded
                self._plans.clear()
            self._plans[key] = plan = find_columns(key, self.kind)
            for part, name in vars(plan).items():
                if part == "messages" and name:
                    self._report.notice(f'column "{name}" split into prompt and last answer')
                elif part == "context" and name:
                    self._report.notice(f'column "{name}" joined to the prompt')
                elif name not in (None, part):
                    self._report.notice(f'column "{name}" read as "{part}"')
        return self._plans[key]

    def row(self, value: Any) -> dict[str, Any]:
        """One raw row -> {prompt, ...} with message lists, in the columns of the kind.

        Raises:
            RowFault: the row cannot be used.
        """
        if isinstance(value, RowFault):
            raise value
        if isinstance(value, str) and self.kind == "prompt-only":
            value = {"prompt": value}
        if not isinstance(value, dict):
            seen = f"the row is {describe(value)}, not an object with named columns"
            raise RowFault("wrong type", seen, 'write each row as {"prompt": "...", ...}')
        if all(
            v is None or v == [] or (isinstance(v, str) and not v.strip()) for v in value.values()
        ):
            raise RowFault("empty row", "the row is empty", "remove it")
        plan = self.plan(value)
        if self.kind == "preference":
            return self._preference(value, plan)
        if plan.messages:
            conversation = value.get(plan.messages)
            if self.kind == "prompt-only":
                return {"prompt": turns.prompt_of(conversation, plan.messages)}
            prompt, completion = turns.split_conversation(conversation, plan.messages)
            made: dict[str, Any] = {"prompt": prompt, "completion": completion}
        else:
            assert plan.prompt is not None
            prompt = turns.as_prompt(_prompt_cell(value, plan), plan.prompt)
            made = {"prompt": _with_system(prompt, value, plan)}
            if plan.completion:
                made["completion"] = turns.as_answer(value.get(plan.completion), plan.completion)
        if plan.label:
            made["label"] = _label(value.get(plan.label), plan.label)
        return made

    def _preference(self, value: dict[str, Any], plan: Plan) -> dict[str, Any]:
        names = (plan.prompt or "prompt", plan.chosen or "chosen", plan.rejected or "rejected")
        prompt = _prompt_cell(value, plan) if plan.prompt else None
        if plan.prompt and (prompt is None or prompt == ""):
            check_text(prompt, plan.prompt)
        try:
            made = turns.split_pair(prompt, value.get(names[1]), value.get(names[2]), names)
        except RowFault as fault:
            if fault.reason != "missing prompt":
                raise
            columns = self.columns or tuple(value)
            raise missing_column("prompt", columns, ALIASES["prompt"][1:]) from None
        return {**made, "prompt": _with_system(made["prompt"], value, plan)}


def _prompt_cell(value: dict[str, Any], plan: Plan) -> Any:
    """The prompt's cell, with the context below it where there is one."""
    prompt = value.get(plan.prompt or "")
    context = value.get(plan.context) if plan.context else None
    if isinstance(prompt, str) and prompt.strip() and isinstance(context, str) and context.strip():
        return f"{prompt}\n\n{context}"
    return prompt


def _with_system(prompt: list[Message], value: dict[str, Any], plan: Plan) -> list[Message]:
    system = value.get(plan.system) if plan.system else None
    if not isinstance(system, str) or not system.strip() or prompt[0]["role"] == "system":
        return prompt
    return [{"role": "system", "content": system}, *prompt]


def _label(value: Any, column: str) -> bool:
    label = _LABELS.get(str(value).strip().lower())
    if label is None:
        seen = f'column "{column}" is {describe(value)}, not true or false'
        raise RowFault("wrong type", seen, "true: a good completion, false: a bad one")
    return label
