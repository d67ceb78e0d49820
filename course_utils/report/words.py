"""The page's sentences that depend on the numbers: every one is computed, none is assumed."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from course_utils.report.markup import fixed, number, percent
from course_utils.report.series import dict_of, label_of, overoptimisation, rows_of

ALIGNED = ("ppo", "dpo", "best_of_n")  # what may be called the result; a run pushed too far is not


def _scores(models: list[dict[str, Any]], which: str) -> dict[str, dict[str, Any]]:
    """Model key -> estimate of "gold" or "reward", for the models that have one."""
    found = {}
    for model in models:
        estimate = dict_of(dict_of(model.get("evaluation")).get(which))
        if number(estimate.get("mean")) is not None:
            found[str(model.get("key"))] = estimate
    return found


def score_in_use(results: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, Any]]]:
    """("gold", estimates), or ("reward", ...) where there is no gold, or ("", {})."""
    models = rows_of(results.get("models"))
    for which in ("gold", "reward"):
        if found := _scores(models, which):
            return which, found
    return "", {}


def best_key(scores: Mapping[str, dict[str, Any]]) -> str | None:
    """The aligned model with the highest mean, if there is one."""
    keys = [key for key in ALIGNED if key in scores]
    return max(keys, key=lambda key: scores[key]["mean"]) if keys else None


def evaluated_on(results: Mapping[str, Any]) -> str:
    """What the models were measured on, in words."""
    return str(results.get("evaluated_on") or "held-out prompts")


def _apart(low: dict[str, Any], high: dict[str, Any]) -> bool:
    """Whether the second interval lies wholly above the first."""
    top, bottom = number(low.get("high")), number(high.get("low"))
    return top is not None and bottom is not None and bottom > top


def verdict(results: Mapping[str, Any]) -> str:
    """One line with the scores: "Gold reward: base 0.10 → SFT 1.55 → PPO 2.30"."""
    which, scores = score_in_use(results)
    if not which:
        return "This run measured no scores."
    models = rows_of(results.get("models"))
    chain = [key for key in ("base", "sft", best_key(scores)) if key in scores]
    chain = chain or list(scores)
    name = "Gold reward" if which == "gold" else "Reward model’s score"
    space = "\N{NO-BREAK SPACE}"  # a line must not end between a name and its number
    steps = [f"{label_of(str(k), models)}{space}{fixed(scores[str(k)]['mean'])}" for k in chain]
    return f"{name}: {' → '.join(steps)}"


def verdict_details(results: Mapping[str, Any]) -> str:
    """What the verdict's numbers allow to say, with the intervals taken into account."""
    which, scores = score_in_use(results)
    models = rows_of(results.get("models"))
    if not which:
        return "Run the evaluation with a gold reward or a reward model to compare models."
    if which == "reward":
        return (
            "There is no gold reward for these prompts, so the reward model is the judge: the very "
            "thing that PPO was trained to please. Its score can rise while answers get worse."
        )
    best = best_key(scores)
    chain = [str(key) for key in ("base", "sft", best) if key in scores]
    said = []
    for before, after in itertools.pairwise(chain):
        first, second = label_of(before, models), label_of(after, models)
        gain = scores[after]["mean"] - scores[before]["mean"]
        if _apart(scores[before], scores[after]):
            said.append(f"{second} is better than {first} by {fixed(gain)}")
        elif _apart(scores[after], scores[before]):
            said.append(f"{second} is worse than {first} by {fixed(-gain)}")
        else:
            said.append(f"between {first} and {second} the intervals overlap")
    sizes = {int(s["n"]) for s in scores.values() if number(s.get("n")) is not None}
    where = f" over {evaluated_on(results)} (n = {max(sizes)})" if sizes else ""
    if not said:
        return f"Mean over answers{where}, with 95% bootstrap intervals."
    text = "; ".join(said) + "."
    return f"{text[0].upper()}{text[1:]} Means{where}, with 95% bootstrap intervals."


def answers_text(results: Mapping[str, Any]) -> str:
    gold = score_in_use(results)[0] == "gold"
    base = "The same prompts, put to each model in the order in which they were made."
    if gold:
        return (
            f"{base} The chips show what the gold reward liked and what it did not; parts that "
            "are zero are left out."
        )
    return base


