"""The thirty points that a PPO for language models can get wrong, on the whole trainer.

Points that live in the sampler or the objectives are tested there; the number in each docstring is
the point's.
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from course_utils import models
from course_utils.objectives import exact_kl, gae, masked_sum
from course_utils.training.ppo import rollout as rollout_module
from course_utils.training.ppo.advantages import compute_advantages

from .checks import same, varied, weights

# ---- before the first update -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_before_the_first_update_kl_is_0_and_the_ratio_1(make_trainer, temperature) -> None:
    """Points 4, 6, 30: on-policy data of an unchanged policy, at any temperature."""
    step = make_trainer(temperature=temperature).step()
    assert varied(step.rollouts)
    assert abs(step.stats["kl"]) < 1e-4
    assert abs(step.stats["kl_k3"]) < 1e-6
    per_token = (step.rollouts.logprobs - step.rollouts.ref_logprobs).abs().max()
    assert float(per_token) < 1e-5
    assert step.stats["ratio_first_max"] == pytest.approx(1, abs=1e-5)
    assert step.stats["ratio_first_min"] == pytest.approx(1, abs=1e-5)


def test_learning_rate_0_moves_nothing_in_any_step(make_trainer) -> None:
    """Point 30: log-ratio 0, KL 0, clip fraction 0, weights equal."""
    trainer = make_trainer(learning_rate=0.0, steps=3)
    before = weights(trainer.actor)
    for step in trainer:
        assert abs(step.stats["kl"]) < 1e-4
        assert step.stats["clip_fraction"] == 0
        assert step.stats["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert step.stats["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert same(before, weights(trainer.actor))


def test_the_reference_is_scored_at_the_sampling_temperature(make_trainer, policy) -> None:
    """Point 6: both sides of the KL are divided by T, also with a reference that was given."""
    other = models.copy_model(policy)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.5)
    step = make_trainer(temperature=0.6, reference=other).step()
    s = step.rollouts.sequences
    logits = other(input_ids=s.ids).logits.flatten(0, 1)[s.where].detach() / 0.6
    tokens = s.ids.flatten()[s.where + 1]
    by_hand = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(
        step.rollouts.ref_logprobs[step.rollouts.mask], by_hand, atol=1e-5, rtol=1e-5
    )


def test_dropout_is_off_although_the_policy_came_in_train_mode(make_trainer, policy) -> None:
    """Point 7."""

    class Dropping(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.dropout = inner, nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dropout(self.inner(x))

    for layer in policy.model.layers:
        layer.mlp = Dropping(layer.mlp)
    policy.train()
    step = make_trainer().step()
    assert abs(step.stats["kl"]) < 1e-4
    assert step.stats["ratio_first_max"] == pytest.approx(1, abs=1e-5)
    assert step.stats["ratio_first_min"] == pytest.approx(1, abs=1e-5)


def test_captured_and_recomputed_logprobs_by_precision(make_trainer) -> None:
    """Point 28: captured in fp32, recomputed under the same autocast in bf16, never mixed."""
    captured = make_trainer(learning_rate=0.0).step()
    again = make_trainer(learning_rate=0.0, old_logprobs="recomputed").step()
    assert captured.stats["logprob_gap"] == 0
    assert 0 < again.stats["logprob_gap"] < 1e-5
    torch.testing.assert_close(
        captured.rollouts.logprobs, again.rollouts.logprobs, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        captured.rollouts.values, again.rollouts.values, atol=1e-5, rtol=1e-5
    )
    half = make_trainer(precision="bf16").step()
    assert half.stats["logprob_gap"] > 1e-4  # what the ratio would be off by
    assert half.stats["ratio_first_max"] == pytest.approx(1, abs=1e-6)
    assert half.stats["ratio_first_min"] == pytest.approx(1, abs=1e-6)
    assert abs(half.stats["kl"]) < 1e-6
    mixed = make_trainer(precision="bf16", old_logprobs="captured").step()
    assert max(mixed.stats["ratio_first_max"], 1 / mixed.stats["ratio_first_min"]) > 1.0001


def test_the_value_head_starts_at_zero_on_the_shared_trunk(make_trainer) -> None:
    """Point 21."""
    trainer = make_trainer()
    assert trainer.actor.critic is None
    assert not bool(trainer.step().rollouts.values.any())
    assert bool(trainer.step().rollouts.values.any())  # and it learns


# ---- the rewards -------------------------------------------------------------------------------


def test_rewards_are_minus_beta_kl_per_token_with_the_score_on_the_last_real_token(
    make_trainer, policy
) -> None:
    """Points 1, 3, 12: k1, not differentiated; the score once, on EOS or the last token sampled."""
    other = models.copy_model(policy)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.8)
    step = make_trainer(beta=0.3, reference=other, missing_eos_penalty=0.0).step()
    r = step.rollouts
    assert varied(r)
    for i in range(len(r)):
        length = int(r.mask[i].sum())
        wanted = -0.3 * (r.logprobs[i, :length] - r.ref_logprobs[i, :length])
        wanted[-1] += r.scores[i]
        torch.testing.assert_close(r.rewards[i, :length], wanted)
        assert not bool(r.rewards[i, length:].any())
    assert not r.rewards.requires_grad
    assert float(r.scores.std()) > 0


def test_the_reported_kl_is_the_kl_from_the_policy_to_the_reference(make_trainer, policy) -> None:
    """Points 2, 3, 4: direction and sign, against the exact KL on the same states."""
    other = models.copy_model(policy)
    with torch.no_grad():
        policy.lm_head.weight.mul_(6)
        other.lm_head.weight.mul_(14)
    settings = {"rollouts_per_step": 300, "max_new_tokens": 6, "micro_batch": 100}
    step = make_trainer(reference=other, learning_rate=0.0, **settings).step()
    s, mask = step.rollouts.sequences, step.rollouts.mask
    with torch.no_grad():
        ours, theirs = (m(input_ids=s.ids).logits.flatten(0, 1)[s.where] for m in (policy, other))
    forward = float(exact_kl(ours, theirs).sum() / len(mask))
    backward = float(exact_kl(theirs, ours).sum() / len(mask))
    assert abs(forward - backward) > 0.15 * forward  # the two can be told apart here
    assert step.stats["kl"] == pytest.approx(forward, rel=0.1)
    assert step.stats["kl_k3"] == pytest.approx(forward, rel=0.1)


def test_cut_answers_lose_the_penalty_and_an_eos_in_the_prompt_does_not_count(
    make_trainer,
) -> None:
    """Point 13: subtracted from the score; decided by the answer's own tokens."""
    prompts = ["hello", "hello <|end|> why"]
    with_penalty = make_trainer(prompts=prompts, missing_eos_penalty=2.5, beta=0.0).step().rollouts
    assert varied_ends(with_penalty)
    wanted = with_penalty.scores - 2.5 * (~with_penalty.ended).float()
    torch.testing.assert_close(with_penalty.rewards.sum(1), wanted)
    eos = [3, *range(10, 16)]
    for i in range(len(with_penalty)):
        s = with_penalty.sequences
        last = int(s.ids[i, int(s.lengths[i]) - 1])
        assert bool(with_penalty.ended[i]) == (last in eos)


