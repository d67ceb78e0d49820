"""The thirty points, continued: the update, control of the KL, padding, the reference.

The number in each docstring is the point's; see README.md.
"""

import itertools
import math
from typing import Any

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.training.ppo.sequences import Sequences

from .checks import same, varied, weights

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
    assert float(trainer.actor.value_head.weight.detach().abs().max()) == pytest.approx(
        7e-3, rel=0.1
    )


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
        trainer.actor, tiny_tokenizer, tokens, trainer.config, trainer.generator, trainer.processes
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
