# %% [markdown] seconds=60
# # Exercises 06 · LoRA
#
# Five tasks that belong to lesson 06. For each one: write the functions, run the check below them until
# it says *passed*, then run the small experiment, which works on the world's model with **your**
# functions, and answer the question in words.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.
#
# The names are PEFT's throughout: $W$ is (d, k), $A$ is (r, k) and meets the input, $B$ is (d, r) and
# stands at the output.

# %% tags=["setup", "hide-input"]

# %%
import copy
import itertools
import math
import warnings

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display
from torch import nn

from course_utils import Lab, check, plots

warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries about each other

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
fast = lab.tier.is_fast
world

# %% [markdown]
# ## Task 1 · A linear map with LoRA
#
# *Difficulty 2 of 5 · about 25 minutes · 5 points*
#
# $$y = W x + b + \frac{\alpha}{r}\, B A x$$
#
# Write `lora_forward(x, W, bias, A, B, alpha)`, which returns $y$.
#
# * `x` (..., k) with any number of dimensions before the last, also none; `W` (d, k); `bias` (d,) or
#   `None`; `A` (r, k); `B` (d, r); `alpha` a number; the result has shape (..., d). The rank r is not an
#   argument: the shapes say it.
# * $W$ and $b$ are **frozen**: no gradient reaches them, whatever their `requires_grad` says. Gradients do
#   reach $A$, $B$ and $x$, through both paths.
# * `x`, `W` and `bias` may be bfloat16 while `A` and `B` are float32. The result has the dtype of `x`.
# * Change no argument.
#
# Write `lora_init(d, k, r, seed)`, which returns the pair `A, B` of a new LoRA in float32: the numbers of
# $A$ are drawn independently and uniformly from $-1/\sqrt k$ to $1/\sqrt k$, $B$ is zero. The same seed gives the
# same $A$, another seed another one.
#
# <details><summary>A hint</summary>
#
# A tensor's `detach()` is the tensor without its way back. Put it on what is frozen, and on nothing else:
# the layers below this one learn through $W$.
#
# Two thin products are cheaper than one wide one: in which order do $x$, $A$ and $B$ have to meet so that the
# (d, k) matrix $BA$ is never made?
# </details>


# %% task="lora-linear"
def lora_forward(x, W, bias, A, B, alpha):
    ### BEGIN SOLUTION
    frozen = F.linear(x, W.detach(), None if bias is None else bias.detach())  # (..., d)
    narrow = x.to(A.dtype) @ A.T  # (..., R)
    change = alpha / len(A) * (narrow @ B.T)  # (..., d)
    return frozen + change.to(x.dtype)
    ### END SOLUTION


def lora_init(d, k, r, seed):
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    A = (2 * torch.rand(r, k, generator=generator) - 1) / math.sqrt(k)  # (R, k)
    return A, torch.zeros(d, r)
    ### END SOLUTION


# %% task="lora-linear" points=5
check.lora_linear(lora_forward, lora_init)

# %% tags=["hidden-test", "solution-only"]
assert check.lora_linear(lora_forward, lora_init).passed

# %% [markdown]
# The check never looks at a forward with $B = 0$ alone. Why? With $B = 0$ the low-rank path adds nothing, so
# that a forward without it, or with the wrong sign or scale, gives the right numbers.
#
# ### Experiment: train with it
#
# Your two functions go into a module, the module into every linear map of the world's base model, and that
# learns the demonstrations. In the loop we keep the length of the gradient of all $A$ and of all $B$.

# %% tags=["hide-input"]
# @title The course's LoRA, with the same arguments
from course_utils.adapters import LoRALinear


def course_forward(x, W, bias, A, B, alpha):
    d, k = W.shape
    with torch.device("meta"):
        layer = LoRALinear(nn.Linear(k, d, bias=bias is not None), len(A), alpha)
    values = {"A": A, "B": B, "base.weight": W.detach()}
    if bias is not None:
        values["base.bias"] = bias.detach()
    return torch.func.functional_call(layer, values, (x,))


def course_init(d, k, r, seed):
    torch.manual_seed(seed)
    layer = LoRALinear(nn.Linear(k, d, bias=False), r)
    return layer.A.detach(), layer.B.detach()


# %%
forward = check.use(lora_forward, otherwise=course_forward)
start = check.use(lora_init, otherwise=course_init)


class LoRA(nn.Module):
    """A frozen linear map, and A and B beside it."""

    def __init__(self, base, r, alpha, seed, open_path=True):
        super().__init__()
        d, k = base.weight.shape
        self.base, self.alpha, self.open_path = base, alpha, open_path
        A, B = start(d, k, r, seed)
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def forward(self, x):
        W, bias = self.base.weight, self.base.bias
        if self.open_path:
            return forward(x, W, bias, self.A, self.B, self.alpha)
        # As if W x + b had been computed under no_grad "because W is frozen":
        closed = forward(x, W, bias, self.A, 0 * self.B, self.alpha).detach()
        return closed + forward(x, 0 * W, None, self.A, self.B, self.alpha)


