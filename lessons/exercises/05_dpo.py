# %% [markdown] seconds=60
# # Exercises 05 · Direct preference optimisation
#
# Six tasks that belong to lesson 05: the log-probability of an answer, DPO's loss, the reward that a
# policy implies, the weight of a pair, and two relatives of the loss, IPO and cDPO. For each one:
# write the function, run the check below it until it says *passed*, then run the small experiment,
# which trains or measures with **your** function, and answer the question in words.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import math

import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import display

from course_utils import Lab, check, objectives, plots

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
sft = world.sft()  # what DPO starts from, and the reference
train_pairs, heldout_pairs = world.pairs()
world

# %% [markdown]
# All tasks write $w$ for the chosen answer (*winner*) and $l$ for the rejected one (*loser*), and
#
# $$h = \log\frac{\pi_\theta(y_w|x)}{\pi_{\text{ref}}(y_w|x)} -
# \log\frac{\pi_\theta(y_l|x)}{\pi_{\text{ref}}(y_l|x)}, \qquad u = \beta h .$$
#
# So $h$ is a difference of log-ratios in nats, and $u$ the margin in reward. The tasks 2 and 4 to 6
# have the same first four arguments, float tensors of shape (B,), one number for each pair:
# `chosen` $= \log\pi_\theta(y_w|x)$, `rejected` $= \log\pi_\theta(y_l|x)$, and `ref_chosen`,
# `ref_rejected`, the same under the reference. `beta` is a float above 0.
#
# ## Task 1 · The log-probability of an answer
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# $$\log \pi(y|x) = \sum_{t\,\in\,\text{answer}} \log \pi(x_t \mid x_{<t})$$
#
# Write `sequence_logprobs(logits, input_ids, mask, reduction="sum")`.
#
# * `logits` (B, T, V), `input_ids` (B, T), `mask` (B, T) with 1 on the answer's tokens and 0 on the
#   prompt's and on padding. The mask holds integers or booleans; its first column is always 0, since
#   every answer follows a prompt;
# * the result has shape (B,): for each row the sum over its answer's tokens, or with
#   `reduction="mean"` their mean. A row without an answer gives 0 with both;
# * padding may stand on either side, and where a position predicts no token of the answer its logits
#   may be anything, NaN and $-\infty$ included: they must not change the result;
# * logits may be as large as several thousand, and may be bfloat16: compute in float32, and return
#   that. Gradients must reach the logits.
#
# <details><summary>A hint</summary>
#
# Logits at position t predict the token at t + 1, so logits, ids and mask each lose a column, and not
# all of them the same one. What is 0 times NaN? `torch.where` and `masked_fill` choose, they do not
# multiply.
# </details>


# %% task="sequence-logprobs"
def sequence_logprobs(logits, input_ids, mask, reduction="sum"):
    ### BEGIN SOLUTION
    logprobs = F.log_softmax(logits[:, :-1].float(), dim=-1)  # (B, T-1, V)
    tokens = logprobs.gather(-1, input_ids[:, 1:].unsqueeze(-1)).squeeze(-1)  # (B, T-1)
    keep = mask[:, 1:].bool()
    total = tokens.masked_fill(~keep, 0.0).sum(dim=1)  # (B,)
    if reduction == "mean":
        return total / keep.sum(dim=1).clamp(min=1)
    return total
    ### END SOLUTION


# %% task="sequence-logprobs" points=4
check.sequence_logprobs(sequence_logprobs)

# %% tags=["hidden-test", "solution-only"]
assert check.sequence_logprobs(sequence_logprobs).passed

# %% [markdown]
# ### Experiment: what the SFT model thinks of the pairs
#
# The next cell makes batches: the chosen answers of some pairs, then their rejected ones, as token ids
# with a mask. With your function on the model's logits, every answer gets its log-probability.

# %% tags=["hide-input"]
# @title Batches of pairs, and the course's own function for task 1
from course_utils.training.tokenise import prompt_ids, whole_ids


def batch_of(pairs):
    """ids (2B, T), mask (2B, T): the chosen answers of B pairs, then the rejected ones."""
    prompts = [pair["prompt"] for pair in pairs] * 2
    answers = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    starts = prompt_ids(world.tokenizer, prompts)
    wholes = whole_ids(world.tokenizer, prompts, answers)
    longest = max(map(len, wholes))
    ids = torch.full((len(wholes), longest), world.tokenizer.pad_token_id)
    mask = torch.zeros(len(wholes), longest, dtype=torch.long)
    for row, (start, whole) in enumerate(zip(starts, wholes, strict=True)):
        ids[row, : len(whole)] = torch.tensor(whole)
        mask[row, len(start) : len(whole)] = 1
    return ids.to(sft.device), mask.to(sft.device)


