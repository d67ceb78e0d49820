"""Measures every model of a run in the same way and writes report.json and report.html."""

from pathlib import Path
from typing import Any

from course_utils.evaluation import (
    CostMeter,
    Evaluation,
    calibration,
    forgetting,
    perplexity,
    reward_model_accuracy,
    win_rate,
)
from course_utils.evaluation.costs import forward_flops, matmul_parameters
from course_utils.evaluation.policy import evaluate_best_of_n
from course_utils.evaluation.statistics import Estimate
from course_utils.hardware import detect_hardware
from course_utils.pipeline.stages import LABELS, Pipeline
from course_utils.report import write_report
from course_utils.training.reward_model import RewardModel
from course_utils.training.run import git_commit, package_versions

BEST_OF = 16  # samples a prompt for best-of-n
BEST_OF_PROMPTS = 96
TYPICAL_OF = 9  # samples of which the report shows the one with the median gold reward
ROLLOUTS = 6  # answers of a saved step that the report's inspector shows


def finish(pipeline: Pipeline) -> Path:
    """Evaluates, writes report.json and report.html into the run directory, prints the summary."""
    print("— evaluation", flush=True)
    results = collect(pipeline)
    results["seconds"] = sum(row["seconds"] for row in results["costs"])
    page = write_report(pipeline.job.out / "report.html", results)
    print(summary(results))
    print(f"report: {page}  ({results['seconds']:.0f} s in all)")
    return page


def collect(pipeline: Pipeline) -> dict[str, Any]:
    """Everything the report shows: report.schema.Results."""
    with CostMeter("evaluation") as cost:
        evaluations = {key: _evaluate(pipeline, key, cost) for key in pipeline.models}
        frontier = _frontier(pipeline, evaluations, cost)
        results = {
            "title": "From base model to aligned model",
            **_about(pipeline),
            "models": _models(pipeline, evaluations),
            "answers": _answers(pipeline),
            "curves": {key: log.rows for key, log in _logs(pipeline).items()},
            "frontier": frontier,
            "overoptimisation": _overoptimisation(pipeline),
            "reward_model": _reward_model(pipeline),
            "win_rates": _win_rates(pipeline, evaluations),
            "rollouts": _rollouts(pipeline),
            "notes": pipeline.inputs.notes,
            "evaluated_on": "your prompts"
            if "prompts" in pipeline.job.files
            else "held-out prompts",
        }
    results["costs"] = [*pipeline.costs, cost.row()]
    return results


def _about(pipeline: Pipeline) -> dict[str, Any]:
    job = pipeline.job
    keys = {"sft": "sft", "rm": "reward", "ppo": "ppo", "dpo": "dpo"}
    logs = {stage: pipeline.log(keys[stage]) for stage in job.stages}
    return {
        "tier": job.choice.tier.name,
        "seed": job.seed,
        "started": job.started,
        "machine": detect_hardware().describe(),
        "command": job.command,
        "versions": {**package_versions(), "git commit": git_commit()},
        "settings": {stage: log.config for stage, log in logs.items() if log},
        "stages": list(job.stages),
    }


def _logs(pipeline: Pipeline) -> dict[str, Any]:
    keys = ("sft", "reward", "ppo", "ppo_low_beta", "dpo")
    logs = {key: pipeline.log(key) for key in keys if key in pipeline.models or key == "reward"}
    return {key: log for key, log in logs.items() if log is not None}


def _evaluate(pipeline: Pipeline, key: str, cost: CostMeter) -> Evaluation:
    model = pipeline.models[key]
    found = pipeline.evaluate(model)
    tokens = sum(c.tokens for c in found.completions)
    cost.generated_tokens += tokens
    cost.flops += forward_flops(matmul_parameters(model), 2 * tokens)
    return found


