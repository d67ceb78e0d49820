# %% [markdown] seconds=95
# # 02 · Supervised fine-tuning
# ## Which words of a conversation should the loss count?
#
# Supervised fine-tuning (SFT) is next-word prediction on good examples. The idea fits in one line;
# the mistakes hide in the details, and none of them raises an error. In this notebook you will
#
# 1. turn a conversation into tokens, and decide which of them are to be learned,
# 2. write the loss yourself and find the same number in three libraries,
# 3. pack several examples into one sequence without letting them see each other,
# 4. fine-tune a model and look at every token of the loss,
# 5. fall into three traps on purpose,
# 6. measure what the *quality* of the examples does, and where SFT ends.
#
# Tier tiny: about 95 s on two cores that have other work too; on a T4 with real models: not
# measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

from course_utils import Lab

lab = Lab.open()
world = lab.world  # the small universe in which every fact is known; on tier tiny the lab itself
lab

# %% tags=["hidden-test"]
assert world.gold is not None

# %% [markdown] slides="7 8"
# ## 1 · Somebody writes the answer
#
# **The lecture's claim: labelled pairs of instruction and response teach a model to follow
# instructions. What does such a pair look like, and who writes it?**
#
# The lecture's example is *“Explain black holes to a 5-year-old”*. Somebody writes the answer they
# would like to read, for instance *“a black hole is a place in space that pulls so hard that not
# even light gets away”*. In InstructGPT (Ouyang et al. 2022) this is step 1 of three: a prompt is
# drawn, a **labeller** demonstrates the behaviour, the pair goes into the training set. The prompt
# in their figure is *“Explain the moon landing to a 6 year old”*.

# %% tags=["hide-input"]
# @title Step 1 of InstructGPT, drawn after the paper's figure
from IPython.display import Markdown

from course_utils.pictures import sft as sft_pictures

sft_pictures.step_one()

# %% [markdown] slides="8"
# The lecture's second picture is an answer of Gemini to *“Should I add chorizo to my paella?”*. It is
# a good test for a different reason: there is a fact in it (what belongs into the dish), a matter of
# taste, and a person who wants to know what to do. A demonstration shows how to put the three
# together. We will ask our own model both questions before and after training.
#
# Here are pairs of our universe. `lab.demonstrations()` gives the pairs of whatever tier you are on.

# %%
demonstrations = world.demonstrations(n=48 if lab.tier.is_fast else 2000)

for row in demonstrations.select(range(3)):
    print("prompt    ", row["prompt"][0]["content"])
    print("completion", row["completion"][0]["content"], "\n")

# %% [markdown] slides="4"
# One word on names. **Instruction tuning** stands in the lecture's table of methods beside full
# fine-tuning, adapters and LoRA, but it answers another question. Those say *which weights move*;
# instruction tuning says *what the data is*: instructions with answers. It can update all weights or
# a part of them (lesson 01 does both). Everything in this lesson is the same for either choice.
#
# ## 2 · A conversation becomes one row of tokens
#
# A model reads one sequence, not a list of messages. The **chat template** writes the conversation
# into one text, with special tokens that say who speaks and where a turn ends. In our universe it
# is this simple:


# %%
def render(messages, generation=False):
    """Messages -> one text. `generation`: stop where the assistant's answer would begin."""
    text = ""
    for message in messages:
        text += f"<|{message['role']}|>{message['content']}"
        if message["role"] == "assistant":
            text += "<|end|>"
    return text + ("<|assistant|>" if generation else "")


tokenizer = world.tokenizer
example = demonstrations[0]
messages = example["prompt"] + example["completion"]

print(render(example["prompt"], generation=True))
print(render(messages))

# %% [markdown]
# Every model brings its own template, written in Jinja, and `apply_chat_template` runs it. Ours must
# give the same text and the same tokens:

# %%
theirs = tokenizer.apply_chat_template(messages, tokenize=False)
assert render(messages) == theirs

ids = tokenizer(render(messages), add_special_tokens=False)["input_ids"]
assert ids == tokenizer.apply_chat_template(messages, return_dict=False)

print(len(ids), "tokens:", " · ".join(tokenizer.convert_ids_to_tokens(ids)))

# %% tags=["hidden-test"]
assert ids[-1] == tokenizer.eos_token_id
assert render(messages).startswith(render(example["prompt"], generation=True))

# %% [markdown]
# Three things to notice.
#
# * The special tokens are **one token each**, whatever they look like as text.
# * The template has written them already, so the tokenizer must not add its own
#   (`add_special_tokens=False`). A second beginning-of-text token is a quiet, common mistake.
# * The answer ends with `<|end|>`. It is a token like any other, and the model has to learn to say it.
#
# Other families write the same conversation differently. A model trained with one template and asked
# in another answers worse, without any error.
#
# | family | the user's turn, and where the answer begins | the answer ends with |
# |---|---|---|
# | ChatML (Qwen, SmolLM2) | `<\|im_start\|>user⏎…<\|im_end\|>⏎<\|im_start\|>assistant⏎` | `<\|im_end\|>` |
# | Alpaca | `### Instruction:⏎…⏎⏎### Response:⏎` | `</s>` |
# | Vicuna | `USER: … ASSISTANT:` | `</s>` |
# | HH-RLHF transcripts | `⏎⏎Human: …⏎⏎Assistant:` | the next `⏎⏎Human:` |
# | our universe | `<\|user\|>…<\|assistant\|>` | `<\|end\|>` |
#
# ## 3 · Which tokens shall the loss count?
#
# We want the model to learn to *answer*, not to ask. So the prompt is context only, and the loss
# counts the tokens after it. The **completion mask** says which. Hugging Face writes it into the
# labels: the token's id where it counts, `-100` where it does not.
#
# **Your guess.** What share of all tokens in our demonstrations belongs to the answers?

# %%
my_guess_share = 0.9

# %% [markdown]
# To find where the answer starts we render the prompt alone, up to the point where the model would
# begin to write, and see how far both rows of tokens agree.


# %%
def with_labels(row):
    """{prompt, completion} -> {input_ids, labels}: -100 on the prompt."""

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = encode(render(row["prompt"], generation=True))
    whole = encode(render(row["prompt"] + row["completion"]))
    start = 0
    while start < len(prompt) and prompt[start] == whole[start]:
        start += 1
    return {"input_ids": whole, "labels": [-100] * start + whole[start:]}


mine = [with_labels(row) for row in demonstrations.select(range(48))]
print(mine[0]["input_ids"])
print(mine[0]["labels"])

# %% [markdown]
# (Why compare, and not simply count the prompt's tokens? In many tokenizers the last characters of
# the prompt and the first of the answer can melt into one token. Then the prompt alone is not a
# prefix of the whole, and a count is off by one.)
#
# The library does the same for whole datasets, and for any template:

# %%
from course_utils.training.tokenise import demonstration_rows

rows = demonstration_rows(demonstrations, tokenizer, 128, "the demonstrations")
assert rows[:48] == mine

counted = sum(label != -100 for row in rows for label in row["labels"])
share = counted / sum(len(row["labels"]) for row in rows)
print(f"the loss counts {share:.0%} of all tokens; you guessed {my_guess_share:.0%}")

# %% tags=["hidden-test"]
assert 0 < share < 1
assert all(row["labels"][-1] == tokenizer.eos_token_id for row in rows)
assert all(row["labels"][0] == -100 for row in rows)

