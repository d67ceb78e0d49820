"""The thirty points that a PPO for language models can get wrong, on the whole trainer.

Points that live in the sampler or the objectives are tested there; the number in each docstring is
the point's.
"""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from course_utils import models
from course_utils.errors import CourseError
from course_utils.objectives import exact_kl, gae, masked_sum
from course_utils.training.ppo import rollout as rollout_module
from course_utils.training.ppo.advantages import compute_advantages
from course_utils.training.ppo.sequences import Sequences


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def varied(rollouts: Any) -> bool:
    """Some answers end, some are cut, lengths and prompts differ: the interesting case."""
    lengths = rollouts.mask.sum(1)
    prompts = rollouts.sequences.prompt_lengths
    return bool(
        rollouts.ended.any()
        and not rollouts.ended.all()
        and len(lengths.unique()) > 2
        and len(prompts.unique()) > 2
    )


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


# ---- the update --------------------------------------------------------------------------------


def gradient_of(trainer: Any, rollouts: Any, micro: int) -> torch.Tensor:
    trainer.updater.micro_batch = micro
    trainer.updater.optimizer.zero_grad()
    trainer.updater._accumulate(rollouts, torch.arange(len(rollouts)))
    return torch.cat([p.grad.flatten() for p in trainer.updater.parameters])


@pytest.mark.parametrize("settings", [{}, {"entropy_coef": 0.01}, {"critic": "policy"}])
def test_the_gradient_does_not_depend_on_the_micro_batch(make_trainer, settings) -> None:
    """Point 24: every micro-batch divides by the token count of the whole minibatch."""
    trainer = make_trainer(**settings)
    trainer.step()
    rollouts = trainer.step().rollouts
    assert varied(rollouts)
    whole = gradient_of(trainer, rollouts, 100)
    for micro in (1, 3, 7):
        part = gradient_of(trainer, rollouts, micro)
        torch.testing.assert_close(part, whole, atol=2e-6, rtol=1e-4)
    assert float(whole.norm()) > 1e-3


def test_the_gradient_is_that_of_a_plain_padded_loop(make_trainer) -> None:
    """The fast path's oracle: one forward over left-padded rows with masks, losses written out."""
    trainer = make_trainer(beta=0.05, entropy_coef=0.02)
    trainer.step()
    r = trainer.step().rollouts
    fast = gradient_of(trainer, r, 5)
    s, c = r.sequences, trainer.config
    trainer.updater.optimizer.zero_grad()
    losses, tokens = [], int(r.mask.sum())
    for i in range(len(r)):
        start, n = int(s.prompt_lengths[i]), int(s.completion_lengths[i])
        ids = torch.cat([torch.zeros(3, dtype=torch.long), s.ids[i, : start + n]])[None]
        attention = (torch.arange(start + n + 3) >= 3).long()[None]
        out = trainer.policy(
            input_ids=ids,
            attention_mask=attention,
            position_ids=(attention.cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
        )
        logp = out.logits[0, 3 + start - 1 : -1].log_softmax(-1)
        v = trainer.actor.value_head(out.hidden_states[-1][0, 3 + start - 1 : -1]).squeeze(-1)
        a, old_v, ret = r.advantages[i, :n], r.values[i, :n], r.returns[i, :n]
        ratio = (logp.gather(1, ids[0, 3 + start :, None]).squeeze(1) - r.logprobs[i, :n]).exp()
        surrogate = torch.minimum(ratio * a, ratio.clamp(1 - c.clip, 1 + c.clip) * a)
        near = old_v + (v - old_v).clamp(-c.value_clip, c.value_clip)
        v_loss = 0.5 * torch.maximum((v - ret) ** 2, (near - ret) ** 2)
        entropy = -(logp.exp() * logp).sum(-1)
        losses.append((-surrogate + c.vf_coef * v_loss - c.entropy_coef * entropy).sum() / tokens)
    torch.stack(losses).sum().backward()
    slow = torch.cat([p.grad.flatten() for p in trainer.updater.parameters])
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-4)


def test_updates_are_counted_and_gradients_do_not_pile_up(make_trainer) -> None:
    """Point 25: epochs x minibatches optimizer steps; a second update starts from zero."""
    trainer = make_trainer(epochs=3, minibatches=2, steps=2)
    assert [step.stats["updates"] for step in trainer] == [6, 6]
    states = trainer.updater.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {12}
    r = trainer.step().rollouts
    rows = torch.arange(len(r))
    first = trainer.updater._minibatch(r, rows, "")["grad_norm"]
    for group in trainer.updater.optimizer.param_groups:
        group["lr"] = 0.0
    twice = [trainer.updater._minibatch(r, rows, "")["grad_norm"] for _ in range(2)]
    assert twice[0] == pytest.approx(twice[1], rel=1e-5)
    assert first > 0


