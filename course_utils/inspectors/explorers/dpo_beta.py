"""DPOExplorer: what β does to DPO's loss, its implicit reward, and how much a pair counts."""

from typing import Any

import torch

from course_utils.inspectors.explorers.explorer import Explorer, Number, Preset
from course_utils.objectives.preference import (
    dpo_gradient_weight,
    dpo_loss,
    implicit_rewards,
)


class DPOExplorer(Explorer):
    """One pair of answers: how far policy and reference differ on each, and what the losses say.

    DPOExplorer(beta=0.1, chosen=4, rejected=-6).frame()["dpo"]["weight"]     # 0.269
    """

    module, title = "explorers/dpo_beta.js", "DPO's β, on one pair of answers"
    lead = (
        "The policy has moved away from the reference by so many nats on each answer. β turns that "
        "into a reward, and decides how soon a pair that is ordered right stops counting."
    )
    formula = "r̂(y) = β log π(y)/π_ref(y)      u = r̂(y_w) − r̂(y_l)      L_DPO = −log σ(u)"
    source = "Rafailov et al. 2023, eq. 7; cDPO: Mitchell 2023; IPO: Azar et al. 2023, eq. 17"
    inputs = {  # noqa: RUF012
        "beta": Number("β", 0.1, 0.001, 10, log=True, slide=(0.01, 1), help="0.1 is usual"),
        "chosen": Number(
            "chosen y_w, nats", 4.0, -1e4, 1e4, 0.5, slide=(-40, 40), help="log π/π_ref of y_w"
        ),
        "rejected": Number(
            "rejected y_l, nats", -6.0, -1e4, 1e4, 0.5, slide=(-40, 40), help="log π/π_ref of y_l"
        ),
        "smoothing": Number("cDPO: wrong labels ε", 0.1, 0, 0.49, 0.01),
    }
    presets = (
        Preset(
            "The start: policy = reference",
            "Both rewards are 0, the loss is log 2 = 0.69, and every pair counts one half.",
            {"chosen": 0, "rejected": 0},
        ),
        Preset(
            "Small β lets the policy walk far",
            "At β = 0.02 a lead of 20 nats is still a margin of 0.4: the pair counts nearly "
            "as much as at the start, and pushes on.",
            {"beta": 0.02, "chosen": 8, "rejected": -12},
        ),
        Preset(
            "Both answers got rarer",
            "The margin is as large as it was with the chosen one at +4. DPO sees only the "
            "difference: nothing holds the chosen answer's probability up.",
            {"beta": 0.1, "chosen": -20, "rejected": -30},
        ),
        Preset(
            "Where cDPO and IPO turn round",
            "DPO's weight nears 0 and never changes its sign. cDPO's does at u = log((1−ε)/ε), "
            "IPO's at u = ½: beyond, they pull the margin back.",
            {"beta": 0.2, "chosen": 10, "rejected": -8, "smoothing": 0.1},
        ),
    )

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """rewards, lead (nats), margin u, and for dpo, cdpo, ipo: loss, weight = −∂L/∂u.

        IPO's weight is given for β² L, so that the three can be drawn on one axis.
        """
        beta, smoothing = chosen["beta"], chosen["smoothing"]
        w = torch.tensor([chosen["chosen"]], dtype=torch.float64)
        y = torch.tensor([chosen["rejected"]], dtype=torch.float64)
        none = torch.zeros_like(w)
        rewards = [float(implicit_rewards(x, none, beta)) for x in (w, y)]
        found: dict[str, Any] = {
            "reward_chosen": rewards[0],
            "reward_rejected": rewards[1],
            "lead": float(w - y),
            "margin": rewards[0] - rewards[1],
            "probability": float(torch.sigmoid(beta * (w - y))),
        }
        for name, epsilon in (("dpo", 0.0), ("cdpo", smoothing)):
            found[name] = {
                "loss": float(dpo_loss(w, y, none, none, beta, label_smoothing=epsilon)),
                "weight": float(dpo_gradient_weight(w, y, none, none, beta, epsilon)),
            }
        moving = w.clone().requires_grad_()
        loss = dpo_loss(moving, y, none, none, beta, "ipo")
        loss.backward()
        slope = 0.0 if moving.grad is None else float(moving.grad)  # ∂L/∂lead = β ∂L/∂u
        found["ipo"] = {"loss": float(loss.detach()), "weight": -slope * beta}
        return found

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        return [
            ("margin u", found["margin"]),
            ("implicit rewards", [found["reward_chosen"], found["reward_rejected"]]),
            ("DPO loss", found["dpo"]["loss"]),
            ("DPO weight", found["dpo"]["weight"]),
            ("cDPO weight", found["cdpo"]["weight"]),
            ("IPO weight × β²", found["ipo"]["weight"]),
        ]
