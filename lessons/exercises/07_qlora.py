# %% [markdown] seconds=40
# # Exercises 07 · QLoRA
#
# Five tasks that belong to lesson 07: the sixteen numbers of NF4, rounding in blocks, rounding the
# scales as well, what a recipe takes, and what is lost when a LoRA is merged. For each one: write
# the function, run the check below it until it says *passed*, then run the small experiment, which
# works on a real model's weights with **your** function.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import pandas as pd
import torch
from IPython.display import Markdown, display

from course_utils import Lab, check, plots
from course_utils import quantization as course
from course_utils.experiments import four_bit
from course_utils.experiments.loop import mean_loss
from course_utils.training.tokenise import demonstration_rows

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
HAS_BNB = four_bit.has_bitsandbytes()
if not HAS_BNB:
    print("note: bitsandbytes is not installed; what would be compared with it is left out")
world

# %%
# what the experiments work on: the linear maps of the world's base model, and held-out answers
base = world.base()
maps = {name: w.detach().float().cpu() for name, w in course.linear_weights(base).items()}
demonstrations = world.demonstrations("heldout", n=world.tier.evaluation_prompts)
rows = demonstration_rows(demonstrations, world.tokenizer, 256, "held-out")
print(f"{len(maps)} linear maps, {sum(w.numel() for w in maps.values()):,} weights")

# %% [markdown]
# ## Task 1 · Sixteen numbers
#
# *Difficulty 2 of 5 · about 25 minutes · 4 points*
#
# NF4 puts its levels at quantiles of the normal distribution, more of them above zero than below,
# and zero among them. For $b$ bits let $m = 2^{b-1}$, and let $t$ be the probability of the outermost
# level, the *tail*. The two halves are made apart, each from evenly spaced probabilities that begin
# at $t$ and stop before they reach ½:
#
# $$a_i = \Phi^{-1}\!\left(t - (t - \tfrac12)\frac{i}{m}\right),\; i = 0 \dots m-1 \qquad\qquad
# c_i = -\Phi^{-1}\!\left(t - (t - \tfrac12)\frac{i}{m-1}\right),\; i = 0 \dots m-2$$
#
# The levels are all $a_i$, all $c_i$ and 0, divided by $\Phi^{-1}(t)$, so that the first is −1 and the
# last is 1. The paper takes $t = 1 - \delta$ with $\delta = \tfrac12(\tfrac1{32} + \tfrac1{30})$, of which its published
# levels use seven digits: 0.9677083 (Dettmers et al. 2023, appendix E).
#
# Write `normal_float(bits=4, tail=0.9677083)`.
#
# * The result has shape (2^bits,), is float32, and **ascends**;
# * the first level is exactly −1, the last exactly 1, and one of them exactly 0;
# * `bits` is from 2 to 8, `tail` between ½ and 1.
#
# <details><summary>A hint</summary>
#
# `torch.special.ndtri` is $\Phi^{-1}$; so is `statistics.NormalDist().inv_cdf`. Count before you
# compute: for 4 bits there are 8 above zero, 7 below, and zero. `torch.linspace` contains both of its
# ends. Float64 on the way does no harm.
# </details>


# %% task="normal-float"
def normal_float(bits=4, tail=0.9677083):
    ### BEGIN SOLUTION
    half = 2 ** (bits - 1)  # levels above zero; below there is one less
    probabilities = torch.linspace(tail, 0.5, half + 1, dtype=torch.float64)[:-1]
    fewer = torch.linspace(tail, 0.5, half, dtype=torch.float64)[:-1]
    above = torch.special.ndtri(probabilities).flip(0)
    below = -torch.special.ndtri(fewer)  # the outermost is first already
    levels = torch.cat([below, torch.zeros(1), above])
    return (levels / levels.max()).float()
    ### END SOLUTION


# %% task="normal-float" points=4
check.normal_float(normal_float)

# %% tags=["hidden-test", "solution-only"]
assert check.normal_float(normal_float).passed

# %% [markdown]
# ### Experiment: is the tail a good one?
#
# Your levels on the model's weights, each divided by the largest of its 64 neighbours. How large is
# the error if the tail is another one than the paper's? And do normal quantiles pay with fewer or
# more bits than four?

# %%
from course_utils.quantization.blockwise import decode, encode
from course_utils.quantization.codebooks import NF4_TAIL, CodeBook, normal_values

book_of = check.use(normal_float, otherwise=normal_values)
looked_at = list(maps.values())[: 7 if world.tier.is_fast else None]  # one layer has seven maps


def rounding_error(levels, block=64):
    """(mean, root mean square) of |rounded - weight| over those maps; the course's quantization."""
    book = CodeBook.of("own", levels)
    flat = [w.flatten() for w in looked_at]
    error = torch.cat([decode(*encode(w, book, block), book, block) - w for w in flat])
    return float(error.abs().mean()), float(error.square().mean().sqrt())


if HAS_BNB:
    import bitsandbytes.functional as bnb_functional

    theirs = bnb_functional.get_4bit_type("nf4", device="cpu")
    print(f"largest difference from bitsandbytes' NF4: {float((book_of() - theirs).abs().max()):g}")

