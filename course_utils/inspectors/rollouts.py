"""RolloutInspector: the answers of a run, step by step, every token coloured by one quantity."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import RunError
from course_utils.inspectors import frames
from course_utils.inspectors.colours import Scale
from course_utils.inspectors.frames import Markup, fixed, glue_of
from course_utils.inspectors.page import finite, json_bytes
from course_utils.inspectors.runs import RunInspector
from course_utils.report.markup import number
from course_utils.training.run import RunLog

if TYPE_CHECKING:
    import pandas

LIMIT = 20.0  # of -d in k3's e^(-d), as in objectives.kl_k3
PAGE_TOKENS = 160  # of one answer on a page that would else be too large
# name in the state -> (label, help, kind, unit); `quantity`, below and in rollouts.js, makes values
QUANTITIES: dict[str, tuple[str, str, str, str]] = {
    "kl": (
        "log ratio",
        "d = log π − log π_ref: blue where the policy likes the token more than its reference, "
        "orange where it likes it less. Their sum over the answer is the KL that is paid for (k1).",
        "diverging",
        "nats",
    ),
    "k3": (
        "KL",
        "k3 = e^(−d) − 1 + d, an estimate of the KL at each token that is never negative.",
        "sequential",
        "nats",
    ),
    "advantages": (
        "advantage",
        "How much better than expected the choice was: blue is made more likely, orange less.",
        "diverging",
        "standard deviations",
    ),
    "values": (
        "value",
        "The reward that the value head expects from here to the end.",
        "diverging",
        "reward",
    ),
    "rewards": (
        "reward",
        "What each token earned: the price −β d of its KL, and the score on the last one.",
        "diverging",
        "reward",
    ),
    "logprobs": (
        "surprise",
        "−log π: 0 where the policy was sure; large where it drew a rare token.",
        "sequential",
        "nats",
    ),
}
_PER_TOKEN = ("kl", "advantages", "values", "rewards", "logprobs")


def k3(d: float | None) -> float | None:
    """k3 of one token from d = log π − log π_ref (Schulman 2020); None where d is not a number."""
    if d is None or not math.isfinite(d):
        return None
    return math.exp(min(-d, LIMIT)) - 1 + d


def quantity(rollout: Mapping[str, Any], name: str) -> list[float | None] | None:
    """One value per token of an answer in the state; None if the run did not record it."""
    values = rollout.get("kl" if name == "k3" else name)
    if values is None:
        return None
    if name == "k3":
        return [k3(d) for d in values]
    return [None if v is None else -v for v in values] if name == "logprobs" else list(values)


def compact(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of rollouts.jsonl as the state holds it: no ids, and numbers that JSON has."""
    tokens = [str(token) for token in row.get("tokens") or str(row.get("completion", "")).split()]
    found: dict[str, Any] = {
        "step": row["step"],
        "prompt": str(row.get("prompt", "")),
        "tokens": tokens,
        "glue": glue_of(tokens, str(row.get("completion", ""))),
        "score": number(row.get("score")),
        "gold": number(row.get("gold")),
        "ended": bool(row.get("ended", True)),
    }
    for name in _PER_TOKEN:
        values = row.get(name)
        if isinstance(values, list):
            found[name] = [number(value) for value in values[: len(tokens)]]
    if "kl" not in found and isinstance(row.get("ref_logprobs"), list) and "logprobs" in found:
        pairs = zip(found["logprobs"], map(number, row["ref_logprobs"]), strict=False)
        found["kl"] = [None if a is None or b is None else a - b for a, b in pairs]
    moved = [d for d in found.get("kl") or () if d is not None]
    found["moved"] = sum(moved) if moved else None  # k1 of the whole answer, nats
    return found


