# %% [markdown] seconds=80
# # 06 · LoRA
# ## How few numbers can hold a new skill?
#
# Fine-tuning changes weights, all of them, and each new skill is a new copy of the model. LoRA,
# *low-rank adaptation*, leaves the weights alone and learns a small change beside them. In this
# notebook you will
#
# 1. take a finished fine-tuning apart and count the directions in which it moved,
# 2. build LoRA in fifteen lines and get the library's logits and gradients,
# 3. train with it, and set it beside full fine-tuning,
# 4. count parameters from a toy to 65 billion, and say when the lecture's 0.1 to 1% is right,
# 5. merge, swap and mix adapters, and find out what survives the mixing.
#
# Tier tiny: about 80 s on two cores that have other work too (15 s more if no lesson has trained the SFT model yet); on a T4 with tier
# small: not measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

import copy
import dataclasses
import math
import statistics
import warnings

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch import nn

from course_utils import Lab, RunLog, plots, train_sft

warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries about each other

lab = Lab.open()
# This lesson adds to whole weights; those in 4 bits have a lesson of their own.
lab = lab.world if lab.tier.quantized else lab
world = lab.world  # where the quality of every answer is known; on tier tiny the same as `lab`
fast = lab.tier.is_fast
lab

# %% [markdown] slides="18"
# ## 1 · The claim
#
# A layer of a language model multiplies by a weight $W \in \mathbb{R}^{d \times k}$. Full fine-tuning
# replaces it by
#
# $$W' = W + \Delta W$$
#
# where $\Delta W$ has as many numbers as $W$. The lecture says: **use low-rank matrices instead of full
# weights**,
#
# $$\Delta W = A B^\top, \qquad A \in \mathbb{R}^{d \times r},\quad B \in \mathbb{R}^{k \times r},\quad r \ll \min(d, k)$$
#
# and train $A$ and $B$ only (Hu et al. 2021). Here is the figure, for one weight of a 7B model.

# %%
from course_utils.pictures.lora import lora_beside_full

lora_beside_full(d=4096, k=4096, rank=16)

# %% [markdown]
# The picture already uses the library's names for the two matrices; section 4 puts the lecture's beside
# them. First the question behind the picture: why should a change of sixteen million numbers fit into
# so few?
#
# ## 2 · In how many directions does fine-tuning move?
#
# Let us look at a change that was *free* to be anything. `lab.sft()` is the base model after full
# supervised fine-tuning, so $\Delta W = W_{\text{sft}} - W_{\text{base}}$. The singular value
# decomposition takes a matrix apart into directions,
#
# $$\Delta W = \sum_i \sigma_i\, u_i v_i^\top, \qquad \sigma_1 \ge \sigma_2 \ge \dots \ge 0$$
#
# and no matrix of rank $r$ is nearer to $\Delta W$ than the sum of its first $r$ terms (Eckart and
# Young 1936). They hold the share $\sum_{i \le r}\sigma_i^2 / \sum_i \sigma_i^2$ of its *energy*.
#
# **Your guess.** A weight of the model in the middle layer: how many percent of all its directions hold
# 90% of the energy of $\Delta W$? In a matrix of random numbers it is about half of them.

# %%
my_guess_directions = 50  # percent

# %%
base, sft = lab.base(), lab.sft()

middle = base.config.num_hidden_layers // 2
deltas = {
    name.split(f"layers.{middle}.")[1].removesuffix(".weight"): (weight - base.get_parameter(name))
    for name, weight in sft.named_parameters()
    if f"layers.{middle}." in name and weight.dim() == 2
}
energy = {}
for name, delta in deltas.items():
    sigma = torch.linalg.svdvals(delta.detach().float().cpu())  # (min(d, k),)
    energy[name] = (sigma**2).cumsum(0) / (sigma**2).sum()
noise = torch.linalg.svdvals(torch.randn(deltas["self_attn.q_proj"].shape))
random_energy = (noise**2).cumsum(0) / (noise**2).sum()

needed = {name: int((shares < 0.9).sum()) + 1 for name, shares in energy.items()}
share = {name: needed[name] / len(energy[name]) for name in needed}
noise_needs = (int((random_energy < 0.9).sum()) + 1) / len(random_energy)
for name in needed:
    print(f"{name:<20}{needed[name]:>5} of {len(energy[name])} directions ({share[name]:.0%})")

# %% tags=["hidden-test"]
from course_utils.adapters import rank_for_energy, svd_energy

assert len(deltas) >= 4
for name, delta in deltas.items():
    theirs = svd_energy(delta.cpu())
    torch.testing.assert_close(energy[name].double(), theirs, rtol=1e-4, atol=1e-4)
    assert abs(rank_for_energy(delta.cpu(), 0.9) - needed[name]) <= 1
if not fast:
    assert statistics.median(share.values()) < noise_needs

# %% tags=["hide-input"]
# @title The energy, drawn
figure = plots.figure(
    f"Layer {middle}: energy of ΔW in its first r directions", x="r", y="share of the energy"
)
for i, (name, shares) in enumerate(energy.items()):
    plots.line(figure, range(1, len(shares) + 1), shares.tolist(), name, plots.colour(i))
plots.line(
    figure,
    range(1, len(random_energy) + 1),
    random_energy.tolist(),
    "random matrix",
    plots.COLOURS["base"],
    line={"dash": "dot"},
)
display(figure.update_layout(xaxis_type="log"))
middling = statistics.median(share.values())
Markdown(
    f"In the median weight **{middling:.0%}** of the directions hold 90% of the energy (a random matrix "
    f"needs {noise_needs:.0%}; you guessed {my_guess_directions}%). "
    + (
        "The change is lopsided, but by this count not of low rank: dozens of directions are in use."
        if middling > 0.1
        else "The change lives in a few directions."
    )
)

# %% [markdown]
# Energy counts numbers, though, not behaviour. So cut the change for real: keep the best rank-$r$ part of
# *every* weight's change (the embedding's too), put it on the base model, and measure the loss on
# held-out demonstrations. We do this in the world, whose model is small enough to be cut many times.
#
# **Your guess.** At $r = 0$ none of the change is there, at full rank all of it. Which $r$ gives half
# of what fine-tuning gained?

# %%
my_guess_half = 16

# %%
from course_utils.experiments.loop import mean_loss, padded, train_step
from course_utils.training.tokenise import demonstration_rows


def held_rows(lab, n):
    """Held-out demonstrations as token ids; only the answer's tokens have labels."""
    longest = lab.settings.sft.max_length
    rows = lab.demonstrations("heldout", n)
    return demonstration_rows(rows, lab.tokenizer, longest, "held-out demonstrations")


def cut(start, end, r):
    """`start` plus the best rank-r part of every matrix's way to `end`."""
    model = copy.deepcopy(start)
    for name, weight in model.named_parameters():
        change = end.get_parameter(name).detach() - weight.detach()
        if change.dim() == 2:
            U, sigma, Vt = torch.linalg.svd(change, full_matrices=False)
            change = (U[:, :r] * sigma[:r]) @ Vt[:r]  # (d, r) (r, k)
        weight.data += change
    return model