def test_gradients_are_clipped_for_policy_and_value_together(make_trainer) -> None:
    """Point 26: what the optimizer saw has the norm max_grad_norm; the log says what it was."""
    trainer = make_trainer(max_grad_norm=1e-3, epochs=1, minibatches=1)
    stats = trainer.step().stats
    seen = torch.cat([p.grad.flatten() for p in trainer.updater.parameters])
    assert stats["grad_norm"] > 0.01
    assert float(seen.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert trainer.actor.value_head.weight.grad is not None
    loose = make_trainer(max_grad_norm=1e6, epochs=1, minibatches=1)
    stats = loose.step().stats
    seen = torch.cat([p.grad.flatten() for p in loose.updater.parameters])
    assert float(seen.norm()) == pytest.approx(stats["grad_norm"], rel=1e-4)


def test_adam_has_epsilon_1e_5_and_is_fused(make_trainer) -> None:
    """Point 27."""
    groups = make_trainer().updater.optimizer.param_groups
    assert all(group["eps"] == 1e-5 and group["fused"] for group in groups)


def test_the_value_head_learns_faster_by_its_factor(make_trainer) -> None:
    """Adam's first update moves every weight by about its learning rate."""
    trainer = make_trainer(value_lr_factor=7.0, learning_rate=1e-3, epochs=1, minibatches=1)
    norm = trainer.policy.model.norm.weight
    start = norm.clone()
    trainer.step()
    assert float((norm - start).detach().abs().max()) == pytest.approx(1e-3, rel=0.1)
    assert float(trainer.actor.value_head.weight.abs().max()) == pytest.approx(7e-3, rel=0.1)


def test_the_value_clip_uses_the_values_of_the_rollout(make_trainer) -> None:
    """Point 20: old values are cached, so that large value steps are in fact clipped."""
    trainer = make_trainer(value_clip=1e-3, learning_rate=1e-2, epochs=3, steps=2)
    trainer.step()
    step = trainer.step()
    assert step.stats["value_clip_fraction"] > 0.2
    free = make_trainer(value_clip=None, learning_rate=1e-2).step()
    assert free.stats["value_clip_fraction"] == 0


def test_the_updates_of_a_step_end_when_the_policy_has_moved_too_far(make_trainer) -> None:
    """Point 22: the update that would follow is not applied."""
    settings = {"learning_rate": 3e-2, "epochs": 4, "minibatches": 1, "steps": 1}
    free = make_trainer(**settings).step().stats
    assert free["updates"] == 4
    assert not free["stopped_early"]
    stopped = make_trainer(**settings, max_approx_kl=0.01)
    stats = stopped.step().stats
    assert stats["stopped_early"]
    assert stats["updates"] < 4
    states = stopped.updater.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {int(stats["updates"])}


def test_a_runaway_ratio_stays_finite(make_trainer) -> None:
    """Point 22: the log-ratio is clamped at 20 nats before exp."""
    trainer = make_trainer(epochs=1, minibatches=1)
    r = trainer.step().rollouts
    r.logprobs = r.logprobs - 200.0 * r.mask
    rows = torch.arange(len(r))
    stats = trainer.updater._accumulate(r, rows)
    assert stats["ratio_max"] == pytest.approx(math.exp(20), rel=1e-3)
    assert math.isfinite(stats["policy_loss"])


# ---- control of the KL -------------------------------------------------------------------------


def test_beta_adapts_per_answer_towards_the_target(make_trainer) -> None:
    """Point 23: β (1 + clip(KL / target - 1, ±0.2) n / horizon), KL per answer, n in answers."""
    trainer = make_trainer(
        kl_target=0.5, kl_horizon=100, beta=0.1, steps=6, learning_rate=5e-3, epochs=4
    )
    rows = [step.stats for step in trainer]
    assert rows[0]["beta"] == 0.1
    for now, following in itertools.pairwise(rows):
        error = min(max(now["kl"] / 0.5 - 1, -0.2), 0.2)
        assert following["beta"] == pytest.approx(now["beta"] * (1 + error * 20 / 100))
    assert rows[1]["beta"] < 0.1 < rows[-1]["beta"] / 0.8  # it fell at KL 0, and rises later
    assert max(row["kl"] for row in rows) > 0.6


def test_a_larger_beta_keeps_the_policy_nearer(make_trainer, policy) -> None:
    """Point 1: the KL in the reward has an effect on what is learned."""
    start = weights(policy)
    ends = {}
    for beta in (0.0, 3.0):
        policy.load_state_dict(start)
        trainer = make_trainer(beta=beta, steps=8, learning_rate=5e-3, missing_eos_penalty=0.0)
        ends[beta] = [step.stats["kl"] for step in trainer][-1]
    assert ends[0.0] > 2 * max(ends[3.0], 0.05)


def test_the_run_ends_when_the_kl_budget_is_spent(make_trainer) -> None:
    trainer = make_trainer(kl_stop=0.2, beta=0.0, learning_rate=1e-2, steps=20)
    rows = trainer.train(progress=False)
    assert 1 < len(rows) < 20
    assert rows[-1]["kl"] > 0.2
    assert all(row["kl"] <= 0.2 for row in rows[:-1])
    assert "kl_stop = 0.2" in trainer.stop_reason
    assert list(trainer) == []


# ---- masks, padding, the reference -------------------------------------------------------------


def test_padding_may_be_eos_or_missing(make_trainer, tiny_tokenizer, policy) -> None:
    """Points 10, 11: lengths are explicit, so all tokenizers give the same numbers, bit for bit."""
    start = weights(policy)
    rows = []
    for change in ("none", "pad is eos", "no pad"):
        policy.load_state_dict(start)
        if change == "pad is eos":
            tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
        if change == "no pad":
            tiny_tokenizer.pad_token = None
        rows.append([step.stats for step in make_trainer()])
    for other in rows[1:]:
        for a, b in zip(rows[0], other, strict=True):
            timed = {key for key in a if key.endswith("seconds")}
            assert {k: a[k] for k in a.keys() - timed} == {k: b[k] for k in a.keys() - timed}


def test_sequences_hold_each_row_without_its_padding(make_trainer, tiny_tokenizer) -> None:
    """Points 8, 9: rows start at column 0; `where` predicts exactly the answer's tokens."""
    from course_utils.generation import pad_left
    from course_utils.training.ppo.rollout import sample_answers

    trainer = make_trainer()
    tokens = trainer.prompts.tokens
    sampled = sample_answers(
        trainer.actor, tiny_tokenizer, tokens, trainer.config, trainer.generator
    )
    s = Sequences.of(sampled)
    predicted = s.ids.flatten()[s.where + 1]
    assert predicted.tolist() == sampled.completion_ids[sampled.completion_mask].tolist()
    assert torch.equal(s.mask, sampled.completion_mask)
    for i, prompt in enumerate(tokens):
        assert s.ids[i, : len(prompt)].tolist() == prompt
        row = s.rows(torch.tensor([i]))
        assert row.ids.shape[1] == int(s.lengths[i])
    assert pad_left(tokens, 0).input_ids.shape[1] > min(map(len, tokens))


def test_scoring_with_absolute_positions_ignores_padding(make_trainer, tiny_tokenizer) -> None:
    """Points 7, 9: a GPT-2 (learned positions, dropout) sampled in a batch, scored row by row."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny_tokenizer), **shape)).train()
    with torch.no_grad():
        gpt2.transformer.wpe.weight.mul_(30)
    trainer = make_trainer(policy=gpt2, learning_rate=0.0)
    r = trainer.step().rollouts
    for i in range(len(r)):
        start, end = int(r.sequences.prompt_lengths[i]), int(r.sequences.lengths[i])
        row = r.sequences.ids[i, :end]
        with torch.no_grad():
            logp = gpt2(input_ids=row[None]).logits[0, start - 1 : -1].log_softmax(-1)
        by_hand = logp.gather(1, row[start:, None]).squeeze(1)
        for found in (r.logprobs, r.ref_logprobs):
            torch.testing.assert_close(found[i, : end - start], by_hand, atol=1e-5, rtol=1e-5)


def test_the_reference_stays_as_it_was_with_tied_embeddings(make_trainer, tiny_tokenizer) -> None:
    """Point 29: the copy shares nothing, although the policy ties input and output embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tied = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )
    trainer = make_trainer(policy=tied)
    with trainer.reference.model() as reference:
        before = weights(reference)
    start = weights(tied)
    assert trainer.reference.kind == "copy"
    for _ in trainer:
        pass
    assert not same(start, weights(tied))
    with trainer.reference.model() as reference:
        assert same(before, weights(reference))
        assert not any(p.requires_grad for p in reference.parameters())


def test_a_reference_that_shares_weights_with_the_policy_is_refused(make_trainer, policy) -> None:
    """Point 29."""
    with pytest.raises(CourseError, match=r"shares .* trained parameters"):
        make_trainer(reference=policy)