def varied_ends(rollouts: Any) -> bool:
    return bool(rollouts.ended.any() and not rollouts.ended.all())


def test_cut_answers_may_end_with_the_value_of_the_state_they_were_cut_in(make_trainer) -> None:
    """Point 14: cut is not over; without the option nothing follows the cut."""
    trainer = make_trainer(bootstrap_truncated=True, whiten_advantages=False)
    trainer.step()  # the value head has learned something now
    r = trainer.step().rollouts
    assert varied_ends(r)
    assert not bool(r.last_values[r.ended].any())
    assert bool(r.last_values[~r.ended].all())
    with_v, _ = gae(r.rewards, r.values, r.mask, 1.0, 0.95, r.last_values)
    without, _ = gae(r.rewards, r.values, r.mask, 1.0, 0.95)
    torch.testing.assert_close(r.advantages, with_v)
    difference = (with_v - without).abs().sum(1)
    assert bool((difference[~r.ended] > 0).all())
    assert not bool(difference[r.ended].any())


def test_the_value_after_a_cut_answer_is_that_of_its_last_token(make_trainer) -> None:
    """Point 14: V(s_T), by the plain forward pass of one row."""
    trainer = make_trainer()
    trainer.step()
    r = trainer.step().rollouts
    found = rollout_module.values_after(trainer.actor, r.sequences, r.ended)
    cut = int((~r.ended).nonzero()[0])
    row = r.sequences.ids[cut, : int(r.sequences.lengths[cut])]
    with torch.no_grad():
        hidden = trainer.policy.model(input_ids=row[None]).last_hidden_state[0, -1]
        torch.testing.assert_close(found[cut], trainer.actor.values(hidden), atol=1e-5, rtol=1e-5)