def batches_of(pairs):
    """[(ids, mask)], 16 pairs in each."""
    return [batch_of(pairs[i : i + 16]) for i in range(0, len(pairs), 16)]


def course_sequence_logprobs(logits, input_ids, mask, reduction="sum"):
    tokens = objectives.next_token_logprobs(logits, input_ids)
    return objectives.sequence_logprob(tokens, mask[:, 1:], reduction)


# %%
answer_logprobs = check.use(sequence_logprobs, otherwise=course_sequence_logprobs)


def logprobs_of(model, batch):
    """(B,) of the chosen and (B,) of the rejected answers of a batch."""
    ids, mask = batch
    return answer_logprobs(model(ids).logits, ids, mask).chunk(2)


fast = world.tier.is_fast
heldout = batches_of(list(heldout_pairs)[: 16 if fast else 192])
with torch.no_grad():
    held_out = heldout, [logprobs_of(sft, batch) for batch in heldout]
under_sft = torch.cat([torch.cat(pairs) for pairs in held_out[1]]).cpu()
lengths = torch.cat([mask.sum(1) for _, mask in heldout]).cpu()  # tokens of each answer

# %% tags=["hidden-test"]
ids, mask = heldout[0]
with torch.no_grad():
    logits = sft(ids).logits
    torch.testing.assert_close(
        answer_logprobs(logits, ids, mask), course_sequence_logprobs(logits, ids, mask)
    )
assert (under_sft <= 0).all()

