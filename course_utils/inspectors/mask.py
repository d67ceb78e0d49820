"""MaskViewer: which tokens of a training row the loss counts, and how much each adds to it."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.errors import DataError
from course_utils.inspectors import frames
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.colours import Scale
from course_utils.inspectors.frames import Markup, fixed, glue_of
from course_utils.inspectors.page import json_bytes

if TYPE_CHECKING:
    import pandas

IGNORED = -100  # label of a token that the loss leaves out (PyTorch's ignore_index)
_MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")


class MaskViewer(Inspector):
    """What each token contributes to the loss of SFT or of DPO.

        MaskViewer(rows, tokenizer)                            # only what is counted
        MaskViewer(rows, tokenizer, model)                     # and −log p of every counted token
        MaskViewer(pairs, tokenizer, model, reference, beta)   # DPO: β (log π − log π_ref)

    Args:
        rows: what a trainer gets, one row per example. SFT: {input_ids, labels} (-100: left out) or
            {input_ids, completion_mask} or {input_ids, assistant_masks}. DPO: {prompt_ids,
            chosen_ids, rejected_ids} (TRL's {prompt_input_ids, …} too). All rows of one kind.
        tokenizer: turns single ids into text.
        model, reference: causal language models; each row is one forward pass of one sequence.
        beta: β of DPO, > 0.

    Raises: DataError for a row of neither kind (with its number), or unequal lengths.
    """

    module, css, title = "mask.js", ("mask.css",), "What the loss counts"

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        model: Any = None,
        reference: Any = None,
        beta: float = 0.1,
    ) -> None:
        examples = [
            _example(_sides(row, number), tokenizer, model, reference, beta)
            for number, row in enumerate(rows)
        ]
        kinds = {len(example["sides"]) for example in examples}
        if len(kinds) > 1:
            raise DataError("the rows mix SFT and DPO; show them in two viewers")
        kind = "dpo" if kinds == {2} else "sft"
        counted = [v for e in examples for s in e["sides"] for v in s["values"] or () if v != 0]
        scale = None
        if model is not None:
            scale = _scale(kind, [v for v in counted if v is not None]).state()
        state = {"kind": kind, "examples": examples, "scale": scale, "left_out": 0}
        super().__init__(state, {"at": 0})

    # ---- data --------------------------------------------------------------------------------

    def frame(self, step: int = 0) -> "pandas.DataFrame":
        """One row per token of the example numbered `step`: side, token, counted, value.

        value: −log p in nats (SFT), or β (log π − log π_ref) (DPO); 0 where not counted, missing
        without a model.
        """
        import pandas

        rows = [
            {
                "side": side["label"],
                "token": token,
                "counted": bool(side["counted"][i]),
                "value": side["values"][i] if side["values"] else None,
            }
            for side in self._state["examples"][step]["sides"]
            for i, token in enumerate(side["tokens"])
        ]
        return pandas.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """{kind, examples, tokens, counted, loss}: loss is the mean over counted tokens (SFT) or
        over pairs (DPO), None without a model."""
        examples = self._state["examples"]
        sides = [side for example in examples for side in example["sides"]]
        counted = sum(sum(side["counted"]) for side in sides)
        loss = None
        if self._state["scale"] is not None and counted:
            if self._state["kind"] == "sft":
                loss = sum(v or 0 for side in sides for v in side["values"]) / counted
            else:
                loss = sum(example["loss"] for example in examples) / len(examples)
        return {
            "kind": self._state["kind"],
            "examples": len(examples),
            "tokens": sum(len(side["tokens"]) for side in sides),
            "counted": counted,
            "loss": loss,
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        found = self.summary()
        if not found["tokens"]:
            return "MaskViewer: no rows"
        loss = "" if found["loss"] is None else f", loss {fixed(found['loss'])}"
        return (
            f"MaskViewer ({found['kind'].upper()}): {found['examples']} rows, the loss counts "
            f"{found['counted']:,} of {found['tokens']:,} tokens "
            f"({100 * found['counted'] / found['tokens']:.0f}%){loss}"
        )

    def first_frame(self) -> Markup:
        if not self._state["examples"]:
            return frames.card(self.title, frames.fine("No rows."))
        children: list[Markup] = []
        scale = Scale(**(self._state["scale"] or _scale(self._state["kind"], [2.0]).state()))
        for side in self._state["examples"][0]["sides"]:
            if side["label"]:
                children.append(frames.fine(side["label"]))
            # Without a model every counted token gets the same colour.
            values = side["values"] or [float(c) for c in side["counted"]]
            children.append(frames.tokens(side["tokens"], values, scale, side["glue"]))
        return frames.card(self.title, frames.fine(self.line()), *children)

    def shortened(self, budget: int) -> dict[str, Any]:
        """As many examples as fit, always one."""
        kept = list(self._state["examples"])
        while len(kept) > 1 and json_bytes(kept) > budget - 1000:
            kept = kept[: max(1, len(kept) * 3 // 4)]
        left_out = len(self._state["examples"]) - len(kept)
        return {**self._state, "examples": kept, "left_out": left_out}


def _scale(kind: str, values: list[float]) -> Scale:
    if kind == "sft":
        text = (
            "−log p of each token that the loss counts: the stronger the colour, the more it adds."
        )
        return Scale.of(values, "loss", text, kind="sequential", unit="nats")
    text = (
        "β (log π − log π_ref) of each counted token, the implicit reward: blue adds to the "
        "answer's reward, orange takes from it."
    )
    return Scale.of(values, "implicit reward", text, unit="reward")


# ---- rows ------------------------------------------------------------------------------------


def _ids(row: Mapping[str, Any], *names: str) -> list[int] | None:
    for name in names:
        if row.get(name) is not None:
            return [int(i) for i in row[name]]
    return None


def _sides(row: Mapping[str, Any], number: int) -> list[tuple[str, list[int], list[bool]]]:
    """[(label, ids, counted)]: one side of an SFT row, two of a DPO row."""
    ids = _ids(row, "input_ids")
    if ids is not None:
        labels = _ids(row, "labels")
        mask = [i != IGNORED for i in labels] if labels is not None else None
        for name in _MASKS if mask is None else ():
            found = _ids(row, name)
            mask = [bool(i) for i in found] if found is not None else mask
        if mask is None:
            raise DataError(
                f"row {number} has input_ids and nothing that says what counts; give labels "
                f"(-100: left out) or one of {', '.join(_MASKS)}"
            )
        if len(mask) != len(ids):
            raise DataError(f"row {number}: {len(ids)} input_ids and {len(mask)} labels")
        # Nothing comes before the first token, so no model is asked for it.
        return [("", ids, [False, *mask[1:]] if ids else [])]
    prompt = _ids(row, "prompt_ids", "prompt_input_ids")
    chosen = _ids(row, "chosen_ids", "chosen_input_ids")
    rejected = _ids(row, "rejected_ids", "rejected_input_ids")
    if prompt is None or chosen is None or rejected is None:
        raise DataError(
            f"row {number} has the keys {sorted(row)}: an SFT row has input_ids and labels, a DPO "
            "row prompt_ids, chosen_ids and rejected_ids"
        )
    sides = []
    for label, answer in (("chosen", chosen), ("rejected", rejected)):
        sides.append((label, prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return sides


def _example(sides: Any, tokenizer: Any, model: Any, reference: Any, beta: float) -> dict[str, Any]:
    """One row as the state holds it; with a model, `values` per token and the row's `loss`."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    found: list[dict[str, Any]] = []
    for label, ids, counted in sides:
        tokens = [tokenizer.decode([i]) for i in ids]
        values = None
        if model is not None:
            logprobs = _logprobs(model, ids)
            if label:
                base = _logprobs(reference, ids) if reference is not None else logprobs
                signed = [beta * (a - b) for a, b in zip(logprobs, base, strict=True)]
            else:
                signed = [-a for a in logprobs]
            values = [v if c else 0.0 for v, c in zip(signed, counted, strict=True)]
        found.append(
            {
                "label": label,
                "tokens": tokens,
                "glue": glue_of(tokens, tokenizer.decode(ids)),
                "special": [int(i in special) for i in ids],
                "counted": [int(c) for c in counted],
                "values": values,
            }
        )
    return {"sides": found, **_loss(found, beta)}


def _loss(sides: list[dict[str, Any]], beta: float) -> dict[str, Any]:
    """{loss}: of SFT the mean over counted tokens; of DPO −log σ(u), with margin and weight too."""
    if sides[0]["values"] is None:
        return {"loss": None}
    sums = [sum(side["values"]) for side in sides]
    if len(sides) == 1:
        return {"loss": sums[0] / max(1, sum(sides[0]["counted"]))}
    margin = sums[0] - sums[1]  # u = r(chosen) − r(rejected); Rafailov et al. 2023, eq. 7
    loss = math.log1p(math.exp(-abs(margin))) + max(0.0, -margin)  # −log σ(u) without overflow
    # |dL/du| = σ(−u); the gradient of log π on every counted token is weighed by β σ(−u).
    return {"loss": loss, "margin": margin, "weight": beta * -math.expm1(-loss)}


def _logprobs(model: Any, ids: list[int]) -> list[float]:
    """log p of each token given those before it, nats; 0 for the first. One forward pass (1, T)."""
    if len(ids) < 2:
        return [0.0] * len(ids)
    import torch

    from course_utils.objectives import next_token_logprobs

    input_ids = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        logits = model(input_ids=input_ids).logits
    return [0.0, *next_token_logprobs(logits, input_ids)[0].tolist()]