def frontier_text(results: Mapping[str, Any]) -> str:
    """Which training method gets most gold, and how it compares with best-of-n at the same KL."""
    models = rows_of(results.get("models"))
    points = [
        (str(p.get("method")), number(p.get("kl")), number(p.get("gold")))
        for p in rows_of(results.get("frontier"))
    ]
    known = [(m, kl, gold) for m, kl, gold in points if kl is not None and gold is not None]
    trained = [p for p in known if p[0] in ("ppo", "dpo")]
    if not trained:
        return ""
    best = max(trained, key=lambda p: p[2])
    text = (
        f"{label_of(best[0], models)} reaches the most gold reward of the trained models, "
        f"{fixed(best[2])}, for {fixed(best[1], 1)} nats."
    )
    chosen = [p for p in known if p[0] == "best_of_n"]
    if chosen:
        top = max(chosen, key=lambda p: p[2])
        relation = "gets less" if top[2] < best[2] else "gets as much or more"
        text += (
            f" Best-of-n, which trains nothing, {relation}: {fixed(top[2])} at "
            f"{fixed(top[1], 1)} nats."
        )
    return text


def overoptimisation_text(results: Mapping[str, Any]) -> str:
    """Rise, peak and fall of gold along the low-β run, or that there was none."""
    found = overoptimisation(results)
    if found is None:
        return ""
    points, levels, peak = found["points"], found["levels"], found["peak"]
    start, top, end = (
        f"{fixed(levels[i])} at KL {fixed(points[i]['kl'], 1)}" for i in (0, peak, len(levels) - 1)
    )
    proxies = [p["proxy"] for p in points if p["proxy"] is not None]
    said_proxy = f"{fixed(proxies[0])} to {fixed(proxies[-1])}" if proxies else ""
    if found["verdict"] == "rise and fall":
        text = f"Gold rose from {start} to a peak of {top} nats, then fell to {end}."
        if found["proxy_rises_after_peak"]:
            text += (
                f" The reward model noticed nothing: its score rose from {said_proxy}, past the "
                "peak too. From there on, PPO optimised the reward model’s mistakes."
            )
        elif proxies:
            text += f" The reward model’s score went from {said_proxy}, and stopped rising too."
    elif found["verdict"] == "rise":
        text = f"Gold rose from {start} to {top} nats, and no fall was seen up to {end}."
        text += " Train longer, or with a smaller β, to look for the peak."
    elif found["verdict"] == "fall":
        text = f"Gold fell from {start} to {end} nats; no rise before stands out of the noise."
        if proxies:
            text += f" The reward model’s score went from {said_proxy} meanwhile."
    else:
        text = f"Gold hardly moved: {start}, {end} nats; no rise or fall stands out of the noise."
    return text


def reward_model_text(results: Mapping[str, Any]) -> str:
    """Accuracy with interval, and whether the model's confidence is justified."""
    model = dict_of(results.get("reward_model"))
    accuracy = dict_of(model.get("accuracy"))
    if number(accuracy.get("mean")) is None:
        return ""
    text = (
        f"On held-out pairs the reward model prefers the answer that the annotator chose in "
        f"{percent(accuracy['mean'])} of cases "
        f"(95% interval {percent(accuracy.get('low'))} to {percent(accuracy.get('high'))})."
    )
    gold = dict_of(model.get("accuracy_gold"))
    if number(gold.get("mean")) is not None:
        text += (
            f" Against the gold reward, which the annotator’s labels follow only in part, it is "
            f"{percent(gold['mean'])}."
        )
    calibration = dict_of(model.get("calibration"))
    ece = number(calibration.get("ece"))
    if ece is not None:
        bins = [
            [number(b.get(name)) or 0.0 for name in ("confidence", "accuracy", "count")]
            for b in rows_of(calibration.get("bins"))
        ]
        pairs = sum(count for _, _, count in bins)
        lean = sum((said - was) * count for said, was, count in bins) / pairs if pairs else 0.0
        error = 1 / math.sqrt(pairs) if pairs else 1.0  # two standard errors of a share, at most
        manner = (
            "It is surer than it is right"
            if lean > error
            else "It is more often right than it thinks"
            if lean < -error
            else "How sure it is and how often it is right agree as well as so many pairs can tell"
        )
        text += f" {manner} (expected calibration error {percent(ece)})."
    return text