class TokenReward:
    """A reward model by interface: remembers the token rows it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seen: list[list[int]] = []

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        raise AssertionError("the tokens fit: no need to go through text")

    def score_tokens(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        lengths = attention_mask.sum(1)
        for row, length in zip(input_ids, lengths, strict=True):
            self.seen.append(row[: int(length)].tolist())
        return input_ids.gather(1, lengths[:, None] - 1).squeeze(1).float() + lengths


def test_a_reward_model_sees_every_answer_end_with_eos(make_trainer, tiny_tokenizer) -> None:
    """Point 15: RewardTrainer appends EOS, so cut answers get one, for the reward model only."""
    reward = TokenReward(tiny_tokenizer)
    trainer = make_trainer(reward=reward)
    r = trainer.step().rollouts
    s = r.sequences
    rows = [s.ids[i, : int(s.lengths[i])].tolist() for i in range(len(r))]
    wanted = [
        row if ended else [*row, tiny_tokenizer.eos_token_id]
        for row, ended in zip(rows, r.ended.tolist(), strict=True)
    ]
    assert sorted(reward.seen) == sorted(wanted)
    assert r.scores.tolist() == [float(row[-1] + len(row)) for row in wanted]
    assert varied_ends(r)


# ---- advantages --------------------------------------------------------------------------------


def test_advantages_are_whitened_once_over_the_tokens_of_the_step(make_trainer) -> None:
    """Points 16, 17: mean 0 and variance 1 over real tokens; returns taken before that."""
    trainer = make_trainer(minibatches=4)
    trainer.step()
    r = trainer.step().rollouts
    kept = r.advantages[r.mask]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-5)
    assert float(kept.std()) == pytest.approx(1, abs=1e-4)
    assert not bool(r.advantages[~r.mask].any())
    raw, returns = gae(r.rewards, r.values, r.mask, 1.0, 0.95)
    torch.testing.assert_close(r.returns, returns)
    torch.testing.assert_close(r.returns[r.mask], (raw + r.values)[r.mask])
    torch.testing.assert_close(kept, (raw[r.mask] - raw[r.mask].mean()) / raw[r.mask].std())


def test_rewards_are_not_whitened_unless_asked_and_then_only_scaled(make_trainer) -> None:
    """Point 18."""
    r = make_trainer(beta=0.0).step().rollouts
    torch.testing.assert_close(masked_sum(r.rewards, r.mask, dim=1), r.scores - (~r.ended).float())
    trainer = make_trainer(beta=0.0, whiten_rewards=True)
    w = copy.copy(r)
    compute_advantages(w, 0.0, trainer.config)
    kept, raw = w.rewards[r.mask], r.rewards[r.mask]
    torch.testing.assert_close(kept - kept.mean(), (raw - raw.mean()) / raw.std())
    assert float(kept.mean()) == pytest.approx(float(raw.mean()), abs=1e-5)
