# %% [markdown] seconds=115
# # 07 · QLoRA
# ## How coarse may the weights be?
#
# LoRA trains few numbers, but the frozen model still has to lie in memory, at two bytes a weight.
# QLoRA keeps it in **four bits**. In this notebook you will
#
# 1. choose sixteen numbers that stand for all weights of a model (NF4),
# 2. round a real model to them, block by block, and count the bits to the third digit,
# 3. build the 4-bit linear map through which a LoRA learns,
# 4. page an optimizer out of the way of a long batch,
# 5. train QLoRA beside LoRA on the same batches, go down to two bits, and merge the result,
# 6. find out whether a 65B model really fits on one GPU with 48 GB.
#
# Tier tiny: about two minutes on two cores that have other work too; on a T4: not measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

from course_utils import Lab
from course_utils.experiments import four_bit

lab = Lab.open()
HAS_BNB = four_bit.has_bitsandbytes()  # the library behind QLoRA
if not HAS_BNB:
    print("note: bitsandbytes is not installed; cells that compare with it say so and go on with")
    print("the course's own 4-bit layers. pip install 'course_utils[gpu]' brings it.")
lab

# %% [markdown] slides="20"
# ## 1 · The claim
#
# The lecture says of QLoRA (Dettmers et al. 2023): *the base model in 4 bits plus LoRA; a **65B**
# model can be fine-tuned on **one 48 GB GPU**; there is **no significant loss** of quality.* Three
# inventions are to make that possible:
#
# * **NF4**, "4-bit NormalFloat": sixteen levels placed where normally distributed weights are;
# * **double quantization**: the scales of the quantization are quantized too;
# * **paged optimizers**: optimizer states that step aside when memory runs short.
#
# **Your guess.** How many GB do the weights of a 65B model take at 16 bits? And in 4 bits, with all
# that is needed to read them again?

# %%
my_guess_16_bit = 0.0  # GB
my_guess_4_bit = 0.0  # GB

# %%
from course_utils.memory import estimate, find_shape, recipe

GB = 1e9
large = find_shape("llama-65b", online=False)
plans = {name: recipe(name, rank=64) for name in ("lora", "qlora")}  # rank 64 as in the paper
weights_of = {
    name: sum(b for part, b in estimate(large, plan, 512, 1).terms.items() if "weights:" in part)
    for name, plan in plans.items()
}
print(f"{large.parameters / GB:.1f} billion parameters")
print(f"16 bits: {weights_of['lora'] / GB:6.1f} GB   (you guessed {my_guess_16_bit:g})")
print(f"NF4:     {weights_of['qlora'] / GB:6.1f} GB   (you guessed {my_guess_4_bit:g})")

# %% tags=["hidden-test"]
assert 64e9 < large.parameters < 66e9
assert 3.5 < weights_of["lora"] / weights_of["qlora"] < 4

# %% [markdown] slides="20"
# Weights are not all there is. The lecture's figure sets three ways of fine-tuning side by side:
# *what is stored in which precision, what gets gradients, and what is paged*. Here it is, with the
# bytes of the 65B model at rank 64.

# %% tags=["hide-input"]
# @title Standard, LoRA, QLoRA, drawn
from course_utils.pictures.qlora import three_ways

picture = three_ways(large, rank=64)
picture

# %% [markdown]
# The base gets no gradients of its own in LoRA and QLoRA, but gradients must pass *through* it to
# the adapters of the layers below. So it cannot be any zip file: a layer must be able to multiply
# with its weights, forward and backward, at any time. That is what we build now.
#
# ## 2 · Sixteen numbers
#
# Four bits name one of sixteen things. Divide the weights by the largest magnitude among them, the
# **absmax** $s$; now they lie in $[-1, 1]$. Replace each by the nearest of sixteen levels $q_j$, and
# keep only the number of the level, its **code** $c$:
#
# $$s = \max_i |w_i|, \qquad c_i = \arg\min_j \left| \frac{w_i}{s} - q_j \right|, \qquad \hat w_i = s\, q_{c_i}$$
#
# A toy with evenly spaced levels (INT4: $-7/7 \dots 7/7$):

# %%
import torch
import torch.nn.functional as F
from torch import nn

even = torch.arange(-7, 8) / 7  # INT4, symmetric: 15 levels, the sixteenth code stays unused
toy = torch.tensor([0.31, -0.02, 1.40, -0.77, 0.05])

s = toy.abs().max()
borders = (even[:-1] + even[1:]) / 2  # a number between two borders belongs to the level there
codes = torch.bucketize(toy / s, borders)
print("weights", [round(w, 2) for w in toy.tolist()])
print("codes  ", codes.tolist())
print("back   ", [round(w, 2) for w in (s * even[codes]).tolist()])

# %% tags=["hidden-test"]
assert ((s * even[codes] - toy).abs() <= s / 14 + 1e-6).all()

# %% [markdown]
# The large weight came back exactly, the small ones are gone. Where should the levels be? That
# depends on where the weights are, so let us look at real ones: every linear map of this tier's
# model, each weight divided by the absmax of its 64 neighbours. (Why 64 comes later.)

# %% tags=["hide-input"]
# @title The weights, drawn, with even levels
from IPython.display import Markdown, display

from course_utils import plots
from course_utils.quantization import linear_weights

MOST = 4_000_000  # weights to look at; a large model has enough in its first maps


def real_weights(model):
    """The linear maps' weights by name, fp32, until there are MOST numbers."""
    found, count = {}, 0
    for name, weight in linear_weights(model).items():
        if count < MOST:
            found[name], count = weight.detach().float().cpu(), count + weight.numel()
    return found


def histogram(title, levels):
    """The scaled weights as bars, the levels as lines."""
    counts = torch.histc(scaled, 81, -1, 1) / len(scaled)
    middles = torch.linspace(-80 / 81, 80 / 81, 81)
    figure = plots.figure(title, x="weight / absmax of its block", y="share of the weights")
    plots.bars(figure, middles.tolist(), counts.tolist(), plots.colour(0))
    for level in levels.tolist():
        figure.add_vline(x=level, line={"color": plots.COLOURS["ppo"], "width": 1.5})
    return figure.update_layout(bargap=0.05)


