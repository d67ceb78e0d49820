"""AnswerComparer: several models' answers to the same prompt, and why gold prefers which."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError
from course_utils.inspectors import frames, gold_answers
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup, fixed, tag
from course_utils.inspectors.methods import method_key, methods
from course_utils.inspectors.page import json_bytes

if TYPE_CHECKING:
    import pandas


class AnswerComparer(Inspector):
    """Base, SFT, PPO, DPO … answer the same prompts; the gold reward's nine parts say why.

        AnswerComparer(report["answers"])
        AnswerComparer({"sft": evaluation_of_sft, "ppo": evaluation_of_ppo})
        AnswerComparer([{"prompt": "…", "answers": {"base": "…", "sft": "…"}}])

    Args:
        answers: rows {prompt, answers: {model: text, or {text, gold, reward, kl}}}
            (report.schema.Answers), a report's dict with "answers", or model -> Evaluation (or its
            JSON), whose first sample of each prompt is taken. Where an answer to one of the world's
            prompts comes without a gold reward, the world's is computed.
        labels: model -> name shown.

    Raises: CourseError for rows of another shape.
    """

    module, css, title = (
        "answers.js",
        ("viewers.css", "cards.css"),
        "The same prompt, different models",
    )

    def __init__(
        self,
        answers: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        rows = _rows(answers)
        full = [
            {
                method_key(model): gold_answers.scored(gold_answers.plain(said), prompt)
                for model, said in given.items()
                if said is not None
            }
            for prompt, given in rows
        ]
        names = gold_answers.part_names(a for row in full for a in row.values())
        found = methods((model for row in full for model in row), labels)
        state = {
            "methods": found,
            "parts": names,
            "rows": [
                {
                    "prompt": prompt,
                    "answers": [
                        gold_answers.shown(row[m["key"]], names, prompt)
                        if m["key"] in row
                        else None
                        for m in found
                    ],
                }
                for (prompt, _), row in zip(rows, full, strict=True)
            ],
            "means": _means(full, [m["key"] for m in found], [n["key"] for n in names]),
            "skipped": 0,
        }
        super().__init__(state, {"at": 0, "order": "given", "hidden": [], "find": ""})

    # ---- data --------------------------------------------------------------------------------

    def table(self) -> "pandas.DataFrame":
        """One row per answer: prompt, model, text, gold, its parts, reward, kl."""
        import pandas

        rows = [row for i in range(len(self._state["rows"])) for row in self.frame(i)]
        return pandas.DataFrame(rows)

    def frame(self, index: int = 0) -> list[dict[str, Any]]:
        """The answers to one prompt, a dict each. Raises CourseError for a prompt not there."""
        rows = self._state["rows"]
        if not 0 <= index < len(rows):
            raise CourseError(f"there is no prompt {index}; this comparer has {len(rows)} prompts")
        found = []
        for method, answer in zip(self._state["methods"], rows[index]["answers"], strict=True):
            if answer is None:
                continue
            row = {"prompt": rows[index]["prompt"], "model": method["key"]}
            row |= {"text": gold_answers.text_of(answer), "gold": answer["gold"]}
            parts = answer["parts"] or []
            row |= {n["key"]: v for n, v in zip(self._state["parts"], parts, strict=False)}
            found.append({**row, "reward": answer["reward"], "kl": answer["kl"]})
        return found

    def summary(self) -> dict[str, Any]:
        """{prompts, models: {name: {answers, gold, wins, parts: {part: mean}}}}.

        `wins` counts the prompts on which the model's gold reward is the highest, ties for each.
        """
        return {
            "prompts": len(self._state["rows"]) + self._state["skipped"],
            "models": {
                m["key"]: {
                    **{name: mean[name] for name in ("answers", "gold", "wins")},
                    "parts": {
                        n["key"]: v
                        for n, v in zip(self._state["parts"], mean["parts"], strict=True)
                    },
                }
                for m, mean in zip(self._state["methods"], self._state["means"], strict=True)
            },
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        rows = self._state["rows"]
        if not rows:
            return "AnswerComparer: no answers"
        pairs = zip(self._state["methods"], self._state["means"], strict=True)
        said = [f"{m['label']} {fixed(v['gold'])}" for m, v in pairs if v["gold"] is not None]
        means = f"; mean gold: {', '.join(said)}" if said else ""
        return f"AnswerComparer: {len(rows):,} prompts, {len(self._state['methods'])} models{means}"

    def first_frame(self) -> Markup:
        rows = self._state["rows"]
        if not rows:
            return frames.card(self.title, frames.fine("No answers yet."))
        children = [frames.prompt(rows[0]["prompt"])]
        for method, answer in zip(self._state["methods"], rows[0]["answers"], strict=True):
            if answer is None:
                continue
            gold = "" if answer["gold"] is None else f"  {fixed(answer['gold'])}"
            children.append(
                tag(
                    "div",
                    tag("b", f"{method['label']}{gold}"),
                    tag("div", gold_answers.text_of(answer)[:600] or "∅", dir="auto"),
                    style=f"{frames.SERIF};font-size:15px;margin:6px 0",
                )
            )
        more = f"1 of {len(rows):,} prompts" if len(rows) > 1 else None
        return frames.card(self.title, *children, frames.fine(more) if more else None)

    def shortened(self, budget: int) -> dict[str, Any]:
        """The means of all prompts, and the prompts on which the models differ most."""
        rows = self._state["rows"]
        state, most = self._state, len(rows)
        order = sorted(range(len(rows)), key=lambda i: -_spread(rows[i]))
        while json_bytes(state) > budget and most > 1:
            most = most * 3 // 4
            kept = [rows[i] for i in sorted(order[:most])]
            state = {**self._state, "rows": kept, "skipped": len(rows) - most}
        return state


def _rows(answers: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """(prompt, {model: answer}) of any of the accepted forms."""
    if isinstance(answers, Mapping) and isinstance(answers.get("answers"), list | tuple):
        answers = answers["answers"]
    if isinstance(answers, Mapping):
        return _of_evaluations(answers)
    found = []
    for i, row in enumerate(answers):
        if not isinstance(row, Mapping) or not isinstance(row.get("answers"), Mapping):
            raise CourseError(
                f"row {i} of the answers is {row!r:.80}; a row is "
                '{"prompt": …, "answers": {model: answer}}'
            )
        found.append((str(row.get("prompt") or ""), row["answers"]))
    return found


def _of_evaluations(models: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The first sample of each prompt of every model's evaluation, side by side."""
    found: dict[str, dict[str, Any]] = {}
    for model, evaluation in models.items():
        if isinstance(evaluation, Mapping):
            completions = evaluation.get("completions")
        else:
            completions = getattr(evaluation, "completions", None)
        if completions is None:
            raise CourseError(
                f"the answers of {model!r} are {type(evaluation).__name__}, not an Evaluation; "
                "give model -> evaluate_policy(…), or rows {prompt, answers}"
            )
        for said in completions:
            prompt = said["prompt"] if isinstance(said, Mapping) else said.prompt
            found.setdefault(prompt, {}).setdefault(model, said)
    return list(found.items())


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _means(
    rows: list[dict[str, dict[str, Any]]], keys: list[str], parts: list[str]
) -> list[dict[str, Any]]:
    """One per model: answers, mean gold, mean of each part, prompts won."""
    found = []
    for key in keys:
        own = [row[key] for row in rows if key in row]
        best = [
            max((a["gold"] for a in r.values() if a["gold"] is not None), default=None)
            for r in rows
        ]
        won = [
            b is not None and key in r and r[key]["gold"] is not None and r[key]["gold"] >= b - 1e-9
            for r, b in zip(rows, best, strict=True)
        ]
        found.append(
            {
                "answers": len(own),
                "gold": _mean([a["gold"] for a in own]),
                "wins": sum(won),
                "parts": [_mean([(a["parts"] or {}).get(p) for a in own]) for p in parts],
            }
        )
    return found


def _spread(row: Mapping[str, Any]) -> float:
    """How far the gold rewards of one prompt's answers lie apart."""
    golds = [a["gold"] for a in row["answers"] if a is not None and a["gold"] is not None]
    return max(golds) - min(golds) if golds else 0.0