def put_lora(model, r=8, alpha=16, open_path=True):
    model = copy.deepcopy(model).requires_grad_(False)
    for seed, (path, module) in enumerate(list(model.named_modules())):
        if isinstance(module, nn.Linear) and ".layers." in path:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LoRA(module, r, alpha, seed, open_path))
    return model


def loras(model):
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRA)}


# %%
from course_utils.experiments.loop import batches, mean_loss, padded, summed_loss
from course_utils.training.tokenise import demonstration_rows


def rows_of(split, n):
    """Demonstrations as token ids; only the answer's tokens have labels."""
    longest = world.settings.sft.max_length
    return demonstration_rows(world.demonstrations(split, n), world.tokenizer, longest, split)


def length(gradients):
    return math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None))


def train(model, steps, learning_rate=3e-3):
    """One row a step: the loss, and the length of the gradient of all A and of all B."""
    adam = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=learning_rate)
    history = []
    for batch in itertools.islice(batches(learnt, 16, seed=0), steps):
        total, count = summed_loss(model, batch)
        (total / count).backward()
        history.append(
            {
                "loss": float(total.detach()) / count,
                "A": length(m.A.grad for m in loras(model).values()),
                "B": length(m.B.grad for m in loras(model).values()),
            }
        )
        adam.step()
        adam.zero_grad()
    return pd.DataFrame(history)


base = world.base().cpu()
learnt, held = (
    rows_of("train", 16 * 10 if fast else 16 * 40),
    rows_of("heldout", 16 if fast else 100),
)
STEPS = 3 if fast else 40
runs = {
    "α/r = 2": {"alpha": 16},
    "α/r = 1/8": {"alpha": 1},
    "α/r = 32": {"alpha": 256},
    "α/r = 2, path closed": {"alpha": 16, "open_path": False},
}
trained, history, held_loss = {}, {}, {"base": mean_loss(base, held)}
for name, options in runs.items():
    trained[name] = put_lora(base, **options)
    history[name] = train(trained[name], STEPS)
    held_loss[name] = mean_loss(trained[name], held)

# %% tags=["hidden-test"]
assert history["α/r = 2"]["A"][0] == 0
assert history["α/r = 2"]["B"][0] > 0
assert history["α/r = 2"]["A"][1] > 0
for model in trained.values():
    for path, module in loras(model).items():
        assert torch.equal(module.base.weight, base.get_submodule(path).weight), "W is frozen"
if not fast:
    assert held_loss["α/r = 2"] < held_loss["α/r = 1/8"] < held_loss["base"]
    assert held_loss["α/r = 2"] < held_loss["α/r = 2, path closed"]

# %% tags=["hide-input"]
# @title The runs, drawn
figure = plots.figure("Training with your LoRA, rank 8", x="step", y="loss, mean of 8 steps (nats)")
for i, (name, frame) in enumerate(history.items()):
    smooth = frame["loss"].rolling(8, min_periods=1).mean()
    plots.line(figure, frame.index, smooth.tolist(), name, plots.colour(i))
display(figure)
display(
    pd.DataFrame({"held-out loss": held_loss}).style.format("{:.3f}"),
    history["α/r = 2"].head(4).rename_axis("step").style.format("{:.4f}"),
)
Markdown(
    f"The base model's held-out loss is {held_loss['base']:.3f}. After training it is "
    f"**{held_loss['α/r = 2']:.3f}** with the path through $W$ open and **{held_loss['α/r = 2, path closed']:.3f}** with "
    f"it closed; {held_loss['α/r = 1/8']:.3f} with $\\alpha/r = 1/8$ and {held_loss['α/r = 32']:.3f} with "
    "$\\alpha/r = 32$, at one and the same learning rate."
)

