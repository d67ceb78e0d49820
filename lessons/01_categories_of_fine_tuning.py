# %% [markdown] seconds=120
# # 01 · Categories of fine-tuning
# ## Which numbers must move, and what does the model forget?
#
# There are many ways to fine-tune a model, and one question sorts them: **which numbers may move?**
# All of them, or a few new ones in a model that stays as it is? In this lesson you will
#
# 1. build every category of the lecture in a few lines, and see the library give the same numbers,
# 2. train all of them on the same batches,
# 3. fill the lecture's table by measurement: trainable share, memory, time, task loss, forgetting,
# 4. keep two personalities on one base, and count what a thousand of them weigh.
#
# Tier tiny: about two minutes on two cores that have other work too; on a T4: not measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

from course_utils import Lab

lab = Lab.open()
lab

# %% [markdown]
# Two places to work in. On `lab`, this machine's tier, there is one main run (section 8). Everything
# that must be repeated for eight methods runs in the small **world** of the tier `tiny`, on the CPU.

# %%
import torch
import torch.nn.functional as F
from torch import nn

world = lab.world
tokenizer = world.tokenizer


def fresh():
    """A new copy of the world's base model."""
    return world.base().to("cpu")


base = fresh()
D = base.config.hidden_size
print(f"{base.num_parameters():,} parameters, {len(base.model.layers)} layers of width D = {D}")

# %% [markdown] slides="4"
# ## 1 · The lecture's table
#
# | method | what it updates | the lecture calls it |
# |---|---|---|
# | **full fine-tuning** | all weights | expensive |
# | **adapter tuning** (Houlsby et al. 2019) | small new bottleneck layers | efficient |
# | **prefix tuning**, prompt tuning | soft prompts: a few made-up tokens | efficient |
# | **LoRA**, **QLoRA** | low-rank changes of weights (QLoRA: of weights in 4 bits) | very efficient |
# | **instruction tuning** | all or part; what is special is its *data* | depends |
#
# Words such as *few* and *efficient* are promises. We will put numbers in their place.
#
# **Your guess.** All methods get the same batches and the same number of steps. Afterwards: which
# one has the lowest loss on the task, and which one has forgotten most of what the base model knew?
# Choose from `full`, `houlsby`, `lora`, `prefix`, `prompt`, `bitfit`.

# %%
my_guess_best_on_task = "full"
my_guess_forgets_most = "full"

# %% [markdown] slides="5"
# ## 2 · Full fine-tuning: everything moves
#
# **Definition.** Start at the pretrained weights $\theta_0$, take the data of the task, and follow the
# gradient of the loss with *all* of them:
#
# $$\theta \leftarrow \theta - \eta\,\nabla_\theta \mathcal{L}(\theta), \qquad \theta \in \mathbb{R}^{\text{all}},\quad \text{starting at } \theta_0$$
#
# This is how **BERT** and **GPT-2** (2018 and 2019; 110 million to 1.5 billion weights) were put to
# use: one pretrained model, and for each task a fine-tuned copy.
#
# * **For it:** the most flexibility, and often the best result. No weight is out of reach.
# * **Against it:** **expensive** (each weight needs a gradient and the optimizer's two moments), a
#   whole new model for every task, inefficient for large models, and prone to
#   **catastrophic forgetting**: nothing holds the weights to what they knew.

# %% tags=["hide-input"]
# @title The workflow, drawn
from course_utils.pictures.categories import full_fine_tuning, peft_places

full_fine_tuning()

# %% [markdown]
# First on a toy: one linear layer, one step of gradient descent, written out.

# %%
torch.manual_seed(0)
x = torch.randn(5, 4)  # (B, k) inputs
wanted = torch.randn(5, 3)  # (B, d) what should come out
W = torch.randn(3, 4, requires_grad=True)  # (d, k)

loss = ((x @ W.T - wanted) ** 2).mean()
(gradient,) = torch.autograd.grad(loss, W)
W_new = W - 0.1 * gradient  # η = 0.1

after = ((x @ W_new.T - wanted) ** 2).mean()
print(f"loss {loss:.3f} -> {after:.3f}; {int((W_new != W).sum())} of {W.numel()} numbers moved")

# %% tags=["hidden-test"]
assert after < loss
assert (W_new != W).all()

# %% [markdown]
# Now the real model. Its loss is the mean $-\log p_\theta(\text{next token})$ over those tokens whose
# *label* is not −100, the sign for "context only".

# %%
IGNORED = -100


def loss_of(model, ids, labels):  # (B, T) each
    logits = model(input_ids=ids).logits[:, :-1]  # (B, T - 1, V); place t predicts token t + 1
    targets = labels[:, 1:]  # (B, T - 1)
    counted = targets != IGNORED
    logp = logits.log_softmax(dim=-1)
    picked = logp.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, T - 1)
    return -(picked * counted).sum() / counted.sum()


def train_step(model, optimizer, ids, labels):
    loss = loss_of(model, ids, labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# ### Instruction tuning is data, not a method
#
# The last row of the table is of another kind. To see it, take rows of two sorts: the texts of an
# encyclopedia, every token learned, and instructions with answers, only the answer learned.

# %%
from course_utils.experiments import categories, loop, styles
from course_utils.world import plain_corpus

SEED = world.seed
text_rows = loop.text_rows(plain_corpus(8, seed=SEED), tokenizer)
instruction_rows = categories.task_rows("instructions", "train", 8, SEED, tokenizer)

for name, rows in {"text": text_rows, "instructions": instruction_rows}.items():
    row = min(rows, key=lambda row: len(row["input_ids"]))
    learned = sum(label != IGNORED for label in row["labels"])
    print(f"{name}: {learned} of {len(row['labels'])} tokens are learned")
    print("   ", tokenizer.decode(row["input_ids"]), "\n")

# %% [markdown]
# Everything else is the same: the same loss, the same step, the same weights.

# %%
for name, rows in {"text": text_rows, "instructions": instruction_rows}.items():
    ids, labels = loop.padded(rows)  # (B, T) each
    model = fresh()
    torch.testing.assert_close(  # the library gives the same number
        loss_of(model, ids, labels), model(input_ids=ids, labels=labels).loss
    )
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = [train_step(model, optimizer, ids, labels) for _ in range(3)]
    now = list(model.parameters())
    moved = sum(int((a != b).sum()) for a, b in zip(now, before, strict=True))
    share = moved / sum(p.numel() for p in now)
    print(f"{name:>12}: {share:.1%} of the weights moved, losses {losses}")

# %% tags=["hidden-test"]
assert losses[-1] < losses[0]
assert share > 0.9

# %% [markdown] slides="4"
# So **instruction tuning** can be done with any method of the table: with all weights or with part
# of them. What makes it instruction tuning is the rows: instructions and the answers one would like
# (FLAN, Wei et al. 2021; lesson 02 is about them).

# %% [markdown] slides="6"
# ## 3 · PEFT: the base stays frozen
#
# **Parameter-efficient fine-tuning** keeps the base model **frozen** and trains a small subset of
# numbers, most often *new* ones that are put into it:
#
# * **Houlsby adapters**: bottleneck layers behind attention and behind the feed-forward;
# * **prompt tuning** and **prefix tuning**: vectors before the text, or keys and values in each layer;
# * **LoRA**, **QLoRA**: low-rank matrices beside the weights.
#
# What it is wanted for: many tasks on one base (**multi-task**), a model for each person
# (**personal** models), **low-resource** adaptation, less compute and **memory**, and less to
# **forget**. Each of these gets a number below.

# %% tags=["hide-input"]
# @title New trained parts inside the frozen model, drawn
peft_places()

# %% [markdown]
# (One layer; norms and residual sums are left out.)
#
# ### 3.1 · Houlsby adapters
#
# Squeeze the $D$ features of a hidden state $h$ to $M \ll D$, bend them, widen them again, and add
# the result to what came in:
#
# $$h \;\leftarrow\; h + W_{\text{up}}\, f(W_{\text{down}}\, h + b_{\text{down}}) + b_{\text{up}}$$
#
# **Your guess.** A fresh adapter stands in the middle of a trained network. What should it do on the
# first day: something random, or nothing?


# %%
class MyAdapter(nn.Module):
    def __init__(self, D, M):
        super().__init__()
        self.down = nn.Linear(D, M)
        self.up = nn.Linear(M, D)
        nn.init.normal_(self.down.weight, std=0.01)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)  # up = 0: at the start h + 0, the identity

    def forward(self, h):  # (B, T, D) -> (B, T, D)
        narrow = F.gelu(self.down(h))  # (B, T, M)
        return h + self.up(narrow)


