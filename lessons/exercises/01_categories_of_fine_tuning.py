# %% [markdown] seconds=60
# # Exercises 01 · Categories of fine-tuning
#
# Four tasks that belong to lesson 01: a Houlsby adapter, a prefix, a count of what trains, and a
# measure of forgetting. For each one: write the function, run the check below it until it says
# *passed*, then run the small experiment, which trains with **your** function, and answer the
# question.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from course_utils import Lab, check

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
world

# %% [markdown]
# The ground for all experiments is lesson 01's: a model that can talk in several styles, the task of
# **answering like a pirate**, and dry encyclopedia text as what the model knew before. Everyone gets
# the same batches.

# %%
import dataclasses

import pandas as pd
from IPython.display import display

from course_utils import adapters, plots
from course_utils.experiments import categories, loop, styles
from course_utils.training.trl_common import quiet_libraries
from course_utils.world import plain_corpus

fast = world.tier.is_fast
SEED, tokenizer = world.seed, world.tokenizer
with quiet_libraries(progress=False):
    if fast:
        pretrained, _ = styles.style_base(SEED, dataclasses.replace(styles.READING, steps=3))
    else:  # some seconds, once; then it is kept in runs/style-base
        pretrained, _ = styles.saved_style_base(world.run_directory("style-base"))

steps, batch, held = (3, 8, 8) if fast else (30, 16, 24)
pirate_rows = categories.task_rows("pirate", "train", steps * batch, SEED, tokenizer)
heldout = categories.task_rows("pirate", "heldout", held, SEED, tokenizer)
dry_rows = loop.text_rows(plain_corpus(held, seed=1), tokenizer)
D, L = pretrained.config.hidden_size, len(pretrained.model.layers)


