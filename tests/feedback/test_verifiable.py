"""The interpreter: means what Python means where it runs, and refuses the rest with a reason."""

import contextlib
import io
import random

import pytest

from course_utils.errors import CourseError
from course_utils.feedback.verifiable import (
    Limits,
    claims_in,
    program_in,
    run,
    verifiable_reward,
    verify,
)

HOSTILE = {
    "import": "__import__('os').system('true')",
    "import statement": "import os",
    "attribute": "(1).real",
    "class climbing": "().__class__.__bases__",
    "text": "'a' * 9",
    "float": "1.5 + 1",
    "complex": "1j",
    "power": "9 ** 9 ** 9",
    "shift": "1 << 9999",
    "bit or": "1 | 2",
    "lambda": "(lambda: 1)()",
    "def": "def f(): return 1",
    "comprehension": "[i for i in range(9)]",
    "list": "[1, 2]",
    "subscript": "range(3)[0]",
    "walrus": "(a := 3)",
    "f-string": "f'{1}'",
    "eval": "eval('1')",
    "open": "open('/etc/passwd')",
    "getattr": "getattr(1, 'real')",
    "unknown name": "a + 1",
    "builtin name": "print + 1",
    "dunder name": "__builtins__ = 1",
    "shadowing": "print = 3",
    "star": "print(*range(3))",
    "keyword": "print(1, sep=2)",
    "del": "a = 1\ndel a",
    "global": "global a",
    "try": "try:\n    1 // 0\nexcept:\n    1",
    "raise": "raise 1",
    "assert": "assert 0",
    "with": "with 1: pass",
    "tuple target": "a, b = 1, 2",
    "membership": "1 in 2",
    "ellipsis": "...",
    "none": "None",
    "no number": "a = 1",
    "empty": "",
    "comment": "# 3",
    "for over a number": "for i in 9: print(i)",
    "range alone": "range(3)",
    "range of nothing": "for i in range(): print(i)",
    "step of zero": "for i in range(1, 9, 0): print(i)",
    "division by zero": "1 // 0",
    "modulo zero": "1 % (2 - 2)",
    "break outside": "break",
    "syntax": "1 +",
    "null byte": "1\0",
    "surrogate": "1\udc00",
    "match": "match 1:\n    case 1: 2",
    "async": "await 1",
    "decorator": "@print\ndef f(): pass",
}
TOO_MUCH = {
    "endless loop": ("while 1: pass", "steps"),
    "endless for": ("for i in range(1, 9999999999999): pass", "steps"),
    "nested loops": ("for i in range(999):\n for j in range(999):\n  a = 1", "steps"),
    "growing": ("a = 3\nfor i in range(99): a = a * a", "bits"),
    "huge constant": ("9" * 300, "bits"),
    "long": ("1 + " * 400 + "1", "characters"),
    "deep minus": ("-" * 300 + "1", "deep"),
    "deep sum": ("1" + " + 1" * 60, "deep"),
    "deep blocks": ("if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 19)), ""),
    "wide": ("print(" + "-1," * 120 + ")", "parts"),
    "much printed": ("for i in range(99): print(i)", "printed"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_refused_with_a_reason(name):
    found = run(HOSTILE[name])
    assert found.value is None
    assert found.refused
    assert not found


@pytest.mark.parametrize("name", TOO_MUCH)
def test_programs_that_want_too_much_are_stopped(name):
    source, reason = TOO_MUCH[name]
    found = run(source)
    assert found.value is None
    assert reason in found.refused
    assert found.steps <= Limits().steps + 1


def expression(rng, depth):
    if depth == 0 or rng.random() < 0.2:
        return str(rng.randint(0, 20))
    left, right = (expression(rng, depth - 1) for _ in range(2))
    operator = rng.choice(["+", "-", "*", "//", "%", "<", "<=", "==", "!=", ">", "and", "or"])
    return f"({'-' if rng.random() < 0.2 else ''}{left} {operator} {right})"


def test_expressions_mean_what_they_mean_to_python():
    rng = random.Random(0)
    counted = 0
    for _ in range(600):
        source = expression(rng, rng.randint(1, 4))
        try:
            wanted = int(eval(source))  # our own expressions
        except ZeroDivisionError:
            assert "zero" in run(source).refused
            continue
        assert run(source, Limits(nodes=999, depth=99)).value == wanted, source
        counted += 1
    assert counted > 300


@pytest.mark.parametrize(
    "source",
    [
        "a = b = 2\na += 3\nprint(a * b)",
        "t = 0\nfor i in range(2, 20, 3):\n    if i % 2:\n        continue\n    t += i\nprint(t)",
        "n = 27\ns = 0\nwhile n != 1:\n    n = n // 2 if 0 else n // 2\n    s += 1\nprint(s)",
        "for i in range(9):\n    if i * i > 20:\n        break\nelse:\n    print(0)\nprint(i)",
        "for i in range(3):\n    pass\nelse:\n    print(i + 7)",
        "x = 5\nwhile x > 0:\n    x -= 2\nelse:\n    x = x - 10\nprint(x, 3 < 4 < 5)",
        "for i in range(5, 0, -2): print(i)",
        "if 0: print(1)\nelif 2 > 1: print(2)\nelse: print(3)",
        "print(True + True)",
        "print(not 3, not 0)",
    ],
)
def test_statements_print_what_python_prints(source):
    found = run(source)
    if "if 0 else" in source:  # a conditional expression is not on the list
        assert "IfExp" in found.refused
        return
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(source, {})  # our own programs
    wanted = [int({"True": 1, "False": 0}.get(w, w)) for w in told.getvalue().split()]
    assert list(found.printed) == wanted
    assert found.value == wanted[-1]


def test_nonsense_limits_and_programs_that_are_no_text():
    with pytest.raises(CourseError, match="steps must be a whole number"):
        Limits(steps=0)
    with pytest.raises(CourseError, match="a program is text"):
        run(3)
    assert run("1 + 1", Limits(bits=1)).refused


def test_every_sum_of_the_world_is_found_and_computed():
    from course_utils import world

    asked = world.prompts("all", None, families=["math"])
    assert len(asked) > 1000
    for prompt in asked:
        program = program_in(prompt.text)
        assert program is not None
        assert run(program).value == world.families.calculate(prompt.detail), prompt.text


def test_the_reward_is_the_gold_rewards_opinion_on_written_answers():
    from course_utils import world

    rng = random.Random(1)
    manners = world.answers.Manners(wrong=0.5, opener=0.5, closer=0.3, rambling=0.3)
    for prompt in world.prompts("all", 300, families=["math"]):
        answer = world.answers.answer(prompt, rng, manners)
        right = world.gold.score(prompt, answer).parts["completeness"] == 1
        assert verify(prompt.text, answer).reward == float(right), answer


def test_what_would_pay_a_cheat():
    prompt = "what is 3 + 4?"
    assert verify(prompt, "the answer is 7.").reward == 1
    assert verify(prompt, "7").reward == 1
    echo, hedge = "the answer is 3 + 4.", "the answer is 6. the answer is 7. the answer is 8."
    assert verify(prompt, echo).reward == 0
    assert verify(prompt, echo, literal=False).reward == 1
    assert verify(prompt, hedge).reward == 0
    assert verify(prompt, hedge, single=False).reward == 1
    assert verify(prompt, "the answer is 7. the answer is 7.").reward == 1
    assert "6 is not 7" in verify(prompt, "the answer is 6.").reason
    assert verify(prompt, "").reason == "nothing is claimed"
    assert verify("tell me about lions", "the answer is 7.").reward == 0
    assert verify("what is 1 // 0?", "0").reason.startswith("the prompt's program is refused")
    assert verify("print(", "3").reward == 0


def test_reward_function_and_claims():
    reward = verifiable_reward()
    assert reward(["compute 2 * 3"] * 3, ["the answer is 6.", "6", "the answer is 5."]) == [1, 1, 0]
    assert claims_in("Great! The answer is -3. The answer is 4!") == ["-3", "4"]
    assert program_in("what does print(3 - 1) show?") == "print(3 - 1)"
    assert program_in("what is 10 - 4?") == "10 - 4"
