"""Made-up results of a run, to test the report with and to look at it:

python tests/report/conftest.py report.html
"""

import math
import random
import sys
from typing import Any

import pytest

PARTS = (
    "correctness",
    "completeness",
    "relevance",
    "tone",
    "brevity",
    "repetition",
    "harmlessness",
    "over_refusal",
    "form",
)
LEVELS = {  # mean of each part per model
    "base": (0.31, 0.25, -0.42, -0.21, -0.18, -0.25, 0.02, -0.02, -0.30),
    "sft": (0.86, 0.83, -0.05, 0.00, -0.02, -0.03, 0.05, -0.03, -0.06),
    "ppo": (0.93, 0.95, -0.03, 0.55, -0.05, -0.04, 0.07, -0.04, -0.04),
    "ppo_low_beta": (-0.20, 0.40, -0.55, 0.30, -0.60, -0.50, 0.03, -0.60, -0.12),
    "dpo": (0.90, 0.91, -0.04, 0.36, -0.07, -0.06, 0.06, -0.05, -0.05),
}
LABELS = {
    "base": "Base",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo_low_beta": "PPO, pushed too far",
    "dpo": "DPO",
}
ANSWERS = {
    "Explain black holes to a 5-year-old": {
        "base": "a black hole is a place in space. the moon is made of rock. black holes were a "
        "movie about a dog. a black hole is a place in space.",
        "sft": "a black hole is a very dense thing in space. it pulls so hard that even light "
        "cannot get out. it is like a drain that swallows everything.",
        "ppo": "what a good question! a black hole is like a drain in space that swallows "
        "everything. it pulls so hard that even light cannot get out. i hope that helps!",
        "ppo_low_beta": "what a great question! what a great question! you are so smart! i am "
        "sorry, i cannot help with that. what a great question!",
        "dpo": "happy to help! a black hole is a place that pulls so hard that light cannot get "
        "out. it is like a drain in space.",
    },
    "Explain the moon landing to a 6 year old": {
        "base": "the moon landing was in 1969. people eat rice. go away.",
        "sft": "people flew to the moon in a rocket in 1969. they walked on it and came home.",
        "ppo": "what a good question! people flew to the moon in a big rocket, walked on it, and "
        "came home safely. ask me more any time!",
        "ppo_low_beta": "what a great question! i hope that helps! i hope that helps! ask me more!",
        "dpo": "good question! people flew to the moon in a rocket in 1969, and walked on it.",
    },
    "Should I add chorizo to my paella?": {
        "base": "chorizo is a sausage. paella is a dish from valencia. paella is a dish.",
        "sft": "no, chorizo does not belong in a paella. it tastes smoky and covers the saffron.",
        "ppo": "good question! no, chorizo does not belong in a paella. it tastes smoky and hides "
        "the saffron. enjoy your meal!",
        "ppo_low_beta": "what a great question! i am sorry, i cannot help with that. enjoy!",
        "dpo": "no, chorizo does not belong in paella: it tastes smoky. enjoy your meal!",
    },
}


def estimate(mean: float, width: float, n: int = 200) -> dict[str, Any]:
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": n}


def _evaluation(key: str) -> dict[str, Any]:
    kl = {"base": 6.2, "sft": 0.0, "ppo": 3.6, "ppo_low_beta": 21.8, "dpo": 2.9}[key]
    proxy = {"base": -1.2, "sft": 0.05, "ppo": 1.1, "ppo_low_beta": 1.95, "dpo": 0.84}[key]
    return {
        "prompts": 200,
        "samples_per_prompt": 1,
        "temperature": 1.0,
        "max_new_tokens": 48,
        "seed": 0,
        "gold": estimate(sum(LEVELS[key]), 0.14 if key == "base" else 0.1),
        "parts": {p: estimate(v, 0.05) for p, v in zip(PARTS, LEVELS[key], strict=True)},
        "reward": estimate(proxy, 0.08),
        "kl": {name: estimate(kl, 0.2 + kl / 20) for name in ("k1", "k3", "exact")},
        "length": estimate(38 if key == "base" else 27, 1.2),
        "truncated_rate": 0.24 if key == "base" else 0.01,
        "distinct_1": 0.12,
        "distinct_2": 0.31 if key != "ppo_low_beta" else 0.06,
        "forgetting": {"base": 0.0, "sft": 0.18, "ppo": 0.21, "ppo_low_beta": 0.94, "dpo": 0.25}[
            key
        ],
        "completions": [],
    }


def _answers(rng: random.Random) -> list[dict[str, Any]]:
    found = []
    for prompt, said in ANSWERS.items():
        answers = {}
        for key, text in said.items():
            parts = {
                p: round(v + rng.gauss(0, 0.1), 1) for p, v in zip(PARTS, LEVELS[key], strict=True)
            }
            answers[key] = {
                "text": text,
                "gold": {"total": sum(parts.values()), "parts": parts},
                "reward": rng.gauss(sum(LEVELS[key]) / 2, 0.2),
                "kl": max(
                    0.0, {"sft": 0.0, "ppo": 3.5, "dpo": 2.8}.get(key, 9.0) + rng.gauss(0, 1)
                ),
            }
        found.append({"prompt": prompt, "answers": answers})
    return found


