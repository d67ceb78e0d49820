"""Log-probabilities, SFT loss and entropy against distributions, the model and closed forms."""

import math

import pytest
import torch
from torch.distributions import Categorical

from course_utils import objectives as O


def test_token_logprobs_are_those_of_the_categorical_distribution():
    logits, labels = torch.randn(3, 5, 11) * 4, torch.randint(0, 11, (3, 5))
    expected = Categorical(logits=logits).log_prob(labels)
    torch.testing.assert_close(O.token_logprobs(logits, labels), expected)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 2.5])
def test_temperature_divides_the_logits(temperature):
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    expected = Categorical(logits=logits / temperature).log_prob(labels)
    torch.testing.assert_close(O.token_logprobs(logits, labels, temperature), expected)
    shifted = O.next_token_logprobs(logits, labels, temperature)
    expected = Categorical(logits=logits[:, :-1] / temperature).log_prob(labels[:, 1:])
    torch.testing.assert_close(shifted, expected)
    expected = Categorical(logits=logits / temperature).entropy()
    torch.testing.assert_close(O.entropy_from_logits(logits, temperature), expected)
    assert O.exact_kl(logits, torch.zeros_like(logits), temperature).shape == (3, 5)


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_give_the_same_bits_and_gradients(chunk_rows, dtype):
    logits, labels = torch.randn(5, 4, 9).to(dtype), torch.randint(0, 9, (5, 4))
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a = O.token_logprobs(whole, labels, 0.7)
    b = O.token_logprobs(parts, labels, 0.7, chunk_rows)
    assert torch.equal(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.equal(whole.grad, parts.grad)
    shifted = O.next_token_logprobs(logits, labels, 0.7, chunk_rows)
    assert torch.equal(shifted, O.next_token_logprobs(logits, labels, 0.7))
    entropy = O.entropy_from_logits(logits, 0.7, chunk_rows)
    assert torch.equal(entropy, O.entropy_from_logits(logits, 0.7))
    kl = O.exact_kl(logits, logits.flip(0), 0.7, chunk_rows)
    assert torch.equal(kl, O.exact_kl(logits, logits.flip(0), 0.7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    logits, labels = (torch.randn(2, 6, 50) * 5).to(dtype), torch.randint(0, 50, (2, 6))
    scored = O.token_logprobs(logits, labels)
    assert scored.dtype == torch.float32
    torch.testing.assert_close(scored, Categorical(logits=logits.float()).log_prob(labels))
    assert O.entropy_from_logits(logits).dtype == torch.float32
    assert O.exact_kl(logits, logits).dtype == torch.float32


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits_are_exact_to_float32(scale):
    logits = (torch.rand(4, 6, 8) - 0.5) * 2 * scale
    logits[0] = scale  # all equal
    logits[1, :, :2] = scale + 1
    labels = torch.randint(0, 8, (4, 6))
    exact = Categorical(logits=logits.double())
    torch.testing.assert_close(
        O.token_logprobs(logits, labels).double(), exact.log_prob(labels), rtol=1e-6, atol=1e-6
    )
    entropy = O.entropy_from_logits(logits)
    torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=1e-6, atol=1e-6)


def test_the_gradient_is_one_hot_minus_softmax():
    logits, labels = torch.randn(2, 3, 7, requires_grad=True), torch.randint(0, 7, (2, 3))
    O.token_logprobs(logits, labels).sum().backward()
    expected = torch.nn.functional.one_hot(labels, 7) - logits.detach().softmax(-1)
    torch.testing.assert_close(logits.grad, expected)


def test_ignored_labels_score_zero_without_gradient():
    logits, labels = torch.randn(2, 3, 7, requires_grad=True), torch.randint(0, 7, (2, 3))
    labels[0, 1] = O.IGNORE_INDEX
    scored = O.token_logprobs(logits, labels)
    scored.sum().backward()
    assert scored[0, 1] == 0
    assert not logits.grad[0, 1].any()
    assert logits.grad[0, 0].any()
    assert labels[0, 1] == O.IGNORE_INDEX  # the input is not changed


def test_bad_shapes_and_temperatures_are_errors_that_show_them():
    logits = torch.randn(2, 4, 7)
    with pytest.raises(ValueError, match=r"logits \(2, 4, 7\).*labels \(2, 3\)"):
        O.token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"logits \(2, 4, 7\).*labels \(2, 3\)"):
        O.next_token_logprobs(logits, torch.zeros(2, 3, dtype=torch.long))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature"):
            O.token_logprobs(logits, torch.zeros(2, 4, dtype=torch.long), temperature)
        with pytest.raises(ValueError, match="temperature"):
            O.entropy_from_logits(logits, temperature)
        with pytest.raises(ValueError, match="temperature"):
            O.exact_kl(logits, logits, temperature)
    with pytest.raises(ValueError, match="reduction"):
        O.sequence_logprob(torch.zeros(2, 3), torch.ones(2, 3), "max")
    with pytest.raises(ValueError, match="reduction"):
        O.sft_loss(torch.zeros(2, 3), torch.ones(2, 3), "max")
    with pytest.raises(ValueError, match="denominator"):
        O.sft_loss(torch.zeros(2, 3), torch.ones(2, 3), "sum", denominator=3)
    for reduction in ("token_mean", "sum"):
        with pytest.raises(ValueError, match=r"\(2, 3\) selects no token"):
            O.sft_loss(torch.zeros(2, 3), torch.zeros(2, 3), reduction)


# -- against a real model ------------------------------------------------------------------------


def encode(tokenizer, question: str, answer: str) -> tuple[list[int], int]:
    """Token ids of question and answer, and where the answer starts."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    start = len(tokenizer(prompt).input_ids)
    return tokenizer(prompt + answer + " <|end|>").input_ids, start


def test_the_shift_against_feeding_the_model_one_prefix_at_a_time(tiny_model, tiny_tokenizer):
    ids, _ = encode(tiny_tokenizer, "explain the moon landing", "people went with rocket")
    slow = []
    with torch.no_grad():
        for t in range(1, len(ids)):
            last = tiny_model(torch.tensor([ids[:t]])).logits[0, -1]  # sees tokens before t only
            slow.append(float(last.log_softmax(-1)[ids[t]]))
        logits = tiny_model(torch.tensor([ids])).logits
    fast = O.next_token_logprobs(logits, torch.tensor([ids]))
    assert fast.shape == (1, len(ids) - 1)
    torch.testing.assert_close(fast[0], torch.tensor(slow), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_id", [0, 1, 9])
def test_padding_side_and_pad_id_do_not_change_a_sequences_logprob(
    tiny_model, tiny_tokenizer, side, pad_id
):
    pairs = [("hello", "the moon is big"), ("explain the moon landing", "no"), ("why ?", "because")]
    encoded = [encode(tiny_tokenizer, *pair) for pair in pairs]
    width = max(len(ids) for ids, _ in encoded) + 3
    rows, masks, attention, alone = [], [], [], []
    for ids, start in encoded:
        gap = width - len(ids)
        left, right = (gap, 0) if side == "left" else (0, gap)
        rows.append([pad_id] * left + ids + [pad_id] * right)
        attention.append([0] * left + [1] * len(ids) + [0] * right)
        masks.append([0] * (left + start) + [1] * (len(ids) - start) + [0] * right)
        with torch.no_grad():
            logits = tiny_model(torch.tensor([ids])).logits
        alone.append(O.next_token_logprobs(logits, torch.tensor([ids]))[0, start - 1 :].sum())
    seen = torch.tensor(attention)
    with torch.no_grad():
        logits = tiny_model(
            torch.tensor(rows),
            attention_mask=seen,
            position_ids=(seen.cumsum(1) - 1).clamp(min=0),
        ).logits
    logprobs = O.next_token_logprobs(logits, torch.tensor(rows))
    mask = torch.tensor(masks)[:, 1:]
    batched = O.sequence_logprob(logprobs, mask)
    torch.testing.assert_close(batched, torch.stack(alone), atol=1e-5, rtol=1e-5)
    mean = O.sequence_logprob(logprobs, mask, "mean")
    torch.testing.assert_close(mean * mask.sum(1), batched)
    loss = O.sft_loss(logprobs, mask)
    torch.testing.assert_close(loss, -torch.stack(alone).sum() / mask.sum(), atol=1e-5, rtol=1e-5)


def test_the_sft_loss_is_transformers_own(tiny_model, tiny_tokenizer):
    ids = torch.randint(7, len(tiny_tokenizer), (3, 9))
    mask = torch.rand(3, 9) < 0.6
    mask[:, 0] = False  # a first token has no logits before it
    labels = ids.masked_fill(~mask, O.IGNORE_INDEX)
    output = tiny_model(ids, labels=labels)
    loss = O.sft_loss(O.next_token_logprobs(output.logits, ids), mask[:, 1:])
    torch.testing.assert_close(loss, output.loss)
    # -100 labels with `sum` over everything is the same formula
    aligned = O.token_logprobs(output.logits[:, :-1], labels[:, 1:])
    total = O.sft_loss(aligned, torch.ones_like(aligned), "sum")
    torch.testing.assert_close(total, output.loss * mask.sum())


# -- entropy -------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_categorical_distribution():
    logits = torch.randn(3, 5, 11) * 3
    torch.testing.assert_close(O.entropy_from_logits(logits), Categorical(logits=logits).entropy())
    uniform = O.entropy_from_logits(torch.full((2, 64), -7.0))
    torch.testing.assert_close(uniform, torch.full((2,), math.log(64)))


def test_entropy_of_forbidden_tokens_is_finite_with_finite_gradient():
    logits = torch.tensor([[0.3, -math.inf, 1.2, -math.inf]], requires_grad=True)
    entropy = O.entropy_from_logits(logits)
    allowed = Categorical(logits=logits.detach()[:, [0, 2]]).entropy()
    torch.testing.assert_close(entropy.detach(), allowed)
    entropy.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0] != 0
    assert logits.grad[0, 1] == 0


def test_gradients_of_logits_functions_by_finite_differences():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    other = torch.randn(2, 3, 5, dtype=torch.float64)
    labels = torch.randint(0, 5, (2, 3))
    assert torch.autograd.gradcheck(lambda x: O.token_logprobs(x, labels, 0.7), logits)
    assert torch.autograd.gradcheck(lambda x: O.next_token_logprobs(x, labels), logits)
    assert torch.autograd.gradcheck(lambda x: O.entropy_from_logits(x, 0.7), logits)
    assert torch.autograd.gradcheck(lambda x: O.exact_kl(x, other, 0.7), logits)
    assert torch.autograd.gradcheck(lambda x: O.exact_kl(other, x), logits)
