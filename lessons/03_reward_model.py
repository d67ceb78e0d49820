# %% [markdown] seconds=75
# # 03 · The reward model
# ## How do comparisons become a number, and can it be trusted?
#
# People find it hard to write the perfect answer, and easy to say which of two they like better. In
# this notebook you will
#
# 1. see why one asks for comparisons and not for marks out of five,
# 2. derive the loss of a reward model and put a scalar head on a language model,
# 3. **be the annotator**, and train a reward model on your own labels,
# 4. train one on thousands of pairs and measure what the lecture says about it,
# 5. catch it being confident and wrong, and see an annotator's bad habit become its whole taste.
#
# Tier tiny: about 75 s on two cores that have other work too; half a minute more the first time, when the pairs are made; on a T4
# with tier small: not measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

from course_utils import Lab

lab = Lab.open()
lab

# %% [markdown] slides="11"
# ## 1 · Why not stop at SFT?
#
# Supervised fine-tuning raises the likelihood of *one* answer that somebody wrote. It never hears
# that another answer would have been better, or worse. **SFT does not teach what people prefer.**
#
# Reinforcement learning from human feedback (RLHF; Christiano et al. 2017, Ouyang et al. 2022) does
# it in two moves:
#
# * **reward learning**: from many comparisons learn a function that scores any answer as people
#   would;
# * **policy optimisation**: change the language model so that its answers score higher.
#
# This lesson is the first move, the next one is the second.

# %% [markdown] slides="12"
# ### The three steps
#
# InstructGPT's recipe, as the lecture draws it: **SFT**, then a **reward model** from labellers'
# **rankings**, then reinforcement learning against that reward model, for instance with **PPO**.

# %% tags=["hide-input"]
# @title The three steps, drawn
from course_utils.pictures.reward import three_steps

three_steps()

# %% [markdown]
# ## 2 · Why compare, and not score?
#
# It would be simpler to ask each labeller for a mark from 1 to 5 and to fit those. But one person's
# 4 is another's 2. We simulate it: two answers have a true quality each. In one experiment two
# *different* people mark them; in the other *one* person compares them. All feel quality with the
# same noise. People differ only in their **yardstick**: where their scale starts and how far they
# stretch it.
#
# **Your guess.** Nobody is strict or generous, all use one yardstick. Which order is right more
# often: that of the marks or that of the comparison? And when yardsticks differ by one mark?

# %%
my_guess_marks = 0.9  # share of pairs in the right order by marks, with yardsticks one mark apart

# %%
import numpy as np


def right_order(spread, pairs=20_000, noise=0.7):
    """Shares of pairs ordered rightly by (marks of two people, one person's comparison)."""
    rng = np.random.default_rng(0)
    quality = rng.normal(size=(pairs, 2))  # what is true of answers A and B
    felt = quality + noise * rng.normal(size=(pairs, 2))
    shift = spread * rng.normal(size=(pairs, 2))  # a strict person, a generous one
    stretch = np.exp(spread / 2 * rng.normal(size=(pairs, 2)))
    marks = np.clip(np.round(3 + shift + stretch * felt), 1, 5)
    truth = quality[:, 0] > quality[:, 1]
    by_marks = np.where(
        marks[:, 0] == marks[:, 1], 0.5, (marks[:, 0] > marks[:, 1]) == truth
    )  # equal marks: throw a coin
    compared = (felt[:, 0] > felt[:, 1]) == truth  # one yardstick: it cancels
    return by_marks.mean(), compared.mean()


spreads = np.linspace(0, 2, 9)
shares = np.array([right_order(s) for s in spreads])  # (9, 2)

# %% tags=["hidden-test"]
assert shares.shape == (9, 2)
assert np.ptp(shares[:, 1]) == 0, "a comparison does not depend on the yardstick"
assert shares[-1, 0] < shares[0, 0] - 0.05

# %% tags=["hide-input"]
# @title Marks against comparisons, drawn
from IPython.display import Markdown, display

from course_utils import plots

figure = plots.figure(
    "Which order is right?", x="how far yardsticks differ (marks)", y="share of pairs", height=300
)
plots.line(figure, spreads, shares[:, 0], "marks of two people", plots.COLOURS["ppo"])
plots.line(figure, spreads, shares[:, 1], "one person compares", plots.COLOURS["reward"])
display(figure.update_yaxes(tickformat=".0%"))
Markdown(
    f"With one yardstick the marks are right on {shares[0, 0]:.0%}, comparisons on "
    f"{shares[0, 1]:.0%}; the little that is lost are equal marks. With yardsticks one mark apart "
    f"the marks are right on **{shares[4, 0]:.0%}** (your guess: {my_guess_marks:.0%}), and "
    f"comparisons still on **{shares[4, 1]:.0%}**: whatever is added to *both* answers cancels."
)

# %% [markdown]
# Marks are not useless: if everyone marks many answers, one can estimate each person's yardstick and
# take it out. A comparison needs no such repair, costs less thought, and says one thing only: which
# is better. How does one get numbers back?

# %% [markdown] slides="14"
# ## 3 · The Bradley-Terry model
#
# Give every answer $y$ to a prompt $x$ a score $r_\phi(x, y)$; $\phi$ are the weights that will
# be learnt. An **annotator** sees two responses, A and B, and picks one. Suppose (Bradley and Terry
# 1952)
#
# $$P(\text{A preferred to B}) = \sigma\big(r_\phi(y_A) - r_\phi(y_B)\big),
# \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$
#
# (the prompt $x$ is the same on both sides, and left out as in the lecture). The difference of two
# scores is the log-odds of the choice: 0 is a coin, 2.2 is nine to one. If A was in fact chosen, the
# loss is the negative log-likelihood of that choice:
#
# $$\mathcal{L}_{\text{RM}}(\phi) = -\log \sigma\big(r_\phi(y_A) - r_\phi(y_B)\big)$$
#
# It is small when the model gives the **higher score to the preferred answer**. First as it is
# written, on a toy tensor that goes to extremes:

