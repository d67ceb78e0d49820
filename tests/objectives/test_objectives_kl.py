"""KL estimators against sums over a vocabulary, exact KL against torch.distributions, β."""

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from course_utils import objectives as O

ESTIMATORS = {"k1": O.kl_k1, "k2": O.kl_k2, "k3": O.kl_k3}


def two_policies(size: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of π and π_ref over a small vocabulary."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=g, dtype=torch.float64)
    return logits, logits + 0.5 * torch.randn(size, generator=g, dtype=torch.float64)


def expectation(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """E_{v ~ π}[values_v], the weights being constants as they are when v is sampled."""
    return (logits.detach().softmax(-1) * values).sum()


@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_have_the_exact_kl_as_expectation(kind, seed):
    logits, ref = two_policies(seed=seed)
    estimates = ESTIMATORS[kind](logits.log_softmax(-1), ref.log_softmax(-1))
    exact = kl_divergence(Categorical(logits=logits), Categorical(logits=ref))
    torch.testing.assert_close(expectation(logits, estimates), exact)


@pytest.mark.parametrize("seed", range(5))
def test_k3_varies_less_than_k1_and_neither_k2_nor_k3_is_negative(seed):
    logits, ref = two_policies(seed=seed)
    logp, logq = logits.log_softmax(-1), ref.log_softmax(-1)
    k1, k2, k3 = (ESTIMATORS[kind](logp, logq) for kind in ("k1", "k2", "k3"))
    assert (k1 < 0).any()
    assert (k2 >= 0).all()
    assert (k3 >= 0).all()
    exact = O.exact_kl(logits, ref)

    def variance(k: torch.Tensor) -> torch.Tensor:
        return expectation(logits, (k - expectation(logits, k)).square())

    assert variance(k3) < variance(k1)
    assert abs(expectation(logits, k2) - exact) < 0.25 * exact  # biased, but near for near policies


def test_the_estimators_on_samples_from_the_policy():
    logits, ref = two_policies()
    tokens = Categorical(logits=logits).sample((200_000,))
    logp, logq = logits.log_softmax(-1)[tokens], ref.log_softmax(-1)[tokens]
    exact = float(O.exact_kl(logits, ref))
    for kind in ("k1", "k3"):
        k = O.kl_estimate(logp, logq, kind)
        error = float(k.std()) / math.sqrt(len(tokens))
        assert abs(float(k.mean()) - exact) < 5 * error
        assert abs(exact) > 20 * error  # the test has the power to see a wrong sign or direction


@pytest.mark.parametrize("seed", range(3))
def test_what_each_estimators_expected_gradient_is(seed):
    """As losses: k1 teaches nothing, k2 follows KL(π‖π_ref), k3 follows KL(π_ref‖π)."""
    logits, ref = two_policies(seed=seed)
    logits.requires_grad_()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits)[0]

    def expected(kind: str) -> torch.Tensor:
        values = ESTIMATORS[kind](logits.log_softmax(-1), ref.log_softmax(-1))
        return gradient(expectation(logits, values))

    forward, reverse = gradient(O.exact_kl(logits, ref)), gradient(O.exact_kl(ref, logits))
    torch.testing.assert_close(expected("k1"), torch.zeros_like(ref))
    torch.testing.assert_close(expected("k2"), forward)
    torch.testing.assert_close(expected("k3"), reverse)
    assert (forward - reverse).abs().max() > 1e-3


def test_k1_as_a_reward_has_the_gradient_of_the_kl():
    """E[-β d ∇log π] = -β ∇KL(π ‖ π_ref): why the penalty belongs into the reward."""
    logits, ref = two_policies()
    logits.requires_grad_()
    beta, logp = 0.3, logits.log_softmax(-1)
    rewards = O.per_token_rewards(
        logp.detach().unsqueeze(1),  # nine answers of one token each
        ref.log_softmax(-1).unsqueeze(1),
        torch.zeros(9).double(),
        torch.ones(9, 1),
        beta,
    )
    gradient = torch.autograd.grad(expectation(logits, rewards[:, 0] * logp), logits)[0]
    wanted = torch.autograd.grad(-beta * O.exact_kl(logits, ref), logits)[0]
    torch.testing.assert_close(gradient, wanted)


def test_equal_policies_give_exactly_zero():
    logits = torch.randn(2, 5, 30)
    logprobs = logits.log_softmax(-1)[..., 0]
    for kind in ESTIMATORS:
        assert not O.kl_estimate(logprobs, logprobs.clone(), kind).any()
    assert not O.exact_kl(logits, logits.clone()).any()


def test_the_direction_is_policy_minus_reference():
    logp, logq = torch.tensor([-1.0]), torch.tensor([-3.0])  # the policy likes the token more
    assert O.kl_k1(logp, logq).item() == 2
    assert O.kl_k2(logp, logq).item() == 2
    assert O.kl_k3(logp, logq).item() == pytest.approx(math.exp(-2) - 1 + 2)


def test_k3_is_accurate_and_not_negative_for_nearly_equal_policies_in_float32():
    d = torch.logspace(-7, -1, 200)
    for sign in (1, -1):
        logq = torch.zeros(200)
        exact = torch.expm1(-(sign * d).double()) + (sign * d).double()
        k3 = O.kl_k3(sign * d, logq)
        assert (k3 >= 0).all()
        # a plain exp(-d) - 1 + d is off by up to 6e-8 here, a hundred per cent for d < 1e-4
        torch.testing.assert_close(k3.double(), exact, rtol=1e-3, atol=1e-11)


def test_k3_is_finite_where_its_exponential_overflows_and_then_has_no_gradient():
    logp = torch.tensor([-1000.0, -100.0, -19.0, 0.0], requires_grad=True)
    logq = torch.tensor([0.0, 0.0, 0.0, -1000.0])
    k3 = O.kl_k3(logp, logq)
    k3.sum().backward()
    assert k3.isfinite().all()
    assert k3.tolist()[:2] == pytest.approx([math.exp(20) - 21] * 2)
    assert k3[2].item() == pytest.approx(math.exp(19) - 1 - 19)
    assert k3[3] == 999  # large positive d needs no clamp
    assert logp.grad.tolist()[:2] == [0, 0]
    assert logp.grad[2].item() == pytest.approx(1 - math.exp(19))
    assert logp.grad[3] == 1
    assert O.kl_k3(logp.detach(), logq, limit=None)[0].isinf()
    assert O.kl_k3(logp.detach(), logq, limit=5)[2].item() == pytest.approx(math.exp(5) - 1 - 5)


def test_estimators_by_finite_differences_and_their_errors():
    logp = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    logq = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    for kind in ESTIMATORS:
        assert torch.autograd.gradcheck(
            lambda a, b, kind=kind: O.kl_estimate(a, b, kind), (logp, logq)
        )
    with pytest.raises(ValueError, match="k4"):
        O.kl_estimate(logp, logq, "k4")
    for function in ESTIMATORS.values():
        with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
            function(logp, logq[:, :2])


# -- exact ---------------------------------------------------------------------------------------


def test_exact_kl_is_that_of_torch_distributions():
    logits, ref = torch.randn(3, 5, 11) * 3, torch.randn(3, 5, 11) * 3
    wanted = kl_divergence(Categorical(logits=logits), Categorical(logits=ref))
    torch.testing.assert_close(O.exact_kl(logits, ref), wanted)
    tempered = kl_divergence(Categorical(logits=logits / 0.7), Categorical(logits=ref / 0.7))
    torch.testing.assert_close(O.exact_kl(logits, ref, temperature=0.7), tempered)
    with pytest.raises(ValueError, match=r"\(3, 5, 11\).*\(3, 5, 10\)"):
        O.exact_kl(logits, ref[..., :10])


def test_exact_kl_with_large_and_forbidden_logits():
    logits = torch.tensor([1e4, -1e4, 0.0])
    assert O.exact_kl(logits, -logits).item() == pytest.approx(2e4)
    forbidden = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)
    open_to_all = torch.tensor([0.5, 0.0, 2.0])
    wanted = kl_divergence(
        Categorical(probs=forbidden.detach().softmax(-1)), Categorical(logits=open_to_all)
    )
    kl = O.exact_kl(forbidden, open_to_all)
    kl.backward()
    torch.testing.assert_close(kl.detach(), wanted)
    assert forbidden.grad.isfinite().all()
    assert O.exact_kl(forbidden.detach(), forbidden.detach()) == 0
    assert O.exact_kl(open_to_all, forbidden.detach()) == math.inf


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_best_of_n_kl_equals_its_integral_and_bounds_the_discrete_case(n):
    # the best of n uniforms has density n u^(n-1): KL = ∫ n u^(n-1) log(n u^(n-1)) du
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = n * u ** (n - 1)
    integral = float(torch.special.xlogy(density, density).mean())
    assert O.best_of_n_kl(n) == pytest.approx(integral, abs=1e-5)
    # eight equally likely answers of different reward: P(best = k) = (k/8)^n - ((k-1)/8)^n
    k = torch.arange(1, 9, dtype=torch.float64) / 8
    p = k**n - (k - 1 / 8) ** n
    assert float(torch.special.xlogy(p, 8 * p).sum()) <= O.best_of_n_kl(n) + 1e-12