small_base, small_sft = world.base().cpu(), world.sft().cpu()
held = held_rows(world, 24 if fast else 200)
cut_ranks = [0, 1, 8, 128] if fast else [0, 1, 2, 4, 8, 16, 32, 128]
cut_loss = {r: mean_loss(cut(small_base, small_sft, r), held) for r in cut_ranks}
full_loss = mean_loss(small_sft, held)
gained = {r: (cut_loss[0] - loss) / (cut_loss[0] - full_loss) for r, loss in cut_loss.items()}
pd.DataFrame({"loss": cut_loss, "share of the gain": gained}).rename_axis("rank kept").style.format(
    {"loss": "{:.4f}", "share of the gain": "{:.0%}"}
)

# %% tags=["hidden-test"]
assert abs(cut_loss[128] - full_loss) < 1e-3  # all 128 directions: the whole change
if not fast:
    assert cut_loss[0] > cut_loss[1] > cut_loss[8] > full_loss - 0.01

# %% tags=["hide-input"]
# @title In words
half = next((r for r in cut_ranks if gained[r] >= 0.5), cut_ranks[-1])
Markdown(
    f"Rank {half} is enough for half of the gain (you guessed {my_guess_half}), and rank 8 gives "
    f"**{gained[8]:.0%}** of it. A few directions of each change carry most of what was *learnt*, whatever "
    "the rest of its energy is: that is the observation LoRA rests on. (Aghajanyan et al. 2020 had found "
    "it first: large models can be fine-tuned within a few hundred directions.)"
)

# %% [markdown]
# ## 3 · LoRA from scratch
#
# (Lesson 01 had a first look; here is the whole of it.) If the useful change has low rank, never make the
# full one. Write it as a product from the beginning:
#
# $$W' x = W x + \tfrac{\alpha}{r}\, B A\, x, \qquad A \in \mathbb{R}^{r \times k},\quad B \in \mathbb{R}^{d \times r}$$
#
# $W$ is frozen; $A$ squeezes the input into $r$ numbers, $B$ spreads them out again. ($\alpha$ is a fixed
# factor, its reason comes in section 6.)


# %%
class LoRA(nn.Module):
    """A frozen linear map and its low-rank change."""

    def __init__(self, base, r, alpha):
        super().__init__()
        d, k = base.weight.shape
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(r, k).uniform_(-1, 1) / math.sqrt(k))  # (R, k)
        self.B = nn.Parameter(torch.zeros(d, r))  # (d, R)
        self.scaling = alpha / r

    def forward(self, x):  # (..., k) -> (..., d)
        narrow = x @ self.A.T  # (..., R): the (d, k) matrix B A is never made
        return self.base(x) + self.scaling * (narrow @ self.B.T)


layer = LoRA(nn.Linear(6, 4, bias=False), r=2, alpha=4)
x = torch.randn(3, 6)
print("nothing has changed yet:", torch.equal(layer(x), layer.base(x)))
print("trained", layer.A.numel() + layer.B.numel(), "of", layer.base.weight.numel(), "numbers")

# %% [markdown]
# In a toy of 4 × 6 rank 2 saves little: $r(d + k)$ numbers against $dk$. The saving comes with size.
#
# Into a whole model it goes by replacing modules: every linear map in the layers gets a LoRA, and all
# else is frozen.


# %%
def put_lora(model, r, alpha):
    """Replaces every linear map of the layers by a LoRA on it; in place."""
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LoRA(module, r, alpha))
    return model


def loras(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRA)}


torch.manual_seed(0)
mine = put_lora(copy.deepcopy(small_base), r=8, alpha=16)
trained = sum(p.numel() for p in mine.parameters() if p.requires_grad)
print(f"{len(loras(mine))} maps, {trained:,} trained numbers of {small_base.num_parameters():,}")

# %% [markdown]
# ### The library gives the same numbers
#
# PEFT does the same to a model with `get_peft_model`. We copy PEFT's $A$ into ours, give both the same
# non-zero $B$ (with $B = 0$ any mistake would hide), and compare the logits *and the gradients*.

# %%
from peft import LoraConfig, get_peft_model

config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
theirs = get_peft_model(copy.deepcopy(small_base), config)

for path, ours in loras(mine).items():
    layer = theirs.get_base_model().get_submodule(path)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    B.data.normal_(std=0.02)
    ours.A.data.copy_(A.data)
    ours.B.data.copy_(B.data)

ids, labels = batch = padded(held[:8])  # (B, T) each; labels are -100 on the prompt
with torch.no_grad():
    plain = small_base(input_ids=ids).logits  # (B, T, V)