def _models(pipeline: Pipeline, evaluations: dict[str, Evaluation]) -> list[dict[str, Any]]:
    documents = pipeline.inputs.plain_documents
    tokenizer = pipeline.lab.tokenizer
    before = perplexity(pipeline.models["base"], tokenizer, documents) if documents else None
    found = []
    for key, evaluation in evaluations.items():
        row = evaluation.to_json()
        if documents and before is not None:
            after = perplexity(pipeline.models[key], tokenizer, documents)
            row["forgetting"] = forgetting(before, after).mean
        found.append({"key": key, "label": LABELS[key], "evaluation": row})
    return found


def _answers(pipeline: Pipeline) -> list[dict[str, Any]]:
    """What every model typically says to the prompts the report shows (of a few samples each)."""
    table = pipeline.lab.answers(pipeline.models, pipeline.inputs.shown_prompts, TYPICAL_OF)
    reward = pipeline.reward
    found: dict[str, dict[str, Any]] = {}
    for said in table.answers:
        found.setdefault(said.prompt, {})[said.model] = {
            "text": said.text,
            "gold": None if said.gold is None else {"total": said.gold, "parts": said.parts},
            "reward": reward([said.prompt], [said.text])[0] if reward else None,
        }
    return [{"prompt": prompt, "answers": answers} for prompt, answers in found.items()]


def _frontier(
    pipeline: Pipeline, evaluations: dict[str, Evaluation], cost: CostMeter
) -> list[dict[str, Any]]:
    """Gold against KL to the SFT model: every model, best-of-n, and PPO along its training."""
    if pipeline.inputs.gold is None:
        return []
    points = []
    for key in ("base", "sft", "dpo"):
        if key in evaluations:
            points.append(_point(key, evaluations[key], LABELS[key]))
    if pipeline.reward is not None:
        points += _best_of_n(pipeline, cost)
    for key in ("ppo", "ppo_low_beta"):
        rows = pipeline.held_out(key).read() if key in evaluations else []
        for row in rows:
            points.append(
                {
                    "method": key,
                    "kl": row["kl"],
                    "gold": row["gold"],
                    "interval": row["interval"],
                    "label": f"step {row['step']}",
                    "prompt": row["prompt"],
                    "example": {"text": row["text"]},
                }
            )
    return points


def _point(key: str, found: Evaluation, label: str) -> dict[str, Any]:
    assert found.gold is not None
    example = found.completions[0]
    return {
        "method": key,
        "kl": found.kl.mean if found.kl else None,
        "gold": found.gold.mean,
        "interval": list(found.gold.interval),
        "label": label,
        "prompt": example.prompt,
        "example": {"text": example.text, "reward": example.reward},
    }


def _best_of_n(pipeline: Pipeline, cost: CostMeter) -> list[dict[str, Any]]:
    assert pipeline.reward is not None
    prompts = pipeline.inputs.evaluation_prompts[:BEST_OF_PROMPTS]
    found = evaluate_best_of_n(
        pipeline.start,
        pipeline.lab.tokenizer,
        prompts,
        pipeline.reward,
        gold=pipeline.inputs.gold,
        samples=BEST_OF,
        max_new_tokens=pipeline.lab.tier.ppo.max_new_tokens,
        seed=pipeline.job.seed,
    )
    ids = pipeline.lab.tokenizer(list(found.chosen), add_special_tokens=False).input_ids
    cost.generated_tokens += BEST_OF * sum(len(row) + 1 for row in ids)
    points = found.frontier()
    if points:
        points[-1] |= {"prompt": prompts[0], "example": {"text": found.chosen[0]}}
    return points


def _overoptimisation(pipeline: Pipeline) -> dict[str, Any] | None:
    if "ppo_low_beta" not in pipeline.models:
        return None
    rows = pipeline.held_out("ppo_low_beta").read()
    return {
        "rows": [
            {"step": r["step"], "kl": r["kl"], "proxy": r["proxy"], "gold_heldout": r["gold"]}
            for r in rows
        ],
        "beta": pipeline.lab.settings.ppo_low_beta.beta,
    }