tails = [0.7, 0.8, 0.85, 0.9, 0.93, 0.95, NF4_TAIL, 0.98, 0.99, 0.995, 0.999]
by_tail = {tail: rounding_error(book_of(4, tail)) for tail in tails}
by_bits = {}
for bits in range(2, 9):
    half = 2 ** (bits - 1) - 1
    even = torch.arange(-half, half + 1) / half
    by_bits[bits] = rounding_error(even)[0] / rounding_error(book_of(bits))[0]

# %% tags=["hidden-test"]
assert all(mean > 0 for mean, _ in by_tail.values())
assert by_tail[NF4_TAIL][0] < min(by_tail[0.8][0], by_tail[0.999][0])
assert by_bits[4] > 1

# %% tags=["hide-input"]
# @title The error against the tail, and against the bits
figure = plots.figure("Four bits: error against the tail", x="Φ⁻¹(tail)", y="error of a weight")
at = torch.special.ndtri(torch.tensor(tails, dtype=torch.float64)).tolist()
for which, said in enumerate(("mean", "root mean square")):
    values = [by_tail[tail][which] for tail in tails]
    plots.line(figure, at, values, said, plots.colour(which), mode="lines+markers")
papers = float(torch.special.ndtri(torch.tensor(NF4_TAIL, dtype=torch.float64)))
figure.add_vline(x=papers, line={"dash": "dot", "color": "#888"}, annotation_text="NF4")
display(figure)
best = [min(tails, key=lambda t: by_tail[t][which]) for which in (0, 1)]
Markdown(
    f"Of these tails **{best[0]:.4g}** has the least mean error and **{best[1]:.4g}** the least root "
    f"mean square; NF4's is {NF4_TAIL:.4g}. Evenly spaced levels have "
    + ", ".join(f"{ratio:.2f}" for ratio in by_bits.values())
    + " times the mean error of normal ones at 2, 3, … 8 bits."
)

# %% [markdown] task="why-the-tail" points=2
# **Question 1.** In the experiment the levels are divided by the outermost, so a larger tail does not
# reach further out. What does it change, and why does the error rise on *both* sides of the best
# tail? And why may the best tail for the root mean square be a smaller one than for the mean?
#
# ### BEGIN SOLUTION
# The outermost levels are always −1 and 1. A tail nearer to 1 takes quantiles from far out in the
# distribution, and dividing by a large Φ⁻¹(t) pushes all the inner levels towards zero: small weights
# are rounded finely, and between the last two levels opens a wide gap. A tail near ½ gives almost
# evenly spaced levels, fine at the rim, where few weights are, and coarse in the middle, where most
# are. In between lies the best compromise for how these scaled weights are distributed. The mean
# square counts large errors more, and the large errors happen in the widest gaps, at the rim; so it
# prefers a smaller tail, with more levels out there.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · Blocks, and a ragged tail
#
# *Difficulty 3 of 5 · about 35 minutes · 5 points*
#
# Flatten a tensor in row-major order and cut it into blocks of `block` neighbours; the last one may be
# shorter. With levels $q_0 < \dots < q_{L-1}$ in $[-1, 1]$:
#
# $$s_b = \max_{i \in b} |x_i|, \qquad c_i = \arg\min_j \left| \frac{x_i}{s_b} - q_j \right|, \qquad \hat x_i = s_b\, q_{c_i}$$
#
# Write `quantize_blocks(x, levels, block=64)`, which returns the pair `(codes, scales)`.
#
# * `x` has any shape and N numbers, `levels` (L,) is ascending, L ≤ 256;
# * `codes` (N,) is uint8: the number of the nearest level. Halfway between two, either will do;
# * `scales` (M,) is float32, M = ⌈N / block⌉: the largest magnitude of each block;
# * a block of zeros has the scale 0 and the codes of the level that is nearest to 0: no NaN;
# * numbers may be as small as 1e-20, may be bfloat16 or float16 (compute in float32), and need not
#   lie one after another in memory, as in a transposed matrix. `x` stays as it is.
#
# Write `dequantize_blocks(codes, scales, levels, block, shape, dtype="float32")`, which returns the
# tensor that they stand for.
#
# * `shape` is a tuple, `dtype` a name such as `"bfloat16"`: what the result must have.
#
# You may use other functions of your own in both.
#
# <details><summary>A hint</summary>
#
# Fill the flattened tensor up with zeros, which change no largest magnitude, reshape it to (M, block),
# and cut the filling off again at the end. `torch.bucketize(values, borders)` finds the number of
# the interval if you give it the *borders* between levels. A uint8 tensor in square brackets is
# taken for a mask: index with `codes.long()`. `getattr(torch, "bfloat16")` is `torch.bfloat16`.
# </details>


# %% task="blockwise-quantization"
def quantize_blocks(x, levels, block=64):
    ### BEGIN SOLUTION
    flat = x.float().flatten()  # (N,)
    padding = torch.zeros(-len(flat) % block)
    blocks = torch.cat([flat, padding]).view(-1, block)  # (M, block)
    scales = blocks.abs().amax(dim=1)  # (M,)
    safe = torch.where(scales > 0, scales, torch.ones(()))  # zeros / 1 stay zeros
    borders = (levels[:-1] + levels[1:]) / 2
    codes = torch.bucketize(blocks / safe.unsqueeze(1), borders)
    return codes.flatten()[: len(flat)].to(torch.uint8), scales
    ### END SOLUTION