logits = {}
for name, model in {"mine": mine, "PEFT": theirs}.items():
    logits[name] = model(input_ids=ids).logits  # (B, T, V)
    F.cross_entropy(logits[name][:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()

torch.testing.assert_close(logits["mine"], logits["PEFT"])
for path, ours in loras(mine).items():
    layer = theirs.get_base_model().get_submodule(path)
    torch.testing.assert_close(ours.A.grad, layer.lora_A["default"].weight.grad)
    torch.testing.assert_close(ours.B.grad, layer.lora_B["default"].weight.grad)
print("same logits, same gradients, in all", len(loras(mine)), "maps")

# %% tags=["hidden-test"]
assert (logits["mine"] - plain).abs().max() > 0.01, "the adapter should do something here"
assert sum(p.grad is not None for p in mine.parameters()) == 2 * len(loras(mine))
assert trained == sum(p.numel() for p in theirs.parameters() if p.requires_grad)

# %% [markdown] slides="18"
# ## 4 · Whose A, whose B?
#
# The lecture writes $\Delta W = A B^\top$, the paper and PEFT write $\Delta W = B A$. It is the same product;
# the names are swapped, and one factor is stored transposed:
#
# | | stands at the output | meets the input | product |
# |---|---|---|---|
# | lecture | $A \in \mathbb{R}^{d \times r}$ | $B \in \mathbb{R}^{k \times r}$ | $A B^\top$ |
# | paper, PEFT | $B \in \mathbb{R}^{d \times r}$ | $A \in \mathbb{R}^{r \times k}$ | $B A$ |
#
# Whatever the names: the factor that **meets the input** starts random, the one **at the output** starts
# at zero. From here on we use PEFT's names, as every adapter file does.

# %%
A_peft, B_peft = torch.randn(2, 6), torch.randn(4, 2)  # (R, k), (d, R)
A_lecture, B_lecture = B_peft, A_peft.T  # (d, R), (k, R)
torch.testing.assert_close(A_lecture @ B_lecture.T, B_peft @ A_peft)
print("A Bᵀ of the lecture equals B A of PEFT, up to the names")

# %% tags=["hidden-test"]
assert A_lecture.shape == (4, 2)
assert B_lecture.shape == (6, 2)

# %% [markdown]
# ## 5 · Why does B start at zero?
#
# Write $G = \partial \mathcal{L} / \partial (W'x)$ for what arrives from above. Then, for one input $x$,
#
# $$\frac{\partial \mathcal{L}}{\partial B} = \tfrac{\alpha}{r}\, G\, (A x)^\top, \qquad \frac{\partial \mathcal{L}}{\partial A} = \tfrac{\alpha}{r}\, B^\top G\, x^\top$$
#
# Each factor's gradient passes through the *other* factor.
#
# **Your guess.** Four ways to start: only $B$ zero, only $A$ zero, both random, both zero. Which of them
# never learn anything? Which one is worse than the base model before the first step?

# %%
my_guess_stuck = "…"
my_guess_broken = "…"

# %%
begin_loss = mean_loss(small_base, held[:64])
starts = {}
for name, a, b in (
    ("A random, B zero", 1, 0),
    ("A zero, B random", 0, 1),
    ("both random", 1, 1),
    ("both zero", 0, 0),
):
    torch.manual_seed(0)
    model = put_lora(copy.deepcopy(small_base), r=8, alpha=16)
    for ours in loras(model).values():
        ours.B.data.uniform_(-1, 1).div_(math.sqrt(8))  # as A: ± 1/√(its inputs)
        ours.A.data *= a
        ours.B.data *= b
    out = model(input_ids=ids).logits
    F.cross_entropy(out[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
    norm = {
        which: math.sqrt(
            sum(float(getattr(m, which).grad.norm()) ** 2 for m in loras(model).values())
        )
        for which in ("A", "B")
    }
    starts[name] = {
        "loss at the start": mean_loss(model, held[:64]),
        "gradient of A": norm["A"],
        "gradient of B": norm["B"],
    }
print(f"the base model's loss is {begin_loss:.3f}")
pd.DataFrame(starts).T.style.format("{:.3f}")

# %% tags=["hidden-test"]
assert starts["A random, B zero"]["gradient of A"] == 0
assert starts["A random, B zero"]["gradient of B"] > 0
assert starts["both zero"]["gradient of A"] == starts["both zero"]["gradient of B"] == 0
for name in ("A random, B zero", "A zero, B random", "both zero"):
    assert abs(starts[name]["loss at the start"] - begin_loss) < 1e-4
assert starts["both random"]["loss at the start"] > begin_loss + 0.5

# %% [markdown]
# * **Both zero** is a trap: neither gradient ever gets through, and the model stays what it is, silently.
# * **Both random** adds a random matrix to every weight: skill of the base model is lost before the first
#   step, and training must first win it back.
# * **One of them zero** starts exactly at the base model. In the first step only the zero factor moves
#   (look at the zeros in the table), from the second step on both do. That $B$ is the zero one is the
#   custom; Hayou et al. 2024 found that it also learns better, since it bears larger learning rates.
#
# ## 6 · Why α/r?
#
# Adam makes every number of $B$ move by about one learning rate in the first step, whatever the rank.
# $BAx$ is a sum of $r$ such terms, and they all point the way the gradient wants, so they add up: **the
# same learning rate moves a model of rank 64 much further than one of rank 2.** Dividing by $r$ makes up
# for it, and the learning rate found at one rank can be kept at another. That is all $\alpha/r$ is for.
#
# **Your guess.** From rank 2 to rank 128, by what factor does the first step grow if we do *not* divide?

# %%
my_guess_growth = 8


# %%
def first_step(r, scaling):
    """How far one Adam step at learning rate 1e-3 moves the logits (root mean square)."""
    torch.manual_seed(0)
    model = put_lora(copy.deepcopy(small_base), r, alpha=1)
    for ours in loras(model).values():
        ours.scaling = scaling
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    train_step(model, optimizer, batch)
    with torch.no_grad():
        return float((model(input_ids=ids).logits - plain).square().mean().sqrt())


step_ranks = (2, 128) if fast else (2, 8, 32, 128)
rules = {"1": lambda r: 1.0, "8 / r": lambda r: 8 / r, "8 / √r": lambda r: 8 / math.sqrt(r)}
moved = {name: [first_step(r, rule(r)) for r in step_ranks] for name, rule in rules.items()}

# %% tags=["hidden-test"]
growth = {name: values[-1] / values[0] for name, values in moved.items()}
assert growth["1"] > growth["8 / √r"] > growth["8 / r"]
assert 0.2 < growth["8 / r"] < 5

# %% tags=["hide-input"]
# @title The first step, drawn
figure = plots.figure("How far the first step goes", x="rank", y="change of the logits (RMS)")
for i, (name, values) in enumerate(moved.items()):
    plots.line(
        figure, step_ranks, values, f"scaled by {name}", plots.colour(i), mode="lines+markers"
    )
display(figure.update_layout(xaxis_type="log", yaxis_type="log"))
grown = {name: values[-1] / values[0] for name, values in moved.items()}
Markdown(
    f"From rank 2 to 128 the step grows **{grown['1']:.0f}-fold** without division (you guessed "
    f"{my_guess_growth}), {grown['8 / √r']:.1f}-fold with $\\alpha/\\sqrt r$, {grown['8 / r']:.1f}-fold with "
    r"$\alpha/r$. Kalajdzievski 2023 (*rsLoRA*) argues for $\alpha/\sqrt r$: later in training the terms no "
    r"longer all point one way, and $\alpha/r$ then holds high ranks back. PEFT has it as "
    "`use_rslora=True`."
)

# %% [markdown]
# ## 7 · Train with it
#
# Now for real, on the demonstrations of the earlier lessons: the same data, batches and steps as
# `lab.sft()`, which moved every weight. LoRA gets rank 8, $\alpha = 2r$, and three times the learning rate.
# (LoRA wants a larger one than full fine-tuning; Schulman et al. 2025 find about ten times for large
# models.)
#
# **Your guess.** Will LoRA's held-out loss be above or below that of full fine-tuning?

# %%
my_guess_lora = "above"

# %%
RANK = 8


def train_lora(where, rank, name):
    """LoRA on all linear maps of a lab's base model, with the lab's SFT settings."""
    settings = where.settings.sft
    settings = dataclasses.replace(settings, learning_rate=3 * settings.learning_rate, save_every=0)
    recipe = {"rank": rank, **dataclasses.asdict(settings)}
    log = RunLog.create(where.run_directory(name), recipe, where.seed, overwrite=True)
    torch.manual_seed(where.seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(where.base(), config)
    return train_sft(model, where.tokenizer, where.demonstrations(), settings, log=log), log


lora, lora_log = train_lora(lab, RANK, "lora")

# %% tags=["hidden-test"]
assert len(lora_log.rows) > 0
moving = {name for name, p in lora.named_parameters() if p.requires_grad}
assert moving
assert all("lora_" in name for name in moving)
assert any(float(p.detach().abs().max()) > 0 for n, p in lora.named_parameters() if "lora_B" in n)
frozen = lora.get_base_model().model.embed_tokens.weight.cpu()
assert torch.equal(frozen, base.model.embed_tokens.weight.cpu())

# %%
rows = held if lab is world else held_rows(lab, 64)
size = 32 if lab is world else 2  # rows at once
losses = {
    "base": mean_loss(base, rows, size),
    "full fine-tuning": mean_loss(sft, rows, size),
    "LoRA": mean_loss(lora, rows, size),
}
trains = {
    "base": 0,
    "full fine-tuning": sft.num_parameters(),
    "LoRA": sum(p.numel() for p in lora.parameters() if p.requires_grad),
}
pd.DataFrame({"held-out loss": losses, "numbers trained": trains}).style.format(
    {"held-out loss": "{:.4f}", "numbers trained": "{:,}"}
)

# %%
comparison = lab.compare({"base": base, "full fine-tuning": sft, "LoRA": lora})
comparison

# %% tags=["hide-input"]
# @title In words
gap = losses["LoRA"] - losses["full fine-tuning"]
side = "below" if gap < 0 else "above"
said = (
    f"With {trains['LoRA'] / trains['full fine-tuning']:.0%} of the numbers LoRA's held-out loss is {abs(gap):.4f} "
    f"nats **{side}** that of full fine-tuning (you guessed {my_guess_lora})."
)
if lab.gold is not None:
    wins = comparison.winner("LoRA", "full fine-tuning")
    verdict = (
        "no clear difference" if wins.low <= 0.5 <= wins.high else "a difference beyond chance"
    )
    said += (
        f" By the gold reward LoRA's answer is the better one on {wins.rate:.0%} of the prompts "
        f"[{wins.low:.0%}, {wins.high:.0%}]: {verdict}."
    )
said += (
    " A loss below is no miracle: fewer free numbers can also mean less over-fitting, and each method would "
    "deserve a learning rate of its own."
    if gap < 0
    else ""
)
Markdown(said)

# %% tags=["hidden-test"]
assert set(comparison.evaluations) == {"base", "full fine-tuning", "LoRA"}
if not fast:
    assert losses["LoRA"] < losses["base"]

# %% [markdown]
# ### How low can the rank go?
#
# In section 2 we *cut* a full change down to rank $r$. Training at that rank from the beginning is
# something else: the $r$ directions may be chosen for the purpose. **Your guess:** with one single direction
# per weight, which share of the gain of full fine-tuning does LoRA reach?

# %%
my_guess_rank_one = 0.6

# %%
at_rank = {RANK: lora if lab is world else train_lora(world, RANK, "lora-world")[0]}
at_rank[1], _ = train_lora(world, 1, "lora-rank-1")
trained_loss = {r: mean_loss(at_rank[r], held) for r in sorted(at_rank)}
reached = {r: (cut_loss[0] - loss) / (cut_loss[0] - full_loss) for r, loss in trained_loss.items()}

# %% tags=["hidden-test"]
assert set(trained_loss) == {1, RANK}
if not fast:
    assert trained_loss[1] < cut_loss[1], "training at rank 1 beats cutting to rank 1"

# %% tags=["hide-input"]
# @title Cut afterwards, or trained so
figure = plots.figure("Low rank, afterwards or from the start", x="rank", y="held-out loss (nats)")
shown = [r for r in cut_ranks if r]
plots.line(
    figure,
    shown,
    [cut_loss[r] for r in shown],
    "full ΔW, cut to rank r",
    plots.COLOURS["sft"],
    mode="lines+markers",
)
plots.line(
    figure,
    list(trained_loss),
    list(trained_loss.values()),
    "LoRA, trained at rank r",
    plots.COLOURS["ppo"],
    mode="lines+markers",
)
figure.add_hline(
    y=full_loss, line_dash="dot", line_color="#888", annotation_text="full fine-tuning"
)
display(figure.update_layout(xaxis_type="log"))
Markdown(
    f"LoRA of rank 1 reaches **{reached[1]:.0%}** of the gain of full fine-tuning (you guessed "
    f"{my_guess_rank_one:.0%}), a change cut to rank 1 afterwards {gained[1]:.0%}. This task is *easy* in LoRA's "
    "sense: the model knows the facts and only has to change its manners, for which few directions do. "
    "Lesson 08 gives LoRA a task that needs many. So *low-rank updates suffice* is a statement about "
    "the task as much as about LoRA: half of claim C12."
)

# %% [markdown] slides="19"
# ## 8 · What it saves
#
# The lecture's benefits of LoRA: it trains **0.1 to 1% of the parameters**, so it runs on **consumer GPUs
# and laptops**; adapters are **plug-and-play** modules; and so a model can be made **personal**. We take
# them one by one.
#
# One weight costs $r(d + k)$ trained numbers instead of $dk$, so its share is
#
# $$\frac{r(d + k)}{dk} = r \left( \frac1d + \frac1k \right)$$
#
# which *falls* as models grow wider. First that the formula is right: formula = counted = PEFT's.

# %%
from transformers import AutoConfig, AutoModelForCausalLM

from course_utils.memory import MODELS, find_shape


def lora_count(shape, r, targets=None):
    """Σ r (d + k) over the adapted weights of all layers."""
    chosen = [w for w in shape.linears if targets is None or w.name in targets]
    return shape.layers * sum(r * (w.outputs + w.inputs) for w in chosen)


def peft_count(name, r):
    """What PEFT makes of the published config, on the meta device: shapes without memory."""
    published = dict(MODELS[name])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(published.pop("model_type"), **published)
        )
        model = get_peft_model(model, LoraConfig(r=r, target_modules="all-linear"))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


for name in ("smollm2-135m", "llama-7b"):
    formula, counted = lora_count(find_shape(name), r=16), peft_count(name, r=16)
    assert formula == counted
    print(f"{name:<14} rank 16: formula {formula:>11,}   PEFT {counted:>11,}")

# %% [markdown]
# **Your guess.** For which of these models is 0.1 to 1% right at the usual rank 16 on all linear maps: our
# model of one million, SmolLM2-135M, Qwen3-1.7B, LLaMA-7B, LLaMA-65B?

# %%
my_guess_inside = ["smollm2-135m", "qwen3-1.7b", "llama-7b", "llama-65b"]

# %%
from course_utils.memory import from_config

shapes = {"this world": from_config(small_base.config, "this world")}
shapes |= {n: find_shape(n) for n in ("smollm2-135m", "qwen3-1.7b", "llama-7b", "llama-65b")}
recipes = {"q and v (Hu et al.)": ("q_proj", "v_proj"), "all linear (QLoRA)": None}
ranks = (4, 8, 16, 32, 64)

percent = pd.DataFrame(
    {
        (which, name): {
            r: 100 * (n := lora_count(shape, r, targets)) / (shape.parameters + n) for r in ranks
        }
        for which, targets in recipes.items()
        for name, shape in shapes.items()
    }
).T
inside = (percent >= 0.1) & (percent <= 1)


def paint(value):
    low, fits = "background: rgba(40,120,220,.18)", "background: rgba(20,150,130,.28)"
    return low if value < 0.1 else fits if value <= 1 else "background: rgba(235,125,20,.25)"


percent.rename_axis(columns="% trained, rank").style.format("{:.3f}").map(paint)

# %% tags=["hidden-test"]
assert shapes["this world"].parameters == small_base.num_parameters()
count = lora_count(shapes["this world"], 8)
assert count == trained
assert inside.loc[("all linear (QLoRA)", "llama-65b"), 16]
assert not inside.loc[("all linear (QLoRA)", "this world"), 16]
assert (percent.diff(axis=1).iloc[:, 1:] > 0).all().all()

# %% tags=["hide-input"]
# @title C02, measured
right = [name for name in shapes if inside.loc[("all linear (QLoRA)", name), 16]]
large = [name for name in shapes if name in ("llama-7b", "llama-65b")]
always = int(inside.loc[(slice(None), large), :].sum().sum())
cells = 2 * len(large) * len(ranks)
print(f"you guessed {', '.join(my_guess_inside)}")
world.claim(
    "C02",
    f"At rank 16 on all linear maps the share is within 0.1 to 1% for {', '.join(right) or 'none'}; it goes "
    f"from {percent.loc[('all linear (QLoRA)', 'llama-65b'), 16]:.2f}% (LLaMA-65B) over "
    f"{percent.loc[('all linear (QLoRA)', 'smollm2-135m'), 16]:.1f}% (SmolLM2-135M) to "
    f"{percent.loc[('all linear (QLoRA)', 'this world'), 16]:.0f}% (our model). Of all {inside.size} recipes "
    f"of the table {int(inside.sum().sum())} are within, of those on LLaMA {always} of {cells}.",
    holds=None,
    condition="on the model's width, the rank and the matrices; small models pay more, "
    "and a large one at low rank on q and v pays even less",
    inside=int(inside.sum().sum()),
    recipes=int(inside.size),
)

# %% [markdown]
# Green is the lecture's range, orange above it, blue below. Move the sliders: the spectrum in the widget is
# that of our own $\Delta W$ from section 2.

# %%
from course_utils.inspectors import LoRAExplorer

explorer = LoRAExplorer(deltas["mlp.up_proj"].cpu(), model="llama-7b", rank=16)
explorer

# %% tags=["hidden-test"]
at_7b = explorer.numbers(explorer.chosen)
assert at_7b["trained"] == lora_count(shapes["llama-7b"], 16)

# %% [markdown]
# ### Memory, and time
#
# A frozen weight needs no gradient and no optimizer state; that is where the saving is (Adam keeps two
# numbers for each trained one). The calculator of lesson 07 adds up a training step of the *usual* recipes:
# full fine-tuning in mixed precision, LoRA of rank 16 on a 16-bit base with checkpointing; one text of 512
# tokens.

# %%
from course_utils.memory import estimate, recipe

SEATS = {"laptop GPU, 8 GB": 8e9, "consumer GPU, 24 GB": 24e9}
plans = {"full": recipe("full"), "LoRA": recipe("lora", rank=16)}
sizes = (
    "smollm2-135m",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "smollm3-3b",
    "llama-7b",
    "llama-13b",
    "llama-65b",
)
needs = pd.DataFrame(
    {
        how: {n: estimate(find_shape(n), plan, seq=512, batch=1).total / 1e9 for n in sizes}
        for how, plan in plans.items()
    }
)
for seat, room in SEATS.items():
    for how in plans:
        fitting = [n for n in sizes if needs[how][n] * 1e9 <= room]
        print(f"{seat:<20} {how:>4}: up to {fitting[-1] if fitting else 'none of these'}")
needs.rename_axis(columns="GB").style.format("{:.1f}")

# %% tags=["hidden-test"]
assert (needs["LoRA"] < needs["full"]).all()

# %% [markdown]
# A step's *time* is another matter: the gradient still has to pass through every frozen weight, and $A$ and
# $B$ come on top. Measured here, in turns, on the world's model:


# %%
def seconds_of(work, rounds):
    """name -> seconds of each round; all are timed in turn, the first round does not count."""
    spent = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            begin = time.perf_counter()
            function()
            if number:
                spent[name].append(time.perf_counter() - begin)
    return spent


def ratio(spent, name, reference):
    """Median over the rounds of time / the reference's time in the same round."""
    pairs = zip(spent[name], spent[reference], strict=True)
    return statistics.median(a / b for a, b in pairs)


full_copy = copy.deepcopy(small_base).requires_grad_(True)
lora_copy = put_lora(copy.deepcopy(small_base), r=8, alpha=16)
work = {}
for name, model in {"full": full_copy, "LoRA": lora_copy}.items():
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    work[name] = lambda m=model, o=adam: train_step(m, o, batch)
step_ratio = ratio(seconds_of(work, 3 if fast else 15), "LoRA", "full")
words = (
    "faster"
    if step_ratio < 0.95
    else "slower"
    if step_ratio > 1.05
    else "neither faster nor slower"
)
Markdown(
    f"A LoRA step takes **{step_ratio:.2f}** times as long as a full one here: {words}. LoRA saves memory first. "
    "On large models that memory buys larger batches, and with them time."
)

# %% tags=["hidden-test"]
assert 0.1 < step_ratio < 10

# %% [markdown]
# ## 9 · Merge, unmerge
#
# $W' = W + \frac{\alpha}{r} BA$ is a weight like any other. Add the product once, throw $A$ and $B$ away,
# and the model is as fast as it ever was. **Your guess:** by how much do logits differ before and after
# merging? And does subtracting give the old weight back, bit for bit?

# %%
my_guess_error = 0.0
my_guess_exact = True


# %%
def delta(layer, name="default"):
    """ΔW = (α/r) B A of a PEFT layer, (d, k)."""
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    return layer.scaling[name] * (B @ A).detach()


merged = lab.base()  # from scratch: add every ΔW to a copy of the base
for path, module in lora.get_base_model().named_modules():
    if hasattr(module, "lora_A"):
        merged.get_submodule(path).weight.data += delta(module)

some = padded((held if lab is world else rows)[:8])[0].to(lab.device)
with torch.no_grad():
    apart, together = lora(input_ids=some).logits, merged(input_ids=some).logits
    library = copy.deepcopy(lora).merge_and_unload()(input_ids=some).logits
torch.testing.assert_close(together, library, rtol=1e-4, atol=1e-3)

weight = base.model.layers[0].self_attn.q_proj.weight.detach()
change = delta(lora.get_base_model().model.layers[0].self_attn.q_proj)
back = (weight + change) - change  # unmerging by subtraction
print(
    f"largest logit {float(apart.abs().max()):.1f}, largest difference after merging "
    f"{float((together - apart).abs().max()):.1e} (you guessed {my_guess_error:g})"
)
print(
    f"weights that come back bit for bit after adding and subtracting: "
    f"{float((back == weight).double().mean()):.0%} (you guessed {'all' if my_guess_exact else 'not all'})"
)

# %% tags=["hidden-test"]
assert (together - apart).abs().max() < 1e-3 * apart.abs().max()
exact = (weight.double() + change.double()) - change.double()
assert (exact - weight.double()).abs().max() < 1e-12

# %% [markdown]
# The difference is rounding: seven digits of float32. So merging is exact for all purposes, and yet
# *unmerging by subtraction* is not exact to the bit. Who wants the old model back keeps the old weights, as
# `course_utils.composition` does. In 16 bits the rounding is much coarser, because a
# small change meets a large weight there with three digits instead of seven:

# %%
half = weight.bfloat16()
kept = (half + change.bfloat16()).float() - half.float()  # what the merge really added
lost = float((kept - change).norm() / change.norm())
untouched = float((kept == 0).double().mean())
Markdown(
    f"Merged into bfloat16 weights, what is really added differs from $\\Delta W$ by **{lost:.0%}** of its size, and "
    f"{untouched:.0%} of the weights do not move at all: the change of each is too small beside the weight "
    "itself. Where that matters, keep the merged weights in float32, or keep the adapter beside them."
)

# %% tags=["hidden-test"]
assert lost > 0
assert lost > float(((weight + change) - weight - change).norm() / change.norm())

# %% [markdown]
# And what does *not* merging cost? Forward passes of the base, of the base with its adapter beside it, and of
# the merged model, in turns:

# %%
models = {"base": base, "adapter beside it": lora, "merged": merged}


def forward(model):
    with torch.inference_mode():
        model(input_ids=some)
    if lab.device.startswith("cuda"):
        torch.cuda.synchronize()


spent = seconds_of({n: lambda m=m: forward(m) for n, m in models.items()}, 5 if fast else 25)
latency = {name: ratio(spent, name, "base") for name in models}
pd.DataFrame({"time, as a multiple of the base's": latency}).style.format("{:.2f}")

# %% tags=["hide-input"]
# @title In words
beside, in_one = latency["adapter beside it"], latency["merged"]
Markdown(
    f"Beside the weights the adapter takes {beside:.2f} times the base's time, merged {in_one:.2f} times. "
    + (
        "Merging pays, and costs nothing at run time."
        if beside > in_one + 0.05
        else "On this machine and batch the difference drowns in the noise."
    )
    + " A small model feels it most: two thin products more for each wide one. On a large one the share is "
    "nearer to that of the parameters."
)

# %% tags=["hidden-test"]
assert all(0.2 < value < 20 for value in latency.values())

# %% [markdown] slides="19"
# ## 10 · Plug-and-play
#
# One base, many small files: load a skill, use it, swap it for the next. That is what makes LoRA **personal**:
# a thousand users can have a model each, and share the base.
#
# Three adapters shall make the model talk like a pirate, like an official, like a bard. (Styles are chosen
# because a program can measure them: `style_score` is the share of a style's chances that an answer takes.)
# This part runs in the world on every tier.
#
# One thing first. The shipped base has never read *matey* or *forsooth*, and a word that was never read has an
# embedding that nobody trained. LoRA on the layers leaves embeddings frozen, so it can choose among the words a
# model knows, not teach it new ones. A real base model has read pirates. Ours first reads demonstrations in all
# three styles and in none (full fine-tuning); on *that* base each style becomes an adapter.

# %%
from course_utils.composition import AdapterSet
from course_utils.experiments import styles
from course_utils.world.styles import STYLES, apply_style, style_score

line = "lions are big cats. they eat meat."
for style in STYLES:
    said = apply_style(line, style)
    print(f"{style:<8}{said:<75} score {style_score(said, style):.0f}")


# %%
def shorter(settings, steps):
    return dataclasses.replace(settings, steps=3 if fast else steps)


reader, tokenizer = styles.style_base(world.seed, shorter(styles.READING, 150))
adapters = AdapterSet(copy.deepcopy(reader))
for style in STYLES:
    made = styles.train_style(reader, tokenizer, style, world.seed, shorter(styles.TRAINING, 50))
    adapters.add(style, made)
print(adapters)

# %% tags=["hidden-test"]
assert adapters.names == tuple(STYLES)
assert all(adapters.rank(name) == styles.RANK for name in adapters.names)
assert adapters.weights == dict.fromkeys(STYLES, 0.0)

# %% [markdown]
# Swap them: `adapters.set("pirate")`, and `adapters.set(None)` for the base.

# %%
from textwrap import fill

from course_utils.generation import generate_texts

ask = 6 if fast else 32  # held-out prompts for the scores; the likeliest answer of each
question = "tell me about lions."


def say(prompt):
    return generate_texts(adapters.model, tokenizer, [prompt], temperature=0.0)[0]


with torch.no_grad():
    before = adapters.model(input_ids=ids).logits
alone = {}
for name in (None, *STYLES):
    adapters.set(name)
    alone[name or "base"] = styles.style_scores(adapters.model, tokenizer, ask)
    print(fill(f"{name or 'base'}: {say(question)}", 100, subsequent_indent="    "))

begin = time.perf_counter()
for _ in range(10):
    adapters.set("bard")
    adapters.set(None)
swap = (time.perf_counter() - begin) / 20
with torch.no_grad():
    assert torch.equal(adapters.model(input_ids=ids).logits, before)  # the base, bit for bit

folder = world.run_directory("lora-pirate")
adapters.take("pirate").save(folder)
on_disk = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
whole = 4 * reader.num_parameters()  # bytes in float32
print(
    f"\na swap takes {1000 * swap:.1f} ms; the file has {on_disk / 1e3:.0f} kB, the base {whole / 1e3:.0f} kB"
)
pd.DataFrame(alone).T.rename(columns={"gold": "gold, style off"}).style.format("{:.2f}")

# %% tags=["hidden-test"]
assert on_disk < whole
assert (folder / "adapter_config.json").exists()
if not fast:
    for style in STYLES:
        assert alone[style][style] > 0.5, f"the {style} adapter speaks {style}"
        assert alone[style][style] == max(alone[style][other] for other in STYLES)

# %% tags=["hide-input"]
# @title In words
leaning = max(STYLES, key=lambda s: alone["base"][s])
Markdown(
    "Alone the adapters reach "
    + ", ".join(f"{style} **{alone[style][style]:.2f}**" for style in STYLES)
    + ": swapping works, and the base is untouched to the bit. Look at the base's row, too: it has read all "
    f"styles alike, and its likeliest answers lean to *{leaning}* ({alone['base'][leaning]:.2f}). Keep that in mind."
)

# %% [markdown]
# ## 11 · Several at once
#
# Now the strong form of the claim: **merge adapters into one, compose skills without retraining.** Each
# adapter is a $\Delta W_i = B_i A_i$ (with $\alpha/r$ multiplied in). What should the sum of two be?
#
# * **cat**: stack the $A_i$, put the $B_i$ side by side: exactly $\Delta W_1 + \Delta W_2$, at rank $2r$;
# * **svd**: that sum, cut back to rank $r$;
# * **linear**: $(B_1 + B_2)(A_1 + A_2)$: cheap, rank $r$, but it is *not* the sum, it has cross terms;
# * **TIES** (Yadav et al. 2023): keep the largest numbers, elect a sign for each place, average those that
#   agree with it;
# * **DARE** (Yu et al. 2023): drop numbers at random and scale up the rest, so that the mean stays.
#
# Each is a few lines.


# %%
def cat(As, Bs):
    return torch.cat(As), torch.cat(Bs, dim=1)  # (2R, k), (d, 2R)


def svd(As, Bs):
    total = sum(B @ A for A, B in zip(As, Bs, strict=True))  # (d, k)
    U, sigma, Vt = torch.linalg.svd(total, full_matrices=False)
    r = len(As[0])
    return Vt[:r], U[:, :r] * sigma[:r]


def linear(As, Bs):
    return sum(As), sum(Bs)


def trim(x, density):
    """Keeps the share `density` of the largest numbers."""
    keep = x.abs().flatten().topk(int(density * x.numel())).indices
    mask = torch.zeros(x.numel()).index_fill(0, keep, 1.0)
    return x * mask.view_as(x)


def ties_of(tensors, density=0.5):
    x = torch.stack([trim(t, density) for t in tensors])  # (N, ...)
    sign = torch.where(x.sum(0) >= 0, 1, -1)  # elect: the side with more weight
    agree = x.sign() == sign
    return (x * agree).sum(0) / agree.sum(0).clamp(min=1)  # average those that agree


def ties(As, Bs):
    return ties_of(As), ties_of(Bs)


def dare_of(x, density=0.5):
    return x * torch.bernoulli(torch.full_like(x, density)) / density


def dare(As, Bs):
    return sum(dare_of(A) for A in As), sum(dare_of(B) for B in Bs)


# %% [markdown]
# **The library gives the same number.** `adapters.combine` asks PEFT's `add_weighted_adapter`; we compare the
# resulting $\Delta W$ in two of the weights. (The two factors of one product share $\alpha/r$: each gets its root.)


# %%
def factors(name, path):
    """√(α/r) A and √(α/r) B of one weight, as the set holds them."""
    adapter = adapters.take(name)
    root = math.sqrt(adapter.config.lora_alpha / adapter.config.r)
    key = f"base_model.model.{path}.lora_"
    return root * adapter.weights[f"{key}A.weight"], root * adapter.weights[f"{key}B.weight"]


pair = ("pirate", "bard")
paths = ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.down_proj"]
for method in (cat, svd, linear, ties):
    adapters.combine("both", dict.fromkeys(pair, 1.0), method.__name__)
    for path in paths:
        As, Bs = zip(*(factors(name, path) for name in pair), strict=True)
        A, B = method(list(As), list(Bs))
        A_theirs, B_theirs = factors("both", path)
        torch.testing.assert_close(B @ A, B_theirs @ A_theirs, rtol=1e-4, atol=1e-5)
    adapters.delete("both")
    print(f"{method.__name__:<7} equal")

from peft.utils.merge_utils import dare_linear  # DARE draws at random: the same seed for both

torch.manual_seed(1)
mine_dare = sum(dare_of(A) for A in As)
torch.manual_seed(1)
torch.testing.assert_close(mine_dare, dare_linear(list(As), torch.ones(2), density=0.5))
print("dare    equal")

# %% tags=["hidden-test"]
A, B = cat(list(As), list(Bs))
torch.testing.assert_close(B @ A, sum(b @ a for a, b in zip(As, Bs, strict=True)))
assert adapters.names == tuple(STYLES)
assert torch.equal(ties_of([torch.tensor([3.0, -1.0])] * 2, 1.0), torch.tensor([3.0, -1.0]))
torch.manual_seed(0)
many = torch.stack([dare_of(As[0]) for _ in range(400)]).mean(0)
assert (many - As[0]).abs().mean() < 0.1 * As[0].abs().mean(), "DARE keeps the mean"

# %% [markdown]
# How large are the cross terms of *linear*? $(B_1 + B_2)(A_1 + A_2) = \Delta W_1 + \Delta W_2 + B_1 A_2 + B_2 A_1$.

# %%
size, cosine = [], []
for path in paths:
    (A1, B1), (A2, B2) = (factors(name, path) for name in pair)
    size.append(float(((B1 + B2) @ (A1 + A2)).norm() / (B1 @ A1 + B2 @ A2).norm()))
    cosine.append(float(F.cosine_similarity(A1.flatten(), A2.flatten(), dim=0)))
similar = statistics.mean(cosine)
Markdown(
    f"The *linear* change is **{statistics.mean(size):.1f} times** as large as the true sum. The two $A$ have a cosine of "
    f"{similar:.2f}: "
    + (
        r"they grew from the same random start (the same seed), so that $B_1 A_2$ is nearly $B_1 A_1$, and *linear* adds "
        "everything about twice. Weights of ½ instead of 1 undo that; the table has both."
        if similar > 0.3
        else r"they point in different directions, and $B_1 A_2$ is a product of two that were never trained together."
    )
)

# %% tags=["hidden-test"]
assert all(value > 0 for value in size)
assert -1 <= similar <= 1

# %% [markdown]
# **Your guess.** The three pairs of styles, five methods. In how many of these will *both* styles show (a score
# of at least 0.3 each), without the answers getting worse (gold reward, styles taken off, at most 0.2 below the
# worse of the two alone)?

# %%
my_guess_composed = 12  # of 18: five methods, and linear with halves, for three pairs

# %%
import itertools

recipes = {
    "cat": ("cat", 1.0),
    "svd": ("svd", 1.0),
    "linear": ("linear", 1.0),
    "linear, ½ each": ("linear", 0.5),
    "ties": ("ties", 1.0),
    "dare_linear": ("dare_linear", 1.0),
}
pairs = list(itertools.combinations(STYLES, 2))[: 1 if fast else 3]
found = []
for first, second in pairs:
    for label, (method, w) in recipes.items():
        adapters.combine("both", {first: w, second: w}, method, seed=world.seed)
        adapters.set("both")
        scores = styles.style_scores(adapters.model, tokenizer, ask)
        adapters.delete("both")
        floor = min(alone[first]["gold"], alone[second]["gold"]) - 0.2
        found.append(
            {
                "pair": f"{first} + {second}",
                "method": label,
                "first style": scores[first],
                "second style": scores[second],
                "gold, styles off": scores["gold"],
                "both show": min(scores[first], scores[second]) >= 0.3,
                "quality kept": scores["gold"] >= floor,
            }
        )
composed = pd.DataFrame(found).set_index(["pair", "method"])
composed.style.format("{:.2f}", subset=["first style", "second style", "gold, styles off"])

# %% tags=["hidden-test"]
assert len(composed) == len(pairs) * len(recipes)
assert composed[["first style", "second style"]].stack().between(0, 1).all()
assert adapters.names == tuple(STYLES)

# %% tags=["hide-input"]
# @title C13, measured
good = composed["both show"] & composed["quality kept"]
shows, keeps = int(composed["both show"].sum()), int(composed["quality kept"].sum())
by_method = composed.groupby("method")["gold, styles off"].mean().sort_values()
by_pair = composed["both show"].groupby("pair").sum()
rounding = float((together - apart).abs().max())
print(f"you guessed {my_guess_composed}; it is {int(good.sum())} of {len(good)}")
world.claim(
    "C13",
    f"Swapping leaves the base bit for bit and takes {1000 * swap:.1f} ms; merging changes logits by at most "
    f"{rounding:.0e}. Composing two styles: both show in {shows} of {len(good)} cases, the quality is kept in "
    f"{keeps}, both hold in {int(good.sum())}. Lowest mean gold reward: {by_method.index[0]} "
    f"({by_method.iloc[0]:+.2f}), highest: {by_method.index[-1]} ({by_method.iloc[-1]:+.2f}).",
    holds=True if good.all() else None,
    condition=""
    if good.all()
    else "swapping and merging yes; composing depends on the pair and the method",
    composed=int(good.sum()),
    cases=len(good),
)

# %% tags=["hide-input"]
# @title What happened, in words
worst, least = by_method.index[0], by_pair.idxmin()
ruled = {}
for (pair_name, _), row in composed.iterrows():
    first, second = pair_name.split(" + ")
    winner = first if row["first style"] > row["second style"] else second
    ruled[winner] = ruled.get(winner, 0) + 1
ruler = max(ruled, key=ruled.get)
Markdown(
    f"*{ruler}* is the stronger style in {ruled[ruler]} of {len(composed)} mixtures, more often than any other; "
    f"the pair with the fewest true mixtures is {least} ({by_pair[least]} of {len(recipes)}). "
    + (
        "It is also the style to which the base leans by itself. That suggests a reason (not a proof): where two "
        "pushes of equal size meet, the base's habit decides. "
        if ruler == leaning
        else "That is not the style to which the base leans by itself. "
    )
    + f"The gold reward suffers most with *{worst}*. Nothing in the training of either adapter ever asked it to get "
    "along with the other: that sums of changes *mostly* work is an observation (Ilharco et al. 2022), not a law."
)

# %% [markdown]
# Now mix by hand. The sliders set $\Delta W = w_1 \Delta W_1 + w_2 \Delta W_2$ exactly (as *cat* does), without
# making anything new.

# %%
from course_utils.inspectors import AdapterComposer


def compose(weights):
    adapters.set_weights(weights)
    scores = styles.style_scores(adapters.model, tokenizer, 6 if fast else 16)
    return {
        "scores": {style: scores[style] for style in STYLES},
        "answers": {question: say(question)},
    }


composer = AdapterComposer(pair, compose, levels=(0.0, 1.0) if fast else (0.0, 0.5, 1.0))
composer

# %% tags=["hidden-test"]
now = composer.at(pirate=1.0)
assert now["measured"]
assert set(now["scores"]) == set(STYLES)
assert composer.summary()["measured"] == (4 if fast else 9)

# %% [markdown] slides="21"
# ## 12 · What people do with it
#
# **Instruction tuning with few resources** is the first application the lecture names: **domain adaptation** (law,
# medicine, one company's code), **personalisation** (one adapter for each user or style), fast **prototyping** (try
# ten ideas in a day, keep the adapter that works). The second is **merging several LoRA adapters**, and
# **composing** them for new tasks **without retraining**. It names four models, and it is worth knowing which of
# them used LoRA:
#
# | model | what it is | how it was tuned |
# |---|---|---|
# | **Alpaca** (Stanford, 2023) | LLaMA-7B on 52k instructions written by another model | full fine-tuning, three hours on eight 80 GB A100. *Alpaca-LoRA*, by others, soon did nearly the same with LoRA on one RTX 4090, in hours |
# | **Vicuna** (LMSYS, 2023) | LLaMA on 70k conversations that users shared | full fine-tuning, a day on eight A100, about 300 dollars for 13B |
# | **Guanaco** (Dettmers et al. 2023) | LLaMA up to 65B on OASST1 | **QLoRA**: 65B in a day on one 48 GB GPU; lesson 07 |
# | **Mistral** 7B (2023) | an open base model, and its *Instruct* version tuned on public conversations | the report does not say LoRA; but many adapters stand on it: *LoRA Land* serves 25 of them on one A100, and Mistral's own [mistral-finetune](https://github.com/mistralai/mistral-finetune) trains LoRA |
#
# So two of the four names were tuned **without** LoRA; what LoRA did was to let everybody else repeat them.
#
# Composition in the large: *LoraHub* (Huang et al. 2023) learns only the weights of a mixture from a few examples
# of a new task; *S-LoRA* (Sheng et al. 2023) serves thousands of adapters on one base by swapping, each request
# with its own. Swapping is the part of the claim that everyone relies on. Mixing is the part one has to measure.
#
# ## 13 · What broke, and why
#
# * **Both factors zero**: no error, no learning. If a LoRA run's loss stays flat from the first step, look at $B$.
# * **A new word**: LoRA on the layers cannot give an unread word an embedding. PEFT's `modules_to_save` or
#   `trainable_token_indices` train embeddings beside it, for a larger file.
# * **A rank that means two things**: changing $r$ changes $\alpha/r$ and so the step size. Keep $\alpha/r$ fixed
#   or search the learning rate again, else a rank sweep measures learning rates.
# * **Merging in 16 bits** loses a part of the change (section 9); in 4 bits more so (lesson 07).
# * **Composing** lost a style, or spoilt the answers, in all cases of the table above that do not say True twice.
#   *linear* is the cheapest method and the one with cross terms.
# * **Small models**: the share of trained parameters here is far from 1%, and a step is hardly faster.
#
# Nonsense is answered, not obeyed:

# %%
from course_utils.adapters import apply_lora
from course_utils.errors import CourseError

nonsense = {
    "rank 0": lambda: apply_lora(copy.deepcopy(small_base), rank=0),
    "alpha -1": lambda: apply_lora(copy.deepcopy(small_base), alpha=-1),
    "a rank above the matrix's": lambda: adapters.combine(
        "x", {"bard": 1, "pirate": 1}, "svd", rank=500
    ),
    "TIES that keeps nothing": lambda: adapters.combine(
        "x", {"bard": 1, "pirate": 1}, "ties", density=0
    ),
    "an unknown adapter": lambda: adapters.set("pirat"),
}
for what, attempt in nonsense.items():
    try:
        attempt()
    except CourseError as error:
        print(f"{what}:\n    {error}")

# %% tags=["hidden-test"]
import pytest

for attempt in nonsense.values():
    with pytest.raises(CourseError):
        attempt()
assert adapters.names == tuple(STYLES)

# %% [markdown]
# ## 14 · Check yourself
#
# <details>
# <summary><b>1.</b> A weight is 4096 × 11008. How many numbers does LoRA of rank 16 train, and which share is that?</summary>
#
# $16 \cdot (4096 + 11008) = 241{,}664$, against $45{,}088{,}768$: 0.54%. The share is $r(1/d + 1/k)$, so twice the
# rank is twice the share, and a model twice as wide pays half.
# </details>
#
# <details>
# <summary><b>2.</b> Someone starts the factor at the output at random and the one at the input at zero. Does it train?</summary>
#
# Yes. The product is zero, so the model starts unchanged; in the first step only the input's factor gets a
# gradient, afterwards both. Only *both zero* is stuck, and only *both random* breaks the model at the start.
# </details>
#
# <details>
# <summary><b>3.</b> Two adapters, each fine alone, are added with <i>linear</i>, and the answers turn to nonsense. Name two reasons, and what you would try.</summary>
#
# The cross terms $B_1 A_2$ and $B_2 A_1$ were never trained, and with a common random start they double the change;
# and the sum of two changes can push further than either was meant to. Try *cat* (the exact sum), smaller
# weights, TIES; measure each, or train one adapter on both kinds of data.
# </details>
#
# ## 15 · Read on
#
# * Hu et al. 2021, [LoRA: low-rank adaptation of large language models](https://arxiv.org/abs/2106.09685)
# * Aghajanyan et al. 2020, [Intrinsic dimensionality explains the effectiveness of language model fine-tuning](https://arxiv.org/abs/2012.13255)
# * Kalajdzievski 2023, [A rank stabilization scaling factor for fine-tuning with LoRA](https://arxiv.org/abs/2312.03732)
# * Hayou et al. 2024, [The impact of initialization on LoRA finetuning dynamics](https://arxiv.org/abs/2406.08447)
# * Biderman et al. 2024, [LoRA learns less and forgets less](https://arxiv.org/abs/2405.09673); Schulman et al. 2025, [LoRA without regret](https://thinkingmachines.ai/blog/lora/)
# * Ilharco et al. 2022, [Editing models with task arithmetic](https://arxiv.org/abs/2212.04089); Yadav et al. 2023, [TIES-Merging](https://arxiv.org/abs/2306.01708); Yu et al. 2023, [DARE](https://arxiv.org/abs/2311.03099)
# * Huang et al. 2023, [LoraHub](https://arxiv.org/abs/2307.13269); Sheng et al. 2023, [S-LoRA](https://arxiv.org/abs/2311.03285); Zhao et al. 2024, [LoRA Land](https://arxiv.org/abs/2405.00732)
# * Taori et al. 2023, [Alpaca](https://crfm.stanford.edu/2023/03/13/alpaca.html); Chiang et al. 2023, [Vicuna](https://lmsys.org/blog/2023-03-30-vicuna/); Jiang et al. 2023, [Mistral 7B](https://arxiv.org/abs/2310.06825); Dettmers et al. 2023, [QLoRA](https://arxiv.org/abs/2305.14314) (Guanaco)
#
# **Exercises:** [exercises/06_lora.ipynb](../exercises/06_lora.ipynb): a linear map with LoRA, merging and unmerging,
# what a config trains, the rank of a change, two adapters into one.
#
# **Next:** lesson 07 keeps $A$ and $B$ as they are and asks how coarse the frozen weights may be.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
