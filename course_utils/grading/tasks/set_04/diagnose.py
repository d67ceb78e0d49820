"""Set 04: which mistake made these curves?

    diagnose(log: dict[str, list[float]]) -> str

`log` holds a run's columns; the answer is "healthy" or one of five mistakes: "temperature", "mask",
"sign", "learning rate", "per token". The curves are drawn anew for every check (_runs.py).
"""

import random

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, show
from course_utils.grading.tasks.set_04._runs import FAULTS, NAMES, log

PLAIN = tuple((name, "") for name in ("healthy", *FAULTS))
HARD = (
    ("healthy", "no penalty"),
    ("healthy", "half precision"),
    ("healthy", "adaptive"),
    ("healthy", "adaptive, low"),
    ("healthy", "cut answers"),
    ("healthy", "certain"),
    ("healthy", "short"),
    ("temperature", "half precision, adaptive"),
    ("mask", "small"),
    ("sign", "adaptive, slow"),
    ("learning rate", "late, adaptive"),
    ("per token", "half precision"),
)

_WHERE = {
    "temperature": "sampled at one temperature and scored at another: what must `ratio_first_max` "
                   "be before anything was updated?",
    "mask": "without a mask after the end: what must `kl` be in the first row, where policy and "
            "reference are still the same model?",
    "sign": "with the KL's sign turned round: can the mean of `kl` be below 0?",
    "learning rate": "with far too large a learning rate: how fast may `kl` grow in the first "
                     "few rows?",
    "per token": "whose controller is fed the KL per token: what does `beta` do after rows in "
                 "which `kl` was above `kl_target`?",
}  # fmt: skip
_HEALTHY = {
    "": "",
    "no penalty": " Without a penalty (beta = 0) the KL climbs far, slowly; nothing is broken.",
    "half precision": " In half precision a ratio of a few hundredths above 1, or a KL estimate "
                      "just below 0, is rounding.",
    "adaptive": " An adaptive beta falls while the KL is below its target and rises above it.",
    "adaptive, low": " An adaptive beta falls all along if the KL never reaches its target.",
    "cut answers": " Answers may all be cut at the limit: eos_rate is 0 then.",
    "short": " A log may have a few rows only.",
    "certain": " Entropy may fall far when the policy has found what pays.",
}  # fmt: skip


def _judge(call: Call, name: str, variant: str, draw: random.Random) -> Finding | None:
    run = log(name, draw, variant)
    said = call(run).value
    if not isinstance(said, str):
        return Finding("not a name", "diagnose must return a string", show(said), "one of the six")
    if said not in NAMES:
        message = "that is none of the six names: " + ", ".join(repr(n) for n in NAMES)
        return Finding("unknown name", message, show(said))
    if said == name:
        return None
    got, expected = repr(said), repr(name)
    if name == "healthy":
        message = f"a healthy run is called {said!r}.{_HEALTHY[variant]}"
        return Finding(f"false alarm: {said}", message, got, expected)
    message = f"a run {_WHERE[name]}"
    if said == "healthy":
        return Finding(f"missed: {name}", f"you called healthy {message}", got, expected)
    return Finding(f"{said} for {name}", f"you called {said!r} {message}", got, expected)


def _check(call: Call, cases: tuple[tuple[str, str], ...], seed: int) -> list[Finding]:
    for number, (name, variant) in enumerate(cases):
        fault = _judge(call, name, variant, random.Random(100 * seed + number))
        if fault:
            return [fault]
    return []


def check_plain(call: Call, seed: int, size: int) -> list[Finding]:
    """A healthy run and one with each mistake."""
    return _check(call, PLAIN, seed)


def check_hard(call: Call, seed: int, size: int) -> list[Finding]:
    """Healthy runs that look odd, and mistakes that show late or little."""
    return _check(call, HARD * (1 + size // 4), 500 + seed)


TASK = Task(
    set="04",
    name="diagnose",
    functions=("diagnose",),
    checks=(Check("plain cases", 2, check_plain), Check("harder cases", 2, check_hard)),
)