def dequantize_blocks(codes, scales, levels, block, shape, dtype="float32"):
    ### BEGIN SOLUTION
    values = levels[codes.long()]  # (N,)
    own_scale = scales.repeat_interleave(block)[: len(codes)]  # a a a b b b …
    return (values * own_scale).reshape(shape).to(getattr(torch, dtype))
    ### END SOLUTION


# %% task="blockwise-quantization" points=5
check.blockwise_quantization(quantize_blocks, dequantize_blocks)

# %% tags=["hidden-test", "solution-only"]
assert check.blockwise_quantization(quantize_blocks, dequantize_blocks).passed

# %% tags=["hide-input"]
# @title The course's functions, with the same arguments


def library_quantize(x, levels, block=64):
    return encode(x.detach().float().flatten(), CodeBook.of("own", levels), block)


def library_dequantize(codes, scales, levels, block, shape, dtype="float32"):
    flat = decode(codes, scales, CodeBook.of("own", levels), block)
    return flat.reshape(shape).to(getattr(torch, dtype))


# %% [markdown]
# ### Experiment: what one outlier does
#
# All maps of the model through your functions and back, with blocks of different sizes: the loss on
# held-out answers, and the error of the weights. Then **one** weight in each map is made ten times as
# large as the largest, and we look at the error of all the *others*.

# %%
quantized = check.use(quantize_blocks, otherwise=library_quantize)
dequantized = check.use(dequantize_blocks, otherwise=library_dequantize)
nf4 = book_of()


def there_and_back(w, block):
    codes, scales = quantized(w, nf4, block)
    return dequantized(codes, scales, nf4, block, tuple(w.shape))


def with_weights(new):
    """A copy of the base model with these weights in its linear maps."""
    model = world.base()
    for name, w in new.items():
        model.get_submodule(name).weight.data.copy_(w)
    return model


