"""Intervals, win rates, best-of-n, judges and costs against closed forms and slow loops."""

import itertools
import json
import math

import numpy as np
import pytest

from course_utils.evaluation import (
    CostMeter,
    best_of_n,
    bootstrap_interval,
    calibration,
    distinct_n,
    estimate,
    expected_best,
    forward_flops,
    matmul_parameters,
    pair_accuracy,
    peak_memory_mib,
    reward_model_accuracy,
    subset_weights,
    training_flops,
    win_rate,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# ---- bootstrap ---------------------------------------------------------------------------------


def test_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.exponential(2.0, size=60), n=400, seed=trial)
        hits += low <= 2.0 <= high
    # binomial(400, 0.95) has sd 1.1 points; the interval of a skewed mean of 60 covers ~93%
    assert 0.89 <= hits / 400 <= 0.98


def test_interval_of_a_mean_is_the_normal_one_for_many_values():
    values = np.random.default_rng(0).normal(5.0, 3.0, size=4000)
    low, high = bootstrap_interval(values, n=4000)
    half = 1.959964 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).gamma(2.0, size=80)
    options = {"n_resamples": 8000, "method": "percentile", "random_state": 0}
    for statistic in (np.mean, np.median):
        theirs = stats.bootstrap((values,), statistic, **options).confidence_interval
        ours = bootstrap_interval(values, statistic, n=8000)
        assert ours == pytest.approx(tuple(theirs), abs=0.02)


def test_interval_level_seed_and_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    wide, narrow = bootstrap_interval(values, level=0.99), bootstrap_interval(values, level=0.5)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("course_utils.evaluation.statistics._CHUNK", 137)
    assert bootstrap_interval(values) == whole


def test_interval_refuses_nonsense():
    with pytest.raises(ValueError, match="N >= 1"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0, 2.0], level=95)
    with pytest.raises(ValueError, match="one number"):
        bootstrap_interval(np.ones((5, 2)))


def test_estimate_averages_the_samples_of_a_prompt_first():
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(30, 1))
    same_thing_said_ten_times = np.repeat(prompts, 10, axis=1)
    once, often = estimate(prompts[:, 0]), estimate(same_thing_said_ten_times)
    assert often.interval == pytest.approx(once.interval)  # ten copies are no more evidence
    assert often.n == 30
    assert estimate([2.0, 2.0]).interval == (2.0, 2.0)
    assert estimate([math.nan, 1.0]).to_json() == {"mean": None, "low": None, "high": None, "n": 2}


# ---- win rate ----------------------------------------------------------------------------------


def test_win_rate_by_hand_and_antisymmetric():
    a, b = [3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 5.0, -1.0]
    result = win_rate(a, b)
    assert result.rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert result.ties == 0.25
    back = win_rate(b, a)
    assert back.rate == pytest.approx(1 - result.rate)
    assert back.interval == pytest.approx((1 - result.high, 1 - result.low))
    assert win_rate(a, a).rate == 0.5
    assert win_rate(a, a).interval == (0.5, 0.5)


def test_win_rate_of_several_samples_compares_every_pair():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, size=(6, 3)), rng.integers(0, 3, size=(6, 4))
    slow = np.mean(
        [
            np.mean([(x > y) + 0.5 * (x == y) for x, y in itertools.product(a[i], b[i])])
            for i in range(6)
        ]
    )
    assert win_rate(a, b).rate == pytest.approx(slow)


def test_win_rate_ties_sums_that_differ_by_rounding():
    assert win_rate([0.1 + 0.2], [0.3]).ties == 1.0


def test_win_rate_interval_uses_the_pairing():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, size=200)  # prompts differ far more than the models do
    result = win_rate(difficulty + 1, difficulty)
    assert result.interval == (1.0, 1.0)


