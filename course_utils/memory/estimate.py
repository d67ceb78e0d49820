"""estimate(shape, recipe, seq, batch) -> Breakdown: what a training step takes, term by term.

Memory rises and falls within a step, so it is computed at the few moments that can be the worst
(`Breakdown.moments`), and the largest of them is the peak. Between them memory only moves from one
to the next. Pure arithmetic, no torch.
"""

from dataclasses import dataclass, field

from course_utils.errors import CourseError
from course_utils.memory.activations import ATTENTION, FP32, block
from course_utils.memory.assumptions import assumptions
from course_utils.memory.held import Held, held
from course_utils.memory.recipe import Recipe
from course_utils.memory.shape import ModelShape

MIB = 2**20
CUDA_CONTEXT = 500 * MIB  # driver, kernels and cuBLAS's workspace: 300 to 700 MiB, by GPU
FRAGMENTATION = 0.05  # of the peak: what the caching allocator holds in blocks that do not fit
FINAL, CHECKPOINTS = "final norm, positions, ids", "checkpoints (inputs of the blocks)"
TILE_ROWS, TILE_COLUMNS = 4096, 32768  # of TRL's fused head: tokens, vocabulary


@dataclass(frozen=True)
class Breakdown:
    """Bytes by term. `terms` are those of the worst moment; the two allowances come on top."""

    shape: ModelShape
    recipe: Recipe
    seq: int  # tokens a row
    batch: int  # rows (pairs for reward and dpo)
    completion: int  # tokens a row with logits
    moments: dict[str, dict[str, int]]  # moment -> term -> bytes
    context: int  # bytes outside of torch's allocator
    fragmentation: int
    paged: int  # bytes of optimizer states that may be in the CPU's memory; not in any moment
    assumptions: list[str] = field(repr=False)

    @property
    def moment(self) -> str:
        """The worst moment."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def terms(self) -> dict[str, int]:
        return {name: size for name, size in self.moments[self.moment].items() if size}

    @property
    def peak(self) -> int:
        """Tensors at the worst moment: what torch.cuda.max_memory_allocated reports."""
        return sum(self.terms.values())

    @property
    def total(self) -> int:
        """What the GPU must have: the peak and both allowances."""
        return self.peak + self.context + self.fragmentation


def estimate(
    shape: ModelShape,
    recipe: Recipe,
    seq: int,
    batch: int,
    completion: int | None = None,
    device: str = "cuda",
) -> Breakdown:
    """Memory of one step in its steady state (the optimizer has its states).

    Args:
        seq: T, tokens of a row, prompt and answer. batch: B, rows of a (micro-)batch; pairs, two
            rows each, for the tasks "reward" and "dpo".
        completion: C, tokens of a row whose logits are computed; None: T - 1, the most there are.
        device: "cuda", or "cpu", where some types differ under autocast and nothing is paged.
    Raises: CourseError for lengths that the model cannot have, a rank or target that does not fit.
    """
    _check(shape, seq, batch, completion)
    completion = seq - 1 if completion is None else completion
    if recipe.task in ("sft", "dpo") and recipe.logits == "all":
        completion = seq
    has = held(shape, recipe)
    recipe.targeted(shape)  # raises
    step = _Step(shape, recipe, seq, batch, completion, device, has)
    moments = step.moments()
    paged = 0
    if recipe.optimizer.startswith("paged") and device == "cuda":
        paged = has.optimizer
    else:
        for moment in moments.values():
            moment["optimizer states"] = has.optimizer
    peak = max(sum(terms.values()) for terms in moments.values())
    return Breakdown(
        shape=shape,
        recipe=recipe,
        seq=seq,
        batch=batch,
        completion=completion,
        moments=moments,
        context=CUDA_CONTEXT if device == "cuda" else 0,
        fragmentation=round(FRAGMENTATION * peak) if device == "cuda" else 0,
        paged=paged,
        assumptions=assumptions(shape, recipe, seq, batch, completion, device),
    )


def _check(shape: ModelShape, seq: int, batch: int, completion: int | None) -> None:
    for name, value in (("seq", seq), ("batch", batch)):
        if not isinstance(value, int) or value < 1:
            raise CourseError(f"{name} must be a whole number of at least 1, got {value!r}")
    if seq > shape.context:
        raise CourseError(
            f"seq {seq} is beyond the context of {shape.name}, {shape.context} tokens; shorten it"
        )
    if seq < 2:
        raise CourseError("seq must be at least 2: the first token predicts the second")
    if completion is not None and not 1 <= completion < seq:
        raise CourseError(
            f"completion must be from 1 to {seq - 1} (seq less a token of prompt), got {completion}"
        )


class _Step:
    """One step's moments. n = rows x T tokens, N = rows x C of them with logits."""

    def __init__(
        self,
        shape: ModelShape,
        recipe: Recipe,
        seq: int,
        batch: int,
        completion: int,
        device: str,
        has: Held,
    ) -> None:
        self.shape, self.recipe, self.has, self.device = shape, recipe, has, device
        self.rows = 2 * batch if recipe.task in ("reward", "dpo") else batch
        self.sampled = recipe.rollouts or batch
        self.seq, self.completion = seq, completion
        self.tokens = self.rows * seq  # n
        self.scored = self.rows * completion  # N
        self.block = block(shape, recipe, self.rows, seq, device)

    def moments(self) -> dict[str, dict[str, int]]:
        recipe = self.recipe
        found: dict[str, dict[str, int]] = {}
        if recipe.task in ("inference", "ppo"):
            found["sampling"] = self._sampling()
        if recipe.task == "ppo":
            found["scoring"] = self._scoring()
        if recipe.trains:
            found |= self._training()
        found = {name: {**self.has.weights, **terms} for name, terms in found.items()}
        if recipe.accumulate and recipe.trains:  # those of earlier micro-batches are all there
            for terms in found.values():
                terms["gradients"] = self.has.gradients
        return found

    # ---- training ----------------------------------------------------------------------------

    def _training(self) -> dict[str, dict[str, int]]:
        """Forward, loss, backward, optimizer: the moments in their order."""
        kept = self._kept()
        found = {"end of the forward pass": {**kept, **self._casts("forward"), **self._loss()}}
        if self.recipe.task == "dpo":
            whole = FP32 * self.scored * self.shape.vocabulary if self._whole else 0
            found["reference's forward pass"] = {
                **kept,
                **self._casts("forward"),
                "logits": whole,
                **self._no_grad(self.rows, self.seq, self.scored),
            }
        found["backward of the loss"] = {**kept, **self._casts("loss"), **self._loss_gradient()}
        if self.has.head_gradient:
            found["gradient of the head"] = {**kept, **self._head_gradient()}
        return {**found, **self._backward(kept)}

    def _head_gradient(self) -> dict[str, int]:
        """The head's gradient, while that of the logits is still there.

        Under autocast it comes in 16 bit first, when the logits' gradient and the head's own 16-bit
        copy are gone. To be added to earlier gradients it needs room beside them.
        """
        recipe, size = self.recipe, self.has.head_gradient
        cast = recipe.autocast != "none"
        logits = recipe.compute * self.scored * self.shape.vocabulary
        return {
            **self._casts("loss", head=False),
            "logits": 0 if cast or not self._whole else logits,
            "gradients": size,
            "working set": size // 2 * cast + size * recipe.accumulate,
        }

    def _backward(self, kept: dict[str, int]) -> dict[str, dict[str, int]]:
        """From the last block to the first, whose memory lies in between; then the optimizer."""
        shape, recipe, has = self.shape, self.recipe, self.has
        incoming = self.tokens * shape.hidden * recipe.residual
        last = {name: size for name, size in kept.items() if name != FINAL}
        first = {"activations": self.block.saved}
        if recipe.checkpointing:
            again = {
                "a block's activations, computed again": self.block.saved - self._input_twice()
            }
            last, first = {**last, **again}, {CHECKPOINTS: incoming, **again}
        work = {**self._casts("block"), "working set": self._block_work()}
        done = has.block_gradients * (shape.layers - 1) // shape.layers
        added = has.head_gradient if shape.tied or recipe.accumulate else 0
        return {
            "backward of the last block": {**last, **work, "gradients": has.head_gradient},
            "backward of the first block": {
                **first,
                **work,
                "gradients": has.head_gradient + done,
            },
            "gradient of the embedding": {
                "gradients": has.gradients,
                "working set": incoming + added,
            },
            "optimizer step": {"gradients": has.gradients, "working set": has.optimizer_work},
        }

    def _input_twice(self) -> int:
        """A block's checkpoint is the x of its first norm too, where that needs no fp32 copy."""
        shape, recipe = self.shape, self.recipe
        shared = shape.family != "llama" or recipe.residual == FP32
        return self.tokens * shape.hidden * recipe.residual if shared else 0

    def _block_work(self) -> int:
        """Gradients of activations, and of the block's own weights, as its backward runs."""
        shape, recipe = self.shape, self.recipe
        if recipe.peft:
            return self.block.backward_work(0, 0) + self._matrix_work()
        mlp = [x for x in shape.linears if x.name not in ATTENTION]
        return self.block.backward_work(
            mlp[-1].weights * recipe.residual,
            sum(x.weights for x in mlp) * recipe.residual,
        )

    def _kept(self) -> dict[str, int]:
        shape, recipe, n = self.shape, self.recipe, self.tokens
        size = n * shape.hidden
        final = size * (FP32 if shape.family == "llama" else recipe.residual)
        if shape.family == "llama" and not recipe.peft:
            final += size * recipe.residual
        rope = 2 * self.seq * shape.head_dim * recipe.residual if shape.family == "llama" else 0
        ids = 8 * n + 8 * self.scored
        kept = {FINAL: final + rope + ids}
        if recipe.checkpointing:
            return {
                CHECKPOINTS: shape.layers * size * recipe.residual,
                **kept,
            }
        return {"activations": shape.layers * self.block.saved, **kept}

    def _casts(self, when: str, head: bool = True) -> dict[str, int]:
        """16-bit copies that autocast makes of fp32 matrices, at three moments of a step."""
        has, recipe = self.has, self.recipe
        copies = has.head_cast if head else 0
        if when == "block" and not recipe.checkpointing:
            copies = has.block_casts
        elif when == "block":
            copies = has.block_casts // self.shape.layers
        elif not recipe.checkpointing:
            copies += has.block_casts
        elif when == "forward":  # kept until autocast ends, if they are trained
            copies += has.cached_casts
        return {"autocast's copies of the weights": copies}

    # ---- logits ------------------------------------------------------------------------------

    @property
    def _whole(self) -> bool:
        """Whether logits exist as one tensor (N, V)."""
        return self.recipe.task in ("sft", "dpo", "ppo") and self.recipe.logits != "tiled"

    def _rows(self) -> int:
        """The last hidden states that the trained head reads."""
        recipe, d = self.recipe, self.shape.hidden
        if recipe.task == "reward":
            return self.tokens * d * recipe.compute
        value = self.scored * d * FP32 if recipe.task == "ppo" else 0
        return value + (0 if recipe.peft else self.scored * d * recipe.compute)

    def _loss(self) -> dict[str, int]:
        """Logits, their fp32 copy, and the log-softmax."""
        width = self.recipe.compute
        each = width + FP32 + (FP32 if width != FP32 else 0)
        logits = each * self.scored * self.shape.vocabulary if self._whole else self._tiles()
        return {"logits": logits, "head's input": self._rows()}

    def _loss_gradient(self) -> dict[str, int]:
        """The log-softmax, its gradient, and that of the logits, all fp32."""
        if self._whole:
            logits = 3 * FP32 * self.scored * self.shape.vocabulary
            return {"logits": logits, "head's input": self._rows()}
        return {
            "logits": self._tiles(backward=True),
            "head's input": self._rows(),
            "gradients": FP32 * self.shape.table if self.has.head_gradient else 0,
        }

    def _tiles(self, backward: bool = False) -> int:
        """TRL's fused head: one tile of logits; back, fp32 gradients of the hidden states too."""
        shape, recipe = self.shape, self.recipe
        if recipe.task == "reward":
            return 0
        tile = min(self.scored, TILE_ROWS) * TILE_COLUMNS * recipe.compute
        if recipe.compute != recipe.residual:  # the rows of the head's matrix, in 16 bit
            tile += min(shape.vocabulary, TILE_COLUMNS) * shape.hidden * recipe.compute
        return tile + (FP32 * self.scored * shape.hidden if backward else 0)

    # ---- without gradients ---------------------------------------------------------------------

    def _no_grad(self, rows: int, seq: int, scored: int) -> dict[str, int]:
        """A forward pass that keeps nothing: the worst of a block and the logits."""
        recipe, shape = self.recipe, self.shape
        each = recipe.compute + FP32 + (FP32 if recipe.compute != FP32 else 0)
        logits = each * scored * shape.vocabulary if self._whole else self._tiles()
        return {"working set": max(self._forward_work(rows, seq), logits + self.has.head_cast)}

    def _forward_work(self, rows: int, seq: int) -> int:
        """The worst of one block: its MLP, its attention, or a matrix that leaves its 4 bits."""
        shape, recipe = self.shape, self.recipe
        n = rows * seq
        wide = {"llama": 3, "gpt2": 4, "opt": 2}[shape.family]  # GELU written out has many terms
        around = (6 if shape.family == "gpt2" else 4) * n * shape.hidden * recipe.residual
        mlp = wide * n * shape.ffn * recipe.compute
        attention = n * (2 * shape.q_width + 2 * shape.kv_width) * recipe.compute
        if recipe.attention == "eager":
            attention += 2 * rows * shape.heads * seq * seq * FP32
        return max(mlp, attention, n * shape.ffn * recipe.compute + self._matrix_work()) + around

    def _matrix_work(self) -> int:
        """The largest matrix, out of its 4 bits while it is used."""
        largest = max(linear.weights for linear in self.shape.linears)
        if self.recipe.method == "qlora":
            return largest * self.recipe.compute
        return 0

    def _cache(self) -> int:
        """Keys and values of every token; under autocast rotary embeddings give fp32 keys."""
        shape, recipe = self.shape, self.recipe
        numbers = shape.layers * shape.kv_width * self.sampled * self.seq
        keys = recipe.residual if shape.family == "llama" else recipe.compute
        return numbers * (keys + recipe.compute)

    def _sampling(self) -> dict[str, int]:
        shape, recipe = self.shape, self.recipe
        prompt = self.seq - self.completion
        # the logits of one token a row; in fp32 log-softmax and softmax; its cumulative sum, fp64
        each = recipe.compute + FP32 + FP32 + 8
        logits = each * self.sampled * shape.vocabulary
        work = self._forward_work(self.sampled, prompt)
        return {"KV cache": self._cache(), "working set": max(logits, work)}

    def _scoring(self) -> dict[str, int]:
        return self._no_grad(self.rows, self.seq, self.scored)
