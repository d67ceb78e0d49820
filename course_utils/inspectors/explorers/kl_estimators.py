"""KLExplorer: three ways to estimate KL from samples, on five words that the reader shapes."""

from typing import Any

import numpy as np
import torch

from course_utils.inspectors.explorers.chance import uniforms
from course_utils.inspectors.explorers.explorer import Explorer, Number, Preset, Weights
from course_utils.objectives.kl import KLEstimator, exact_kl, kl_estimate

KINDS: tuple[KLEstimator, ...] = ("k1", "k2", "k3")
WORDS = ("great", "good", "fine", "sorry", "no")
BATCHES = 200


class KLExplorer(Explorer):
    """Bias and spread of k1, k2, k3 against the exact KL(π ‖ π_ref), and where each one pushes.

    policy, reference: five positive weights; they are divided by their sum.
    """

    module, title = "explorers/kl_estimators.js", "Estimating KL from samples: k1, k2, k3"
    lead = (
        "Shape the policy π and its reference by dragging the bars (or with the arrow keys). "
        "Training sees only sampled words: which estimate is right on average, which is steady?"
    )
    formula = "d = log π − log π_ref      k1 = d      k2 = d²/2      k3 = e^(−d) − 1 + d"
    source = "Schulman 2020, Approximating KL divergence"
    css = ("explorers/explore.css", "explorers/kl_estimators.css")
    inputs = {  # noqa: RUF012
        "policy": Weights("policy π", (0.45, 0.25, 0.15, 0.1, 0.05), 0.001, 1),
        "reference": Weights("reference π_ref", (0.2, 0.2, 0.2, 0.2, 0.2), 0.001, 1),
        "samples": Number(
            "samples in an estimate", 32, 1, 2000, stops=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            whole=True, help="each estimate is the mean over so many sampled words",
        ),
        "seed": Number("seed", 0, 0, 9999, 1, slide=(0, 50), whole=True),
    }  # fmt: skip
    presets = (
        Preset(
            "Close to the reference",
            "k1 is right on average but swings far wider than the KL itself, and is often "
            "negative. k2 and k3 are never negative and much steadier.",
            {"policy": [0.22, 0.21, 0.2, 0.19, 0.18], "reference": [0.2, 0.2, 0.2, 0.2, 0.2]},
        ),
        Preset(
            "Far away: k2's bias",
            "k2 overstates the KL by a lot now. k1 and k3 still have the right mean.",
            {"policy": [0.94, 0.03, 0.01, 0.01, 0.01], "reference": [0.04, 0.24, 0.24, 0.24, 0.24]},
        ),
        Preset(
            "A word the policy has dropped",
            "The reference likes “sorry”, the policy almost never says it. When it does, k3's "
            "e^(−d) is huge: the mean is right, but the estimate waits for a rare event.",
            {"policy": [0.4, 0.3, 0.2, 0.002, 0.1], "reference": [0.15, 0.15, 0.1, 0.5, 0.1]},
        ),
    )

    def constants(self) -> dict[str, Any]:
        return {"words": list(WORDS)}

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """policy, reference (probabilities), exact, reverse; k1, k2, k3: each with

        mean, bias, std (of one sample, exactly), estimates (of `BATCHES` seeded batches), average
        and spread of those, gradient (the expected gradient by the policy's logits, as a loss).
        """
        p, q = (_normalised(chosen[name]) for name in ("policy", "reference"))
        logp, logq = p.log(), q.log()
        exact = float(exact_kl(logp, logq))
        counts = sample_counts(p.tolist(), int(chosen["seed"]), int(chosen["samples"]))
        found: dict[str, Any] = {
            "policy": p.tolist(),
            "reference": q.tolist(),
            "exact": exact,
            "reverse": float(exact_kl(logq, logp)),
        }
        for kind in KINDS:
            k = kl_estimate(logp, logq, kind)  # (V,) the estimate if that word was sampled
            mean = float((p * k).sum())
            logits = logp.clone().requires_grad_()
            now = torch.log_softmax(logits, dim=0)
            (p * kl_estimate(now, logq, kind)).sum().backward()  # p: who samples is not trained
            slope = torch.zeros_like(p) if logits.grad is None else logits.grad
            estimates = counts @ k.numpy() / int(chosen["samples"])
            found[kind] = {
                "mean": mean,
                "bias": mean - exact,
                "std": float((p * (k - mean).square()).sum().sqrt()),
                "average": float(estimates.mean()),
                "spread": float(estimates.std()),
                "estimates": estimates.tolist(),
                "gradient": slope.tolist(),
            }
        return found

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = [("exact KL(π ‖ π_ref)", found["exact"])]
        for kind in KINDS:
            rows += [(f"{kind}: bias, std", [found[kind]["bias"], found[kind]["std"]])]
        return rows


def _normalised(weights: list[float]) -> torch.Tensor:
    values = torch.tensor(weights, dtype=torch.float64)
    return values / values.sum()


def sample_counts(probabilities: list[float], seed: int, samples: int) -> np.ndarray:
    """(BATCHES, V): how often each word came in each batch of `samples` draws."""
    edges = np.cumsum(probabilities)[:-1]  # (V - 1,) a draw u is word v if edges[v-1] <= u
    words = np.searchsorted(edges, uniforms(seed, BATCHES * samples), side="right")
    batches = words.reshape(BATCHES, samples)
    return np.stack([(batches == v).sum(axis=1) for v in range(len(probabilities))], axis=1)