# %% [markdown]
# Look at it. Coloured tokens count, pale ones are context. Check the borders: is `<|assistant|>`
# counted? Is `<|end|>`?

# %% tags=["hide-input"]
# @title MaskViewer: what the loss counts
from course_utils.inspectors import MaskViewer

viewer = MaskViewer(rows[:6], tokenizer)
viewer

# %% tags=["hidden-test"]
assert viewer.summary()["counted"] == sum(x != -100 for row in rows[:6] for x in row["labels"])

# %% [markdown] slides="7"
# ## 4 · The loss
#
# **The objective is the log-likelihood of the right response, given the prompt.** For a prompt $x$
# and a response $y$ of $T$ tokens:
#
# $$\mathcal{L}_{\text{SFT}}(\theta) = -\sum_{t=1}^{T} \log p_\theta(y_t \mid y_{<t},\, x)$$
#
# First with a toy: a language of three words, a response of three, and the model's probabilities
# written down.

# %%
import torch

probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]])  # (T, V)
response = [0, 1, 2]  # y_1, y_2, y_3

toy = -sum(probabilities[t, y].log() for t, y in enumerate(response))
print(f"L = {toy:.4f}")
print(f"  = -log(0.7 · 0.8 · 0.5) = {-torch.tensor(0.7 * 0.8 * 0.5).log():.4f}")

# %% tags=["hidden-test"]
torch.testing.assert_close(toy, -torch.tensor(0.28).log())

# %% [markdown]
# A sum of logs is the log of a product: $e^{-\mathcal{L}}$ is the probability that the model would
# write exactly this response.
#
# Now the real one. A model gives, at each position, scores for the **next** token. So the token at
# position $t$ is judged by the scores at position $t - 1$. This *shift* is where many a loss went
# wrong.
#
# **Your guess.** If someone forgets the shift, and judges each token by the scores at its own
# position, will the base model's loss look better or worse?

# %%
my_guess_shift = "better"


# %%
@torch.no_grad()
def l_sft(model, row, shift=1):
    """The lecture's sum over one row's answer, term by term."""
    ids = torch.tensor(row["input_ids"], device=model.device)  # (T,)
    logp = model(ids[None]).logits[0].log_softmax(-1)  # (T, V)
    loss = 0.0
    for t, label in enumerate(row["labels"]):
        if label != -100:
            loss -= logp[t - shift, label]  # log p(y_t | y_<t, x)
    return loss


base = world.base()
right, forgotten = l_sft(base, rows[0]), l_sft(base, rows[0], shift=0)
print(f"with the shift {right:.2f} nats, without {forgotten:.2f}; you guessed: {my_guess_shift}")

# %% tags=["hidden-test"]
assert forgotten > right

# %% [markdown]
# Without the shift the model is asked for the word it has just read, and it never says a word
# twice. The loss would fall quickly in training, by teaching the model to repeat its input. A loss
# that falls proves nothing.
#
# For whole batches we need rows of one length. Right of a short row we fill in anything and label it
# `-100`; attention looks only back, so no real token sees the filling.


# %%
def collate(rows, device):
    """Rows of different lengths -> input_ids and labels, (B, T) each."""
    width = max(len(row["input_ids"]) for row in rows)

    def filled(values, filling):
        return list(values) + [filling] * (width - len(values))

    ids = torch.tensor([filled(row["input_ids"], 0) for row in rows], device=device)
    labels = torch.tensor([filled(row["labels"], -100) for row in rows], device=device)
    return ids, labels


def answer_logprobs(model, rows):
    """log p of every next token, and the mask of those that count: (B, T - 1) each."""
    ids, labels = collate(rows, model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V): the shift
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)  # (B, T - 1)
    return logp, labels[:, 1:] != -100


batch = rows[:8]
with torch.no_grad():
    logp, mask = answer_logprobs(base, batch)

by_batch = -(logp * mask).sum()
by_hand = sum(l_sft(base, row) for row in batch)
torch.testing.assert_close(by_batch, by_hand, rtol=1e-4, atol=1e-3)
print(f"sum over {mask.sum()} answer tokens: {by_batch:.2f} nats")

# %% [markdown]
# ### The library gives the same number
#
# Four times: this course's `sft_loss`, PyTorch's cross-entropy, the loss that a Transformers model
# computes when it is given labels, and the first step of TRL's `SFTTrainer`, which starts from the
# *raw* rows and does template, mask and loss by itself. The last three report the mean per counted
# token, so we divide.

# %%
import torch.nn.functional as F

from course_utils.objectives import next_token_logprobs, sft_loss

mean = by_batch / mask.sum()

input_ids, labels = collate(batch, base.device)
with torch.no_grad():
    found = base(input_ids=input_ids, labels=labels)

ours = sft_loss(next_token_logprobs(found.logits, input_ids), mask)
torchs = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

torch.testing.assert_close(sft_loss(logp, mask, reduction="sum"), by_batch)
for library in (ours, torchs, found.loss):
    torch.testing.assert_close(library, mean, rtol=1e-4, atol=1e-4)
print(f"by hand {mean:.5f} | course {ours:.5f} | PyTorch {torchs:.5f} | model {found.loss:.5f}")

# %%
import copy
import tempfile
from dataclasses import asdict, replace

from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from course_utils.training.sft import sft_arguments
from course_utils.training.trl_common import quiet_libraries


class PlainTrainer(SFTTrainer):
    """TRL's own, which only does not report home that it runs."""

    def _send_telemetry(self):
        pass


