"""What one block keeps for its backward pass: every tensor by name, in bytes.

The lists are read off autograd itself (`torch.autograd.graph.saved_tensors_hooks` on the blocks of
transformers 5.23; tests/memory holds them to it). n = B T tokens. The rules behind them:

- a matrix product x W keeps x if W is trained, and W (no new memory) if x has a gradient;
- LoRA's B(A(x)) keeps x for A, and A(x), R wide, for B; the frozen W keeps nothing of x;
- RMSNorm works in fp32: it keeps x in fp32, and, if its weight is trained, x / rms(x);
- a product a * b keeps both; silu(a), relu(a), softmax(a) keep one tensor; sums keep nothing;
- fused attention keeps q, k, v, its output and a number a row; written out ("eager") it keeps the
  T x T probabilities of every head instead of the output;
- autocast makes a 16-bit copy of x for each matrix that reads it, and one of each matrix.
"""

from dataclasses import dataclass

from course_utils.memory.recipe import BYTES, Recipe
from course_utils.memory.shape import ModelShape

FP32 = 4
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "attn.c_attn", "attn.c_proj")


@dataclass(frozen=True)
class Block:
    """What one block keeps, in bytes, and what its backward pass needs on top while it runs."""

    attention: dict[str, int]
    mlp: dict[str, int]
    attention_work: int  # gradients alive at once inside of the attention's backward
    mlp_work: int

    @property
    def saved(self) -> int:
        return sum(self.attention.values()) + sum(self.mlp.values())

    def backward_work(self, last: int, mlp: int) -> int:
        """Above `saved`, at the worst moment: in the MLP, or in the attention, when the MLP's
        tensors are freed and its weights have gradients.

        Args:
            last: bytes of the gradients of the block's last matrix. mlp: of all of the MLP's.
        """
        rest = self.attention_work + mlp - sum(self.mlp.values())
        return max(self.mlp_work + last, rest)


def block(shape: ModelShape, recipe: Recipe, batch: int, seq: int, device: str = "cuda") -> Block:
    """A block's tensors for `batch` rows of `seq` tokens."""
    n, d, f = batch * seq, shape.hidden, shape.ffn
    out = output_bytes(recipe)
    res = recipe.residual
    first, second, inner = _names(shape)
    attention = _norm(shape, recipe, n, "attention")
    attention |= _reads(recipe, shape, first, n * d, n, res, device)
    attention |= _attention(shape, recipe, batch, seq, device)
    fused = recipe.attention != "eager"
    width = n * shape.q_width
    attention |= _reads(recipe, shape, _output(shape), width, n, recipe.compute, device, kept=fused)
    mlp = _norm(shape, recipe, n, "MLP")
    mlp |= _reads(recipe, shape, second, n * d, n, res, device)
    wide = n * f * out
    if shape.family == "llama":
        mlp |= {"gate_proj(x)": wide, "up_proj(x)": wide, "silu(gate)": wide}
    elif shape.family == "opt":
        mlp |= {"relu(fc1(x))": wide}
    elif device == "cuda" and recipe.autocast != "none":  # CUDA's autocast takes powers in fp32
        mlp |= {"c_fc(x), halved": wide, "c_fc(x) in fp32": n * f * FP32}
        mlp |= {"tanh in GELU": n * f * FP32, "1 + tanh": n * f * FP32}
        out = FP32
    else:
        mlp |= {"c_fc(x)": wide, "c_fc(x), halved": wide, "tanh in GELU": wide, "1 + tanh": wide}
    mlp |= _reads(recipe, shape, inner, n * f, n, out, device, kept=shape.family == "opt")
    return Block(
        attention,
        mlp,
        _attention_work(shape, recipe, batch, seq),
        _mlp_work(shape, recipe, n, out),
    )


def _mlp_work(shape: ModelShape, recipe: Recipe, n: int, out: int) -> int:
    """What is alive at once, above what is kept, where the MLP is widest.

    Without adapters that read a copy of x it is in the backward pass: gradients of both factors of
    the gated product. With them it is at the end of the forward pass.
    """
    res, wide, size = recipe.residual, n * shape.ffn, n * shape.hidden
    if not (recipe.peft and casts_inputs(recipe)):
        return 2 * wide * out + size * res
    own = BYTES[recipe.adapters]
    if recipe.autocast == "none":  # W x in 16 bit, B A x and its multiple in fp32
        return wide * own + 6 * size * res
    wider = 2 if shape.family == "llama" else 3  # x, and x in the adapter's type; residuals, sums
    return wide * (out + own) + size * (wider * res + 3 * recipe.compute)


