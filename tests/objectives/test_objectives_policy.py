"""PPO's pieces against Python loops, closed forms and the policy-gradient theorem."""

import math

import pytest
import torch

from course_utils import objectives as O


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lengths_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


LENGTHS = [6, 1, 3, 5]
MASK = lengths_mask(LENGTHS, 6)


# -- per-token rewards ---------------------------------------------------------------------------


def test_per_token_rewards_against_the_loop():
    logp, ref, scores = randn(4, 6, seed=1), randn(4, 6, seed=2), randn(4, seed=3)
    got = O.per_token_rewards(logp, ref, scores, MASK, beta=0.3)
    for row, length in enumerate(LENGTHS):
        for t in range(6):
            wanted = -0.3 * (logp[row, t] - ref[row, t]) if t < length else 0.0
            wanted = wanted + (scores[row] if t == length - 1 else 0.0)
            assert got[row, t].item() == pytest.approx(float(wanted))


def test_the_rewards_of_an_answer_sum_to_its_score_minus_beta_kl():
    logp, ref, scores = randn(4, 6, seed=1), randn(4, 6, seed=2), randn(4, seed=3)
    got = O.per_token_rewards(logp, ref, scores, MASK, beta=0.3).sum(dim=1)
    kl = O.masked_sum(O.kl_estimate(logp, ref, "k1"), MASK, dim=1)
    torch.testing.assert_close(got, scores - 0.3 * kl)
    same = O.per_token_rewards(logp, logp, scores, MASK, beta=0.3)
    assert (same != 0).sum(dim=1).tolist() == [1, 1, 1, 1]
    assert torch.equal(same[torch.arange(4), torch.tensor(LENGTHS) - 1], scores)
    no_penalty = O.per_token_rewards(logp, ref, scores, MASK, beta=0.0)
    torch.testing.assert_close(no_penalty, same)


def test_per_token_rewards_are_constants_and_refuse_what_has_no_meaning():
    logp, ref = randn(4, 6).requires_grad_(), randn(4, 6)
    assert not O.per_token_rewards(logp, ref, randn(4), MASK, 0.1).requires_grad
    for bad in (randn(4, 1), randn(3), randn(4, 6)):
        with pytest.raises(ValueError, match=r"scores must be \(B,\) = \(4,\).*got"):
            O.per_token_rewards(logp, ref, bad, MASK, 0.1)
    for beta in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            O.per_token_rewards(logp, ref, randn(4), MASK, beta)
    empty = MASK.clone()
    empty[1] = False
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        O.per_token_rewards(logp, ref, randn(4), empty, 0.1)


# -- GAE -----------------------------------------------------------------------------------------


def slow_gae(rewards, values, gamma, lam, bootstrap=0.0) -> list[float]:
    """The definition (eq. 16), a double sum over one answer's real tokens; no recursion."""
    following = [*values[1:], bootstrap]
    deltas = [
        r + gamma * v_next - v for r, v_next, v in zip(rewards, following, values, strict=True)
    ]
    return [
        sum((gamma * lam) ** k * deltas[t + k] for k in range(len(deltas) - t))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.7, 0.0)])
@pytest.mark.parametrize("truncated", [False, True])
def test_gae_is_the_double_sum_over_real_tokens(gamma, lam, truncated):
    rewards, values = randn(4, 6, seed=1), randn(4, 6, seed=2)
    tail = randn(4, seed=5) if truncated else None
    advantages, returns = O.gae(rewards, values, MASK, gamma, lam, tail)
    for row, length in enumerate(LENGTHS):
        wanted = slow_gae(
            rewards[row, :length].tolist(),
            values[row, :length].tolist(),
            gamma,
            lam,
            float(tail[row]) if truncated else 0.0,
        )
        assert advantages[row, :length].tolist() == pytest.approx(wanted)
        assert not advantages[row, length:].any()
    torch.testing.assert_close(returns[MASK], (advantages + values)[MASK])
    assert not returns[~MASK].any()


def test_gae_steps_over_masked_tokens_inside_an_answer():
    rewards, values, mask = (
        randn(1, 5, seed=1),
        randn(1, 5, seed=2),
        torch.tensor([[1, 1, 0, 1, 0]]),
    )
    holed = O.gae(rewards, values, mask, 0.9, 0.8)
    kept = mask[0].bool()
    dense = O.gae(rewards[:, kept], values[:, kept], torch.ones(1, 3), 0.9, 0.8)
    torch.testing.assert_close(holed.advantages[:, kept], dense.advantages)
    torch.testing.assert_close(holed.returns[:, kept], dense.returns)