def test_best_of_n_kl_needs_a_sample():
    assert O.best_of_n_kl(1) == 0
    with pytest.raises(ValueError, match="n >= 1"):
        O.best_of_n_kl(0)


# -- controllers ---------------------------------------------------------------------------------


def test_fixed_kl_stays():
    controller = O.FixedKL(0.05)
    assert controller.update(kl=1e9, samples=64) == controller.beta == 0.05
    assert O.FixedKL(0.0).beta == 0
    for beta in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            O.FixedKL(beta)


def test_adaptive_kl_follows_zieglers_formula():
    controller = O.AdaptiveKL(beta=0.1, target=6.0, horizon=1000)
    assert controller.update(kl=6.6, samples=100) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert controller.beta == pytest.approx(0.101)
    before = controller.beta
    assert controller.update(kl=6.0, samples=500) == before
    assert controller.update(kl=60.0, samples=500) == pytest.approx(before * (1 + 0.2 * 0.5))
    before = controller.beta
    assert controller.update(kl=-0.01, samples=1000) == pytest.approx(before * (1 - 0.2))
    assert controller.update(kl=100.0, samples=0) == pytest.approx(before * 0.8)


def test_beta_changes_by_at_most_e_to_a_fifth_in_a_horizon_however_it_is_cut():
    for batch in (10, 100, 250):
        controller = O.AdaptiveKL(beta=1.0, target=6.0, horizon=1000)
        for _ in range(1000 // batch):
            controller.update(kl=1e6, samples=batch)
        assert 1.2 <= controller.beta < math.exp(0.2)


def test_adaptive_kl_steers_a_simple_world_to_its_target():
    controller, kl = O.AdaptiveKL(beta=5.0, target=6.0, horizon=500), 0.0
    for _ in range(300):
        kl = 1.0 / controller.beta  # a policy whose KL falls with β
        controller.update(kl, samples=100)
    assert kl == pytest.approx(6.0, rel=1e-3)


@pytest.mark.parametrize("name", ["beta", "target", "horizon"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_adaptive_kl_refuses_values_with_which_it_cannot_work(name, value):
    with pytest.raises(ValueError, match=name):
        O.AdaptiveKL(**({"beta": 0.1} | {name: value}))


def test_adaptive_kl_refuses_measurements_with_which_it_cannot_work():
    controller = O.AdaptiveKL(beta=0.1, horizon=100)
    for kl in (math.nan, math.inf):
        with pytest.raises(ValueError, match="diverged"):
            controller.update(kl, samples=10)
    for samples in (-1, 500):
        with pytest.raises(ValueError, match="samples"):
            controller.update(6.0, samples)
    assert controller.beta == 0.1
