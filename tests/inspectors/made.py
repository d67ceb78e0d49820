"""Made-up runs to inspect, written by RunLog as a trainer would."""

import math
import random
from pathlib import Path
from typing import Any

from course_utils.training.run import RunLog

WORDS = "the moon is a rock in space and people flew there with a rocket . it was great !".split()  # noqa: SIM905


def rollout(rng: random.Random, prompt: str, tokens: list[str], moved: float) -> dict[str, Any]:
    """One answer; `moved`: typical size of log π − log π_ref per token, nats."""
    logprobs = [-rng.expovariate(1.0) for _ in tokens]
    kl = [rng.gauss(moved / 3, moved) for _ in tokens]
    score = rng.gauss(0.5, 1.0)
    rewards = [-0.05 * d for d in kl]
    if rewards:
        rewards[-1] += score
    return {
        "prompt": prompt,
        "completion": " ".join(tokens),
        "tokens": tokens,
        "token_ids": list(range(len(tokens))),
        "score": score,
        "gold": rng.gauss(1.0, 0.5),
        "ended": True,
        "logprobs": logprobs,
        "ref_logprobs": [a - d for a, d in zip(logprobs, kl, strict=True)],
        "kl": kl,
        "values": [rng.gauss(0.5, 0.2) for _ in tokens],
        "advantages": [rng.gauss(0, 1) for _ in tokens],
        "rewards": rewards,
    }


def ppo_row(rng: random.Random, step: int, steps: int) -> dict[str, Any]:
    """Rise, peak and fall of gold while the proxy keeps rising."""
    part = step / max(1, steps)
    kl = 12 * part**2
    return {
        "step": step,
        "reward": 0.1 + 1.3 * math.sqrt(part) + rng.gauss(0, 0.04),
        "gold": 1.5 + 2 * part - 2.6 * part**2.5 + rng.gauss(0, 0.06),
        "kl": kl + rng.gauss(0, 0.05),
        "beta": 0.02,
        "entropy": 0.5 - 0.3 * part,
        "clip_fraction": 0.02 * (1 - part),
        "value_loss": 0.3 * math.exp(-3 * part),
        "explained_variance": 0.6 * part,
        "completion_tokens": 15 + 10 * part,
        "grad_norm": 1.0,
        "learning_rate": 1e-4,
    }


def ppo_run(
    directory: Path, steps: int = 20, every: int = 5, answers: int = 6, tokens: int = 16
) -> RunLog:
    rng = random.Random(0)
    log = RunLog.create(directory, {"steps": steps, "kl_target": 6.0}, seed=0)
    for step in range(1, steps + 1):
        log.append(ppo_row(rng, step, steps))
        if step == 1 or step % every == 0:
            made = [
                rollout(rng, f"question {i}?", rng.choices(WORDS, k=tokens), 0.1 + step / steps)
                for i in range(answers)
            ]
            log.save_rollouts(step, made)
    return log


def every(folder: Path) -> dict[str, Any]:
    """One of each inspector, by the name of its class, with something small to show."""
    from course_utils import inspectors as i

    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    run = ppo_run(folder / "ppo", 12, 4)
    chosen, rejected = ([rng.gauss(mean, 1) for _ in range(60)] for mean in (1, 0))
    answers = {"base": "the moon is made of cheese .", "sft": "the moon is a rock in space ."}
    curves = {
        name: [{"step": s, "task_loss": 2 - s / 9, "base_loss": 1 + s / k} for s in range(5)]
        for name, k in (("full", 8), ("lora", 30))
    }
    points = [{"method": "ppo", "kl": k / 2, "gold": 1 + k / 4} for k in range(5)]
    pairs = [{"prompt": "why ?", "chosen": "because .", "rejected": f"no {n} ."} for n in range(3)]

    class Words:
        all_special_ids = (0,)

        def decode(self, ids: list[int]) -> str:
            return " ".join("abc"[number] for number in ids)

    made = [
        i.RolloutInspector(run),
        i.RewardKLDashboard(run),
        i.MaskViewer([{"input_ids": [0, 1, 2], "labels": [-100, 1, 2]}], Words()),
        i.PreferenceLabeller(pairs, folder / "labels.jsonl"),
        i.RewardInspector(chosen, rejected),
        i.FrontierViewer(points),
        i.AnswerComparer([{"prompt": "what is the moon ?", "answers": answers}]),
        i.ForgettingPlot(curves),
        i.AdapterComposer(["pirate", "bard"], lambda weights: {"pirate": weights["pirate"]}),
        i.PPOClipExplorer(),
        i.KLExplorer(),
        i.DPOExplorer(),
        i.BradleyTerryExplorer(),
        i.LoRAExplorer(),
        i.NF4Explorer(),
        i.MemoryExplorer(),
        i.KLControlExplorer(),
    ]
    return {type(one).__name__: one for one in made}
