"""Scenes: the picture shows the truth, the split holds combinations apart, seeds decide all."""

import math
import random

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.vision import Scene, Thing, pictures_of, random_scenes, render, split_of
from course_utils.vision.scenes import BACKGROUND, COLOURS, SHAPES, SIDE, SIZES, random_scene

AREA = {  # of a shape of half width 1
    "circle": math.pi,
    "square": 4.0,
    "triangle": 2.0,
    "cross": 4.0 * 5 / 9,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_a_shape_covers_its_area_in_its_colour_and_cell(shape: str, size: str) -> None:
    thing = Thing(shape, "blue", size, column=1, row=0, shift=(1, -1))
    picture = render(Scene((thing,)))
    colour = torch.tensor(COLOURS["blue"])
    cover = (picture - BACKGROUND) / (colour - BACKGROUND).view(3, 1, 1)  # (3, SIDE, SIDE)
    torch.testing.assert_close(cover[0], cover[2], atol=1e-5, rtol=0)
    assert float(cover[0].sum()) == pytest.approx(AREA[shape] * SIZES[size] ** 2, rel=0.04)
    assert float(cover[0][:, : SIDE // 2].abs().max()) < 1e-6  # nothing on the left
    assert float(cover[0][SIDE // 2 :].abs().max()) < 1e-6  # nothing at the bottom
    columns = (cover[0].sum(0) * (torch.arange(SIDE) + 0.5)).sum() / cover[0].sum()
    assert float(columns) == pytest.approx(thing.centre[0], abs=0.05)


def test_a_triangle_points_up() -> None:
    picture = render(Scene((Thing("triangle", "green", "large", 0, 0),)))[1] - BACKGROUND
    widths = picture.sum(dim=1)[1:11]
    assert bool((widths.diff() > 0).all())


def test_every_thing_of_a_random_scene_shows_where_it_stands() -> None:
    data = random_scenes(50, seed=3)
    assert data.images.shape == (50, 3, SIDE, SIDE)
    for scene in data.scenes:
        clean = render(scene)
        for thing in scene.things:
            x, y = thing.centre
            expected = torch.tensor(COLOURS[thing.colour])
            torch.testing.assert_close(clean[:, y, x], expected, atol=1e-5, rtol=0)
        empty = {(0, 0), (0, 1), (1, 0), (1, 1)} - {(t.row, t.column) for t in scene.things}
        for row, column in empty:
            cell = clean[:, 12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            assert bool((cell == BACKGROUND).all())


def test_no_combination_is_in_both_splits() -> None:
    rng = random.Random(0)
    train, heldout = (
        {random_scene(rng, split).combination for _ in range(2000)}
        for split in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout
    single = {kind for combination in train for kind in combination}
    assert len(single) == len(COLOURS) * len(SHAPES)  # every kind is seen in training


def test_the_split_ignores_places_and_sizes() -> None:
    here = Scene((Thing("circle", "red", "small", 0, 0), Thing("cross", "blue", "large", 1, 1)))
    there = Scene((Thing("cross", "blue", "small", 0, 0), Thing("circle", "red", "large", 0, 1)))
    assert here.combination == there.combination
    assert split_of(here) == split_of(there)


def test_the_same_seed_gives_the_same_pictures_and_another_does_not() -> None:
    first, again, other = (random_scenes(20, seed=seed) for seed in (1, 1, 2))
    assert first.scenes == again.scenes
    assert torch.equal(first.images, again.images)
    assert first.scenes != other.scenes
    state = torch.get_rng_state()
    random_scenes(3)
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_images_gives_each_scene_the_picture_of_another() -> None:
    data = random_scenes(5)
    wrong = data.wrong_images()
    assert wrong.scenes == data.scenes
    assert torch.equal(wrong.images[1:], data.images[:-1])
    assert torch.equal(wrong.images[0], data.images[-1])


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(CourseError, match=r"colour must be one of red.*'pink'"):
        Thing("circle", "pink", "small", 0, 0)
    with pytest.raises(CourseError, match="shift"):
        Thing("circle", "red", "small", 0, 0, shift=(2, 0))
    thing = Thing("circle", "red", "small", 0, 0)
    for things in ((), (thing, thing), (Thing("circle", "red", "small", 1, 0), thing)):
        with pytest.raises(CourseError, match="cell of its own"):
            Scene(things)
    with pytest.raises(CourseError, match="count must be at least 1"):
        random_scenes(0)
    with pytest.raises(CourseError, match='"train" or "heldout"'):
        random_scenes(1, "test")  # type: ignore[arg-type]
    with pytest.raises(CourseError, match="no scenes"):
        pictures_of([])
    with pytest.raises(CourseError, match="exchanged"):
        random_scenes(1).wrong_images()