# %%
import torch
import torch.nn.functional as F


def as_written(chosen, rejected):  # (B,), (B,) -> (B,)
    return -torch.log(torch.sigmoid(chosen - rejected))


chosen = torch.tensor([2.0, 0.0, -1.0, 1e4, -1e4])  # r_φ(y_A), A was preferred
rejected = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])  # r_φ(y_B)
as_written(chosen, rejected)

# %% [markdown]
# The last pair broke it: σ(−10⁴) is 0 in floating point, and the logarithm of 0 is not a number one
# can learn from. **Your guess:** what should the loss of that pair be? (The model is 10⁴ log-odds
# sure, and wrong.)

# %%
my_guess_loss = float("inf")


def loss_rm(chosen, rejected):  # (B,), (B,) -> (B,)
    """L_RM = -log σ(d) = log(1 + e^-d) = log(e^0 + e^-d), with d = r(y_A) - r(y_B)."""
    difference = chosen - rejected
    return torch.logaddexp(torch.zeros_like(difference), -difference)  # safe at any size


loss_rm(chosen, rejected)

# %% tags=["hidden-test"]
assert not torch.isfinite(as_written(chosen, rejected)).all()
assert torch.isfinite(loss_rm(chosen, rejected)).all()
torch.testing.assert_close(loss_rm(chosen, rejected)[-1], torch.tensor(1e4))

# %% [markdown]
# Far on the wrong side the loss is simply the distance: 10,000, and not infinite. PyTorch calls this
# `-F.logsigmoid(...)`. The course's own function, and ours, give the same numbers:

# %%
from course_utils.objectives import bradley_terry_loss

mine = loss_rm(chosen, rejected)
torch.testing.assert_close(mine, -F.logsigmoid(chosen - rejected))
torch.testing.assert_close(mine, bradley_terry_loss(chosen, rejected, reduction="none"))
print("equal: ours, torch, course_utils")

# %% [markdown]
# ### The gradient, read aloud
#
# $$\frac{\partial \mathcal{L}_{\text{RM}}}{\partial r_\phi(y_A)} = -\big(1 - \sigma(r_\phi(y_A) -
# r_\phi(y_B))\big), \qquad \frac{\partial \mathcal{L}_{\text{RM}}}{\partial r_\phi(y_B)} = + (1 -
# \sigma(\dots))$$
#
# In words: **pull the two scores apart, in proportion to the probability that you gave to the wrong
# choice.** Sure and right: leave it. A coin: pull with one half. Sure and wrong: pull with all your
# strength, which is 1 and never more.

# %%
import pandas as pd

r_a = chosen.clone().requires_grad_()
loss_rm(r_a, rejected).sum().backward()
wrong = 1 - torch.sigmoid(chosen - rejected)  # probability given to the choice not made
torch.testing.assert_close(r_a.grad, -wrong)

pd.DataFrame(
    {
        "r(y_A)": chosen.tolist(),
        "r(y_B)": rejected.tolist(),
        "P(A preferred)": (1 - wrong).tolist(),
        "loss": mine.tolist(),
        "slope by r(y_A)": r_a.grad.tolist(),
    }
).style.format("{:,.3f}").hide(axis="index")

# %% tags=["hidden-test"]
assert torch.isfinite(r_a.grad).all()
assert r_a.grad.min() >= -1
assert r_a.grad.max() <= 0

# %% [markdown]
# Play with it. Try *Add 3 to both scores*, then make the model confidently wrong and watch the
# gradient stop growing. (Smoothing supposes that a share ε of the labels is wrong: then it does not
# pay to be too sure.)

# %%
from course_utils.inspectors import BradleyTerryExplorer

BradleyTerryExplorer(chosen=1.0, rejected=0.0)

# %% [markdown]
# ## 4 · Scores from comparisons alone
#
# Before any language model: six answers to one prompt, one free number for each, and a crowd that
# only ever says "this one". We use the embedded world here, for there the truth is known: each
# person of the crowd feels the gold reward, with a temperature (so they slip, more often where
# answers are close).

# %%
from itertools import combinations

from course_utils.world import Annotator

world = lab.world  # where the truth is known; on tier tiny it is the lab itself
question = world.lecture_prompts[0]
drawn = world.generate(world.base(), [question] * 16)
six = list(dict.fromkeys(drawn))[:6]  # different answers
crowd = [Annotator(temperature=1.0, seed=person) for person in range(30)]

choices = []  # (index of the preferred answer, of the other)
for i, j in combinations(range(len(six)), 2):
    for person in crowd:
        first_wins = person.compare(question, six[i], six[j]) == 0
        choices.append((i, j) if first_wins else (j, i))
choices = torch.tensor(choices)  # (N, 2)
print(f"{len(choices)} comparisons of {len(six)} answers, such as\n")
print(f"A  {six[0]}\nB  {six[1]}")

# %%
scores = torch.zeros(len(six), requires_grad=True)  # one r for each answer: no text, no network
optimiser = torch.optim.SGD([scores], lr=5.0)
for _ in range(500):
    r_chosen, r_rejected = scores[choices[:, 0]], scores[choices[:, 1]]  # (N,), (N,)
    loss = loss_rm(r_chosen, r_rejected).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

learnt = scores.detach()
known = torch.tensor([world.gold(question, answer).total for answer in six])
table = pd.DataFrame({"learnt score": learnt, "gold reward": known})
table["learnt − mean"] = learnt - learnt.mean()
table["gold − mean"] = known - known.mean()
table.style.format("{:+.2f}")

# %% tags=["hidden-test"]
assert len(choices) == 30 * len(six) * (len(six) - 1) // 2
assert torch.corrcoef(torch.stack([learnt, known.float()]))[0, 1] > 0.9
assert abs(float(learnt.mean())) < 1e-3, "the mean never moves"

