"""Set 02: which tokens of a conversation are the assistant's.

    completion_mask(ids, headers, end) -> list of 0 and 1, as long as ids

`headers`: role -> id of the token that opens its turns. A turn goes on to its `end` (which counts
with it) or to the next header. What stands before the first header or after an end belongs to
nobody.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, show
from course_utils.grading.tasks.set_02._inputs import bits


@dataclass(frozen=True)
class Token:
    """One token of a drawn conversation, and what it is there for."""

    id: int
    kind: str  # "header", "word", "end", or "gap": between an end and the next header
    role: str
    turn: int
    number: int = 0  # of its turn among the assistant's turns, from 1


@dataclass(frozen=True)
class Chat:
    tokens: list[Token]
    headers: dict[str, int]
    end: int
    words: list[int]  # ids that are neither headers nor end

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


# role, ends with `end`, words follow the end: what a conversation has in any round
_SCRIPT = (
    ("system", False, False),
    ("user", True, False),
    ("assistant", True, True),
    ("user", False, False),
    ("assistant", False, False),
    ("tool", True, True),
    ("assistant", True, False),
)


def _chat(seed: int, size: int) -> Chat:
    """A conversation of four roles and, with the size, more and longer turns."""
    draw = random.Random(seed * 1009 + size)
    ids = draw.sample(range(200), 60)
    headers = dict(zip(("system", "user", "assistant", "tool"), ids[:4], strict=True))
    end, words = ids[4], ids[5:]
    tokens: list[Token] = []
    more = [("user", bool(n % 2), False) if n % 2 else ("assistant", True, True)
            for n in range(1, 1 + 2 * (size // 2))]  # fmt: skip
    answers = 0
    for turn, (role, ended, gap) in enumerate((*_SCRIPT, *more)):
        answers += role == "assistant"
        number = answers if role == "assistant" else 0

        def put(kind: str, token: int, role: str = role, turn: int = turn, n: int = number) -> None:
            tokens.append(Token(token, kind, role, turn, n))

        put("header", headers[role])
        for _ in range(draw.randint(2, 3 + size // 2)):
            put("word", draw.choice(words))
        if ended:
            put("end", end)
        for _ in range(draw.randint(1, 2) if gap else 0):
            put("gap", draw.choice(words))
    return Chat(tokens, headers, end, words)


def _mask(tokens: Iterable[Token], counts: Callable[[Token], bool]) -> list[int]:
    return [int(counts(token)) for token in tokens]


def _is_answer(token: Token) -> bool:
    return token.role == "assistant" and token.kind in ("word", "end")


def _known(tokens: list[Token]) -> dict[str, tuple[list[int], str]]:
    """Mistake -> (the mask that it gives, its message)."""
    own = [t.role == "assistant" for t in tokens]
    first = own.index(True)
    answers = max(t.number for t in tokens)
    closed = {t.turn for t in tokens if t.role == "assistant" and t.kind == "end"}
    tool_open = {t.turn for t in tokens if t.role == "assistant"} - closed
    masks: dict[str, tuple[Callable[[Token], bool], str]] = {
        "zero": (lambda t: False, "your mask is 0 everywhere: nothing would be learned"),
        "all": (lambda t: True, "your mask is 1 everywhere: prompts would be learned too"),
        "inverted": (lambda t: not _is_answer(t), "your mask is the wrong way round: 1 belongs "
                     "on the assistant's tokens"),
        "header counted": (lambda t: t.role == "assistant" and t.kind != "gap", "the assistant's "
                           "header counts in your mask; the model is given it, it need not say it"),
        "end not counted": (lambda t: t.role == "assistant" and t.kind == "word", "the end token "
                            "is left out: nobody would teach the model to stop"),
        "wrong role": (lambda t: t.role == "user" and t.kind in ("word", "end"), "your mask marks "
                       "the user's turns"),
        "every end": (lambda t: _is_answer(t) or t.kind == "end", "other roles' turns may end "
                      "with the end token too; only the assistant's counts"),
        "last answer": (lambda t: _is_answer(t) and t.number == answers, "only the last answer "
                        "counts in your mask; every answer shall"),
        "first answer": (lambda t: _is_answer(t) and t.number == 1, "only the first answer counts "
                         "in your mask; every answer shall"),
        "not closed by end": (lambda t: t.role == "assistant" and t.kind != "header", "after its "
                              "end token an answer is over: what follows, up to the next header, "
                              "must not count"),
        "not closed by a header": (lambda t: _is_answer(t) or (
            t.turn - 1 in tool_open and t.kind in ("word", "end")), "an answer without an end "
            "token is over where any other header begins; yours runs into the next turn"),
        "other header counted": (lambda t: _is_answer(t) or (
            t.turn - 1 in tool_open and t.kind != "gap"), "an answer without an end token is over "
                                 "where any other header begins; yours runs into the next turn"),
    }  # fmt: skip
    known = {name: (_mask(tokens, counts), message) for name, (counts, message) in masks.items()}
    right = _mask(tokens, _is_answer)
    known["off by one"] = ([*right[1:], 0], "your mask sits one place too far left: it holds the "
                           "headers and lacks the ends")  # fmt: skip
    known["off by one, right"] = ([0, *right[:-1]], "your mask sits one place too far right")
    rest = "after the first answer everything counts in your mask, the user's turns included"
    known["never closed"] = ([int(i > first) for i in range(len(tokens))], rest)
    later = [int(i > first and t.kind != "header") for i, t in enumerate(tokens)]
    known["never closed but for headers"] = (later, rest)
    return known


_PLACES = {
    (True, "header"): "the assistant's headers",
    (True, "word"): "the words of answers",
    (True, "end"): "the end tokens of answers",
    (True, "gap"): "what stands between an answer's end and the next header",
    (False, "header"): "the headers of other roles",
    (False, "word"): "the words of other roles",
    (False, "end"): "the end tokens of other roles",
    (False, "gap"): "what stands between turns of other roles",
}


def _wrong_places(tokens: list[Token], got: list[int], expected: list[int]) -> str:
    """On which kinds of tokens the mask is wrong: for mistakes that come together."""
    wrong = {
        (token.role == "assistant", token.kind)
        for token, a, b in zip(tokens, got, expected, strict=True)
        if a != b
    }
    return "; ".join(text for place, text in _PLACES.items() if place in wrong)


def _compare(
    call: Call, chat: Chat, ids: list[int], expected: list[int],
    known: dict[str, tuple[list[int], str]], otherwise: str, tokens: list[Token] | None = None,
) -> Finding | None:  # fmt: skip
    """The finding on one call.

    Args: otherwise: the message where no known mistake fits; with `tokens` (what the ids are) it
        goes on with the places that are wrong.
    """
    outcome = call(ids, chat.headers, chat.end)
    got = bits(outcome.value, len(ids))
    if isinstance(got, Finding):
        return got
    if got != expected:
        for mistake, (mask, message) in known.items():
            if got == mask and mask != expected:
                return Finding(mistake, message, show(got), show(expected))
        where = f" {_wrong_places(tokens, got, expected)}" if tokens else ""
        return Finding("something else", otherwise + where, show(got), show(expected))
    return changed(("ids", "headers", "end"), (ids, chat.headers, chat.end), outcome.arguments)


def check_mask(call: Call, seed: int, size: int) -> list[Finding]:
    """A whole conversation with several answers, a tool, and words between the turns."""
    chat = _chat(seed, size)
    expected = _mask(chat.tokens, _is_answer)
    known, message = _known(chat.tokens), "your mask is wrong on:"
    finding = _compare(call, chat, chat.ids, expected, known, message, chat.tokens)
    return [finding] if finding else []


def check_cut(call: Call, seed: int, size: int) -> list[Finding]:
    """Conversations that were cut to fit: at the right, at the left, to nothing."""
    chat = _chat(seed, size)
    tokens = chat.tokens
    last = max(i for i, t in enumerate(tokens) if t.kind == "header" and t.role == "assistant")
    opened = tokens[last].turn
    for stop in (last + 2, last + 1):  # in the last answer, and right after its header
        kept = tokens[:stop]
        expected = _mask(kept, _is_answer)
        message = "an answer that is cut before its end token counts all the same"
        known = {
            "cut answer": (_mask(kept, lambda t: _is_answer(t) and t.turn != opened), message),
            **_known(kept),
        }
        message = "in a conversation cut at the right your mask is wrong on:"
        finding = _compare(call, chat, chat.ids[:stop], expected, known, message, kept)
        if finding:
            return [finding]
    start = next(i for i, t in enumerate(tokens) if _is_answer(t)) + 1  # in the first answer
    kept, opening = tokens[start:], tokens[start].turn
    expected = _mask(kept, lambda t: _is_answer(t) and t.turn != opening)
    message = "the conversation's start is cut off: before the first header nobody knows who spoke"
    known = {
        "start counted": (_mask(kept, _is_answer), message),
        "start's end counted": (_mask(kept, lambda t: _is_answer(t) and (
            t.turn != opening or t.kind == "end")), message),
    }  # fmt: skip
    for shown, mask in ((chat.ids[start:], expected), (chat.words[:3], [0] * 3), ([], [])):
        finding = _compare(call, chat, shown, mask, known,
                           "a conversation cut at the left gets a wrong mask")  # fmt: skip
        if finding:
            return [finding]
    return []


def check_padding(call: Call, seed: int, size: int) -> list[Finding]:
    """Padding on either side, with a token of its own and with the end token."""
    chat = _chat(seed, size)
    ended = max(i for i, t in enumerate(chat.tokens) if t.kind == "end" and _is_answer(t))
    ids = chat.ids[: ended + 1]  # the last answer's end is the last token
    mask = _mask(chat.tokens[: ended + 1], _is_answer)
    width = 2 + size % 3
    behind = "padding counts in your mask: after its first end token an answer is over"
    before = "padding at the left counts in your mask: no answer has begun there"
    for pad in (chat.end, chat.words[0]):
        filling, zeros, ones = [pad] * width, [0] * width, [1] * width
        right = {"padding counted": (mask + ones, behind)}
        left = {"left padding counted": (ones + mask, before)}
        finding = _compare(call, chat, ids + filling, mask + zeros, right, behind) or _compare(
            call, chat, filling + ids, zeros + mask, left, before
        )
        if finding:
            return [finding]
    return []


TASK = Task(
    set="02",
    name="completion-mask",
    functions=("completion_mask",),
    checks=(
        Check("mask", 2, check_mask),
        Check("cut conversations", 1, check_cut),
        Check("padding", 1, check_padding),
    ),
)