def test_win_rate_refuses_other_prompts_and_nan():
    with pytest.raises(ValueError, match="same prompts"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        win_rate([1.0, math.nan], [1.0, 2.0])
    row = win_rate([1.0], [0.0]).to_json("ppo", "sft")
    assert row["a"] == "ppo"
    assert json.loads(json.dumps(row))["interval"] == [1.0, 1.0]


def test_distinct_n():
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a b", "a b"], 2) == 0.5  # counted over all texts together
    assert distinct_n(["a", ""], 2) == 0.0
    with pytest.raises(ValueError, match="n >= 1"):
        distinct_n(["a"], 0)


# ---- best of n ---------------------------------------------------------------------------------


def brute_force(reward, score, n):
    """Mean over all subsets of size n of the score of the best by reward; ties share."""
    found = []
    for subset in itertools.combinations(range(len(reward)), n):
        top = max(reward[i] for i in subset)
        found.append(np.mean([score[i] for i in subset if reward[i] == top]))
    return np.mean(found)


def test_expected_best_equals_all_subsets():
    rng = np.random.default_rng(0)
    reward, gold = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
    ours = expected_best(reward, gold)
    for p, n in itertools.product(range(3), range(1, 8)):
        assert ours[p, n - 1] == pytest.approx(brute_force(reward[p], gold[p], n))
    assert expected_best(reward)[:, 6] == pytest.approx(reward.max(axis=1))
    assert expected_best(reward)[:, 0] == pytest.approx(reward.mean(axis=1))


def test_expected_best_with_ties_is_the_mean_over_coin_flips():
    rng = np.random.default_rng(0)
    reward, gold = rng.integers(0, 3, size=(1, 6)).astype(float), rng.normal(size=(1, 6))
    flips = []
    for order in itertools.permutations(range(6)):  # a strict ranking that respects the rewards
        flips.append(expected_best(reward + 1e-6 * np.array(order), gold)[0])
    assert expected_best(reward, gold)[0] == pytest.approx(np.mean(flips, axis=0))


def test_expected_best_is_unbiased_on_uniform_rewards():
    draws = np.random.default_rng(0).uniform(size=(20_000, 8))
    means = expected_best(draws).mean(axis=0)
    assert means == pytest.approx([n / (n + 1) for n in range(1, 9)], abs=0.005)


def test_subset_weights_are_probabilities():
    weights = subset_weights(16)
    assert weights.sum(axis=1) == pytest.approx(np.ones(16))
    assert weights[3, :3].tolist() == [0, 0, 0]  # the best of 4 is never among the 3 lowest


def test_best_of_n_chooses_and_measures():
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    result = best_of_n(texts, [[0, 2, 1], [5, 4, 3]], [[1, 0, 3], [2, 2, 2]])
    assert result.chosen == ("b", "d")
    assert result.chosen_index == (1, 0)
    assert result.reward[2].mean == 3.5
    assert result.gold[0].mean == pytest.approx((4 / 3 + 2) / 2)
    assert result.gold[2].mean == 1.0
    assert result.kl == pytest.approx((0.0, math.log(2) - 0.5, math.log(3) - 2 / 3))
    points = result.frontier((2, 4))
    assert [p["label"] for p in points] == ["n = 2"]  # 4 was not sampled
    assert best_of_n(texts, np.zeros((2, 3))).frontier() == []
    with pytest.raises(ValueError, match="2 prompts with 3 samples"):
        best_of_n(texts, np.zeros((3, 2)))


# ---- judges ------------------------------------------------------------------------------------


def test_a_calibrated_judge_is_found_calibrated_and_a_boastful_one_not():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 2, size=40_000)
    outcomes = rng.uniform(size=40_000) < sigmoid(margins)
    assert calibration(margins, outcomes).ece < 0.015
    assert calibration(3 * margins, outcomes).ece > 0.1
    assert calibration(3 * margins, outcomes, scale=1 / 3).ece < 0.015
    # the same judge seen as (chosen, rejected) pairs
    pairs = np.where(outcomes, margins, -margins)
    folded = calibration(pairs)
    assert folded.ece < 0.015
    assert folded.bins[0].low == 0.5
    assert folded.brier == pytest.approx(calibration(margins, outcomes).brier)