toy = MyAdapter(D=8, M=2)
h = torch.randn(2, 3, 8)
print("identity at the start:", torch.equal(toy(h), h))
print(sum(p.numel() for p in toy.parameters()), "numbers = 2·D·M + D + M =", 2 * 8 * 2 + 8 + 2)

# %% tags=["hidden-test"]
assert torch.equal(toy(h), h)

# %% [markdown]
# Into the real model, by hand: two adapters a layer, each behind an output projection, before the
# residual sum. The package has the same (PEFT has no Houlsby adapters). Once both carry the same
# random numbers they must give the same logits.

# %%
from course_utils import adapters


def fill(parameters, seed=1):
    """The same random numbers for both models: an adapter in the middle of its training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.copy_(0.1 * torch.randn(p.shape, generator=generator))


by_hand = fresh().requires_grad_(False)
for layer in by_hand.model.layers:
    layer.self_attn.o_proj = nn.Sequential(layer.self_attn.o_proj, MyAdapter(D, 8))
    layer.mlp.down_proj = nn.Sequential(layer.mlp.down_proj, MyAdapter(D, 8))
package = adapters.apply_houlsby(fresh(), bottleneck=8)

ids = torch.tensor([row["input_ids"][:12] for row in instruction_rows[:2]])  # (B, T)
fill(p for p in by_hand.parameters() if p.requires_grad)
fill(p for p in package.parameters() if p.requires_grad)
with torch.no_grad():
    mine, theirs = by_hand(ids).logits, package(ids).logits
torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
print(adapters.trainable_report(package))

# %% tags=["hidden-test"]
trained = sum(p.numel() for p in by_hand.parameters() if p.requires_grad)
assert trained == adapters.trainable_report(package).trainable
assert trained == 2 * len(base.model.layers) * adapters.houlsby_parameters(D, 8)
with torch.no_grad():
    assert not torch.allclose(base(ids).logits, mine)

# %% [markdown]
# ### 3.2 · LoRA, a first look
#
# Leave the weight $W \in \mathbb{R}^{d \times k}$ alone and learn a *change* of it, as a product of two
# thin matrices of rank $r$:
#
# $$W' = W + \Delta W, \qquad \Delta W = \tfrac{\alpha}{r}\, B A, \qquad B \in \mathbb{R}^{d \times r},\; A \in \mathbb{R}^{r \times k}$$
#
# (The lecture writes $\Delta W = A B^\top$: the same product under other names.)


# %%
class MyLoRA(nn.Module):
    def __init__(self, frozen, r, alpha):
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        d, k = frozen.weight.shape
        self.A = nn.Parameter(torch.randn(r, k) / k**0.5)
        self.B = nn.Parameter(torch.zeros(d, r))  # BA = 0: nothing changes at the start
        self.scale = alpha / r

    def forward(self, x):  # (..., k) -> (..., d)
        return self.frozen(x) + self.scale * (x @ self.A.T) @ self.B.T


toy = MyLoRA(nn.Linear(6, 4), r=2, alpha=4)
x = torch.randn(3, 6)
print("no change at the start:", torch.equal(toy(x), toy.frozen(x)))
toy(x).square().sum().backward()
print(f"gradient of A: {toy.A.grad.abs().sum():.3f}   gradient of B: {toy.B.grad.abs().sum():.3f}")

# %% [markdown]
# At the first step only $B$ learns, because the gradient of $A$ passes through $B = 0$. If both were zero,
# neither would ever move.
#
# The library for LoRA is PEFT. Same numbers in, same logits out:

# %%
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from course_utils.training.trl_common import quiet_libraries

CAUSAL = {"task_type": "CAUSAL_LM"}


def with_peft(model, config):
    with quiet_libraries(progress=False):
        return get_peft_model(model, config)


def logits_of(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits  # (B, T, V)


ours = adapters.apply_lora(fresh(), rank=4, alpha=8)
config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **CAUSAL)
theirs = with_peft(fresh(), config)
fill(p for p in ours.parameters() if p.requires_grad)
fill(p for p in theirs.parameters() if p.requires_grad)
torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=1e-4, atol=1e-4)

layer = ours.model.layers[0].self_attn.q_proj  # and my class: the same layer once more
mine = MyLoRA(layer.base, r=4, alpha=8)
mine.A.data, mine.B.data = layer.A.data, layer.B.data
h = torch.randn(2, 3, D)
torch.testing.assert_close(mine(h), layer(h))
theirs.print_trainable_parameters()

# %% tags=["hidden-test"]
assert not torch.allclose(logits_of(ours, ids), logits_of(base, ids))
assert toy.A.grad.abs().sum() == 0
assert toy.B.grad.abs().sum() > 0

# %% [markdown]
# ### 3.3 · BitFit, a bonus
#
# Train nothing but the biases $b$ in $y = Wx + b$ (Ben Zaken et al. 2022): every linear map may be
# *shifted*, none may be *turned*. Llama models have no biases, so we give them some, zero at first.


# %%
def my_bitfit(model):
    model.requires_grad_(False)
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features))
    return model


mine, theirs = my_bitfit(fresh()), adapters.apply_bitfit(fresh(), add_missing=True)
fill(p for p in mine.parameters() if p.requires_grad)
fill(p for p in theirs.parameters() if p.requires_grad)
torch.testing.assert_close(logits_of(mine, ids), logits_of(theirs, ids))
print(f"{adapters.trainable_report(theirs).share:.2f}% of the parameters train")

# %% [markdown]
# ### 3.4 · Prompt tuning
#
# A prompt steers a model. But words are only some of the points in the space of embeddings, so why
# not *learn* the prompt there (Lester et al. 2021)? Put $N$ trained vectors $P$ before the text's
# embeddings $X$:
#
# $$[P; X] \in \mathbb{R}^{(N+T) \times D}, \qquad \text{only } P \text{ is trained}$$
#
# Where shall $P$ start? Take the embeddings of real words, and it must be as if the words had been
# typed:


# %%
def with_prompt(model, P, ids):
    """Logits of the text (B, T, V), with the vectors P (N, D) before it."""
    X = model.get_input_embeddings()(ids)  # (B, T, D)
    together = torch.cat([P.expand(len(ids), -1, -1), X], dim=1)  # (B, N + T, D)
    return model(inputs_embeds=together).logits[:, len(P) :]


start_text = "answer like a pirate :"
words = tokenizer(start_text, add_special_tokens=False, return_tensors="pt").input_ids  # (1, N)
P = base.get_input_embeddings()(words[0]).detach()  # (N, D)

with torch.no_grad():
    mine = with_prompt(base, P, ids)
typed = logits_of(base, torch.cat([words.expand(len(ids), -1), ids], dim=1))[:, words.shape[1] :]
torch.testing.assert_close(mine, typed, rtol=1e-4, atol=1e-4)
print(f"{P.numel()} numbers = N·D = {len(P)}·{D}")

# %% [markdown]
# From there on $P$ may go where no word is. PEFT and the package agree, for any $P$:

# %%
N = 4
P = torch.randn(N, D)
ours = adapters.apply_prompt_tuning(fresh(), length=N)
theirs = with_peft(fresh(), PromptTuningConfig(num_virtual_tokens=N, **CAUSAL))
with torch.no_grad():
    mine = with_prompt(base, P, ids)
    ours.model.soft_prompt.vectors.copy_(P)
    theirs.prompt_encoder.default.embedding.weight.copy_(P)
torch.testing.assert_close(logits_of(ours, ids), mine, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(logits_of(theirs, ids)[:, N:], mine, rtol=1e-4, atol=1e-4)

# %% tags=["hidden-test"]
assert mine.shape == (*ids.shape, len(tokenizer))
assert adapters.trainable_report(ours).trainable == P.numel()

# %% [markdown]
# ### 3.5 · Prefix tuning
#
# Prompt tuning speaks to the first layer only. **Prefix tuning** (Li and Liang 2021) gives *every*
# layer $N$ extra keys $P_K$ and values $P_V$. That is all: attention over more keys.
#
# $$\text{head} = \text{Attn}\big(q,\,[P_K; K],\,[P_V; V]\big), \qquad \text{Attn}(q, K, V) = \text{softmax}\!\big(qK^\top/\sqrt{d}\big)V$$


# %%
def attention(q, K, V):  # (T, d), (S, d), (S, d) -> (T, d)
    return (q @ K.T / q.shape[-1] ** 0.5).softmax(dim=-1) @ V


torch.manual_seed(0)
T, N, d = 5, 3, 8
q, K, V = torch.randn(3, T, d)
P_K, P_V = torch.randn(2, N, d)
head = attention(q, torch.cat([P_K, K]), torch.cat([P_V, V]))  # (T, d)
print("the library's attention gives the same:", end=" ")
library = F.scaled_dot_product_attention(q, torch.cat([P_K, K]), torch.cat([P_V, V]))
torch.testing.assert_close(head, library)
print(True)

# %% [markdown]
# **Your guess.** The prefix gets a part of the softmax. Can it also change how the query divides its
# attention *among the words of the text*?
#
# Split the softmax's sum in two (He et al. 2022), and the answer can be read off:
#
# $$\text{head} = (1-\lambda)\,\text{Attn}(q, K, V) + \lambda\,\text{Attn}(q, P_K, P_V), \qquad \lambda = \frac{\sum_n e^{q \cdot p_n/\sqrt d}}{\sum_n e^{q \cdot p_n/\sqrt d} + \sum_t e^{q \cdot k_t/\sqrt d}}$$

# %%
to_prefix = (q @ P_K.T / d**0.5).exp().sum(dim=-1, keepdim=True)  # (T, 1)
to_text = (q @ K.T / d**0.5).exp().sum(dim=-1, keepdim=True)
lam = to_prefix / (to_prefix + to_text)  # λ: the prefix's share, another one for every query
mixed = (1 - lam) * attention(q, K, V) + lam * attention(q, P_K, P_V)
torch.testing.assert_close(mixed, head)

weights = (q @ torch.cat([P_K, K]).T / d**0.5).softmax(dim=-1)  # (T, N + T)
among_words = weights[:, N:] / weights[:, N:].sum(dim=-1, keepdim=True)
torch.testing.assert_close(among_words, (q @ K.T / d**0.5).softmax(dim=-1))
print("λ of each query:", [round(v, 2) for v in lam.squeeze().tolist()])

# %% [markdown]
# No, it cannot. A prefix *mixes something in*; in its own layer, the words go on sharing the rest
# just as before. It also means that no finite prefix starts as the identity: $\lambda > 0$ always.
#
# In the real model, against PEFT with the same keys and values in every layer:

# %%
ours = adapters.apply_prefix_tuning(fresh(), length=4)
theirs = with_peft(fresh(), PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL))
prefix = ours.model.prefix  # keys and values: (L, H, N, d) each
fill([prefix.keys, prefix.values])
both = torch.stack([prefix.keys, prefix.values], dim=1)  # (L, 2, H, N, d)
with torch.no_grad():  # PEFT keeps one table (N, L·2·H·d)
    theirs.prompt_encoder.default.embedding.weight.copy_(both.permute(3, 0, 1, 2, 4).flatten(1))
torch.testing.assert_close(logits_of(ours, ids), logits_of(theirs, ids), rtol=1e-4, atol=1e-4)
print(f"{adapters.trainable_report(ours).trainable:,} numbers: 2·L·N·D")

# %% tags=["hidden-test"]
assert adapters.trainable_report(ours).trainable == 2 * 4 * len(base.model.layers) * D
assert ((lam > 0) & (lam < 1)).all()

# %% [markdown]
# ## 4 · Where does each one start?
#
# Fine-tuning should start *from the base model*, not from a damaged one. How far is each method from
# it before the first step? The mean KL divergence per token of an answer says it; 0 means the same
# model. **Your guess:** which of these are exactly 0?

# %%
import pandas as pd

from course_utils.objectives import exact_kl

short = [
    row["input_ids"] for row in categories.task_rows("instructions", "train", 64, 1, tokenizer)
]
short = next(ids for ids in short if len(ids) <= categories.START)  # a real text of few tokens
ways = {
    "full fine-tuning": lambda m: m,
    "Houlsby, up = 0": lambda m: adapters.apply_houlsby(m, 8),
    "Houlsby, a careless random start": lambda m: adapters.apply_houlsby(m, 8, std=0.3),
    "LoRA, B = 0": lambda m: adapters.apply_lora(m, 2, 4.0),
    "BitFit, zeros": lambda m: adapters.apply_bitfit(m, add_missing=True),
    "prompt, random vectors": lambda m: adapters.apply_prompt_tuning(m, len(short)),
    "prompt, from real words": lambda m: adapters.apply_prompt_tuning(m, token_ids=short),
    "prefix, small random numbers": lambda m: adapters.apply_prefix_tuning(m, len(short)),
    "prefix, from real words": lambda m: adapters.apply_prefix_tuning(m, token_ids=short),
}
some, labels = loop.padded(instruction_rows)  # (B, T)
answer = labels[:, 1:] != IGNORED  # (B, T - 1): places that predict a token of an answer
reference = logits_of(base, some)[:, :-1][answer]  # (places, V)
start = {}
for name, way in ways.items():
    torch.manual_seed(SEED)
    start[name] = exact_kl(logits_of(way(fresh()), some)[:, :-1][answer], reference).mean().item()
pd.DataFrame({"KL to the base, nats per token": start}).style.format("{:.4f}")

# %% tags=["hidden-test"]
same = [name for name, kl in start.items() if kl == 0]
assert same == ["full fine-tuning", "Houlsby, up = 0", "LoRA, B = 0", "BitFit, zeros"]
assert abs(start["prompt, from real words"] - start["prefix, from real words"]) < 1e-3

# %% [markdown]
# Those with a zero in the right place start as the base, to the bit. Soft prompts and prefixes stand
# before the text like words do, and the model hears them from the first moment: a handicap to
# remember when the curves come. (Two rows agree: the keys and values that the model computes for
# real words, given as a prefix, are those words standing in front.)
#
# ## 5 · All of them on the same batches
#
# The task: **answer like a pirate.** The world's base model has never met a pirate, so it first
# reads answers in all kinds of styles, as a real base model has read everything. What comes out of
# that is *our* pretrained model: it can talk like anyone, and does so at random.

# %%
import dataclasses

fast = world.tier.is_fast
with quiet_libraries(progress=False):
    if fast:
        few_steps = dataclasses.replace(styles.READING, steps=3)
        pretrained, _ = styles.style_base(SEED, few_steps)
    else:  # some seconds, once; then it is kept in runs/style-base
        pretrained, _ = styles.saved_style_base(world.run_directory("style-base"))

questions = world.prompts("train", 2, families=["describe"])
print(questions[0], "\n")
for text in world.generate(pretrained, questions[:1] * 4, max_new_tokens=32):
    print("  –", text)

# %% tags=["hidden-test"]
assert pretrained.num_parameters() == base.num_parameters()

# %% [markdown]
# Three sets of rows: the task's, held-out ones of the task, and dry encyclopedia text. The last is
# what the model knew before; **forgetting** is the rise of its loss there, in nats per token.

# %%
steps, batch, held = (3, 16, 8) if fast else (60, 16, 40)
pirate_rows = categories.task_rows("pirate", "train", steps * batch, SEED, tokenizer)
heldout = categories.task_rows("pirate", "heldout", held, SEED, tokenizer)
dry = loop.text_rows(plain_corpus(held, seed=1), tokenizer)

print(tokenizer.decode(pirate_rows[0]["input_ids"]), "\n")
print(tokenizer.decode(dry[0]["input_ids"]))

# %% [markdown]
# One function trains them all. The only line that tells the methods apart gives the optimizer
# *whatever may move*. The batches come in the same order for everyone.

# %%
import copy


def tune(model, rate, rows, steps, look=None):
    """Trains in place; returns [look(model)] from before the first step to after the last."""
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.0)
    seen = []
    for step, given in zip(range(steps + 1), loop.batches(rows, batch, SEED), strict=False):
        if look and (step % max(1, steps // 6) == 0 or step == steps):
            seen.append({"step": step, **look(model)})
        if step < steps:  # our train_step, with the gradient cut to norm 1
            loop.train_step(model, optimizer, given)
    return seen


def both_losses(model):
    return {"task_loss": loop.mean_loss(model, heldout), "base_loss": loop.mean_loss(model, dry)}


# %% [markdown]
# The learning rates are the best of a small grid for each method. Full fine-tuning runs twice: with
# its best rate, and with one about three times as large.

# %%
short = next(r["input_ids"] for r in pirate_rows if len(r["input_ids"]) <= categories.START)
methods = {  # name -> (what to put in, learning rate)
    "full": (lambda m: m.requires_grad_(True), 3e-4),
    "full, fast": (lambda m: m.requires_grad_(True), 1e-3),
    "houlsby": (lambda m: adapters.apply_houlsby(m, bottleneck=8), 1e-2),
    "lora": (lambda m: adapters.apply_lora(m, rank=2, alpha=4.0), 1e-2),
    "bitfit": (lambda m: adapters.apply_bitfit(m, add_missing=True), 3e-2),
    "prefix": (lambda m: adapters.apply_prefix_tuning(m, token_ids=short), 3e-2),
    "prompt": (lambda m: adapters.apply_prompt_tuning(m, token_ids=short), 1e-2),
}
models, curves = {}, {}
for name, (put_in, rate) in methods.items():
    torch.manual_seed(SEED)
    models[name] = put_in(copy.deepcopy(pretrained))
    curves[name] = tune(models[name], rate, pirate_rows, steps, look=both_losses)
    print(name, {key: round(value, 3) for key, value in curves[name][-1].items()})

# %% tags=["hidden-test"]
assert set(curves) == set(methods)
for name, curve in curves.items():
    assert curve[0]["step"] == 0, name
    assert curve[-1]["step"] == steps, name
    assert all(value == value for point in curve for value in point.values()), name
for name in ("houlsby", "lora", "bitfit"):  # these start as the base, so their curves do too
    assert abs(curves[name][0]["task_loss"] - curves["full"][0]["task_loss"]) < 1e-4

# %% [markdown]
# Each path starts at the untrained model. **To the left** is better at the task, **upwards** is
# forgotten. Move the level: what had each method forgotten when its task loss had come down so far?
# (Drawn are those that came at least a third as far as the best of them.)

# %%
from course_utils.inspectors import ForgettingPlot

known = curves["full"][0]  # before any training, with nothing put in
gains = {name: known["task_loss"] - curve[-1]["task_loss"] for name, curve in curves.items()}
learnt_by = [name for name in curves if name == "full" or gains[name] >= max(gains.values()) / 3]
start_at = known["task_loss"], known["base_loss"]
plot = ForgettingPlot({name: curves[name] for name in learnt_by}, before=start_at)
plot

# %% [markdown]
# Why *at equal task loss*? Because a method that learns less also forgets less, down to the one that
# does nothing and forgets nothing. So beside what a method forgot stands what full fine-tuning had
# forgotten **when it was only that good at the task** ("–": it never was, since it began below).

# %% tags=["hide-input"]
# @title What each has learnt and forgotten
import pandas as pd
from IPython.display import Markdown, display

full_path = [tuple(point.values()) for point in curves["full"]]
rows = {}
for name, curve in curves.items():
    then = loop.value_at(full_path, curve[-1]["task_loss"])
    rows[name] = {
        "task loss": curve[-1]["task_loss"],
        "forgotten": curve[-1]["base_loss"] - known["base_loss"],
        "full had forgotten then": None if then is None else then - known["base_loss"],
    }
quality = pd.DataFrame(rows).T.astype(float)
quality.loc["full", "full had forgotten then"] = None
formats = {"task loss": "{:.3f}", "forgotten": "{:+.3f}", "full had forgotten then": "{:+.3f}"}
display(quality.style.format(formats, na_rep="–"))

peft = [name for name in methods if not name.startswith("full")]
learnt = [name for name in peft if name in learnt_by]
comparable = quality.loc[learnt].dropna()
less = comparable.index[comparable.iloc[:, 1] < comparable.iloc[:, 2]].tolist()
more = comparable.index.difference(less, sort=False).tolist()
best, most = quality["task loss"].idxmin(), quality["forgotten"].idxmax()


def joined(names):
    return ", ".join(f"`{name}`" for name in names) or "none"


def both_of(name):
    return f"{quality['forgotten'][name]:+.3f} at task loss {quality['task loss'][name]:.3f}"


Markdown(
    f"* Lowest task loss: **{best}** (you guessed {my_guess_best_on_task}). Most forgotten by the end: "
    f"**{most}** (you guessed {my_guess_forgets_most}).\n"
    f"* At equal task loss, forgot *less* than full fine-tuning: {joined(less)}; *as much or more*: "
    f"{joined(more)}.\n"
    "* Learnt too little of the task for their forgetting to say much: "
    f"{joined(n for n in peft if n not in learnt)}.\n"
    f"* The learning rate alone: full fine-tuning forgot {both_of('full')}, and with the larger rate "
    f"{both_of('full, fast')}."
)

# %% tags=["hidden-test"]
assert len(quality) == len(methods)
assert plot.summary()["methods"] == len(learnt_by)
assert set(less) | set(more) <= set(learnt)
if not fast:
    assert quality["forgotten"]["full, fast"] > quality["forgotten"]["full"]
    assert quality["task loss"]["full"] < known["task_loss"]

# %% [markdown]
# ### What is it that was forgotten?
#
# A mean over tokens hides where the loss rose. A pirate says some words differently ("tis" for "is").
# What share of the rise falls on those words, in the dry text, with no pirate anywhere near?
#
# **Your guess.** They are a small part of the tokens. And of the forgetting?

# %%
from course_utils.world.styles import STYLES

swapped = [tokenizer(w, add_special_tokens=False).input_ids[0] for w in STYLES["pirate"].swaps]
dry_ids, dry_labels = loop.padded(dry)
targets = dry_labels[:, 1:]  # (B, T - 1)
counted = targets != IGNORED
swaps = torch.isin(targets, torch.tensor(swapped)) & counted


def surprise(model):
    logp = logits_of(model, dry_ids)[:, :-1].log_softmax(dim=-1)
    return -logp.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, T - 1), nats


calm = surprise(pretrained)
rise = {name: surprise(models[name]) - calm for name in learnt_by}
where = {
    name: {
        "share of the forgetting on words that a pirate swaps": r[swaps].sum() / r[counted].sum(),
        "rise on such a word": r[swaps].mean(),
        "rise on any other": r[counted & ~swaps].mean(),
    }
    for name, r in rise.items()
}
print(f"words that a pirate swaps: {swaps.sum() / counted.sum():.0%} of the tokens")
style = pd.DataFrame(where).T.astype(float).style.format("{:+.3f}")
style.format("{:.0%}", subset=["share of the forgetting on words that a pirate swaps"])

# %% tags=["hidden-test"]
assert 0 < swaps.sum() < counted.sum()
for name, r in rise.items():  # the parts make up the whole
    whole_rise = curves[name][-1]["base_loss"] - known["base_loss"]
    assert abs(r[counted].mean() - whole_rise) < 1e-3, name

# %% [markdown]
# Where the share is far above that of the tokens, hardly a fact was erased: the new habit *leaks*.
# The training said "tis" everywhere and never where not to. Mixing some old text into the training
# data would say it, whatever the method.
#
# ## 6 · What a frozen base really gives you
#
# *How much* is forgotten is a matter of degree. This is not: take the adapter off.

# %%
without = adapters.remove_lora(copy.deepcopy(models["lora"]))
pairs = zip(without.parameters(), pretrained.parameters(), strict=True)
print("the base is back, bit for bit:", all(torch.equal(a, b) for a, b in pairs))

# %% tags=["hidden-test"]
assert torch.equal(logits_of(without, ids), logits_of(pretrained, ids))

# %% [markdown]
# What full fine-tuning forgot is gone, unless the old weights were kept. What an adapter forgot is
# forgotten only **while it is on**. And "on" need not be all or nothing: scale the change, and look
# at everything between the base ($s = 0$) and the tuned model ($s = 1$). (With both sets of weights
# at hand full fine-tuning has this dial too, $\theta_0 + s\,(\theta - \theta_0)$: Wortsman et al. 2022.)
#
# **Your guess.** At half the change, is half of the gain on the task lost, or less?

# %%
scales = [0.0, 0.25, 0.5, 0.75, 1.0]
before = dict(pretrained.named_parameters())
dial = {"lora": [], "full, fast": []}
for s in scales:
    turned = {name: copy.deepcopy(models[name]) for name in dial}
    for layer in adapters.lora_layers(turned["lora"]).values():
        layer.scaling *= s  # α/r: one number a layer
    with torch.no_grad():
        for key, p in turned["full, fast"].named_parameters():
            p.copy_(before[key] + s * (p - before[key]))
    for name in dial:
        dial[name].append(both_losses(turned[name]))

# %% tags=["hide-input"]
# @title The dial, drawn
from course_utils import plots

axes = ("loss on the task, nats", "loss on dry text, nats")
figure = plots.figure("Turning the change down, from 1 to 0", *axes, height=380)
for i, (name, points) in enumerate(dial.items()):
    task, old = ([point[key] for point in points] for key in ("task_loss", "base_loss"))
    marks = {"mode": "lines+markers+text", "text": [f"{s:g}" for s in scales]}
    plots.line(figure, task, old, name, plots.colour(i), textposition="top center", **marks)
display(figure)

lines = []
for name, points in dial.items():
    none, half, whole = (points[scales.index(s)] for s in (0.0, 0.5, 1.0))
    gain, cost = (
        (half[key] - none[key]) / (whole[key] - none[key]) for key in ("task_loss", "base_loss")
    )
    ending = (
        "The other half bought less than it cost."
        if gain > cost
        else "Turning it down buys nothing."
    )
    lines.append(
        f"* At half the change `{name}` has **{gain:.0%}** of its gain on the task and **{cost:.0%}** of "
        f"its forgetting. {ending}"
    )
Markdown("\n".join(lines))

# %% tags=["hidden-test"]
for name, points in dial.items():
    assert abs(points[0]["base_loss"] - known["base_loss"]) < 1e-4, name
    assert abs(points[-1]["task_loss"] - curves[name][-1]["task_loss"]) < 1e-4, name

# %% [markdown]
# ### Words never seen before
#
# Now the other half of the claim: *flexibility*. A ship's log is full of words that the base model
# has never read. **Your guess:** LoRA leaves the embeddings frozen. Can it learn them?

# %%
ship_steps = 3 if fast else 30
ship_rows = categories.task_rows("ship", "train", ship_steps * batch, SEED, tokenizer)
ship_heldout = categories.task_rows("ship", "heldout", held // 2, SEED, tokenizer)
print(tokenizer.decode(ship_rows[0]["input_ids"]), "\n")

ship = {"before": loop.mean_loss(base, ship_heldout)}
for name in ("full, fast", "lora"):
    put_in, rate = methods[name]
    torch.manual_seed(SEED)
    sailor = put_in(fresh())
    tune(sailor, rate, ship_rows, ship_steps)
    ship[name] = loop.mean_loss(sailor, ship_heldout)
print({name: round(loss, 2) for name, loss in ship.items()}, "nats per token")

# %% tags=["hidden-test"]
assert ship["full, fast"] < ship["before"]
if not fast:
    assert ship["full, fast"] < ship["lora"]

# %% [markdown]
# A word that was never read has an embedding that nobody ever trained, and in this model the output
# layer shares it. Methods that leave it frozen must write around it. (PEFT's `modules_to_save`
# trains the embeddings along with LoRA, at the price of a good part of the saving.)
#
# ### The claim

# %% tags=["hide-input"]
# @title C01: flexibility and forgetting
flexible = best.startswith("full") and ship["full, fast"] < ship["lora"]
if more and not less:
    verdict = None if flexible else False
    condition = "full fine-tuning is the most flexible, but not the most forgetful here"
else:
    verdict = True if flexible and less and not more else None
    condition = "it differs between methods" if verdict is None else ""
measured = (
    f"Lowest task loss: {best}. At equal task loss {len(less)} of {len(comparable)} PEFT methods forgot "
    f"less than full fine-tuning at its best rate. Full fine-tuning at three times that rate forgot "
    f"{quality['forgotten']['full, fast']:+.3f} nats instead of {quality['forgotten']['full']:+.3f}. On "
    f"words never seen full fine-tuning came to {ship['full, fast']:.2f} nats, LoRA to {ship['lora']:.2f}."
)
forgot = {f"forgot {name}": value for name, value in quality["forgotten"].items()}
world.claim("C01", measured, verdict, condition, **forgot)

# %% [markdown]
# If your card does not say what the lecture says, nothing is broken. Ask what the claim leaves out:
#
# * **Size.** These adapters must move their few numbers *far*, at thirty to a hundred times full
#   fine-tuning's rate. In a model of billions every change can be small, and a low rank leaves most
#   directions alone.
# * **Length and rate.** Full fine-tuning forgets when it is driven hard or long: compare the two rows
#   of `full`. Biderman et al. 2024 trained Llama-2-7B on billions of tokens of code and maths and
#   found that *LoRA learns less and forgets less*.
# * **Other eyes.** Kalajdzievski 2024 finds that LoRA forgets too, the more the better it has learnt;
#   Shuttleworth et al. 2024 that LoRA adds "intruder dimensions" which full fine-tuning does not have,
#   and forgets more where they are strong.
# * **Equal task loss.** Many reports compare after equal *steps*. Then whatever learnt less looks
#   gentler.
#
# What does not depend on size: an adapter can be taken off, turned down, and trained again from the
# untouched base.
#
# ## 7 · What it costs
#
# **Your guess.** The smallest method trains less than a percent of the numbers. By how much does the
# memory of a training step fall, and by how much its time?

# %%
my_guess_memory = 0.99  # share of the memory that is saved
my_guess_time = 0.5  # share of the time

# %% [markdown]
# In fp32 with Adam a trained number takes 16 bytes (itself, its gradient, two moments), a frozen one
# 4. On top come the *activations*, which the backward pass needs on its way to the new parts. As to
# time, a token costs about $2N$ operations forward, $2N$ for the gradient of the activations, and $2n$
# for the gradient of the $n$ weights that train: full fine-tuning $6N$, and a method with $n \approx 0$
# still $4N$. **At best a third is saved**, before its own parts are paid for.
#
# Measured: each model takes a step in turn, several rounds, in seconds of the CPU, so that a busy
# machine slows all alike.

# %%
from course_utils.evaluation.costs import training_flops
from course_utils.experiments.step_cost import step_costs

timed = {name: model for name, model in models.items() if name != "full, fast"}
costs = step_costs(timed, loop.padded(pirate_rows[:batch]), rounds=1 if fast else 5)
N = pretrained.num_parameters()
moving = {k: sum(p.numel() for p in m.parameters() if p.requires_grad) for k, m in timed.items()}
counted = {name: training_flops(N, 1, n) / training_flops(N, 1) for name, n in moving.items()}

# %% tags=["hide-input"]
# @title The lecture's table, filled by measurement
table = pd.DataFrame(
    {
        name: {
            "trained numbers": moving[name],
            "% of all": adapters.trainable_report(models[name]).share,
            "operations": counted[name],
            "CPU time": cost.relative,
            "CPU ms a step": cost.cpu_ms,
            "memory, MB": cost.peak_mb,
            **quality.loc[name],
        }
        for name, cost in costs.items()
    }
).T
formats |= {"trained numbers": "{:,.0f}", "% of all": "{:.2f}", "operations": "{:.0%}"}
formats |= {"CPU time": "{:.0%}", "CPU ms a step": "{:.0f}", "memory, MB": "{:.1f}"}
display(table.style.format(formats, na_rep="–"))

figure = plots.figure("Peak memory of one training step", y="MB", barmode="stack")
fixed = [cost.held_mb for cost in costs.values()]
rest = [cost.peak_mb - cost.held_mb for cost in costs.values()]
plots.bars(figure, list(costs), fixed, plots.COLOURS["ppo"], "weights, gradients, moments")
plots.bars(figure, list(costs), rest, plots.COLOURS["base"], "activations and the rest")

# %% tags=["hidden-test"]
assert set(costs) == set(methods) - {"full, fast"}
assert all(mb > 0 for mb in rest)
assert all(costs[name].peak_mb < costs["full"].peak_mb for name in peft)
assert all(table["% of all"][name] < 3 for name in peft)
assert all(2 / 3 < counted[name] < 0.7 for name in peft)

# %% [markdown]
# In our model the activations weigh more than the weights. In a large model trained on short batches
# it is the other way round, and there PEFT decides whether one can train at all. The course's
# calculator (lesson 07), for 7 billion weights, one row of 512 tokens, activations recomputed:

# %%
from course_utils.memory import estimate, find_shape, recipe

llama = find_shape("llama-7b")
recipes = {
    "full": recipe("full-bf16", checkpointing=True),
    "LoRA, rank 16": recipe("lora"),
    "QLoRA, rank 16": recipe("qlora"),
}
gb = {name: estimate(llama, r, seq=512, batch=1).total / 1e9 for name, r in recipes.items()}
pd.DataFrame({"GB of GPU memory, Llama-7B": gb}).style.format("{:.1f}")

# %% tags=["hidden-test"]
assert gb["full"] > gb["LoRA, rank 16"] > gb["QLoRA, rank 16"]

# %% tags=["hide-input"]
# @title C03: compute and memory
memory_saved = [1 - costs[name].peak_mb / costs["full"].peak_mb for name in peft]
time_saved = [1 - costs[name].relative for name in peft]
verdict, condition = True, ""
if min(memory_saved) <= 0:
    verdict = False
elif min(time_saved) < 0.05:
    verdict, condition = None, "memory falls for all, time not for all"
measured = (
    f"Against full fine-tuning the memory of a step changes by {-min(memory_saved):+.0%} to "
    f"{-max(memory_saved):+.0%} (you guessed {-my_guess_memory:+.0%}) and its time by "
    f"{-min(time_saved):+.0%} to {-max(time_saved):+.0%} (you guessed {-my_guess_time:+.0%}). At 7 billion "
    f"weights LoRA needs {gb['LoRA, rank 16']:.0f} GB instead of {gb['full']:.0f}, by the calculator."
)
saved = {"least memory saved": min(memory_saved), "most memory saved": max(memory_saved)}
saved |= {"least time saved": min(time_saved), "most time saved": max(time_saved)}
world.claim("C03", measured, verdict, condition, **saved)

# %% [markdown]
# ## 8 · On your tier: instruction tuning, all weights against LoRA
#
# Now the main run, with the course's trainer, on this machine's model and its instructions. The same
# rows, the same number of steps; LoRA at ten times the rate, as is usual.

# %%
from course_utils import RunLog, train_sft

here = world if lab.tier.quantized else lab  # weights in 4 bits cannot all be trained
demonstrations, unseen = here.demonstrations(), here.demonstrations("heldout", 48)
settings = here.settings.sft
settings = dataclasses.replace(settings, steps=max(3, settings.steps // 4), save_every=0)

tuned, logs, seconds = {}, {}, {}
for name, times in {"full": 1, "lora": 10}.items():
    chosen = dataclasses.replace(settings, learning_rate=times * settings.learning_rate)
    model = here.base()
    if name == "lora":
        torch.manual_seed(here.seed)
        model = with_peft(model, LoraConfig(r=8, target_modules="all-linear", **CAUSAL))
    place = here.run_directory(f"categories-{name}")
    logs[name] = RunLog.create(place, dataclasses.asdict(chosen), here.seed, overwrite=True)
    began = time.perf_counter()
    data = {"log": logs[name], "eval_dataset": unseen}
    tuned[name] = train_sft(model, here.tokenizer, demonstrations, chosen, **data)
    seconds[name] = time.perf_counter() - began

# %% tags=["hide-input"]
# @title What came out, and what there is to keep
rows = {}
for name, model in tuned.items():
    folder = here.run_directory(f"categories-{name}") / "weights"
    with quiet_libraries(progress=False):
        model.save_pretrained(folder)
    rows[name] = {
        "trained numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "held-out loss": logs[name].frame().eval_loss.dropna().iloc[-1],
        "seconds": seconds[name],
        "file, MB": sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6,
    }
main = pd.DataFrame(rows).T
formats = {"trained numbers": "{:,.0f}", "held-out loss": "{:.3f}", "seconds": "{:.0f}"}
display(main.style.format({**formats, "file, MB": "{:.2f}"}))
asked = {"base": here.base(), "all weights": tuned["full"], "LoRA": tuned["lora"]}
here.answers(asked, here.lecture_prompts[:2], samples=1 if fast else 5)

# %% tags=["hidden-test"]
assert main["file, MB"]["lora"] < 0.5 * main["file, MB"]["full"]
assert main["trained numbers"]["lora"] < 0.2 * main["trained numbers"]["full"]
assert len(logs["full"].rows) >= settings.steps

# %% [markdown] slides="6"
# ## 9 · One base, many people
#
# A full copy for each task or person does not scale. An adapter does: **multi-task** and **personal**
# models are one frozen base and a drawer full of small files. The pirate's LoRA is there already. We
# train a second one, for a bard, and *swap*.

# %%
bard_rows = categories.task_rows("bard", "train", steps * batch, SEED, tokenizer)
torch.manual_seed(SEED)
bard = methods["lora"][0](copy.deepcopy(pretrained))
tune(bard, methods["lora"][1], bard_rows, 3 if fast else 30)
drawer = {"pirate": adapters.adapter_state(models["lora"]), "bard": adapters.adapter_state(bard)}

one = methods["lora"][0](copy.deepcopy(pretrained))
for name, state in drawer.items():
    began = time.perf_counter()
    adapters.load_adapter_state(one, state)
    print(f"{name}, swapped in within {1e3 * (time.perf_counter() - began):.0f} ms")
    for text in world.generate(one, questions, temperature=0.0, max_new_tokens=40):
        print("  –", text)

# %% tags=["hidden-test"]
for name, model in {"pirate": models["lora"], "bard": bard}.items():
    adapters.load_adapter_state(one, drawer[name])
    assert torch.equal(logits_of(one, ids), logits_of(model, ids)), name
assert not torch.equal(logits_of(models["lora"], ids), logits_of(bard, ids))

# %% [markdown]
# **Your guess.** A service gives each of 1,000 users a model of their own, of 7 billion weights at two
# bytes each. How much disk for full copies, how much for adapters?

# %%
users = 1_000
L, width = llama.layers, llama.hidden


def lora_size(shape, r):  # on every weight matrix (d, k) of every layer: r·(d + k)
    return shape.layers * sum(
        adapters.lora_parameters(m.outputs, m.inputs, r) for m in shape.linears
    )


sizes = {
    "full copy": llama.parameters,
    "Houlsby, bottleneck 64": 2 * L * adapters.houlsby_parameters(width, 64),
    "LoRA, rank 16, all matrices": lora_size(llama, 16),
    "LoRA, rank 8, queries and values": 2 * L * adapters.lora_parameters(width, width, 8),
    "prefix, 20 tokens": 2 * L * 20 * llama.kv_width,
    "prompt, 20 tokens": 20 * width,
}
price = {
    name: {
        "% of the model": f"{n / llama.parameters:.4%}",
        "one": f"{2 * n / 1e6:,.2f} MB",
        f"{users:,} users": f"{2 * n * users / 1e9:,.1f} GB",
    }
    for name, n in sizes.items()
}
pd.DataFrame(price).T

# %% tags=["hidden-test"]
in_drawer = sum(v.numel() for k, v in drawer["bard"].items() if not k.startswith("setting."))
assert in_drawer == moving["lora"]
assert sizes["LoRA, rank 16, all matrices"] == 39_976_960  # PEFT's own count for Llama-7B

# %% [markdown] slides="6"
# One base serves all of them, and needs to be in memory only once.
#
# **Low-resource adaptation** is the same sum from the other side. Who has one small GPU can train an
# adapter where the full model would not fit (the 7B rows of section 7). Who has few *examples* has
# few numbers to fit; but that is no cure for overfitting: try `tune` with `pirate_rows[:16]`, for `full`
# and for `lora`.
#
# ### 0.1 to 1 percent?
#
# So the lecture says of LoRA (slide 19). Counted, for LoRA on all weight matrices of the layers:

# %%
shapes = [find_shape(name) for name in ("smollm2-135m", "qwen3-1.7b", "llama-7b", "llama-65b")]
percent = pd.DataFrame(
    {
        f"rank {r}": {s.name: 100 * lora_size(s, r) / s.parameters for s in shapes}
        for r in (4, 8, 16, 64)
    }
)
inside = (percent >= 0.1) & (percent <= 1)
print(f"{int(inside.sum().sum())} of {percent.size} lie between 0.1% and 1%.")
print(f"Our own LoRA of rank 2: {table['% of all']['lora']:.2f}%.")
percent.style.format("{:.2f}%").highlight_between(left=0.1, right=1, props="font-weight:700")

# %% tags=["hidden-test"]
assert 0 < int(inside.sum().sum()) < percent.size
assert (percent.diff(axis=1).iloc[:, 1:] > 0).all().all()

# %% [markdown]
# The larger the model, the smaller the share: a matrix has $d \cdot k$ numbers, its LoRA $r\,(d + k)$. In a
# tiny model even rank 2 is a few percent. Lesson 06 has the rest.
#
# ## 10 · What broke, and why
#
# * **Prompt and prefix started behind.** They stand before the text and are heard from the first step
#   on. They also like many more steps: Lester et al. trained for tens of thousands.
# * **A learning rate is part of a method.** The adapters wanted ten to a hundred times full
#   fine-tuning's. Give all of them 3e-4, and PEFT "forgets nothing" because it learns nothing: try it.
# * **The memory fell less than the trainable share.** The activations stayed.
# * **New words and frozen embeddings** do not go together.
# * **One seed, one task, one small model.** The course's ledger repeats it with several seeds.
#
# ## 11 · Check yourself
#
# <details>
# <summary><b>1.</b> A paper reports: "after 1,000 steps our adapter has forgotten half as much as full fine-tuning". What do you ask?</summary>
#
# How good was each at the task by then? A method that learns less forgets less. Compare at equal task
# loss, each with a learning rate of its own, over several seeds.
# </details>
#
# <details>
# <summary><b>2.</b> LoRA with <code>B = 0</code> and a Houlsby adapter with <code>up = 0</code> start as the base. Why not set <em>all</em> their numbers to zero? And why can a prefix not start as the base?</summary>
#
# The gradient of $A$ contains $B$ as a factor and the other way round, so with both at zero nothing
# would ever move. A prefix always takes a share $\lambda > 0$ of the softmax.
# </details>
#
# <details>
# <summary><b>3.</b> An adapter trains 0.5% of the numbers. Why does the step not take 0.5% of the time?</summary>
#
# The forward pass still goes through all weights, and so does the gradient of the activations on its
# way down to the adapters. Only the gradient of the weights is saved: at best a third.
# </details>
#
# ## 12 · Read on
#
# * Houlsby et al. 2019, [Parameter-efficient transfer learning for NLP](https://arxiv.org/abs/1902.00751)
# * Li and Liang 2021, [Prefix-tuning](https://arxiv.org/abs/2101.00190); Lester et al. 2021, [The power of scale for parameter-efficient prompt tuning](https://arxiv.org/abs/2104.08691)
# * Hu et al. 2021, [LoRA](https://arxiv.org/abs/2106.09685); Ben Zaken et al. 2022, [BitFit](https://arxiv.org/abs/2106.10199)
# * He et al. 2022, [Towards a unified view of parameter-efficient transfer learning](https://arxiv.org/abs/2110.04366)
# * Wei et al. 2021, [Finetuned language models are zero-shot learners](https://arxiv.org/abs/2109.01652) (FLAN: instruction tuning)
# * Biderman et al. 2024, [LoRA learns less and forgets less](https://arxiv.org/abs/2405.09673); Kalajdzievski 2024, [Scaling laws for forgetting when fine-tuning large language models](https://arxiv.org/abs/2401.05605); Shuttleworth et al. 2024, [LoRA vs full fine-tuning: an illusion of equivalence](https://arxiv.org/abs/2410.21228)
# * Wortsman et al. 2022, [Robust fine-tuning of zero-shot models](https://arxiv.org/abs/2109.01903) (the dial)
# * Devlin et al. 2018, [BERT](https://arxiv.org/abs/1810.04805); Radford et al. 2019, [Language models are unsupervised multitask learners](https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf) (GPT-2)
#
# **Exercises:** [exercises/01_categories_of_fine_tuning.ipynb](../exercises/01_categories_of_fine_tuning.ipynb):
# a Houlsby adapter, a prefix in attention, a count of what trains, a measure of forgetting.
#
# **Next.** You know *which* numbers may move. Lesson 02 asks which *words* the loss should count.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