# %% tags=["hide-input"]
# @title Log-probability and length, drawn
figure = plots.figure(
    "Held-out answers under the SFT model", "tokens of the answer", "log π(y|x), nats"
)
is_chosen = torch.cat(
    [torch.arange(len(ids)) < len(ids) // 2 for ids, _ in heldout]
)  # a batch's first half
for name, rows, colour in (
    ("chosen", is_chosen, plots.COLOURS["sft"]),
    ("rejected", ~is_chosen, plots.COLOURS["ppo"]),
):
    plots.line(
        figure,
        lengths[rows].tolist(),
        under_sft[rows].tolist(),
        name,
        colour,
        mode="markers",
        marker={"size": 5, "opacity": 0.6},
    )
display(figure)
per_token = under_sft / lengths
by_length = torch.corrcoef(torch.stack([lengths.float(), under_sft]))[0, 1].item()
shorter = under_sft[lengths <= lengths.float().median()].mean()
longer = under_sft[lengths > lengths.float().median()].mean()
print(f"correlation of log π(y|x) with the answer's length: {by_length:+.2f}")
print(f"mean of the shorter half {shorter:.1f} nats, of the longer half {longer:.1f}")
print(
    f"per token: mean {per_token.mean():.2f} nats, from {per_token.min():.2f} to {per_token.max():.2f}"
)

# %% [markdown] task="why-sums" points=2
# **Question 1** (2 points). Every token costs probability, so a longer answer tends to have a lower
# $\log\pi(y|x)$: look at the numbers above. DPO uses sums over tokens all the same. Why does it not
# simply teach the model to answer briefly? And in what way does length come back through $h$?
#
# ### BEGIN SOLUTION
# An answer is not compared with the other answer but with *itself under the reference*: in
# $\log\pi_\theta(y|x) - \log\pi_{\text{ref}}(y|x)$ what an answer of this length costs anyway stands on
# both sides and cancels, and at the start every $h$ is exactly 0 whatever the lengths. The sum is also
# what the derivation asks for: the probability of an answer is the product over its tokens.
#
# Length comes back because the log-*ratio* is a sum too: a long answer has more tokens that can each
# move a little, so it can make a large $|h|$ more cheaply. If the chosen answers are the longer ones
# on average, the easiest way to a margin is to make many tokens of long answers likelier. That is a
# length bias of the labels that DPO amplifies; dividing by the length changes the objective, and is
# another method.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · DPO's loss
#
# *Difficulty 2 of 5 · about 15 minutes · 4 points*
#
# $$\mathcal{L}_{\text{DPO}} = -\frac1B \sum_{\text{pairs}} \log\sigma(u)$$
#
# Write `dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1)`.
#
# * the four tensors (B,) are those described above task 1; the result has shape (): the mean over the
#   pairs;
# * value and gradient are finite and right also where $u$ is $\pm 10^4$;
# * gradients reach `chosen` and `rejected`, and none reaches `ref_chosen` or `ref_rejected`, even where
#   those require one.
#
# <details><summary>A hint</summary>
#
# `F.logsigmoid` exists because the logarithm of `torch.sigmoid` is $-\infty$ from $u = -104$ down. And
# `x.detach()` is the same number, as a constant.
# </details>


# %% task="dpo-loss"
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    ### BEGIN SOLUTION
    chosen_ratio = chosen - ref_chosen.detach()  # log π/π_ref (y_w), (B,)
    rejected_ratio = rejected - ref_rejected.detach()
    u = beta * (chosen_ratio - rejected_ratio)
    return -F.logsigmoid(u).mean()
    ### END SOLUTION


# %% task="dpo-loss" points=4
check.dpo_loss(dpo_loss)

# %% tags=["hidden-test", "solution-only"]
assert check.dpo_loss(dpo_loss).passed

# %% [markdown]
# ### Experiment: train with it
#
# Here is a whole DPO training, nothing hidden. The reference's log-probabilities are computed once,
# before the policy moves. (`wrong` is for task 6: it says which pairs have their labels swapped.)

# %%
BETA = 0.2
ROUNDS = 1 if fast else 3  # passes over the pairs
drawn = torch.randperm(len(train_pairs), generator=torch.Generator().manual_seed(world.seed))
learned_pairs = [train_pairs[i] for i in drawn[: 32 if fast else 256].tolist()]
batches = batches_of(learned_pairs)
with torch.no_grad():
    references = [logprobs_of(sft, batch) for batch in batches]
learned = (batches, references)


def train(loss_function, learning_rate=5e-4, wrong=None):
    """The SFT model trained with loss_function(chosen, rejected, ref_chosen, ref_rejected) -> ().

    Args: wrong: (B,) bool for each batch, whose two answers change places. Returns: the policy, its log.
    """
    policy = world.sft().train(False).requires_grad_(True)  # no dropout, as in the reference
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    log, steps = [], ROUNDS * len(batches)
    for step in range(steps):
        for group in optimizer.param_groups:  # a short warm-up, then down in a straight line
            group["lr"] = learning_rate * min(1, (step + 1) / 4) * (1 - step / steps)
        which = step % len(batches)
        pairs = torch.stack(logprobs_of(policy, batches[which]))  # (2, B): chosen, rejected
        refs = torch.stack(references[which])
        if wrong is not None:
            swap = wrong[which].to(pairs.device)
            pairs, refs = (torch.where(swap, x.flip(0), x) for x in (pairs, refs))
        loss = loss_function(*pairs, *refs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        chosen, rejected = (pairs - refs).detach().mean(dim=1).tolist()
        log.append({"step": step, "loss": loss.item(), "chosen": chosen, "rejected": rejected})
    return policy.requires_grad_(False), pd.DataFrame(log)


# %%
preference_loss = check.use(dpo_loss, otherwise=objectives.dpo_loss)
dpo, dpo_log = train(lambda *four: preference_loss(*four, beta=BETA))
print(
    f"first loss {dpo_log.loss.iloc[0]:.4f} (log 2 = {math.log(2):.4f}), last {dpo_log.loss.iloc[-1]:.4f}"
)

# %% tags=["hidden-test"]
assert abs(dpo_log.loss.iloc[0] - math.log(2)) < 1e-3
if not fast:
    assert dpo_log.loss.tail(10).mean() < math.log(2) - 0.05

# %% tags=["hide-input"]
# @title The run, drawn; then the trained policy's loss at other values of β
figure = plots.figure("How far each answer has moved", "optimizer step", "log π/π_ref, nats")
for column, colour in (("chosen", plots.COLOURS["sft"]), ("rejected", plots.COLOURS["ppo"])):
    smooth = dpo_log[column].rolling(5, min_periods=1).mean()
    plots.line(figure, dpo_log.step, smooth, column, colour)
display(figure)


def log_ratios(policy, some):
    """log π/π_ref of all chosen and of all rejected answers, (N,) each. some: batches, references."""
    with torch.no_grad():
        moved = [
            torch.stack(logprobs_of(policy, batch)) - torch.stack(refs)
            for batch, refs in zip(*some, strict=True)
        ]
    return torch.cat(moved, dim=1).cpu().unbind()  # (2, N)


dpo_ratios = log_ratios(dpo, held_out)
zero = torch.zeros_like(dpo_ratios[0])
by_beta = {
    value: preference_loss(*dpo_ratios, zero, zero, beta=value).item()
    for value in (0.05, 0.1, BETA, 0.5, 1.0)
}
for value, loss in by_beta.items():
    print(f"held-out loss of this one policy, reckoned with β = {value:<4g}: {loss:.3f}")

# %% tags=["hidden-test"]
assert len({round(loss, 5) for loss in by_beta.values()}) > 1

# %% [markdown] task="compare-losses" points=2
# **Question 2** (2 points). The last lines are the loss of *one* policy on the same pairs; only the β
# in the formula differs. Two colleagues have trained with different β and compare their final losses
# to decide which policy is better. What do you tell them, and what should they compare instead?
#
# ### BEGIN SOLUTION
# The numbers above belong to one and the same policy and still differ, so a difference between the
# losses of two runs with different β says nothing about the policies. β is the unit in which the loss
# measures: $u = \beta h$, so the same log-ratios give another $u$ and another loss. Even at equal β a
# low *training* loss may only mean that the policy has gone far from the reference.
#
# To be compared: what does not depend on β. The share of held-out pairs in the right order (the sign
# of $h$), the margin in nats, and above all what the policies *say*: win rate or true quality at the
# same KL from the reference.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · The implicit reward and its accuracy
#
# *Difficulty 2 of 5 · about 15 minutes · 3 points*
#
# $$\hat r(x, y) = \beta\left(\log\pi_\theta(y|x) - \log\pi_{\text{ref}}(y|x)\right)$$
#
# Write two functions.
#
# * `implicit_reward(logprobs, ref_logprobs, beta)`: (B,) and (B,) to (B,).
# * `reward_metrics(chosen_rewards, rejected_rewards)`: (B,) and (B,), B at least 1, to a dict with the
#   keys `"accuracy"` and `"margin"`, each a number or a tensor of shape ():
#     * accuracy: the share of pairs, in [0, 1], whose chosen answer has the higher reward; **a tie
#       counts one half**;
#     * margin: the mean over all pairs of the chosen reward less the rejected one;
#     * the rewards may be bfloat16: compute both numbers in float32.
#
# <details><summary>A hint</summary>
#
# Two comparisons, `>` and `==`, and the mean of what they give as floats.
# </details>


# %% task="implicit-reward"
def implicit_reward(logprobs, ref_logprobs, beta):
    ### BEGIN SOLUTION
    return beta * (logprobs - ref_logprobs)
    ### END SOLUTION


def reward_metrics(chosen_rewards, rejected_rewards):
    ### BEGIN SOLUTION
    chosen, rejected = chosen_rewards.float(), rejected_rewards.float()
    right = (chosen > rejected).float()
    tied = (chosen == rejected).float()
    return {
        "accuracy": (right + 0.5 * tied).mean(),
        "margin": (chosen - rejected).mean(),
    }
    ### END SOLUTION


# %% task="implicit-reward" points=3
check.implicit_reward(implicit_reward, reward_metrics)

# %% tags=["hidden-test", "solution-only"]
assert check.implicit_reward(implicit_reward, reward_metrics).passed

# %% [markdown]
# ### Experiment: how well does the policy rank?
#
# Before training and after, on the pairs that it learned from and on held-out ones.

# %% tags=["hide-input"]
# @title The course's own functions for task 3


def course_reward_metrics(chosen_rewards, rejected_rewards):
    return {
        "accuracy": objectives.reward_accuracy(chosen_rewards, rejected_rewards),
        "margin": (chosen_rewards - rejected_rewards).mean(),
    }


# %%
reward_of = check.use(implicit_reward, otherwise=objectives.implicit_rewards)
metrics_of = check.use(reward_metrics, otherwise=course_reward_metrics)

rows = []
for name, policy in {"SFT, before": sft, "after DPO": dpo}.items():
    for split, some in {"learned": learned, "held out": held_out}.items():
        rewards = [
            reward_of(ratio, torch.zeros_like(ratio), BETA) for ratio in log_ratios(policy, some)
        ]
        found = {key: float(value) for key, value in metrics_of(*rewards).items()}
        strict = (rewards[0] > rewards[1]).float().mean().item()  # what TRL logs
        rows.append({"policy": name, "pairs": split, **found, "accuracy if ties are wrong": strict})
ranking = pd.DataFrame(rows).set_index(["policy", "pairs"])
ranking.round(3)

# %% tags=["hidden-test"]
assert (ranking.loc["SFT, before", "accuracy"] == 0.5).all(), "all rewards are 0: ties"
assert (ranking.loc["SFT, before", "margin"] == 0).all()
assert ((ranking.accuracy >= 0) & (ranking.accuracy <= 1)).all()
if not fast:
    assert ranking.loc[("after DPO", "learned"), "accuracy"] > 0.6

# %% [markdown] task="why-half" points=2
# **Question 3** (2 points). Before training, two columns of the table disagree. Which one tells the
# truth about the SFT model, and why? What does the difference between *learned* and *held out* after
# training tell you?
#
# ### BEGIN SOLUTION
# Before training policy and reference are the same model, so every implicit reward is exactly 0 and
# every pair is a tie. The policy prefers nothing: that is chance, 0.5. Where ties count as wrong the
# first logged accuracy is 0, which reads "always the wrong way round", and the curve then seems to
# leap to one half in a few steps although nothing has been learned.
#
# After training the learned pairs are in the right order more often than the held-out ones: the run
# has seen them several times and has partly memorised them, labelling mistakes included. Only the
# held-out share says how well the implicit reward has understood the preference, and so it is the one
# to compare with a reward model.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · What a pair weighs
#
# *Difficulty 3 of 5 · about 25 minutes · 3 points*
#
# $$\nabla_\theta\mathcal{L}_{\text{DPO}} = -\frac{\beta}{B}\sum_{\text{pairs}} w\,
# \big(\nabla_\theta\log\pi_\theta(y_w|x) - \nabla_\theta\log\pi_\theta(y_l|x)\big), \qquad
# w = \sigma\big(\hat r(x,y_l) - \hat r(x,y_w)\big)$$
#
# Write two functions with the same arguments, `(chosen, rejected, ref_chosen, ref_rejected, beta)`.
#
# * `gradient_weight(...)`: the weight $w$ of each pair, (B,). Margins may be $\pm 10^4$, and a weight
#   of $10^{-9}$ must still be right in all its digits.
# * `dpo_gradients(...)`: a tuple of two tensors (B,), $\partial\mathcal{L}/\partial$`chosen` and
#   $\partial\mathcal{L}/\partial$`rejected` of the **mean** loss of task 2, in closed form.
#
# <details><summary>A hint</summary>
#
# The derivative of $-\log\sigma(u)$ is $-\sigma(-u)$. In float32, $1 - \sigma(u)$ is not the same as
# $\sigma(-u)$: try u = 20. For the second function ask what w is multiplied with in the formula, and
# which of those factors belong to the loss rather than to the network.
# </details>


# %% task="gradient-weight"
def gradient_weight(chosen, rejected, ref_chosen, ref_rejected, beta):
    ### BEGIN SOLUTION
    reward_chosen = beta * (chosen - ref_chosen)
    reward_rejected = beta * (rejected - ref_rejected)
    return torch.sigmoid(reward_rejected - reward_chosen)
    ### END SOLUTION


def dpo_gradients(chosen, rejected, ref_chosen, ref_rejected, beta):
    ### BEGIN SOLUTION
    weight = gradient_weight(chosen, rejected, ref_chosen, ref_rejected, beta)
    step = beta * weight / len(weight)  # 1/B: the loss is a mean
    return -step, step
    ### END SOLUTION


# %% task="gradient-weight" points=3
check.gradient_weight(gradient_weight, dpo_gradients)

# %% tags=["hidden-test", "solution-only"]
assert check.gradient_weight(gradient_weight, dpo_gradients).passed

# %% [markdown]
# ### Experiment: who gets the attention?
#
# The weights of the pairs that were learned from, before the run of task 2 and after it. And since
# this is the world in which the true quality of an answer is known, we can ask which pairs those are:
# a label is *wrong* here if the gold reward prefers the answer that the annotator rejected.

# %% tags=["hide-input"]
# @title The course's own functions for task 4


def course_dpo_gradients(chosen, rejected, ref_chosen, ref_rejected, beta):
    four = (chosen, rejected, ref_chosen, ref_rejected)
    leaves = [x.detach().requires_grad_(True) for x in four[:2]]
    return torch.autograd.grad(objectives.dpo_loss(*leaves, *four[2:], beta=beta), leaves)


# %%
weight_of = check.use(gradient_weight, otherwise=objectives.dpo_gradient_weight)
gradients_of = check.use(dpo_gradients, otherwise=course_dpo_gradients)


def gold_gap(pair):
    """How much better the chosen answer really is; negative: the label is wrong."""
    prompt, chosen, rejected = (
        pair[key][-1]["content"] for key in ("prompt", "chosen", "rejected")
    )
    return world.gold(prompt, chosen).total - world.gold(prompt, rejected).total


learned_ratios = log_ratios(dpo, learned)
none = torch.zeros_like(learned_ratios[0])  # the ratios are to the reference already
before = weight_of(none, none, none, none, BETA)
after = weight_of(*learned_ratios, none, none, BETA)
attention = pd.DataFrame(
    {"weight": after.tolist(), "wrong": [gold_gap(pair) < 0 for pair in learned_pairs]}
)
ranks = attention.weight.rank(method="first")
attention["quarter"] = pd.qcut(ranks, 4, labels=["lightest", "second", "third", "heaviest"])
by_quarter = attention.groupby("quarter", observed=True).agg(
    mean_weight=("weight", "mean"), wrong_labels=("wrong", "mean"), pairs=("wrong", "size")
)

figure = plots.figure("The weight of each learned pair", "w = σ(r̂(y_l) − r̂(y_w))", "pairs")
bins = {"start": 0, "end": 1.0001, "size": 0.05}
for name, weights, colour in (
    ("before", before, plots.COLOURS["base"]),
    ("after", after, plots.COLOURS["dpo"]),
):
    figure.add_histogram(
        x=weights.tolist(), name=name, xbins=bins, marker_color=colour, opacity=0.7
    )
figure.update_layout(barmode="overlay")
display(figure)
print(
    f"all of the gradient is β/B times the weights; their sum fell from {before.sum():.0f} to {after.sum():.0f}"
)
by_quarter.round(2)

# %% tags=["hidden-test"]
assert (before == 0.5).all()
assert ((after > 0) & (after < 1)).all()
assert by_quarter["pairs"].sum() == len(learned_pairs)

# %% [markdown]
# Your closed form against autograd, through the loss of task 2:

# %%
leaves = [ratio.clone().requires_grad_(True) for ratio in learned_ratios]
by_autograd = torch.autograd.grad(preference_loss(*leaves, none, none, beta=BETA), leaves)
by_formula = gradients_of(*learned_ratios, none, none, BETA)
gaps = [(a - b).abs().max().item() for a, b in zip(by_autograd, by_formula, strict=True)]
print(f"largest difference: {max(gaps):.1e}, of gradients up to {by_autograd[0].abs().max():.1e}")

# %% tags=["hidden-test"]
assert max(gaps) < 1e-8

# %% [markdown] task="who-gets-attention" points=2
# **Question 4** (2 points). Look at the column of wrong labels by quarter. Which pairs does DPO push
# hardest by the end of its run, and is that what you want? What would another twenty rounds over the
# same pairs do?
#
# ### BEGIN SOLUTION
# The weight is largest where the policy's order contradicts the label. Early on these are pairs that
# it has not learned yet, and there the weight does good. Later the easy pairs are right and weigh
# little, and what is left at the heavy end are the pairs that do not fit the rest: hard ones, and
# those whose label is wrong: in the table their share is largest in the heaviest quarter (of 64 pairs
# each, so a few pairs more or less are chance). The loss cannot tell a hard pair from a wrong label.
#
# Another twenty rounds would push on exactly these until they too are in the order that their label
# says: the policy learns the annotator's mistakes by heart, which generalises to nothing, and moves
# far from the reference on the way. Stop early, clean the labels, or take a loss that gives up:
# the next two tasks.
# ### END SOLUTION

# %% [markdown]
# ## Task 5 · IPO: a margin and no more
#
# *Difficulty 2 of 5 · about 10 minutes · 3 points*
#
# If every label agrees, DPO's best $u$ is infinite, however large β is. IPO (Azar et al. 2023) puts a
# target in its place:
#
# $$\mathcal{L}_{\text{IPO}} = \frac1B\sum_{\text{pairs}}\left(h - \frac{1}{2\beta}\right)^2$$
#
# Write `ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)`.
#
# * arguments as in task 2; $h$ is the difference of log-ratios in nats, of sums over tokens (TRL takes
#   means per token here, we do not);
# * the result has shape (): the mean over the pairs. No gradient reaches the reference.
#
# <details><summary>A hint</summary>
#
# Where does β stand in this formula, and where not?
# </details>


# %% task="ipo-loss"
def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    ### BEGIN SOLUTION
    h = (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())
    return (h - 1 / (2 * beta)).square().mean()
    ### END SOLUTION


# %% task="ipo-loss" points=3
check.ipo_loss(ipo_loss)

# %% tags=["hidden-test", "solution-only"]
assert check.ipo_loss(ipo_loss).passed

# %% [markdown]
# ### Experiment: where the pairs end up
#
# The training of task 2 once more, with the same pairs and β, and your loss in place of DPO's.

# %% tags=["hide-input"]
# @title The course's own function for task 5


def course_ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    four = (chosen, rejected, ref_chosen, ref_rejected)
    return objectives.dpo_loss(*four, beta=beta, variant="ipo")


# %%
squared_loss = check.use(ipo_loss, otherwise=course_ipo_loss)
ipo, _ = train(lambda *four: squared_loss(*four, BETA))
target = 1 / (2 * BETA)

gaps = {"DPO": learned_ratios, "IPO": log_ratios(ipo, learned)}
gaps = {name: chosen - rejected for name, (chosen, rejected) in gaps.items()}  # h, (N,)
figure = plots.figure("Where the learned pairs end up", "h, nats", "pairs")
for name, h in gaps.items():
    figure.add_histogram(
        x=h.tolist(),
        name=name,
        xbins={"size": 0.5},
        opacity=0.6,
        marker_color=plots.COLOURS["dpo" if name == "DPO" else "reward"],
    )
figure.update_layout(barmode="overlay")
figure.add_vline(x=target, line_dash="dot", annotation_text="1/(2β)")
display(figure)
spread = pd.DataFrame(
    {
        name: {
            "mean h": h.mean().item(),
            "standard deviation": h.std().item(),
            "largest": h.max().item(),
            "share beyond twice the target": (h > 2 * target).float().mean().item(),
            "share in the right order": (h > 0).float().mean().item(),
        }
        for name, h in gaps.items()
    }
).T
print(f"the target 1/(2β) is {target:g} nats")
spread.round(2)

# %% tags=["hidden-test"]
assert all(h.isfinite().all() for h in gaps.values())
if not fast:
    assert spread.loc["IPO", "standard deviation"] < spread.loc["DPO", "standard deviation"]

# %% [markdown] task="why-a-target" points=2
# **Question 5** (2 points). How do the two histograms differ, and which part of each formula makes the
# difference? What happens to IPO's histogram if β is halved?
#
# ### BEGIN SOLUTION
# DPO's pairs are spread more widely, with a long tail to the right. Its gradient by $h$ is
# $-\beta\,\sigma(-u)$, which is smaller for a pair that is far in the right order but never 0 and never
# changes its sign: nothing pulls back. IPO's gradient is $2(h - 1/(2\beta))$: 0 at the target and
# positive beyond it, so an easy pair that has overshot is pulled back and the pairs gather nearer to
# each other.
#
# Half the β doubles the target $1/(2\beta)$: the histogram moves to the right, and the policy away from
# the reference. So in both losses a small β means a loose tie, but in IPO it says *how far*, also when
# the labels never contradict each other. (The mean of h need not lie exactly on the target: few steps
# leave it short of it, and so do pairs that contradict each other.)
# ### END SOLUTION

# %% [markdown]
# ## Task 6 · cDPO: labels that may be wrong
#
# *Difficulty 2 of 5 · about 15 minutes · 4 points*
#
# If a share ε of the labels is wrong, the cross-entropy that expects this is (Mitchell 2023)
#
# $$\mathcal{L}_{\text{cDPO}} = \frac1B\sum_{\text{pairs}}\big[-(1-\varepsilon)\log\sigma(u) -
# \varepsilon\log\sigma(-u)\big]$$
#
# Write `cdpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0)`.
#
# * arguments as in task 2; `label_smoothing` is ε, at least 0 and below one half; with ε = 0 this is
#   DPO's loss;
# * the result has shape (): the mean over the pairs; finite also where $|u|$ is $10^4$. No gradient
#   reaches the reference.
#
# <details><summary>A hint</summary>
#
# Two terms like the one of task 2. Mix the losses, not the probabilities.
# </details>


# %% task="cdpo-loss"
def cdpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    ### BEGIN SOLUTION
    u = beta * ((chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach()))
    as_labelled = -F.logsigmoid(u)
    other_way = -F.logsigmoid(-u)
    return ((1 - label_smoothing) * as_labelled + label_smoothing * other_way).mean()
    ### END SOLUTION


# %% task="cdpo-loss" points=4
check.cdpo_loss(cdpo_loss)

# %% tags=["hidden-test", "solution-only"]
assert check.cdpo_loss(cdpo_loss).passed

# %% [markdown]
# ### Experiment: three labels in ten swapped
#
# The same pairs, but with the labels of 30% of them swapped at random, and twice the learning rate:
# with the noise the policy has to be pushed before it takes the wrong labels in. Once with ε = 0, which
# is DPO, and once with ε = 0.3. Note down before you run it: **will cDPO put the swapped pairs into
# their true order?**

# %%
my_guess = "yes"  # or "no"

# %% tags=["hide-input"]
# @title The course's own function for task 6


def course_cdpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing=0.0):
    four = (chosen, rejected, ref_chosen, ref_rejected)
    return objectives.dpo_loss(*four, beta=beta, label_smoothing=label_smoothing)


# %%
NOISE = 0.3
smoothed_loss = check.use(cdpo_loss, otherwise=course_cdpo_loss)
chance = torch.rand(len(learned_pairs), generator=torch.Generator().manual_seed(world.seed + 1))
is_swapped = chance < NOISE  # (N,)

rows, margins = {}, {}
for epsilon in (0.0, NOISE):
    name = f"ε = {epsilon:g}"
    policy, _ = train(
        lambda *four, e=epsilon: smoothed_loss(*four, BETA, label_smoothing=e),
        learning_rate=1e-3,
        wrong=is_swapped.split(16),
    )
    chosen, rejected = log_ratios(policy, learned)  # in the true order
    u = BETA * (chosen - rejected)
    margins[name] = torch.where(is_swapped, -u, u)  # as the labels say it
    found = world.evaluate(policy, n=None if fast else 192, reference=sft)
    clean = log_ratios(policy, held_out)
    rows[name] = {
        "kept pairs in their true order": (u[~is_swapped] > 0).float().mean().item(),
        "swapped pairs in their true order": (u[is_swapped] > 0).float().mean().item(),
        "mean margin towards the label": margins[name].mean().item(),
        "held-out accuracy": objectives.reward_accuracy(*clean).item(),
        "KL from SFT": found.kl.mean,
        "gold": found.mean,
        "gold, 95% interval": "[{:+.2f}, {:+.2f}]".format(*found.interval),
    }
noisy = pd.DataFrame(rows)

# %% tags=["hide-input"]
# @title Drawn, and as a table
no_pull = math.log((1 - NOISE) / NOISE)  # where the gradient of cDPO changes its sign
figure = plots.figure("Margins towards the label, after training on noisy labels", "u", "pairs")
for i, (name, u) in enumerate(margins.items()):
    figure.add_histogram(
        x=u.tolist(), name=name, xbins={"size": 0.25}, opacity=0.6, marker_color=plots.colour(2 + i)
    )
figure.update_layout(barmode="overlay")
figure.add_vline(x=no_pull, line_dash="dot", annotation_text="log((1−ε)/ε)")
display(figure)
print(f"You guessed that cDPO puts the swapped pairs into their true order: {my_guess}.")
noisy.map(lambda x: x if isinstance(x, str) else f"{x:.2f}")

# %% tags=["hidden-test"]
assert list(noisy.columns) == ["ε = 0", "ε = 0.3"]
if not fast:
    means = noisy.loc["mean margin towards the label"]
    assert means["ε = 0.3"] < means["ε = 0"]
    assert noisy.loc["KL from SFT", "ε = 0.3"] < noisy.loc["KL from SFT", "ε = 0"]

# %% [markdown] task="what-cdpo-does" points=2
# **Question 6** (2 points). Does cDPO find out which labels are wrong? Say from the table and the
# histogram what it does instead, and why that helps. At which margin does its push on a pair end?
#
# ### BEGIN SOLUTION
# It does not find them: look at the share of swapped pairs in their true order. Every pair has the same
# ε, a swapped one and a right one, and given enough passes both losses learn the labels as they stand.
#
# What differs is how far each pair is pushed. The gradient by $u$ is $-(\sigma(-u) - \varepsilon)$: it
# is 0 at $u = \log\frac{1-\varepsilon}{\varepsilon}$, the dotted line, and beyond it the loss pulls
# back. So the margins gather around that line in place of growing, no single label, right or wrong, can
# drag the policy far, and the KL from SFT stays smaller, which is what spares the quality of the
# answers: compare the two columns of KL and gold, with gold's intervals in mind. The price is that
# right labels are held back as well: look at the held-out accuracy, which does not gain.
# ### END SOLUTION

# %% [markdown]
# **Hand in** this notebook when the checks say *passed* and the questions have their answers.
# Lesson 08 takes up noisy labels again, with more of them.