class RolloutInspector(RunInspector):
    """Choose a step and an answer; see every token's log ratio, KL, advantage, value and reward.

        RolloutInspector(run)                                      # a RunLog or its directory
        RolloutInspector(run, references={prompt: answer, ...})    # the reference's beside it
        watch(run, RolloutInspector)                               # while it trains

    Args:
        run: a RunLog or the directory of one, which need not exist yet.
        references: the reference model's answer to each prompt, shown side by side. Without one
            the answer of the first saved step stands in where it has the same prompt: PPO's first
            step samples from the reference itself.

    Raises: RunError for something that is not one run, or for a damaged file (naming the line).
    """

    module, css, title = "rollouts.js", ("rollouts.css",), "Rollouts"

    def __init__(
        self, run: RunLog | Path | str, references: Mapping[str, str] | None = None
    ) -> None:
        state = {
            "name": "",
            "rollouts": [],
            "log": [],
            "scales": {},
            "references": dict(references or {}),
            "left_out": 0,
            "live": False,
        }
        super().__init__(run, state, {"step": None, "answer": 0, "by": "kl", "sort": "sampled"})

    def took(self, log: list[dict[str, Any]], rollouts: list[dict[str, Any]], fresh: bool) -> None:
        if fresh:
            self.set_state({**self._state, "rollouts": [], "log": [], "scales": {}})
        means = [
            {"step": row["step"], **{n: number(row.get(n)) for n in ("reward", "gold", "kl")}}
            for row in log
        ]
        new = [compact(row) for row in rollouts]
        changed: dict[str, Any] = {"name": self.directory.name}
        if new:
            changed["scales"] = scales([*self._state["rollouts"], *new])
        self.append(set=changed, rollouts=new, log=means)

    # ---- data --------------------------------------------------------------------------------

    @property
    def steps(self) -> list[int]:
        """The steps whose answers were saved."""
        return sorted({r["step"] for r in self._state["rollouts"]})

    def _of(self, step: int | None) -> list[dict[str, Any]]:
        steps = self.steps
        if step is None:
            step = steps[-1] if steps else None
        elif step not in steps:
            raise RunError(f"{self.directory} has no rollouts of step {step}; it has {steps}")
        return [r for r in self._state["rollouts"] if r["step"] == step]

    def frame(self, step: int | None = None) -> "pandas.DataFrame":
        """One row per answer of a step (the last if not given), in the order sampled.

        Columns: prompt, answer, tokens (count), score, gold, kl (k1, nats), ended. Raises RunError
        for a step without rollouts.
        """
        import pandas

        rows = [
            {
                "prompt": r["prompt"],
                "answer": r["glue"].join(r["tokens"]),
                "tokens": len(r["tokens"]),
                "score": r["score"],
                "gold": r["gold"],
                "kl": r["moved"],
                "ended": r["ended"],
            }
            for r in self._of(step)
        ]
        return pandas.DataFrame(rows)

    def tokens(self, step: int | None = None, answer: int = 0) -> "pandas.DataFrame":
        """One row per token of the `answer`-th answer of a step, one column per quantity."""
        import pandas

        found = self._of(step)
        if not 0 <= answer < len(found):
            raise RunError(f"step {step} has {len(found)} answers, there is no number {answer}")
        values = {name: quantity(found[answer], name) for name in QUANTITIES}
        columns = {name: v for name, v in values.items() if v is not None}
        return pandas.DataFrame({"token": found[answer]["tokens"], **columns})

    def summary(self) -> dict[str, Any]:
        """{rollouts, steps, quantities, last: {step, score, gold, kl}}, means of the last step."""
        last = self._of(None)
        means = {name: _mean(r[name] for r in last) for name in ("score", "gold", "moved")}
        return {
            "rollouts": len(self._state["rollouts"]),
            "steps": self.steps,
            "quantities": list(self._state["scales"]),
            "last": {
                "step": last[0]["step"] if last else None,
                "score": means["score"],
                "gold": means["gold"],
                "kl": means["moved"],
            },
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        found = self.summary()
        if not found["rollouts"]:
            return f"RolloutInspector: {self.directory} has no rollouts yet"
        last, steps = found["last"], found["steps"]
        gold = "" if last["gold"] is None else f", gold {fixed(last['gold'])}"
        return (
            f"RolloutInspector: {found['rollouts']:,} answers of {len(steps)} steps "
            f"({steps[0]} … {steps[-1]}); at step {last['step']} mean score "
            f"{fixed(last['score'])}{gold}, KL {fixed(last['kl'])} nats"
        )

    def first_frame(self) -> Markup:
        found = self._of(None)
        if not found:
            return frames.card(self.title, frames.fine("No rollouts yet."))
        first, name = found[0], next(iter(self._state["scales"]), None)
        children = [frames.prompt(first["prompt"])]
        if name is None:
            children.append(frames.fine(first["glue"].join(first["tokens"][:400])))
        else:
            scale = Scale(**self._state["scales"][name])
            values = quantity(first, name) or [None] * len(first["tokens"])
            children.append(frames.tokens(first["tokens"], values, scale, first["glue"]))
            children.append(frames.fine(f"{scale.label} ({scale.unit}): {scale.help}"))
        numbers = [("score", first["score"]), ("gold", first["gold"]), ("KL", first["moved"])]
        children.append(frames.facts((n, v) for n, v in numbers if v is not None))
        return frames.card(f"{self.title} · step {first['step']}", *children)

    def shortened(self, budget: int) -> dict[str, Any]:
        """As many answers of every step as fit, of fewer steps if need be; long answers cut."""
        state = {**self._state, "live": False, "log": _thinned(self._state["log"], 100)}
        if budget > 10 * len(self._state["rollouts"]) and json_bytes(state) <= budget:
            return state
        state = {**state, "references": {}, "rollouts": []}
        room = budget - json_bytes(state) - 200
        every = [_cut(r, self._state["scales"]) for r in self._state["rollouts"]]
        sizes = [json_bytes(r) + 1 for r in every]
        fit = max(1, int(room * len(every) / max(1, sum(sizes))))
        steps = self.steps
        if fit < 2 * len(steps):  # two answers of some steps rather than one of all
            steps = sorted(set(steps[:: -max(1, math.ceil(2 * len(steps) / fit))]))
        left = dict.fromkeys(steps, max(1, fit // max(1, len(steps))))
        kept: list[dict[str, Any]] = []
        for rollout, size in sorted(zip(every, sizes, strict=True), key=lambda x: -x[0]["step"]):
            if left.get(rollout["step"], 0) and (room >= size or not kept):
                left[rollout["step"]] -= 1
                room -= size
                kept.append(rollout)
        said = {}
        for rollout in kept:
            answer = self._state["references"].get(rollout["prompt"])
            if answer is not None and room >= json_bytes(answer) + json_bytes(rollout["prompt"]):
                said[rollout["prompt"]] = answer
                room -= json_bytes(answer) + json_bytes(rollout["prompt"]) + 2
        out = len(every) - len(kept)
        return {**state, "rollouts": kept, "references": said, "left_out": out}


def scales(rollouts: list[dict[str, Any]]) -> dict[str, Any]:
    """One scale per recorded quantity, over all answers of the run."""
    found = {}
    for name, (label, help, kind, unit) in QUANTITIES.items():
        lists = [quantity(r, name) for r in rollouts]
        values = [v for one in lists if one is not None for v in one]
        if values:
            scale = Scale.of(values, label, help, kind=kind, unit=unit)
            found[name] = scale.state()
    return finite(found)


def _cut(rollout: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Its first `PAGE_TOKENS` tokens, with 3 digits; what is too small for a colour becomes 0."""
    more = len(rollout["tokens"]) - PAGE_TOKENS
    found = {n: v[:PAGE_TOKENS] if isinstance(v, list) else v for n, v in rollout.items()}
    for name in _PER_TOKEN:
        least = known[name]["limit"] / 1000 if name in known else 0.0
        if name in found:
            found[name] = [0 if v is not None and abs(v) < least else v for v in found[name]]
    found = finite(found, digits=3)
    return {**found, "step": rollout["step"], **({"more": more} if more > 0 else {})}


def _thinned(rows: list[Any], most: int) -> list[Any]:
    every = max(1, math.ceil(len(rows) / most))
    return rows if every == 1 else [*rows[:-1:every], rows[-1]]


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
