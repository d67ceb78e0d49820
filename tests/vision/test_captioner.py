"""The captioner: patches, what the loss counts, generation with and without the cache."""

import dataclasses

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.vision import (
    Captioner,
    CaptionerSettings,
    caption_logprobs,
    caption_loss,
    decode,
    describe,
    encode,
    generate,
    measure,
    patches_of,
    random_scenes,
    train_captioner,
)
from course_utils.vision.captioner import PATCH, PATCHES
from course_utils.vision.captions import END, MAX_WORDS, PAD, START, WORDS

SMALL = CaptionerSettings(hidden=32, intermediate=48, scenes=256, steps=3, batch_size=32)


@pytest.fixture
def model() -> Captioner:
    torch.manual_seed(0)
    return Captioner(SMALL).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return random_scenes(6).images


def test_patches_are_the_picture_in_reading_order(images: torch.Tensor) -> None:
    patches = patches_of(images)
    assert patches.shape == (6, PATCHES, 3 * PATCH * PATCH)
    fifth = images[2, :, PATCH : 2 * PATCH, :PATCH]  # second row, first column
    assert torch.equal(patches[2, 4], fifth.flatten())


def test_the_loss_counts_words_and_the_end_only(model: Captioner, images: torch.Tensor) -> None:
    ids = encode(["a red circle.", "a small blue cross and a red circle."])  # 4 and 9 words
    logprobs, mask = caption_logprobs(model, images[:2], ids)
    assert logprobs.shape == mask.shape == (2, ids.shape[1] - 1)
    assert mask.sum(dim=1).tolist() == [5, 10]
    by_hand = []
    for image, text in zip(images[:2], ids.tolist(), strict=True):
        words = [word for word in text if word != PAD]
        for t in range(1, len(words)):  # each word alone, nothing padded
            logits = model(image[None], torch.tensor([words[:t]]))[0, -1]
            by_hand.append(-logits.log_softmax(-1)[words[t]])
    torch.testing.assert_close(caption_loss(model, images[:2], ids), torch.stack(by_hand).mean())


def test_padding_and_neighbours_change_nothing(model: Captioner, images: torch.Tensor) -> None:
    alone, _ = caption_logprobs(model, images[:1], encode(["a red circle."]))
    texts = ["a red circle.", "a small blue cross and a red circle."]
    batch, _ = caption_logprobs(model, images[:2], encode(texts))
    torch.testing.assert_close(batch[0, :5], alone[0])


def test_every_patch_reaches_the_words(model: Captioner, images: torch.Tensor) -> None:
    seen = images[:1].clone().requires_grad_()
    caption_loss(model, seen, encode(["a red circle."])).backward()
    assert seen.grad is not None
    assert bool((patches_of(seen.grad).abs().sum(dim=-1) > 0).all())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_with_cache_is_generation_without(
    model: Captioner, images: torch.Tensor, temperature: float
) -> None:
    cached = generate(model, images, temperature, seed=3)
    assert torch.equal(cached, generate(model, images, temperature, seed=3, use_cache=False))
    assert len(set(decode(cached))) > 1


def test_greedy_words_are_the_likeliest(model: Captioner, images: torch.Tensor) -> None:
    ids = generate(model, images, temperature=0, max_words=8)
    logits = model(images, ids)
    logits[..., [PAD, START]] = -torch.inf
    expected = logits[:, :-1].argmax(dim=-1)
    before_end = (ids[:, 1:] != PAD) & (torch.arange(ids.shape[1] - 1) < 8)
    assert torch.equal(ids[:, 1:][before_end], expected[before_end])


def test_every_caption_ends_and_can_be_encoded_again(model: Captioner) -> None:
    images = random_scenes(40).images
    for max_words in (1, 5, MAX_WORDS):
        ids = generate(model, images, seed=1, max_words=max_words)
        assert ids.shape[1] <= max_words + 2
        assert bool((ids == END).sum(dim=1).eq(1).all())
        assert torch.equal(encode(decode(ids)), ids)


def test_describe_does_not_depend_on_global_random_numbers(
    model: Captioner, images: torch.Tensor
) -> None:
    torch.manual_seed(1)
    first = describe(model, images, temperature=1.0, seed=4)
    torch.manual_seed(2)
    assert first == describe(model, images, temperature=1.0, seed=4)
    assert first != describe(model, images, temperature=1.0, seed=5)


def test_training_is_decided_by_its_seed_and_leaves_the_global_one_alone() -> None:
    state = torch.get_rng_state()
    (first, losses), (again, same) = train_captioner(SMALL), train_captioner(SMALL)
    assert torch.equal(state, torch.get_rng_state())
    assert losses == same
    assert len(losses) == SMALL.steps
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    _, other = train_captioner(dataclasses.replace(SMALL, seed=1))
    assert losses != other


def test_training_learns_the_words_habits() -> None:
    model, losses = train_captioner(dataclasses.replace(SMALL, steps=40))
    assert losses[0] > 2
    assert losses[-1] < 1.3
    assert not model.training
    measured = measure(model, random_scenes(30, "heldout"))
    assert 0 <= measured.hallucinated.mean <= 1
    assert measured.coverage.mean > 0.1
    assert "hallucinated" in str(measured)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 500}, "more than 256 scenes"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"hidden": 30}, "heads"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, float], said: str) -> None:
    with pytest.raises(CourseError, match=said):
        dataclasses.replace(SMALL, **change)


def test_bad_input_is_named(model: Captioner, images: torch.Tensor) -> None:
    with pytest.raises(CourseError, match=r"shape \(B, 3, 24, 24\), got \(6, 24, 24, 3\)"):
        describe(model, images.permute(0, 2, 3, 1))
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(CourseError, match="temperature"):
            generate(model, images, temperature)
    with pytest.raises(CourseError, match="max_words"):
        generate(model, images, max_words=0)
    with pytest.raises(CourseError, match="batch_size"):
        describe(model, images, batch_size=0)


def test_the_vocabulary_is_small() -> None:
    assert len(WORDS) < 32
