"""PPOClipExplorer: why PPO stops pulling once the ratio has left 1 ± ε, and when it does not."""

import math
from typing import Any

import torch

from course_utils.inspectors.explorers.explorer import Choice, Explorer, Number, Preset, refuse
from course_utils.objectives.policy_gradient import clipped_surrogate

SWITCH = ((False, "off"), (True, "on"))


class PPOClipExplorer(Explorer):
    """The clipped objective of one token and its slope, over ratio, advantage and ε.

    PPOClipExplorer(ratio=1.4, advantage=1).frame()["gradient"]     # 0: clipped
    """

    module, title = "explorers/ppo_clip.js", "PPO's clip, one token at a time"
    lead = (
        "A token's share in PPO's objective, as its probability moves away from what it was when "
        "the answer was sampled. Where the curve is flat, the token no longer pulls."
    )
    formula = "L = min( r Â, clip(r, 1−ε, 1+ε) Â )      r = π(a|s) / π_old(a|s)"
    source = "Schulman et al. 2017, eq. 7; dual clip: Ye et al. 2020, eq. 5"
    inputs = {  # noqa: RUF012
        "ratio": Number("ratio r", 1.1, 0.01, 10, 0.01, slide=(0.01, 3), help="π / π_old"),
        "advantage": Number("advantage Â", 1.0, -100, 100, 0.1, slide=(-3, 3)),
        "clip": Number("clip ε", 0.2, 0.01, 1, 0.01, help="0.1 to 0.3 is usual"),
        "apart": Choice("another ε above 1", False, SWITCH, help="DAPO's clip-higher"),
        "high": Number("ε above 1", 0.28, 0.01, 2, 0.01, slide=(0.01, 1), needs="apart"),
        "dual": Choice("dual clip", False, SWITCH, help="a floor for Â < 0"),
        "floor": Number("dual clip c", 2.0, 1, 20, 0.05, slide=(1, 4), needs="dual"),
    }
    presets = (
        Preset(
            "A good token, far enough",
            "Â > 0 and r above 1+ε: the objective is flat. PPO has got what it wanted from this "
            "token and takes no further step for it.",
            {"ratio": 1.5, "advantage": 1, "dual": False},
        ),
        Preset(
            "A good token that got rarer",
            "Â > 0 but r below 1−ε: the min keeps the straight line, so the token is pulled back "
            "with its full gradient. The clip never stops a correction.",
            {"ratio": 0.5, "advantage": 1, "dual": False},
        ),
        Preset(
            "A bad token that got likelier",
            "Â < 0 and r large: no clip on this side. One such token can outweigh a batch.",
            {"ratio": 2.8, "advantage": -1, "dual": False},
        ),
        Preset(
            "… with dual clip",
            "The objective has a floor at c Â: beyond r = c the token is let go.",
            {"ratio": 2.8, "advantage": -1, "dual": True, "floor": 2},
        ),
    )

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """objective, unclipped, bounded, gradient (by r), push (by log π), clipped, region."""
        ratio = torch.tensor([chosen["ratio"]], dtype=torch.float64, requires_grad=True)
        advantage = torch.tensor([chosen["advantage"]], dtype=torch.float64)
        clip, high = chosen["clip"], chosen["high"] if chosen["apart"] else chosen["clip"]
        dual = chosen["floor"] if chosen["dual"] else None
        try:
            objective, clipped = clipped_surrogate(ratio, advantage, clip, high, dual)
        except ValueError as error:
            raise refuse(error) from None
        objective.sum().backward()
        slope = 0.0 if ratio.grad is None else float(ratio.grad)
        r, value = float(ratio.detach()), float(objective.detach())
        inside = 1 - clip <= r <= 1 + high
        region = "stopped" if bool(clipped) else "inside" if inside else "pulled back"
        return {
            "objective": value,
            "unclipped": r * float(advantage),
            "bounded": min(max(r, 1 - clip), 1 + high) * float(advantage),
            "gradient": slope,
            "push": r * slope,  # ∂L/∂log π = r ∂L/∂r
            "log_ratio": math.log(r),
            "clipped": bool(clipped),
            "region": region,
        }

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        names = ("objective", "gradient", "push", "region")
        return [(name, found[name]) for name in names]