base = lab.base()
maps = real_weights(base)
scaled = torch.cat([w.flatten()[: w.numel() // 64 * 64].view(-1, 64) for w in maps.values()])
scaled = (scaled / scaled.abs().amax(1, keepdim=True).clamp(min=1e-38)).flatten()
histogram("Evenly spaced levels: many where there is little", even)

# %% tags=["hidden-test"]
assert float(scaled.abs().max()) <= 1

# %% [markdown] slides="20"
# ### NF4: levels at the quantiles of a normal distribution
#
# The weights pile up around zero, about as a normal distribution does. Were they normal, levels at
# its **quantiles** would be used equally often, and no code would be wasted. Sixteen evenly spaced
# probabilities through $\Phi^{-1}$, then? That has two faults: no level would be **zero** (padding and
# pruned weights would turn into something), and the outermost are infinite, as $\Phi^{-1}(0)$ and
# $\Phi^{-1}(1)$ are. So NF4 (appendix E of the paper) is *asymmetric*: 8 levels above zero, 7 below, and
# zero itself. The outermost probability is $1-\delta$ with $\delta = \tfrac12\left(\tfrac1{32} + \tfrac1{30}\right)$; from there
# to ½ it is evenly spaced:
#
# $$q_j \propto \Phi^{-1}(p_j), \qquad p_j = \underbrace{1-\delta,\; \dots,\; \tfrac12}_{8 \text{ without } \frac12}; \qquad \text{mirrored with 7 below zero; and } 0$$

# %%
DELTA = (1 / 32 + 1 / 30) / 2


def normal_levels(bits):
    """The NormalFloat code book of 2^bits levels in [-1, 1], ascending, with an exact zero."""
    above, below = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    tail = round(1 - DELTA, 7)  # the paper's own digits
    up = torch.special.ndtri(torch.linspace(tail, 0.5, above + 1)[:-1].double())  # outermost first
    down = -torch.special.ndtri(torch.linspace(tail, 0.5, below + 1)[:-1].double())
    levels = torch.cat([down, torch.zeros(1), up.flip(0)]).float()
    return levels / levels.max()


nf4 = normal_levels(4)
print([round(level, 4) for level in nf4.tolist()])

# the course's own table, and bitsandbytes'
from course_utils.quantization import code_book

torch.testing.assert_close(nf4, code_book("nf4").levels, rtol=0, atol=0)
if HAS_BNB:
    import bitsandbytes.functional as bnb_functional

    theirs = bnb_functional.get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(nf4, theirs, rtol=0, atol=1e-7)
    print("equal to bitsandbytes' table, largest difference", float((nf4 - theirs).abs().max()))

# %% tags=["hidden-test"]
assert len(nf4) == 16
assert nf4[7] == 0
assert nf4[0] == -1
assert nf4[-1] == 1
assert (nf4.diff() > 0).all()
assert len(normal_levels(2)) == 4
assert len(normal_levels(3)) == 8

# %% tags=["hide-input"]
# @title The same weights with NF4's levels, and how often each code is used
use = {
    name: torch.bincount(torch.bucketize(scaled, (q[:-1] + q[1:]) / 2), minlength=16) / len(scaled)
    for name, q in {"even": even, "NF4": nf4}.items()
}
entropy = {
    name: -float(torch.xlogy(p, p).sum() / torch.tensor(2.0).log()) for name, p in use.items()
}
display(histogram("NF4: levels where the weights are", nf4))
Markdown(
    f"Even levels carry **{entropy['even']:.2f} bits** of information a code, NF4 "
    f"**{entropy['NF4']:.2f}** of 4. NF4's rarest code stands for {use['NF4'].min():.1%} of the "
    f"weights, the most frequent for {use['NF4'].max():.1%}, where 1/16 would be {1 / 16:.1%}: the "
    "levels were placed for *normal* weights, but these were divided by the largest of their block, "
    "and that is no longer a normal distribution: see the bars at ±1 (Yoshida 2023). The paper's “information "
    "theoretically optimal” is an approximation."
)

# %% tags=["hidden-test"]
assert 0 < entropy["even"] <= 4
assert 0 < entropy["NF4"] <= 4
if lab.tier.name == "tiny":
    assert entropy["NF4"] > entropy["even"]

# %% [markdown]
# ## 3 · Blocks: one outlier spoils sixty-four, not a million
#
# One absmax for a whole matrix would be cheapest. But a single large weight would then push all the
# others into the few levels around zero. So the matrix is cut into **blocks** of 64 neighbours, each
# with its own scale. A last block that is shorter, the *ragged tail*, is filled up with zeros while
# its scale is found.


# %%
def quantize(weight, levels, block=64):
    """Codes (N,) and scales (M,) of a tensor of N numbers, M = ⌈N / block⌉."""
    flat = weight.detach().float().flatten()  # (N,)
    blocks = F.pad(flat, (0, -len(flat) % block)).view(-1, block)  # (M, block); zeros change no max
    scales = blocks.abs().amax(dim=1)  # (M,) the absmax of each block
    # times 1/s, as bitsandbytes does (a division may round differently); a block of zeros stays 0
    scaled = blocks * (1 / scales.clamp(min=1e-38)).unsqueeze(1)
    borders = (levels[:-1] + levels[1:]) / 2
    return torch.bucketize(scaled, borders).flatten()[: len(flat)], scales


def dequantize(codes, scales, levels, block, shape):
    """The tensor that the codes stand for."""
    return (levels[codes] * scales.repeat_interleave(block)[: len(codes)]).view(shape)


ragged = torch.randn(7, 29)  # 203 numbers: three blocks and eleven more
codes, scales = quantize(ragged, nf4)
again = dequantize(codes, scales, nf4, 64, ragged.shape)
print(
    f"{ragged.numel()} numbers, {len(scales)} scales, mean error {(again - ragged).abs().mean():.3f}"
)

# %% tags=["hidden-test"]
assert (len(codes), len(scales)) == (203, 4)
assert float((again - ragged).abs().max()) <= float(nf4.diff().max() / 2 * scales.max()) + 1e-6
assert (quantize(torch.zeros(5), nf4)[0] == 7).all(), "zeros stay zeros"

# %% [markdown]
# Now a real weight of the model. From our functions, the course's and bitsandbytes' it must come back
# as the same numbers.

# %%
import course_utils.quantization as course

name, weight = max(list(maps.items())[:7], key=lambda item: item[1].numel())  # of the first layer
codes, scales = quantize(weight, nf4)
mine = dequantize(codes, scales, nf4, 64, weight.shape)

torch.testing.assert_close(mine, course.dequantize(course.quantize(weight, "nf4")), rtol=0, atol=0)
if HAS_BNB:
    packed, state = bnb_functional.quantize_4bit(weight, quant_type="nf4")
    torch.testing.assert_close(mine, bnb_functional.dequantize_4bit(packed, state), rtol=0, atol=0)
    torch.testing.assert_close(scales, state.absmax.flatten(), rtol=0, atol=0)
print(f"{name} {tuple(weight.shape)}: the same numbers, bit for bit")

# %% tags=["hidden-test"]
assert mine.shape == weight.shape
assert len(scales) == -(-weight.numel() // 64)

# %% [markdown]
# How small should a block be? Small blocks have small errors, and each costs a 32-bit scale.

# %% tags=["hide-input"]
# @title Error and bits against the size of a block
SIZES = (16, 32, 64, 128, 256, 1024, 4096)
BOOKS = {"NF4": nf4, "FP4": code_book("fp4").levels, "INT4": even}
PAINT = {"NF4": plots.colour(2), "FP4": plots.colour(1), "INT4": plots.colour(0)}


def rounding_error(weights, levels, block=64):
    """(mean, root mean square, largest) of |rounded - weight| over all weights together."""
    rounded = [dequantize(*quantize(w, levels, block), levels, block, w.shape) for w in weights]
    error = torch.cat([(a - b).abs().flatten() for a, b in zip(rounded, weights, strict=True)])
    return float(error.mean()), float(error.square().mean().sqrt()), float(error.max())


two_layers = list(maps.values())[:14]
growth = {
    book: [rounding_error(two_layers, levels, size)[0] for size in SIZES]
    for book, levels in BOOKS.items()
}
figure = plots.figure("Blocks of 16 to 4,096 weights", x="bits per weight", y="mean error")
for book, means in growth.items():
    costs, marks = [4 + 32 / size for size in SIZES], "lines+markers"
    style = {"mode": f"{marks}+text", "text": SIZES, "textposition": "top right"}
    plots.line(
        figure, costs, means, book, PAINT[book], **(style if book == "FP4" else {"mode": marks})
    )
display(figure)
print(
    f"from blocks of 16 to 4,096 NF4's error grows {growth['NF4'][-1] / growth['NF4'][0]:.2f}-fold"
)

# %% tags=["hidden-test"]
assert all(means[-1] > means[0] for means in growth.values())

# %% [markdown]
# 64 is the usual choice. See with outliers what blocks are for: take *outliers, large blocks* among
# the presets, then *small blocks*. The second explorer holds real weights of this tier's model.

# %% tags=["hide-input"]
# @title NF4 explorer
from course_utils.inspectors import NF4Explorer

explorer, real_explorer = NF4Explorer(), NF4Explorer(weight)
display(explorer, real_explorer)

# %% tags=["hidden-test"]
assert real_explorer.frame()["formats"]["nf4"]["rms"] > 0

# %% [markdown] slides="20"
# ## 4 · Double quantization: the scales are too fat
#
# A block of 64 codes takes 256 bits, and its scale, a 32-bit float, another 32: **half a bit per
# weight** for scales alone.
#
# $$\underbrace{4}_{\text{codes}} + \frac{32}{64} = 4.5 \text{ bits}$$
#
# Double quantization treats the scales as weights once more: subtract their mean (they are all
# positive), cut them into blocks of 256, keep an 8-bit code for each, and one 32-bit scale for each
# block of scales.
#
# **Your guess.** What is left of the half bit?

# %%
my_guess_overhead = 0.5  # bits per weight

# %%
overhead = 8 / 64 + 32 / (64 * 256)  # a code for each block, a float for each 256 blocks
print(f"{32 / 64} -> {overhead:.4f} bits per weight; you guessed {my_guess_overhead:g}")
saved = (32 / 64 - overhead) / 8 * large.parameters
print(f"on 65B this saves {saved / GB:.1f} GB")

# %% tags=["hidden-test"]
assert round(overhead, 3) == 0.127
assert abs(4 + overhead - course.bits_per_parameter(64, double=True)) < 1e-12

# %% [markdown]
# The 8-bit book is bitsandbytes' *dynamic* one: more digits near 1, more range near 0. And since a
# code has four bits and memory has bytes, **two codes go into one byte**.

# %%
from collections import namedtuple

from course_utils.quantization.codebooks import dynamic_values

eight_bit = dynamic_values()  # (256,) ascending in [-1, 1]
Stored = namedtuple("Stored", "packed scales scale_scales scale_mean shape levels block")


def pack(codes):
    """(N,) codes below 16 -> (⌈N/2⌉,) bytes, the first of a pair in the upper half."""
    codes = F.pad(codes.to(torch.uint8), (0, len(codes) % 2), value=7)  # 7 means 0
    return (codes[::2] << 4) | codes[1::2]


def unpack(packed, count):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:count].int()


def store(weight, levels, block=64):
    """A weight as QLoRA keeps it: packed codes, scales in 8 bits."""
    levels, eight = levels.to(weight.device), eight_bit.to(weight.device)
    codes, scales = quantize(weight, levels, block)
    mean = scales.mean()
    scale_codes, scale_scales = quantize(scales - mean, eight, 256)
    small = scale_codes.to(torch.uint8)
    return Stored(pack(codes), small, scale_scales, mean, weight.shape, levels, block)


def restore(q):
    """The weight again, fp32."""
    eight = eight_bit.to(q.packed.device)
    centred = dequantize(q.scales.int(), q.scale_scales, eight, 256, q.scales.shape)
    codes = unpack(q.packed, q.shape.numel())
    return dequantize(codes, centred + q.scale_mean, q.levels, q.block, q.shape)


kept = store(weight, nf4)
size = sum(part.nbytes for part in kept[:4])
print(
    f"{weight.numel():,} weights in {size:,} bytes: {8 * size / weight.numel():.3f} bits per weight"
)

# %%
# the course's functions, and bitsandbytes
library = course.quantize(weight, "nf4", double=True)
assert torch.equal(kept.packed, library.codes)
assert torch.equal(kept.scales, library.absmax)
torch.testing.assert_close(restore(kept), course.dequantize(library), rtol=0, atol=0)

if HAS_BNB:
    packed, state = bnb_functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(kept.packed, packed.flatten()), "every byte of codes"
    same = (kept.scales == state.absmax.flatten()).float().mean()
    difference = (restore(kept) - bnb_functional.dequantize_4bit(packed, state)).abs().max()
    print(
        f"bitsandbytes: all codes equal, {same:.2%} of the scales; largest difference of a weight"
    )
    print(f"{difference:.1e} (a scale between two 8-bit levels may be rounded to either)")

# %% tags=["hidden-test"]
assert torch.equal(unpack(pack(torch.arange(15)), 15), torch.arange(15).int()), "an odd count"
assert 8 * size / weight.numel() < 4.2
double_error = float((restore(kept) - mine).abs().mean() / (mine - weight).abs().mean())
assert double_error < 0.2, "double quantization adds little to the first rounding"
if HAS_BNB:
    assert same > 0.98
    assert difference < 0.02 * weight.abs().max()

# %% [markdown] slides="22"
# ## 5 · Which format?
#
# The lecture warns that **quantization formats need care**. There are three ways to spend four bits,
# and one to spend eight:
#
# | format | levels |
# |---|---|
# | **INT4** | even steps, $-7/7 \dots 7/7$ |
# | **FP4** | a sign, two bits of exponent, one of mantissa: $0, \frac1{192}, \frac16, \frac14, \frac13, \frac12, \frac23, 1$ and their negatives |
# | **NF4** | normal quantiles |
# | **int8** | 255 even steps, twice the memory; here in blocks like the others (LLM.int8(), Dettmers et al. 2022, has a scale for each row and keeps outliers in 16 bits) |
#
# **Your guess.** Order the three 4-bit formats by their mean error on real weights, best first. Does
# the same one also have the least *largest* error?

# %%
my_guess_order = ["INT4", "FP4", "NF4"]

# %% tags=["hide-input"]
# @title Errors on real weights: this tier's model, and SmolLM2 where it is installed
import pandas as pd

from course_utils.errors import CourseError

BOOKS["int8"] = torch.arange(-127, 128) / 127
sources = {"this tier's model": list(maps.values())}
try:
    if lab.tier.is_fast:
        raise CourseError("COURSE_FAST leaves SmolLM2 out")
    smol = course.smollm2_weights(layers=(0, 15))
    sources["SmolLM2-135M, embedding"] = [smol.pop("token_embd.weight")[:4096]]
    sources["SmolLM2-135M, linear maps"] = list(smol.values())
except CourseError as problem:
    print(f"note: only this tier's model. {problem}")

errors = pd.DataFrame(
    [
        {"weights": source, "format": book, "bits": (8 if book == "int8" else 4) + 32 / 64}
        | dict(zip(("mean", "rms", "largest"), rounding_error(given, levels), strict=True))
        for source, given in sources.items()
        for book, levels in BOOKS.items()
    ]
)
numbers = {"bits": "{:.1f}", "mean": "{:.5f}", "rms": "{:.5f}", "largest": "{:.3f}"}
display(errors.style.hide(axis="index").format(numbers))

four_bits = errors[errors.format != "int8"].groupby("weights", sort=False)
order = {source: list(rows.sort_values("mean").format) for source, rows in four_bits}
calmest = {source: rows.sort_values("largest").format.iloc[0] for source, rows in four_bits}
firsts = [ranking[0] for ranking in order.values()]
nf4_is_best = set(firsts) == {"NF4"}
Markdown(
    f"By mean error on this tier's model: **{' < '.join(next(iter(order.values())))}** (you guessed "
    f"{' < '.join(my_guess_order)}). NF4 has the least mean error on {firsts.count('NF4')} of "
    f"{len(firsts)} sets of weights. The least *largest* error: "
    + ", ".join(f"{name} ({source})" for source, name in calmest.items())
    + ". NF4 is right where most weights are and pays at the rim, where its gaps are widest."
    + (
        " (SmolLM2's maps come from a file that was rounded to 4 bits once before; its embedding is "
        "nearly original.)"
        if len(order) > 1
        else ""
    )
)

# %% tags=["hidden-test"]
library_errors = {row.format: row for row in course.error_table(maps) if not row.double}
ours = errors[errors.weights == "this tier's model"].set_index("format")
for book in ("nf4", "fp4", "int4"):
    assert abs(ours.loc[book.upper(), "mean"] / library_errors[book].mean - 1) < 1e-3, book
assert (ours.loc["int8", "mean"] < ours.loc[["NF4", "FP4", "INT4"], "mean"]).all()

# %% [markdown]
# An error of a weight is not yet an error of the *model*. So we put rounded weights into this
# tier's base model and read demonstrations that no training uses. No training yet: this is the loss
# that 4 bits start with.

# %%
from course_utils.experiments.loop import mean_loss
from course_utils.models import copy_model
from course_utils.training.tokenise import demonstration_rows


def held_out(lab, tokenizer, n=64):
    """Tokenised demonstrations that no training uses."""
    return demonstration_rows(lab.demonstrations("heldout", n=n), tokenizer, 256, "held-out")


def rounded_copy(model, levels):
    """The model with every linear map rounded (and stored in fp32 again: this is about error)."""
    copy = copy_model(model)
    for weight in linear_weights(copy).values():
        q = levels.to(weight.device)
        weight.data = dequantize(*quantize(weight, q), q, 64, weight.shape).to(weight.dtype)
    return copy


rows = held_out(lab, lab.tokenizer, lab.tier.evaluation_prompts)
start_loss = {"fp32": mean_loss(base, rows)}
for book, levels in BOOKS.items():
    start_loss[book] = mean_loss(rounded_copy(base, levels), rows)
for book, loss in start_loss.items():
    print(f"{book:>5}: {loss:.4f} nats per word of the answer ({loss - start_loss['fp32']:+.4f})")

# %% tags=["hidden-test"]
assert set(start_loss) == {"fp32", "NF4", "FP4", "INT4", "int8"}
assert abs(start_loss["int8"] - start_loss["fp32"]) < 0.01

# %% tags=["hide-input"]
# @title In words
by_loss = sorted(("NF4", "FP4", "INT4"), key=start_loss.get)
by_error = next(iter(order.values()))
worst = max(start_loss[book] for book in by_loss) - start_loss["fp32"]
Markdown(
    f"By the loss: **{' < '.join(by_loss)}**, by the error of the weights {' < '.join(by_error)}: "
    + ("the same order here. " if by_loss == by_error else "*not* the same order. ")
    + f"All 4-bit formats lie within {worst:.4f} nats of fp32"
    + (", too close for an order to mean much" if worst < 0.01 else "")
    + ". What counts is how errors add up through the layers, not their mean. `int8` is "
    f"{start_loss['int8'] - start_loss['fp32']:+.4f} away and takes twice the memory. The hope of QLoRA "
    "is that the LoRA, while it learns the task, learns to make up for the rounding too."
)

# %% [markdown]
# ## 6 · A linear map in four bits, and a LoRA beside it
#
# Four bits are for *keeping*. To multiply, the weight is unpacked, used, and dropped again:
#
# $$y = \underbrace{\text{restore}(c, s)}_{\hat W,\ \text{frozen}}\, x + \frac{\alpha}{r}\, B A\, x$$
#
# (The lecture writes $\Delta W = A B^\top$ with $A \in \mathbb R^{d \times r}$, $B \in \mathbb R^{k \times r}$; PEFT and this code write the
# same product as $BA$.) One trap is hidden here. If you write `x @ restore(q).T`, autograd keeps
# the restored weight for the backward pass: every layer's, at full size, all at once. The saving
# would be gone. So the backward pass must unpack it **again**.


# %%
class FourBitProduct(torch.autograd.Function):
    """y = x Ŵᵀ. Ŵ exists only during the product, forward and once more backward."""

    @staticmethod
    def forward(ctx, x, q):  # (..., k) -> (..., d)
        ctx.q = q
        return x @ restore(q).to(x.dtype).T

    @staticmethod
    def backward(ctx, gradient):  # (..., d) -> (..., k); none for the weight: it is frozen
        return gradient @ restore(ctx.q).to(gradient.dtype), None


class QLoRALinear(nn.Module):
    """A linear map kept in 4 bits, with a LoRA in fp32 beside it."""

    def __init__(self, linear, levels=nf4, rank=16, alpha=32.0):
        super().__init__()
        d, k = linear.weight.shape
        self.q = store(linear.weight, levels)
        self.A = nn.Parameter(torch.empty(rank, k, device=linear.weight.device))  # (r, k)
        self.B = nn.Parameter(torch.zeros(d, rank, device=linear.weight.device))  # (d, r), zero
        nn.init.kaiming_uniform_(self.A, a=5**0.5)
        self.scaling = alpha / rank

    def forward(self, x):  # (..., k) -> (..., d)
        return FourBitProduct.apply(x, self.q) + self.scaling * (x @ self.A.T) @ self.B.T


# %% [markdown]
# Three things to check: the gradient of $x$ is that of an ordinary layer with the rounded weight;
# only $A$ and $B$ get gradients; and how many bytes autograd keeps, with and without the trick.

# %%
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(function, x):
    """Bytes that autograd keeps from the forward to the backward pass."""
    kept = []
    with saved_tensors_hooks(lambda t: kept.append(t.untyped_storage().nbytes()) or t, lambda t: t):
        function(x)
    return sum(kept)


d, k = weight.shape
plain = nn.Linear(k, d, bias=False)
plain.weight.data = weight.clone()
layer = QLoRALinear(plain)
x = torch.randn(8, k, requires_grad=True)  # eight tokens

y = layer(x)
y.square().sum().backward()
through_4_bit = x.grad.clone()

x.grad = None
(x @ restore(layer.q).T).square().sum().backward()
torch.testing.assert_close(through_4_bit, x.grad, rtol=1e-4, atol=1e-4)  # B = 0: the same function

print("gets a gradient:", [name for name, p in layer.named_parameters() if p.grad is not None])
naive = kept_bytes(lambda x: x @ restore(layer.q).T, x)
ours = kept_bytes(lambda x: FourBitProduct.apply(x, layer.q), x)
print(f"kept for the backward pass: naive {naive:,} bytes, with the trick {ours:,}")

# %% tags=["hidden-test"]
assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]
assert float(layer.B.grad.abs().max()) > 0
assert float(layer.A.grad.abs().max()) == 0
assert naive >= weight.nbytes > ours

# %% [markdown]
# `A`'s gradient is zero at this moment, since `B` is: after one step of `B` it is not. Now
# bitsandbytes' layer with the same weight, and PEFT's LoRA on it:

# %%
if HAS_BNB:
    import bitsandbytes as bnb

    from course_utils import qlora

    theirs = bnb.nn.Linear4bit(k, d, bias=False, quant_type="nf4", compress_statistics=True)
    theirs.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    theirs = theirs.to("cpu")  # here it is packed
    qlora.guard_cpu(theirs)  # explained under "what broke"

    x.grad = None
    out = theirs(x)
    out.square().sum().backward()
    torch.testing.assert_close(layer(x).detach(), out.detach(), rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(through_4_bit, x.grad, rtol=1e-2, atol=1e-1)
    print("bitsandbytes: the same output and the same gradient")
else:
    reference = course.Linear4bit(plain)
    torch.testing.assert_close(layer(x), reference(x))
    print("note: bitsandbytes is not installed; equal to course_utils.quantization.Linear4bit")

# %% [markdown]
# ### Why not train the four bits themselves?
#
# Because a step of an optimizer is far smaller than the gap between two levels. Round, step, round
# again, and nearly every code is where it was.

# %%
steps_of = {
    "one Adam step, 1e-4": 1e-4,
    "one Adam step, 1e-3": 1e-3,
    "a hundred, all one way": 1e-1,
}
before, _ = quantize(weight, nf4)
for said, move in steps_of.items():
    nudged = restore(kept) + move * torch.randn(weight.shape).sign()  # Adam moves by about its rate
    moved = (quantize(nudged, nf4)[0] != before).float().mean()
    print(f"{said:>22}: {moved:6.2%} of the codes change")

# %% tags=["hidden-test"]
nudged = restore(kept) + 1e-4
assert (quantize(nudged, nf4)[0] != before).float().mean() < 0.05

# %% [markdown] slides="20"
# ## 7 · Paged optimizers
#
# Within a training step memory rises and falls. **Activations** spike: a batch with one long text
# needs several times the room of a usual one. **Optimizer states** are needed only at the very end
# of a step, when the activations are gone. So the states can live in *pages* that move to the CPU's
# memory when a spike needs the room, and come back when the optimizer wants them. NVIDIA's unified
# memory does this by itself; bitsandbytes allocates Adam's two moments there.
#
# A miniature that really works: a fast memory with little room, a slow one without limit, and Adam
# that fetches its moments page by page.

# %%
from collections import OrderedDict


class PagedMemory:
    """`fast` holds pages up to `room` bytes; the page unused for longest moves to `slow`."""

    def __init__(self, room):
        self.room, self.moved = room, 0  # bytes; `moved` counts both directions
        self.fast, self.slow = OrderedDict(), {}

    @property
    def used(self):
        return sum(page.nbytes for page in self.fast.values())

    def make_room(self, needed):
        while self.used + needed > self.room:
            if not self.fast:
                raise MemoryError(f"{needed:,} bytes do not fit into {self.room:,}: out of memory")
            name, page = self.fast.popitem(last=False)
            self.slow[name], self.moved = page, self.moved + page.nbytes

    def get(self, name, numbers):
        """The page, in fast memory; new pages are zeros."""
        if name not in self.fast:
            page = self.slow.pop(name, None)
            self.moved += 0 if page is None else page.nbytes
            page = torch.zeros(numbers) if page is None else page
            self.make_room(page.nbytes)
            self.fast[name] = page
        self.fast.move_to_end(name)
        return self.fast[name]


PAGE = 1024  # numbers: 4 KiB, as a page of a computer's memory


@torch.no_grad()
def paged_adam_step(memory, parameters, t, rate):
    """Adam (β 0.9, 0.999), each moment fetched a page at a time; t counts steps from 1."""
    for number, p in enumerate(parameters):
        for at in range(0, p.numel(), PAGE):
            part, gradient = p.view(-1)[at : at + PAGE], p.grad.view(-1)[at : at + PAGE]
            m = memory.get(f"{number}.m.{at}", len(part))
            v = memory.get(f"{number}.v.{at}", len(part))
            m.lerp_(gradient, 0.1)
            v.lerp_(gradient.square(), 0.001)
            part -= rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


# %% [markdown]
# We train the layer from above towards a target, on batches of uneven length. **Your guess.** With
# the paging, does the result differ from torch's Adam, which keeps everything in one place?

# %%
my_guess_paging = "a"  # (a) not at all  (b) a little  (c) it only helps for a while

# %%
import copy

torch.manual_seed(lab.seed)
target = torch.randn(d, k) / k**0.5
lengths = [24, 24, 24, 96, 24, 24, 160, 24, 24, 24]  # tokens of each batch: two spikes
batches = [torch.randn(tokens, k) for tokens in lengths]
spikes = [kept_bytes(layer, inputs.requires_grad_()) for inputs in batches]  # as autograd keeps it

paged_layer, plain_layer = copy.deepcopy(layer), copy.deepcopy(layer)
adam = torch.optim.Adam(plain_layer.parameters(), lr=1e-2)
states = 2 * sum(p.nbytes for p in paged_layer.parameters())  # two moments for each number
memory = PagedMemory(room=max(spikes) + states // 4)
print(
    f"room {memory.room:,} bytes; states {states:,}; activations {min(spikes):,} to {max(spikes):,}"
)

timeline = []
for t, (inputs, spike) in enumerate(zip(batches, spikes, strict=True), 1):
    before = memory.moved
    memory.make_room(spike)  # the forward pass: states move out if they must
    timeline.append({"activations": spike, "states": memory.used})
    for one in (paged_layer, plain_layer):
        one.zero_grad()
        (one(inputs) - inputs @ target.T).square().mean().backward()
    paged_adam_step(memory, list(paged_layer.parameters()), t, 1e-2)  # activations are gone
    adam.step()
    timeline[-1] |= {"moved": memory.moved - before, "alone": spike + (states if t > 1 else 0)}

for mine_p, theirs_p in zip(paged_layer.parameters(), plain_layer.parameters(), strict=True):
    torch.testing.assert_close(mine_p, theirs_p, rtol=1e-4, atol=1e-5)
print(f"equal to torch.optim.Adam; {memory.moved:,} bytes moved. You guessed ({my_guess_paging}).")

# %% tags=["hidden-test"]
assert max(row["alone"] for row in timeline) > memory.room, "without paging it would not fit"
assert all(row["activations"] + row["states"] <= memory.room for row in timeline)
assert memory.moved > 0
try:
    PagedMemory(100).make_room(200)
    raise AssertionError("more than there is must not fit")
except MemoryError:
    pass

# %% tags=["hide-input"]
# @title Ten steps of memory, drawn
figure = plots.figure(
    "At the end of each forward pass: what is in fast memory",
    x="step (tokens)",
    y="kilobytes",
    barmode="stack",
)
names = [f"{t} ({tokens})" for t, tokens in enumerate(lengths, 1)]
for part, paint in {"activations": plots.colour(1), "states": plots.colour(0)}.items():
    words = "optimizer states that stayed" if part == "states" else part
    plots.bars(figure, names, [row[part] / 1e3 for row in timeline], paint, words)
alone = [row["alone"] / 1e3 for row in timeline]
look = {"dash": "dot", "width": 1.5}
plots.line(figure, names, alone, "without paging", "#888", line=look, mode="lines+markers")
figure.add_hline(y=memory.room / 1e3, line={"color": plots.COLOURS["ppo_low_beta"], "width": 2})
figure

# %% tags=["hide-input"]
# @title What a spike costs, here and on the 65B model
LINK = 20e9  # bytes per second between CPU and GPU, taken for PCIe 4.0 ×16 in practice

spike = estimate(large, plans["qlora"], seq=512, batch=8)
seconds = 2 * spike.paged / LINK
Markdown(
    "The red line is the room. The dotted curve crosses it at the spikes: out of memory. Paging pays "
    "with time instead, and only on such steps. For the 65B model at rank 64 the two moments of all "
    f"adapters take **{spike.paged / GB:.1f} GB**. If a long batch pushes all of them out and the "
    f"optimizer fetches them again, that is {2 * spike.paged / GB:.1f} GB over the bus: about "
    f"**{seconds:.1f} s** at {LINK / GB:g} GB/s (an assumption; nothing here has met that GPU). The "
    "calculator counts paged states apart for this reason: `Breakdown.paged`, not in `Breakdown.total`."
)

# %% [markdown]
# ## 8 · QLoRA against LoRA
#
# Time to train. `qlora.prepare` loads this tier's model in NF4 with double quantization, guards it,
# and puts a LoRA on every linear map. `LoRA` is the same on the full-precision model: the same
# starting values of $A$, the same batches in the same order, the same learning rate.

# %% tags=["hide-input"]
# @title The model in 4 bits
import warnings
from dataclasses import asdict, replace

from course_utils import RunLog, qlora, train_sft

warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries about each other
warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
RANK = 16
quantized, tokenizer = four_bit.qlora_model(lab, RANK)  # qlora.prepare(lab.choice, RANK, 2 * RANK)
for wanted in (True, False):
    some = [p for p in quantized.parameters() if p.requires_grad is wanted]
    kinds = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in some}))
    said = "trained" if wanted else "frozen (a uint8 holds two codes)"
    print(f"{said}: {sum(p.numel() for p in some):,} numbers in {kinds}")
print(f"the products are computed in {qlora.compute_dtype(lab.device, lab.choice.precision)}")

# %% [markdown]
# Is the layer inside it the one that we built? Give one of them a $B$ that is not zero, and let both
# compute.

# %%
if HAS_BNB and lab.tier.qlora_policy == lab.tier.policy:
    place, peft_layer = next((n, m) for n, m in quantized.named_modules() if hasattr(m, "lora_A"))
    own = QLoRALinear(base.get_submodule(place.removeprefix("base_model.model.")), rank=RANK)
    with torch.no_grad():
        peft_layer.lora_B["default"].weight.normal_(std=0.02)
        own.A.copy_(peft_layer.lora_A["default"].weight)
        own.B.copy_(peft_layer.lora_B["default"].weight)
        tokens = torch.randn(5, own.A.shape[1], device=own.A.device)
        torch.testing.assert_close(own(tokens), peft_layer(tokens), rtol=1e-2, atol=2e-2)
    print("PEFT's LoRA on bitsandbytes' layer, and our class: the same output")
else:
    print("note: nothing to compare here (no bitsandbytes, or another model than the lab's)")

# %% [markdown]
# **Your guess.** After training, how far is QLoRA's held-out loss from LoRA's?

# %%
my_guess_gap = 0.0  # nats per word, QLoRA minus LoRA


# %%
def train(lab, name, model, tokenizer, seed, optimizer=None, rate=2.0):
    """Trains in place; returns the model, its run, and the held-out loss before and after."""
    sft = lab.settings.sft
    settings = replace(
        sft,
        steps=min(60, sft.steps),
        batch_size=min(16, sft.batch_size),
        learning_rate=rate * sft.learning_rate,  # adapters like twice that of full fine-tuning
        optimizer=optimizer,
        seed=seed,
        save_every=0,
    )
    demonstrations = lab.demonstrations(n=min(1000, lab.tier.demonstrations))
    rows = held_out(lab, tokenizer)
    four_bit.same_start(model, seed)
    before = mean_loss(model, rows)
    where = lab.run_directory(f"qlora-{name}-{seed}")
    run = RunLog.create(where, asdict(settings), seed, overwrite=True)
    train_sft(model, tokenizer, demonstrations, settings, log=run, progress=False)
    return {"model": model, "run": run, "before": before, "after": mean_loss(model, rows)}


def train_both(lab, seed):
    paged = qlora.OPTIMIZER if HAS_BNB else None  # on a CPU there is nothing to page
    return {
        "LoRA": train(lab, "lora", *four_bit.lora_model(lab, RANK), seed),
        "QLoRA": train(lab, "qlora", *four_bit.qlora_model(lab, RANK), seed, paged),
    }


# %%
pair = train_both(lab, lab.seed)
for name, found in pair.items():
    print(f"{name:>5}: {found['before']:.4f} -> {found['after']:.4f}")
gap = pair["QLoRA"]["after"] - pair["LoRA"]["after"]
print(f"QLoRA minus LoRA: {gap:+.4f}; you guessed {my_guess_gap:+.4f}")

# %% tags=["hidden-test"]
assert len(pair["LoRA"]["run"].rows) == len(pair["QLoRA"]["run"].rows) > 0
trained_names = [n for n, p in pair["QLoRA"]["model"].named_parameters() if p.requires_grad]
assert all("lora" in n or n.endswith((".A", ".B")) for n in trained_names)
if not lab.tier.is_fast:
    assert pair["QLoRA"]["after"] < pair["QLoRA"]["before"]

# %% [markdown]
# One run proves little, so two more seeds; in the world, where the true quality of the answers is
# known as well, and with full fine-tuning beside them.

# %%
world = lab.world
seeds = [world.seed + i for i in range(1 if lab.tier.is_fast else 3)]
pairs = {
    seed: pair if lab is world and seed == lab.seed else train_both(world, seed) for seed in seeds
}
full = train(world, "full", world.base(), world.tokenizer, world.seed, rate=1.0)

for seed, found in pairs.items():
    lora, in_4_bits = found["LoRA"]["after"], found["QLoRA"]["after"]
    print(f"seed {seed}: LoRA {lora:.4f}, QLoRA {in_4_bits:.4f} ({in_4_bits - lora:+.4f})")
print(f"full fine-tuning, half the learning rate: {full['after']:.4f}")

# %% tags=["hidden-test"]
assert set(pairs) == set(seeds)
if not lab.tier.is_fast:
    assert all(one["after"] < one["before"] for found in pairs.values() for one in found.values())

# %%
first = pairs[world.seed]
comparison = world.compare(
    {
        "base model": world.base(),
        "full": full["model"],
        "LoRA": first["LoRA"]["model"],
        "QLoRA": first["QLoRA"]["model"],
    }
)
comparison

# %% tags=["hidden-test"]
assert list(comparison.frame().index) == ["base model", "full", "LoRA", "QLoRA"]

# %% [markdown]
# ## 9 · How coarse may the weights be?
#
# Four bits were harmless. **Your guess.** At how many bits does it begin to hurt, and does the LoRA
# repair it? We go down to three and two, with the class you built: `normal_levels(bits)` makes the
# book.

# %%
my_guess_bits = 3


# %%
def with_own_layers(model, levels, rank=RANK):
    """Puts a QLoRALinear in place of every linear map of a model, and freezes all else."""
    model.requires_grad_(False)
    for name in linear_weights(model):
        model.set_submodule(name, QLoRALinear(model.get_submodule(name), levels, rank, 2.0 * rank))
    return model


coarse = {}
for bits in (3, 2):
    own_model = with_own_layers(world.base(), normal_levels(bits))
    coarse[bits] = train(world, f"own-{bits}-bit", own_model, world.tokenizer, world.seed)
coarse[4] = first["QLoRA"]
coarse[32] = first["LoRA"]
for bits in sorted(coarse):
    found = coarse[bits]
    print(f"{bits:>2} bits: {found['before']:.4f} -> {found['after']:.4f}")

# %% tags=["hidden-test"]
assert sum(p.numel() for p in own_model.parameters() if p.requires_grad) == sum(
    RANK * (m.A.shape[1] + m.B.shape[0]) for m in own_model.modules() if isinstance(m, QLoRALinear)
)
assert coarse[2]["before"] > coarse[4]["before"]
if not lab.tier.is_fast:
    assert coarse[2]["after"] < coarse[2]["before"]

# %% tags=["hide-input"]
# @title Before and after, by bits
labels = [f"{bits} bits" for bits in sorted(coarse)]
figure = plots.figure(
    "The loss that rounding costs, and what the LoRA repairs", y="nats per word", barmode="group"
)
for when, paint in {"before": plots.COLOURS["base"], "after": plots.COLOURS["sft"]}.items():
    values = [coarse[bits][when] for bits in sorted(coarse)]
    plots.bars(figure, labels, values, paint, f"{when} training")
display(figure)

lost = {bits: coarse[bits]["after"] - coarse[32]["after"] for bits in (4, 3, 2)}
lost_before = {bits: coarse[bits]["before"] - coarse[32]["before"] for bits in (4, 3, 2)}
Markdown(
    "What rounding costs, in nats per word, before and after training: "
    + "; ".join(f"{b} bits **{lost_before[b]:+.3f} → {lost[b]:+.3f}**" for b in (4, 3, 2))
    + f". You guessed that it hurts from {my_guess_bits} bits on. What the LoRA cannot repair, "
    "it cannot express: the rounding error of a matrix has full rank, a LoRA has rank "
    f"{RANK}. But it need not repair the weights, only what the task sees of them."
)

# %% [markdown]
# ## 10 · On a T4: fp16, not bf16
#
# The codes are for keeping; the *product* is computed in 16 bits on a GPU. Which 16? Both formats
# have two bytes and spend them differently:

# %%
numbers = {"a small gradient": 3e-9, "a large activation": 7e4, "something fine": 1 + 1 / 512}
rows = []
for kind in (torch.float32, torch.bfloat16, torch.float16):
    said = {"type": str(kind).removeprefix("torch."), "largest": f"{torch.finfo(kind).max:.2g}"}
    said |= {what: f"{torch.tensor(v, dtype=kind).item():.9g}" for what, v in numbers.items()}
    own_product = (x.detach().to(kind) @ weight.to(kind).T).float()
    exact = x.detach() @ weight.T
    error = float((own_product - exact).norm() / exact.norm())
    rows.append(said | {"error of the product": f"{error:.1e}"})
pd.DataFrame(rows).style.hide(axis="index")

# %% tags=["hidden-test"]
assert torch.tensor(3e-9, dtype=torch.float16) == 0
assert torch.tensor(7e4, dtype=torch.float16).isinf()
assert torch.tensor(3e-9, dtype=torch.bfloat16) > 0

# %% [markdown]
# bf16 has the range of fp32 and few digits; fp16 has more digits, but loses small gradients and
# overflows. Training prefers range, so bf16 is the usual choice, **where the GPU has it**: Ampere
# (A100), Ada (L4), Hopper (H100). A **T4** is Turing; it has no bf16 arithmetic, torch only imitates it,
# slowly. So there:
#
# * `bnb_4bit_compute_dtype=float16`: the products in fp16;
# * the loss is multiplied by a large number before the backward pass and the gradients divided by it
#   after (*loss scaling*), so that small ones survive;
# * $A$, $B$, norms and the embedding stay in **fp32**. Trained weights in fp16 end in an error
#   (“Attempting to unscale FP16 gradients”), and would lose most updates anyway.
#
# The course decides this for you: `four_bit_options` is what `load_policy(…, quantization="nf4")`
# hands to transformers.

# %%
for gpu, precision in {"a T4": "fp16", "an L4, A100 or H100": "bf16"}.items():
    print(f"{gpu:>20}: products in {qlora.compute_dtype('cuda', precision)}", end="")
    if HAS_BNB:
        options = qlora.four_bit_options(device="cuda", precision=precision)
        print(f", what is not 4-bit in {options['dtype']}", end="")
    print()
print(f"{'a CPU':>20}: products in {qlora.compute_dtype('cpu')}")

# %% [markdown]
# ## 11 · Merging, both ways
#
# LoRA's promise was that $W' = W + \Delta W$ costs nothing at inference. In 4 bits there are two ways:
#
# * **dequantize, then merge**: $W' = \hat W + \Delta W$ in 16 or 32 bits. Exact, and large again.
# * **merge, then quantize again**: small, but $W'$ is rounded once more.
#
# **Your guess.** After the second way, how large is the new rounding error, compared with the update
# $\Delta W$ itself?

# %%
my_guess_rounding = 0.1  # error / update, root mean squares

# %%
# by hand, on the layer that was trained in section 7
with torch.no_grad():
    update = paged_layer.scaling * paged_layer.B @ paged_layer.A  # ΔW, (d, k)
    wanted = restore(paged_layer.q) + update  # W' = Ŵ + ΔW
    again = restore(store(wanted, nf4))
print(f"the update   {update.square().mean().sqrt():.2e}")
print(f"the rounding {(again - wanted).square().mean().sqrt():.2e}")

# %%
# the trained model: merge_qlora measures what it changed
merged = {}
if HAS_BNB:
    for how in ("dequantize", "requantize"):
        made = qlora.merge_qlora(pair["QLoRA"]["model"], how)
        merged[how] = made
        loss = requantized_loss = mean_loss(made.model, held_out(lab, tokenizer))
        print(f"{how:>10}: {made.error}")
        print(f"            held-out loss {loss:.4f}, unmerged {pair['QLoRA']['after']:.4f}")
else:
    print("note: merge_qlora is for bitsandbytes' layers; the cell above shows both ways by hand")

# %% tags=["hidden-test"]
assert torch.equal(restore(paged_layer.q), restore(layer.q)), "training left the base alone"
if HAS_BNB:
    exact, coarser = (merged[how].error for how in ("dequantize", "requantize"))
    assert exact.weights < 1e-6
    assert exact.logits < 1e-3
    assert coarser.weights > 100 * exact.weights

# %% tags=["hide-input"]
# @title In words
if HAS_BNB:
    told = merged["requantize"].error
    ratio = told.weights / told.update if told.update else float("inf")
    learnt = pair["QLoRA"]["before"] - pair["QLoRA"]["after"]
    rise = requantized_loss - pair["QLoRA"]["after"]
    display(
        Markdown(
            f"The second rounding is **{ratio:.2f} times** the update (you guessed "
            f"{my_guess_rounding:g}): what was learned is small beside the gap between two levels. The "
            f"loss rises by {rise:.4f} of the {learnt:.4f} nats that training had gained"
            + (
                ": less than the ratio suggests, since rounding errors point in all directions and "
                "largely cancel, while the update points in one. "
                if rise < ratio * learnt
                else ". "
            )
            + "To serve in 4 bits keep the adapter apart; to merge, dequantize first."
        )
    )

# %% [markdown] slides="20 22"
# ## 12 · Does 65B fit on 48 GB?
#
# Now the calculator. It adds up every term at the worst moment of a training step. Here are the three
# inventions one after another, for 65B with rank 64 and eight rows of 512 tokens.

# %% tags=["hide-input"]
# @title Three inventions, one after another
from course_utils.memory import GPUS, fits

CARD = "A6000"  # 48 GB on the box
room = GPUS[CARD] * 2**30
fat = estimate(large, replace(plans["qlora"], double_quant=False), seq=512, batch=8)
totals = {  # without paging the optimizer's states stay on the GPU
    "LoRA, 16-bit base": estimate(large, plans["lora"], seq=512, batch=8).total,
    "+ NF4": fat.total + fat.paged,
    "+ double quantization": spike.total + spike.paged,
    "+ paged optimizer": spike.total,
}
figure = plots.figure("65B, rank 64, 8 × 512 tokens", y="GB on the GPU")
sizes = [total / GB for total in totals.values()]
tones = [plots.COLOURS["base"], *[plots.COLOURS["sft"]] * 3]
written = {"text": [f"{size:.1f}" for size in sizes], "textposition": "auto"}
plots.bars(figure, list(totals), sizes, tones, **written)
red = {"color": plots.COLOURS["ppo_low_beta"], "width": 2}
figure.add_hline(y=room / GB, line=red, annotation_text=f"what a {CARD} has")
display(figure)

small_step = estimate(large, recipe("qlora"), seq=512, batch=1)  # rank 16
fit = [name for name, total in totals.items() if total <= room]
gains = [a - b for a, b in zip(sizes, sizes[1:], strict=False)]
Markdown(
    f"A card of “48 GB” (2³⁰ bytes each) leaves {room / GB:.1f} GB (of 10⁹). Of these four it holds: "
    f"**{', '.join(fit) or 'none'}**. NF4 saves {gains[0]:.0f} GB, double quantization "
    f"{gains[1]:.1f}, paging {gains[2]:.1f}. With rank 16 and one row at a time "
    f"{small_step.total / GB:.1f} GB are enough, with room to spare."
)

# %% tags=["hidden-test"]
assert list(totals.values()) == sorted(totals.values(), reverse=True)
assert fits(small_step, [CARD])[CARD]

# %% tags=["hide-input"]
# @title Will it fit? The calculator with sliders (T4, L4, A100, H100)
from course_utils.inspectors import MemoryExplorer

calculator = MemoryExplorer()
calculator

# %% tags=["hidden-test"]
assert calculator.frame()["total"] == small_step.total

# %% [markdown] slides="21"
# Small cards are why this made history. The lecture's applications are **domain adaptation**,
# **personalisation** and quick **prototyping** with few resources, and its examples came out of this
# squeeze: **Alpaca** and **Vicuna** fine-tuned LLaMA 7B and 13B (all weights, on large cards),
# **Guanaco** is QLoRA's own assistant, up to 65B, and **Mistral** 7B is what many started from later.
# For each, the memory of one step with 512 tokens, and the smallest card that carries it:

# %% tags=["hide-input"]
# @title Which card for which model?
FAMILY = {
    "qwen3-1.7b": "this lesson on tier small",
    "llama-7b": "Alpaca, Vicuna, Guanaco",
    "mistral-7b": "Mistral and its descendants",
    "llama-13b": "Vicuna, Guanaco",
    "llama-65b": "Guanaco",
}
WAYS = {"all weights": "full", "all in bf16": "full-bf16", "LoRA": "lora", "QLoRA": "qlora"}


def smallest_card(model, way):
    found = estimate(find_shape(model, online=False), recipe(way), seq=512, batch=1)
    carrying = (
        card for card in ("T4", "L4", "A100-40", "A6000", "H100") if fits(found, [card])[card]
    )
    return f"{found.total / GB:,.0f} GB · {next(carrying, 'no single card')}"


cards = pd.DataFrame(
    {way: {model: smallest_card(model, name) for model in FAMILY} for way, name in WAYS.items()}
)
cards.insert(0, "base of", FAMILY)
cards

# %% tags=["hidden-test"]
assert len(cards) == len(FAMILY)
assert "T4" in cards.loc["llama-7b", "QLoRA"]

# %% [markdown]
# A calculator is only as good as its last check. So we *measure* one step of a model that is small
# enough for any machine, by the allocator's own account.

# %% tags=["hide-input"]
# @title Calculated against measured, on a CPU
from course_utils.memory.cases import LLAMA
from course_utils.memory.practice import measure

small_shape = replace(LLAMA, layers=3, vocabulary=4000)
plan = recipe("qlora", optimizer="adamw-8bit") if HAS_BNB else recipe("lora")
plan = replace(plan, checkpointing=False)
case = {"seq": 64, "batch": 2, "completion": 32}
seen = measure(small_shape, plan, **case)
calculated = estimate(small_shape, plan, device="cpu", **case).peak
off = calculated / seen - 1
print(f"{small_shape.parameters / 1e6:.1f} million parameters, recipe {plan.name}:", end=" ")
print(f"measured {seen / 1e6:.2f} MB, calculated {calculated / 1e6:.2f} MB ({off:+.1%})")

# %% tags=["hidden-test"]
assert abs(off) < 0.05

# %%
lab.claim(
    "C14",
    f"calculated, not run: {small_step.total / GB:.1f} GB at rank 16 with one row of 512 tokens; at "
    f"rank 64 with eight rows {spike.total / GB:.1f} GB and {spike.paged / GB:.1f} GB paged, of "
    f"{room / GB:.1f} GB. The calculator is off by {off:+.1%} where it was measured",
    holds=small_step.total <= room,
    total_gb=small_step.total / GB,
    card_gb=room / GB,
    calculator_error=off,
)

# %% tags=["hide-input"]
# @title NF4, double quantization, paged optimizers, no significant loss?
gaps = [found["QLoRA"]["after"] - found["LoRA"]["after"] for found in pairs.values()]
lora_losses = [found["LoRA"]["after"] for found in pairs.values()]
learnt = first["LoRA"]["before"] - first["LoRA"]["after"]
gap, spread = sum(gaps) / len(gaps), max(lora_losses) - min(lora_losses)
equal = abs(gap) <= max(spread, 0.01 * learnt)  # within LoRA's own spread, or 1 % of what it learnt
wins = comparison.winner("QLoRA", "LoRA")
known = "no loss in this small world; on SmolLM2-135M after 80 steps there was one (lesson 07)"
bits = 8 * size / weight.numel()
lab.claim(
    "C15",
    f"NF4 has the least mean error on {firsts.count('NF4')} of {len(firsts)} sets of "
    f"weights; {bits:.3f} bits a weight instead of 4.5; QLoRA's held-out loss minus LoRA's is "
    f"{gap:+.4f} nats ({len(gaps)} seeds, over which LoRA itself spreads by {spread:.4f}); its answer "
    f"is the better one on {wins.rate:.0%} of the prompts",
    holds=None if equal and nf4_is_best else False,
    condition=known if equal and nf4_is_best else "",
    gap=gap,
    spread=spread,
    bits=bits,
)

# %% tags=["hidden-test"]
from course_utils.claims import findings

assert {"C14", "C15"} <= {one.id for one in findings(lab)}
if not lab.tier.is_fast:
    assert max(abs(one) for one in gaps) < 0.05, "equal within noise in the world"

# %% [markdown]
# ## 13 · What broke, and why
#
# **On a real model QLoRA was behind.** On SmolLM2-135M, 80 steps, the course measured a held-out
# loss of 1.405, 1.387, 1.441 for LoRA and 1.482, 1.445, 1.507 for QLoRA: a gap of 0.06 to 0.08 nats
# in each of three seeds, which is *not* noise. Before training it was 0.198, so it was closing, and
# 80 steps are few; and those weights had been rounded to 4 bits once before. Still: “no significant
# loss” was shown for long trainings of large models, and is nothing to take for granted for yours
# (`docs/peft.md`; `python benchmarks/quantization.py --train smollm2 --steps 80`).
#
# **The library that quietly spoils its own weights.** On CPUs with AVX512-BF16, bitsandbytes 0.50
# repacks a 4-bit layer *in place* the first time that it is used in evaluation mode. From then on its
# gradients are wrong or missing and dequantizing it gives garbage, all without an error (recent
# versions of torch at least warn): a training with an evaluation in between quietly ends worse, and a
# merge is ruined. Here it is, switched on by force where this CPU would not do it by itself.

# %%
if HAS_BNB and "AVX512" in torch.backends.cpu.get_cpu_capability():

    def gradient_through(layer):
        inputs = torch.ones(4, 128, requires_grad=True)
        layer.train()(inputs).square().sum().backward()
        return torch.zeros(4, 128) if inputs.grad is None else inputs.grad.clone()

    outcome = {}
    for guarded in (False, True):
        torch.manual_seed(0)
        victim = bnb.nn.Linear4bit(128, 128, bias=False, quant_type="nf4").to("cpu")
        victim.support_avx512bf16_for_cpu = True  # what bitsandbytes sets on such a CPU
        if guarded:
            qlora.guard_cpu(victim)
        healthy, before = gradient_through(victim), qlora.weight_of(victim)
        with torch.no_grad():
            victim.eval()(torch.ones(4, 128))  # one look in evaluation mode
        changes = [
            (gradient_through(victim) - healthy).norm() / healthy.norm(),
            (qlora.weight_of(victim) - before).norm() / before.norm(),
        ]
        outcome[guarded] = [float(change) for change in changes]
        print(f"{'with guard_cpu' if guarded else 'unguarded':>14}: after one evaluation", end=" ")
        print("the gradient is off by {:.0%}, the weight by {:.0%}".format(*outcome[guarded]))
else:
    outcome = {True: [0.0, 0.0]}
    print("note: no bitsandbytes, or a CPU of another kind: nothing to spoil here")

# %% tags=["hidden-test"]
assert outcome[True] == [0, 0]

# %% [markdown]
# `load_policy` and `qlora.prepare` call `guard_cpu` for you; call it yourself right after loading a
# 4-bit model in any other way. The lesson behind it: test a gradient, not only a loss.
#
# **A merge that rounds the learning away.** PEFT's `merge_and_unload` on a 4-bit model is the second
# way of section 11, and prints no more than a warning.
#
# **Nonsense in, words out.** Try `course.quantize(weight, "nf5")`, a block of 0, weights with a `nan`,
# or `qlora.prepare(lab.choice, rank=0)`: each says what was wrong and what to do.

# %% [markdown]
# ## 14 · Check yourself
#
# <details>
# <summary><b>1.</b> Why does NF4 have 8 levels above zero and 7 below, instead of 8 and 8?</summary>
#
# Sixteen codes, and one of them must be an exact zero: padding and pruned weights have to stay zero.
# With fifteen left, one side gets one more. Exactly symmetric books (such as INT4 here) leave one
# code unused instead.
# </details>
#
# <details>
# <summary><b>2.</b> A friend writes <code>x @ dequantize(q).T</code> in a model with 80 layers. The results are right. What is wrong?</summary>
#
# Autograd keeps each layer's dequantized weight until its backward pass, so at the end of the forward
# pass the whole model lies in memory in full precision. The product needs a backward pass of its own
# that unpacks the weight again (or checkpointing, which also computes it again).
# </details>
#
# <details>
# <summary><b>3.</b> Why are the optimizer's states paged, and not the activations or the weights?</summary>
#
# States are touched once per step, at its end, when the activations are already gone: moving them
# costs one trip each way, and only when a spike needs the room. Weights are needed in every layer,
# forward and backward; activations are what the spike consists of. (There are schemes for these as
# well, and they cost more time.)
# </details>
#
# ## 15 · Read on
#
# * Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, [QLoRA: efficient finetuning of quantized LLMs](https://arxiv.org/abs/2305.14314) (NF4 in §3 and appendix E; Guanaco)
# * Dettmers et al. 2022, [LLM.int8()](https://arxiv.org/abs/2208.07339) and [8-bit optimizers via block-wise quantization](https://arxiv.org/abs/2110.02861)
# * Yoshida 2023, [NF4 isn't information theoretically optimal (and that's good)](https://arxiv.org/abs/2306.06965)
# * Hu et al. 2021, [LoRA](https://arxiv.org/abs/2106.09685); Li et al. 2023, [LoftQ](https://arxiv.org/abs/2310.08659) (a LoRA that starts by making up for the rounding)
# * Taori et al. 2023, [Alpaca](https://crfm.stanford.edu/2023/03/13/alpaca.html); Chiang et al. 2023, [Vicuna](https://lmsys.org/blog/2023-03-30-vicuna/); Jiang et al. 2023, [Mistral 7B](https://arxiv.org/abs/2310.06825)
#
# ## What comes next
#
# You can now align a model on the hardware you have. Lesson 08 asks what happens when the method is
# right and something else is wrong: the reward, the labels, the rank, the format.
#
# **Exercises:** [exercises/07_qlora.ipynb](../exercises/07_qlora.ipynb): the NF4 code book, blockwise
# quantization with a ragged tail, double quantization and its bits, the memory of a recipe, and what a
# merge loses.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
