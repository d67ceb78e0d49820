"""Masked statistics against torch on the selected values, and masks from EOS against a loop."""

import math

import pytest
import torch

from course_utils import objectives as O


def a_batch(seed: int = 0, rows: int = 4, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, width, generator=generator, dtype=torch.float64) * 3 + 1
    mask = torch.rand(rows, width, generator=generator) < 0.6
    mask[:, 0] = True
    return values, mask


def test_mean_sum_and_variance_are_those_of_the_selected_values():
    values, mask = a_batch()
    selected = values[mask]
    torch.testing.assert_close(O.masked_sum(values, mask), selected.sum())
    torch.testing.assert_close(O.masked_mean(values, mask), selected.mean())
    torch.testing.assert_close(O.masked_var(values, mask), selected.var())
    torch.testing.assert_close(
        O.masked_var(values, mask, unbiased=False), selected.var(correction=0)
    )


def test_row_means_are_those_of_each_rows_selected_values():
    values, mask = a_batch()
    expected = [
        sum(v for v, m in zip(*row, strict=True) if m) for row in zip(values, mask, strict=True)
    ]
    torch.testing.assert_close(O.masked_sum(values, mask, dim=1), torch.stack(expected))
    counts = mask.sum(dim=1)
    torch.testing.assert_close(O.masked_mean(values, mask, dim=1), torch.stack(expected) / counts)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_a_mask_may_have_any_dtype(dtype):
    values, mask = a_batch()
    torch.testing.assert_close(O.masked_mean(values, mask.to(dtype)), values[mask].mean())


def test_a_mask_of_weights_is_an_error_and_is_not_rounded():
    values, mask = a_batch()
    with pytest.raises(ValueError, match="only 0 and 1"):
        O.masked_mean(values, mask * 0.5)


def test_an_empty_mask_is_an_error_that_shows_the_shape():
    values = torch.ones(2, 3)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    for function in (O.masked_mean, O.masked_var, O.masked_whiten):
        with pytest.raises(ValueError, match=r"\(2, 3\) selects no token"):
            function(values, empty)
    one_row = torch.tensor([[1, 1, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"slices \[1\]"):
        O.masked_mean(values, one_row, dim=1)
    assert O.masked_sum(values, empty) == 0


def test_a_denominator_allows_an_empty_micro_batch_but_not_zero():
    values, empty = torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3, dtype=torch.bool)
    mean = O.masked_mean(values, empty, denominator=5)
    mean.backward()
    assert mean == 0
    assert values.grad is not None
    assert not values.grad.any()
    for bad in (0, -1.0, float("nan"), torch.tensor(0)):
        with pytest.raises(ValueError, match="denominator"):
            O.masked_mean(values, empty, denominator=bad)


def test_one_value_has_no_unbiased_variance():
    values, mask = torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="single token"):
        O.masked_var(values, mask)
    with pytest.raises(ValueError, match="single token"):
        O.masked_whiten(values, mask)
    assert O.masked_var(values, mask, unbiased=False) == 0


def test_whitening_gives_mean_zero_and_unbiased_variance_one():
    values, mask = a_batch()
    white = O.masked_whiten(values, mask)
    selected = values[mask]
    expected = (selected - selected.mean()) / (selected.var() + 1e-8).sqrt()
    torch.testing.assert_close(white[mask], expected)
    assert not white[~mask].any()
    assert white[mask].mean().abs() < 1e-12
    assert abs(white[mask].var() - 1) < 1e-6


def test_whitening_without_the_shift_keeps_the_mean():
    values, mask = a_batch()
    white = O.masked_whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(white[mask].mean(), values[mask].mean())
    torch.testing.assert_close(white[mask].std(), torch.tensor(1.0).double(), atol=1e-6, rtol=0)
    assert not white[~mask].any()


def test_whitening_equal_values_gives_zeros_not_nan():
    white = O.masked_whiten(torch.full((2, 3), 0.5), torch.ones(2, 3))
    torch.testing.assert_close(white, torch.zeros(2, 3))


def test_explained_variance_of_known_critics():
    _, mask = a_batch()
    returns = torch.randn(4, 7).double()
    assert O.explained_variance(returns, returns, mask) == 1
    torch.testing.assert_close(
        O.explained_variance(returns + 5, returns, mask), torch.tensor(1.0).double()
    )
    assert O.explained_variance(torch.full_like(returns, 2.0), returns, mask).abs() < 1e-12
    torch.testing.assert_close(
        O.explained_variance(-returns, returns, mask), torch.tensor(-3.0).double()
    )
    noisy = returns + torch.randn(4, 7).double() / 2
    expected = 1 - (returns - noisy)[mask].var() / returns[mask].var()
    torch.testing.assert_close(O.explained_variance(noisy, returns, mask), expected)
    torch.testing.assert_close(
        O.explained_variance(noisy, returns), 1 - (returns - noisy).var() / returns.var()
    )


def test_explained_variance_of_constant_returns_is_zero_even_with_rounding():
    values = torch.randn(3, 5)
    constant = (0.3 - values) + values  # equal up to float32's last digit
    assert O.explained_variance(values, constant) == 0


def loop_completion_mask(ids: list[list[int]], eos: set[int]) -> list[list[bool]]:
    result = []
    for row in ids:
        ended, mask = False, []
        for token in row:
            mask.append(not ended)
            ended = ended or token in eos
        result.append(mask)
    return result


@pytest.mark.parametrize("eos", [3, [3], [3, 5], {5, 0}])
def test_completion_mask_equals_the_loop(eos):
    ids = torch.randint(0, 8, (200, 6))
    wanted = loop_completion_mask(ids.tolist(), {eos} if isinstance(eos, int) else set(eos))
    assert O.completion_mask_from_eos(ids, eos).tolist() == wanted


def test_completion_mask_keeps_eos_when_it_is_the_pad_token_and_a_sampled_pad():
    ids = torch.tensor([[7, 2, 2, 2], [2, 2, 2, 2], [7, 8, 9, 6]])  # EOS = pad = 2
    assert O.completion_mask_from_eos(ids, 2).sum(dim=1).tolist() == [2, 1, 4]
    sampled_pad = torch.tensor([[7, 0, 8, 2, 0, 0]])  # pad = 0 was sampled as a real token
    assert O.completion_mask_from_eos(sampled_pad, 2).tolist() == [[True] * 4 + [False] * 2]


def test_last_token_index_of_right_left_padded_and_holed_rows():
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [1, 1, 1, 1]])
    assert O.last_token_index(mask).tolist() == [1, 3, 2, 3]
    mask[[1, 3]] = 0
    with pytest.raises(ValueError, match=r"rows \[1, 3\].*\(4, 4\)"):
        O.last_token_index(mask)
    with pytest.raises(ValueError, match="select no token"):
        O.last_token_index(torch.zeros(2, 0))


def test_zero_masked_kills_gradients_of_garbage():
    values = torch.tensor([1.0, math.inf, math.nan], requires_grad=True)
    kept = O.zero_masked(values, torch.tensor([1, 0, 0]))
    kept.exp().sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [pytest.approx(math.e), 0, 0]