def test_gae_limits_lambda_one_is_monte_carlo_and_lambda_zero_is_one_step():
    rewards, values = O.zero_masked(randn(4, 6, seed=1), MASK), randn(4, 6, seed=2)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = O.gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns[MASK], to_go[MASK])  # whatever the critic says
    torch.testing.assert_close(advantages[MASK], (to_go - values)[MASK])
    last = torch.tensor(LENGTHS) - 1
    advantages, _ = O.gae(rewards, values, MASK, gamma=0.9, lam=0.0)
    rows = torch.arange(4)
    torch.testing.assert_close(advantages[rows, last], (rewards - values)[rows, last])
    torch.testing.assert_close(
        advantages[0, :-1], rewards[0, :-1] + 0.9 * values[0, 1:] - values[0, :-1]
    )


def test_a_perfect_critic_has_no_advantages():
    rewards = O.zero_masked(randn(4, 6, seed=1), MASK)
    values = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = O.gae(rewards, values, MASK)
    torch.testing.assert_close(advantages, torch.zeros_like(values))
    torch.testing.assert_close(returns, O.zero_masked(values, MASK))


def test_the_value_of_a_cut_answer_is_bootstrapped_as_if_it_went_on():
    """Cutting an answer and giving V(s_T) equals the whole answer when V(s_T) is right (λ = 1)."""
    rewards, values = randn(1, 6, seed=1), randn(1, 6, seed=2)
    whole = O.gae(rewards, values, torch.ones(1, 6), 0.9, 1.0)
    rest = sum(0.9**k * rewards[0, 4 + k] for k in range(2)).view(1)
    cut = O.gae(rewards[:, :4], values[:, :4], torch.ones(1, 4), 0.9, 1.0, rest)
    torch.testing.assert_close(cut.returns, whole.returns[:, :4])
    forgotten = O.gae(rewards[:, :4], values[:, :4], torch.ones(1, 4), 0.9, 1.0)
    assert (forgotten.returns - cut.returns).abs().min() > 1e-3


def test_gae_of_a_half_precision_critic_keeps_the_rewards_precision():
    rewards, values = randn(4, 6, seed=1).float(), randn(4, 6, seed=2).bfloat16()
    got = O.gae(rewards, values, MASK)
    wanted = O.gae(rewards, values.float(), MASK)
    assert got.advantages.dtype == torch.float32
    assert torch.equal(got.advantages, wanted.advantages)
    assert torch.equal(got.returns, wanted.returns)


