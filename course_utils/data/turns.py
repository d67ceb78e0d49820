"""From the many ways people write a row to one: conversational messages.

Pure functions on one row's cells; each raises RowFault when the row cannot be read.
"""

import json
import re
from typing import Any

from course_utils.data.report import RowFault
from course_utils.data.shapes import Message, check_messages, check_text, describe, same

# The names other formats give to the three roles (ShareGPT: human/gpt, OpenAssistant: prompter).
ROLE_ALIASES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):\s?")  # HH-RLHF transcripts


def messages(value: list[Any]) -> list[Message]:
    """{role, content} or ShareGPT's {from, value} -> {role, content}, with our three role names.

    What is not such a message is passed on: check_messages names it.
    """
    return [_message(m) for m in value]


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    if "role" not in message and "from" in message and "value" in message:
        message = {"role": message["from"], "content": message["value"]}
    if "role" not in message or "content" not in message:
        return message
    role = message["role"]
    if isinstance(role, str):
        role = ROLE_ALIASES.get(role.strip().lower(), role.strip().lower())
    return {"role": role, "content": message["content"]}


def cell(value: Any, column: str) -> Any:
    """A cell as text or as messages; a CSV cell may hold messages as JSON."""
    if isinstance(value, list):
        return messages(value)
    if isinstance(value, str) and re.match(r"\s*\[\s*\{", value):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            if re.search(r"'(role|from)'\s*:", value[:1000]):
                seen = f'column "{column}" holds messages as Python prints them, which is not JSON'
                fix = "save the messages with json.dumps, or the file as JSONL"
                raise RowFault("invalid JSON", seen, fix) from None
            return value
        if all(isinstance(m, dict) and ("role" in m or "from" in m) for m in parsed):
            return messages(parsed)
    return value


