"""What a recipe holds all the time: weights of every model, gradients, optimizer states. No torch.

P is the number of trained parameters.
"""

import math
from dataclasses import dataclass

from course_utils.memory.activations import FP32
from course_utils.memory.recipe import BYTES, Recipe
from course_utils.memory.shape import Linear, ModelShape

NF4_BLOCK = 64  # weights that share a scale (absmax)
SCALE_BLOCK = 256  # scales that share a scale, with double quantization
EIGHT_BIT_BLOCK = 256  # numbers of an 8-bit optimizer state that share a scale
EIGHT_BIT_FROM = 4096  # smaller tensors keep their states in fp32 (bitsandbytes' min_8bit_size)
CODE_BOOK = 16 * FP32  # of NF4, one a matrix; 256 * FP32 more for 8-bit scales

Tensor = tuple[int, int, int]  # how many, rows, columns (1 column: a vector)


@dataclass(frozen=True)
class Held:
    """Bytes."""

    weights: dict[str, int]  # by model and type
    gradients: int
    head_gradient: int  # of the head's matrix, the first that is computed
    block_gradients: int  # of all blocks
    optimizer: int
    optimizer_work: int  # temporaries of its step
    block_casts: int  # autocast's 16-bit copies of all blocks' matrices
    cached_casts: int  # those that live until autocast ends even without a graph: trained ones
    head_cast: int


def nf4_bits(double_quant: bool = True) -> float:
    """Bits a parameter: 4 and its share of the scales. 4.127 with double quantization, else 4.5.

    Source: Dettmers et al. 2023, §3: 8/64 + 32/(64 · 256) instead of 32/64.
    """
    if not double_quant:
        return 4 + 32 / NF4_BLOCK
    return 4 + 8 / NF4_BLOCK + 32 / (NF4_BLOCK * SCALE_BLOCK)


def matrix_bytes(linear: Linear, recipe: Recipe) -> int:
    """One frozen or trained matrix of a block (without its bias) as the recipe holds it."""
    if recipe.method != "qlora":
        return linear.weights * recipe.residual
    scales = math.ceil(linear.weights / NF4_BLOCK)
    packed = math.ceil(linear.weights / 2)
    if not recipe.double_quant:
        return packed + scales * FP32 + CODE_BOOK
    second = math.ceil(scales / SCALE_BLOCK) * FP32 + 256 * FP32 + FP32  # scales, code, offset
    return packed + scales + second + CODE_BOOK


def trunk_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """A model without its head."""
    matrices = shape.layers * sum(matrix_bytes(linear, recipe) for linear in shape.linears)
    rest = shape.trunk_parameters - shape.layers * sum(x.weights for x in shape.linears)
    return matrices + rest * recipe.residual


def adapter_tensors(shape: ModelShape, recipe: Recipe) -> list[Tensor]:
    """A (R, in) and B (out, R) of every adapted matrix."""
    names, r = recipe.targeted(shape), recipe.rank
    adapted = [linear for linear in shape.linears if linear.name in names]
    return [
        (shape.layers, rows, columns)
        for x in adapted
        for rows, columns in ((r, x.inputs), (x.outputs, r))
    ]


def block_tensors(shape: ModelShape) -> list[Tensor]:
    """Everything in the blocks, as matrices and vectors."""
    matrices = [(shape.layers, x.outputs, x.inputs) for x in shape.linears]
    biases = [(shape.layers, x.outputs, 1) for x in shape.linears if x.bias]
    norms = [(shape.layers * (2 if shape.family == "llama" else 4), shape.hidden, 1)]
    if shape.qk_norm:
        norms.append((2 * shape.layers, shape.head_dim, 1))
    return matrices + biases + norms


def trained_tensors(shape: ModelShape, recipe: Recipe) -> list[Tensor]:
    """All that is trained."""
    heads: list[Tensor] = []
    if recipe.task == "reward":
        heads = [(1, 1, shape.hidden)]
    elif recipe.task == "ppo":
        heads = [(1, 1, shape.hidden), (1, 1, 1)]
    if recipe.peft:
        return adapter_tensors(shape, recipe) + heads
    width = shape.embedding or shape.hidden
    tables = [(1, shape.vocabulary, width)]
    if shape.positions:
        tables.append((1, shape.positions, shape.hidden))
    if shape.embedding:
        tables.append((2, shape.hidden, width))
    if not shape.tied and recipe.task != "reward":
        tables.append((1, shape.vocabulary, width))
    if shape.final_norm:
        tables.append((1 if shape.family == "llama" else 2, shape.hidden, 1))
    return tables + block_tensors(shape) + heads