def test_gae_changes_no_input_carries_no_gradient_and_checks_its_arguments():
    rewards, values = randn(4, 6).requires_grad_(), randn(4, 6, seed=1).requires_grad_()
    before = (rewards.detach().clone(), values.detach().clone())
    advantages, returns = O.gae(rewards, values, MASK)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    assert torch.equal(rewards, before[0])
    assert torch.equal(values, before[1])
    for options in ({"gamma": 1.1}, {"gamma": -0.1}, {"lam": math.nan}, {"lam": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            O.gae(rewards, values, MASK, **options)
    with pytest.raises(ValueError, match=r"bootstrap_values must be \(B,\) = \(4,\), got \(4, 1\)"):
        O.gae(rewards, values, MASK, bootstrap_values=torch.zeros(4, 1))


# -- PPO's policy loss ---------------------------------------------------------------------------


def slow_ppo(logp, old, advantages, mask, low, high, dual) -> tuple[float, float]:
    total, clipped, count = 0.0, 0, 0
    for new, o, a, m in zip(
        *(x.flatten().tolist() for x in (logp, old, advantages, mask)), strict=True
    ):
        if not m:
            continue
        ratio = math.exp(new - o)
        bounded = min(max(ratio, 1 - low), 1 + high)
        objective = min(ratio * a, bounded * a)
        cut = (a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low)
        if dual is not None and a < 0 and ratio > dual:
            objective, cut = dual * a, True
        total, clipped, count = total - objective, clipped + cut, count + 1
    return total / count, clipped / count


@pytest.mark.parametrize("clip", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("high", [None, 0.3])
@pytest.mark.parametrize("dual", [None, 1.6])
def test_the_ppo_loss_against_a_scalar_loop(clip, high, dual):
    logp, old, adv = randn(4, 6, seed=1), randn(4, 6, seed=2) * 0.6, randn(4, 6, seed=3)
    old = logp + old
    loss, stats = O.ppo_policy_loss(logp, old, adv, MASK, clip, high, dual)
    wanted, fraction = slow_ppo(logp, old, adv, MASK, clip, high or clip, dual)
    assert loss.item() == pytest.approx(wanted)
    assert stats["clip_fraction"].item() == pytest.approx(fraction)
    assert 0 < fraction < 1
    ratio = (logp - old).exp()[MASK]
    torch.testing.assert_close(stats["ratio_max"], ratio.max())
    torch.testing.assert_close(stats["ratio_min"], ratio.min())
    torch.testing.assert_close(stats["approx_kl"], (ratio - 1 - ratio.log()).mean())


def test_on_policy_the_ratio_is_one_and_the_gradient_is_reinforce():
    logp = randn(4, 6, seed=1).requires_grad_()
    adv = randn(4, 6, seed=3)
    loss, stats = O.ppo_policy_loss(logp, logp.detach().clone(), adv, MASK)
    loss.backward()
    torch.testing.assert_close(loss.detach(), -adv[MASK].mean())
    torch.testing.assert_close(logp.grad, O.zero_masked(-adv, MASK) / MASK.sum())
    assert stats["ratio_max"] == stats["ratio_min"] == 1
    assert stats["clip_fraction"] == stats["approx_kl"] == 0


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_the_ratios_extremes_are_those_of_real_tokens_not_of_padding(shift):
    logp = randn(4, 6, seed=1)  # a padded token would count as ratio 1
    stats = O.ppo_policy_loss(logp, logp + shift, randn(4, 6, seed=3), MASK).stats
    assert stats["ratio_max"].item() == pytest.approx(math.exp(-shift))
    assert stats["ratio_min"].item() == pytest.approx(math.exp(-shift))


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "slope"),
    [
        (1.5, 2.0, None, 0.0),  # good and already much likelier: stop
        (0.5, 2.0, None, -1.0),  # good and less likely: push up
        (1.5, -2.0, None, 1.0),  # bad and likelier: push down, the clip must not stop this
        (0.5, -2.0, None, 0.0),  # bad and already much less likely: stop
        (1.1, 2.0, None, -1.0),  # inside the clip
        (0.9, -2.0, None, 1.0),
        (5.0, -2.0, 3.0, 0.0),  # dual clip: bad and far too likely, off-policy: ignore
        (5.0, -2.0, None, 1.0),
        (5.0, 2.0, 3.0, 0.0),
        (2.0, -2.0, 3.0, 1.0),
        (math.exp(25), -2.0, None, 0.0),  # past the log-ratio limit
        (math.exp(-25), 2.0, None, 0.0),
    ],
)
def test_the_clip_stops_the_gradient_where_it_must_and_only_there(ratio, advantage, dual, slope):
    old = torch.tensor([[-30.0]], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    adv = torch.full_like(old, advantage)
    loss, stats = O.ppo_policy_loss(logp, old, adv, torch.ones(1, 1), dual_clip=dual)
    loss.backward()
    # d(-r A)/d log π = -r A: `slope` is its sign
    assert logp.grad.item() == pytest.approx(slope * ratio * abs(advantage))
    if abs(math.log(ratio)) < 20:
        assert stats["clip_fraction"] == (slope == 0)


@pytest.mark.parametrize("gap", [1e4, -1e4, 50.0, -50.0])
def test_the_ppo_loss_is_finite_for_any_log_ratio(gap):
    logp = torch.tensor([[0.0, gap]], requires_grad=True)
    old, adv = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]])
    for sign in (1, -1):
        loss, stats = O.ppo_policy_loss(logp, old, sign * adv, torch.ones(1, 2))
        gradient = torch.autograd.grad(loss, logp)[0]
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert all(value.isfinite() for value in stats.values())
        assert stats["ratio_max"] <= math.exp(20) * 1.001


def test_advantages_and_old_logprobs_are_constants_of_the_loss():
    logp, old, adv = (randn(4, 6, seed=s).requires_grad_() for s in (1, 2, 3))
    loss, stats = O.ppo_policy_loss(logp, old, adv, MASK)
    gradients = torch.autograd.grad(loss, (logp, old, adv), allow_unused=True)
    assert gradients[0].any()
    assert gradients[1] is gradients[2] is None
    assert not any(value.requires_grad for value in stats.values())
    assert O.ppo_policy_loss(logp, old, adv, MASK)._fields == ("loss", "stats")


def test_the_expected_ppo_gradient_is_the_policy_gradient():
    """On a bandit with known advantages: at θ = θ_old, E_π[∇ loss] = -∇ E_π[A] (enumerated)."""
    logits, adv = randn(7, seed=1).requires_grad_(), randn(7, seed=2)
    logp = logits.log_softmax(-1)
    probs = logp.detach().exp()
    total = torch.zeros_like(logits)
    for action in range(7):
        loss, _ = O.ppo_policy_loss(
            logp[action].view(1, 1), logp[action].detach().view(1, 1), adv[action].view(1, 1),
            torch.ones(1, 1),
        )  # fmt: skip
        total = total + probs[action] * torch.autograd.grad(loss, logits, retain_graph=True)[0]
    wanted = torch.autograd.grad(-(logits.softmax(-1) * adv).sum(), logits)[0]
    torch.testing.assert_close(total, wanted)


