"""NF4Explorer: where the sixteen levels of NF4, FP4 and INT4 lie, and what rounding costs."""

from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.inspectors.explorers.chance import normals, uniforms
from course_utils.inspectors.explorers.explorer import Choice, Explorer, Number, Preset
from course_utils.quantization import FORMATS, code_book, error_table, quantize, unpack
from course_utils.quantization.blockwise import check_weights, encode

COUNT = 4096  # weights that are made up
MOST = 1536  # given weights that the page holds
KINDS = (
    ("normal", "normal"),
    ("heavy", "heavy tails (Laplace)"),
    ("outliers", "normal, 1 in 200 eight-fold"),
    ("uniform", "uniform"),
)


class NF4Explorer(Explorer):
    """Weights of a chosen kind, rounded to 4 bits block by block in three formats.

    Args:
        weights: real ones to look at, any shape, their first 1,536 (to 4 digits); None: made up.
        chosen: the inputs, by name.
    Raises: CourseError for weights that are empty or not finite, or an unknown input.
    """

    module, title = "explorers/nf4_levels.js", "NF4, FP4, INT4: sixteen levels"
    css = ("explorers/explore.css", "explorers/nf4_levels.css")
    lead = (
        "A block of weights is divided by its largest magnitude, and each becomes the nearest of "
        "16 levels. NF4 puts its levels where normally distributed weights are."
    )
    formula = "ŵ = s · level[ nearest(w / s) ],   s = max |w| of the block      bits: 4 + 32/block"
    source = "Dettmers et al. 2023 (QLoRA), §3 and appendix E"
    inputs = {  # noqa: RUF012
        "format": Choice("format", "nf4", (("nf4", "NF4"), ("fp4", "FP4"), ("int4", "INT4"))),
        "kind": Choice("weights", "normal", KINDS),
        "block": Number(
            "block", 64, 1, COUNT, stops=(16, 32, 64, 128, 256, 512, 1024, 4096), whole=True
        ),
        "probe": Number("one weight, w / s", 0.3, -1, 1, 0.01),
        "seed": Number("seed", 0, 0, 9999, 1, slide=(0, 50), whole=True),
    }
    presets = (
        Preset(
            "Outliers, large blocks",
            "One large weight sets the scale of the whole block: the others fall into the few "
            "levels around 0. The error more than doubles against blocks of 64.",
            {"kind": "outliers", "block": 1024, "format": "nf4"},
        ),
        Preset(
            "… and small blocks",
            "An outlier spoils 16 weights only, but the scales now cost 2 bits a weight.",
            {"kind": "outliers", "block": 16, "format": "nf4"},
        ),
        Preset(
            "Uniform weights",
            "Not normal, so NF4 is not best: evenly spaced INT4 is.",
            {"kind": "uniform", "block": 64, "format": "int4"},
        ),
    )

    def __init__(self, weights: Tensor | None = None, **chosen: Any) -> None:
        self._given = None if weights is None else _given(weights)
        super().__init__(**chosen)

    def constants(self) -> dict[str, Any]:
        return {"weights": self._given, "count": COUNT}

    def shortened(self, budget: int) -> dict[str, Any]:
        """The first weights, so that they fit."""
        given, kept = self._state["weights"], MOST
        while given is not None and kept > 256 and 8 * min(kept, len(given)) + 4000 > budget:
            kept //= 2
        return self._state if given is None else {**self._state, "weights": given[:kept]}

    def weights(self, kind: str, seed: int) -> Tensor:
        """(N,) float32, as the page makes them."""
        if self._state["weights"] is not None:
            return torch.tensor(self._state["weights"], dtype=torch.float32)
        if kind in ("normal", "outliers"):
            made = normals(seed, COUNT)
            if kind == "outliers":
                made[::200] *= 8
        else:
            u = torch.from_numpy(uniforms(seed, COUNT) - 0.5)
            heavy = -u.sign() * (1 - 2 * u.abs()).log()
            made = (heavy if kind == "heavy" else 2 * u).numpy()
        return torch.from_numpy(made * 0.02).float()

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """formats: {name: mean, rms, max, relative, bits}; used: share of each level, entropy

        (bits) of the chosen format; level, error of the probe."""
        weights = self.weights(chosen["kind"], int(chosen["seed"]))
        block = int(chosen["block"])
        formats = {
            row.format: {
                "mean": row.mean,
                "rms": row.rms,
                "max": row.max,
                "relative": row.relative,
                "bits": row.bits,
            }
            for row in error_table([weights], block, FORMATS)
            if not row.double
        }
        book = code_book(chosen["format"])
        codes = unpack(quantize(weights, book.name, block).codes, len(weights))
        used = torch.bincount(codes.long(), minlength=16)[book.codes.long()].double()
        share = used / used.sum()
        probe = torch.tensor([chosen["probe"]], dtype=torch.float32)
        level = float(book.values[book.nearest(probe).long()])
        return {
            "formats": formats,
            "levels": book.levels.tolist(),
            "used": share.tolist(),
            "entropy": float(torch.special.entr(share).sum())
            / torch.tensor(2.0).double().log().item(),
            "level": level,
            "error": level - float(probe),
            "scales": len(encode(weights, book, block)[1]),
        }

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = [
            (f"{name.upper()}: rms error / rms weight", row["relative"])
            for name, row in found["formats"].items()
        ]
        bits = next(iter(found["formats"].values()))["bits"]
        return [*rows, ("bits per weight", bits), ("bits used", found["entropy"])]


def _given(weights: Any) -> list[float]:
    if not isinstance(weights, Tensor):
        try:
            weights = torch.as_tensor(weights, dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise CourseError(f"weights must be numbers: {error}") from None
    check_weights(weights, "weights")
    return [float(w) for w in weights.detach().float().flatten()[:MOST]]
