"""Scenes of one to three coloured shapes: the exact truth of a picture, and the picture.

A picture is 24 x 24 pixels, cut into two columns and two rows; each shape stands in a cell of its
own, so that nothing hides anything and every fact about the picture is known.
"""

import functools
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from course_utils.errors import CourseError

SIDE = 24  # pixels
CELL = SIDE // 2
FINE = 6  # sub-pixels a pixel and axis: edges are grey where a shape covers half a pixel
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.25),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.65, 0.25, 0.80),
}
SIZES = {"small": 3, "large": 5}  # half the width, in pixels
JITTER = 1  # pixels a shape may stand away from the middle of its cell
BACKGROUND = 0.08  # nearly black
NOISE = 0.04  # standard deviation of the camera's noise
COUNTS = {1: 0.25, 2: 0.45, 3: 0.30}  # how many shapes a scene has: probability

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Thing:
    """One shape: what it is and where it stands."""

    shape: str  # of SHAPES
    colour: str  # of COLOURS
    size: str  # of SIZES
    column: int  # 0 left, 1 right
    row: int  # 0 top, 1 bottom
    shift: tuple[int, int] = (0, 0)  # pixels right and down of the cell's middle, each in ±JITTER

    def __post_init__(self) -> None:
        known = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "column": (0, 1), "row": (0, 1)}
        for name, values in known.items():
            if getattr(self, name) not in values:
                options = ", ".join(map(str, values))
                raise CourseError(
                    f"a thing's {name} must be one of {options}; got {getattr(self, name)!r}"
                )
        if len(self.shift) != 2 or not all(abs(pixels) <= JITTER for pixels in self.shift):
            raise CourseError(
                f"a thing's shift must be two numbers of at most {JITTER}, got {self.shift}"
            )

    @property
    def kind(self) -> tuple[str, str]:
        """(colour, shape)"""
        return self.colour, self.shape

    @property
    def centre(self) -> tuple[int, int]:
        """(x, y) in pixels from the top left corner."""
        x, y = (CELL * cell + CELL // 2 for cell in (self.column, self.row))
        return x + self.shift[0], y + self.shift[1]


@dataclass(frozen=True)
class Scene:
    """One to three things in different cells, in reading order (top row first)."""

    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        cells = [(thing.row, thing.column) for thing in self.things]
        if not 1 <= len(cells) <= max(COUNTS) or sorted(set(cells)) != cells:
            raise CourseError(
                "a scene has 1 to 3 things, each in a cell of its own, the top row first and left "
                f"before right; got (row, column) {cells}"
            )

    @property
    def combination(self) -> tuple[tuple[str, str], ...]:
        """The kinds in it, sorted: what the split is made by."""
        return tuple(sorted(thing.kind for thing in self.things))


# ---- drawing scenes at random ------------------------------------------------------------------


def split_of(scene: Scene) -> Split:
    """Every fifth combination of kinds is held out, wherever its things stand.

    A hash decides, so that the split is the same in every process and for every seed.
    """
    digest = zlib.crc32(repr(scene.combination).encode())
    return "heldout" if digest % 5 == 0 else "train"


def random_scene(rng: random.Random, split: Split) -> Scene:
    """A scene of that split; its things are of different kinds."""
    if split not in ("train", "heldout"):
        raise CourseError(f'split must be "train" or "heldout", got {split!r}')
    while True:
        count = rng.choices(list(COUNTS), weights=list(COUNTS.values()))[0]
        kinds = rng.sample([(c, s) for c in COLOURS for s in SHAPES], count)
        cells = sorted(rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], count))  # (row, column)
        things = tuple(
            Thing(
                shape=shape,
                colour=colour,
                size=rng.choice(list(SIZES)),
                column=column,
                row=row,
                shift=(rng.randint(-JITTER, JITTER), rng.randint(-JITTER, JITTER)),
            )
            for (colour, shape), (row, column) in zip(kinds, cells, strict=True)
        )
        scene = Scene(things)
        if split_of(scene) == split:
            return scene


# ---- pictures ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def coverage_of(shape: str, size: str, centre: tuple[int, int]) -> Tensor:
    """How much of each pixel a shape covers, in [0, 1]: (SIDE, SIDE), rows from the top."""
    points = (torch.arange(SIDE * FINE) + 0.5) / FINE  # sub-pixel middles, in pixels
    half = SIZES[size]
    x = (points - centre[0]).unsqueeze(0) / half  # (1, S): -1 at the left edge, 1 at the right
    y = (points - centre[1]).unsqueeze(1) / half  # (S, 1): -1 at the top
    box = (x.abs() <= 1) & (y.abs() <= 1)
    inside = {
        "circle": x**2 + y**2 <= 1,
        "square": box,
        "triangle": box & (x.abs() <= (y + 1) / 2),  # the tip is up
        "cross": box & ((x.abs() <= 1 / 3) | (y.abs() <= 1 / 3)),
    }[shape]
    return inside.float().reshape(SIDE, FINE, SIDE, FINE).mean(dim=(1, 3))


def render(scene: Scene) -> Tensor:
    """The picture without noise: (3, SIDE, SIDE), red, green and blue in [0, 1]."""
    picture = torch.full((3, SIDE, SIDE), BACKGROUND)
    for thing in scene.things:
        cover = coverage_of(thing.shape, thing.size, thing.centre)  # (SIDE, SIDE)
        colour = torch.tensor(COLOURS[thing.colour]).view(3, 1, 1)
        picture = picture * (1 - cover) + colour * cover
    return picture


@dataclass(frozen=True)
class SceneSet:
    """N scenes and their pictures."""

    scenes: tuple[Scene, ...]
    images: Tensor  # (N, 3, SIDE, SIDE), with noise, about [0, 1]

    def __len__(self) -> int:
        return len(self.scenes)

    def first(self, count: int) -> "SceneSet":
        return SceneSet(self.scenes[:count], self.images[:count])

    def wrong_images(self) -> "SceneSet":
        """The control: every scene with the picture of the one before it.

        A captioner that scores as well on this as on the true pictures does not look at them.
        """
        if len(self) < 2:
            raise CourseError("pictures can be exchanged between two scenes or more, got one")
        return SceneSet(self.scenes, self.images.roll(1, dims=0))


def pictures_of(scenes: Sequence[Scene], seed: int = 0) -> SceneSet:
    """Renders scenes of your own, with the camera's noise."""
    if not scenes:
        raise CourseError("no scenes: nothing to render")
    clean = torch.stack([render(scene) for scene in scenes])  # (N, 3, SIDE, SIDE)
    generator = torch.Generator().manual_seed(seed)
    return SceneSet(tuple(scenes), clean + NOISE * torch.randn(clean.shape, generator=generator))


def random_scenes(count: int, split: Split = "train", seed: int = 0) -> SceneSet:
    """`count` scenes of a split with their pictures; the same seed gives the same ones."""
    if count < 1:
        raise CourseError(f"count must be at least 1, got {count}")
    rng = random.Random(f"{split} {seed}")
    return pictures_of([random_scene(rng, split) for _ in range(count)], seed)
