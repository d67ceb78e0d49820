# %% [markdown] seconds=60
# # Exercises 02 · Supervised fine-tuning
#
# Four tasks that belong to lesson 02: which tokens count, the loss, packing, and a collator to mend.
# For each one: write the function, run the check below it until it says *passed*, then run the small
# experiment, which trains with **your** function, and answer the question after it in a few sentences.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import torch
import torch.nn.functional as F

from course_utils import Lab, check

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
world

# %% [markdown]
# What the experiments share: a plain training loop, and the loss on demonstrations that no training
# sees, always per answer token, however the training counted.

# %%
from course_utils import plots
from course_utils.objectives import next_token_logprobs, sft_loss
from course_utils.training.tokenise import demonstration_rows

STEPS = 2 if lab.tier.is_fast else 30
tokenizer = world.tokenizer


def tokenised(split, n):
    """Demonstrations as rows {input_ids, labels}, labels -100 on the prompt."""
    return demonstration_rows(world.demonstrations(split, n=n), tokenizer, 128, "demonstrations")


rows = tokenised("train", 40 if lab.tier.is_fast else 1200)
heldout = tokenised("heldout", 16 if lab.tier.is_fast else 64)


def filled(sequences, filling, width=None):
    """Lists of different lengths -> (B, T) on the model's device, filled on the right."""
    width = width or max(len(s) for s in sequences)
    values = [list(s) + [filling] * (width - len(s)) for s in sequences]
    return torch.tensor(values, device=world.device)


@torch.no_grad()
def heldout_loss(model):
    """Nats per answer token, on examples that stand alone."""
    ids = filled([row["input_ids"] for row in heldout], 0)
    mask = filled([row["labels"] for row in heldout], -100) != -100
    logits = model(input_ids=ids, use_cache=False).logits
    return sft_loss(next_token_logprobs(logits, ids), mask[:, 1:]).item()