def _reward_model(pipeline: Pipeline) -> dict[str, Any] | None:
    """Accuracy and calibration on held-out pairs; against the truth too, where it is known."""
    reward = pipeline.reward
    if reward is None or "rm" not in pipeline.job.stages:
        return None
    pairs = list(pipeline.held_out_pairs)
    found = reward_model_accuracy(reward, pairs, seed=pipeline.job.seed)
    scale = reward.normalisation.std
    result = {**found.to_json(), "calibration": calibration(found.margins, scale=scale).to_json()}
    if pipeline.inputs.gold is not None:
        result["accuracy_gold"] = _accuracy_by_gold(pipeline, reward, pairs).to_json()
    return result


def _accuracy_by_gold(pipeline: Pipeline, reward: RewardModel, pairs: list[Any]) -> Estimate:
    """The same pairs with the better answer by gold as the chosen one; gold's ties are left out."""
    gold, ordered = pipeline.lab.gold, []
    for row in pairs:
        prompt, a, b = (row[c][-1]["content"] for c in ("prompt", "chosen", "rejected"))
        better, worse = gold(prompt, a).total, gold(prompt, b).total
        if better != worse:
            a, b = (a, b) if better > worse else (b, a)
            ordered.append({"prompt": prompt, "chosen": a, "rejected": b})
    return reward_model_accuracy(reward, ordered, seed=pipeline.job.seed).accuracy


def _win_rates(pipeline: Pipeline, evaluations: dict[str, Evaluation]) -> list[dict[str, Any]]:
    which, judge = ("gold", "gold reward")
    if pipeline.inputs.gold is None:
        which, judge = ("reward", "reward model")
    if which == "reward" and pipeline.reward is None:
        return []
    against = "sft" if "sft" in evaluations else "base"
    pairs = [(key, against) for key in evaluations if key not in ("base", against)]
    pairs = [("sft", "base"), *pairs] if "sft" in evaluations else pairs
    scores = {key: found.scores(which) for key, found in evaluations.items()}
    return [
        win_rate(scores[a], scores[b], seed=pipeline.job.seed).to_json(a, b, judge)
        for a, b in pairs
    ]


def _rollouts(pipeline: Pipeline) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for key in ("ppo", "ppo_low_beta"):
        log = pipeline.log(key)
        if log is None:
            continue
        seen: dict[int, int] = {}
        for row in log.rollouts():
            seen[row["step"]] = seen.get(row["step"], 0) + 1
            if seen[row["step"]] <= ROLLOUTS:
                shown.append({**row, "run": key})
    return shown


def summary(results: dict[str, Any]) -> str:
    """The run in a few lines for the terminal."""
    lines = [f"{'model':<22}{'gold':>22}{'reward':>9}{'KL':>8}{'tokens':>8}"]

    def number(estimate: Any) -> str:
        return "–" if not estimate or estimate["mean"] is None else f"{estimate['mean']:.2f}"

    for model in results["models"]:
        found = model["evaluation"]
        gold = found["gold"]
        shown = f"{gold['mean']:.2f} [{gold['low']:.2f}, {gold['high']:.2f}]" if gold else "–"
        kl = number(found["kl"]["exact"]) if found["kl"] else "–"
        lines.append(
            f"{model['label']:<22}{shown:>22}{number(found['reward']):>9}{kl:>8}"
            f"{number(found['length']):>8}"
        )
    for rate in results["win_rates"]:
        low, high = rate["interval"]
        lines.append(
            f"{LABELS[rate['a']]} beats {LABELS[rate['b']]} on {rate['rate']:.0%} "
            f"[{low:.0%}, {high:.0%}] of the prompts ({rate['judge']})"
        )
    judged = results["reward_model"]
    if judged:
        lines.append(f"reward model: {number(judged['accuracy'])} of held-out pairs as labelled")
    return "\n".join(lines)
