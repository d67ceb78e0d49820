"""Group baselines against loops and the policy-gradient theorem; GRPO against its definition."""

import itertools
import math
import statistics

import pytest
import torch

from course_utils import objectives as O

REWARDS = torch.tensor([[1.0, 0.0, 0.0, 2.5], [3.0, 3.0, 3.0, 3.0], [-1.0, 4.0, 0.5, 0.2]]).double()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_group_advantages_against_the_statistics_module():
    for scale in (True, False):
        got = O.group_advantages(REWARDS, scale)
        for row, advantages in zip(REWARDS.tolist(), got.tolist(), strict=True):
            mean, std = statistics.mean(row), statistics.stdev(row)
            wanted = [(r - mean) / (std + 1e-4 if scale else 1) for r in row]
            assert advantages == pytest.approx(wanted)
    assert not O.group_advantages(REWARDS)[1].any()  # equal rewards teach nothing, and are not NaN


def test_rloo_baselines_are_the_mean_of_the_others():
    baseline = O.rloo_baseline(REWARDS)
    for row, got in zip(REWARDS.tolist(), baseline.tolist(), strict=True):
        wanted = [statistics.mean(row[:i] + row[i + 1 :]) for i in range(4)]
        assert got == pytest.approx(wanted)
    advantages = O.rloo_advantages(REWARDS)
    torch.testing.assert_close(advantages, REWARDS - baseline)
    torch.testing.assert_close(advantages, O.group_advantages(REWARDS, scale=False) * 4 / 3)


def test_group_functions_want_a_group():
    for function in (O.group_advantages, O.rloo_baseline, O.rloo_advantages):
        with pytest.raises(ValueError, match=r"\(N, G\), got \(12,\)"):
            function(REWARDS.flatten())
        with pytest.raises(ValueError, match=r"at least 2 answers.*\(12, 1\)"):
            function(REWARDS.view(12, 1))