# %% [markdown]
# Out of nothing but "this one" came the truth, on its own scale (the crowd's temperature is 1 gold
# point, and so is the unit of the learnt scores). One thing did *not* come back: the **zero**. The
# learnt scores lie around 0 because they started there: A and B are pulled apart equally hard, so the
# mean never moves.
#
# **Your guess.** Add 100 to all six scores. What happens to the loss?

# %%
my_guess_shift = "it grows"

before = loss_rm(learnt[choices[:, 0]], learnt[choices[:, 1]]).mean()
after = loss_rm((learnt + 100)[choices[:, 0]], (learnt + 100)[choices[:, 1]]).mean()
print(f"loss {before:.6f} before, {after:.6f} after; your guess: {my_guess_shift}")

# %% tags=["hidden-test"]
torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)

# %% [markdown]
# **Only differences count.** Nothing in the data says what "zero reward" is, so a trained reward
# model may answer with scores around −7 or around 40. That is harmless for ranking and bad for what
# comes next: PPO weighs the reward against a penalty, and both need a known scale. So one
# *normalises*: after training, shift and stretch the scores until the SFT model's answers have mean 0
# and standard deviation 1 (Ziegler et al. 2019; InstructGPT gives its demonstrations mean 0). We
# will do so in section 8.

# %% [markdown] slides="13"
# ## 5 · A score for answers never seen
#
# Six free numbers say nothing about a seventh answer. So the score must be a *function of the text*,
# and we already have a network that reads text. Take a language model, remove the part that predicts
# the **next** word, and put a **scalar head** in its place: one linear layer from the hidden state
# ($D$ numbers) to a single number.

# %% tags=["hide-input"]
# @title One trunk, two heads
from course_utils.pictures.reward import two_heads

two_heads()

# %% [markdown]
# Which position should the head read? A causal model's hidden state knows what stands to its *left*.
# Only the **last token** of the answer has seen all of it.

# %%
from torch import nn

from course_utils.models import copy_model


class ScalarHead(nn.Module):
    """r_φ(x, y): a language model's trunk, and one number read at the last real token."""

    def __init__(self, language_model):
        super().__init__()
        self.trunk = copy_model(language_model).base_model  # without the next-token head
        self.score = nn.Linear(language_model.config.hidden_size, 1, bias=False)  # D -> 1
        nn.init.normal_(self.score.weight, std=0.02)  # small: all answers start near 0

    def forward(self, ids, mask):  # (B, T), (B, T) with 1 on real tokens
        hidden = self.trunk(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, D)
        last = mask.sum(dim=1) - 1  # (B,), with the padding on the right
        return self.score(hidden[torch.arange(len(ids)), last]).squeeze(-1)  # (B,)


# %% [markdown]
# The real thing: preference pairs of this tier. Their answers were sampled from the base and the SFT
# model and put to the annotator. (The first time, this trains the SFT model and samples the answers;
# later they are read from the disk.)

# %%
pairs, heldout = lab.pairs()
for name, value in pairs[0].items():
    print(f"{name:>8}: {value[-1]['content']}")
print(f"\n{len(pairs):,} pairs to train on, {len(heldout):,} held out")

# %%
base = lab.base()
torch.manual_seed(lab.seed)
head = ScalarHead(base).to(lab.device).eval()


def encode(rows, side):
    """Prompt and answer of each row through the chat template: ids (B, T), mask (B, T)."""
    chats = [row["prompt"] + row[side] for row in rows]
    texts = lab.tokenizer.apply_chat_template(chats, tokenize=False)
    batch = lab.tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    )
    return batch.input_ids.to(lab.device), batch.attention_mask.to(lab.device)


four = pairs.select(range(4)).to_list()
with torch.no_grad():
    r_chosen, r_rejected = (head(*encode(four, side)) for side in ("chosen", "rejected"))
print("chosen  ", [round(r, 3) for r in r_chosen.tolist()])
print("rejected", [round(r, 3) for r in r_rejected.tolist()])
print(f"loss {loss_rm(r_chosen, r_rejected).mean():.4f}, log 2 = {np.log(2):.4f}: it knows nothing")

# %% tags=["hidden-test"]
assert r_chosen.shape == r_rejected.shape == (4,)
assert abs(float(loss_rm(r_chosen, r_rejected).mean()) - np.log(2)) < 0.2

# %% [markdown]
# ### The library gives the same number
#
# TRL's `RewardTrainer` trains a *sequence classifier with one output*, which is our scalar head under
# another name. With the same weights: the same loss.

# %%
import tempfile

from trl import RewardConfig, RewardTrainer

from course_utils.training.reward_model import sequence_classifier
from course_utils.training.trl_common import quiet_libraries

classifier = sequence_classifier(base)  # transformers' own class, trunk copied
classifier.score.weight.data.copy_(head.score.weight)