def test_calibration_against_a_slow_loop():
    rng = np.random.default_rng(0)
    margins, outcomes = rng.normal(size=300), rng.integers(0, 2, size=300)
    result = calibration(margins, outcomes, bins=5)
    ece, p = 0.0, sigmoid(margins)
    for b in range(5):
        inside = [i for i in range(300) if b / 5 <= p[i] < (b + 1) / 5]
        assert result.bins[b].count == len(inside)
        assert result.bins[b].confidence == pytest.approx(p[inside].mean())
        ece += len(inside) / 300 * abs(p[inside].mean() - outcomes[inside].mean())
    assert result.ece == pytest.approx(ece)
    assert result.brier == pytest.approx(np.mean((p - outcomes) ** 2))


def test_calibration_survives_huge_margins_and_empty_bins():
    result = calibration([1e4, -1e4, 0.0], [1, 0, 1], bins=4)
    assert result.ece == pytest.approx(1 / 3 * 0.5)
    text = json.dumps(result.to_json(), allow_nan=False)  # empty bins are null, not NaN
    assert "null" in text
    with pytest.raises(ValueError, match="finite"):
        calibration([math.inf])


def test_pair_accuracy_ties_count_half():
    result = pair_accuracy([1, 2, 0, 5], [0, 2, 1, 4])
    assert result.accuracy.mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert result.ties == 1
    assert pair_accuracy(np.zeros(9), np.zeros(9)).accuracy.mean == 0.5
    with pytest.raises(ValueError, match="pair 1 has a score that is not finite"):
        pair_accuracy([1, math.nan], [0, 0])


def test_reward_model_accuracy_reads_both_shapes_of_pairs(monkeypatch):
    seen = []

    def by_length(prompts, completions):
        seen.append((prompts, completions))
        return [float(len(c)) for c in completions]

    plain = {"prompt": "hi", "chosen": "long answer", "rejected": "short"}
    chat = {
        "prompt": [{"role": "user", "content": "why ?"}],
        "chosen": [{"role": "assistant", "content": "no"}],
        "rejected": [{"role": "assistant", "content": "because"}],
    }
    monkeypatch.setattr("course_utils.evaluation.preferences._BATCH", 2)
    result = reward_model_accuracy(by_length, [plain, chat, plain])
    assert result.accuracy.mean == pytest.approx(2 / 3)
    assert result.margins.tolist() == [6.0, -5.0, 6.0]
    assert seen[0] == (["hi", "why ?"], ["long answer", "no"])


# ---- costs -------------------------------------------------------------------------------------


def test_matmul_parameters_counts_tied_embeddings_once(tiny_model, tiny_tokenizer):
    from transformers import LlamaForCausalLM

    total = sum(p.numel() for p in tiny_model.parameters())
    table = len(tiny_tokenizer) * 32
    assert matmul_parameters(tiny_model) == total - table  # untied: the look-up is free
    config = type(tiny_model.config)(**{**tiny_model.config.to_dict(), "tie_word_embeddings": True})
    tied = LlamaForCausalLM(config)
    assert matmul_parameters(tied) == total - table  # tied: its table is the output layer


def test_flops():
    assert forward_flops(10, 3) == 60
    assert training_flops(10, 3) == 180
    assert training_flops(10, 3, trainable=1) == 126


def test_cost_meter_adds_up_and_memory_is_plausible():
    with CostMeter("ppo") as cost:
        cost.generated_tokens += 96
        sum(range(200_000))
    first = cost.seconds
    with cost:
        sum(range(200_000))
    row = cost.row()
    assert cost.seconds > first > 0
    assert row["cpu_seconds"] > 0
    assert row["generated_tokens"] == 96
    peak = peak_memory_mib()
    assert peak is None or 20 < peak < 100_000
