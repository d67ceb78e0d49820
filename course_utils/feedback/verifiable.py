"""Rewards that are executed: a restricted interpreter for small programs, and the reward on it.

    run("a = 3\\nfor i in range(4):\\n    a = a + i\\nprint(a)")   # Outcome(value=9, ...)
    run("__import__('os')")                                      # Outcome(value=None, refused="…")

What a model writes is untrusted, so nothing of it reaches Python's own `eval`: the text is parsed,
every node must be on a short list, and a small interpreter of ours walks the tree with a budget of
steps. There is nothing in it to call, open or import.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from course_utils.errors import CourseError


@dataclass(frozen=True)
class Limits:
    """How much a program may be and do; whole numbers >= 1."""

    characters: int = 400  # of the source
    nodes: int = 200  # of the syntax tree
    depth: int = 20  # of the syntax tree
    bits: int = 64  # of any integer, constants and results alike
    steps: int = 2000  # nodes executed, loops counted as often as they turn
    printed: int = 20  # numbers printed

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CourseError(f"Limits.{name} must be a whole number >= 1, got {value!r}")


LIMITS = Limits()


class Refused(CourseError):
    """A program that is not run, or not to its end; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program: `value` is what it shows, or `refused` says why there is none."""

    value: int | None  # the last number printed; without print(), the last expression's value
    printed: tuple[int, ...] = ()
    steps: int = 0
    refused: str | None = None

    def __bool__(self) -> bool:
        return self.refused is None


# ---- what may be written -------------------------------------------------------------------------

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_UNARY: dict[type[ast.unaryop], Callable[[int], int]] = {
    ast.USub: lambda a: -a,
    ast.UAdd: lambda a: a,
    ast.Not: lambda a: int(not a),
}
_STATEMENTS = (
    *(ast.Assign, ast.AugAssign, ast.Expr, ast.If, ast.For, ast.While),
    *(ast.Pass, ast.Break, ast.Continue),
)
_EXPRESSIONS = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Name, ast.Call)
_GRAMMAR = (ast.Module, ast.And, ast.Or, ast.Load, ast.Store)
_ALLOWED = (*_STATEMENTS, *_EXPRESSIONS, *_GRAMMAR, *_BINARY, *_COMPARE, *_UNARY)
_CALLS = ("print", "range")


def parse(source: str, limits: Limits = LIMITS) -> ast.Module:
    """The syntax tree of a program in which every node is on the list.

    Raises: Refused for anything else, and for a program that is too long, deep or large.
    """
    if not isinstance(source, str):
        raise CourseError(f"a program is text, got {type(source).__name__}")
    if len(source) > limits.characters:
        raise Refused(f"{len(source)} characters, {limits.characters} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "5or 3": Python grumbles about odd spelling
            tree = ast.parse(source.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"not a program: {str(error).split('(<')[0].strip()}") from None
    for count, (node, depth) in enumerate(_nodes(tree), 1):
        if depth > limits.depth:
            raise Refused(f"nested more than {limits.depth} deep")
        if count > limits.nodes:
            raise Refused(f"more than {limits.nodes} parts")
        _check(node, limits)
    return tree


def _nodes(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Every node with its depth, without recursion: the tree may be deeper than Python's stack."""
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def _check(node: ast.AST, limits: Limits) -> None:
    if not isinstance(node, _ALLOWED):
        raise Refused(f"{type(node).__name__} is not allowed")
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, int):
            raise Refused(f"only whole numbers are allowed, not {type(node.value).__name__}")
        _fits(int(node.value), limits)
    elif isinstance(node, ast.Call):
        plain = isinstance(node.func, ast.Name) and node.func.id in _CALLS
        if not plain or node.keywords:
            raise Refused("only print(...) and range(...) may be called, without keywords")
    elif isinstance(node, ast.Name) and node.id.startswith("_"):
        raise Refused(f"the name {node.id!r} begins with an underscore")
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.For):
        _check_target(node)


