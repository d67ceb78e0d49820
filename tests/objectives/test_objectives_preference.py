"""Bradley-Terry, normalisation, the DPO family against cross entropy, loops, closed forms."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from course_utils import objectives as O


def pairs(size: int = 6, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """log π(chosen), log π(rejected), log π_ref(chosen), log π_ref(rejected)."""
    g = torch.Generator().manual_seed(seed)
    return tuple(-20 + 6 * torch.randn(size, generator=g, dtype=torch.float64) for _ in range(4))


# -- reward model --------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_is_binary_cross_entropy_on_the_difference(smoothing, with_margin):
    chosen, rejected, margin, _ = pairs()
    margin = margin.abs() if with_margin else None
    difference = chosen - rejected - (margin if with_margin else 0)
    target = torch.full_like(difference, 1 - smoothing)
    wanted = F.binary_cross_entropy_with_logits(difference, target, reduction="none")
    arguments = (chosen, rejected, margin, smoothing)
    torch.testing.assert_close(O.bradley_terry_loss(*arguments, reduction="none"), wanted)
    torch.testing.assert_close(O.bradley_terry_loss(*arguments), wanted.mean())
    torch.testing.assert_close(O.bradley_terry_loss(*arguments, reduction="sum"), wanted.sum())


def test_bradley_terry_against_the_written_formula():
    chosen, rejected = torch.tensor([1.0, -0.5, 3.0]), torch.tensor([0.2, 0.7, 3.0])
    rows = zip(chosen.tolist(), rejected.tolist(), strict=True)
    wanted = [-math.log(1 / (1 + math.exp(-(a - b)))) for a, b in rows]
    got = O.bradley_terry_loss(chosen, rejected, reduction="none")
    torch.testing.assert_close(got, torch.tensor(wanted))
    assert got[2].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bradley_terry_is_finite_with_finite_gradients_at_ten_thousand(smoothing):
    chosen = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    rejected = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    losses = O.bradley_terry_loss(chosen, rejected, None, smoothing, "none")
    losses.sum().backward()
    wanted = [2e4 * smoothing, 2e4 * (1 - smoothing), math.log(2)]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)
    assert chosen.grad.tolist() == pytest.approx([smoothing, -(1 - smoothing), smoothing - 0.5])
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_bradley_terry_sees_differences_only_and_a_margin_asks_for_more():
    chosen, rejected, margin, _ = pairs()
    base = O.bradley_terry_loss(chosen, rejected)
    torch.testing.assert_close(O.bradley_terry_loss(chosen + 7, rejected + 7), base)
    assert O.bradley_terry_loss(chosen, rejected, margin.abs()) > base


def test_reward_accuracy_counts_ties_one_half():
    chosen, rejected = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([0.0, 3.0, 0.0, 4.0])
    assert O.reward_accuracy(chosen, rejected) == (1 + 0 + 0.5 + 1) / 4
    assert O.reward_accuracy(rejected, chosen) == 1 - (1 + 0 + 0.5 + 1) / 4
    assert O.reward_accuracy(torch.zeros(3), torch.zeros(3)) == 0.5


def test_reward_normalisation_gives_mean_zero_and_std_one_and_inverts():
    rewards = torch.randn(50) * 7 + 300
    scale = O.RewardNormalisation.fit(rewards)
    assert scale.mean == pytest.approx(float(rewards.double().mean()))
    assert scale.std == pytest.approx(float(rewards.double().std()))
    normalised = scale.apply(rewards)
    assert normalised.mean().abs() < 1e-4
    assert normalised.std().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(scale.inverse(normalised), rewards)
    other = torch.randn(2, 3)
    torch.testing.assert_close(scale.apply(scale.inverse(other)), other, atol=1e-4, rtol=1e-4)
    identity = O.RewardNormalisation()
    assert torch.equal(identity.apply(other), other)


def test_reward_normalisation_refuses_what_it_cannot_scale():
    for bad in ([1.0], [1.0, math.nan], [1.0, math.inf], []):
        with pytest.raises(ValueError, match="at least 2 finite"):
            O.RewardNormalisation.fit(torch.tensor(bad))
    with pytest.raises(ValueError, match="all 3 reference rewards equal 2"):
        O.RewardNormalisation.fit(torch.full((3,), 2.0))
    for mean, std in ((0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="std > 0"):
            O.RewardNormalisation(mean, std)
    with pytest.raises(dataclasses.FrozenInstanceError):
        O.RewardNormalisation().mean = 1.0


# -- DPO -----------------------------------------------------------------------------------------


def slow_dpo(variant: str, beta: float, smoothing: float, row: tuple[float, ...]) -> float:
    chosen, rejected, ref_chosen, ref_rejected = row
    h = (chosen - ref_chosen) - (rejected - ref_rejected)

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

    right, wrong = log_sigmoid(beta * h), log_sigmoid(-beta * h)
    return {
        "sigmoid": -(1 - smoothing) * right - smoothing * wrong,
        "robust": (-(1 - smoothing) * right + smoothing * wrong) / (1 - 2 * smoothing),
        "ipo": (h - 1 / (2 * beta)) ** 2,
        "hinge": max(0.0, 1 - beta * h),
    }[variant]


CASES = [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2), ("ipo", 0.0), ("hinge", 0.0)]


@pytest.mark.parametrize("beta", [0.03, 0.1, 1.0])
@pytest.mark.parametrize(("variant", "smoothing"), CASES)
def test_dpo_variants_against_a_scalar_loop(variant, smoothing, beta):
    batch = pairs()
    wanted = [
        slow_dpo(variant, beta, smoothing, row)
        for row in zip(*(t.tolist() for t in batch), strict=True)
    ]
    got = O.dpo_loss(*batch, beta, variant, smoothing, "none")
    torch.testing.assert_close(got, torch.tensor(wanted).double())
    torch.testing.assert_close(O.dpo_loss(*batch, beta, variant, smoothing), got.mean())
    torch.testing.assert_close(O.dpo_loss(*batch, beta, variant, smoothing, "sum"), got.sum())


def test_dpo_is_bradley_terry_on_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = pairs()
    won = O.implicit_rewards(chosen, ref_chosen, 0.3)
    lost = O.implicit_rewards(rejected, ref_rejected, 0.3)
    torch.testing.assert_close(won, 0.3 * chosen - 0.3 * ref_chosen)
    loss = O.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    torch.testing.assert_close(loss, O.bradley_terry_loss(won, lost))
    margins = O.reward_margins(chosen, rejected, ref_chosen, ref_rejected, 0.3)
    torch.testing.assert_close(margins, won - lost)
    accuracy = O.reward_accuracy(won, lost)
    torch.testing.assert_close(accuracy, (margins > 0).float().mean())


def test_dpo_at_the_reference_is_log_two_with_weight_one_half():
    chosen, rejected, _, _ = pairs()
    same = (chosen, rejected, chosen.clone(), rejected.clone())
    for beta in (0.01, 0.1, 5.0):
        assert O.dpo_loss(*same, beta).item() == pytest.approx(math.log(2))
        torch.testing.assert_close(
            O.dpo_gradient_weight(*same, beta), torch.full((6,), 0.5).double()
        )
        assert not O.reward_margins(*same, beta).any()


def test_dpo_falls_as_the_chosen_becomes_likelier():
    """The sign that the lecture leaves out: minimising must raise chosen and lower rejected."""
    chosen, rejected, ref_chosen, ref_rejected = pairs()
    chosen.requires_grad_()
    rejected.requires_grad_()
    O.dpo_loss(chosen, rejected, ref_chosen, ref_rejected).backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_the_dpo_gradient_is_minus_beta_times_weight_times_the_likelihood_gradients(
    beta, smoothing
):
    """Through a real parameterisation: log π from logits, against ∇log π(y_w) - ∇log π(y_l)."""
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 4, 7, generator=g, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, 7, (2, 3, 4), generator=g)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    ref = torch.randn(2, 3, generator=g, dtype=torch.float64) - 8

    def logprobs(which: int) -> torch.Tensor:
        return O.sequence_logprob(O.token_logprobs(logits[which], tokens[which]), mask)

    batch = (logprobs(0), logprobs(1), ref[0], ref[1])
    loss = O.dpo_loss(*batch, beta, label_smoothing=smoothing)
    got = torch.autograd.grad(loss, logits)[0]
    weight = O.dpo_gradient_weight(*batch, beta, smoothing)
    assert not weight.requires_grad
    surrogate = -(beta * weight * (logprobs(0) - logprobs(1))).mean()
    torch.testing.assert_close(got, torch.autograd.grad(surrogate, logits)[0])


def test_the_gradient_weight_is_large_where_the_order_is_wrong():
    zero = torch.zeros(3)
    weights = O.dpo_gradient_weight(torch.tensor([-50.0, 0.0, 50.0]), zero, zero, zero, beta=0.2)
    assert weights.tolist() == pytest.approx([1 / (1 + math.exp(-x)) for x in (10, 0, -10)])


def test_robust_dpo_under_label_flips_has_the_clean_loss_as_expectation():
    chosen, rejected, ref_chosen, ref_rejected = pairs()
    right = (chosen, rejected, ref_chosen, ref_rejected)
    flipped = (rejected, chosen, ref_rejected, ref_chosen)
    clean = O.dpo_loss(*right, reduction="none")
    for noise in (0.1, 0.3):
        mean = (1 - noise) * O.dpo_loss(
            *right, variant="robust", label_smoothing=noise, reduction="none"
        ) + noise * O.dpo_loss(*flipped, variant="robust", label_smoothing=noise, reduction="none")
        torch.testing.assert_close(mean, clean)


def test_ipo_is_smallest_at_its_target_margin_and_cdpo_at_the_labels_log_odds():
    zero = torch.zeros(1).double()
    h = torch.linspace(-30, 30, 6001).double()
    batch = (h, *(zero.expand_as(h) for _ in range(3)))
    beta = 0.1
    ipo = O.dpo_loss(*batch, beta, "ipo", reduction="none")
    assert h[ipo.argmin()].item() == pytest.approx(1 / (2 * beta))
    cdpo = O.dpo_loss(*batch, beta, label_smoothing=0.2, reduction="none")
    assert beta * h[cdpo.argmin()].item() == pytest.approx(math.log(0.8 / 0.2), abs=1e-3)
    weight = O.dpo_gradient_weight(*(t[cdpo.argmin()].view(1) for t in batch), beta, 0.2)
    assert weight.abs().item() < 1e-3


def test_dpo_never_sends_a_gradient_into_the_reference():
    batch = [t.requires_grad_() for t in pairs()]
    for variant, smoothing in CASES:
        loss = O.dpo_loss(*batch, variant=variant, label_smoothing=smoothing)
        gradients = torch.autograd.grad(loss, batch, allow_unused=True)
        assert gradients[0] is not None
        assert gradients[2] is None
        assert gradients[3] is None


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize(("variant", "smoothing"), CASES)
def test_dpo_is_finite_with_finite_gradients_at_ten_thousand_nats(variant, smoothing, scale):
    chosen = torch.full((2,), scale, requires_grad=True)
    others = [torch.full((2,), -scale, requires_grad=True), torch.zeros(2), torch.zeros(2)]
    loss = O.dpo_loss(chosen, *others, 0.5, variant, smoothing)
    loss.backward()
    assert loss.isfinite()
    assert chosen.grad.isfinite().all()
    assert O.dpo_gradient_weight(chosen, *others, 0.5).isfinite().all()


def test_preference_losses_by_finite_differences():
    batch = [t.requires_grad_() for t in pairs(4)]
    chosen, rejected, ref_chosen, ref_rejected = batch
    assert torch.autograd.gradcheck(
        lambda a, b: O.bradley_terry_loss(a, b, None, 0.1), (chosen, rejected)
    )
    for variant, smoothing in CASES:
        assert torch.autograd.gradcheck(
            lambda a, b, v=variant, e=smoothing: O.dpo_loss(
                a, b, ref_chosen.detach(), ref_rejected.detach(), 0.3, v, e
            ),
            (chosen, rejected),
        )


def test_bad_arguments_are_errors_that_say_what_was_seen():
    four, three = torch.zeros(4), torch.zeros(3)
    with pytest.raises(ValueError, match=r"chosen \(4,\), rejected \(3,\)"):
        O.bradley_terry_loss(four, three)
    with pytest.raises(ValueError, match=r"margin \(3,\)"):
        O.bradley_terry_loss(four, four, three)
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        O.reward_accuracy(four, three)
    with pytest.raises(ValueError, match=r"must have shape \(B,\), got \(2, 2\)"):
        O.bradley_terry_loss(four.view(2, 2), four.view(2, 2))
    for index in range(1, 4):
        batch = [four] * 4
        batch[index] = three
        with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
            O.dpo_loss(*batch)
    for beta in (0.0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="beta"):
            O.dpo_loss(four, four, four, four, beta)
    for smoothing in (-0.1, 0.5, 1.0, math.nan):
        with pytest.raises(ValueError, match="label_smoothing"):
            O.dpo_loss(four, four, four, four, label_smoothing=smoothing)
        with pytest.raises(ValueError, match="label_smoothing"):
            O.bradley_terry_loss(four, four, label_smoothing=smoothing)
    for variant in ("ipo", "hinge"):
        with pytest.raises(ValueError, match="no meaning"):
            O.dpo_loss(four, four, four, four, 0.1, variant, 0.1)
    with pytest.raises(ValueError, match="kto"):
        O.dpo_loss(four, four, four, four, 0.1, "kto")
    with pytest.raises(ValueError, match="reduction"):
        O.bradley_terry_loss(four, four, reduction="max")
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match="no pairs"):
        O.bradley_terry_loss(empty, empty)
    with pytest.raises(ValueError, match="no pairs"):
        O.reward_accuracy(empty, empty)