def count(tensors: list[Tensor]) -> int:
    return sum(number * rows * columns for number, rows, columns in tensors)


def optimizer_bytes(tensors: list[Tensor], name: str, width: int) -> int:
    """States of an optimizer over these tensors, whose numbers have `width` bytes.

    torch keeps AdamW's two moments in the parameter's own type, bitsandbytes in fp32 or 8 bit;
    Adafactor keeps a number a row and a number a column (Shazeer & Stern 2018).
    """
    name = name.removeprefix("paged-")
    total = 0
    for number, rows, columns in tensors:
        size = rows * columns
        each = {"adamw": 2 * size * width, "sgd": 0, "sgd-momentum": size * width}.get(name)
        if name == "adafactor":
            each = (rows + columns if columns > 1 else rows) * width
        elif name == "adamw-8bit":
            scales = math.ceil(size / EIGHT_BIT_BLOCK) * FP32
            each = 2 * (size + scales) if size >= EIGHT_BIT_FROM else 2 * size * FP32
        assert each is not None
        total += number * each
    return total


def held(shape: ModelShape, recipe: Recipe) -> Held:
    """Everything that a recipe holds between steps, and its gradients."""
    trained = trained_tensors(shape, recipe) if recipe.trains else []
    width = BYTES[recipe.adapters] if recipe.peft else recipe.residual
    blocks = adapter_tensors(shape, recipe) if recipe.peft else block_tensors(shape)
    full_head = recipe.trains and not recipe.peft and recipe.task != "reward"
    head_gradient = shape.table * recipe.residual if full_head else 0
    states = width
    if recipe.optimizer == "paged-adamw":
        states = FP32  # bitsandbytes' 32-bit moments, whatever the parameter's type
    matrices = shape.layers * sum(x.weights for x in shape.linears)
    casts = 2 * matrices if recipe.casts_weights else 0
    cached = 0 if recipe.peft else casts
    if recipe.peft and recipe.autocast != "none" and BYTES[recipe.adapters] == FP32:
        adapters = 2 * count(adapter_tensors(shape, recipe))
        casts, cached = casts + adapters, adapters
    has_head = recipe.task != "reward" and recipe.logits != "tiled"
    has_head = has_head and recipe.autocast != "none" and recipe.residual == FP32
    largest = max((rows * columns for _, rows, columns in trained), default=0)
    return Held(
        weights=_weights(shape, recipe),
        gradients=count(trained) * width,
        head_gradient=head_gradient,
        block_gradients=count(blocks) * width if recipe.trains else 0,
        optimizer=optimizer_bytes(trained, recipe.optimizer, states),
        optimizer_work=2 * largest * FP32 if recipe.optimizer == "adafactor" else 0,
        block_casts=casts,
        cached_casts=cached,
        head_cast=2 * shape.table if has_head else 0,
    )


def _weights(shape: ModelShape, recipe: Recipe) -> dict[str, int]:
    matrices = shape.layers * sum(matrix_bytes(x, recipe) for x in shape.linears)
    vectors = trunk_bytes(shape, recipe) - matrices
    head = 0 if shape.tied else shape.table * recipe.residual
    if recipe.task == "reward":
        head = shape.hidden * recipe.residual  # one number instead of the vocabulary
    kind = "NF4" if recipe.method == "qlora" else recipe.weights
    found = {f"weights: blocks' matrices ({kind})": matrices}
    found[f"weights: embedding, head, norms ({recipe.weights})"] = vectors + head
    if recipe.peft:
        found["LoRA adapters"] = count(adapter_tensors(shape, recipe)) * BYTES[recipe.adapters]
    if recipe.holds_reference:
        found["reference model"] = matrices + vectors + head
    if recipe.task == "ppo":
        found["value head"] = (shape.hidden + 1) * FP32
        if recipe.reward_model == "copy":
            found["reward model"] = matrices + vectors + shape.hidden * recipe.residual
    return found