def _check_target(node: ast.Assign | ast.AugAssign | ast.For) -> None:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    for target in targets:
        if not isinstance(target, ast.Name) or target.id in _CALLS:
            raise Refused("a value can be given to a plain name only")
    if isinstance(node, ast.For):
        call = node.iter
        ranged = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if not ranged or call.func.id != "range" or not 1 <= len(call.args) <= 3:  # type: ignore
            raise Refused("a for loop must run over range(...)")


def _fits(value: int, limits: Limits) -> int:
    if value.bit_length() > limits.bits:
        raise Refused(f"a number of {value.bit_length()} bits, {limits.bits} are allowed")
    return value


# ---- running it ----------------------------------------------------------------------------------


class _Leave(Exception):
    """break or continue."""

    def __init__(self, again: bool) -> None:
        self.again = again


class _Machine:
    """Walks a checked tree; holds the names, the numbers printed and the steps left."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.names: dict[str, int] = {}
        self.printed: list[int] = []
        self.last: int | None = None
        self.steps = 0

    def tick(self) -> None:
        self.steps += 1
        if self.steps > self.limits.steps:
            raise Refused(f"not finished after {self.limits.steps} steps")

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        self.tick()
        if isinstance(node, ast.Expr):
            self.shown(node.value)
        elif isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                assert isinstance(target, ast.Name)
                self.names[target.id] = value
        elif isinstance(node, ast.AugAssign):
            assert isinstance(node.target, ast.Name)
            left = self.look_up(node.target.id)
            self.names[node.target.id] = self.binary(node.op, left, self.value(node.value))
        elif isinstance(node, ast.If):
            self.block(node.body if self.value(node.test) else node.orelse)
        elif isinstance(node, ast.For):
            self.for_loop(node)
        elif isinstance(node, ast.While):
            self.loop(node, iter(lambda: bool(self.value(node.test)), False))
        elif isinstance(node, ast.Break | ast.Continue):
            raise _Leave(again=isinstance(node, ast.Continue))

    def shown(self, node: ast.expr) -> None:
        """An expression on a line of its own; print shows its numbers."""
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        ):
            self.printed += [self.value(argument) for argument in node.args]
            if len(self.printed) > self.limits.printed:
                raise Refused(f"more than {self.limits.printed} numbers printed")
        else:
            self.last = self.value(node)

    def for_loop(self, node: ast.For) -> None:
        assert isinstance(node.iter, ast.Call)
        assert isinstance(node.target, ast.Name)
        bounds = [self.value(argument) for argument in node.iter.args]
        if len(bounds) == 3 and bounds[2] == 0:
            raise Refused("range(...) with a step of 0")
        name = node.target.id

        def turns() -> Iterator[None]:
            for value in range(*bounds):  # lazy: a huge range costs only the steps that it runs
                self.names[name] = value
                yield None

        self.loop(node, turns())

    def loop(self, node: ast.For | ast.While, turns: Iterator[Any]) -> None:
        for _ in turns:
            self.tick()
            try:
                self.block(node.body)
            except _Leave as leave:
                if not leave.again:
                    return
        self.block(node.orelse)

    def look_up(self, name: str) -> int:
        if name not in self.names:
            raise Refused(f"the name {name!r} has no value")
        return self.names[name]

    def binary(self, operator: ast.operator, left: int, right: int) -> int:
        if isinstance(operator, ast.FloorDiv | ast.Mod) and right == 0:
            raise Refused("division by zero")
        return _fits(_BINARY[type(operator)](left, right), self.limits)

    def value(self, node: ast.expr) -> int:
        self.tick()
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return int(node.value)
        if isinstance(node, ast.Name):
            return self.look_up(node.id)
        if isinstance(node, ast.BinOp):
            return self.binary(node.op, self.value(node.left), self.value(node.right))
        if isinstance(node, ast.UnaryOp):
            return _fits(_UNARY[type(node.op)](self.value(node.operand)), self.limits)
        if isinstance(node, ast.Compare):
            return self.compare(node)
        if isinstance(node, ast.BoolOp):
            stop = isinstance(node.op, ast.Or)  # "or" ends at the first true value
            value = 0
            for part in node.values:
                value = self.value(part)
                if bool(value) == stop:
                    break
            return value
        raise Refused("print(...) and range(...) have no value here")

    def compare(self, node: ast.Compare) -> int:
        left = self.value(node.left)
        for operator, part in zip(node.ops, node.comparators, strict=True):
            right = self.value(part)
            if not _COMPARE[type(operator)](left, right):
                return 0
            left = right
        return 1


def run(source: str, limits: Limits = LIMITS) -> Outcome:
    """Runs a program, or says why not; never raises on what a model may write.

    Comparisons give 1 and 0. Source of the idea: Chen et al. 2021 (Codex) execute in a sandbox;
    this one is a toy's: it has no operation that could reach outside.
    """
    machine = _Machine(limits)
    try:
        machine.block(parse(source, limits).body)
    except Refused as error:
        return Outcome(None, tuple(machine.printed), machine.steps, str(error))
    except _Leave:
        return Outcome(None, (), machine.steps, "break or continue outside of a loop")
    shown = machine.printed[-1] if machine.printed else machine.last
    if shown is None:
        return Outcome(None, (), machine.steps, "it shows no number")
    return Outcome(shown, tuple(machine.printed), machine.steps)


# ---- the reward ----------------------------------------------------------------------------------

_ARITHMETIC = re.compile(r"[-(]*\d[\d\s+\-*/%()]*")
_CLAIM = re.compile(r"the answer is ([^.!?]+)[.!?]")
_LITERAL = re.compile(r"-?\d+")


def program_in(prompt: str) -> str | None:
    """The program that a prompt asks about: "print(3 + 4)", or "3 + 4"; None without one."""
    start = prompt.find("print(")
    if start >= 0:
        end = prompt.rfind(")")
        return prompt[start : end + 1] if end > start else None
    found = [match.strip() for match in _ARITHMETIC.findall(prompt)]
    return max(found, key=len) if found else None


def claims_in(completion: str) -> list[str]:
    """What an answer says the result is: each "the answer is …."; else the text itself."""
    found = [claim.strip() for claim in _CLAIM.findall(completion.lower())]
    return found or ([completion.strip()] if completion.strip() else [])


@dataclass(frozen=True)
class Verdict:
    """One answer checked: the reward, and in words why."""

    reward: float
    reason: str


def verify(prompt: str, completion: str, literal: bool = True, single: bool = True) -> Verdict:
    """Runs the prompt's program and the answer's claim: reward 1 if both show the same, else 0.

    Args:
        literal: the claim must be a plain number. False runs whatever is claimed, so that an
            answer may repeat the question ("the answer is 3 + 4.") and be paid.
        single: only one claim. False pays if any of several is right.
    """
    program = program_in(prompt)
    if program is None:
        return Verdict(0.0, "the prompt holds no program")
    truth = run(program)
    if not truth:
        return Verdict(0.0, f"the prompt's program is refused: {truth.refused}")
    claims = claims_in(completion)
    if not claims:
        return Verdict(0.0, "nothing is claimed")
    if single and len(set(claims)) > 1:
        return Verdict(0.0, f"{len(set(claims))} different claims")
    reason = ""
    for claim in claims:
        if literal and not _LITERAL.fullmatch(claim):
            reason = "the claim is not a plain number"
            continue
        found = run(claim)
        if found and found.value == truth.value:
            return Verdict(1.0, f"{claim} is {truth.value}")
        reason = found.refused or f"{found.value} is not {truth.value}"
    return Verdict(0.0, reason)


def verifiable_reward(
    literal: bool = True, single: bool = True
) -> Callable[[list[str], list[str]], list[float]]:
    """`verify` as a reward function for train_grpo or PPOTrainer: (prompts, answers) -> 0 or 1."""

    def executed(prompts: list[str], completions: list[str]) -> list[float]:
        return [
            verify(prompt, completion, literal, single).reward
            for prompt, completion in zip(prompts, completions, strict=True)
        ]

    return executed