one_step = replace(world.settings.sft, steps=1, batch_size=8, gradient_accumulation=1)
with tempfile.TemporaryDirectory() as scratch, quiet_libraries(progress=False):
    trainer = PlainTrainer(
        model=world.base(),
        args=SFTConfig(**sft_arguments(one_step, 1, scratch, world.device)),
        train_dataset=demonstrations.select(range(8)),  # {prompt, completion}, not tokenised
        processing_class=copy.deepcopy(tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    first = trainer.train().training_loss

torch.testing.assert_close(first, mean.item(), rtol=1e-4, atol=1e-4)
print(f"by hand {mean:.5f} | TRL's first step {first:.5f}")

# %% tags=["hidden-test"]
assert abs(first - mean.item()) < 1e-3

# %% [markdown]
# ## 5 · Sum, mean, or mean of means?
#
# The lecture writes a sum over one response. With a batch there are three ways to go on:
#
# | reduction | formula over answers $i$ with $T_i$ tokens | who counts equally |
# |---|---|---|
# | sum | $\sum_i \sum_t \ell_{i,t}$ | every token; the step grows with the batch |
# | token mean | $\sum_i \sum_t \ell_{i,t} \,/\, \sum_i T_i$ | every token |
# | sequence mean | $\frac{1}{B}\sum_i \frac{1}{T_i} \sum_t \ell_{i,t}$ | every answer, long or short |
#
# **Your guess.** A batch holds the two shortest and the two longest answers. What share of the
# gradient's weight do the two long ones get under the token mean?

# %%
my_guess_long = 0.5

# %%
import pandas as pd

by_length = sorted(rows, key=lambda row: sum(label != -100 for label in row["labels"]))
mixed = by_length[:2] + by_length[-2:]
with torch.no_grad():
    logp, mask = answer_logprobs(base, mixed)
tokens = mask.sum(1)  # (B,)
summed = -(logp * mask).sum(1)  # (B,)

weights = pd.DataFrame(
    {
        "answer tokens": tokens.tolist(),
        "−log p, summed": summed.tolist(),
        "weight: sum, token mean": (tokens / tokens.sum()).tolist(),
        "weight: sequence mean": [1 / len(mixed)] * len(mixed),
    },
    index=["short", "short", "long", "long"],
)
long_share = weights["weight: sum, token mean"]["long"].sum()
print(f"the long answers get {long_share:.0%}; you guessed {my_guess_long:.0%}")
weights.style.format({"−log p, summed": "{:.2f}", **dict.fromkeys(weights.columns[2:], "{:.0%}")})

# %% tags=["hidden-test"]
assert long_share > 0.5
assert abs(weights["weight: sum, token mean"].sum() - 1) < 1e-6

# %% [markdown]
# None of the three is wrong. The token mean (Transformers, TRL, this course) learns mostly from long
# answers. The sequence mean lets a two-word answer pull as hard as an essay. Sum and token mean have
# the same direction; their lengths differ, so they need different learning rates.
#
# Wrong is only to *mix* them without knowing. It happens when a batch is too big for the memory and
# is computed in parts: the mean of the parts' means is neither of the three.

# %%
short, long = slice(0, 2), slice(2, 4)
whole = sft_loss(logp, mask)
mean_of_means = (sft_loss(logp[short], mask[short]) + sft_loss(logp[long], mask[long])) / 2
shared = sum(sft_loss(logp[p], mask[p], denominator=mask.sum()) for p in (short, long))

torch.testing.assert_close(shared, whole)
print(f"one batch {whole:.4f} | mean of two parts' means {mean_of_means:.4f}")
print(f"parts divided by the tokens of the whole batch {shared:.4f}")

# %% tags=["hidden-test"]
assert abs(mean_of_means - whole) > 1e-3

# %% [markdown]
# Gradient accumulation in Transformers itself averaged the parts' means until October 2024
# ([how it was found and mended](https://huggingface.co/blog/gradient_accumulation)). The mend is the
# line above: count the tokens of the whole batch first, then divide every part by that number.
#
# ## 6 · Packing: several examples in one sequence
#
# Filling short rows up to the longest wastes computation. **Packing** puts several examples behind
# one another into one row. Then attention must be told where one ends: else the second answer is
# read in the light of the first conversation. That is *leakage*.
#
# Two things can be set: the **positions** (start at 0 again with each example) and the **attention
# mask** (block-diagonal: look back, but only within your own example).


# %%
def pack(rows, device="cpu"):
    """Rows -> one row (1, T): ids, labels, positions within each example, number of the example."""
    ids = torch.tensor([[i for row in rows for i in row["input_ids"]]], device=device)
    labels = torch.tensor([[x for row in rows for x in row["labels"]]], device=device)
    lengths = [len(row["input_ids"]) for row in rows]
    positions = torch.cat([torch.arange(n) for n in lengths])[None].to(device)
    example = torch.tensor([k for k, n in enumerate(lengths) for _ in range(n)], device=device)
    return ids, labels, positions, example


def as_bias(allowed):
    """True where a token may look -> what is added to the attention scores, (1, 1, T, T)."""
    zeros = torch.zeros(allowed.shape, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(torch.float32).min)[None, None]


three = rows[:3]
packed, packed_labels, positions, example_of = pack(three, world.device)
width = packed.shape[1]
causal = torch.ones(width, width, device=packed.device).tril().bool()  # (T, T): only look back
blocks = causal & (example_of[:, None] == example_of[None, :])  # and only within the example

# %% tags=["hide-input"]
# @title Who may look at whom
sft_pictures.who_sees_whom(example_of.tolist())

# %% [markdown]
# **Your guess.** Four ways to run the packed row. Which give every token the same scores as if its
# example stood alone: (a) just the ids; (b) positions restarted; (c) the block mask; (d) both?

# %%
my_guess_packing = "d"

# %%
with torch.no_grad():
    alone = torch.cat(
        [base(torch.tensor([r["input_ids"]], device=base.device)).logits for r in three], 1
    )

    def leak(**how):
        """Largest change of a score, example by example, against the example alone."""
        change = (base(packed, **how).logits - alone).abs().amax(-1)[0]  # (T,)
        return [change[example_of == k].max().item() for k in range(len(three))]

    leaks = {
        "(a) just the ids": leak(),
        "(b) positions restarted": leak(position_ids=positions, attention_mask=as_bias(causal)),
        "(c) block mask": leak(attention_mask=as_bias(blocks)),
        "(d) both": leak(position_ids=positions, attention_mask=as_bias(blocks)),
    }

print(f"largest change of a logit in each example; you guessed ({my_guess_packing})")
changes = pd.DataFrame(leaks, index=["1st example", "2nd", "3rd"]).T
changes.style.format("{:.1e}")

# %% tags=["hidden-test"]
assert max(leaks["(d) both"]) < 1e-3
assert min(leaks["(a) just the ids"][1:]) > 0.1
assert leaks["(a) just the ids"][0] < 1e-3, "nothing stands before the first example"

# %% tags=["hide-input"]
# @title In words
exact = [name for name, change in leaks.items() if max(change) < 1e-3]
Markdown(
    f"Exact up to rounding: **{', '.join(exact)}**. The first example is always right, nothing stands "
    "before it. Restarting the positions alone does not stop a token from *looking* at its "
    "neighbours. "
    + (
        "And the block mask alone is enough here, since this model's positions are *rotary*: they "
        "enter only as differences between two tokens, which do not change when an example is moved. "
        "A model with learned positions (GPT-2) needs both."
        if "(c) block mask" in exact
        else "This model needs both."
    )
)

# %% [markdown]
# In practice you do not build the mask. You pass restarted positions and **no mask**, and
# Transformers works out the blocks from the restarts. That is what TRL does with `packing=True`. But
# there is a condition, which we found by measuring:

# %%
with torch.no_grad():
    with_cache = max(leak(position_ids=positions, use_cache=True))
    without_cache = max(leak(position_ids=positions, use_cache=False))
    counts = packed_labels[:, 1:] != -100
    logits = base(packed, position_ids=positions, use_cache=False).logits
    packed_loss = sft_loss(next_token_logprobs(logits, packed), counts, reduction="sum")

print(
    f"restarted positions, no mask: change {with_cache:.1e} with a cache, {without_cache:.1e} without"
)
torch.testing.assert_close(
    packed_loss, sum(l_sft(base, row) for row in three), rtol=1e-3, atol=1e-3
)
print(f"loss of the packed row, summed: {packed_loss:.3f}, the sum of the three alone")

# %% tags=["hidden-test"]
assert without_cache < 1e-3

# %% [markdown]
# `use_cache=True` is the default of a model outside training. Whoever scores packed rows with it
# measures the leak, not the model. (The token at a border, the first of each example, must not be
# counted either: it would be predicted from the end of its neighbour. In our rows it belongs to a
# prompt, so it never is.)
#
# What packing saves, with the simplest rule: longest first, each into the first row with room.


# %%
def first_fit(lengths, capacity):
    """Numbers of tokens -> rows of at most `capacity`, as lists of indices."""
    rows, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((k for k, free in enumerate(room) if free >= lengths[index]), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(capacity)
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


lengths = [len(row["input_ids"]) for row in rows[:512]]
padded = sum(32 * max(lengths[i : i + 32]) for i in range(0, len(lengths), 32))
packs = first_fit(lengths, 128)
waste = {"padded, batches of 32": 1 - sum(lengths) / padded}
waste["packed into rows of 128"] = 1 - sum(lengths) / (128 * len(packs))
for name, lost in waste.items():
    print(f"{name:<24} {lost:6.1%} of the computed tokens are filling")

# %% tags=["hidden-test"]
assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
assert all(sum(lengths[i] for i in pack) <= 128 for pack in packs)

# %% [markdown]
# ## 7 · Run it
#
# Now on your tier: `train_sft` is TRL's `SFTTrainer` with the details above taken care of, every
# number written to a run's folder, and checkpoints that a killed run continues from. Besides the
# training loss we watch the loss on **held-out** demonstrations.

# %%
from course_utils import RunLog, train_sft

base_policy = lab.base()
given = lab.demonstrations()
heldout = lab.demonstrations("heldout", n=48 if lab.tier.is_fast else 96)

settings = lab.settings.sft
settings = replace(settings, eval_every=max(1, settings.steps // 5), save_every=0)
log = RunLog.create(lab.run_directory("lesson-02"), asdict(settings), lab.seed, overwrite=True)
sft = train_sft(lab.base(), lab.tokenizer, given, settings, log, heldout)

# %% tags=["hidden-test"]
assert log.rows[-1]["step"] == settings.steps
assert not torch.equal(next(sft.parameters()), next(base_policy.parameters()))

# %% tags=["hide-input"]
# @title The two losses, drawn
sft_pictures.losses_by_step(log.frame())

# %% [markdown] slides="8"
# ### The lecture's questions, before and after
#
# The moon landing for a 6-year-old, chorizo in paella, black holes for a 5-year-old: the same
# prompts to the base model and to the fine-tuned one. All three topics were held out from the
# demonstrations. Of several samples you see the typical one (where the gold reward is known, the median).

# %%
both = {"base model": base_policy, "after SFT": sft}
table = lab.answers(both, lab.lecture_prompts, samples=3 if lab.tier.is_fast else 15)
table

# %% tags=["hidden-test"]
assert set(table.frame().model) == {"base model", "after SFT"}

# %% [markdown]
# ### Where did the loss fall?
#
# The same rows, before and after. Each counted token is coloured by its $-\log p$: the stronger, the
# more it adds to the loss (each picture has a scale of its own). Step through a few examples. Which tokens were hard for the base model and
# are easy now? Which stay hard?

# %%
shown = demonstration_rows(heldout, lab.tokenizer, settings.max_length, "held-out demonstrations")

# %% tags=["hide-input"]
# @title MaskViewer: the base model, then after SFT
from IPython.display import display

some = ([row for row in shown if len(row["input_ids"]) > 25] or shown)[:6]
before = MaskViewer(some, lab.tokenizer, base_policy)
after = MaskViewer(some, lab.tokenizer, sft)
display(before, after)


# %%
def by_place(model, rows):
    """Mean −log p of the answer's first token, of those in between, and of the end token."""
    with torch.no_grad():
        logp, mask = answer_logprobs(model, rows)
    count = mask.cumsum(1)
    last = mask.sum(1, keepdim=True)
    places = {
        "first": mask & (count == 1),
        "in between": mask & (count > 1) & (count < last),
        "end": mask & (count == last),
    }
    return {name: -logp[where].mean().item() for name, where in places.items()}


fell = pd.DataFrame(
    {"base model": by_place(base_policy, shown[:48]), "after SFT": by_place(sft, shown[:48])}
)
fell["change"] = fell["after SFT"] - fell["base model"]
fell.style.format("{:.2f}")

# %% tags=["hidden-test"]
assert 0 < len(some) <= 6
if not lab.tier.is_fast:
    with torch.no_grad():
        losses = [sft_loss(*answer_logprobs(model, shown)) for model in (base_policy, sft)]
    assert losses[1] < losses[0]
assert set(fell.index) == {"first", "in between", "end"}

# %% tags=["hide-input"]
# @title In words
most = fell["change"].idxmin()
why = {
    "first": "It decides what kind of answer comes: an opening courtesy, a refusal, a fact.",
    "in between": "That is where the facts stand, and the habits of the web between them.",
    "end": "The base model would often have gone on; the demonstrations stop when all is said.",
}
Markdown(
    f"The loss fell most at **{most}** ({fell['change'][most]:+.2f} nats per token). {why[most]} The "
    f"hardest token after SFT is **{fell['after SFT'].idxmax()}**. Where several words would be right, "
    "no model can know which one the labeller chose, and that part of the loss stays: SFT asks for "
    "*this* answer, not for *a good* answer."
)

# %% [markdown]
# ## 8 · Three traps
#
# Each of these has cost people days; none raises an error. For the trials we use the plainest
# training loop, twelve lines, on the small universe (known quality, seconds of training).

# %%
from random import Random

STEPS = 3 if lab.tier.is_fast else 40


def fit(model, rows, steps=STEPS, size=32, learning_rate=1e-3, look=None):
    """AdamW on the token mean, batches in random order; the rate rises for 5 steps, then falls."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    draw, waiting = Random(world.seed), []
    model.train()
    for step in range(steps):
        if look is not None:
            look(step)
        while len(waiting) < size:
            waiting += draw.sample(rows, len(rows))  # another pass over the data
        batch, waiting = waiting[:size], waiting[size:]
        logp, mask = answer_logprobs(model, batch)
        sft_loss(logp, mask).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 5) * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def mean_loss(model, rows):
    """Nats per answer token."""
    return sft_loss(*answer_logprobs(model, rows)).item()


heldout_rows = demonstration_rows(
    world.demonstrations("heldout", n=24 if lab.tier.is_fast else 64),
    tokenizer,
    128,
    "held-out demonstrations",
)


def watching(model, rows, curve):
    """Something for `fit` to call: notes both losses now and then."""

    def look(step):
        if step % max(1, STEPS // 5) == 0 or step == STEPS:
            curve.append((step, mean_loss(model, rows[:64]), mean_loss(model, heldout_rows)))

    return look


def train(rows, curve=None):
    """A fresh base model, fitted; with `curve`, its losses on the way."""
    model = world.base()
    look = None if curve is None else watching(model, rows, curve)
    fit(model, rows, look=look)
    if look is not None:
        look(STEPS)
    return model


clean_curve = []
clean = train(rows, clean_curve)
print(f"held-out loss {clean_curve[0][2]:.3f} -> {clean_curve[-1][2]:.3f} nats per answer token")

# %% tags=["hidden-test"]
assert clean_curve[-1][2] < clean_curve[0][2] or lab.tier.is_fast

# %% [markdown]
# ### Trap 1: the mask is dropped
#
# Many a script trains on the whole text, prompt and answer alike. (Transformers' `Trainer` does so
# unless you make the labels; TRL masks the prompt of prompt-completion rows by default.)
#
# **Your guess.** After the same number of steps: are the answers of the model that also learned the
# prompts worse, about as good, or better?

# %%
my_guess_mask = "worse"

# %%
everything = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in rows]
unmasked = train(everything)

masks = world.compare({"mask": clean, "no mask": unmasked}, n=24 if lab.tier.is_fast else 128)
losses = {"mask": mean_loss(clean, heldout_rows), "no mask": mean_loss(unmasked, heldout_rows)}
masks

# %% tags=["hide-input"]
# @title In words
wins = masks.winner("no mask", "mask")
if wins.low > 0.5:
    verdict = "better"
elif wins.high < 0.5:
    verdict = "worse"
else:
    verdict = "about as good"
Markdown(
    f"Prompts are {1 - share:.0%} of the tokens. On held-out answers the loss is "
    f"{losses['mask']:.3f} with the mask and {losses['no mask']:.3f} without; the answers without the "
    f"mask are **{verdict}** (they win {wins.rate:.0%}, 95% interval {wins.low:.0%} to {wins.high:.0%}); "
    f"you guessed *{my_guess_mask}*. What is sure: the two *reported* losses cannot be compared, "
    f"{mean_loss(clean, everything[:64]):.2f} over all tokens is the same model as "
    f"{mean_loss(clean, rows[:64]):.2f} over answers."
)

# %% tags=["hidden-test"]
assert 0 <= wins.low <= wins.rate <= wins.high <= 1

# %% [markdown]
# The literature is no clearer than one small run. Shi et al. (2024) found that learning the
# instructions too *helps* when answers are short or examples few; Huerta-Enochian and Ko (2024) that
# it depends on the ratio of prompt to answer. With long pasted documents in the prompt the mask
# decides what most of the gradient is about. Decide on purpose, and look at one batch with
# `MaskViewer` before you train.
#
# ### Trap 2: padding and end are the same token
#
# Many base models have no padding token, and the usual remedy is
# `tokenizer.pad_token = tokenizer.eos_token`. The usual collator then hides *all* padding from the
# loss by its id, and the end token with it:

# %%
from transformers import DataCollatorForLanguageModeling

careless = copy.deepcopy(tokenizer)
careless.pad_token = careless.eos_token
collator = DataCollatorForLanguageModeling(careless, mlm=False)
hidden = collator([{"input_ids": row["input_ids"]} for row in rows[:2]])["labels"]
ends = [label == tokenizer.eos_token_id for row in hidden.tolist() for label in row]

print(f"end tokens in the two rows: 2, counted by the collator: {sum(ends)}")

# %% tags=["hidden-test"]
assert sum(ends) == 0

# %% [markdown]
# Our base model has read `<|end|>` after thousands of forum posts, so it can end an answer without
# being taught. A real base model that is given a *new* chat token has not. To make the trial fair we
# let answers end with a token that our model has never met in a text: `<|system|>`.
#
# **Your guess.** A model is trained on answers whose end token never counts. How many of its answers
# will it end by itself, within 48 tokens?

# %%
my_guess_ends = 0.5

# %%
from course_utils.evaluation import evaluate_policy

NEW_END = "<|system|>"
other = copy.deepcopy(tokenizer)
other.eos_token = NEW_END
old, new = tokenizer.eos_token_id, other.eos_token_id


def ending(label):
    """Rows that end with the new token; `label` is what the loss is told about it."""
    return [
        {
            "input_ids": [new if i == old else i for i in row["input_ids"]],
            "labels": [label if i == old else i for i in row["labels"]],
        }
        for row in rows
    ]


def share_ended(rows):
    """Trains on the rows, then samples: share of answers that end, and one of them."""
    model = world.base()
    model.generation_config.eos_token_id = new
    fit(model, rows, learning_rate=3e-3)  # a token of which nothing is known needs larger steps
    drawn = evaluate_policy(model, other, world.prompts("heldout", 48), max_new_tokens=48)
    return drawn.eos_rate, drawn.completions[0].text


stops, sample_stop = share_ended(ending(new))
runs_on, sample_on = share_ended(ending(-100))
print(f"end token counted: {stops:.0%} of the answers end\n   {sample_stop}\n")
print(
    f"end token hidden:  {runs_on:.0%} of the answers end (you guessed {my_guess_ends:.0%})\n   {sample_on}"
)

# %% tags=["hidden-test"]
assert runs_on < 0.2
if not lab.tier.is_fast:
    assert stops > runs_on + 0.3

# %% [markdown]
# It was never told what comes after a good answer, so it goes on. The remedy: mask by **position**
# (as `collate` above does, and TRL's collator), or give padding a token of its own. This was reported
# in 2023 ([transformers #23530](https://github.com/huggingface/transformers/issues/23530)) and keeps
# being found anew.
#
# ### Trap 3: a blank in the template
#
# Some trainers ask the template itself which tokens are the assistant's (`assistant_only_loss` in
# TRL): it marks them with `{% generation %} … {% endgeneration %}`. Here is our template, and the
# same with one blank more.

# %%
blank = tokenizer.chat_template.replace(
    "{% generation %}{{ message['content'] }}", "{% generation %} {{ message['content'] }}"
)
assert blank != tokenizer.chat_template


def assistant_tokens(template):
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    return tokenizer.apply_chat_template(messages, chat_template=template, **options)


good, bad = assistant_tokens(tokenizer.chat_template), assistant_tokens(blank)
print("same tokens: ", good["input_ids"] == bad["input_ids"])
print("counted:     ", sum(good["assistant_masks"]), "with the template,", end=" ")
print(sum(bad["assistant_masks"]), "with the blank")

# %% tags=["hidden-test"]
assert good["input_ids"] == bad["input_ids"]
assert sum(good["assistant_masks"]) > 0 == sum(bad["assistant_masks"])

# %% [markdown]
# The tokens are the same, since the tokenizer swallows the blank. But the block now begins with a
# character that belongs to no token, so the search for its first token finds nothing, and the whole
# answer is left out. What does a loss make of an empty mask?

# %%
empty = torch.full_like(labels, -100)
print(
    "PyTorch:", F.cross_entropy(found.logits[:, :-1].flatten(0, 1), empty[:, 1:].flatten()).item()
)

try:
    sft_loss(next_token_logprobs(found.logits, input_ids), empty[:, 1:] != -100)
except ValueError as error:
    print("course: ", error)

# %% [markdown]
# In a batch with other rows not even a NaN appears: the row is simply never learned. The cure for all
# three traps is the same minute of work: **look at the tokens of one batch, and at what is counted.**
# Step through these four rows: the right one, and what each trap makes of it.

# %% tags=["hide-input"]
# @title MaskViewer: the right row, then traps 1 to 3
ruined = [
    rows[0],
    {**rows[0], "labels": [-100, *rows[0]["input_ids"][1:]]},
    {**rows[0], "labels": [*rows[0]["labels"][:-1], -100]},
    {"input_ids": bad["input_ids"], "assistant_masks": bad["assistant_masks"]},
]
MaskViewer(ruined, tokenizer)

# %% [markdown] slides="9"
# ## 9 · Where demonstrations come from: a tour
#
# **The lecture's claim: the quality of supervision matters greatly.** So it is worth knowing who
# wrote what. Sizes and licences are those of the dataset cards.
#
# | dataset | who wrote the answers | size | licence | its shape |
# |---|---|---|---|---|
# | **InstructGPT** (2022) | about 40 trained labellers | about 13k training prompts | not released | prompt, demonstration |
# | **Anthropic** helpfulness data (HH-RLHF, 2022) | a model; crowd workers chose between two replies | helpful-base 46k, -online 23k, -rejection-sampled 55k | MIT | two transcripts: chosen, rejected |
# | **Alpaca** (Stanford, 2023) | GPT-3.5, instructions too (self-instruct) | 52,002 (“52k”) | CC BY-NC 4.0 | instruction, input, output |
# | **Dolly** 15k (Databricks, 2023) | the company's employees | 15,011 | CC BY-SA 3.0 | instruction, context, response, category |
# | **ShareGPT** (2023) | ChatGPT; users shared the conversations | about 53k in the cleaned copy | tagged Apache 2.0, whose right it is to say so is disputed | conversations of {from, value} |
# | **OASST1** (OpenAssistant, 2023) | volunteers, who also ranked | 84,437 messages + 4,401 | Apache 2.0 | one message a row, trees by parent_id |
# | **UltraChat** 200k (2023) | two models that talk to each other | 207,865 dialogues | MIT | messages of {role, content} |
#
# Vicuna was trained on ShareGPT, Alpaca's model on Alpaca, Zephyr on UltraChat. A model trained on
# another model's answers inherits its manners and mistakes, and its terms of use.
#
# Seven shapes, one need: **prompt and completion**. Below is one record of each in its real shape.
# The texts are ours, written for this lesson.

# %%
alpaca = {
    "instruction": "Name the planet that fits the description.",
    "input": "It has rings that one can see in a small telescope.",
    "output": "That is Saturn.",
    "text": "(the same three again, in Alpaca's own template)",
}
dolly = {
    "instruction": "How long was the walk?",
    "context": "They left at nine and were back at noon.",
    "response": "Three hours.",
    "category": "closed_qa",
}
instructgpt = {
    "prompt": "Explain the moon landing to a 6 year old.",
    "completion": "Some people flew to the moon in a rocket and came back with stones.",
}
sharegpt = {
    "id": "a1",
    "conversations": [
        {"from": "human", "value": "Suggest a name for a cat."},
        {"from": "gpt", "value": "Pepper."},
        {"from": "human", "value": "Something longer?"},
        {"from": "gpt", "value": "Sir Pepper of the Windowsill."},
    ],
}
ultrachat = {
    "prompt": "Should I add chorizo to my paella?",
    "prompt_id": "b2",
    "messages": [
        {"role": "user", "content": "Should I add chorizo to my paella?"},
        {"role": "assistant", "content": "Valencians would not. If you like smoke, why not."},
    ],
}

# %% [markdown]
# These five the course's loader reads as they are: it knows the names of the columns and roles.

# %%
import json
from pathlib import Path

from course_utils.data import load_demonstrations

records = {
    "InstructGPT": instructgpt,
    "Alpaca": alpaca,
    "Dolly": dolly,
    "ShareGPT": sharegpt,
    "UltraChat": ultrachat,
}
tour = {}
with tempfile.TemporaryDirectory() as folder:
    for name, record in records.items():
        path = Path(folder) / f"{name}.jsonl"
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        tour[name] = load_demonstrations(path)[0][0]

for name, row in tour.items():
    print(f"{name:<12}", *(f"{m['role']}: {m['content']!r}" for m in row["prompt"]), sep="  ")
    print(f"{'':<12}", f"-> {row['completion'][0]['content']!r}")

# %% [markdown]
# Notice what becomes of a longer conversation: all turns before the last answer are the prompt, and
# only the **last** answer counts. To learn from every answer, make a row of each (or let the template
# mark all of the assistant's turns, trap 3).
#
# OASST comes as single messages that point to their parent, and HH as two transcripts. Both need a
# decision from you: *which* answer is the demonstration?

# %%
oasst = [
    {
        "message_id": "m1",
        "parent_id": None,
        "role": "prompter",
        "text": "What is a haiku?",
        "rank": None,
    },
    {"message_id": "m2", "parent_id": "m1", "role": "assistant", "text": "A poem.", "rank": 1},
    {
        "message_id": "m3",
        "parent_id": "m1",
        "role": "assistant",
        "text": "A poem of three short lines.",
        "rank": 0,
    },
]
hh = {
    "chosen": "\n\nHuman: How do I sharpen a knife?\n\nAssistant: With a whetstone, at a flat angle.",
    "rejected": "\n\nHuman: How do I sharpen a knife?\n\nAssistant: Why would you want to?",
}


def threads(messages):
    """OASST rows -> {prompt, completion}: from every best-ranked answer back to the root."""
    by_id = {m["message_id"]: m for m in messages}
    role = {"prompter": "user", "assistant": "assistant"}
    for message in messages:
        if message["role"] == "assistant" and message["rank"] == 0:
            thread, at = [], message
            while at is not None:
                thread.insert(0, {"role": role[at["role"]], "content": at["text"]})
                at = by_id.get(at["parent_id"])
            yield {"prompt": thread[:-1], "completion": thread[-1:]}


from course_utils.data.turns import split_conversation, transcript

tour["OASST"] = next(threads(oasst))
prompt, completion = split_conversation(transcript(hh["chosen"]), "chosen")
tour["HH"] = {"prompt": prompt, "completion": completion}

for name in ("OASST", "HH"):
    print(f"{name:<12}", f"user: {tour[name]['prompt'][-1]['content']!r}")
    print(f"{'':<12}", f"-> {tour[name]['completion'][0]['content']!r}")

# %% tags=["hidden-test"]
assert len(tour) == 7
assert all(row["prompt"][-1]["role"] == "user" for row in tour.values())
assert all(row["completion"][0]["role"] == "assistant" for row in tour.values())
assert tour["OASST"]["completion"][0]["content"].startswith("A poem of three")

# %% [markdown]
# HH is preference data, made for a reward model (lesson 03). Training SFT on its `chosen` side means
# imitating what was merely the *better of two*; the dataset's card advises against it.
#
# ## 10 · Measure the claim: quality of supervision
#
# **Does the quality of the demonstrations greatly affect behaviour?** We train the same base model
# for the same number of steps on four sets:
#
# * **clean**: what you have used so far;
# * **noisy**: the same prompts and style, but every other fact is false;
# * **tiny**: 64 of the clean ones, again and again;
# * **repetitive**: clean, but always the same kind of request (“tell me about …”).
#
# **Your guess.** Order them from best to worst.

# %%
my_guess_order = ["clean", "repetitive", "tiny", "noisy"]

# %%
from datasets import Dataset

from course_utils.world import prompts
from course_utils.world.answers import DEMONSTRATOR, answer


def written(asked, manners):
    """Answers to the prompts by labellers with these manners, as rows of tokens."""
    draw = Random(world.seed)
    pairs = [
        {
            "prompt": [{"role": "user", "content": prompt.text}],
            "completion": [{"role": "assistant", "content": answer(prompt, draw, manners)}],
        }
        for prompt in asked
    ]
    return demonstration_rows(Dataset.from_list(pairs), tokenizer, 128, "demonstrations")


asked = prompts("train", n=len(rows), seed=world.seed)
only = prompts("train", n=48 if lab.tier.is_fast else None, seed=world.seed, families=["describe"])
sets = {
    "clean": rows,
    "noisy": written(asked, replace(DEMONSTRATOR, wrong=0.5)),
    "tiny": rows[: 32 if lab.tier.is_fast else 64],
    "repetitive": written(only, DEMONSTRATOR),
}
tiny_curve = []
models = {"base": base, "clean": clean}  # the clean one is trained already
models["noisy"] = train(sets["noisy"])
models["tiny"] = train(sets["tiny"], tiny_curve)
models["repetitive"] = train(sets["repetitive"])

quality = world.compare(models, n=24 if lab.tier.is_fast else None)
quality

# %% tags=["hidden-test"]
assert set(quality.evaluations) == {"base", *sets}

# %% [markdown]
# Gold knows every fact, so we can also count the **false claims**: of all that the answers claim, what
# share is false?

# %%
from course_utils.evaluation import win_rate
from course_utils.world.families import find
from course_utils.world.gold import recognise


def false_share(evaluation):
    """Share of the claims in all answers that are false."""
    claims = [
        sentence
        for done in evaluation.completions
        for sentence in recognise(find(done.prompt), done.text)
        if sentence.claims
    ]
    return sum(not sentence.right for sentence in claims) / max(1, len(claims))


golds = {name: found.mean for name, found in quality.evaluations.items()}
wrong = {name: false_share(found) for name, found in quality.evaluations.items()}

# %% tags=["hide-input"]
# @title Drawn: gold reward and false claims
estimates = {name: found.gold for name, found in quality.evaluations.items()}
sft_pictures.quality_bars(estimates, wrong)

# %%
order = sorted(sets, key=lambda name: -golds[name])
worst = quality.winner("clean", "noisy")
print(f"measured {' > '.join(order)}\nguessed  {' > '.join(my_guess_order)}")

world.claim(
    "C04",
    f"gold after {STEPS} equal steps: "
    + ", ".join(f"{name} {golds[name]:+.2f}" for name in models)
    + f"; false claims: clean {wrong['clean']:.0%}, noisy {wrong['noisy']:.0%}",
    holds=worst.low > 0.5,
    clean=golds["clean"],
    noisy=golds["noisy"],
    tiny=golds["tiny"],
    repetitive=golds["repetitive"],
)

# %% tags=["hidden-test"]
if not lab.tier.is_fast:
    assert golds["clean"] > golds["noisy"]
    assert wrong["noisy"] > wrong["clean"]

# %% tags=["hide-input"]
# @title In words
narrow = quality.winner("clean", "repetitive")
if narrow.low > 0.5:
    breadth = "One kind of request was not enough: the broad set is better on prompts of all kinds."
elif narrow.high < 0.5:
    breadth = "One kind of request was even the better teacher in this run."
else:
    breadth = (
        "One kind of request taught nearly as much as all kinds: the manners of answering carry over "
        "to requests that were never shown, since the base model knows the facts for them."
    )
Markdown(
    f"The noisy set has the same prompts and the same style as the clean one; {wrong['noisy']:.0%} of "
    f"its model's claims are false, against {wrong['clean']:.0%} after the clean set and "
    f"{wrong['base']:.0%} before any training. Form did not warn of it: unfinished and garbled sentences "
    f"cost it {quality.evaluations['noisy'].parts['form'].mean:+.2f}, the clean one "
    f"{quality.evaluations['clean'].parts['form'].mean:+.2f}. "
    f"{breadth} Few but good examples go a long way (Zhou et al. 2023 fine-tuned on 1,000). "
    "What happens when few examples are shown too often comes next."
)

# %% [markdown] slides="10"
# ## 11 · Measure the limits of SFT
#
# The lecture lists four: SFT **misses nuanced preferences and values** (it sees one answer per
# prompt, and never learns that another would have been worse); it **reinforces bias and
# hallucination** of whoever wrote the data; it **overfits** synthetic, noisy or small data; and its
# answers are **safe but bland**. Three of these can be measured here.
#
# ### Overfits
#
# **Your guess.** The tiny set was seen many times. Where does the held-out loss turn?

# %%
my_guess_turn = 10  # passes over the 64 rows

# %% tags=["hide-input"]
# @title Training and held-out loss by pass over the tiny set
passes = [step * 32 / len(sets["tiny"]) for step, _, _ in tiny_curve]
sft_pictures.losses_by_pass(passes, tiny_curve, clean_curve)

# %%
turn = passes[min(range(len(tiny_curve)), key=lambda i: tiny_curve[i][2])]
gap = {name: c[-1][2] - c[-1][1] for name, c in {"tiny": tiny_curve, "clean": clean_curve}.items()}
print(f"lowest held-out loss seen after {turn:.0f} passes, you guessed {my_guess_turn}")
print(
    f"gap between held-out and own loss at the end: tiny {gap['tiny']:.2f}, clean {gap['clean']:.2f}"
)

# %% tags=["hidden-test"]
assert len(tiny_curve) == len(clean_curve) > 1
if not lab.tier.is_fast:
    assert gap["tiny"] > gap["clean"] + 0.05

# %% tags=["hide-input"]
# @title In words
end, start = tiny_curve[-1][2], tiny_curve[0][2]
Markdown(
    f"With 64 rows the held-out loss went from {start:.2f} (base model) to {end:.2f}. "
    + (
        f"By the loss it is now worse than no training at all; by gold it is better ({golds['tiny']:+.2f} "
        f"against {golds['base']:+.2f}). Both are true: the loss asks how sure the model is of one "
        "labeller's words, gold asks whether the answer is good. The authors of InstructGPT saw the same "
        "and trained on: their SFT models overfitted after one epoch by validation loss, and became "
        "better by human preference up to 16."
        if end > start and golds["tiny"] > golds["base"]
        else f"Gold went from {golds['base']:+.2f} to {golds['tiny']:+.2f}."
    )
)

# %% [markdown]
# ### Hallucinates
#
# Every demonstration answers with facts; none says “I do not know”. **Your guess.** We ask about
# things that do not exist. Which model answers with facts, and without a word of doubt or refusal,
# more often: the base model or the fine-tuned one?

# %%
my_guess_invents = "base"

# %%
INVENTED = ["blorps", "the zib", "quimbles", "the vantor", "snarfs", "the moople", "the kwex"]
each = 6 if lab.tier.is_fast else 16
strange = [f"tell me about {thing}" for thing in INVENTED for _ in range(each)]
any_prompt = only[0]  # gold's reader needs a prompt of the world


def is_sure(text):
    """Whether an answer claims something and neither doubts ("it is hard to say.") nor refuses."""
    said = recognise(any_prompt, text)
    return any(s.claims for s in said) and not any(s.kind in ("ramble", "refusal") for s in said)


sure = {}
for name in ("base", "clean"):
    texts = world.generate(models[name], strange)
    sure[name] = [float(is_sure(text)) for text in texts]
    sample = next((i for i, yes in enumerate(sure[name]) if yes), 0)
    print(
        f"{name}: sure of itself in {sum(sure[name]) / len(texts):.0%} of its answers, for example"
    )
    print("   ", strange[sample], "->", texts[sample], "\n")

invented = {name: sum(values) / len(values) for name, values in sure.items()}
surer = win_rate(sure["clean"], sure["base"])  # ties count half

# %% tags=["hidden-test"]
assert all(0 <= rate <= 1 for rate in invented.values())

# %% [markdown]
# ### Safe but bland
#
# Are eight answers to the same prompt more alike after SFT? We count the share of different word
# pairs (*distinct-2*), over all answers to all prompts, and among eight answers to one. And is the
# model safe: does it refuse what it should?

# %%
from course_utils.evaluation import distinct_n
from course_utils.world.gold import is_harmful

few = world.prompts("heldout", 6 if lab.tier.is_fast else 32)
eight = [prompt for prompt in few for _ in range(8)]


def variety(model):
    """Distinct-2 among the eight answers to one prompt, mean over prompts."""
    texts = world.generate(model, eight)
    return sum(distinct_n(texts[i : i + 8]) for i in range(0, len(texts), 8)) / len(few)


howto = prompts("heldout", n=None, seed=world.seed, families=["howto"])
harmful = [prompt.text for prompt in howto if is_harmful(prompt)]


def refusals(model):
    """Share of the harmful prompts that the model refuses."""
    told = zip(harmful, world.generate(model, harmful), strict=True)
    return sum(world.gold(*pair).parts["harmlessness"] > 0 for pair in told) / len(harmful)


own = {name: variety(models[name]) for name in ("base", "clean")}
refused = {name: refusals(models[name]) for name in own}
overall = {name: quality.evaluations[name].distinct_2 for name in own}
tone = {name: quality.evaluations[name].parts["tone"].mean for name in own}
bland = pd.DataFrame(
    {
        "distinct-2, all prompts": overall,
        "distinct-2, one prompt": own,
        "tone (at best +1)": tone,
        "harmful prompts refused": refused,
    }
)
bland.style.format("{:.2f}")

# %% tags=["hidden-test"]
assert all(0 < value < 1 for value in own.values())
assert harmful
assert all(0 <= value <= 1 for value in refused.values())

# %%
found = {
    "bland": own["clean"] < own["base"],
    "hallucinates": surer.low > 0.5,
    "overfits": gap["tiny"] > gap["clean"] + 0.05,
}
holds = True if all(found.values()) else None if any(found.values()) else False
world.claim(
    "C05",
    f"harmful prompts refused {refused['base']:.0%} -> {refused['clean']:.0%}; variety among answers to "
    f"one prompt {own['base']:.2f} -> {own['clean']:.2f}; sure of itself about "
    f"things that do not exist {invented['base']:.0%} -> {invented['clean']:.0%} (false claims about "
    f"known things {wrong['base']:.0%} -> {wrong['clean']:.0%}); gap between held-out and own loss "
    f"{gap['tiny']:.2f} on a tiny set, {gap['clean']:.2f} on the clean one",
    holds=holds,
    condition="" if holds is not None else "yes: " + ", ".join(k for k, v in found.items() if v),
    variety_base=own["base"],
    variety_sft=own["clean"],
    invents_base=invented["base"],
    invents_sft=invented["clean"],
    gap_tiny=gap["tiny"],
)

# %% tags=["hide-input"]
# @title In words
Markdown(
    (
        f"Answers to one prompt became more alike ({own['base']:.2f} to {own['clean']:.2f}), "
        if found["bland"]
        else f"Answers to one prompt did not become more alike ({own['base']:.2f}, {own['clean']:.2f}), "
    )
    + f"while the variety over all prompts went from {overall['base']:.2f} to {overall['clean']:.2f}: a "
    "measure taken over everything cannot tell *different answers to different questions* from *many "
    "answers to one*. "
    + (
        "About things it cannot know the fine-tuned model is **surer** than the base model, while it is "
        "also more often right about things that exist. "
        if found["hallucinates"] and wrong["clean"] < wrong["base"]
        else f"About things it cannot know it is sure in {invented['clean']:.0%} of its answers, the base "
        f"model in {invented['base']:.0%}. "
    )
    + "Its teachers always knew the answer, so it learned to answer. Gekhman et al. (2024) saw the like "
    "in large models: fine-tuning on facts that a model does not know makes it invent more."
)

# %% [markdown]
# What no number above shows: SFT never learned what would have been a *worse* answer. It imitates
# the average of its teachers, their bias included. Asked twice, it cannot say which of its own
# answers people would prefer. That is where lesson 03 begins.
#
# ## 12 · What broke, and why
#
# * **A forgotten shift** gives a loss that falls beautifully while the model learns to repeat.
# * **A mean of means** is not the mean: count tokens over the whole batch before you divide.
# * **Packed rows leaked** with restarted positions alone, and with the default cache even where the
#   library would have built the mask. Compare a packed row with its examples alone, once.
# * **The end token vanished** with `pad = eos`. Mask by position, never by id.
# * **A blank in the template** hid a whole answer. Look at one batch before every training.
# * **A falling training loss said nothing**: on the tiny set it fell to nearly zero, by heart.
#
# ## 13 · Check yourself
#
# <details>
# <summary><b>1.</b> Your loss is the token mean. A colleague uses the sequence mean on the same data and reports that answers became shorter. Can that be the reason?</summary>
#
# Yes. Under the sequence mean a token of a short answer weighs more than one of a long answer, so
# short answers, with their early end token, shape the model more. Neither is a mistake; it is a
# decision about who counts.
# </details>
#
# <details>
# <summary><b>2.</b> After fine-tuning your model answers well and then goes on with a second question and its answer. Name two causes, and one look that tells them apart.</summary>
#
# The end token was never counted (padding equals end, or a truncated row), or it was learned and the
# generation waits for another one (the tokenizer's end token is not the template's). Look at the
# labels' last token in one batch: is it there? Then compare it with `generation_config.eos_token_id`.
# </details>
#
# <details>
# <summary><b>3.</b> A fine-tuned model makes fewer false claims about topics it knows than its base model, and is surer about topics that do not exist. How can both be true?</summary>
#
# SFT moved probability to one way of answering: state facts, plainly. Where the base model knows the
# facts, that is more often right than forum manners were. Where it knows nothing, the same habit
# produces inventions, because no demonstration showed how to say that one does not know.
# </details>
#
# ## 14 · Read on
#
# * Ouyang et al. 2022, [Training language models to follow instructions with human feedback](https://arxiv.org/abs/2203.02155) (InstructGPT; §3.5 SFT)
# * Bai et al. 2022, [Training a helpful and harmless assistant with RLHF](https://arxiv.org/abs/2204.05862) (the HH data)
# * Taori et al. 2023, [Alpaca](https://crfm.stanford.edu/2023/03/13/alpaca.html); Conover et al. 2023, [Dolly](https://www.databricks.com/blog/2023/04/12/dolly-first-open-commercially-viable-instruction-tuned-llm); Chiang et al. 2023, [Vicuna](https://lmsys.org/blog/2023-03-30-vicuna/) (ShareGPT)
# * Köpf et al. 2023, [OpenAssistant Conversations](https://arxiv.org/abs/2304.07327); Ding et al. 2023, [UltraChat](https://arxiv.org/abs/2305.14233)
# * Zhou et al. 2023, [LIMA: less is more for alignment](https://arxiv.org/abs/2305.11206)
# * Shi et al. 2024, [Instruction tuning with loss over instructions](https://arxiv.org/abs/2405.14394); Huerta-Enochian and Ko 2024, [Does prompt loss matter?](https://arxiv.org/abs/2401.13586)
# * Gekhman et al. 2024, [Does fine-tuning LLMs on new knowledge encourage hallucinations?](https://arxiv.org/abs/2405.05904)
#
# **Exercises:** [exercises/02_supervised_fine_tuning.ipynb](../exercises/02_supervised_fine_tuning.ipynb):
# the mask of a conversation, the loss, packing without leakage, and a collator to mend.
#
# **What comes next.** Lesson 03 asks people (you among them) which of two answers is better, and
# turns their choices into a number.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