def user_turn(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def assistant_turn(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def as_prompt(value: Any, column: str) -> list[Message]:
    """A text or message cell -> a prompt that ends with a user turn."""
    value = cell(value, column)
    if not isinstance(value, list):
        check_text(value, column)
        return user_turn(value)
    _check(value, "prompt", column)
    return value


def as_answer(value: Any, column: str) -> list[Message]:
    """A text or message cell -> an answer that starts with an assistant turn."""
    value = cell(value, column)
    if not isinstance(value, list):
        check_text(value, column)
        return assistant_turn(value)
    _check(value, "completion", column)
    return value


def _check(value: list[Message], part: str, column: str) -> None:
    """check_messages by the rules of `part`, with the user's column name in the message."""
    try:
        check_messages(value, part)
    except RowFault as fault:
        seen = fault.seen.replace(f'"{part}"', f'"{column}"', 1)
        raise RowFault(fault.reason, seen, fault.fix) from None


def prompt_of(conversation: Any, column: str) -> list[Message]:
    """The part of a whole conversation up to its last user turn."""
    turns = _conversation(conversation, column)
    while turns and _role(turns[-1]) == "assistant":
        turns = turns[:-1]
    return as_prompt(turns, column)


def split_conversation(conversation: Any, column: str) -> tuple[list[Message], list[Message]]:
    """A whole conversation -> (prompt, last assistant turn)."""
    turns = _conversation(conversation, column)
    if _role(turns[-1]) != "assistant":
        seen = f'column "{column}" does not end with an assistant turn'
        raise RowFault("turn order", seen, "add the answer, or drop the row")
    return as_prompt(turns[:-1], column), as_answer(turns[-1:], column)


def _conversation(value: Any, column: str) -> list[Any]:
    value = cell(value, column)
    if not isinstance(value, list) and value is not None:
        seen = f'column "{column}" is {describe(value)}, not a list of messages'
        raise RowFault("wrong type", seen, 'write it as [{"role": "user", "content": "..."}, ...]')
    if not value:
        raise RowFault("empty value", f'column "{column}" has no messages', "drop the row")
    return value


def split_pair(
    prompt: Any, chosen: Any, rejected: Any, names: tuple[str, str, str]
) -> dict[str, Any]:
    """One preference, explicit or implicit -> {prompt, chosen, rejected} as messages.

    Explicit: the answers stand alone beside a prompt. Implicit: both answers begin with the prompt,
    as messages (UltraFeedback, Tulu) or as a "Human: ... Assistant: ..." transcript (HH-RLHF); then
    the prompt is their common beginning, and a prompt column, if any, must agree with it.

    Args:
        prompt: text, messages or None (no such column).
        chosen, rejected: texts or messages.
        names: the columns of the three, for messages.
    """
    chosen, rejected = _answers(cell(chosen, names[1]), cell(rejected, names[2]), prompt, names)
    implicit = isinstance(chosen, list) and bool(chosen) and _role(chosen[0]) != "assistant"
    if not implicit:
        if prompt is None:
            seen = 'there is no prompt, neither as a column nor before "chosen" and "rejected"'
            raise RowFault("missing prompt", seen, 'add a column "prompt"')
        row = {
            "prompt": as_prompt(prompt, names[0]),
            "chosen": as_answer(chosen, names[1]),
            "rejected": as_answer(rejected, names[2]),
        }
    else:
        row = _split_common(chosen, rejected, names)
        if prompt is not None and not _agrees(cell(prompt, names[0]), row["prompt"]):
            seen = f'column "{names[0]}" differs from the prompt that "{names[1]}" begins with'
            raise RowFault(
                "prompt mismatch", seen, "correct one of them, or drop the prompt column"
            )
    if same(row["chosen"], row["rejected"]):
        raise RowFault(
            "chosen = rejected",
            f'"{names[1]}" equals "{names[2]}" ({describe(row["chosen"][-1]["content"])})',
            "a pair without a difference teaches nothing: drop the row",
        )
    return row


def _answers(
    chosen: Any, rejected: Any, prompt: Any, names: tuple[str, str, str]
) -> tuple[Any, Any]:
    """Both answers as texts or both as messages; transcripts without a prompt become messages."""
    if isinstance(chosen, str) and isinstance(rejected, str) and prompt is None:
        parsed = transcript(chosen), transcript(rejected)
        return parsed if all(parsed) else (chosen, rejected)
    if isinstance(chosen, list) != isinstance(rejected, list) and None not in (chosen, rejected):
        seen = f'"{names[1]}" is {describe(chosen)} and "{names[2]}" is {describe(rejected)}'
        raise RowFault("wrong type", seen, "write both as text or both as messages")
    return chosen, rejected


def _split_common(
    chosen: list[Any], rejected: list[Any], names: tuple[str, str, str]
) -> dict[str, Any]:
    """Cuts two conversations after the last user turn of their common beginning."""
    _check_whole(chosen, names[1])
    _check_whole(rejected, names[2])
    common = 0
    while common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
        common += 1
    while common and chosen[common - 1]["role"] != "user":
        common -= 1
    if not common:
        seen = f'"{names[1]}" and "{names[2]}" do not begin with the same prompt'
        raise RowFault("prompt mismatch", seen, "both must answer the same prompt")
    return {"prompt": chosen[:common], "chosen": chosen[common:], "rejected": rejected[common:]}


def _check_whole(turns: list[Any], column: str) -> None:
    split_at = max((i for i, m in enumerate(turns) if _role(m) == "assistant"), default=len(turns))
    _check(turns[:split_at], "prompt", column)
    _check(turns[split_at:], "completion", column)


def _agrees(given: Any, prompt: list[Message]) -> bool:
    """Whether the prompt column is the common beginning: all of it, or one user turn's text."""
    if isinstance(given, list):
        return same(given, prompt[-len(given) :]) if given else True
    if not isinstance(given, str):
        return False
    said = [m["content"].strip() for m in prompt if m["role"] == "user"]
    return not given.strip() or given.strip() in said


def transcript(text: str) -> list[Message] | None:
    """ "Human: ... Assistant: ..." as in HH-RLHF -> messages; None when it is not such a text."""
    pieces = _SPEAKER.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": roles[speaker], "content": said.strip()} for speaker, said in pairs]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None
