"""RewardInspector: what a reward model makes of preference pairs, and what it may be hooked on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from course_utils.errors import CourseError
from course_utils.inspectors import frames, reward_numbers
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup, fixed
from course_utils.inspectors.page import json_bytes

if TYPE_CHECKING:
    import pandas

MAX_TEXT = 1200  # characters of one answer that are shown


class RewardInspector(Inspector):
    """Scores of chosen and rejected answers, margins, calibration, reward against length.

        RewardInspector.of(reward_model, heldout_pairs)            # scores them first
        RewardInspector(chosen, rejected, chosen_lengths=…, rejected_lengths=…, pairs=rows)

    Args:
        chosen, rejected: (N,) the model's scores of the preferred and of the other answers. Pairs
            with a score that is not finite are counted and left out.
        chosen_lengths, rejected_lengths: (N,) lengths of the answers, in `unit`; both or neither.
        pairs: N rows {prompt, chosen, rejected}, strings or message lists, to read the answers.
        unit: what the lengths count, in the plural.
        bins: of the calibration curve over [1/2, 1], >= 1.

    Raises: CourseError for arrays that do not fit together.
    Source: calibration as in `evaluation.calibration` (Guo et al. 2017, §2); length bias: Singhal
    et al. 2023.
    """

    module, css, title = (
        "rewards.js",
        ("viewers.css", "cards.css", "rewards.css"),
        "What the reward model has learnt",
    )

    def __init__(
        self,
        chosen: ArrayLike,
        rejected: ArrayLike,
        chosen_lengths: ArrayLike | None = None,
        rejected_lengths: ArrayLike | None = None,
        pairs: Sequence[Mapping[str, Any]] | None = None,
        unit: str = "words",
        bins: int = 10,
    ) -> None:
        columns = _columns(chosen, rejected, chosen_lengths, rejected_lengths)  # (N, 2 or 4)
        if pairs is not None and len(pairs) != len(columns):
            raise CourseError(
                f"{len(columns)} pairs of scores but {len(pairs)} pairs of answers; give one row "
                "{prompt, chosen, rejected} for each pair of scores"
            )
        if bins < 1:
            raise CourseError(f"a calibration curve needs bins >= 1, got {bins}")
        kept = np.flatnonzero(np.isfinite(columns).all(axis=1))
        rows = columns[kept]
        self._numbers = reward_numbers.all_of(rows, bins)
        texts = [] if pairs is None else [_texts(i, pairs[int(k)]) for i, k in enumerate(kept)]
        state = {
            **self._numbers,
            "pairs": rows.tolist(),  # [chosen, rejected(, chosen length, rejected length)]
            "texts": texts,  # [index into pairs, prompt, chosen, rejected]
            "unit": unit,
            "dropped": len(columns) - len(rows),
            "skipped": 0,
        }
        ui = {"scale": reward_numbers.SCALES.index(1.0), "order": "wrong", "at": 0, "within": False}
        super().__init__(state, ui)

    @classmethod
    def of(
        cls,
        reward: Callable[[list[str], list[str]], Sequence[float]],
        pairs: Iterable[Mapping[str, Any]],
        length: Callable[[str], int] | None = None,
        unit: str = "words",
        bins: int = 10,
    ) -> "RewardInspector":
        """Scores both answers of every pair and shows them.

        Args:
            reward: (prompts, completions) -> one score each, such as a RewardModel.
            pairs: rows {prompt, chosen, rejected}, such as a dataset of held-out preferences.
            length: text -> its length in `unit`; words if not given.
        """
        from course_utils.evaluation.policy import score_all

        rows = [_plain(row) for row in pairs]
        measure = length or (lambda text: len(text.split()))
        prompts = [row["prompt"] for row in rows]
        better, worse = ([row[side] for row in rows] for side in ("chosen", "rejected"))
        return cls(
            score_all(reward, prompts, better),
            score_all(reward, prompts, worse),
            [measure(text) for text in better],
            [measure(text) for text in worse],
            pairs=rows,
            unit=unit,
            bins=bins,
        )

    # ---- data --------------------------------------------------------------------------------

    def table(self) -> "pandas.DataFrame":
        """One row per pair: chosen, rejected, margin, lengths where known, texts where known."""
        import pandas

        return pandas.DataFrame([self.frame(i) for i in range(len(self._state["pairs"]))])

    def frame(self, index: int = 0) -> dict[str, Any]:
        """One pair's numbers and texts. Raises CourseError for a pair that is not there."""
        rows = self._state["pairs"]
        if not 0 <= index < len(rows):
            raise CourseError(f"there is no pair {index}; this inspector has {len(rows)} pairs")
        names = ("chosen", "rejected", "chosen_length", "rejected_length")
        found = dict(zip(names, rows[index], strict=False))
        found["margin"] = found["chosen"] - found["rejected"]
        if self._state["texts"]:
            words = ("prompt", "chosen_text", "rejected_text")
            found |= dict(zip(words, self._state["texts"][index][1:], strict=True))
        return found

    def summary(self) -> dict[str, Any]:
        """{pairs, dropped, accuracy: {mean, low, high, n}, ties, margin, ece, brier, best_scale,
        length: {answers: {slope, intercept, r, n}, within: {…}, longer_preferred, longer_chosen}}.
        """
        own = self._numbers
        now = own["calibrations"][reward_numbers.SCALES.index(1.0)] if own["calibrations"] else {}
        return {
            "pairs": len(self._state["pairs"]),
            "dropped": self._state["dropped"],
            **{name: own[name] for name in ("accuracy", "ties", "margin", "best_scale", "length")},
            "ece": now.get("ece"),
            "brier": now.get("brier"),
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        found = self.summary()
        if not found["pairs"]:
            return "RewardInspector: no pairs"
        said = [
            f"{found['pairs']:,} pairs",
            f"accuracy {fixed(found['accuracy']['mean'])}",
            f"mean margin {fixed(found['margin'])}",
            f"calibration error {fixed(found['ece'], 3)}",
        ]
        if fit := (found["length"] or {}).get("answers"):
            said.append(f"{fixed(10 * fit['slope'], sign=True)} a 10 {self._state['unit']}")
        return f"RewardInspector: {', '.join(said)}"

    def first_frame(self) -> Markup:
        found = self.summary()
        if not found["pairs"]:
            return frames.card(self.title, frames.fine("No pairs of scores yet."))
        low, high = (fixed(found["accuracy"][end]) for end in ("low", "high"))
        rows: list[list[Any]] = [
            ["accuracy", float(found["accuracy"]["mean"]), f"95% interval {low} … {high}"],
            ["mean margin", float(found["margin"]), "chosen − rejected"],
            ["calibration error", fixed(found["ece"], 3), "0: its odds come true"],
        ]
        if fit := (found["length"] or {}).get("answers"):
            name = f"reward per 10 {self._state['unit']}"
            rows.append([name, fixed(10 * fit["slope"], sign=True), f"r = {fixed(fit['r'])}"])
        return frames.card(self.title, frames.fine(f"{found['pairs']:,} pairs"), frames.table(rows))

    def shortened(self, budget: int) -> dict[str, Any]:
        """All curves, computed of all pairs; then as many points and texts as fit."""
        rows, texts = self._state["pairs"], self._state["texts"]
        every, most = 1, len(texts)
        state = self._state
        while json_bytes(state) > budget and (len(state["pairs"]) > 20 or most):
            most = most // 2 if most > 12 or len(state["pairs"]) <= 20 else most
            every += 1 if most <= 40 and len(state["pairs"]) > 20 else 0
            most = 0 if every > 40 and most <= 12 else most
            told = _telling(rows, most)
            keep = sorted({*range(0, len(rows), every), *told})
            place = {k: i for i, k in enumerate(keep)}
            state = {
                **self._state,
                "pairs": [rows[k] for k in keep],
                "texts": [[place[k], *texts[k][1:]] for k in sorted(told)] if texts else [],
                "skipped": len(rows) - len(keep),
            }
        return state


def _columns(*arrays: Any) -> NDArray[np.float64]:
    """Scores, and lengths where given, as (N, 2) or (N, 4)."""
    chosen, rejected, *lengths = arrays
    if (lengths[0] is None) != (lengths[1] is None):
        raise CourseError("give chosen_lengths and rejected_lengths, or neither of them")
    found = []
    for given in (chosen, rejected, *(x for x in lengths if x is not None)):
        given = given.tolist() if hasattr(given, "tolist") else given  # tensors on any device
        values = [float("nan") if v is None else v for v in given]
        found.append(np.asarray(values, dtype=np.float64))
    if any(a.ndim != 1 or a.shape != found[0].shape for a in found):
        raise CourseError(
            "scores and lengths must be lists of the same length, one number a pair; got shapes "
            f"{', '.join(str(a.shape) for a in found)}"
        )
    return np.stack(found, axis=1)


def _plain(row: Mapping[str, Any]) -> dict[str, str]:
    """{prompt, chosen, rejected} as strings."""
    from course_utils.evaluation.preferences import text_of

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {name: text_of(row[name], role) for name, role in roles.items()}


def _texts(index: int, row: Mapping[str, Any]) -> list[Any]:
    plain = row if all(isinstance(row[n], str) for n in ("prompt", "chosen", "rejected")) else None
    found = plain or _plain(row)
    return [index, *(str(found[n])[:MAX_TEXT] for n in ("prompt", "chosen", "rejected"))]


def _telling(rows: Sequence[Sequence[float]], most: int) -> set[int]:
    """The pairs whose answers are worth reading: most wrong, most right and closest, in thirds."""
    margin = [row[0] - row[1] for row in rows]
    order = sorted(range(len(rows)), key=margin.__getitem__)
    near = sorted(range(len(rows)), key=lambda i: abs(margin[i]))
    third = -(-most // 3)
    return {*order[:third], *order[len(order) - third :], *near[:third]} if most else set()