def test_bad_clip_values_are_errors():
    x = randn(2, 3)
    for options in ({"clip": 0.0}, {"clip": 1.1}, {"clip": math.nan}, {"clip_high": 0.0}):
        with pytest.raises(ValueError, match="clip must be in"):
            O.ppo_policy_loss(x, x, x, torch.ones(2, 3), **options)
    with pytest.raises(ValueError, match=r"dual_clip must exceed 1 \+ clip = 1.2, got 1.1"):
        O.ppo_policy_loss(x, x, x, torch.ones(2, 3), dual_clip=1.1)
    with pytest.raises(ValueError, match=r"\(2, 3\) selects no token"):
        O.ppo_policy_loss(x, x, x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"advantages \(2,\)"):
        O.ppo_policy_loss(x, x, x[:, 0], torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"ratio \(2, 3\), advantages \(2,\)"):
        O.clipped_surrogate(x, x[:, 0])


# -- the value loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.1, 0.5, None])
def test_the_value_loss_against_a_scalar_loop(clip):
    values, old, returns = (randn(4, 6, seed=s) for s in (1, 2, 3))
    total, clipped, count = 0.0, 0, 0
    for v, o, r, m in zip(
        *(x.flatten().tolist() for x in (values, old, returns, MASK)), strict=True
    ):
        if not m:
            continue
        plain = (v - r) ** 2
        bounded = plain if clip is None else (o + min(max(v - o, -clip), clip) - r) ** 2
        total += max(plain, bounded) / 2
        clipped += bounded > plain
        count += 1
    loss, stats = O.clipped_value_loss(values, old, returns, MASK, clip)
    assert loss.item() == pytest.approx(total / count)
    assert stats["value_clip_fraction"].item() == pytest.approx(clipped / count)
    torch.testing.assert_close(
        stats["explained_variance"], O.explained_variance(values, returns, MASK)
    )


def test_value_clipping_stops_a_step_that_already_went_far_towards_the_return():
    old, returns = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, -1.0, 1.0]])
    values = torch.tensor([[0.5, 0.1, 0.5, -0.5]], requires_grad=True)
    loss, stats = O.clipped_value_loss(values, old, returns, torch.ones(1, 4), clip=0.2)
    loss.backward()
    # far towards R: stopped; inside ε: free; far away from R: pulled back, twice
    torch.testing.assert_close(values.grad * 4, torch.tensor([[0.0, -0.9, 1.5, -1.5]]))
    assert stats["value_clip_fraction"] == 0.25


def test_recomputed_old_values_switch_the_clip_off():
    values, returns = randn(4, 6, seed=1), randn(4, 6, seed=3)
    loss, stats = O.clipped_value_loss(values, values.clone(), returns, MASK, clip=0.01)
    torch.testing.assert_close(loss, (values - returns)[MASK].square().mean() / 2)
    assert stats["value_clip_fraction"] == 0


def test_old_values_and_returns_are_constants_and_arguments_are_checked():
    values, old, returns = (randn(4, 6, seed=s).requires_grad_() for s in (1, 2, 3))
    loss, stats = O.clipped_value_loss(values, old, returns, MASK)
    gradients = torch.autograd.grad(loss, (values, old, returns), allow_unused=True)
    assert gradients[1] is gradients[2] is None
    assert not any(value.requires_grad for value in stats.values())
    for clip in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clip must be > 0"):
            O.clipped_value_loss(values, old, returns, MASK, clip)
    with pytest.raises(ValueError, match="selects no token"):
        O.clipped_value_loss(values, old, returns, torch.zeros(4, 6))


def test_policy_and_value_losses_by_finite_differences():
    logp, values = randn(4, 6, seed=1).requires_grad_(), randn(4, 6, seed=4).requires_grad_()
    old, adv, returns = (randn(4, 6, seed=s) for s in (2, 3, 5))
    for dual in (None, 1.5):
        assert torch.autograd.gradcheck(
            lambda x, d=dual: O.ppo_policy_loss(x, old, adv, MASK, dual_clip=d).loss, logp
        )
    for clip in (None, 0.3):
        assert torch.autograd.gradcheck(
            lambda x, c=clip: O.clipped_value_loss(x, old, returns, MASK, c).loss, values
        )
    assert torch.autograd.gradcheck(
        lambda x: O.grpo_loss(x, old, adv[:, 0], MASK, returns, beta=0.2).loss, logp
    )
    assert torch.autograd.gradcheck(lambda x: O.masked_whiten(x, MASK), logp)
    assert torch.autograd.gradcheck(lambda x: O.masked_whiten(x, MASK, shift_mean=False), logp)
