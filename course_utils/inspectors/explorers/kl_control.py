"""KLControlExplorer: the adaptive KL controller, on a policy whose reaction is simulated."""

import math
from typing import Any

from course_utils.inspectors.explorers.chance import normals
from course_utils.inspectors.explorers.explorer import Explorer, Number, Preset, refuse
from course_utils.objectives.kl import AdaptiveKL

MOST_KL = 400.0  # nats; where a policy without a leash ends in this simulation


class KLControlExplorer(Explorer):
    """How β finds the target KL, how slowly, and how it overshoots.

    The policy is a stand-in: reward grows like pull · √KL (Bai et al. 2022), so with coefficient β
    it is drawn to KL* = (pull / 2β)², and covers a share `speed` of the way in each iteration.
    """

    module, title = "explorers/kl_control.js", "The adaptive KL controller"
    lead = (
        "PPO's leash: β rises when the policy has gone further than the target, and falls when it "
        "has not. The policy here is simulated: more β, less KL, with a delay."
    )
    formula = "β ← β (1 + clip(KL/target − 1, −0.2, 0.2) · n/horizon)      KL* = (pull / 2β)²"
    source = "Ziegler et al. 2019, §2.2; the √KL law: Bai et al. 2022"
    inputs = {  # noqa: RUF012
        "beta": Number("β at the start", 0.05, 1e-4, 10, log=True, slide=(0.001, 1)),
        "target": Number("target KL, nats", 6.0, 0.1, 200, 0.5, slide=(0.5, 30)),
        "samples": Number(
            "answers an iteration n",
            256,
            1,
            4096,
            stops=(16, 32, 64, 128, 256, 512, 1024),
            whole=True,
        ),
        "horizon": Number(
            "horizon, answers",
            2000,
            1,
            1_000_000,
            stops=(300, 500, 1000, 2000, 5000, 10_000, 20_000),
            whole=True,
        ),
        "steps": Number("iterations", 200, 10, 2000, stops=(50, 100, 200, 400, 800), whole=True),
        "pull": Number("pull of the reward", 0.5, 0.01, 20, 0.05, slide=(0.05, 2)),
        "speed": Number("speed of the policy", 0.08, 0.01, 1, 0.01, slide=(0.01, 0.5)),
        "noise": Number("noise of measured KL", 0.1, 0, 1, 0.01, slide=(0, 0.5)),
        "seed": Number("seed", 0, 0, 9999, 1, slide=(0, 50), whole=True),
    }
    presets = (
        Preset(
            "The published horizon, a small batch",
            "64 answers against a horizon of 10,000: β may change by 0.13% an iteration. It "
            "hardly moves, and the policy goes where the first β lets it.",
            {"beta": 0.02, "samples": 64, "horizon": 10_000, "steps": 200, "speed": 0.08},
        ),
        Preset(
            "Too eager",
            "A short horizon and a slow policy: by the time the KL answers, β has gone too far, "
            "and the two swing around the target.",
            {"beta": 0.02, "samples": 256, "horizon": 300, "steps": 400, "speed": 0.03},
        ),
        Preset(
            "A reward model that pulls harder",
            "A fixed β gives a KL sixteen times as large; the controller ends at the target "
            "with four times the β.",
            {"beta": 0.1, "pull": 2, "samples": 512, "horizon": 2000, "steps": 400, "speed": 0.1},
        ),
    )

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """Paths (kl, measured, beta, fixed: one number an iteration) and what they come to."""
        target, steps = chosen["target"], int(chosen["steps"])
        noise = normals(int(chosen["seed"]), steps)
        controller = AdaptiveKL(chosen["beta"], target, int(chosen["horizon"]))
        kl = fixed = 0.0
        paths: dict[str, list[float]] = {"kl": [], "measured": [], "beta": [], "fixed": []}
        for t in range(steps):
            kl = _react(kl, controller.beta, chosen)
            fixed = _react(fixed, chosen["beta"], chosen)
            measured = kl * math.exp(chosen["noise"] * float(noise[t]))
            try:
                beta = controller.update(measured, int(chosen["samples"]))
            except ValueError as error:
                raise refuse(error) from None
            for name, value in (("kl", kl), ("measured", measured), ("fixed", fixed)):
                paths[name].append(value)
            paths["beta"].append(beta)
        last = max(1, steps // 10)
        off = [t for t, value in enumerate(paths["kl"]) if abs(value / target - 1) > 0.2]
        settled = off[-1] + 1 if off else 0
        return {
            **paths,
            "final_kl": sum(paths["kl"][-last:]) / last,
            "final_beta": paths["beta"][-1],
            "final_fixed": paths["fixed"][-1],
            "highest": max(paths["kl"]),
            "settled": settled if settled < steps else None,  # iterations until within 20% for good
            "right_beta": chosen["pull"] / (2 * math.sqrt(target)),
            "most_change": 0.2 * chosen["samples"] / chosen["horizon"],
        }

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        return [
            ("KL at the end", found["final_kl"]),
            ("β at the end", found["final_beta"]),
            ("KL with β fixed", found["final_fixed"]),
            ("iterations to settle", found["settled"]),
        ]


def _react(kl: float, beta: float, chosen: dict[str, Any]) -> float:
    """One iteration of the stand-in policy."""
    goal = min((chosen["pull"] / (2 * beta)) ** 2, MOST_KL)
    return float(kl + chosen["speed"] * (goal - kl))