# %% [markdown] task="why-lora-start" points=2
# **Question 1** *(2 points)*. The small table shows the gradients of the first steps. Why is that of $A$ exactly
# zero in step 0, and why does the training get going all the same? And why does the run with the closed path
# do so badly, although $W$ is frozen in both?
#
# ### BEGIN SOLUTION
# The gradient of $A$ is $\frac{\alpha}{r} B^\top G x^\top$: it passes through $B$, and $B$ is zero. That of $B$ passes
# through $A x$, which is random and not zero, so $B$ moves in step 0, and from step 1 on $A$ has a gradient, too.
# With both zero nothing would ever move.
#
# To freeze $W$ means that $W$ gets no gradient of its own. The *input* must get one through $W$ all the same: the
# layers below send their outputs to the loss through it. With the path closed they hear of the loss only through
# the residual stream and the low-rank paths (which carry nothing at first, as $B = 0$), so most of the true gradient
# is missing below each map, and they are pushed in directions that do not lower the loss.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · Merge and unmerge
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# $$W' = W + s\, B A, \qquad s = \frac{\alpha}{r} \quad\text{or, with rsLoRA,}\quad s = \frac{\alpha}{\sqrt r}$$
#
# Write `merge(W, A, B, alpha, rslora=False)`, which returns $W'$, and
# `unmerge(merged, A, B, alpha, rslora=False)`, which takes the change out again and returns $W$, up to rounding.
#
# * `W` and `merged` (d, k), `A` (r, k), `B` (d, r); `rslora=True` takes $\alpha/\sqrt r$.
# * `W` and `merged` may be float32, bfloat16 or float16, `A` and `B` are float32. The result has the dtype of `W`
#   (`merged`). Take product and sum in float32 and round once, at the end.
# * Return a new tensor: change no argument, and keep nothing aside between the two.
#
# <details><summary>A hint</summary>
#
# What dtype has the sum of a bfloat16 and a float32 tensor? And where are more digits lost: if $BA$ is rounded before
# the sum, or after it?
# </details>


# %% task="lora-merge"
def merge(W, A, B, alpha, rslora=False):
    ### BEGIN SOLUTION
    r = A.shape[0]
    scale = alpha / math.sqrt(r) if rslora else alpha / r
    return (W.float() + scale * (B @ A)).to(W.dtype)  # (d, k)
    ### END SOLUTION


def unmerge(merged, A, B, alpha, rslora=False):
    ### BEGIN SOLUTION
    return merge(merged, A, -B, alpha, rslora)
    ### END SOLUTION


# %% task="lora-merge" points=4
check.lora_merge(merge, unmerge)

# %% tags=["hidden-test", "solution-only"]
assert check.lora_merge(merge, unmerge).passed

# %% [markdown]
# ### Experiment: a hundred skills on one weight
#
# First the LoRA you have just trained is merged: the plain model must now give the adapted model's logits. Then a
# server merges an adapter, answers, unmerges it, takes the next: a hundred times. (The adapters here have a random
# $A$ and $B$, each as large as the trained one's.) How far is the weight from the original afterwards, measured in
# lengths of one $\Delta W$?


# %% tags=["hide-input"]
# @title The course's merging, with the same arguments
def course_merge(W, A, B, alpha, rslora=False, sign=1):
    d, k = W.shape
    layer = LoRALinear(nn.Linear(k, d, bias=False, dtype=W.dtype), len(A), alpha, rslora=rslora)
    layer.base.weight.data.copy_(W)
    layer.A.data.copy_(A)
    layer.B.data.copy_(sign * B)
    layer.merge()
    return layer.base.weight.detach().clone()


def course_unmerge(merged, A, B, alpha, rslora=False):
    return course_merge(merged, A, B, alpha, rslora, sign=-1)


# %%
add = check.use(merge, otherwise=course_merge)
take_out = check.use(unmerge, otherwise=course_unmerge)

adapted = trained["α/r = 2"]
plain = copy.deepcopy(base)
with torch.no_grad():
    for path, module in loras(adapted).items():
        weight = plain.get_submodule(path).weight
        weight.copy_(add(weight, module.A, module.B, module.alpha))
    ids, _ = padded(held[:8])  # (B, T)
    apart, together = adapted(input_ids=ids).logits, plain(input_ids=ids).logits
off = float((apart - together).abs().max())
print(f"merged: logits up to {float(apart.abs().max()):.1f}, largest difference {off:.1e}")

path, module = next(item for item in loras(adapted).items() if "down_proj" in item[0])
A, B = module.A.detach(), module.B.detach()
size = float((module.alpha / len(A) * B @ A).norm())
SWAPS = 10 if fast else 100
drift = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    torch.manual_seed(0)
    W = base.get_submodule(path).weight.detach().to(dtype)
    now, distance = W, []
    for _ in range(SWAPS):
        A_i, B_i = torch.randn_like(A) * A.std(), torch.randn_like(B) * B.std()
        now = take_out(add(now, A_i, B_i, module.alpha), A_i, B_i, module.alpha)
        distance.append(float((now.double() - W.double()).norm()) / size)
    drift[str(dtype).removeprefix("torch.")] = distance

# %% tags=["hidden-test"]
assert off < 1e-3
assert drift["bfloat16"][-1] > drift["float16"][-1] > drift["float32"][-1] > 0
assert drift["float32"][-1] < 1e-3