def tune(model, rate, rows=pirate_rows, steps=steps, look=None):
    """Trains in place whatever may move; returns [look(model)] from before to after."""
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.0)
    seen = []
    for step, given in zip(range(steps + 1), loop.batches(rows, batch, SEED), strict=False):
        if look and (step % max(1, steps // 6) == 0 or step == steps):
            seen.append(look(model))
        if step < steps:
            loop.train_step(model, optimizer, given)
    return seen


def task_loss(model):
    return loop.mean_loss(model, heldout)  # nats per token of an answer


print(f"{pretrained.num_parameters():,} numbers, {L} layers of width {D}")
print(f"untrained: {task_loss(pretrained):.3f} nats on the task")

# %% [markdown]
# ## Task 1 · A Houlsby adapter
#
# *Difficulty 2 of 5 · about 20 minutes · 5 points*
#
# $$h \;\leftarrow\; h + W_{\text{up}}\,\text{GELU}(W_{\text{down}}\,h + b_{\text{down}}) + b_{\text{up}}$$
#
# Write two functions.
#
# `houlsby_init(hidden, bottleneck, seed)` makes a fresh adapter for $D$ = `hidden` and $M$ =
# `bottleneck` features: a tuple of four float32 tensors, `W_down` (M, D), `b_down` (M,),
# `W_up` (D, M), `b_up` (D,).
#
# * `W_down` is random with mean 0 and standard deviation 0.01, the others are zero: at the start
#   the adapter is the identity.
# * `seed` (an int) alone decides the numbers: the same seed gives the same adapter, another seed
#   another.
#
# `houlsby_forward(h, W_down, b_down, W_up, b_up)` applies an adapter.
#
# * `h` has the shape (…, D), with any number of dimensions before the last, even a size of 0 among
#   them; so has the result. `h` itself must stay as it is.
# * GELU is the exact one, `F.gelu` without further arguments.
# * `h` may be bfloat16 while the adapter is float32: the adapter computes in its own dtype, the
#   result has the dtype of `h`.
#
# <details><summary>A hint</summary>
#
# `h @ W.T` works for any number of leading dimensions. A `torch.Generator` with `manual_seed` keeps
# your draws apart from everyone else's.
# </details>


# %% task="houlsby-adapter"
def houlsby_init(hidden, bottleneck, seed):
    ### BEGIN SOLUTION
    generator = torch.Generator().manual_seed(seed)
    W_down = 0.01 * torch.randn(bottleneck, hidden, generator=generator)
    b_down, W_up = torch.zeros(bottleneck), torch.zeros(hidden, bottleneck)
    return W_down, b_down, W_up, torch.zeros(hidden)
    ### END SOLUTION


def houlsby_forward(h, W_down, b_down, W_up, b_up):
    ### BEGIN SOLUTION
    narrow = F.gelu(h.to(W_down.dtype) @ W_down.T + b_down)  # (..., M)
    return h + (narrow @ W_up.T + b_up).to(h.dtype)
    ### END SOLUTION


# %% task="houlsby-adapter" points=5
check.houlsby_adapter(houlsby_init, houlsby_forward)

# %% tags=["hidden-test", "solution-only"]
assert check.houlsby_adapter(houlsby_init, houlsby_forward).passed

# %% [markdown]
# ### Experiment: does the start matter?
#
# Three times the same adapters behind the same eight projections, trained on the same batches: with
# your start; with both matrices random and large; and with *everything* zero, which is the identity
# too.

# %% tags=["hide-input"]
# @title The course's adapter under your functions' names, for as long as yours is not ready
from torch.func import functional_call

ADAPTER_NAMES = ("down.weight", "down.bias", "up.weight", "up.bias")


def course_init(hidden, bottleneck, seed):
    torch.manual_seed(seed)
    made = dict(adapters.Bottleneck(hidden, bottleneck).named_parameters())
    return tuple(made[name].detach() for name in ADAPTER_NAMES)


def course_forward(h, *weights):
    with torch.device("meta"):
        module = adapters.Bottleneck(h.shape[-1], len(weights[1]))
    return functional_call(module, dict(zip(ADAPTER_NAMES, weights, strict=True)), (h,))


# %%
init = check.use(houlsby_init, otherwise=course_init)
forward = check.use(houlsby_forward, otherwise=course_forward)


class Adapted(nn.Module):
    """A projection with an adapter behind it."""

    def __init__(self, projection, weights):
        super().__init__()
        self.projection = projection
        self.weights = nn.ParameterList(weights)

    def forward(self, x):
        return forward(self.projection(x), *self.weights)


def with_adapters(start, bottleneck=8):
    """A copy of the model with an adapter behind each layer's two output projections."""
    model = copy.deepcopy(pretrained).requires_grad_(False)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj, start(D, bottleneck, 2 * i))
        layer.mlp.down_proj = Adapted(layer.mlp.down_proj, start(D, bottleneck, 2 * i + 1))
    return model


def careless(hidden, bottleneck, seed):
    W_down, b_down, W_up, b_up = init(hidden, bottleneck, seed)
    return 30 * W_down, b_down, 0.3 * torch.randn(W_up.shape), b_up


def all_zeros(hidden, bottleneck, seed):
    return [torch.zeros_like(t) for t in init(hidden, bottleneck, seed)]


starts = {"W_up = 0": init, "both random, std 0.3": careless, "all zeros": all_zeros}
houlsby_curves, moved = {}, {}
for name, start in starts.items():
    torch.manual_seed(SEED)
    model = with_adapters(start)
    fresh = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    houlsby_curves[name] = tune(model, 1e-2, look=task_loss)
    adapted = [key for key in fresh if ".0." in key and "o_proj" in key]  # the first adapter's four
    values = dict(model.named_parameters())
    changes = [(values[key] - fresh[key]).abs().mean().item() for key in adapted]
    moved[name] = dict(zip(("W_down", "b_down", "W_up", "b_up"), changes, strict=True))

# %% tags=["hidden-test"]
identity = [curve[0] for curve in (houlsby_curves["W_up = 0"], houlsby_curves["all zeros"])]
assert all(abs(loss - task_loss(pretrained)) < 1e-4 for loss in identity)
assert moved["all zeros"]["W_down"] == moved["all zeros"]["W_up"] == 0
assert moved["W_up = 0"]["W_down"] > 0 < moved["W_up = 0"]["W_up"]
if not fast:
    finals = {name: curve[-1] for name, curve in houlsby_curves.items()}
    assert min(finals, key=finals.get) == "W_up = 0", finals

# %% tags=["hide-input"]
# @title Task loss along the training, and what moved in the first adapter
figure = plots.figure("Three starts of the same adapters", "measurement", "nats on the task")
for i, (name, curve) in enumerate(houlsby_curves.items()):
    plots.line(figure, range(len(curve)), curve, name, plots.colour(i), mode="lines+markers")
figure.update_yaxes(type="log")  # the careless start is far off
display(figure)
pd.DataFrame(moved).T.rename_axis("mean change of").style.format("{:.4f}")

# %% [markdown] task="why-houlsby-start" points=2
# **Question 1 (2 points).** The start with all zeros is the identity, just as yours. Which of its
# four tensors moved, and why only that? Your `W_down` gets no gradient in the very first step
# either: why does it move all the same? And what does the careless start pay for?
#
# ### BEGIN SOLUTION
# With everything zero the bottleneck's features are GELU(0) = 0. The gradient of `W_up` has these
# features as a factor, the gradients of `W_down` and `b_down` have `W_up` as a factor: all three
# are zero at every step, and only `b_up` moves. What is trained is a constant shift behind each
# projection, a kind of BitFit. With `W_up` = 0 and a random `W_down` the features are not zero, so
# `W_up` moves in the first step; from the second step on it is not zero, and `W_down` gets its
# gradient. The careless start changes all hidden states at random: its first loss is far above the
# untrained model's, and the training must first repair that damage, which it did not manage within
# these steps.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · A prefix in attention
#
# *Difficulty 3 of 5 · about 30 minutes · 5 points*
#
# $$\text{head}_t = \sum_{j} w_{tj}\,[P_V; V]_j, \qquad w_{tj} = \frac{e^{s_{tj}}}{\sum_{i \text{ seen}} e^{s_{ti}}} \text{ where } j \text{ is seen, else } 0, \qquad s_{tj} = \frac{q_t \cdot [P_K; K]_j}{\sqrt d}$$
#
# Write `prefix_attention(q, k, v, prefix_k, prefix_v, mask)`.
#
# * `q`, `k`, `v` (B, H, T, d): queries, keys and values of B rows, H heads, T tokens, d features a
#   head;
# * `prefix_k`, `prefix_v` (H, N, d): the prefix, the same for every row;
# * `mask` (B, T), whole numbers: 1 for a real token, 0 for padding, which may stand before the text
#   or after it.
#
# The result has the shape and the dtype of `q`.
#
# * A query at place t sees the **whole** prefix, and of the text the real tokens at places ≤ t, its
#   own included.
# * The mask says which *keys* are seen. Every query gets its output by the same rule, also one at
#   padding.
# * N may be 0. A query that then sees nothing gives 0, not NaN.
# * Scores may be in the hundreds of thousands, and what is hidden stays hidden. All of q, k, v and
#   the prefix may be bfloat16 or float16.
#
# <details><summary>A hint</summary>
#
# First decide, as a table of booleans (B, 1, T, N + T), who sees whom. Its first N columns are
# easy; the others are a causal triangle and the mask together. Whether the prefix stands before the
# text or behind it makes no difference to attention, so long as the table fits.
# </details>


# %% task="prefix-attention"
def prefix_attention(q, k, v, prefix_k, prefix_v, mask):
    ### BEGIN SOLUTION
    B, _, T, d = q.shape
    N = prefix_k.shape[1]
    keys = torch.cat([prefix_k.expand(B, -1, -1, -1), k], dim=2)  # (B, H, N + T, d)
    values = torch.cat([prefix_v.expand(B, -1, -1, -1), v], dim=2)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    text = causal & mask.bool()[:, None, None]  # (B, 1, T, T)
    seen = F.pad(text, (N, 0), value=True)  # (B, 1, T, N + T)
    scores = q.float() @ keys.float().transpose(-1, -2) / d**0.5  # (B, H, T, N + T)
    scores = scores.masked_fill(~seen, float("-inf"))
    weights = torch.where(seen, scores.softmax(dim=-1), 0.0)  # a row that sees nothing: 0, not NaN
    return weights.to(q.dtype) @ values
    ### END SOLUTION


# %% task="prefix-attention" points=5
check.prefix_attention(prefix_attention)

# %% tags=["hidden-test", "solution-only"]
assert check.prefix_attention(prefix_attention).passed

# %% [markdown]
# ### Experiment: your attention in the model
#
# The model now computes its attention with your function, in every layer. First, does it give what
# the library's prefix tuning gives? Then the prefix is trained, with N = 1, 8 and 32.

# %% tags=["hide-input"]
# @title The checks' own attention, for as long as yours is not ready, and how one is put into a model
from transformers import AttentionInterface

from course_utils.grading.tasks.set_01 import prefix_attention as prefix_check


def course_attention(q, k, v, prefix_k, prefix_v, mask):
    return prefix_check.reference(q, k, v, prefix_k, prefix_v, mask).to(q.dtype)


attend = check.use(prefix_attention, otherwise=course_attention)
shares = {}  # layer -> the prefix's share of the attention, mean over queries and heads


def attention_with_prefix(layer, q, k, v, attention_mask, **_):
    """What the model calls in each layer; its rows are padded on the right."""
    mask = torch.ones(len(q), q.shape[2], dtype=torch.long)
    P_k, P_v = layer.prefix_k, layer.prefix_v
    if not torch.is_grad_enabled():
        ones = attend(q, k, torch.zeros_like(v), P_k, torch.ones_like(P_v), mask)
        shares[layer.layer_idx] = ones.mean().item()
    return attend(q, k, v, P_k, P_v, mask).transpose(1, 2), None


AttentionInterface.register("with_prefix", attention_with_prefix)


def with_prefix(length, seed=SEED):
    """A copy of the model that attends to N trained keys and values, small random ones at first."""
    torch.manual_seed(seed)
    model = copy.deepcopy(pretrained).requires_grad_(False)
    heads = model.config.num_key_value_heads
    for layer in model.model.layers:
        shape = (heads, length, D // heads)
        layer.self_attn.prefix_k = nn.Parameter(0.02 * torch.randn(shape))
        layer.self_attn.prefix_v = nn.Parameter(0.02 * torch.randn(shape))
    model.set_attn_implementation("with_prefix")
    return model


# %%
ids, _ = loop.padded(heldout[:4])  # (B, T)
mine = with_prefix(4)
theirs = adapters.apply_prefix_tuning(copy.deepcopy(pretrained), length=4)
with torch.no_grad():
    for i, layer in enumerate(mine.model.layers):
        theirs.model.prefix.keys[i] = layer.self_attn.prefix_k
        theirs.model.prefix.values[i] = layer.self_attn.prefix_v
    places = torch.arange(4, 4 + ids.shape[1])[None]  # the library counts the text from N on
    logits = mine(input_ids=ids, position_ids=places, use_cache=False).logits
    torch.testing.assert_close(logits, theirs(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
print("the same logits as the library's prefix tuning")

# %% [markdown]
# How much of the attention goes to the prefix? Your function can measure it: with 0 for the text's
# values and 1 for the prefix's, what comes out *is* the prefix's share λ. (Look for `shares` in the
# folded cell.)

# %%
prefix_runs = {}
for N in (1, 8, 32):
    model = with_prefix(N)
    first = task_loss(model), list(shares.values())
    tune(model, 3e-2)
    prefix_runs[N] = first, (task_loss(model), list(shares.values()))

# %% tags=["hidden-test"]
for N, pair in prefix_runs.items():
    for loss, by_layer in pair:
        assert math.isfinite(loss)
        assert len(by_layer) == L
        assert all(0 < share < 1 for share in by_layer), N
assert prefix_runs[32][0][1][0] > prefix_runs[1][0][1][0]
if not fast:
    assert prefix_runs[32][0][0] > max(prefix_runs[1][0][0], task_loss(pretrained))

# %% tags=["hide-input"]
# @title The prefix's share λ of the attention in each layer, before and after the training
figure = plots.figure("How much of the attention goes to the prefix?", "layer", "share λ")
for i, (N, (begun, ended)) in enumerate(prefix_runs.items()):
    for dash, (_, by_layer), when in (("dot", begun, "before"), ("solid", ended, "after")):
        style = {"line": {"dash": dash}, "mode": "lines+markers"}
        plots.line(figure, range(1, L + 1), by_layer, f"N = {N}, {when}", plots.colour(i), **style)
figure.update_yaxes(range=[0, 1]).update_xaxes(dtick=1)
display(figure)
losses = {f"N = {N}": (begun[0], ended[0]) for N, (begun, ended) in prefix_runs.items()}
losses["no prefix"] = (task_loss(pretrained),) * 2
pd.DataFrame(losses, index=["before", "after"]).T.rename_axis("nats on the task").style.format(
    "{:.3f}"
)

# %% [markdown] task="why-prefix-share" points=2
# **Question 2 (2 points).** These prefixes start with values of nearly 0, so they have next to
# nothing to say. Why does the model get worse before any training, and the more so the larger N is?
# Is there a prefix that leaves the model as it was?
#
# ### BEGIN SOLUTION
# The softmax shares out a whole of 1 among all keys. Keys of nearly 0 have scores of nearly 0, that
# is, a weight of e⁰ = 1 each before the division, so N of them take a share λ that grows with N
# (the dotted lines). The text gets 1 − λ, and since the prefix's values are about 0, each head's
# output shrinks to (1 − λ) times what it was: that is not the model that was trained. Values of 0
# do not make a prefix harmless; λ = 0 would, but e to the power of a score is positive for every
# finite key. Keys whose scores are very negative for *all* queries come close, and N = 0 is exactly
# the base. Training has to find keys and values that are worth their share.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · Count what trains
#
# *Difficulty 2 of 5 · about 25 minutes · 4 points*
#
# "LoRA trains 0.1 to 1% of the parameters": of which model, at which rank, on which matrices? Write
# `count_parameters(parameters, method, settings)`, which returns a tuple of two ints: how many
# numbers train, and how many the model has with the method's new numbers included.
#
# `parameters` is a list of dicts, one for each name in the model:
# `{"name": "layers.0.self_attn.q_proj.weight", "shape": [d, k], "tied_to": None}`. A matrix has the
# shape [outputs d, inputs k], an embedding [words, width]; biases and norms have one size only. Where
# `tied_to` is another parameter's name, the two are one and the same tensor, stored once.
#
# `settings["targets"]` lists modules by their own name, such as `["q_proj", "v_proj"]`: it means each
# module whose last name is *exactly* that, in all layers; what counts is its `.weight`.
#
# | `method` | trains | `settings` |
# |---|---|---|
# | `"full"` | everything | `{}` |
# | `"bitfit"` | the biases that there are, all parameters whose name ends in `.bias` | `{}` |
# | `"lora"` | new: A (r, k) and B (d, r) beside each target's weight (d, k) | `rank` r, `targets` |
# | `"houlsby"` | new: behind each target an adapter as in task 1, on its d outputs | `bottleneck` M, `targets` |
# | `"prefix"` | new: N vectors for each target, as wide as its d outputs | `length` N, `targets` (keys and values, such as `k_proj` and `v_proj`) |
# | `"prompt"` | new: N vectors as wide as the target's embedding | `length` N, `targets` (the embedding) |
#
# * New numbers are never tied: a LoRA beside a tied head counts.
# * Without any target nothing trains. The list may be empty.
# * The counts are exact, also for a model of billions.
#
# <details><summary>A hint</summary>
#
# `name.split(".")` ends in the module's own name and the word `weight`. `math.prod` multiplies a
# shape.
# </details>


# %% task="trainable-parameters"
def count_parameters(parameters, method, settings):
    ### BEGIN SOLUTION
    own = [p for p in parameters if p["tied_to"] is None]
    base = sum(math.prod(p["shape"]) for p in own)
    if method == "full":
        return base, base
    if method == "bitfit":
        trained = sum(math.prod(p["shape"]) for p in own if p["name"].endswith(".bias"))
        return trained, base
    names = [[target, "weight"] for target in settings["targets"]]
    found = [p["shape"] for p in parameters if p["name"].split(".")[-2:] in names]
    if method == "lora":
        new = sum(settings["rank"] * (d + k) for d, k in found)
    elif method == "houlsby":
        M = settings["bottleneck"]
        new = sum(2 * d * M + d + M for d, _ in found)
    elif method == "prefix":
        new = sum(settings["length"] * d for d, _ in found)
    else:
        new = sum(settings["length"] * k for _, k in found)
    return new, base + new
    ### END SOLUTION


# %% task="trainable-parameters" points=4
check.trainable_parameters(count_parameters)

# %% tags=["hidden-test", "solution-only"]
assert check.trainable_parameters(count_parameters).passed

# %% [markdown]
# ### Experiment: the same budget for everyone
#
# Comparing LoRA of rank 2 with a prefix of 20 tokens says little: one may simply have more numbers.
# So everyone gets **the same budget**, and your function finds the largest setting that fits. First
# the list of this model's parameters, and a look whether your count is the model's own:

# %%
from course_utils.grading.tasks.set_01 import trainable_parameters as counting

count = check.use(count_parameters, otherwise=counting.reference)


def listed(model):
    """Every name of the model's parameters, tied ones too."""
    first, rows = {}, []
    for name, p in model.named_parameters(remove_duplicate=False):
        rows.append({"name": name, "shape": list(p.shape), "tied_to": first.get(id(p))})
        first.setdefault(id(p), name)
    return rows


parameters = listed(pretrained)
ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
lora = adapters.apply_lora(copy.deepcopy(pretrained), rank=3)
report = adapters.trainable_report(lora)
trained, total = count(parameters, "lora", {"rank": 3, "targets": ATTENTION + MLP})
print(
    f"yours: {trained:,} of {total:,}; the model's own: {report.trainable:,} of {report.parameters:,}"
)
print("tied:", [f"{p['name']} = {p['tied_to']}" for p in parameters if p["tied_to"]])

# %% tags=["hidden-test"]
assert (trained, total) == (report.trainable, report.parameters)
assert count(parameters, "full", {}) == (pretrained.num_parameters(),) * 2

# %%
budget = 20_500
candidates = {  # name -> (method, the setting to enlarge, targets)
    "LoRA everywhere": ("lora", "rank", ATTENTION + MLP),
    "LoRA on q and v": ("lora", "rank", ["q_proj", "v_proj"]),
    "LoRA on the MLP": ("lora", "rank", MLP),
    "Houlsby": ("houlsby", "bottleneck", ["o_proj", "down_proj"]),
    "prefix": ("prefix", "length", ["k_proj", "v_proj"]),
    "prompt": ("prompt", "length", ["embed_tokens"]),
}


def largest(method, key, targets):
    """The largest setting within the budget, and what it trains."""
    size = 0
    while count(parameters, method, {key: size + 1, "targets": targets})[0] <= budget:
        size += 1
    return size, count(parameters, method, {key: size, "targets": targets})[0]


fits = {name: largest(*candidate) for name, candidate in candidates.items()}
pd.DataFrame(fits, index=["largest setting", f"numbers, of {budget:,} at most"]).T

# %% [markdown]
# All of them but the prompt (its length would make every row several times as long) train on the same
# batches.

# %%
put_in = {
    "lora": lambda model, size, targets: adapters.apply_lora(
        model, size, 2.0 * size, targets=targets
    ),
    "houlsby": lambda model, size, targets: adapters.apply_houlsby(model, size),
    "prefix": lambda model, size, targets: adapters.apply_prefix_tuning(model, size),
}
rates = {"lora": 1e-2, "houlsby": 1e-2, "prefix": 3e-2}  # lesson 01's
equal = {}
for name, (method, _, targets) in candidates.items():
    if method == "prompt":
        continue
    torch.manual_seed(SEED)
    size, counted = fits[name]
    model = put_in[method](copy.deepcopy(pretrained), size, targets)
    assert adapters.trainable_report(model).trainable == counted
    tune(model, rates[method])
    equal[name] = task_loss(model)

# %% tags=["hidden-test"]
assert len(equal) == 5
assert all(math.isfinite(loss) for loss in equal.values())
if not fast:
    assert max(equal.values()) == equal["prefix"]
    assert all(loss < task_loss(pretrained) for name, loss in equal.items() if name != "prefix")

# %% tags=["hide-input"]
# @title Task loss at the same number of trained numbers
figure = plots.figure(f"{budget:,} numbers to train at most", y="nats on the task")
settings = {"lora": "r", "houlsby": "M", "prefix": "N"}
shown = [f"{name}, {settings[candidates[name][0]]} = {fits[name][0]}" for name in equal]
plots.bars(figure, shown, list(equal.values()), plots.COLOURS["ppo"])
figure.add_hline(y=task_loss(pretrained), line_dash="dot", annotation_text="untrained")

# %% [markdown] task="why-equal-budget" points=2
# **Question 3 (2 points).** "Method A is better than method B at the same number of trained
# numbers." Name two things that this comparison still does not hold equal, one of them visible in
# your run. And from this run: is it the number of trained numbers that decides how much is learnt?
#
# ### BEGIN SOLUTION
# Not equal are, for example: the learning rate and how well it suits each method (each has a rate
# of its own here, found for other sizes); the start (the prefix does not begin as the base model,
# the others do, and spends its steps on catching up: task 2); the time and memory of a step (a
# prefix or a prompt makes attention longer, and the prompt would have made every row longer by its
# whole length, so that it was left out); where in the model the numbers act. In this run the
# methods had nearly the same number of trained numbers and came to different losses: the same LoRA
# budget gives different results on different matrices, and the prefix stays far behind. The number
# of trained numbers alone does not decide it.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · A measure of forgetting
#
# *Difficulty 3 of 5 · about 30 minutes · 5 points*
#
# Forgetting is the rise of the loss on text that the base model knew. Write two functions.
#
# `loss_rise(before, after, mask)` compares two models on such text.
#
# * `before`, `after` (B, T): the loss of each token in nats, under the base model and under the
#   tuned one; `mask` (B, T): 1 (or True, or 1.0) where a token counts, 0 at padding.
# * The result has the shape (): the mean of after − before over all tokens that count, in which
#   **every token weighs the same**, whatever its document's length. Negative where the tuned model
#   is the better one; 0 where no token counts.
# * At padding the losses may be anything, even infinite or NaN. They may be bfloat16; the result is
#   computed, and given, in float32.
#
# `forgotten_at(task_losses, base_losses, level)` reads what had been forgotten *when the task was
# learnt so far*.
#
# * `task_losses`, `base_losses`: lists of floats of the same length, measured along a training; the
#   first entry is the untrained model's. Neither needs to fall or rise steadily. `level`: a task
#   loss.
# * Find the **first** measurement i with a task loss ≤ `level`. Between measurements i − 1 and i
#   both losses go in a straight line; take the base loss where the task loss on that line is
#   `level`, and return its rise since the first entry, as a float.
# * Where the untrained model is at the level already (i is the first entry): 0. Where no
#   measurement is at or below the level: `None`.
#
# <details><summary>A hint</summary>
#
# `torch.where` leaves out what a multiplication by 0 cannot. For the line: which share of the way
# from `task_losses[i - 1]` down to `task_losses[i]` is done at `level`?
# </details>


# %% task="forgetting"
def loss_rise(before, after, mask):
    ### BEGIN SOLUTION
    keep = mask != 0
    rise = torch.where(keep, after.float() - before.float(), 0.0)
    return rise.sum() / keep.sum().clamp(min=1)
    ### END SOLUTION


def forgotten_at(task_losses, base_losses, level):
    ### BEGIN SOLUTION
    for i, loss in enumerate(task_losses):
        if loss <= level:
            if i == 0:
                return 0.0  # the untrained model is there already
            share = (task_losses[i - 1] - level) / (task_losses[i - 1] - loss)
            there = base_losses[i - 1] + share * (base_losses[i] - base_losses[i - 1])
            return there - base_losses[0]
    return None
    ### END SOLUTION


# %% task="forgetting" points=5
check.forgetting(loss_rise, forgotten_at)

# %% tags=["hidden-test", "solution-only"]
assert check.forgetting(loss_rise, forgotten_at).passed

# %% [markdown]
# ### Experiment: a little old text among the new
#
# Lesson 01 ended with a hope: mixing some old text into the training data would keep the model from
# forgetting. Here is the run: full fine-tuning and LoRA, each on pirate rows alone, and with every
# fourth row replaced by a dry text. (These are other texts than those that measure the forgetting.)
#
# **Your guess.** Does the mixture learn the task more slowly? Does it forget less *at equal task
# loss*?

# %% tags=["hide-input"]
# @title Losses token by token, and the course's own measure for as long as yours is not ready
from course_utils.grading.tasks.set_01 import forgetting as forgetting_check

rise_of = check.use(loss_rise, otherwise=forgetting_check.rise_reference)
at_level = check.use(forgotten_at, otherwise=forgetting_check.forgotten_reference)
dry_ids, dry_labels = loop.padded(dry_rows)  # (B, T)
dry_mask = (dry_labels[:, 1:] != -100).long()  # (B, T - 1): the tokens that are predicted


@torch.no_grad()
def token_losses(model):
    """Nats of each token of the dry text but the first: (B, T - 1)."""
    logp = model(input_ids=dry_ids, use_cache=False).logits[:, :-1].log_softmax(dim=-1)
    return -logp.gather(-1, dry_ids[:, 1:].unsqueeze(-1)).squeeze(-1)


# %%
calm = token_losses(pretrained)
old = loop.text_rows(plain_corpus(len(pirate_rows) // 4, seed=2), tokenizer)
mixed_rows = [old[i // 4] if i % 4 == 3 else row for i, row in enumerate(pirate_rows)]


def both(model):
    return {"task": task_loss(model), "rise": float(rise_of(calm, token_losses(model), dry_mask))}


paths = {}
for data, rows in {"pirate rows": pirate_rows, "with old text": mixed_rows}.items():
    for method, rate in {"full": 3e-4, "lora": 1e-2}.items():
        torch.manual_seed(SEED)
        model = copy.deepcopy(pretrained)
        if method == "lora":
            adapters.apply_lora(model, rank=2, alpha=4.0)
        paths[f"{method}, {data}"] = tune(model, rate, rows, look=both)

# %% [markdown]
# In the table: what was forgotten by the end, and what had been forgotten at the lowest task loss
# that *all* runs came to.

# %%
curves = {name: {key: [p[key] for p in path] for key in path[0]} for name, path in paths.items()}
level = max(min(curve["task"]) for curve in curves.values())  # all runs came down so far
forgotten = {
    name: {
        "task loss at the end": curve["task"][-1],
        "forgotten by the end": curve["rise"][-1] - curve["rise"][0],
        f"forgotten at task loss {level:.3f}": at_level(curve["task"], curve["rise"], level),
    }
    for name, curve in curves.items()
}
pd.DataFrame(forgotten).T.style.format("{:+.3f}").format("{:.3f}", subset="task loss at the end")

# %% tags=["hidden-test"]
for curve in curves.values():
    assert abs(curve["rise"][0]) < 1e-5
    assert at_level(curve["task"], curve["rise"], level) is not None
if not fast:
    ends = {name: row["forgotten by the end"] for name, row in forgotten.items()}
    for method in ("full", "lora"):
        assert ends[f"{method}, with old text"] < ends[f"{method}, pirate rows"]

# %% tags=["hide-input"]
# @title Forgetting at every task loss, by your function
figure = plots.figure(
    "Forgotten when the task was learnt so far", "nats on the task", "nats on dry text"
)
top = max(curve["task"][0] for curve in curves.values())
bottom = min(min(curve["task"]) for curve in curves.values())
levels = [top - (top - bottom) * i / 60 for i in range(61)]
for i, (name, curve) in enumerate(curves.items()):
    found = [at_level(curve["task"], curve["rise"], x) for x in levels]
    known = [(x, y) for x, y in zip(levels, found, strict=True) if y is not None]
    dash = "dot" if "old" in name else "solid"
    xs, ys = zip(*known, strict=True)
    plots.line(figure, xs, ys, name, plots.colour(i % 2), line={"dash": dash})
figure.update_xaxes(autorange="reversed")

# %% [markdown] task="why-equal-task-loss" points=2
# **Question 4 (2 points).** Read your table: what does the old text change for each method, by the
# end and at equal task loss? Can forgetting be negative, and where would that come from here? And
# why is "forgotten by the end of training" unfair as a measure, and to whom? Think of a method that
# does nothing at all.
#
# ### BEGIN SOLUTION
# For both methods the old text lowers the forgetting by the end *and* at equal task loss, so it is
# not only that a mixture has learnt less of the task. Here it even turns negative: the tuned model
# is better on dry text than the untrained one. That model had itself forgotten some of it while it
# read all the styles, and a quarter of dry rows brings it back. "By the end" is unfair to whoever
# has learnt most: a method that does nothing forgets nothing and would win. At equal task loss each
# method is asked for its price of the same good. That is not the whole truth either: it is one
# level and one seed, a method that never comes down to the level has no value at all, and
# forgetting is measured on one kind of text only.
# ### END SOLUTION

# %% [markdown]
# ## Hand in
#
# `check.notebook("01", "01_categories_of_fine_tuning.ipynb")` runs all checks on this notebook as you
# have saved it, the way the grader does.
