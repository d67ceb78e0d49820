"""What the report says about the numbers, and what it makes of curves and rollouts."""

import copy
import math
import random

import pytest

from course_utils.report.markup import duration, fixed
from course_utils.report.series import curve, overoptimisation, panels, rollouts, smooth, thinned
from course_utils.report.words import (
    frontier_text,
    overoptimisation_text,
    reward_model_text,
    verdict,
    verdict_details,
)


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


# ---- what the sentences say --------------------------------------------------------------------


def test_verdict_is_computed(results):
    assert plain(verdict(results)) == "Gold reward: Base −0.80 → SFT 1.55 → PPO 2.30"
    assert "PPO is better than SFT by 0.75" in verdict_details(results)
    assert "over held-out prompts (n = 200)" in verdict_details(results)
    ppo, dpo = (
        results["models"][2]["evaluation"]["gold"],
        results["models"][4]["evaluation"]["gold"],
    )
    ppo["mean"] = 1.0  # then DPO is the better one
    assert plain(verdict(results)).endswith("DPO 1.96")
    dpo.update(mean=1.60, low=1.50, high=1.70)
    assert "between SFT and DPO the intervals overlap" in verdict_details(results)
    dpo.update(mean=1.2, low=1.1, high=1.3)
    assert "DPO is worse than SFT by 0.35" in verdict_details(results)
    results["evaluated_on"] = "your prompts"
    assert "over your prompts (n = 200)" in verdict_details(results)


def over(golds, proxies=None, name="gold_heldout"):
    proxies = proxies or [0.1 * i for i in range(len(golds))]
    rows = [
        {"step": i, "kl": float(i), "proxy": p, name: g}
        for i, (g, p) in enumerate(zip(golds, proxies, strict=True))
    ]
    return {"overoptimisation": {"rows": rows}}


@pytest.mark.parametrize(
    ("golds", "said", "words"),
    [
        ([1, 1.4, 2, 2.2, 2, 1, 0, -1], "rise and fall", "then fell to −1.00 at KL 7.0"),
        ([1, 1.2, 1.5, 1.8, 2.1, 2.2], "rise", "no fall was seen up to 2.20 at KL 5.0"),
        ([2, 1.6, 1, 0.5, 0, -1], "fall", "Gold fell from 2.00 at KL 0.0 to −1.00"),
        ([1, 1.01, 1, 0.99, 1.0, 1.01], "flat", "hardly moved"),
    ],
)
def test_over_optimisation_is_told_as_it_was(golds, said, words):
    results = over(golds)
    assert overoptimisation(results)["verdict"] == said
    assert words in overoptimisation_text(results)


def test_noise_is_not_a_peak():
    rng = random.Random(0)
    told = []
    for _ in range(100):
        golds = [1.5 + rng.gauss(0, 0.2) for _ in range(20)]
        told.append(overoptimisation(over(golds))["verdict"])
    assert told.count("rise and fall") <= 2
    assert told.count("flat") >= 80
    found = overoptimisation(
        over([1.5 + 0.1 * min(i, 20 - i) + rng.gauss(0, 0.05) for i in range(20)])
    )
    assert found["verdict"] == "rise and fall"
    assert 8 <= found["peak"] <= 12


def test_the_proxy_is_described_by_its_own_numbers():
    golds = [1, 1.4, 2, 2.2, 2, 1, 0, -1]
    rising = overoptimisation_text(over(golds))
    assert "noticed nothing" in rising
    falling = overoptimisation_text(over(golds, [0, 1, 2, 3, 3, 2, 1, 0]))
    assert "noticed nothing" not in falling
    assert "stopped rising" in falling


def test_over_optimisation_prefers_held_out_gold_and_needs_three_points():
    results = over([1, 2, 3, 2])
    for row in results["overoptimisation"]["rows"]:
        row["gold"] = 0.0
    assert overoptimisation(results)["heldout"]
    assert not overoptimisation(over([1, 2, 3, 2], name="gold"))["heldout"]
    assert overoptimisation(over([1, 2])) is None
    assert overoptimisation({}) is None
    assert smooth([0, 3, 6, 0]) == [0, 3, 3, 0]


def test_frontier_and_judge_sentences(results):
    assert "PPO reaches the most gold reward" in frontier_text(results)
    assert "gets less: 2.10 at 1.8 nats" in frontier_text(results)
    for point in results["frontier"]:
        if point["method"] == "best_of_n":
            point["gold"] += 1
    assert "gets as much or more: 3.10" in frontier_text(results)
    assert "76% of cases (95% interval 72% to 79%)" in reward_model_text(results)
    for b in results["reward_model"]["calibration"]["bins"]:
        b["confidence"] += 0.2
    assert "surer than it is right" in reward_model_text(results)


def test_numbers_as_text():
    assert (fixed(-0.001), fixed(None), fixed(math.nan), fixed(-1.5)) == ("0.00", "–", "–", "−1.50")
    assert (duration(8.44), duration(171.2), duration(3840)) == (
        "8.4 s",
        "2 min 51 s",
        "1 h 04 min",
    )
    assert duration(119.7) == "2 min 00 s"


# ---- curves and rollouts -----------------------------------------------------------------------


def test_curves_know_trl_names_and_strangers():
    rows = [{"step": i, "rewards/margins": 0.1 * i, "rewards/accuracies": 0.5} for i in range(5)]
    titles = [p["title"] for p in panels({"dpo": rows})]
    assert titles == ["Implicit reward margin", "Accuracy on pairs"]
    strange = panels({"other": [{"step": 1, "bananas": 2.0, "name": "x"}]})
    assert [(p["stage"], p["title"]) for p in strange] == [("other", "bananas")]
    assert curve([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}], ("loss",)) == [
        [2.0, 1.0]
    ]


def test_thinning_keeps_the_ends_and_the_level():
    points = [[float(i), float(i)] for i in range(10_000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert all(abs(x - y) < 1e-9 for x, y in few)


def test_rollouts_drop_lists_of_the_wrong_length(results):
    row = copy.deepcopy(results["rollouts"][0])
    row["kl"] = row["kl"][:-1]
    kept = rollouts({"rollouts": [row]})[0]
    assert "kl" not in kept
    assert len(kept["advantages"]) == len(kept["tokens"])
    assert rollouts({"rollouts": [{"step": 1}]}) == []
