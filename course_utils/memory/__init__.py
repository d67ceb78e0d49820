"""How much GPU memory a recipe takes, term by term, in arithmetic that can be read.

    shape = find_shape("llama-65b")                        # or "65B", a directory, a Hub id
    found = estimate(shape, recipe("qlora"), seq=512, batch=1)
    found.terms, found.total, found.assumptions            # bytes
    fits(found), largest_batch(shape, recipe("qlora"), 512, "A6000")

Rooms: shape.py and catalogue.py (models), recipe.py (what is trained, how), held.py (what is there
all the time), activations.py (what a block keeps), estimate.py (the moments of a step), gpus.py.
None of them imports torch; measure.py and practice.py do: they measure what the others compute.
"""

from course_utils.memory.activations import Block, block
from course_utils.memory.catalogue import MODELS, find_shape, typical_shape
from course_utils.memory.estimate import Breakdown, estimate
from course_utils.memory.gpus import GPUS, answers, fits, gpu, largest_batch
from course_utils.memory.held import Held, held, nf4_bits
from course_utils.memory.recipe import RECIPES, Recipe, recipe
from course_utils.memory.shape import Linear, ModelShape, from_config

__all__ = [
    "GPUS",
    "MODELS",
    "RECIPES",
    "Block",
    "Breakdown",
    "Held",
    "Linear",
    "ModelShape",
    "Recipe",
    "answers",
    "block",
    "estimate",
    "find_shape",
    "fits",
    "from_config",
    "gpu",
    "held",
    "largest_batch",
    "nf4_bits",
    "recipe",
    "typical_shape",
]