with tempfile.TemporaryDirectory() as scratch, quiet_libraries(progress=False):
    trainer = RewardTrainer(
        model=classifier,
        args=RewardConfig(
            scratch, per_device_train_batch_size=4, bf16=False, dataloader_pin_memory=False
        ),
        train_dataset=pairs.select(range(4)),
        processing_class=lab.tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        theirs = trainer.compute_loss(classifier.eval(), dict(batch))

ours = loss_rm(r_chosen, r_rejected).mean()
torch.testing.assert_close(ours, theirs.to(ours), rtol=1e-4, atol=1e-5)
torch.testing.assert_close(ours, bradley_terry_loss(r_chosen, r_rejected))
print(
    f"ours {ours:.6f}   TRL {theirs:.6f}   course_utils {bradley_terry_loss(r_chosen, r_rejected):.6f}"
)

# %% tags=["hidden-test"]
assert abs(float(ours) - float(theirs)) < 1e-4

# %% [markdown]
# ### A famous trap: when padding is the end
#
# A batch is padded to one length. Transformers' classifier is not told where the padding is; it looks
# for **the last token that is not the padding token**. Many tokenizers have no padding token, and
# many recipes say `tokenizer.pad_token = tokenizer.eos_token`. **Your guess:** which token is then
# read?

# %%
my_guess_token = "the end of the answer"

ids, mask = encode(four, "chosen")
eos = lab.tokenizer.eos_token_id
trap = ids.masked_fill(mask == 0, eos)  # the same answers, padded with eos


def token_read(ids, pad):
    """Position that transformers' classifier reads in each row: (B, T) -> (B,)."""
    return ((ids != pad) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)


right, fooled = mask.sum(1) - 1, token_read(trap, pad=eos)
with torch.no_grad():
    good = head(trap, mask)  # by the mask, whatever fills it
    classifier.config.pad_token_id = eos
    bad = classifier(input_ids=trap, attention_mask=mask).logits.squeeze(-1)

rows = range(len(four))
pd.DataFrame(
    {
        "should read": [lab.tokenizer.decode([int(ids[b, right[b]])]) for b in rows],
        "reads": [lab.tokenizer.decode([int(trap[b, fooled[b]])]) for b in rows],
        "score by the mask": good.tolist(),
        "score of the trap": bad.tolist(),
    }
)

# %% tags=["hidden-test"]
assert (fooled == right - 1).all(), "with pad = eos the token before the end is read"
torch.testing.assert_close(good, r_chosen, rtol=1e-4, atol=1e-5)
assert not torch.allclose(good, bad)

# %% [markdown]
# No error, no warning: the score comes from the token *before* the end, in training as in use. So an
# answer that was cut off and one that ended look almost alike. `train_reward_model` pads with
# another token, and our `RewardModel` goes by the mask.

# %% [markdown] slides="14"
# ## 6 · Where the comparisons come from
#
# * **Prompts.** They should test the capabilities that one cares about: questions, explanations,
#   code, requests that should be refused. A reward model knows nothing about what it was never shown;
#   at the end of section 9 you will see how uneven ours is.
# * **Answers.** Two or more responses to the same prompt, from the models one has (here: base and
#   SFT). If all are alike, the comparison says little.
# * **Labellers.** InstructGPT had about 40 contractors, screened and with written instructions; on
#   comparisons that several of them did they agreed on about 73 %, and their reward model was right
#   on about 72 % (Ouyang et al. 2022). Counted against such labels, nobody gets near 100 %.
# * **Curation.** Preferences are **manually curated**: dull, unsafe or unclear pairs are thrown out,
#   copies removed, disagreements looked at.
#
# ### Rank K answers, get K(K − 1)/2 pairs
#
# InstructGPT's labellers *ranked* K = 4 to 9 answers to one prompt at once. That is cheap for people
# and rich for us:

# %%
pd.DataFrame(
    [
        {
            "answers K": K,
            "pairs K(K−1)/2": K * (K - 1) // 2,
            "forward passes, pair by pair": K * (K - 1),
            "forward passes, all at once": K,
        }
        for K in (2, 4, 6, 9)
    ]
).style.hide(axis="index")

# %% [markdown]
# And the trick that goes with it: **all pairs of one prompt belong into one batch element.** Each
# answer is read once, not K − 1 times; and since the K(K − 1)/2 pairs are strongly correlated,
# shuffling them as if they were independent data made InstructGPT's reward model overfit in a single
# pass. In code: score the K answers in ranked order, take the upper triangle of all differences.

# %%
ranked = torch.tensor([1.4, 0.9, 0.2, -0.5], requires_grad=True)  # r of answers, best first (K,)

difference = ranked[:, None] - ranked[None, :]  # (K, K): entry i, j is r_i - r_j
i, j = torch.triu_indices(len(ranked), len(ranked), offset=1)  # i stands before j: preferred
at_once = -F.logsigmoid(difference[i, j]).mean()

one_by_one = torch.stack([loss_rm(a, b) for a, b in combinations(ranked, 2)]).mean()
torch.testing.assert_close(at_once, one_by_one)
print(f"{len(i)} pairs of {len(ranked)} answers: loss {at_once:.4f} either way")

# %% tags=["hidden-test"]
assert len(i) == len(ranked) * (len(ranked) - 1) // 2

# %% [markdown]
# ## 7 · You are the annotator
#
# Enough of simulated crowds. Below are 24 pairs: click, or use the keys (**←** A is better, **→** B
# is better, **=** equal, **↓** skip, **⌫** undo). Decide for yourself what *better* means; write your
# rule down first, as a real labelling project would. Each label is on the disk at once, so you can
# stop, restart the kernel, and go on.
#
# **Your guess.** On which share of the pairs will you agree with the annotator who labelled them
# before you (called *the dataset* in the comparison)?

# %%
my_rule = "right before complete, complete before friendly"
my_guess_agreement = 0.7

from course_utils.inspectors import PreferenceLabeller

labels_file = lab.run_directory("my-labels") / f"{lab.tier.name}.jsonl"
to_label = pairs.select(range(24))
against = {"the gold reward": lab.gold} if lab.gold else None
labeller = PreferenceLabeller(to_label, labels_file, against=against)
labeller

# %% [markdown]
# **Labelled some?** Then run the next cell, as often as you like. It trains a reward model on
# *your* labels, from scratch, in seconds. (Fewer than four labels: the annotator's are taken, and it
# says so.)

# %%
from dataclasses import replace

from course_utils import train_reward_model
from course_utils.evaluation import reward_model_accuracy

done = labeller.summary()
decided = done["left"] + done["right"]
if decided >= 4:
    who, small_set = "you", labeller.preferences()
else:
    who, small_set = "the annotator", to_label
    print(
        f"NOTICE: {decided} labels of yours so far, so the annotator's are used. Label, run again."
    )

few = replace(lab.settings.reward, steps=min(12, lab.settings.reward.steps), batch_size=8)
yours = train_reward_model(lab.base(), lab.tokenizer, small_set, few, progress=False)
on_own = reward_model_accuracy(yours, small_set).accuracy
on_others = reward_model_accuracy(yours, heldout).accuracy

print(f"trained on {len(small_set)} labels by {who}")
print(f"right on those very labels       {on_own.mean:.0%}")
print(f"right on {len(heldout)} pairs never seen    {on_others.mean:.0%}")

# %% tags=["hidden-test"]
assert on_others.n == len(heldout)
assert who == "you" or decided < 4
assert labels_file.exists()

# %% tags=["hide-input"]
# @title How far you agree, in words
if decided:
    for judge in labeller.against:
        print(f"you and {judge:<16} agree on {labeller.agreement(judge)}")
    print(f"\nyou guessed {my_guess_agreement:.0%}; your rule: {my_rule}")
chance = on_others.low <= 0.5 <= on_others.high
Markdown(
    f"With {len(small_set)} labels the model is right on {on_own.mean:.0%} of what it was shown and "
    f"on {on_others.mean:.0%} (95 % interval {on_others.low:.0%} to {on_others.high:.0%}) of what it "
    "was not: "
    + (
        "**not to be told from a coin.** It has memorised, not learnt. How many labels does it take?"
        if chance
        else "a little better than a coin, and far from what it shows on its own labels. What would more do?"
    )
)

# %% [markdown]
# ## 8 · Thousands of pairs
#
# The same function on all pairs of this tier. It starts from the base model, as `course run` does.
# (InstructGPT started from its SFT model: put `lab.sft()` in its place and compare.)
#
# **Your guess:** on which share of held-out pairs will it agree with the annotator?

# %%
my_guess_accuracy = 0.9

# %%
from dataclasses import asdict

from course_utils import RunLog

settings = lab.settings.reward
run = RunLog.create(lab.run_directory("reward-model"), asdict(settings), lab.seed, overwrite=True)
reward = train_reward_model(lab.base(), lab.tokenizer, pairs, settings, log=run)

# %% tags=["hidden-test"]
assert len(run.rows) == settings.steps
assert (reward.normalisation.mean, reward.normalisation.std) == (0.0, 1.0), "raw scores so far"

# %% tags=["hide-input"]
# @title The training, drawn
log = run.frame()
figure = plots.figure("Each step sees new pairs", x="optimizer step", height=300)
for name, tone in (("loss", "reward"), ("accuracy", "sft")):
    plots.line(figure, log.step, log[name], "", plots.faint(plots.COLOURS[tone], 0.35))
    smooth = log[name].rolling(10, min_periods=1).mean()
    plots.line(figure, log.step, smooth, f"{name} on the batch", plots.COLOURS[tone])
figure.add_hline(
    y=np.log(2),
    line_dash="dot",
    line_color="#888",
    annotation_text="log 2: a coin",
    annotation_position="top left",
)

# %% [markdown]
# Now the inspector, on the pairs that were held out. Look at four things: do chosen and rejected
# answers come apart? Which pairs have the largest *wrong* margin? Does the calibration curve follow
# the diagonal? Does the score rise with length?

# %%
from course_utils.inspectors import RewardInspector

inspector = RewardInspector.of(reward, heldout)
measured = inspector.summary()["accuracy"]["mean"]
print(f"right on {measured:.0%} of held-out pairs, you guessed {my_guess_accuracy:.0%}")
inspector

# %% tags=["hidden-test"]
found = inspector.summary()
assert found["pairs"] == len(heldout)
if not lab.tier.is_fast:
    assert found["accuracy"]["low"] > 0.5

# %% [markdown]
# ### Normalise it
#
# Scores have neither zero nor unit, so we give them both, from the SFT model's own answers. Then
# "reward 1" reads: one standard deviation better than what SFT usually says.

# %%
from course_utils.evaluation.preferences import text_of

some = pairs.select(range(32 if lab.tier.is_fast else 200))
asked = [text_of(row["prompt"], "user") for row in some]
answered = lab.generate(lab.sft(), asked)

raw = reward(asked, answered)
normalisation = reward.fit_normalisation(list(zip(asked, answered, strict=True)))
normal = reward(asked, answered)
print(f"raw         mean {np.mean(raw):+.3f}   std {np.std(raw, ddof=1):.3f}")
print(f"normalised  mean {np.mean(normal):+.3f}   std {np.std(normal, ddof=1):.3f}")

# %% tags=["hidden-test"]
assert abs(np.mean(normal)) < 1e-3
assert abs(np.std(normal, ddof=1) - 1) < 1e-3
by_hand = (np.array(raw) - normalisation.mean) / normalisation.std
assert np.allclose(by_hand, normal, atol=1e-3)
assert (np.argsort(raw, kind="stable") == np.argsort(by_hand, kind="stable")).all(), (
    "no order moves"
)

# %% [markdown]
# The order of any two answers is as before. The odds are not: from normalised rewards,
# $P(\text{A preferred}) = \sigma\big(s \cdot (r_A - r_B)\big)$ with $s$ the standard deviation that
# was divided out. Who forgets $s$ reads other odds than the model has learnt.
#
# With $s$: when it says "80 % sure", is it right four times in five? A curve from a few hundred pairs
# wobbles by chance, so we also ask how large the error of a *perfectly* calibrated judge would look.

# %% tags=["hide-input"]
# @title Calibration on held-out pairs
from course_utils.evaluation import calibration

margins = reward_model_accuracy(reward, heldout).margins  # of normalised rewards, (N,)
found = calibration(margins, scale=normalisation.std)
sure = 1 / (1 + np.exp(-np.abs(margins) * normalisation.std))  # what it says, (N,)
rng = np.random.default_rng(0)
by_chance = [  # errors of a judge of whom every word comes true
    calibration(np.where(rng.random(len(sure)) < sure, 1, -1) * np.log(sure / (1 - sure))).ece
    for _ in range(200)
]
figure = plots.figure(
    "Do its odds come true?", x="how sure it was", y="how often it was right", height=320
)
plots.line(figure, [0.5, 1], [0.5, 1], "perfect", "#888888", line={"dash": "dot"})
bins = [b for b in found.bins if b.count >= 5]
confidence, came_true = [b.confidence for b in bins], [b.accuracy for b in bins]
plots.line(
    figure,
    confidence,
    came_true,
    "reward model",
    plots.COLOURS["reward"],
    mode="lines+markers",
)
display(figure.update_xaxes(tickformat=".0%").update_yaxes(tickformat=".0%"))
usual = np.quantile(by_chance, 0.95)
Markdown(
    f"It is {sure.mean():.0%} sure on average, and right on {np.mean(margins > 0):.0%}. Its calibration "
    f"error is {found.ece:.3f}; a perfect judge stays below {usual:.3f} in 95 of 100 such tests: "
    + ("**no fault can be shown.**" if found.ece <= usual else "**its odds are off.**")
)

# %% tags=["hidden-test"]
assert len(by_chance) == 200
raw_margins = inspector.table().margin.to_numpy()
assert np.allclose(margins * normalisation.std, raw_margins, atol=1e-3)

# %% [markdown]
# ## 9 · Claim C06, measured
#
# > The reward model gives higher scores to the preferred answer, and so acts as a **proxy** for human
# > judgement.
#
# Two questions. **How often is it right, by the number of labels?** And, since the world knows the
# truth: **is it right about quality, or only about labels?** From here on we use the embedded world
# on every tier. The same recipe with fewer pairs (and fewer steps, so that nothing is seen more often
# than about four times):

# %%
known_pairs, known_heldout = world.pairs()
known_reward = reward if world is lab else world.reward_model()
few_steps = {100: 12, 800: 40}  # pairs -> optimizer steps; the full run is there already
n_most = len(known_pairs)

models = {}
for n, steps in few_steps.items():
    n = min(n, n_most)
    recipe = replace(world.settings.reward, steps=min(steps, world.settings.reward.steps))
    models[n] = train_reward_model(
        world.base(), world.tokenizer, known_pairs.select(range(n)), recipe, progress=False
    )
models[n_most] = known_reward


def gold(prompts, answers):
    """The truth, with a reward model's manners: texts in, scores out."""
    return [world.gold(p, a).total for p, a in zip(prompts, answers, strict=True)]


truth = RewardInspector.of(gold, known_heldout)  # how a perfect reward model would fare
inspectors = {n: RewardInspector.of(model, known_heldout) for n, model in models.items()}
accuracy = {n: one.summary()["accuracy"] for n, one in inspectors.items()}
ceiling = truth.summary()["accuracy"]["mean"]

# %% tags=["hidden-test"]
assert 0.5 < ceiling <= 1
assert all(0 <= a["low"] <= a["mean"] <= a["high"] <= 1 for a in accuracy.values())

# %% tags=["hide-input"]
# @title Accuracy by the number of pairs, drawn
figure = plots.figure("Right on held-out pairs", x="pairs to learn from", y="accuracy", height=340)
sizes = list(accuracy)
plots.line(
    figure,
    sizes,
    [accuracy[n]["mean"] for n in sizes],
    "annotator's labels",
    plots.COLOURS["reward"],
    spread=([accuracy[n]["low"] for n in sizes], [accuracy[n]["high"] for n in sizes]),
    mode="lines+markers",
)
if world is lab:
    figure.add_scatter(
        x=[len(small_set)],
        y=[on_others.mean],
        mode="markers",
        name=f"labels by {who}",
        marker={"size": 11, "color": plots.COLOURS["ppo"], "symbol": "diamond"},
    )
for height, words in ((0.5, "a coin"), (ceiling, "the gold reward itself")):
    figure.add_hline(y=height, line_dash="dot", line_color="#888", annotation_text=words)
figure.update_xaxes(type="log", dtick=1).update_yaxes(tickformat=".0%", range=[0.42, 1])

# %% [markdown]
# The dotted line at the top is where *the truth itself* would stand: even a perfect judge cannot
# agree with an annotator who slips on close calls.

# %%
from course_utils.inspectors.reward_views import follows

best = inspectors[n_most]
with_gold = follows(best, world.gold)["the truth"]
against = best.table().margin < 0  # it contradicts the label
slips = (truth.table().margin[against] < 0).mean()  # and the truth does too

top, first = accuracy[n_most], accuracy[min(accuracy)]
world.claim(
    "C06",
    f"right on {top['mean']:.0%} [{top['low']:.0%}, {top['high']:.0%}] of held-out labels after "
    f"{n_most:,} pairs, on {first['mean']:.0%} after {min(accuracy)}; a perfect judge would be right "
    f"on {ceiling:.0%}. It agrees with the true order of two answers on {with_gold:.0%}; of its "
    f"contradictions to a label, {slips:.0%} are slips of the annotator.",
    holds=top["low"] > 0.5,
    accuracy=top["mean"],
    accuracy_few=first["mean"],
    ceiling=ceiling,
    agrees_with_gold=with_gold,
)

# %% tags=["hidden-test"]
assert 0 <= with_gold <= 1
if not lab.tier.is_fast:
    assert top["mean"] > first["mean"], "more pairs help"
    assert with_gold > 0.55

# %% tags=["hide-input"]
# @title The curve in words
gains = [
    f"{100 * (accuracy[b]['mean'] - accuracy[a]['mean']):+.0f} points from {a:,} to {b:,} pairs"
    for a, b in zip(sizes, sizes[1:], strict=False)
]
Markdown(
    f"Accuracy: {', '.join(gains) or 'one point only'}. Mind the axis: it is logarithmic, so **equal "
    "steps to the right cost a multiple of the labels**."
)

# %% [markdown]
# A model that is right only somewhat more often than a coin can still be useful: the reward of a
# *policy* is an average over many answers, in which independent mistakes cancel. Mistakes that are
# *not* independent are another matter.
#
# ### Where it is blind
#
# The lecture asks for **prompts that test capabilities**. Here is why: the same reward model, by the
# kind of prompt.

# %% tags=["hide-input"]
# @title Accuracy by family of prompts
from course_utils.evaluation import estimate
from course_utils.world import find

rows = best.table()
families = [find(prompt).family for prompt in rows.prompt]
right_by = {
    family: estimate([m > 0 for m, f in zip(rows.margin, families, strict=True) if f == family])
    for family in dict.fromkeys(families)
    if families.count(family) >= 10
}
order = sorted(right_by, key=lambda family: right_by[family].mean)
figure = plots.figure("Right on held-out pairs, by kind of prompt", y="accuracy", height=320)
plots.bars(figure, order, [right_by[f] for f in order], plots.COLOURS["reward"])
figure.add_hline(y=0.5, line_dash="dot", line_color="#888")
display(figure.update_yaxes(tickformat=".0%", range=[0, 1]))
if order:
    low, high = order[0], order[-1]
    display(
        Markdown(
            f"From {right_by[low].mean:.0%} on *{low}* (n = {right_by[low].n}) to "
            f"{right_by[high].mean:.0%} on *{high}* (n = {right_by[high].n}). The "
            "intervals are wide, and still: one mean for all would have hidden this."
        )
    )

# %% tags=["hidden-test"]
assert len(families) == len(known_heldout)

# %% [markdown] slides="14"
# ## 10 · A proxy: confident, and wrong
#
# A reward model is a **proxy for human judgement**, not the judgement. Of all held-out pairs, these
# are the ones on which it is *most sure* and *the truth* is against it. Read them. What did it fall
# for?

# %%
from course_utils.inspectors.reward_views import confident_mistakes

mistakes = confident_mistakes(best, world.gold, n=4, apart=0.5)
mistakes

# %% tags=["hide-input"]
# @title How many there are
Markdown(
    f"{mistakes.all} of {mistakes.pairs} held-out pairs are of this kind: one answer is more than half "
    "a gold point better, and the reward model likes the other one."
)

# %% tags=["hidden-test"]
assert len(mistakes) <= 4
assert all(row["better"]["gold"] > row["liked"]["gold"] + 0.5 for row in mistakes.rows)

# %% [markdown]
# **Your guess.** Quality has parts. Which of them does the reward model see well, and which hardly?
# For each part we take the pairs whose answers *differ* in it and count how often the reward model
# likes the one that is better in that part.

# %% tags=["hide-input"]
# @title What the proxy sees
from course_utils.inspectors.reward_views import by_part

seen = by_part(best, world.gold)
order = sorted(seen, key=lambda part: seen[part].mean)
figure = plots.figure("Prefers the answer that is better in …", y="share of pairs", height=320)
labels = [f"{part.replace('_', ' ')}<br>n = {seen[part].n}" for part in order]
plots.bars(figure, labels, [seen[part] for part in order], plots.COLOURS["reward"])
figure.add_hline(y=0.5, line_dash="dot", line_color="#888")
display(figure.update_yaxes(tickformat=".0%", range=[0, 1]))
rare = {
    part.replace("_", " "): one.n
    for part, one in by_part(best, world.gold, least=1).items()
    if part not in seen
}
Markdown(
    "Too rare in these pairs for a bar: " + ", ".join(f"{p} (n = {n})" for p, n in rare.items())
    if rare
    else "Every part of the gold reward has a bar."
)

# %% tags=["hidden-test"]
assert all(0 <= one.mean <= 1 for one in seen.values())

# %% [markdown]
# A part below one half is one that the model gets *backwards*: in its pairs, something else went
# along with it. To a small model a true sentence and a false one look much alike, while manner shows
# on the surface. And what is rare in the pairs it cannot learn: where nearly every refusal was a
# needless one, a rightful refusal looks wrong too. **PPO will look for exactly such places**:
# answers that score high without being good. That is the subject of lessons 04 and 08.

# %% [markdown]
# ## 11 · What broke: an annotator with a habit
#
# People tend to take a longer answer for a better one, and so do reward models: on several public
# preference sets much of the reward that RLHF gains can be had by length alone (Singhal et al. 2023).
# We switch that habit on. The new annotator sees the same pairs and adds some gold points for every
# ten words:

# %%
habit = 2.0  # gold points that ten more words are worth to this person
temperature = world.tier.annotator_temperature
long_lover = Annotator(temperature=temperature, length_bias=habit, seed=world.seed)

from course_utils.data import worldsets


def judged_by(annotator, rows):
    """The same pairs, with this annotator's verdicts."""
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    said = [tuple(turns[-1]["content"] for turns in row) for row in texts]
    return worldsets.preferences(said, annotator)


n = min(800, n_most)
their_pairs = judged_by(long_lover, known_pairs.select(range(n)))
their_heldout = judged_by(long_lover, known_heldout)
same = np.mean([a["chosen"] == b["chosen"] for a, b in zip(their_pairs, known_pairs, strict=False)])
print(f"on {same:.0%} of the pairs both annotators say the same")

# %% tags=["hidden-test"]
assert len(their_pairs) == n
assert 0 < same < 1

# %% [markdown]
# **Your guess.** Same pairs, same recipe, same steps; only who labelled differs. Which reward model
# will be right more often *on labels of its own annotator*: the honest one's, or the long-lover's?

# %%
my_guess_higher = "the honest annotator's"

recipe = replace(world.settings.reward, steps=min(few_steps[800], world.settings.reward.steps))
fooled = train_reward_model(world.base(), world.tokenizer, their_pairs, recipe, progress=False)
own = RewardInspector.of(fooled, their_heldout)
fair = inspectors[n]  # trained on the same pairs as the honest annotator judged them

# %%
names = ["the truth", "model of the honest annotator", "model of the long-lover"]
table = pd.DataFrame([follows(one, world.gold) for one in (truth, fair, own)], index=names)
look = dict.fromkeys(table.columns[:3], "{:.0%}") | {"length (r)": "{:+.2f}"}
table.style.format(look).set_caption("How far each agrees with …")

# %% tags=["hidden-test"]
assert table.notna().all().all()
if not lab.tier.is_fast:
    assert table.loc[names[2], "length (r)"] > table.loc[names[1], "length (r)"] + 0.2

# %% tags=["hide-input"]
# @title Score against length, drawn
figure = plots.figure("How much of the score is length?", x="words", y="score, standardised")
for name, one, tone in ((names[1], fair, "reward"), (names[2], own, "ppo_low_beta")):
    rows = one.table()
    words = pd.concat([rows.chosen_length, rows.rejected_length])
    points = pd.concat([rows.chosen, rows.rejected])
    dots = {"size": 4, "color": plots.faint(plots.COLOURS[tone], 0.55)}
    standard = (points - points.mean()) / points.std()
    figure.add_scatter(x=words, y=standard, mode="markers", name=name, marker=dots)
figure.update_layout(legend={"orientation": "h", "y": 1.12, "x": 0.3})

# %% tags=["hide-input"]
# @title What this means, in words
honest, lover = table.loc[names[1]], table.loc[names[2]]
look_better = lover["its labels"] > honest["its labels"]
Markdown(
    f"The long-lover's model is right on **{lover['its labels']:.0%}** of its annotator's labels, the "
    f"honest one's on **{honest['its labels']:.0%}** (you guessed: {my_guess_higher}). About the "
    f"*truth* they are right on {lover['the truth']:.0%} and {honest['the truth']:.0%}. Its score goes "
    f"with length at r = {lover['length (r)']:+.2f}; that of the truth itself at "
    f"{table.loc[names[0], 'length (r)']:+.2f}. "
    + (
        "**The worse judge looks better on held-out pairs**, because a habit is easier to learn than "
        "quality. Held-out accuracy measures agreement with the labels, bad habits included."
        if look_better and lover["the truth"] < honest["the truth"]
        else "Held-out accuracy alone does not tell which of the two knows quality."
    )
)

# %% [markdown]
# Here we could see it, because the truth is known. With real people one looks for the symptoms: the
# length panel of the `RewardInspector` (open `own` below and compare), pairs matched in length, a
# second opinion on the pairs where long wins. What a policy makes of such a reward is claim C08, in
# lesson 08.

# %%
own

# %% [markdown]
# ## 12 · What broke, and why
#
# * **−log σ as written** is infinite at a margin of −104 in float32: use `logsigmoid`.
# * **Padding with the end token** moves the token that is read, without any error.
# * **A million weights fit two dozen labels at once**: accuracy on labels that were shown says nothing.
# * **Scores have no zero and no unit**: normalise them, and keep the unit for the odds.
# * **The proxy is not the truth**: it sees some parts of quality and not others, it is uneven over
#   kinds of prompts, and it takes on the habits of its annotators; held-out accuracy does not warn.
#
# ## 13 · Check yourself
#
# <details>
# <summary><b>1.</b> Your reward model gives all answers scores between 40 and 43. A colleague says that it is broken. Is it?</summary>
#
# Not by that alone. The loss depends on differences only, so any constant may sit on top. Whether it
# is any good shows in its accuracy and calibration on held-out pairs. Normalise it before PPO.
# </details>
#
# <details>
# <summary><b>2.</b> A pair is mislabelled and the model is very sure of the opposite. How hard does that pair pull, compared with a pair on which the model is undecided?</summary>
#
# The pull is $1 - \sigma(\text{margin})$: close to 1 on the mislabelled pair, one half on the
# undecided one. Twice as hard, for ever, as it will never be fitted; but bounded. Label smoothing
# bounds what there is to gain by being surer still.
# </details>
#
# <details>
# <summary><b>3.</b> Reward model B has a held-out accuracy of 75 %, A of 65 %. Name two reasons why A may still be the better one to train against.</summary>
#
# B's pairs may be easier, or its annotators may share a habit (length, flattery) that is easy to
# learn and not quality, as in section 11. And accuracy on answers of *today's* models says little
# about the answers that a policy finds when it looks for a high score.
# </details>
#
# ## 14 · Read on
#
# * Bradley and Terry 1952, [Rank analysis of incomplete block designs](https://doi.org/10.2307/2334029)
# * Christiano et al. 2017, [Deep reinforcement learning from human preferences](https://arxiv.org/abs/1706.03741)
# * Ziegler et al. 2019, [Fine-tuning language models from human preferences](https://arxiv.org/abs/1909.08593)
# * Ouyang et al. 2022, [Training language models to follow instructions with human feedback](https://arxiv.org/abs/2203.02155): §3.5 and appendix A on labellers
# * Bai et al. 2022, [Training a helpful and harmless assistant with RLHF](https://arxiv.org/abs/2204.05862): how accuracy grows with data, and calibration
# * Singhal et al. 2023, [A long way to go: investigating length correlations in RLHF](https://arxiv.org/abs/2310.03716)
#
# **Exercises:** [exercises/03_reward_model.ipynb](../exercises/03_reward_model.ipynb): the
# Bradley-Terry loss, the token that the head reads, a zero and a unit for the reward, accuracy and
# calibration, a test for a taste for length.
#
# **Next, lesson 04:** the number is there. How does a model learn to raise it, and what keeps it from
# finding the places where the number is wrong?

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