def fit(
    loss_of,
    steps=STEPS,
    optimizer=torch.optim.AdamW,
    learning_rate=3e-4,
    model=None,
    watch=heldout_loss,
):
    """Trains a fresh base model (or `model`), `loss_of(model, step)` at a time.

    Returns the model, the loss of every step, and [(step, watch(model)), ...].
    """
    model = world.base() if model is None else model
    update = optimizer(model.parameters(), lr=learning_rate)
    losses, curve = [], [(0, watch(model))]
    for step in range(steps):
        loss = loss_of(model, step)
        loss.backward()
        update.step()
        update.zero_grad()
        losses.append(loss.item())
        if (step + 1) % max(1, steps // 5) == 0:
            curve.append((step + 1, watch(model)))
    return model, losses, curve


def draw(curves, title, x="optimizer step", y="held-out nats per answer token", **layout):
    """{name: [(x, y), ...]} -> a figure."""
    figure = plots.figure(title, x, y, **layout)
    for i, (name, curve) in enumerate(curves.items()):
        plots.line(figure, *zip(*curve, strict=True), name, plots.colour(i), mode="lines+markers")
    return figure


# %% tags=["hidden-test"]
assert len(rows) == (40 if lab.tier.is_fast else 1200)
assert heldout_loss(world.base()) > 0

# %% [markdown]
# ## Task 1 · Which tokens are the assistant's?
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# A chat template has written a conversation of several turns into one list of token ids. Every turn
# begins with a **header**, a single token that says whose turn it is. Which tokens shall the loss
# count?
#
# Write `completion_mask(ids, headers, end)`.
#
# * `ids`: list of int, the conversation. `headers`: dict, role → id of the header that opens the
#   role's turns; one role is `"assistant"`, the others can be any (`"user"`, `"system"`, `"tool"`).
#   `end`: int, the end token;
# * the result is a list of 0 and 1, as long as `ids`: 1 on the tokens of **every** assistant's turn,
#   its `end` token included, 0 on everything else, so on all headers too;
# * a turn ends with its first `end` token or, where it has none, before the next header. Other roles'
#   turns may end with `end` as well. What stands between an `end` and the next header (a line break
#   in some templates, padding) belongs to nobody;
# * the conversation may have been cut to fit. Cut on the right, the last answer may lack its `end`;
#   what is there counts. Cut on the left, it may begin in the middle of a turn; before the first
#   header nobody knows who spoke, so nothing counts. It may hold no answer at all, and no token;
# * padding may stand on either side, and its id may be `end`'s.
#
# <details><summary>A hint</summary>
#
# Go through the tokens once and remember one thing: is the assistant speaking? Two events change it.
# On an `end` token, the order of the two lines *note the bit* and *change the state* matters.
# </details>


# %% task="completion-mask"
def completion_mask(ids, headers, end):
    ### BEGIN SOLUTION
    mask = []
    answering = False  # whether the assistant is speaking
    for token in ids:
        if token in headers.values():
            answering = token == headers["assistant"]
            mask.append(0)
        else:
            mask.append(int(answering))
            if token == end:
                answering = False
    return mask
    ### END SOLUTION


# %% task="completion-mask" points=4
check.completion_mask(completion_mask)

# %% tags=["hidden-test", "solution-only"]
assert check.completion_mask(completion_mask).passed

# %% [markdown]
# ### Experiment: one answer of a conversation, or all of them?
#
# We join demonstrations to conversations of three questions and answers, and the world's template
# writes them. The template can say by itself which tokens are the assistant's, if its author marked
# them; your function needs no such marks. The last conversations are cut at 60 tokens.

# %% tags=["hide-input"]
# @title Conversations of three turns, in tokens; the template's own mask beside them
headers = {
    role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("system", "user", "assistant")
}


def three_turns(split, n):
    """n conversations as the template writes them: [{input_ids, assistant_masks}, ...]."""
    turns = [row["prompt"] + row["completion"] for row in world.demonstrations(split, n=3 * n)]
    chats = [turns[i] + turns[i + 1] + turns[i + 2] for i in range(0, 3 * n, 3)]
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    return [tokenizer.apply_chat_template(chat, **options) for chat in chats]


written = three_turns("train", 24 if lab.tier.is_fast else 240)
cut = [None] * (len(written) - 8) + [60] * 8  # tokens kept
conversations = [table["input_ids"][:n] for table, n in zip(written, cut, strict=True)]
marked = {
    tuple(ids): table["assistant_masks"][: len(ids)]
    for ids, table in zip(conversations, written, strict=True)
}


def template_mask(ids, headers, end):
    """What the template's own marks say about one of these conversations."""
    return marked[tuple(ids)]


# %%
my_mask = check.use(completion_mask, otherwise=template_mask)
masks = [my_mask(ids, headers, tokenizer.eos_token_id) for ids in conversations]

same = sum(
    list(mask) == template_mask(ids, 0, 0) for mask, ids in zip(masks, conversations, strict=True)
)
print(f"as the template's own mask in {same} of {len(masks)} conversations")

# %% tags=["hidden-test"]
assert same == len(masks)

# %% tags=["hide-input"]
# @title MaskViewer: what your mask counts; the last one was cut
from course_utils.inspectors import MaskViewer

MaskViewer(
    [
        {"input_ids": conversations[i], "assistant_masks": [int(b) for b in masks[i]]}
        for i in (0, 1, -1)
    ],
    tokenizer,
)

# %% [markdown]
# Now three trainings on the same conversations, in the same order: all answers count (your mask); only
# the last answer of each, as the course's loader does it; everything counts, the questions too.
#
# **Your guess.** Which one has the lowest held-out loss at the end?

# %%
my_guess_mask = "last answer"


# %% tags=["hide-input"]
# @title The loss of a step on conversations, by masks
def last_only(mask):
    """Of a mask's runs of ones only the last."""
    stop = max((i + 1 for i, bit in enumerate(mask) if bit), default=0)
    start = max((i for i in range(stop) if not mask[i]), default=-1) + 1
    return [int(start <= i < stop) for i in range(len(mask))]


def conversation_loss(model, chats, masks):
    """Nats per token that the masks count."""
    ids, mask = filled(chats, 0), filled(masks, 0)
    logits = model(input_ids=ids, use_cache=False).logits
    return sft_loss(next_token_logprobs(logits, ids), mask[:, 1:].bool())


def on_conversations(chosen, size=8):
    """The loss of a step on eight conversations, counted by these masks."""

    def loss_of(model, step):
        picked = [(step * size + i) % len(conversations) for i in range(size)]
        return conversation_loss(
            model, [conversations[i] for i in picked], [chosen[i] for i in picked]
        )

    return loss_of


unseen = three_turns("heldout", 8 if lab.tier.is_fast else 24)


@torch.no_grad()
def unseen_loss(model):
    """Nats per answer token of conversations that no training sees."""
    chats, marks = ([table[key] for table in unseen] for key in ("input_ids", "assistant_masks"))
    return conversation_loss(model, chats, marks).item()


# %%
variants = {
    "all answers": masks,
    "last answer": [last_only(mask) for mask in masks],
    "everything": [[1] * len(mask) for mask in masks],
}
curves = {
    name: fit(on_conversations(chosen), watch=unseen_loss)[2] for name, chosen in variants.items()
}
for name, chosen in variants.items():
    share = sum(map(sum, chosen)) / sum(map(len, chosen))
    print(f"{name:<12} counts {share:4.0%} of the tokens; held-out loss {curves[name][-1][1]:.3f}")
print("you guessed:", my_guess_mask)

# %% tags=["hide-input"]
# @title Held-out loss by what was counted
draw(curves, "The same conversations, three masks")

# %% tags=["hidden-test"]
assert all(curve[-1][1] < curve[0][1] + 0.1 for curve in curves.values())
if not lab.tier.is_fast:
    assert curves["all answers"][-1][1] < curves["last answer"][-1][1]

# %% [markdown] task="why-mask" points=2
# **Question 1 (2 points, graded by a person).** All three trainings computed the same forward passes.
# Why did they not learn equally fast? And name a case in which you would count the last answer only,
# although you have the mask for all of them.
#
# ### BEGIN SOLUTION
# A forward pass over a conversation gives a prediction at every position, and the mask decides which
# of them teach. With all answers counted, a step sees about three times as many answer tokens as
# with the last answer only, for the same computation, so its gradient is less noisy. Counting the
# questions as well adds tokens too, but they teach to write questions, and under the mean they take
# weight from the answers.
#
# Count the last answer only where the earlier ones are not worth imitating or were not written by whom
# we want to imitate. In HH-RLHF only the last reply was chosen by a person; in logs of conversations
# the first answers may be the mistakes that the user then complains about; an older model may have
# written them.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · The loss of SFT
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# $$\mathcal{L}_{SFT} = -\sum_{t \in \text{completion}} \log \pi_\theta(x_t \mid x_{<t})$$
#
# Write `masked_sft_loss(logits, input_ids, mask, reduction="mean")`.
#
# * `logits` (B, T, V), `input_ids` (B, T), `mask` (B, T) with 1 on the completion's tokens and 0 on the
#   prompt's and on padding (integers);
# * the result has shape (): the mean over all counted tokens of the batch, or their sum with
#   `reduction="sum"`; 0 where no token counts;
# * logits may be as large as several thousand, and may be bfloat16; the result has float32's digits.
#
# <details><summary>A hint</summary>
#
# The logits at position t predict the token at t + 1. So two of the three arguments lose their first
# column, and one its last. `F.log_softmax` is stable where the logarithm of `softmax` is not.
# </details>


# %% task="masked-sft-loss"
def masked_sft_loss(logits, input_ids, mask, reduction="mean"):
    ### BEGIN SOLUTION
    logprobs = F.log_softmax(logits[:, :-1].float(), dim=-1)  # (B, T-1, V)
    chosen = logprobs.gather(-1, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)  # (B, T-1)
    keep = mask[:, 1:].float()
    total = -(chosen * keep).sum()
    if reduction == "sum":
        return total
    return total / keep.sum().clamp(min=1)
    ### END SOLUTION


# %% task="masked-sft-loss" points=4
check.masked_sft_loss(masked_sft_loss)

# %% tags=["hidden-test", "solution-only"]
assert check.masked_sft_loss(masked_sft_loss).passed

# %% [markdown]
# ### Experiment: sum or mean?
#
# The lecture writes a sum, libraries take the mean. Here are four trainings on the same batches with
# your loss: both reductions, each with AdamW and with plain gradient descent (SGD), learning rates
# unchanged between the reductions.
#
# **Your guess.** In which of the four does the training break down?

# %%
my_guess_breaks = "AdamW, sum"


# %% tags=["hide-input"]
# @title The course's loss, with your function's arguments
def course_loss(logits, input_ids, mask, reduction="mean"):
    logprobs = next_token_logprobs(logits, input_ids)
    name = {"mean": "token_mean", "sum": "sum"}[reduction]
    return sft_loss(logprobs, mask[:, 1:].bool(), reduction=name)


# %%
my_loss = check.use(masked_sft_loss, otherwise=course_loss)


def on_rows(reduction, size=16):
    """The loss of a step on sixteen demonstrations."""

    def loss_of(model, step):
        start = step * size % len(rows)
        batch = (rows + rows)[start : start + size]
        ids = filled([row["input_ids"] for row in batch], 0)
        mask = (filled([row["labels"] for row in batch], -100) != -100).long()
        return my_loss(model(input_ids=ids, use_cache=False).logits, ids, mask, reduction)

    return loss_of


optimizers = {"AdamW": (torch.optim.AdamW, 1e-3), "SGD": (torch.optim.SGD, 0.3)}
reduced = {
    f"{name}, {reduction}": fit(
        on_rows(reduction), optimizer=optimizer, learning_rate=rate, steps=max(2, STEPS // 2)
    )[2]
    for name, (optimizer, rate) in optimizers.items()
    for reduction in ("mean", "sum")
}
for name, curve in reduced.items():
    print(f"{name:<12} held-out loss {curve[0][1]:.3f} -> {curve[-1][1]:.3f}")
print("you guessed:", my_guess_breaks)

# %% tags=["hide-input"]
# @title Held-out loss (the axis ends at 10 nats; a curve that leaves it has broken down)
draw(reduced, "Two reductions, two optimizers", yaxis_range=[0, 10])

# %% tags=["hidden-test"]
if not lab.tier.is_fast:
    assert reduced["AdamW, sum"][-1][1] < reduced["AdamW, sum"][0][1]
    assert not reduced["SGD, sum"][-1][1] < reduced["SGD, sum"][0][1], "NaN counts as broken"

# %% [markdown] task="why-reduction" points=2
# **Question 2 (2 points, graded by a person).** Explain what you saw: why does one optimizer hardly
# notice whether it is given the sum or the mean, and the other does? And: with gradient accumulation a
# batch is computed in four parts. Which of the two would you let each part return, and what else must
# be done so that the gradient is that of the whole batch's mean?
#
# ### BEGIN SOLUTION
# The sum is the mean times the number of counted tokens, here a few hundred. SGD multiplies the
# gradient by the learning rate, so its steps were a few hundred times longer, and it broke down.
# AdamW divides the gradient by a running root mean square of itself: a factor that all gradients
# share cancels (but for ε). What remains is that batches with more answer tokens weigh more under
# the sum.
#
# Each part should return the sum, divided by the number of counted tokens of the **whole** batch, which
# has to be counted before the first part runs. Four means, averaged, give each part the same weight
# however few tokens it holds.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · Packing without leakage
#
# *Difficulty 3 of 5 · about 35 minutes · 5 points*
#
# Short examples behind one another in one row waste less computation than filling. But no example
# may see another: not through attention, not through its positions, not through the loss. With
# $d(i)$ for the example that token $i$ belongs to, token $i$ may look at token $j$ if
#
# $$ j \le i \quad\text{and}\quad d(j) = d(i) $$
#
# Write `pack(rows, width, pad)`.
#
# * `rows`: list of dicts `{"input_ids": [...], "labels": [...]}`, lists of int of the same length, one
#   token at least. Labels are -100 where a token does not count; some rows count all their tokens;
# * the result is a dict of four tensors for one row of `width` tokens, W for short:
#     * `input_ids` (1, W), long: the examples in their order, then `pad` up to the width;
#     * `position_ids` (1, W), long: the place within the example, from 0. What the filling gets is up
#       to you, within 0 … W - 1;
#     * `labels` (1, W), long: the rows' own, **not** shifted (models shift by themselves), -100 on the
#       filling, and -100 on the **first** token of each example: it would be predicted from the last
#       token of its neighbour;
#     * `attention_mask` (1, 1, W, W), bool: entry [0, 0, i, j] says whether token i may look at token j.
#       No real token looks at the filling. What the filling looks at is up to you, but at something:
#       a softmax over nothing is NaN;
# * examples may be alike, and the end of an example may have the same id as `pad`;
# * if the examples do not fit into `width`, raise `ValueError`. `rows` stay as they are.
#
# <details><summary>A hint</summary>
#
# Fill four tensors that already hold what the *filling* needs, example by example, with a slice from
# `start` to `start + n`. The examples are the squares on the mask's diagonal; `torch.tril` makes one of
# them. Or number the examples, and compare the numbers of all pairs at once.
# </details>


# %% task="packing"
def pack(rows, width, pad):
    ### BEGIN SOLUTION
    used = sum(len(row["input_ids"]) for row in rows)
    if used > width:
        raise ValueError(f"{used} tokens do not fit into {width} places")
    ids = torch.full((1, width), pad)
    positions = torch.zeros(1, width, dtype=torch.long)
    labels = torch.full((1, width), -100)
    allowed = torch.eye(width, dtype=torch.bool)  # the filling looks at itself
    start = 0
    for row in rows:
        n = len(row["input_ids"])
        here = slice(start, start + n)
        ids[0, here] = torch.tensor(row["input_ids"])
        positions[0, here] = torch.arange(n)
        labels[0, here] = torch.tensor(row["labels"])
        labels[0, start] = -100
        allowed[here, here] = torch.ones(n, n).tril().bool()
        start += n
    return {"input_ids": ids, "position_ids": positions, "labels": labels,
            "attention_mask": allowed[None, None]}  # fmt: skip
    ### END SOLUTION


# %% task="packing" points=5
check.packing(pack)

# %% tags=["hidden-test", "solution-only"]
assert check.packing(pack).passed

# %% [markdown]
# ### Experiment: what packing saves, and what a leak costs
#
# First the same three examples packed and alone. The scores must agree, and so must the loss.

# %% tags=["hide-input"]
# @title Transformers' packing, with your function's arguments: positions, and no mask
from transformers import DataCollatorWithFlattening


def library_pack(rows, width, pad):
    """Transformers finds the examples by the positions' restarts, so it needs no mask."""
    left = width - sum(len(row["input_ids"]) for row in rows)
    filling = [{"input_ids": [pad] * left, "labels": [-100] * left}] if left else []
    flat = DataCollatorWithFlattening(return_position_ids=True)([*rows, *filling])
    return {**flat, "attention_mask": None}


def scores(model, batch):
    """Logits of packed rows: (B, W, V)."""
    allowed = batch["attention_mask"]
    if allowed is not None:  # True / False -> what is added to the attention scores
        zeros = torch.zeros(allowed.shape)
        allowed = zeros.masked_fill(~allowed, torch.finfo(torch.float32).min).to(world.device)
    return model(
        input_ids=batch["input_ids"].to(world.device),
        position_ids=batch["position_ids"].to(world.device),
        attention_mask=allowed,
        use_cache=False,
    ).logits


# %%
my_pack = check.use(pack, otherwise=library_pack)
base = world.base()
three = rows[:3]
packed = my_pack(three, 128, tokenizer.pad_token_id)


@torch.no_grad()
def alone(model, rows):
    """The logits of each example by itself, one behind the other: (n, V)."""
    each = [model(torch.tensor([row["input_ids"]], device=world.device)).logits[0] for row in rows]
    return torch.cat(each)


apart = alone(base, three)
with torch.no_grad():
    together = scores(base, packed)[0, : len(apart)]
print(f"largest difference of a score, packed against alone: {(together - apart).abs().max():.1e}")

# %% tags=["hidden-test"]
assert (together - apart).abs().max() < 1e-3

# %% tags=["hide-input"]
# @title Your mask: who (row) may look at whom (column)
if packed["attention_mask"] is None:
    print("the library's packing makes no mask that could be shown")
else:
    picture = plots.figure("Blue: may look", "token looked at", "token that looks", height=420)
    picture.add_heatmap(
        z=packed["attention_mask"][0, 0].int().tolist(),
        colorscale=[[0, "rgba(0,0,0,0)"], [1, plots.COLOURS["sft"]]],
        showscale=False,
        hoverinfo="skip",
    )
    picture.update_xaxes(constrain="domain", showgrid=False)
    picture.update_yaxes(autorange="reversed", scaleanchor="x", showgrid=False).show()

# %% [markdown]
# Now train. `first_fit` puts the examples into rows of 128 tokens; each training does the same number
# of steps with eight rows of 128 places:
#
# * **filled**: every example has a row of its own, and the rest of it is filling;
# * **packed**: your function;
# * **leaking**: your function's ids and labels, but positions that run on and a mask that is only
#   causal, as if the row were one text.
#
# **Your guess.** Held-out loss at the end, lowest first?

# %%
my_guess_packing = ["packed", "leaking", "filled"]


# %% tags=["hide-input"]
# @title The three ways to make a batch
def first_fit(rows, width):
    """Examples -> groups that fit into `width` tokens: each into the first with room."""
    groups, room = [], []
    for row in rows:
        need = len(row["input_ids"])
        place = next((k for k, free in enumerate(room) if free >= need), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room.append(width)
        groups[place].append(row)
        room[place] -= need
    return groups


def leaking(rows, width, pad):
    """As if the row were one text."""
    batch = my_pack(rows, width, pad)
    causal = torch.ones(width, width).tril().bool()[None, None]
    return {**batch, "position_ids": torch.arange(width)[None], "attention_mask": causal}


def stacked(batches):
    """Dicts of (1, …) -> one dict of (B, …)."""
    join = {name: [batch[name] for batch in batches] for name in batches[0]}
    return {name: None if v[0] is None else torch.cat(v) for name, v in join.items()}


def on_packs(how, groups, size=8):
    """The loss of a step on eight rows of 128 places."""

    def loss_of(model, step):
        picked = [groups[(step * size + i) % len(groups)] for i in range(size)]
        batch = stacked([how(group, 128, tokenizer.pad_token_id) for group in picked])
        ids, labels = batch["input_ids"].to(world.device), batch["labels"].to(world.device)
        logprobs = next_token_logprobs(scores(model, batch), ids)
        return sft_loss(logprobs, labels[:, 1:] != -100)

    return loss_of


# %%
single, groups = [[row] for row in rows], first_fit(rows, 128)
ways = {
    "filled": (my_pack, single),
    "packed": (my_pack, groups),
    "leaking": (leaking, groups),
}
runs = {name: fit(on_packs(how, grouped)) for name, (how, grouped) in ways.items()}
for name, (_, losses, curve) in runs.items():
    places = 128 * len(ways[name][1])
    waste = 1 - sum(len(row["input_ids"]) for row in rows) / places
    print(
        f"{name:<8} {waste:4.0%} of the places are filling; last training losses "
        f"{sum(losses[-5:]) / len(losses[-5:]):.3f}; held-out loss {curve[-1][1]:.3f}"
    )
print("you guessed:", " < ".join(my_guess_packing))

# %% tags=["hide-input"]
# @title Held-out loss, examples alone
draw({name: run[2] for name, run in runs.items()}, "The same number of computed tokens")

# %% tags=["hidden-test"]
assert all(len(group) >= 1 for group in groups)
if not lab.tier.is_fast:
    assert runs["packed"][2][-1][1] < runs["leaking"][2][-1][1]

# %% [markdown]
# And in measuring? The model of the *packed* training, on the same held-out examples: packed by your
# function, and leaking.

# %%
trained = runs["packed"][0]
some = first_fit(heldout, 128)[:8]
with torch.no_grad():
    measured = {
        name: on_packs(how, some)(trained, 0).item()
        for name, how in {"packed": my_pack, "leaking": leaking}.items()
    }
print({name: round(value, 3) for name, value in measured.items()}, "nats per answer token")

# %% tags=["hidden-test"]
assert measured["leaking"] > measured["packed"] > 0

# %% [markdown] task="why-packing" points=2
# **Question 3 (2 points, graded by a person).** Where does the packed training's advantage over the
# filled one come from, and where would it vanish? And what did the leak cost in training, what in
# measuring? Use your numbers.
#
# ### BEGIN SOLUTION
# Both trainings computed the same number of tokens, but most of the filled one's were filling: a
# packed step sees several times as many examples. It would vanish for examples that are all about
# as long as the row, or if the two were compared after the same number of *examples*.
#
# The leak cost twice. In training every example but the first was asked to predict its answer with
# unrelated conversations before it, which its real use never shows. The last training losses are far
# above those of the packed run, steps went into learning to pass over the neighbours, and the
# held-out loss ends above the packed run's (here even above the base model's). In measuring it shows
# at once: the same trained model, the same examples, and a loss several times as high as soon as other
# conversations stand before them. Such a number depends on what happened to stand beside an example.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · Find the bugs
#
# *Difficulty 3 of 5 · about 30 minutes · 5 points*
#
# Somebody wrote this collator on a Friday. It runs, it raises no error, and a model trained with it
# has a loss that falls. It holds at least five mistakes.


# %%
def broken_collate(rows, pad, side="right"):
    """Rows {input_ids, labels} of different lengths -> one batch for a model of Transformers."""
    width = max(len(row["input_ids"]) for row in rows)
    for row in rows:
        filling = [pad] * (width - len(row["input_ids"]))
        if side == "right":
            row["input_ids"] += filling
        else:
            row["input_ids"] = filling + row["input_ids"]
        row["labels"] += filling
    ids = torch.tensor([row["input_ids"] for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    labels[labels == pad] = -100  # the padding does not count
    labels = labels.roll(-1, dims=1)  # a token is predicted from the one before it
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "labels": labels}


# %% [markdown]
# Write `collate(rows, pad, side="right")` without them.
#
# * `rows`: list of dicts `{"input_ids": [...], "labels": [...]}`, lists of int, both as long as each
#   other, one token at least; labels are -100 where a token does not count. `pad`: int. `side`:
#   `"right"` or `"left"`, where the filling stands;
# * the result is a dict of three long tensors of shape (B, T), T the longest row's length:
#   `input_ids`, filled with `pad`; `attention_mask`, 1 on real tokens and 0 on filling; `labels`, the
#   rows' own, filled with -100;
# * the model is a `…ForCausalLM`, which shifts the labels by itself;
# * often a tokenizer has no pad token and the end token is taken: then `pad` is also the id of real
#   tokens, at the end of a row or in its middle, and they stay real;
# * `rows` are used again in the next pass over the data, so they stay as they are.
#
# <details><summary>A hint</summary>
#
# Take two short rows of different lengths whose last token is 3, call the broken function with
# `pad=3`, and read all three tensors. Then call it again with the *same* rows and the other side. What
# is real is known by a row's length, not by the ids.
# </details>


# %% task="broken-collator"
def collate(rows, pad, side="right"):
    ### BEGIN SOLUTION
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        where = slice(0, n) if side == "right" else slice(width - n, width)
        ids[i, where] = torch.tensor(row["input_ids"])
        mask[i, where] = 1
        labels[i, where] = torch.tensor(row["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
    ### END SOLUTION


# %% task="broken-collator" points=5
check.broken_collator(collate)

# %% tags=["hidden-test", "solution-only"]
assert check.broken_collator(collate).passed

# %% tags=["hidden-test"]
assert not check.broken_collator(broken_collate).passed

# %% [markdown]
# ### Experiment: what does training say about it?
#
# Our base model knows its end token from its reading. To make the trial like that of a real base
# model with a new chat token, the answers end here with one that it has never met, `<|system|>`, and
# that is the pad token too. Three trainings on the same rows: with the broken collator; with yours;
# and with yours after *one* of the mistakes was put back, the labels hidden by the pad token's id.
#
# **Your guess.** Which of the three reports the lowest training loss, over all its steps?

# %%
my_guess_lowest = "yours"

# %% tags=["hide-input"]
# @title Rows with a new end token; TRL's collator with your function's arguments
import copy

from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from course_utils.evaluation import evaluate_policy

other = copy.deepcopy(tokenizer)
other.eos_token = "<|system|>"
old, new = tokenizer.eos_token_id, other.eos_token_id
renamed = [
    {name: [new if t == old else t for t in tokens] for name, tokens in row.items()} for row in rows
]


def library_collate(rows, pad, side="right"):
    """TRL's: filled on the right only, which is the side that training uses."""
    return dict(DataCollatorForLanguageModeling(pad_token_id=pad)(copy.deepcopy(rows)))


def on_batches(collator, rows, size=16):
    """The loss that the model itself computes from a collated batch."""

    def loss_of(model, step):
        start = step * size % len(rows)
        batch = collator((rows + rows)[start : start + size], new)
        batch = {name: tensor.to(world.device) for name, tensor in batch.items()}
        return model(**batch, use_cache=False).loss

    return loss_of


def ended(model):
    """Share of answers that the model ends by itself, and one of them."""
    drawn = evaluate_policy(
        model, other, world.prompts("heldout", 6 if lab.tier.is_fast else 32), max_new_tokens=48
    )
    return drawn.eos_rate, drawn.completions[0].text


# %%
my_collate = check.use(collate, otherwise=library_collate)


def one_mistake(rows, pad, side="right"):
    """Yours, and one line of the broken one."""
    batch = my_collate(rows, pad, side)
    batch["labels"] = batch["labels"].masked_fill(batch["input_ids"] == pad, -100)
    return batch


collators = {"broken": broken_collate, "yours": my_collate, "one mistake": one_mistake}
results = {}
for name, collator in collators.items():
    model = world.base()
    model.generation_config.eos_token_id = new
    fresh = copy.deepcopy(renamed)  # the broken one changes its rows
    _, losses, _ = fit(on_batches(collator, fresh), model=model, learning_rate=3e-3)
    results[name] = (losses, *ended(model.eval()))

for name, (losses, share, sample) in results.items():
    mean, last = sum(losses) / len(losses), sum(losses[-5:]) / len(losses[-5:])
    print(
        f"{name:<12} loss: mean {mean:.2f}, at the end {last:.2f}; {share:.0%} of the answers end"
    )
    print(f"{'':<12} {sample}\n")
print("you guessed:", my_guess_lowest)

# %% tags=["hide-input"]
# @title The training losses
draw(
    {name: list(enumerate(losses)) for name, (losses, _, _) in results.items()},
    "What each of them reports",
    y="reported nats per token",
)

# %% tags=["hidden-test"]
if not lab.tier.is_fast:
    for name in ("broken", "yours"):
        assert results[name][0][-1] < results[name][0][0]
    assert results["yours"][1] > results["one mistake"][1] + 0.3
    assert sum(results["one mistake"][0]) < sum(results["yours"][0])

# %% [markdown] task="why-collator" points=2
# **Question 4 (2 points, graded by a person).** Name the mistakes you found. Which of them would you
# have noticed in the curve of the training loss, which in a sampled answer, which in neither? What
# single look, before any training, would have shown the most of them?
#
# ### BEGIN SOLUTION
# The mistakes: the rows are changed in place (from the second pass on they hold filling); labels are
# filled with `pad`, not -100, and on the right even where the ids are filled on the left; labels equal to
# `pad` are hidden, the real end token with them; the labels are shifted although the model shifts;
# the attention mask goes by the id, and hides real end tokens.
#
# The broken collator's loss falls, and smoothly, so the curve alone accuses nobody. The double shift
# shows as a loss that stays higher, if one knows what to expect, and at once in the samples: the model
# has learned the token after the next. The hidden end token makes the reported loss *better*: the new
# token was the hardest to learn, and nobody asks for it. It shows in the samples: the answers do not
# end. The mask by id and the changed rows show in neither here: a last token that is not attended to
# harms nobody in a row with one turn, and rows that were filled once are only longer. In rows of
# several turns, on the left side or in memory they would show.
#
# One batch, printed: tokens, attention mask and labels below one another (`MaskViewer`), made twice
# from the same rows, with `pad` = end.
# ### END SOLUTION

# %% [markdown]
# Done? Save the notebook and run `course check 02 02_supervised_fine_tuning.ipynb` in its folder: it
# judges as the grader will, from your definitions alone.