# %% tags=["hide-input"]
# @title The drift, drawn
figure = plots.figure(
    "How far the weight wanders", x="adapters merged and taken out", y="distance, in lengths of ΔW"
)
for i, (name, distance) in enumerate(drift.items()):
    plots.line(figure, range(1, SWAPS + 1), distance, name, plots.colour(i))
display(figure.update_layout(xaxis_type="log", yaxis_type="log"))
Markdown(
    f"After {SWAPS} swaps the float32 weight is {drift['float32'][-1]:.0e} lengths of a change away from where it "
    f"was, the bfloat16 weight **{drift['bfloat16'][-1]:.2f}**."
)

# %% [markdown] task="why-unmerge" points=2
# **Question 2** *(2 points)*. Why is `unmerge(merge(W))` not $W$ to the last bit, and why is that so much worse in
# bfloat16? You run the server: name two ways to swap adapters for years without any drift, and what each costs.
#
# ### BEGIN SOLUTION
# The sum is rounded to the weight's dtype when merging, and again when unmerging; what was rounded away does not come
# back. A number of bfloat16 has 8 significant bits (float16 11, float32 24), so its rounding is $2^{16}$ times as
# coarse as float32's, and a rounding error of the large $W$ is large beside the small $\Delta W$. Each swap adds its own
# random errors, so the drift grows, about as the square root of their number.
#
# Keep the original weights and copy them back instead of subtracting: exact, for a second copy of the adapted weights
# in memory. Or never merge: keep $A$ and $B$ beside the frozen $W$, at the price of two thin products in each forward
# (and different users can then share one batch). Merging in float32 only makes the drift small.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · What does a config train?
#
# *Difficulty 3 of 5 · about 30 minutes · 4 points*
#
# Write `lora_count(shapes, r, targets, modules_to_save=(), tied=False)`, which returns three numbers
# `trainable, total, share` as PEFT would count them.
#
# * `shapes` is a state dict's: parameter name -> shape as a list, such as
#   `{"model.layers.0.self_attn.q_proj.weight": [64, 64], "model.layers.0.self_attn.q_proj.bias": [64], ...}`.
#   A parameter's module is its name without the last part.
# * A name in `targets` means each module whose whole name it is, or whose name ends in it after a dot: `"up_proj"`
#   means `model.layers.0.mlp.up_proj` and not `model.layers.0.mlp.gate_up_proj`. It may have dots of its own
#   (`"self_attn.q_proj"`), and two names may mean the same module: it gets one LoRA.
# * Each target module's weight with two dimensions (d, k) gets an $A$ (r, k) and a $B$ (d, r); biases get nothing.
# * The modules that `modules_to_save` means (by the same rule) are trained in full, weight and bias, each as a
#   **copy of its own beside** the frozen original. No module is in both lists.
# * With `tied=True` `lm_head.weight` and `model.embed_tokens.weight`, which both stand in `shapes`, are one and the
#   same tensor in the base model. (Their copies by `modules_to_save` are not tied.)
# * `trainable` (int): the numbers of all $A$ and $B$ and of the saved copies. `total` (int): all numbers in the model,
#   frozen, $A$, $B$ and copies. `share` (float): `trainable / total`.
#
# <details><summary>A hint</summary>
#
# `("." + module).endswith("." + name)` asks both questions about a name at once. `math.prod([3, 4])` is 12.
# </details>


# %% task="lora-count"
def lora_count(shapes, r, targets, modules_to_save=(), tied=False):
    ### BEGIN SOLUTION
    def means(names, parameter):
        module = parameter.rpartition(".")[0]
        return any(("." + module).endswith("." + name) for name in names)

    frozen = lora = copies = 0
    for parameter, shape in shapes.items():
        numbers = math.prod(shape)
        if not (tied and parameter == "lm_head.weight"):
            frozen += numbers
        if means(targets, parameter) and len(shape) == 2:
            lora += r * sum(shape)
        if means(modules_to_save, parameter):
            copies += numbers
    trainable = lora + copies
    total = frozen + trainable
    return trainable, total, trainable / total
    ### END SOLUTION


# %% task="lora-count" points=4
check.lora_count(lora_count)

# %% tags=["hidden-test", "solution-only"]
assert check.lora_count(lora_count).passed

# %% [markdown]
# ### Experiment: three recipes, models of every size
#
# Models are built here on the *meta* device: shapes without memory, so that a 7B model fits on a laptop. The recipes:
# the paper's (q and v only), QLoRA's (every linear map of the layers), and the latter with the embedding and the head
# saved in full, as people do who add new tokens.

# %% tags=["hide-input"]
# @title The models, and PEFT's own count
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from course_utils.memory import MODELS