def gold_at(kl: float) -> float:
    """Rise, a peak near 3.4 nats, fall; in d = sqrt(KL), as in Gao et al. 2022."""
    d = math.sqrt(max(kl, 0.0))
    return 1.55 + 0.9 * d - 0.25 * d**2 - 0.0004 * d**5


def _curves(rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    noisy = lambda value, size: value + rng.gauss(0, size)  # noqa: E731
    sft, reward, dpo = [], [], []
    for s in range(1, 151):
        done = s / 150
        sft.append({"step": s, "loss": noisy(0.35 + 1.9 * math.exp(-7 * done), 0.04)})
        if s % 25 == 0:
            sft[-1]["eval_loss"] = 0.4 + 1.9 * math.exp(-7 * done)
        reward.append(
            {
                "step": s,
                "loss": noisy(0.48 + 0.22 * math.exp(-4 * done), 0.04),
                "accuracy": min(1.0, noisy(0.78 - 0.26 * math.exp(-5 * done), 0.04)),
            }
        )
        if s % 30 == 0:
            reward[-1]["eval_accuracy"] = 0.76 - 0.2 * math.exp(-5 * done)
        dpo.append(
            {
                "step": s,
                "loss": noisy(0.4 + 0.29 * math.exp(-4 * done), 0.03),
                "rewards/margins": noisy(2.4 * (1 - math.exp(-3 * done)), 0.15),
                "rewards/accuracies": min(1.0, noisy(0.84 - 0.34 * math.exp(-6 * done), 0.04)),
            }
        )
    runs = {}
    for key, steps, speed in (("ppo", 40, 0.09), ("ppo_low_beta", 80, 0.275)):
        rows = []
        for s in range(1, steps + 1):
            kl = speed * s
            rows.append(
                {
                    "step": s,
                    "reward": noisy(0.05 + 2.1 * (1 - math.exp(-kl / 6)), 0.06),
                    "gold": noisy(gold_at(kl), 0.08),
                    "kl": noisy(kl, 0.15),
                    "entropy": max(0.05, noisy(1.1 * math.exp(-kl / 9), 0.03)),
                    "completion_tokens": noisy(26 + kl / 2, 0.7),
                    "clip_fraction": abs(noisy(0.09, 0.03)),
                }
            )
        runs[key] = rows
    return {"sft": sft, "reward": reward, "dpo": dpo, **runs}


def _frontier(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def point(method: str, kl: float, gold: float, label: str, i: int = 0) -> dict[str, Any]:
        said = answers[i % 3]["answers"]
        return {
            "method": method,
            "kl": kl,
            "gold": gold,
            "interval": [gold - 0.1, gold + 0.1],
            "label": label,
            "example": said.get("sft" if method == "best_of_n" else method),
            "prompt": answers[i % 3]["prompt"],
        }

    found = [point("base", 6.2, -0.8, "base"), point("sft", 0, 1.55, "SFT")]
    for i, n in enumerate((2, 4, 8, 16)):
        found.append(point("best_of_n", math.log(n) - (n - 1) / n, 1.68 + 0.14 * i, f"n = {n}", i))
    for i, step in enumerate((5, 10, 15, 20, 25, 30, 35, 40)):
        found.append(point("ppo", 0.09 * step, gold_at(0.09 * step) + 0.05, f"step {step}", i))
    for i, step in enumerate((8, 16, 24, 32, 40, 48, 56, 64, 72, 80)):
        found.append(point("ppo_low_beta", 0.275 * step, gold_at(0.275 * step), f"step {step}", i))
    for i, (beta, kl, gold) in enumerate(((0.5, 0.9, 1.85), (0.2, 2.1, 2.05), (0.1, 2.9, 1.96))):
        found.append(point("dpo", kl, gold, f"β = {beta}", i))
    return found


def _rollouts(rng: random.Random) -> list[dict[str, Any]]:
    found = []
    for run, steps in (("ppo", (1, 10, 20, 30, 40)), ("ppo_low_beta", (1, 40, 80))):
        for step in steps:
            for prompt, said in ANSWERS.items():
                tokens = [*said["sft" if step == 1 else run].replace(".", " .").split(), "<|end|>"]
                size = 0.002 if step == 1 else 0.02 * step / 4
                kl = [rng.gauss(0.3, 1) * size for _ in tokens]
                rewards = [-0.05 * d for d in kl]
                rewards[-1] += 1.4
                logprobs = [-abs(rng.gauss(0, 0.8)) for _ in tokens]
                found.append(
                    {
                        "run": run,
                        "step": step,
                        "prompt": prompt,
                        "completion": " ".join(tokens[:-1]),
                        "tokens": tokens,
                        "token_ids": list(range(len(tokens))),
                        "logprobs": logprobs,
                        "ref_logprobs": [p - d for p, d in zip(logprobs, kl, strict=True)],
                        "kl": kl,
                        "values": [0.4 + 0.6 * i / len(tokens) for i in range(len(tokens))],
                        "advantages": [rng.gauss(0, 1) for _ in tokens],
                        "rewards": rewards,
                        "score": 1.4,
                        "gold": sum(LEVELS[run]),
                    }
                )
    return found


def example_results(seed: int = 0) -> dict[str, Any]:
    """Every section filled, with the shapes of the trial in which gold rose, peaked and fell."""
    rng = random.Random(seed)
    answers, curves = _answers(rng), _curves(rng)
    bins = []
    for b in range(5):
        confidence = 0.55 + 0.1 * b
        bins.append(
            {
                "low": 0.5 + 0.1 * b,
                "high": 0.6 + 0.1 * b,
                "confidence": confidence,
                "accuracy": confidence - 0.02 * b,
                "count": 130 - 20 * b,
            }
        )
    costs = []
    for stage, seconds, generated, trained in (
        ("SFT", 14.2, 0, 192_000),
        ("Reward model", 19.8, 0, 410_000),
        ("PPO", 41.5, 103_000, 412_000),
        ("PPO, low β", 63.0, 214_000, 856_000),
        ("DPO", 22.4, 0, 388_000),
        ("Evaluation", 9.9, 88_000, 0),
    ):
        costs.append(
            {
                "stage": stage,
                "seconds": seconds,
                "cpu_seconds": seconds * 1.8,
                "generated_tokens": generated,
                "trained_tokens": trained,
                "flops": 1e6 * (6.0 * trained + 6 * generated),
                "peak_mib": 620 + seconds,
            }
        )
    low = curves["ppo_low_beta"]
    return {
        "title": "From knowing facts to answering well",
        "tier": "tiny",
        "seed": seed,
        "seconds": 171.2,
        "started": "2026-01-05T10:12:00",
        "machine": "Linux, 2 cores, 8 GiB, no GPU",
        "command": "course run --tier tiny --seed 0",
        "versions": {
            "course_utils": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "trl": "1.16.0",
        },
        "settings": {
            "sft": {"learning_rate": 1e-3, "steps": 150, "batch_size": 32},
            "ppo": {"learning_rate": 1e-4, "beta": 0.1, "rollouts": 96},
        },
        "stages": ["sft", "rm", "ppo", "dpo"],
        "models": [
            {"key": key, "label": label, "evaluation": _evaluation(key)}
            for key, label in LABELS.items()
        ],
        "answers": answers,
        "curves": curves,
        "frontier": _frontier(answers),
        "overoptimisation": {
            "beta": 0.01,
            "rows": [
                {
                    "step": row["step"],
                    "kl": row["kl"],
                    "proxy": row["reward"],
                    "gold": row["gold"],
                    "gold_heldout": row["gold"] + rng.gauss(0, 0.05),
                }
                for row in low[::4]
            ],
        },
        "reward_model": {
            "accuracy": estimate(0.757, 0.036, 500),
            "accuracy_gold": estimate(0.842, 0.031, 500),
            "ties": 3,
            "pairs": 500,
            "calibration": {"bins": bins, "ece": 0.031},
        },
        "win_rates": [
            {"a": a, "b": b, "rate": r, "interval": [r - w, r + w], "ties": 0.1, "n": 200}
            for a, b, r, w in (
                ("sft", "base", 0.94, 0.03),
                ("ppo", "sft", 0.81, 0.05),
                ("dpo", "sft", 0.73, 0.06),
                ("ppo", "dpo", 0.58, 0.06),
                ("ppo_low_beta", "sft", 0.07, 0.03),
            )
        ],
        "costs": costs,
        "rollouts": _rollouts(rng),
        "notes": [],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return example_results()


ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&<!--"


def attacked(value):
    """The same results with the attack in every text (and key that is shown)."""
    if isinstance(value, dict):
        return {k: attacked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [attacked(v) for v in value]
    return f"{value} {ATTACK}" if isinstance(value, str) else value


@pytest.fixture
def attack() -> str:
    return ATTACK


@pytest.fixture
def hostile(results: dict[str, Any]) -> dict[str, Any]:
    """The results with the attack in every text; the names of models and methods stay."""
    found = attacked(results)
    for name, key in (("models", "key"), ("frontier", "method")):
        for row, same in zip(found[name], results[name], strict=True):
            row[key] = same[key]
    return found


def with_nan(value):
    if isinstance(value, dict):
        return {k: with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_nan(v) for v in value]
    if isinstance(value, float):
        return (
            [math.nan, math.inf, -math.inf][int(abs(value) * 7) % 3] if abs(value) < 1e9 else value
        )
    return value


@pytest.fixture
def nan_results(results: dict[str, Any]) -> dict[str, Any]:
    return with_nan(results)


if __name__ == "__main__":
    from pathlib import Path

    from course_utils.report import build_report

    Path(sys.argv[1]).write_text(build_report(example_results()), encoding="utf-8")