def planted(w):
    """The weight with one outlier in the middle."""
    flat = w.flatten().clone()
    flat[len(flat) // 2] = 10 * flat.abs().max()
    return flat.view(w.shape)


def relative_error(weights, block):
    """RMS of (rounded - weight) / RMS of the weights, without the one in the middle of each map."""
    off = size = 0.0
    for w in weights:
        others = torch.arange(w.numel()) != w.numel() // 2
        off += float((there_and_back(w, block) - w).flatten()[others].square().sum())
        size += float(w.flatten()[others].square().sum())
    return (off / size) ** 0.5


# %%
SIZES = (16, 64, 256, 1024, 4096, 16384)
untouched = mean_loss(base, rows)
outliers = [planted(w) for w in maps.values()]
found = [
    {
        "block": block,
        "bits": 4 + 32 / block,
        "loss": mean_loss(
            with_weights({n: there_and_back(w, block) for n, w in maps.items()}), rows
        ),
        "error": relative_error(maps.values(), block),
        "error beside an outlier": relative_error(outliers, block),
    }
    for block in SIZES
]
if HAS_BNB:
    name, w = next(iter(maps.items()))
    packed, state = bnb_functional.quantize_4bit(w, quant_type="nf4")
    away = (there_and_back(w, 64) - bnb_functional.dequantize_4bit(packed, state)).abs()
    same = float((away < 1e-5 * w.abs().max()).float().mean())
    print(f"{name}: {same:.2%} of the numbers are those of bitsandbytes")

# %% tags=["hidden-test"]
assert found[-1]["error"] > found[0]["error"]
assert found[-1]["error beside an outlier"] > 3 * found[-1]["error"]
if HAS_BNB:
    assert same > 0.999, "halfway between two levels a number may go either way"

# %% tags=["hide-input"]
# @title Error against the size of a block, with and without an outlier
figure = plots.figure(
    "One outlier in each map", x="block (weights)", y="error / size of the weights"
)
for number, what in enumerate(("error", "error beside an outlier")):
    values = [row[what] for row in found]
    plots.line(figure, SIZES, values, what, plots.colour(number), mode="lines+markers")
display(figure.update_xaxes(type="log", tickvals=SIZES, ticktext=[f"{n:,}" for n in SIZES]))
print(f"loss of the untouched model: {untouched:.4f} nats per word of the answer")
pd.DataFrame(found).style.hide(axis="index").format(precision=4)

# %% [markdown] task="why-blocks" points=2
# **Question 2.** How large is the error beside an outlier in blocks of 64 and in those of 16,384,
# compared with the error where there is none, and why? What speaks against blocks of 16?
#
# ### BEGIN SOLUTION
# In a block with an outlier ten times as large as all others, every other weight divided by the scale
# lies within ±0.1, where NF4 has three levels: most of them turn into 0 or the level next to it. With
# blocks of 64 that happens to 63 neighbours, a small part of a map, so the error over all grows a
# little. With blocks of 16,384 it happens to all or a third of the map at once: the error comes near to
# the size of the weights themselves. Smaller blocks also follow the ordinary differences between
# neighbourhoods. But each block costs a scale of 32 bits: two bits per weight at 16, half as much
# again as the codes, for an error that is only a little smaller.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · Double quantization
#
# *Difficulty 3 of 5 · about 30 minutes · 5 points*
#
# A block of 64 weights has a scale of 32 bits: half a bit per weight. So the scales are quantized too.
# All of them are positive, so their mean $\mu$ is subtracted first, and the rest is rounded in blocks of
# 256 to the 256 levels of an 8-bit code book:
#
# $$\mu = \frac1M \sum_b s_b, \qquad (c^{(2)}, s^{(2)}) = \text{quantize}(s - \mu), \qquad \hat s = \text{dequantize}(c^{(2)}, s^{(2)}) + \mu$$
#
# Write `double_quantize(scales, levels, block=256)`, which returns `(codes, second, mean)`: codes (M,)
# uint8, second (K,) float32 with K = ⌈M / block⌉, mean () float32.
#
# * `scales` (M,) is float32, `levels` (L,) ascends from −1 to 1, L ≤ 256;
# * there is one mean, of all M scales.
#
# Write `restore_scales(codes, second, mean, levels, block=256)`, the way back: (M,) float32. Scales
# that are all equal (or only one) must come back as they were.
#
# Write `bits_per_parameter(n, block=64, second_block=256, double=True)`, a number: the bits stored for a
# tensor of `n` weights, divided by n. Count whole bytes and whole blocks, rounded up:
#
# * two codes of 4 bits share a byte; a single one takes a byte too;
# * without double quantization each block has a scale of 32 bits;
# * with it each block has a code of 8 bits, each `second_block` blocks have a second scale of 32 bits,
#   and there is one mean of 32 bits. The code books are shared by all tensors and not counted.
#
# You may call your functions of task 2.
#
# <details><summary>A hint</summary>
#
# Scales less their mean are numbers like any others, and you know how to quantize numbers. For the
# bits count bytes, in whole numbers, and divide at the very end; `-(-a // b)` rounds a / b up.
# </details>


# %% task="double-quantization"
def double_quantize(scales, levels, block=256):
    ### BEGIN SOLUTION
    mean = scales.mean()
    eight_bit, second = quantize_blocks(scales - mean, levels, block)
    return eight_bit, second, mean
    ### END SOLUTION


def restore_scales(codes, second, mean, levels, block=256):
    ### BEGIN SOLUTION
    centred = dequantize_blocks(codes, second, levels, block, codes.shape)
    return centred + mean
    ### END SOLUTION


def bits_per_parameter(n, block=64, second_block=256, double=True):
    ### BEGIN SOLUTION
    code_bytes = -(-n // 2)
    count = -(-n // block)  # blocks
    if not double:
        return 8 * (code_bytes + 4 * count) / n
    scale_bytes = count + 4 * -(-count // second_block) + 4
    return 8 * (code_bytes + scale_bytes) / n
    ### END SOLUTION


# %% task="double-quantization" points=5
check.double_quantization(double_quantize, restore_scales, bits_per_parameter)

# %% tags=["hidden-test", "solution-only"]
assert check.double_quantization(double_quantize, restore_scales, bits_per_parameter).passed

# %% tags=["hide-input"]
# @title The course's functions, with the same arguments


def library_double(scales, levels, block=256):
    mean = scales.mean()
    return (*library_quantize(scales - mean, levels, block), mean)


def library_restore(codes, second, mean, levels, block=256):
    return decode(codes, second, CodeBook.of("own", levels), block) + mean


def library_bits(n, block=64, second_block=256, double=True):
    """Counted on a real tensor; for very large ones the formula. second_block must be 256."""
    if n > 2**21:
        return course.bits_per_parameter(block, double)
    return course.quantize(torch.ones(n), "nf4", block, double).bits_per_parameter


# %% [markdown]
# ### Experiment: what the mean is for
#
# The scales of all maps of the model. The 8-bit book is bitsandbytes' *dynamic* one: it has most of its
# levels near 0. Beside it a book of evenly spaced levels. And once with the mean subtracted, once
# without: your blockwise functions do the latter.

# %%
from course_utils.quantization.codebooks import dynamic_values

doubled = check.use(double_quantize, otherwise=library_double)
restored = check.use(restore_scales, otherwise=library_restore)
bits_of = check.use(bits_per_parameter, otherwise=library_bits)

scales = torch.cat([quantized(w, nf4)[1] for w in maps.values()])
BOOKS = {"dynamic": dynamic_values(), "even": torch.linspace(-1, 1, 255)}
errors = {}
for book, levels in BOOKS.items():
    centred = restored(*doubled(scales, levels), levels)
    codes, second = quantized(scales, levels, 256)
    raw = dequantized(codes, second, levels, 256, tuple(scales.shape))
    for how, values in {"mean subtracted": centred, "not subtracted": raw}.items():
        errors[book, how] = float(((values - scales).abs() / scales).mean())
for (book, how), error in errors.items():
    print(f"{book:>8} levels, {how:<16}: a scale is off by {error:.2%}")

w = maps[next(iter(maps))]
weight_codes, weight_scales = quantized(w, nf4)
levels = BOOKS["dynamic"]
again = restored(*doubled(weight_scales, levels), levels)
shape = tuple(w.shape)
once = dequantized(weight_codes, weight_scales, nf4, 64, shape)
twice = dequantized(weight_codes, again, nf4, 64, shape)
print(f"error of a weight: {(once - w).abs().mean():.5f}, with double quantization", end=" ")
print(f"{(twice - w).abs().mean():.5f}")
if HAS_BNB:
    packed, state = bnb_functional.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    equal = (doubled(weight_scales, levels)[0] == state.absmax.flatten()).float().mean()
    print(f"bitsandbytes' codes of the scales: {equal:.1%} are yours (ties may go either way)")

# %% tags=["hidden-test"]
assert errors["dynamic", "mean subtracted"] < errors["dynamic", "not subtracted"]
assert errors["dynamic", "mean subtracted"] < 0.01
assert (twice - w).abs().mean() < 1.1 * (once - w).abs().mean()
if HAS_BNB:
    assert equal > 0.95

# %% tags=["hide-input"]
# @title Bits per parameter, by the size of the tensor
COUNTS = [10, 30, 64, 100, 300, 1000, 4096, 16384, 65536, 2**18, 2**20, 2**24]
figure = plots.figure("4 bits are more than 4 bits", x="weights in the tensor", y="bits per weight")
for number, double in enumerate((False, True)):
    values = [bits_of(n, double=double) for n in COUNTS]
    said = "double quantization" if double else "scales of 32 bits"
    plots.line(figure, COUNTS, values, said, plots.colour(number), mode="lines+markers")
display(figure.update_xaxes(type="log"))
overhead = {double: bits_of(2**24, double=double) - 4 for double in (False, True)}
cheaper = next(n for n in COUNTS if bits_of(n, double=True) < bits_of(n, double=False))
Markdown(
    f"The scales of a large tensor take {overhead[False]:.3f} bits a weight, and "
    f"**{overhead[True]:.3f}** with double quantization. Of the sizes drawn, it is the cheaper way "
    f"from {cheaper:,} weights on."
)

# %% tags=["hidden-test"]
assert round(overhead[False], 3) == 0.5
assert round(overhead[True], 3) == 0.127

# %% [markdown] task="why-the-mean" points=2
# **Question 3.** By what factor does subtracting the mean help, with each of the two books, and why?
# And why is the error of a *weight* hardly touched by the second rounding?
#
# ### BEGIN SOLUTION
# See the table printed: with both books the error falls by a factor of two or three. All scales are
# positive, so without the mean the half of the book below zero is never used, which is a bit thrown
# away. The scales of neighbouring blocks also differ less from each other than from zero: less their
# mean they are small and centred, so the second scale is smaller and the levels come closer together.
# The dynamic book gains more, since its levels are densest around 0, where the centred scales are, and
# coarse near 1, where the raw ones are. A scale that is wrong by a fraction of a percent moves a weight
# by that fraction of itself, while the first rounding, to sixteen levels, moves it by ten percent or
# so. Independent errors add as squares, so the small one disappears beside the large one.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · What a recipe takes
#
# *Difficulty 2 of 5 · about 25 minutes · 4 points*
#
# Write `recipe_memory(linear, other, adapters, recipe, block=64, second_block=256)`, which returns a
# dict of five numbers in **GiB** (2³⁰ bytes): what lies in memory all the time while a model is
# trained, before any activation. The parameters: `linear` those of the blocks' linear maps, `other` all
# else of the base (embedding, head, norms), `adapters` those of the LoRA. With $P$ for `linear`, $O$ for
# `other`, $R$ for `adapters`, in **bytes**:
#
# | key | `recipe="full"` | `"lora"` | `"qlora"` |
# |---|---|---|---|
# | `"weights"` | $P$ and $O$ in 16 bits | $P$, $O$ and $R$ in 16 bits | $P$ in 4 bits; $O$ and $R$ in 16 |
# | `"scales"` | 0 | 0 | of $P$'s blocks, double-quantized |
# | `"gradients"` | 16 bits for each trained parameter | the same | the same |
# | `"optimizer"` | Adam: two moments of 32 bits for each trained parameter | the same | the same |
# | `"total"` | the sum of the four | the same | the same |
#
# * Full fine-tuning trains $P$ and $O$ and has no adapters, whatever `adapters` says; the other two
#   train the adapters alone. There is no 32-bit copy of the weights.
# * The scales: 8 bits for each `block` weights, and 32 bits for each `second_block` of those. Here
#   nothing is rounded up, and the means are left out.
#
# <details><summary>A hint</summary>
#
# Write down the bytes per parameter of each cell first: 16 bits are 2, 4 bits are ½. Only one line
# needs to know what is trained.
# </details>


# %% task="recipe-memory"
def recipe_memory(linear, other, adapters, recipe, block=64, second_block=256):
    ### BEGIN SOLUTION
    trained = linear + other if recipe == "full" else adapters
    scales = 0.0
    if recipe == "full":
        weights = 2 * (linear + other)
    elif recipe == "lora":
        weights = 2 * linear + 2 * (other + adapters)
    else:
        weights = linear / 2 + 2 * other + 2 * adapters
        scales = linear / block + 4 * linear / (block * second_block)
    found = {"weights": weights, "scales": scales}
    found["gradients"] = 2 * trained
    found["optimizer"] = 8 * trained  # two moments, four bytes each
    found["total"] = sum(found.values())
    return {key: size / 2**30 for key, size in found.items()}
    ### END SOLUTION


# %% task="recipe-memory" points=4
check.recipe_memory(recipe_memory)

# %% tags=["hidden-test", "solution-only"]
assert check.recipe_memory(recipe_memory).passed

# %% tags=["hide-input"]
# @title The course's calculator, with the same arguments
from course_utils.memory import find_shape, held, recipe
from course_utils.memory.held import adapter_tensors, count

LLAMAS = {name: find_shape(name, online=False) for name in ("llama-7b", "llama-13b", "llama-65b")}
RANK = 64  # as in the paper
SAME = {"rank": RANK, "optimizer": "paged-adamw"}  # moments of 32 bits
PLANS = {
    "full": recipe("full-bf16", optimizer="paged-adamw"),
    "lora": recipe("lora", adapters="bf16", **SAME),
    "qlora": recipe("qlora", **SAME),
}


def counts(shape):
    """(linear, other, adapters) of a model."""
    linear = shape.layers * sum(x.weights for x in shape.linears)
    adapters = count(adapter_tensors(shape, PLANS["qlora"]))
    return linear, shape.parameters - linear, adapters


def library_memory(linear, other, adapters, recipe, block=64, second_block=256):
    """For the three models above: `held`, which counts scales and code books with the weights."""
    shape = next(s for s in LLAMAS.values() if counts(s) == (linear, other, adapters))
    has = held(shape, PLANS[recipe])
    parts = sum(has.weights.values()), 0.0, has.gradients, has.optimizer
    terms = dict(zip(("weights", "scales", "gradients", "optimizer"), parts, strict=True))
    return {key: size / 2**30 for key, size in (terms | {"total": sum(parts)}).items()}


# %% [markdown]
# ### Experiment: 65 billion parameters on 48 GB
#
# Your function on the shapes of three LLaMA models, a LoRA of rank 64 on every linear map; the course's
# calculator beside it, which counts tensor by tensor. Then a model that really is in memory.

# %%
memory_of = check.use(recipe_memory, otherwise=library_memory)

table = {
    (model, way): memory_of(*counts(shape), way) for model, shape in LLAMAS.items() for way in PLANS
}
largest = 0.0
for (model, way), terms in table.items():
    exact = library_memory(*counts(LLAMAS[model]), way)["total"]
    largest = max(largest, abs(terms["total"] / exact - 1))
    print(f"{model:>9} {way:<5} {terms['total']:7.1f} GiB, of which weights", end=" ")
    print(f"{terms['weights']:6.1f}, optimizer {terms['optimizer']:6.1f}")
print(f"largest difference from the calculator: {largest:.3%}")

# the world's model as it lies in memory: by bitsandbytes where it is, else by the course's layers
small = sum(w.numel() for w in maps.values())
if HAS_BNB:
    from course_utils import qlora

    held_4_bit, _ = four_bit.qlora_model(world)
    states = [(m.weight, m.weight.quant_state) for _, m in qlora.four_bit_layers(held_4_bit)]
    seen_bytes = sum(
        w.nbytes + s.absmax.nbytes + s.state2.absmax.nbytes + s.offset.nbytes for w, s in states
    )
else:
    seen_bytes = course.quantize_model(world.base()).bytes_after
expected_bits = sum(bits_of(w.numel()) * w.numel() for w in maps.values()) / small
print(f"the world's {small:,} weights: {8 * seen_bytes / small:.4f} bits each in memory,", end=" ")
print(f"{expected_bits:.4f} by the count of task 3")

# %% tags=["hidden-test"]
assert largest < 0.005
assert table["llama-65b", "qlora"]["total"] < 48e9 / 2**30 < table["llama-65b", "lora"]["total"]
assert abs(8 * seen_bytes / small - expected_bits) < 1e-9

# %% tags=["hide-input"]
# @title Three recipes, drawn
figure = plots.figure("LLaMA, rank 64, before any activation", y="GiB", barmode="stack")
bars = [f"{model.removeprefix('llama-')} {way}" for model, way in table]
for number, term in enumerate(("weights", "scales", "gradients", "optimizer")):
    plots.bars(figure, bars, [t[term] for t in table.values()], plots.colour(number), term)
red = {"color": plots.COLOURS["ppo_low_beta"], "width": 2}
figure.add_hline(y=48e9 / 2**30, line=red, annotation_text="48 GB")
figure.update_yaxes(type="linear", range=[0, 160])
display(figure)
whole = table["llama-65b", "full"]
Markdown(
    f"65B, all weights trained, takes **{whole['total']:.0f} GiB** and leaves the picture; LoRA "
    f"{table['llama-65b', 'lora']['total']:.0f}, QLoRA {table['llama-65b', 'qlora']['total']:.1f}, of "
    f"which the optimizer's states are {table['llama-65b', 'qlora']['optimizer']:.1f}: those can be "
    "paged out."
)

# %% [markdown] task="where-the-memory-goes" points=2
# **Question 4.** Which term does LoRA save, and which one QLoRA on top of it? Someone reads in your
# table that QLoRA of the 65B model is below 48 GB and orders a 48 GB card for batches of 16 texts of
# 2,048 tokens. What is missing in the table?
#
# ### BEGIN SOLUTION
# LoRA does away with the gradients and optimizer states of the base: ten of twelve bytes per
# parameter. The weights stay, two bytes each, and are then nearly everything. QLoRA shrinks exactly
# those, to about half a byte; it leaves the adapters' terms as they were. What is missing is what comes
# and goes within a step: activations (or the checkpoints and one block's activations), the logits with
# their float32 copy and gradient, one dequantized matrix at a time, the driver's own memory and
# fragmentation. All of the first grow with batch × length; 16 × 2,048 tokens with a vocabulary of
# 32,000 make logits of 4 GB in float32 alone. The fix is smaller batches with accumulated gradients,
# checkpointing, and paged optimizer states.
# ### END SOLUTION

# %% [markdown]
# ## Task 5 · What a merge loses
#
# *Difficulty 4 of 5 · about 40 minutes · 5 points*
#
# QLoRA trains $A$ and $B$ beside a weight that was rounded: with $Q(W)$ for a weight quantized
# blockwise and dequantized again, $\hat W = Q(W)$ and $\Delta W = \frac{\alpha}{r} BA$. To serve the model as
# one matrix $W'$ there are four ways:
#
# | `how` | $W'$ | |
# |---|---|---|
# | `"dequantize"` | $\hat W + \Delta W$ | what was trained, in 16 or 32 bits |
# | `"original"` | $W + \Delta W$ | into the full-precision weight, which the adapter has never seen |
# | `"requantize"` | $Q(\hat W + \Delta W)$ | small again |
# | `"original-requantize"` | $Q(W + \Delta W)$ | small again, from the full-precision weight |
#
# Write `merge_lora(weight, A, B, alpha, how, levels, block=64)`, which returns $W'$, shape (d, k), float32.
#
# * `weight` is $W$ (d, k), float32, before any rounding; `A` (r, k), `B` (d, r), `alpha` a number;
# * $Q$ is that of task 2, with `levels` and `block`, without double quantization; d · k need not be a
#   multiple of the block. All arguments stay as they were.
#
# Write `output_error(x, merged, frozen, A, B, alpha)`, shape (): how far the merged layer's outputs are from
# those before merging, over all tokens and outputs together:
#
# $$\frac{\lVert x W'^\top - y \rVert}{\lVert y \rVert}, \qquad y = x \hat W^\top + \frac{\alpha}{r} (x A^\top) B^\top, \qquad \lVert z \rVert = \sqrt{\textstyle\sum z^2}$$
#
# * `x` (T, k) are the layer's inputs, `merged` is $W'$ and `frozen` is $\hat W$, both (d, k).
#
# You may call your functions of task 2.
#
# <details><summary>A hint</summary>
#
# The four ways are two questions with two answers each: from which weight does the sum start, and is
# the sum rounded? The rank r is `A.shape[0]`. One norm over all numbers: `torch.linalg.norm` of a matrix
# is just that.
# </details>


# %% task="merge-error"
def merge_lora(weight, A, B, alpha, how, levels, block=64):
    ### BEGIN SOLUTION
    def through_4_bits(w):
        codes, scales = quantize_blocks(w, levels, block)
        return dequantize_blocks(codes, scales, levels, block, tuple(w.shape))

    update = alpha / A.shape[0] * (B @ A)  # ΔW (d, k)
    start = weight if how.startswith("original") else through_4_bits(weight)
    merged = start + update
    return through_4_bits(merged) if how.endswith("requantize") else merged
    ### END SOLUTION


def output_error(x, merged, frozen, A, B, alpha):
    ### BEGIN SOLUTION
    y = x @ frozen.T + alpha / A.shape[0] * (x @ A.T) @ B.T  # (T, d)
    off = x @ merged.T - y
    return torch.linalg.norm(off) / torch.linalg.norm(y)
    ### END SOLUTION


# %% task="merge-error" points=5
check.merge_error(merge_lora, output_error)

# %% tags=["hidden-test", "solution-only"]
assert check.merge_error(merge_lora, output_error).passed

# %% tags=["hide-input"]
# @title The course's functions, with the same arguments
from course_utils.quantization import merging


def library_merge(weight, A, B, alpha, how, levels, block=64):
    """`levels` must be NF4's."""
    return merging.merged_weight(weight, alpha / len(A) * B @ A, how, "nf4", block)


def library_error(x, merged, frozen, A, B, alpha):
    return merging.output_error(x, merged, frozen + alpha / len(A) * B @ A)


# %% [markdown]
# ### Experiment: four merges of a trained adapter
#
# The world's base model goes into NF4, a LoRA of rank 16 onto every linear map, and is trained on
# demonstrations. Then every layer is merged in each of the four ways, and we look at three things: the
# error of each layer's outputs, on the inputs that it really gets; how far the next-word probabilities
# of the whole model move, as a KL divergence; and its loss.

# %%
from course_utils.adapters import apply_lora
from course_utils.experiments.loop import batches, padded, train_step

STEPS = 8 if world.tier.is_fast else 60

trained = world.base()
course.quantize_model(trained, "nf4", double=False)
before = mean_loss(trained, rows)
apply_lora(trained, rank=16, alpha=32.0)
four_bit.same_start(trained, world.seed)
examples = demonstration_rows(world.demonstrations(n=600), world.tokenizer, 256, "training")
rate = 2 * world.settings.sft.learning_rate  # adapters like twice that of full fine-tuning
optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=rate)
trained.train()
for _, batch in zip(range(STEPS), batches(examples, 16, world.seed), strict=False):
    train_step(trained, optimizer, batch)
unmerged = mean_loss(trained, rows)
print(f"{STEPS} steps: held-out loss {before:.4f} -> {unmerged:.4f} nats per word")


@torch.no_grad()
def kl_from_trained(model):
    """KL(trained and unmerged ‖ model) of the next word, nats per word of the held-out answers."""
    total = words = 0
    for first in range(0, len(rows), 32):
        ids, labels = padded(rows[first : first + 32])
        p, q = (
            m.eval()(input_ids=ids.to(m.device), use_cache=False).logits.log_softmax(-1)[:, :-1]
            for m in (trained, model)
        )
        counted = (labels[:, 1:] >= 0).to(p.device)  # the answers' words
        total += float((p.exp() * (p - q)).sum(-1)[counted].sum())
        words += int(counted.sum())
    return max(total / words, 0.0)  # rounding alone can make it less than 0


# %% tags=["hidden-test"]
assert unmerged < before

# %%
merge = check.use(merge_lora, otherwise=library_merge)
error_of = check.use(output_error, otherwise=library_error)
WAYS = ("dequantize", "original", "requantize", "original-requantize")

# the inputs of every layer on 16 held-out answers
inputs = {}
adapted = {name: layer for name, layer in trained.named_modules() if name in maps}
hooks = [
    layer.register_forward_hook(
        lambda _, given, out, name=name: inputs.update({name: given[0].detach().flatten(0, 1)})
    )
    for name, layer in adapted.items()
]
mean_loss(trained, rows[:16])
for hook in hooks:
    hook.remove()

merged, errors, share = {way: {} for way in WAYS}, {way: [] for way in WAYS}, []
with torch.no_grad():
    for name, layer in adapted.items():
        A, B, alpha = layer.A.detach(), layer.B.detach(), layer.scaling * len(layer.A)
        x, frozen = inputs[name], layer.base.dequantize().weight.detach()
        share.append(float(error_of(x, frozen, frozen, A, B, alpha)))  # the adapter left out
        for way in WAYS:
            merged[way][name] = merge(maps[name], A, B, alpha, way, nf4)
            errors[way].append(float(error_of(x, merged[way][name], frozen, A, B, alpha)))
models = {way: with_weights(merged[way]) for way in WAYS}
losses = {way: mean_loss(model, rows) for way, model in models.items()}
moved = {way: kl_from_trained(model) for way, model in models.items()}
untrained = with_weights({name: layer.base.dequantize().weight for name, layer in adapted.items()})
learned = kl_from_trained(untrained)  # how far training itself has moved the model

# %% tags=["hidden-test"]
assert len(adapted) == len(maps)
assert max(errors["dequantize"]) < 1e-4
assert min(errors["requantize"]) > 10 * max(errors["dequantize"])
assert abs(losses["dequantize"] - unmerged) < 1e-3
assert abs(moved["dequantize"]) < 1e-5
assert min(moved[way] for way in WAYS[1:]) > 1e-5

# %% tags=["hide-input"]
# @title Layer by layer, and the whole model
figure = plots.figure("Relative error of a layer's outputs", x="layer", y="error / size of y")
names = [f"{name.split('.')[2]} {name.split('.')[-1].removesuffix('_proj')}" for name in adapted]
for number, way in enumerate(WAYS):
    plots.line(figure, names, errors[way], way, plots.colour(number), mode="lines+markers")
dotted = {"dash": "dot", "width": 1.5}
plots.line(figure, names, share, "the adapter left out", "#888", line=dotted, mode="lines")
display(figure)
told = pd.DataFrame(
    [
        {
            "merge": way,
            "error, mean over layers": sum(errors[way]) / len(errors[way]),
            "KL": moved[way],
            "of the KL that training made": moved[way] / learned,
            "loss": losses[way],
            "against unmerged": losses[way] - unmerged,
        }
        for way in WAYS
    ]
)
style = {"of the KL that training made": "{:.1%}", "against unmerged": "{:+.4f}"}
told.style.hide(axis="index").format(precision=4).format(style)

# %% [markdown] task="which-merge" points=2
# **Question 5.** Put the four ways in order, by the error of the outputs, by the KL and by the loss. Do
# the orders agree? Compare the errors of *requantize* with the dotted line. Somebody looks at the last
# column alone and ships *requantize*: what do you say? And what would you do if the model has to be
# served in 4 bits?
#
# ### BEGIN SOLUTION
# *dequantize* has no error and no KL: it is what was trained. The other three move each layer's outputs
# by several percent: *original* takes back the rounding that the adapter has learned to live with,
# *requantize* rounds once more, and *original-requantize* does something of both. The dotted line is the
# size of the adapter's own part: where an error comes near to it, the merge has changed the layer about
# as much as all of the training has. Through the whole model less is left of that, since rounding errors
# point in random directions and partly cancel, while the update points in one; the KL, measured against
# that which training made, says how much. The loss differs by far less, with either sign: a random change
# of the model makes some answers likelier and others less likely, and a merge that comes out better on
# these texts has been lucky, not clever. The KL says that the model is another one than the one that was
# tested. Ship *dequantize*; where 4 bits are a must, keep the adapter apart from the 4-bit base, which
# costs two thin products a layer and loses nothing.
# ### END SOLUTION

# %% [markdown]
# That was set 07. What you have written is a working QLoRA but for the speed: bitsandbytes does the
# same in kernels, and lesson 07 pages the optimizer.