NAMES = ("smollm2-135m", "llama-7b") if fast else ("smollm2-135m", "qwen3-1.7b", "llama-7b")


def on_meta(name):
    if name == "this world":
        config = base.config
    else:
        published = dict(MODELS[name])
        config = AutoConfig.for_model(published.pop("model_type"), **published)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


models = {name: on_meta(name) for name in ("this world", *NAMES)}
all_shapes = {
    name: {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    for name, model in models.items()
}


def peft_count(shapes, r, targets, modules_to_save=(), tied=False):
    """Lets PEFT put the adapter on the model that these shapes are of, and counts."""
    (name,) = (n for n, theirs in all_shapes.items() if theirs is shapes)
    saved = list(modules_to_save) or None
    config = LoraConfig(r=r, target_modules=list(targets), modules_to_save=saved)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied weights: they are our subject
        model = get_peft_model(on_meta(name), config)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, total, trainable / total


# %%
count = check.use(lora_count, otherwise=peft_count)

linear_maps = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
recipes = {
    "q and v": (["q_proj", "v_proj"], []),
    "all linear": (linear_maps, []),
    "all linear, embeddings saved": (linear_maps, ["embed_tokens", "lm_head"]),
}
found = []
for (name, shapes), (what, (targets, saved)) in itertools.product(
    all_shapes.items(), recipes.items()
):
    tied = models[name].config.tie_word_embeddings
    for r in (8,) if fast else (8, 64):
        trainable, total, share = count(shapes, r, targets, saved, tied)
        found.append(
            {"model": name, "recipe": what, "rank": r, "trained": trainable, "share": share}
        )
counts = pd.DataFrame(found).set_index(["model", "recipe", "rank"])
counts.style.format({"trained": "{:,}", "share": "{:.2%}"})

# %% tags=["hidden-test"]
cases = [("this world", what) for what in recipes]
for name, what in [
    *cases,
    ("smollm2-135m", "all linear, embeddings saved"),
    ("llama-7b", "q and v"),
]:
    targets, saved = recipes[what]
    theirs = peft_count(all_shapes[name], 8, targets, saved)
    assert count(all_shapes[name], 8, targets, saved, tied=name != "llama-7b") == theirs
assert set(counts.index.get_level_values("model")) == set(all_shapes)
assert counts["share"].between(0, 1).all()

# %% tags=["hide-input"]
# @title In words
shares = counts["share"]
inside = shares[(shares >= 0.001) & (shares <= 0.01)]
saved_too = shares["smollm2-135m", "all linear, embeddings saved", 8]
Markdown(
    f"**{len(inside)} of {len(shares)}** cases lie within the lecture's 0.1 to 1%. Saving the embedding and the head takes "
    f"SmolLM2-135M at rank 8 from {shares['smollm2-135m', 'all linear', 8]:.1%} to **{saved_too:.0%}**, and LLaMA-7B from "
    f"{shares['llama-7b', 'all linear', 8]:.2%} to {shares['llama-7b', 'all linear, embeddings saved', 8]:.1%}."
)

# %% [markdown] task="why-lora-share" points=2
# **Question 3** *(2 points)*. Eight times the rank: why is the share not quite eight times as large? Why does a larger
# model pay a smaller share at the same rank? And what would you tell a colleague who adds ten new tokens to a
# small model with `modules_to_save=["embed_tokens", "lm_head"]` and wonders about the size of the file?
#
# ### BEGIN SOLUTION
# The trained numbers grow exactly eightfold, but they are in the total as well, so it grows too, and the share falls
# behind (strongly where the share is large).
#
# One map has the share $r(d + k)/(dk) = r(1/d + 1/k)$: it falls as the model gets wider.
#
# Two full copies of the vocabulary's matrix are trained and saved (two even where the model ties them), which in a small
# model is a large part of all numbers. Training only the new rows (PEFT's `trainable_token_indices`) needs ten rows
# instead of the whole vocabulary.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · The rank of a change
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# $$\text{the smallest } n \text{ with}\quad \sum_{i \le n} \sigma_i^2 \;\ge\; (\tau - 10^{-9}) \sum_i \sigma_i^2$$
#
# Write `energy_rank(delta, tau)`, which returns this $n$ as an int.
#
# * `delta` (d, k), $0 < \tau \le 1$; $\sigma_1 \ge \sigma_2 \ge \dots$ are its singular values. The $10^{-9}$ is for the
#   rounding of sums: a product of rank 3 has $n = 3$ at $\tau = 1$.
# * A matrix of zeros has $n = 0$.
# * `delta` may be bfloat16, and its numbers as small as $10^{-25}$ or as large as $10^{25}$.
#
# <details><summary>A hint</summary>
#
# `torch.linalg.svdvals` gives the values in falling order; it does not take bfloat16. What is $(10^{-25})^2$ in
# float32, whose smallest number is about $10^{-45}$?
# </details>


# %% task="energy-rank"
def energy_rank(delta, tau):
    ### BEGIN SOLUTION
    sigma = torch.linalg.svdvals(delta.double())  # (min(d, k),), falling
    energy = (sigma**2).cumsum(0)
    if energy[-1] == 0:
        return 0
    return int((energy < (tau - 1e-9) * energy[-1]).sum()) + 1
    ### END SOLUTION


# %% task="energy-rank" points=4
check.energy_rank(energy_rank)

# %% tags=["hidden-test", "solution-only"]
assert check.energy_rank(energy_rank).passed

# %% [markdown]
# ### Experiment: a full fine-tuning, cut to what it needs
#
# `world.sft()` was trained with every weight free. Its change $\Delta W$ of each matrix is cut to its own rank, the one
# your function finds for $\tau$, put on the base model, and the loss measured. That is how an existing fine-tuning is
# made into a LoRA file.

# %% tags=["hide-input"]
# @title The course's rank, with the same arguments
from course_utils.adapters import rank_for_energy


def course_rank(delta, tau):
    return rank_for_energy(delta, tau) if delta.any() else 0


# %%
rank_of = check.use(energy_rank, otherwise=course_rank)

sft = world.sft().cpu()
changes = {
    name: (weight - base.get_parameter(name)).detach()
    for name, weight in sft.named_parameters()
    if weight.dim() == 2
}
whole = sum(delta.numel() for delta in changes.values())
TAUS = (0.5, 0.9) if fast else (0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
ranks, cut_loss, kept = {}, {}, {}
for tau in TAUS:
    ranks[tau] = {name: rank_of(delta, tau) for name, delta in changes.items()}
    model = copy.deepcopy(sft)
    for name, delta in changes.items():
        U, sigma, Vt = torch.linalg.svd(delta, full_matrices=False)
        r = ranks[tau][name]
        model.get_parameter(name).data -= delta - (U[:, :r] * sigma[:r]) @ Vt[:r]
    cut_loss[tau] = mean_loss(model, held)
    kept[tau] = sum(ranks[tau][name] * sum(delta.shape) for name, delta in changes.items()) / whole
full_loss = mean_loss(sft, held)
gained = {
    t: (held_loss["base"] - loss) / (held_loss["base"] - full_loss) for t, loss in cut_loss.items()
}
lora_ranks = [rank_of((m.B @ m.A).detach(), 0.9) for m in loras(adapted).values()]

pd.DataFrame(
    {
        "median rank": {t: pd.Series(ranks[t]).median() for t in TAUS},
        "numbers in the file, share of ΔW's": kept,
        "share of the gain": gained,
    }
).rename_axis("τ").style.format("{:.0%}").format("{:.0f}", subset=["median rank"])

# %% tags=["hidden-test"]
for low, high in itertools.pairwise(TAUS):
    assert all(0 < ranks[low][name] <= ranks[high][name] for name in changes)
assert all(1 <= r <= 8 for r in lora_ranks)
if not fast:
    assert gained[0.99] > 0.9
    assert gained[0.99] > gained[0.3]

# %% tags=["hide-input"]
# @title Energy kept, gain kept
figure = plots.figure(
    "What a share of the energy is worth", x="τ: share of the energy kept", y="share"
)
plots.line(
    figure,
    TAUS,
    list(gained.values()),
    "gain of the fine-tuning",
    plots.COLOURS["sft"],
    mode="lines+markers",
)
plots.line(
    figure,
    TAUS,
    list(kept.values()),
    "numbers in the file",
    plots.COLOURS["ppo"],
    mode="lines+markers",
)
plots.line(figure, TAUS, list(TAUS), "energy", plots.COLOURS["base"], line={"dash": "dot"})
display(figure.update_layout(yaxis_tickformat=".0%", xaxis_tickformat=".0%"))
Markdown(
    f"Half of the energy brings **{gained[0.5]:.0%}** of the gain, in a file with {kept[0.5]:.0%} of the numbers. "
    f"At τ = 90% the median matrix needs {pd.Series(ranks[0.9]).median():.0f} directions and the file has "
    f"{kept[0.9]:.0%} of the numbers. "
    f"The LoRA of task 1 was trained at rank 8 and has {min(lora_ranks)} to {max(lora_ranks)} directions at τ = 90%; its "
    f"held-out loss is {held_loss['α/r = 2']:.3f}, that of the full fine-tuning {full_loss:.3f}."
)

# %% [markdown] task="why-energy-rank" points=2
# **Question 4** *(2 points)*. Compare the three curves. What does the rank at 90% of the energy say about the rank
# that a LoRA needs for the same task, and what does it not say? When is a cut $\Delta W$ stored as $A$ and $B$
# *larger* than $\Delta W$ itself?
#
# ### BEGIN SOLUTION
# The gain runs ahead of the energy: the first directions carry most of what was learnt, and the rest of the energy is
# spread over many directions that matter little to the loss (noise of the optimiser's steps, for example). So the rank
# at 90% is no lower limit for LoRA: energy counts numbers, not behaviour. And a LoRA is not held to the directions that
# full fine-tuning took; trained at low rank from the start it can choose others, so at rank 8 it comes close with fewer
# directions than τ = 90% asks for.
#
# $A$ and $B$ have $r(d + k)$ numbers, $\Delta W$ has $dk$: the file is larger as soon as $r > dk/(d + k)$, for a square
# matrix half of its width.
# ### END SOLUTION

# %% [markdown]
# ## Task 5 · Two adapters into one
#
# *Difficulty 3 of 5 · about 30 minutes · 5 points*
#
# Write `linear_merge(deltas, weights)`, which returns $\sum_i w_i \Delta W_i$, for a list of N changes of shape (d, k) and
# a list of N numbers (which need not add up to 1, and may be negative).
#
# Write `ties_merge(deltas, density, lam=1.0)`, TIES by Yadav et al. 2023 (algorithm 1):
#
# 1. **Trim**: in each $\Delta W_i$ by itself keep the $n$ numbers that are largest in magnitude, $n$ = `density` times their
#    number, rounded to a whole number; set the others to 0. This gives $\hat\Delta_i$.
# 2. **Elect**: for each place the sign $\gamma = \operatorname{sgn}\big(\sum_i \hat\Delta_i\big)$, where $\operatorname{sgn}(0) = 0$.
# 3. **Disjoint mean**: for each place the mean of those $\hat\Delta_i$ whose sign is $\gamma \neq 0$; where $\gamma = 0$ the result
#    is 0.
# 4. Multiply by $\lambda$ (`lam`).
#
# Both return a new tensor (d, k) and change no argument; $0 <$ `density` $\le 1$.
#
# <details><summary>A hint</summary>
#
# `torch.stack(deltas)` is (N, d, k). `x.abs().flatten().topk(n).indices` are the places to keep, counted from the start of the
# flat matrix. A mean over some of them is a sum divided by a count: what if the count is 0?
# </details>


# %% task="ties-merge"
def linear_merge(deltas, weights):
    ### BEGIN SOLUTION
    return sum(w * delta for w, delta in zip(weights, deltas, strict=True))
    ### END SOLUTION


def ties_merge(deltas, density, lam=1.0):
    ### BEGIN SOLUTION
    trimmed = []
    for delta in deltas:
        flat = delta.flatten()
        places = flat.abs().topk(round(density * flat.numel())).indices
        kept = torch.zeros_like(flat)
        kept[places] = flat[places]
        trimmed.append(kept.view_as(delta))
    stack = torch.stack(trimmed)  # (N, d, k)
    sign = stack.sum(0).sign()  # (d, k)
    agree = (stack.sign() == sign) & (sign != 0)  # (N, d, k)
    return lam * (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
    ### END SOLUTION


# %% task="ties-merge" points=5
check.ties_merge(linear_merge, ties_merge)

# %% tags=["hidden-test", "solution-only"]
assert check.ties_merge(linear_merge, ties_merge).passed

# %% [markdown]
# ### Experiment: a pirate and a bard
#
# A base that has read several styles, and two LoRA adapters: one talks like a pirate, one like a bard. Your functions merge
# their changes, matrix by matrix. The score of a style is the share of its chances that an answer takes, from 0 to 1;
# no text can reach 1 in both, as some words have a version in each. The gold reward is measured with the styles taken off
# again.

# %% tags=["hide-input"]
# @title PEFT's merging, with the same arguments
from peft.utils.merge_utils import task_arithmetic, ties


def peft_linear(deltas, weights):
    return task_arithmetic(list(deltas), torch.tensor(weights))


def peft_ties(deltas, density, lam=1.0):
    return lam * ties(list(deltas), torch.ones(len(deltas)), density)


# %%
from dataclasses import replace

from course_utils.experiments import styles

linear = check.use(linear_merge, otherwise=peft_linear)
ties_of = check.use(ties_merge, otherwise=peft_ties)

reading = replace(styles.READING, steps=3 if fast else 150)
training = replace(styles.TRAINING, steps=3 if fast else 40)
reader, tokenizer = styles.style_base(world.seed, reading)
PAIR = ("pirate", "bard")
adapters = {s: styles.train_style(reader, tokenizer, s, world.seed, training) for s in PAIR}


# %%
def changes_of(adapter):
    """Path of a weight -> its ΔW = (α/r) B A."""
    scale = adapter.config.lora_alpha / adapter.config.r
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scale
        * adapter.weights[key.replace("lora_A", "lora_B")]
        @ A
        for key, A in adapter.weights.items()
        if "lora_A" in key
    }


updates = {style: changes_of(adapter) for style, adapter in adapters.items()}
recipes = {
    "base": lambda deltas: 0 * deltas[0],
    "pirate alone": lambda deltas: linear(deltas, [1.0, 0.0]),
    "bard alone": lambda deltas: linear(deltas, [0.0, 1.0]),
    "sum": lambda deltas: linear(deltas, [1.0, 1.0]),
    "mean": lambda deltas: linear(deltas, [0.5, 0.5]),
    "TIES, 50% kept": lambda deltas: ties_of(deltas, 0.5),
    "TIES, 20% kept": lambda deltas: ties_of(deltas, 0.2),
    "TIES, 20% kept, λ = 2": lambda deltas: ties_of(deltas, 0.2, 2.0),
}
scores = {}
for name, recipe in recipes.items():
    model = copy.deepcopy(reader)
    for path in updates["pirate"]:
        merged = recipe([updates[style][path] for style in PAIR])
        model.get_submodule(path).weight.data += merged
    scores[name] = styles.style_scores(model, tokenizer, 4 if fast else 32)
table = pd.DataFrame(scores).T[[*PAIR, "gold"]]
conflicts = [
    float((a * b < 0)[(a.abs() > a.abs().median()) & (b.abs() > b.abs().median())].double().mean())
    for a, b in zip(*(updates[s].values() for s in PAIR), strict=True)
]
table.rename(columns={"gold": "gold, styles off"}).style.format("{:.2f}")

# %% tags=["hidden-test"]
assert table[list(PAIR)].stack().between(0, 1).all()
assert set(updates["pirate"]) == set(updates["bard"])
one = [updates[s]["model.layers.0.self_attn.q_proj"] for s in PAIR]
torch.testing.assert_close(ties_of(one, 0.5, 1.5), peft_ties(one, 0.5, 1.5))
torch.testing.assert_close(linear(one, [0.5, -1.0]), peft_linear(one, [0.5, -1.0]))
if not fast:
    assert table.loc["pirate alone", "pirate"] > table.loc["bard alone", "pirate"]
    assert table.loc["bard alone", "bard"] > table.loc["pirate alone", "bard"]

# %% tags=["hide-input"]
# @title The scores, drawn
figure = plots.figure("Two styles in one", y="style score", height=340, barmode="group")
for i, style in enumerate(PAIR):
    plots.bars(figure, list(table.index), table[style].tolist(), plots.colour(i), style)
display(figure)
weaker = table[list(PAIR)].min(axis=1).drop(["base", "pirate alone", "bard alone"])
clash = sum(conflicts) / len(conflicts)
Markdown(
    f"Where both changes are above their median size, their signs differ in {clash:.0%} of the places. The mixture in which "
    f"the weaker style shows most is *{weaker.idxmax()}* ({weaker.max():.2f}), the one in which it shows least is "
    f"*{weaker.idxmin()}* ({weaker.min():.2f})."
)

# %% [markdown] task="why-ties" points=2
# **Question 5** *(2 points)*. TIES was made for places where changes disagree. How many signs would differ if the two
# changes were independent random numbers, and what does the measured share say? At a place that only one adapter kept,
# what do the sum, the mean and TIES give, and what follows for the strength of each style? Then describe what your table shows, and what it is too small to show.
#
# ### BEGIN SOLUTION
# Of independent numbers half would have different signs. A share near one half therefore says that the two changes are
# nearly unrelated, which a sum can carry side by side; a share clearly below it, that they push much the same way in many
# places (here: away from the base's neutral answers), and one clearly above it, that they work against each other.
#
# At a place that only one adapter kept, the sum gives its full change, the mean half of it, and TIES the full change,
# since its mean is over those that agree. Where both agree, the sum adds both pushes and TIES takes their mean. So at
# λ = 1 TIES lies between the mean and the sum in strength; trimming takes a part of each change away, for which a λ above 1
# can make up.
#
# What the table shows (to be judged by the student's own): in a mixture both styles score lower than alone, and one of
# them is the stronger in every recipe. No recipe removes that: a larger λ makes the stronger style stronger, and can
# cost gold reward. Differences of a few hundredths, over so few prompts, are no finding.
# ### END SOLUTION

# %% [markdown]
# **Next:** the exercises of lesson 07, in which the frozen $W$ has four bits a number.