@pytest.mark.parametrize("size", [2, 3])
def test_the_expected_rloo_gradient_is_that_of_the_expected_reward(size):
    """Over every group of answers on a 4-armed bandit; the group mean shrinks it by (G-1)/G."""
    logits, reward = randn(4, seed=1).requires_grad_(), randn(4, seed=2)
    logp = logits.log_softmax(-1)

    def expected(advantage) -> torch.Tensor:
        total = torch.zeros(()).double()
        for group in itertools.product(range(4), repeat=size):
            chosen = list(group)
            weights = advantage(reward[chosen].unsqueeze(0))[0]
            probability = logp[chosen].sum().exp().detach()
            total = total + probability * (weights * logp[chosen]).mean()
        return torch.autograd.grad(total, logits, retain_graph=True)[0]

    wanted = torch.autograd.grad((logits.softmax(-1) * reward).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(expected(O.rloo_advantages), wanted)
    torch.testing.assert_close(
        expected(lambda r: O.group_advantages(r, scale=False)), wanted * (size - 1) / size
    )


LENGTHS = [6, 1, 3, 5]
MASK = torch.arange(6) < torch.tensor(LENGTHS).unsqueeze(1)


def slow_grpo(logp, old, adv, ref, beta, aggregation, limit) -> float:
    per_answer = []
    for row, length in enumerate(LENGTHS):
        losses = []
        for t in range(length):
            ratio = math.exp(logp[row, t] - old[row, t])
            bounded = min(max(ratio, 0.8), 1.2)
            d = float(logp[row, t] - ref[row, t])
            k3 = math.exp(-d) - 1 + d
            losses.append(-min(ratio * float(adv[row]), bounded * float(adv[row])) + beta * k3)
        per_answer.append(losses)
    if aggregation == "grpo":
        return statistics.mean(statistics.mean(losses) for losses in per_answer)
    tokens = [loss for losses in per_answer for loss in losses]
    return statistics.mean(tokens) if aggregation == "bnpo" else sum(tokens) / (4 * limit)


def test_the_kl_in_grpos_loss_follows_the_other_direction_unless_it_is_corrected():
    """On policy, enumerated over a vocabulary, with zero advantages: only the KL term is left."""
    logits, ref = randn(7, seed=1).requires_grad_(), randn(7, seed=2)
    logp = logits.log_softmax(-1)

    def expected(unbiased: bool) -> torch.Tensor:
        total = torch.zeros_like(logits)
        for token in range(7):
            one = logp[token].view(1, 1)
            loss, _ = O.grpo_loss(
                one,
                one.detach(),
                torch.zeros(1).double(),
                torch.ones(1, 1),
                ref.log_softmax(-1)[token].view(1, 1),
                beta=0.3,
                unbiased_kl=unbiased,
            )
            gradient = torch.autograd.grad(loss, logits, retain_graph=True)[0]
            total = total + logp[token].exp().detach() * gradient
        return total

    forward, reverse = 0.3 * O.exact_kl(logits, ref), 0.3 * O.exact_kl(ref, logits)
    wanted = [torch.autograd.grad(kl, logits, retain_graph=True)[0] for kl in (reverse, forward)]
    torch.testing.assert_close(expected(False), wanted[0])
    torch.testing.assert_close(expected(True), wanted[1])
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2


@pytest.mark.parametrize("aggregation", ["grpo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_grpo_loss_against_a_scalar_loop(aggregation, beta):
    logp = randn(4, 6, seed=1)
    old, ref = logp + 0.4 * randn(4, 6, seed=2), logp + 0.4 * randn(4, 6, seed=3)
    adv = randn(4, seed=4)
    got, stats = O.grpo_loss(
        logp, old, adv, MASK, ref, beta, aggregation=aggregation, max_completion_length=9
    )
    assert got.item() == pytest.approx(slow_grpo(logp, old, adv, ref, beta, aggregation, 9))
    torch.testing.assert_close(stats["kl_k3"], O.kl_k3(logp, ref)[MASK].mean())
    spread = adv.unsqueeze(1).expand(4, 6)
    ppo = O.ppo_policy_loss(logp, old, spread, MASK)
    torch.testing.assert_close(stats["clip_fraction"], ppo.stats["clip_fraction"])
    if aggregation == "bnpo" and not beta:
        torch.testing.assert_close(got, ppo.loss)


def test_grpo_sends_no_gradient_into_the_old_policy_reference_or_advantages():
    logp, old, ref = (randn(4, 6, seed=s).requires_grad_() for s in (1, 2, 3))
    adv = randn(4, seed=4).requires_grad_()
    loss, stats = O.grpo_loss(logp, old, adv, MASK, ref, beta=0.3)
    gradients = torch.autograd.grad(loss, (logp, old, ref, adv), allow_unused=True)
    assert gradients[0].any()
    assert gradients[1] is gradients[2] is gradients[3] is None
    assert not any(value.requires_grad for value in stats.values())


def test_grpo_checks_its_arguments():
    x, adv = randn(4, 6), randn(4)
    with pytest.raises(ValueError, match=r"advantages must be \(B,\) = \(4,\), got \(4, 6\)"):
        O.grpo_loss(x, x, x, MASK)
    with pytest.raises(ValueError, match=r"beta = 0.1 needs ref_logprobs"):
        O.grpo_loss(x, x, adv, MASK, beta=0.1)
    with pytest.raises(ValueError, match="beta"):
        O.grpo_loss(x, x, adv, MASK, x, beta=-0.1)
    with pytest.raises(ValueError, match="max_completion_length"):
        O.grpo_loss(x, x, adv, MASK, aggregation="dr_grpo")
    with pytest.raises(ValueError, match="mean"):
        O.grpo_loss(x, x, adv, MASK, aggregation="mean")
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(4, 5\)"):
        O.grpo_loss(x, x, adv, MASK, x[:, :5], beta=0.1)
