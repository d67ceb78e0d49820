"""LoRAExplorer: how many parameters a rank costs, and how much of a change it can hold."""

from typing import Any

import torch
from torch import Tensor

from course_utils.adapters.svd import effective_rank, rank_for_energy, svd_energy
from course_utils.errors import CourseError
from course_utils.inspectors.explorers.explorer import Choice, Explorer, Number, Preset
from course_utils.memory import MODELS, find_shape, recipe
from course_utils.memory.held import adapter_tensors, count
from course_utils.memory.shape import ModelShape

SHAPES = (
    "smollm2-135m",
    "smollm2-360m",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "smollm3-3b",
    "llama-7b",
    "llama-65b",
    "gpt2",
)
DIRECTIONS = 256  # of the made-up spectrum
MOST = 512  # singular values that the page holds
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "attn.c_attn", "attn.c_proj")
FEW = ("q_proj", "v_proj", "attn.c_attn")
TARGETS = (("few", "q, v"), ("attention", "attention"), ("all", "all linear"))


def targets(shape: ModelShape, which: str) -> tuple[str, ...]:
    """Names of the matrices that one of `TARGETS` adapts."""
    names = tuple(linear.name for linear in shape.linears)
    wanted = {"few": FEW, "attention": ATTENTION, "all": names}[which]
    return tuple(name for name in names if name in wanted)


class LoRAExplorer(Explorer):
    """Parameters of LoRA by rank and target, and the energy of the best rank-r approximation.

    Args:
        delta: a weight change ΔW, (d, k), or its singular values, (n,) descending; None: a made-up
            spectrum σ_i = i^(-decay) of 256 directions. Values are kept to 4 digits, at most 512.
        chosen: the inputs, by name.
    Raises: CourseError for a matrix that is not finite or all zeros, or an unknown input.
    """

    module, title = "explorers/lora_rank.js", "LoRA's rank: what it costs, what it can hold"
    lead = (
        "A matrix of d × k numbers is left alone; beside it, B (d × r) times A (r × k) is trained. "
        "The cost grows with r, and so does the share of a full weight change that fits."
    )
    formula = "W' = W + (α/r) B A      r (d + k) parameters      energy(r) = Σ_{i≤r} σ_i² / Σ σ_i²"
    source = "Hu et al. 2022; Eckart & Young 1936"
    inputs = {  # noqa: RUF012
        "model": Choice("model", "smollm2-135m", tuple((name, name) for name in SHAPES)),
        "targets": Choice("on", "all", TARGETS),
        "rank": Number("rank r", 16, 1, 8192, stops=(1, 2, 4, 8, 16, 32, 64, 128, 256), whole=True),
        "decay": Number("decay of σ", 0.8, 0, 4, 0.05, slide=(0, 2), help="σ_i = i^(−decay)"),
        "energy": Number("energy wanted", 0.9, 0.01, 1, 0.01, slide=(0.5, 1)),
    }
    presets = (
        Preset(
            "The lecture's 0.1 to 1%",
            "65B at rank 16 on all matrices: 0.3%. Larger models pay a smaller share.",
            {"model": "llama-65b", "rank": 16, "targets": "all"},
        ),
        Preset(
            "Small models pay more",
            "The same rank on SmolLM2-135M is well over 1%: a share of r (1/d + 1/k), and d, k "
            "are small.",
            {"model": "smollm2-135m", "rank": 16, "targets": "all"},
        ),
        Preset(
            "A change of full rank",
            "With a flat spectrum no direction stands out: rank 16 of 256 holds 6% of the energy. "
            "Tasks like this are where LoRA falls behind.",
            {"decay": 0, "rank": 16},
        ),
    )

    def __init__(self, delta: Tensor | None = None, **chosen: Any) -> None:
        self._spectrum = None if delta is None else _spectrum(delta)
        super().__init__(**chosen)

    def constants(self) -> dict[str, Any]:
        shapes = {}
        for name in SHAPES:
            shape = find_shape(name, online=False)
            shapes[name] = {
                "parameters": shape.parameters,
                "layers": shape.layers,
                "linears": [[x.name, x.inputs, x.outputs] for x in shape.linears],
                "few": list(targets(shape, "few")),
                "attention": list(targets(shape, "attention")),
            }
        return {"shapes": shapes, "spectrum": self._spectrum, "directions": DIRECTIONS}

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """trained, parameters, share (trained / all), matrices; kept (energy at r), enough (the

        rank for the energy wanted), effective (rank), directions."""
        shape = find_shape(chosen["model"], online=False)
        names = targets(shape, chosen["targets"])
        rank = int(chosen["rank"])
        plan = recipe("lora", rank=rank, targets=names)
        trained = count(adapter_tensors(shape, plan))  # raises for a rank that does not fit
        values = self._values(chosen["decay"])
        matrix = torch.diag(values)
        energy = svd_energy(matrix)
        return {
            "trained": trained,
            "parameters": shape.parameters,
            "share": trained / (shape.parameters + trained),
            "matrices": len(names) * shape.layers,
            "kept": float(energy[min(rank, len(values)) - 1]),
            "enough": rank_for_energy(matrix, chosen["energy"]),
            "effective": effective_rank(matrix),
            "directions": len(values),
        }

    def _values(self, decay: float) -> Tensor:
        given = self._state["spectrum"]
        if given is not None:
            return torch.tensor(given, dtype=torch.float64)
        return torch.arange(1, DIRECTIONS + 1, dtype=torch.float64) ** -decay

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        return [
            ("trained parameters", found["trained"]),
            ("share", f"{100 * found['share']:.3g}%"),
            ("energy kept", found["kept"]),
            ("rank for the energy wanted", found["enough"]),
            ("effective rank", found["effective"]),
        ]


def _spectrum(delta: Any) -> list[float]:
    values = torch.as_tensor(delta).detach().double()
    if values.dim() == 2:
        svd_energy(values)  # raises for what is no matrix with a spectrum
        values = torch.linalg.svdvals(values)
    if values.dim() != 1 or not len(values):
        raise CourseError(
            f"delta must be a matrix (d, k) or its singular values (n,), got {tuple(values.shape)}"
        )
    if not bool(values.isfinite().all()) or bool((values < 0).any()) or not values.max() > 0:
        raise CourseError("singular values must be finite, not negative, and not all zero")
    values = values.sort(descending=True).values[:MOST]
    return [float(v / values[0]) for v in values]


assert set(SHAPES) <= set(MODELS)
