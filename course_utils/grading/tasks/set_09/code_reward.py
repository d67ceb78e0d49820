"""Set 09: a reward that runs a small program, in an interpreter that has nothing to break out to.

    code_reward(program: str, target: int, max_steps=1000) -> 1.0 or 0.0

Programs know `name = expression` and `while expression:`, integers, + - * // %, unary minus and one
comparison; the result is the value of `answer`. Everything else earns 0.0 and nothing raises. The
programs here are drawn together with their values and steps, so no interpreter is needed to check.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, show

LARGEST = 10**12  # of any number, written or computed
LONGEST = 200  # characters of a program


@dataclass(frozen=True)
class Case:
    """A program, what it is to show, and what a wrong reward for it means."""

    mistake: str
    message: str
    program: str
    target: int
    reward: float
    steps: int = 1000


# ---- programs with known values ------------------------------------------------------------------


def _expression(draw: random.Random, depth: int) -> tuple[str, int]:
    """Text and value of a small expression over + - * // %, with parentheses where drawn."""
    if depth == 0:
        number = draw.randint(2, 19)
        return (f"-{number}", -number) if draw.random() < 0.2 else (str(number), number)
    (left, a), (right, b) = (_expression(draw, depth - 1) for _ in range(2))
    kind = draw.choice(["+", "-", "*", "//", "%"])
    if b == 0 and kind in ("//", "%"):
        kind = "-"
    values = {"+": a + b, "-": a - b, "*": a * b}
    if b != 0:
        values |= {"//": a // b, "%": a % b}
    return f"({left} {kind} {right})", values[kind]


def _sum_loop(turns: int, factor: int) -> tuple[str, int, int]:
    """A loop with its value and its steps: 2 before it, a test more than turns, 2 in each turn."""
    text = f"answer = 0\ni = 0\nwhile i < {turns}:\n  answer = answer + i * {factor}\n  i = i + 1"
    return text, factor * turns * (turns - 1) // 2, 2 + turns + 1 + 2 * turns


def _nested_loops(outer: int, inner: int) -> tuple[str, int, int]:
    text = (
        f"answer = 0\ni = {outer}\nwhile i:\n  j = {inner}\n"
        "  while j > 0:\n    answer = answer + i * j\n    j = j - 1\n  i = i - 1"
    )
    value = outer * (outer + 1) // 2 * (inner * (inner + 1) // 2)
    return text, value, 2 + outer + 1 + outer * (2 + inner + 1 + 2 * inner)


def _valid(draw: random.Random, size: int) -> list[Case]:
    """Programs that earn their reward, and what may be wrong where they do not."""
    a, b, c = draw.randint(3, 9), draw.randint(20, 40), draw.randint(41, 60)
    odd = 2 * draw.randint(5, 30) + 1
    turns = 4 + size + draw.randint(0, 3)
    text, value = _expression(draw, 2)
    loop, loop_value, _ = _sum_loop(turns, a)
    nested, nested_value, _ = _nested_loops(2 + size % 3, a)
    floor = "// rounds towards minus infinity, as in Python: -7 // 2 is -4"
    rest = "% has the divisor's sign, as in Python: -7 % 3 is 2"
    bools = "a comparison has the value 1 or 0, and can be calculated with"
    last = "the result is the value of the name answer when the program ends"
    truth = "a while turns as long as its condition is not 0; negative numbers are not 0 either"
    rows: list[tuple[str, str, str, int]] = [
        ("simple", "an assignment of a number to answer earns nothing", f"answer = {a}", a),
        ("floor", floor, f"answer = -{odd} // 2", -(odd // 2) - 1),
        ("modulo", rest, f"answer = -{3 * a + 1} % 3", 2),
        ("arithmetic", "an expression over + - * // % is not right", f"answer = {text}", value),
        ("sides", "the two sides of an operator are swapped", f"answer = {b} - {a} - {c}", b-a-c),
        ("unary minus", "a unary minus is not right", f"x = -{a}\nanswer = -(x - {b})", a + b),
        ("zero", "an answer of 0 can be right too", f"answer = {a} - {a}", 0),
        ("names", "a name has the value it was given last", f"x = {a}\nx = x * {b}\n"
         f"y = x + {c}\nx = 0\nanswer = y - x\n", a * b + c),
        ("last value", last, f"answer = {a}\nx = {b}", a),
        ("first value", last, f"answer = {a}\nanswer = answer + {c}", a + c),
        ("comparisons", bools, f"answer = ({a} < {b}) + 2 * ({b} >= {b}) + 4 * ({c} == {b}) "
         f"+ 8 * ({a} != {c}) + 16 * ({b} <= {a}) + 32 * ({c} > {a})", 1 + 2 + 8 + 32),
        ("while", "a while loop is not right", loop, loop_value),
        ("nested loops", "a loop within a loop is not right", nested, nested_value),
        ("condition", truth, f"answer = {b}\nx = -{a}\nwhile x:\n  x = x + 1\n"
         "  answer = answer + 1", a + b),
        ("condition", truth, f"answer = {a}\nwhile {a} > {b}:\n  answer = 0", a),
    ]  # fmt: skip
    return [Case(name, said, program, wanted, 1.0) for name, said, program, wanted in rows]


# ---- programs that must not be paid --------------------------------------------------------------


def _refused(draw: random.Random) -> list[Case]:
    """What Python would run, with Python's result as the target, so that running it pays."""
    a, b = draw.randint(3, 9), draw.randint(11, 19)
    rows = [
        ("calls", "a call", f"answer = abs(-{a})", a),
        ("calls", "a call", f"x = {a}\nanswer = int('{b}') + x", a + b),
        ("imports", "an import", f"import math\nanswer = {a}", a),
        ("imports", "an import", f"answer = {a}\nfrom os import path", a),
        ("attributes", "an attribute", f"answer = ({a}).real", a),
        ("attributes", "an attribute", f"answer = {a}\nx = ().__class__", a),
        ("calls", "a call", f"answer = __import__('math').gcd({2 * a}, {a})", a),
        ("powers", "a power", f"answer = {a} ** 2", a * a),
        ("true division", "true division", f"answer = {2 * a} / 2", a),
        ("other operators", "an operator beyond + - * // %", f"answer = {a} << 1", 2 * a),
        ("other operators", "an operator beyond + - * // %", f"answer = ~{a}", -a - 1),
        ("other operators", "an operator beyond + - * // %", f"answer = +{a}", a),
        ("other operators", "not, and, or", f"answer = {b} - (not {a})", b),
        ("other operators", "not, and, or", f"answer = {a} and {b}", b),
        ("chain", "a chain of comparisons", f"answer = 1 < {a} < {b}", 1),
        ("other operators", "`is` and `in`", f"x = {a}\nanswer = x is x", 1),
        ("constants", "True and False", "answer = True", 1),
        ("constants", "a float", f"answer = {a}.0", a),
        ("constants", "a text", f"x = '{a}'\nanswer = {a}", a),
        ("constants", "None", f"x = None\nanswer = {a}", a),
        ("targets", "several targets", f"x, answer = {b}, {a}", a),
        ("targets", "several targets", f"x = answer = {a}", a),
        ("targets", "several targets", f"answer = x = {a}", a),
        ("targets", "`+=`", f"answer = {a}\nanswer += {b}", a + b),
        ("targets", "a type beside the name", f"answer: x = {a}", a),
        ("other expressions", "`:=`", f"x = (answer := {a})", a),
        ("other expressions", "a conditional expression", f"answer = {a} if {b} else 0", a),
        ("other expressions", "a list", f"answer = [{b}, {a}][1]", a),
        ("other statements", "if", f"answer = 0\nif {b}:\n  answer = {a}", a),
        ("other statements", "an expression on a line of its own", f"answer = {a}\n{b}", a),
        ("other statements", "pass", f"answer = {a}\npass", a),
        ("other statements", "def", f"def f():\n  x = {b}\nanswer = {a}", a),
        ("other statements", "for", f"for answer in ({a},):\n  x = {b}", a),
        ("other statements", "break", f"answer = {a}\nx = 1\nwhile x:\n  x = 0\n  break", a),
        ("else", "the else of a while", f"answer = {a}\nx = 0\nwhile x:\n  x = 0\nelse:\n  x = 1",
         a),
    ]  # fmt: skip
    cases = [Case(name, f"{what} is paid; it is not on the list", text, target, 0.0)
             for name, what, text, target in rows]  # fmt: skip
    late = "what is not on the list must be refused even where the program never gets to it"
    lazy = ("import os", "x = abs(1)", f"x = {a} ** {b}", "if x:\n    x = 1", "x = 1 < 2 < 3")
    return cases + [
        Case("not reached", late, f"answer = {a}\nwhile answer < 0:\n  {inner}", a, 0.0)
        for inner in lazy
    ]


def _broken(draw: random.Random) -> list[Case]:
    """What has no result: nothing of it may raise."""
    a, b = draw.randint(3, 9), draw.randint(11, 19)
    rows = [
        ("no answer", "a program that never sets answer is paid", f"x = {a}", a),
        ("no answer", "a program that never sets answer is paid", f"x = {a}", 0),
        ("no answer", "an empty program is paid", "", 0),
        ("unknown name", "a name that has no value is paid", "answer = x", 0),
        ("unknown name", "a name that has no value is paid", f"x = y\nanswer = {a}", a),
        ("division by zero", "a division by zero is paid", f"x = {a} // 0\nanswer = {b}", b),
        ("division by zero", "a remainder of a division by zero is paid", f"answer = {a} % 0", a),
        ("no program", "what is no program is paid", f"the answer is {a}.", a),
        ("no program", "what is no program is paid", f"answer = ({a}", a),
        ("no program", "what is no program is paid", f" answer = {a}\nx = 1\n y = 2", a),
        ("no program", "a text with a null byte is paid", f"answer = {a}\x00", a),
        ("no program", "a number alone is paid", str(a), a),
    ]
    return [Case(*row, 0.0) for row in rows]


def _limits(draw: random.Random, size: int) -> list[Case]:
    a, turns = draw.randint(3, 9), 5 + size + draw.randint(0, 4)
    loop, value, steps = _sum_loop(turns, a)
    nested, product, many = _nested_loops(2 + size % 4, a)
    long, total, _ = _sum_loop(20_000, 2)
    line = f"answer = {a}"
    squares = f"x = {a}\nn = 14\nwhile n:\n  x = x * x % 1000003 + x * x\n  n = n - 1\nanswer = {a}"
    counted = "an assignment is one step, a test of a while one, the last test too"
    most = f"a program of exactly max_steps steps is in time: {counted}"
    over = f"a program of more than max_steps steps is paid: {counted}"
    large = "a number beyond 10^12 is paid: written, a result, or a step on the way to one"
    fits = "10^12 itself is allowed, and so is -10^12"
    wide = "a program of more than 200 characters is paid"
    unread = "a number beyond 10^12 is refused even where the program never gets to it"
    return [
        Case("no step limit", over, long, total, 0.0),
        Case("no step limit", over, loop, value, 0.0, turns + 2),
        Case("too strict", most, loop, value, 1.0, steps),
        Case("off by one", over, loop, value, 0.0, steps - 1),
        Case("too strict", most, nested, product, 1.0, many),
        Case("off by one", over, nested, product, 0.0, many - 1),
        Case("off by one", over, line, a, 0.0, 0),
        Case("no size limit", large, squares, a, 0.0),
        Case("no size limit", large, f"answer = {LARGEST} + {a}", LARGEST + a, 0.0),
        Case("no size limit", large, f"answer = -{LARGEST} - 1", -LARGEST - 1, 0.0),
        Case("no size limit", large, f"answer = {LARGEST + 1}", LARGEST + 1, 0.0),
        Case("no size limit", large, f"answer = {LARGEST} * {a} // {LARGEST}", a, 0.0),
        Case("no size limit", unread, f"{line}\nwhile answer < 0:\n  x = {LARGEST + 1}", a, 0.0),
        Case("size too strict", fits, f"answer = {LARGEST // 10} * 10", LARGEST, 1.0),
        Case("size too strict", fits, f"answer = -{LARGEST}", -LARGEST, 1.0),
        Case("length too strict", "200 characters are allowed", _padded(line, LONGEST), a, 1.0),
        Case("no length limit", wide, _padded(line, LONGEST + 1), a, 0.0),
        Case("no length limit", wide, f"answer = {'-' * 300}{a}", a, 0.0),
        Case("no length limit", wide, f"answer = {'(' * 120}{a}{')' * 120}", a, 0.0),
        Case("no length limit", wide, f"answer = {'-' * 20_000}{a}", a, 0.0),
        Case("nesting", "nesting within the 200 characters is allowed",
             f"answer = {'(' * 40}{a}{')' * 40}", a, 1.0),
        Case("nesting", "nesting within the 200 characters is allowed",
             f"answer = {'-' * 60}{a}", a, 1.0),
    ]  # fmt: skip


def _padded(line: str, length: int) -> str:
    """The program with a comment that makes it `length` characters long."""
    return line + "  #" + "." * (length - len(line) - 3)


# ---- the checks ----------------------------------------------------------------------------------


def _wrong_type(value: Any) -> Finding | None:
    if type(value) is float:
        return None
    message = "the reward must be a float, 1.0 or 0.0" + (
        "; it returned None: is a `return` missing?" if value is None else ""
    )
    return Finding("not a float", message, show(value), "1.0 or 0.0")


def _look(call: Call, cases: Iterable[Case]) -> list[Finding]:
    """The first few mistakes; a case that makes the function raise is one of its own."""
    found: dict[str, Finding] = {}
    for case in cases:
        raised = "your function raises; whatever it is given, it must return a reward"
        outcome = attempt(call, "raises", raised, case.program, case.target, case.steps)
        fault = outcome if isinstance(outcome, Finding) else _wrong_type(outcome.value)
        if not fault and outcome.value != case.reward:  # type: ignore[union-attr]
            shown = f"{_quote(case.program)}, target {case.target}"
            got = show(outcome.value)  # type: ignore[union-attr]
            fault = Finding(case.mistake, case.message, f"{got} for {shown}", str(case.reward))
        if fault:
            found.setdefault(fault.mistake, fault)
        if len(found) == 4:
            break
    return list(found.values())


def _quote(program: str) -> str:
    return repr(program if len(program) <= 100 else program[:97] + "...")


def check_programs(call: Call, seed: int, size: int) -> list[Finding]:
    """Programs that show their target, and the same with another target."""
    draw = random.Random(seed * 1009 + size)
    cases = _valid(draw, size)
    fault = _wrong_type(call(cases[0].program, cases[0].target).value)  # a hole is told here
    if fault:
        return [fault]
    other = "a program whose answer is not the target is paid"
    wrong = [Case("always paid", other, case.program, target, 0.0)
             for case in cases[3:] for target in (case.target + 1, -case.target or 7)]  # fmt: skip
    if all(call(case.program, case.target).value == 0.0 for case in cases):
        return [Finding("never paid", "no program at all is paid")]
    return _look(call, [*wrong[:2], *cases, *wrong])


def check_refusals(call: Call, seed: int, size: int) -> list[Finding]:
    """Hostile programs, and programs without a result."""
    draw = random.Random(seed * 1009 + size + 1)
    return _look(call, [*_refused(draw), *_broken(draw)])


def check_limits(call: Call, seed: int, size: int) -> list[Finding]:
    """Steps, sizes of numbers, characters: on both sides of each limit."""
    return _look(call, _limits(random.Random(seed * 1009 + size + 2), size))


TASK = Task(
    set="09",
    name="code-reward",
    functions=("code_reward",),
    checks=(
        Check("programs", 2, check_programs),
        Check("refusals", 2, check_refusals),
        Check("limits", 1, check_limits),
    ),
)
