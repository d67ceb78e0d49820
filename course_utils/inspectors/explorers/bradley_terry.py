"""BradleyTerryExplorer: from a difference of scores to a probability, a loss and its gradient."""

from typing import Any

import torch

from course_utils.inspectors.explorers.explorer import Explorer, Number, Preset
from course_utils.objectives.preference import bradley_terry_loss


class BradleyTerryExplorer(Explorer):
    """Two scores, the probability that A is preferred, and what the reward model learns from it.

    BradleyTerryExplorer(chosen=2, rejected=0).frame()["probability"]     # 0.881
    """

    module, title = "explorers/bradley_terry.js", "Bradley-Terry: scores become probabilities"
    lead = (
        "A reward model gives two answers a score each. Only the difference counts: it is the "
        "log-odds that people prefer A."
    )
    formula = (
        "P(A ≻ B) = σ(r_A − r_B)      L = −(1−ε) log σ(r_A − r_B − m) − ε log σ(r_B − r_A + m)"
    )
    source = "Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; margin: Touvron et al. 2023, eq. 2"
    inputs = {  # noqa: RUF012
        "chosen": Number("score of A, preferred", 1.0, -1e4, 1e4, 0.1, slide=(-6, 6)),
        "rejected": Number("score of B", 0.0, -1e4, 1e4, 0.1, slide=(-6, 6)),
        "margin": Number("margin m", 0.0, 0, 100, 0.1, slide=(0, 3), help="how much better A is"),
        "smoothing": Number("wrong labels ε", 0.0, 0, 0.49, 0.01, help="label smoothing"),
    }
    presets = (
        Preset(
            "Add 3 to both scores",
            "Nothing changes. Scores have no zero: normalise them before PPO adds a KL to them.",
            {"chosen": 4, "rejected": 3, "margin": 0, "smoothing": 0},
        ),
        Preset(
            "Confidently wrong",
            "The gradient nears −1 and stays there: a wrong pair pulls with a constant force, "
            "however wrong, which is why a few mislabelled pairs do not explode the loss.",
            {"chosen": -5, "rejected": 1, "margin": 0, "smoothing": 0},
        ),
        Preset(
            "A tenth of the labels is wrong",
            "With ε = 0.1 the loss has a least value at a difference of log(0.9 / 0.1) = 2.2: "
            "beyond it the model is told that it is too sure.",
            {"chosen": 4, "rejected": 0, "margin": 0, "smoothing": 0.1},
        ),
    )

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """difference, probability, odds' log is the difference; loss, gradient by r_A."""
        a = torch.tensor([chosen["chosen"]], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([chosen["rejected"]], dtype=torch.float64)
        margin = torch.tensor([chosen["margin"]], dtype=torch.float64)
        loss = bradley_terry_loss(a, b, margin, chosen["smoothing"])
        loss.backward()
        slope = 0.0 if a.grad is None else float(a.grad)
        difference = chosen["chosen"] - chosen["rejected"]
        return {
            "difference": difference,
            "probability": float(torch.sigmoid(a.detach() - b)),
            "loss": float(loss.detach()),
            "gradient": slope,  # by r_A; by r_B it is the opposite
        }

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        return [
            ("difference", found["difference"]),
            ("P(A preferred)", found["probability"]),
            ("loss", found["loss"]),
            ("gradient by A's score", found["gradient"]),
        ]