def casts_inputs(recipe: Recipe) -> bool:
    """Whether adapters read a copy of x in another type."""
    return BYTES[recipe.adapters] != (
        recipe.residual if recipe.autocast == "none" else recipe.compute
    )


def output_bytes(recipe: Recipe) -> int:
    """Of a number that a matrix product gives: bitsandbytes returns it in its input's type."""
    return recipe.residual if recipe.method == "qlora" else recipe.compute


def _names(shape: ModelShape) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Matrices that read the attention's norm, the MLP's norm, and the inner activation."""
    if shape.family == "gpt2":
        return ("attn.c_attn",), ("mlp.c_fc",), ("mlp.c_proj",)
    if shape.family == "opt":
        return ("q_proj", "k_proj", "v_proj"), ("fc1",), ("fc2",)
    return ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("down_proj",)


def _output(shape: ModelShape) -> tuple[str, ...]:
    return ({"gpt2": "attn.c_proj", "opt": "out_proj", "llama": "o_proj"}[shape.family],)


def _norm(shape: ModelShape, recipe: Recipe, n: int, where: str) -> dict[str, int]:
    size = n * shape.hidden
    if shape.family != "llama":  # LayerNorm: its input, a mean and a deviation a token
        return {f"x of the {where} norm": size * recipe.residual, f"its {where} mean, std": 8 * n}
    kept = {f"x of the {where} norm": size * FP32, f"its {where} 1 / rms": FP32 * n}
    if not recipe.peft:
        kept[f"x / rms, {where}"] = size * recipe.residual
    return kept


def _reads(
    recipe: Recipe,
    shape: ModelShape,
    names: tuple[str, ...],
    size: int,
    n: int,
    width: int,
    device: str,
    kept: bool = False,
) -> dict[str, int]:
    """What the matrices `names` keep of the tensor x that they read.

    Args:
        size: numbers in x. width: bytes of each. kept: x is kept by something else already.
    """
    label = f"x of {', '.join(names)}"
    if not recipe.peft:
        if recipe.autocast != "none" and width != recipe.compute:
            return {f"{label}, a 16-bit copy each": len(names) * size * recipe.compute}
        return {} if kept else {label: size * width}
    adapted = [name for name in names if name in recipe.targeted(shape)]
    if not adapted:
        return {}
    own = BYTES[recipe.adapters]
    low = {f"A(x) of {', '.join(adapted)}": len(adapted) * recipe.rank * n}
    if recipe.autocast == "none":
        shared, taken = own == width, own
    else:  # PEFT casts x to the adapter's type, autocast casts it back; not so on 4-bit layers,
        taken = recipe.compute  # if PEFT sees the autocast, for which it looks at CUDA's only
        shared = width == taken and (
            own == width or (recipe.method == "qlora" and device == "cuda")
        )
    low = {name: count * taken for name, count in low.items()}
    if shared:
        return low if kept else {label: size * width, **low}
    return {f"x of {', '.join(adapted)}, a copy each": len(adapted) * size * taken, **low}


def _attention(
    shape: ModelShape, recipe: Recipe, batch: int, seq: int, device: str
) -> dict[str, int]:
    n, comp = batch * seq, recipe.compute
    q, kv = n * shape.q_width, n * shape.kv_width
    kept = {}
    if shape.qk_norm:
        kept["q and k of their norms"] = (q + kv) * FP32
        kept["their 1 / rms"] = n * (shape.heads + shape.kv_heads) * FP32
        if not recipe.peft:
            kept["q and k / rms"] = (q + kv) * output_bytes(recipe)
    if recipe.attention != "eager":
        kept |= {"q": q * comp, "k and v": 2 * kv * comp, "attention's output": q * comp}
        return kept | {"log-sum-exp of each row": n * shape.heads * FP32}
    kept |= {"q": q * comp, "k and v for each head": 2 * q * comp}
    scores = batch * shape.heads * seq * seq
    if comp == FP32:
        return kept | {"probabilities": scores * FP32}
    plain = recipe.autocast == "none" or (device == "cpu" and recipe.residual != FP32)
    if shape.family == "gpt2" and plain:  # no softmax in fp32 there, except by autocast
        return kept | {"probabilities": scores * comp}
    return kept | {"probabilities in fp32": scores * FP32, "… in 16 bit": scores * comp}


def _attention_work(shape: ModelShape, recipe: Recipe, batch: int, seq: int) -> int:
    if recipe.attention != "eager":
        return batch * seq * (2 * shape.q_width + 2 * shape.kv_width) * recipe.compute
    scores = batch * shape.heads * seq * seq
    return 2 * scores * FP32
