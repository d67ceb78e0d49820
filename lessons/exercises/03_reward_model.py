# %% [markdown] seconds=60
# # Exercises 03 · The reward model
#
# Five tasks that belong to lesson 03: the loss of a reward model, the token that its head reads, a
# zero and a unit for its scores, how often it is right and whether its odds come true, and a test
# for a taste for long answers. For each one: write the function, run the check below it until it
# says *passed*, then run the small experiment, which trains or measures with **your** function.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from course_utils import Lab, check, objectives, plots

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
pairs, heldout = world.pairs()  # (prompt, chosen, rejected), judged by the world's annotator
world

# %% [markdown]
# ## Task 1 · The loss of the reward model
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# Bradley and Terry: of two answers, the one with the higher score $r_\phi$ is preferred more often.
# Llama 2 adds a **margin** $m \ge 0$ where the annotator said *how much* better the chosen one is:
#
# $$\mathcal{L}_{RM} = -\frac{1}{B} \sum_{i=1}^{B} \log \sigma\big(r_\phi(y_A^{(i)}) -
# r_\phi(y_B^{(i)}) - m^{(i)}\big)$$
#
# Write `bradley_terry_loss(chosen, rejected, margin=None)`.
#
# * `chosen`, `rejected` and `margin` are (B,), one number for each pair; without a margin $m = 0$;
# * the result has shape (), the mean over the pairs, with a gradient to both scores;
# * scores may be as large as ±10,000: loss and gradient must stay finite and right;
# * scores may be bfloat16: compute in float32 (a difference of two bfloat16 numbers may need more
#   digits than bfloat16 has).
#
# <details><summary>A hint</summary>
#
# Far on the wrong side σ is 0 in floating point, but the loss is simply the distance. PyTorch has the
# logarithm of σ as one function; or write the loss as $\log(e^0 + e^{-d})$ and look for a function
# that adds in the logarithm.
# </details>


# %% task="bradley-terry-loss"
def bradley_terry_loss(chosen, rejected, margin=None):
    ### BEGIN SOLUTION
    difference = chosen.float() - rejected.float()  # (B,)
    if margin is not None:
        difference = difference - margin
    return -F.logsigmoid(difference).mean()
    ### END SOLUTION


# %% task="bradley-terry-loss" points=4
check.bradley_terry_loss(bradley_terry_loss)

# %% tags=["hidden-test", "solution-only"]
assert check.bradley_terry_loss(bradley_terry_loss).passed

# %% [markdown]
# ### Your loss trains a reward model
#
# A short loop: tokens of both answers in one batch, one score each, your loss. Two models from the
# same start, on the same pairs in the same order. One trains as usual, the other is told of *every*
# pair that the chosen answer is better by a margin of 2.

# %%
from course_utils.evaluation.preferences import text_of
from course_utils.training.reward_model import RewardModel, pad_right, sequence_classifier

loss_of = check.use(bradley_terry_loss, otherwise=objectives.bradley_terry_loss)
steps, batch = min(32, world.settings.reward.steps), 32
rate = world.settings.reward.learning_rate


def texts_of(rows):
    """Pairs -> prompts, chosen answers, rejected answers: three lists of strings."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return [[text_of(row[part], role) for row in rows] for part, role in roles.items()]


def train(prompts, chosen, rejected, margin=None):
    """A reward model that starts from the base model, and its loss at every step."""
    reward = RewardModel(sequence_classifier(world.base(), world.seed), world.tokenizer)
    better, worse = reward.encode(prompts, chosen), reward.encode(prompts, rejected)
    optimiser = torch.optim.AdamW(reward.model.parameters(), lr=rate)
    shuffled = torch.randperm(
        len(better), generator=torch.Generator().manual_seed(world.seed)
    ).tolist()
    losses = []
    for step in range(steps):
        some = [shuffled[(step * batch + i) % len(shuffled)] for i in range(batch)]
        ids, mask = pad_right([better[i] for i in some] + [worse[i] for i in some])  # (2B, T)
        scores = reward.raw_scores(ids.to(reward.device), mask.to(reward.device))  # (2B,)
        wanted = None if margin is None else torch.full_like(scores[:batch], margin)  # (B,)
        loss = loss_of(scores[:batch], scores[batch:], wanted)
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reward.model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return reward, losses


shown = texts_of(pairs.select(range(min(steps * batch, len(pairs)))))
models, curves = {}, {}
for name, margin in {"no margin": None, "margin 2": 2.0}.items():
    models[name], curves[name] = train(*shown, margin)

# %% tags=["hidden-test"]
assert all(len(curve) == steps for curve in curves.values())
assert abs(curves["no margin"][0] - 0.693) < 0.15, "at the start it knows nothing"
assert curves["margin 2"][0] > 1.5, "log(1 + e^2) = 2.13 where all scores are alike"


# %% tags=["hide-input"]
# @title Both models on held-out pairs
asked, preferred_answers, other_answers = texts_of(heldout)


def raw_scores(reward, answers, prompts=asked):
    """Scores before any normalisation: (N,)."""
    return reward.normalisation.inverse(torch.tensor(reward(prompts, answers)))


tones = {"no margin": plots.COLOURS["reward"], "margin 2": plots.COLOURS["ppo_low_beta"]}
figure = plots.figure("Your loss, on each new batch", x="optimizer step", y="loss", height=280)
for name, curve in curves.items():
    plots.line(figure, range(1, steps + 1), curve, name, tones[name])
display(figure)

both = {
    name: (raw_scores(m, preferred_answers), raw_scores(m, other_answers))
    for name, m in models.items()
}
rows = []
for name, (chosen, rejected) in both.items():
    apart = chosen - rejected  # (N,)
    rows.append(
        {
            "trained with": name,
            "right": (apart > 0).float().mean().item(),
            "how sure it is, on average": apart.abs().sigmoid().mean().item(),
            "typical distance of two scores": apart.abs().median().item(),
        }
    )
margins_table = pd.DataFrame(rows).set_index("trained with")
margins_table.style.format(dict.fromkeys(margins_table.columns[:2], "{:.0%}"), precision=2)

# %% tags=["hidden-test"]
assert len(asked) == len(heldout)
if not world.tier.is_fast:
    sure = margins_table["how sure it is, on average"]
    assert sure["margin 2"] > sure["no margin"] + 0.03
    assert margins_table["right"].min() > 0.5

# %% [markdown] task="why-margin" points=2
# **In words.** Both models saw the same labels. What did the margin do to their scores, and which of
# the two would you believe when it says "75 % sure"? When is a margin a good idea all the same?
#
# ### BEGIN SOLUTION
# With a margin the loss of a pair falls on until the scores lie about $m$ further apart, so the model
# stretches all its differences: in the table its typical distance is larger, and it is surer on
# average, while it is right about as often. Stretching differences teaches nothing about the order.
#
# $\sigma(r_A - r_B)$ is the probability of being preferred only for the model without a margin: that
# loss is the likelihood of the labels. The other one claims more than the labels say; on held-out
# pairs its sureness runs ahead of its accuracy.
#
# A margin makes sense where it differs from pair to pair because the annotators graded their
# preference ("much better", "slightly better"): then it carries information that the bare label does
# not. And one should not read the scores as odds afterwards.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · The token that the head reads
#
# *Difficulty 2 of 5 · about 15 minutes · 4 points*
#
# The scalar head is a vector $w$ of D numbers. The score of row $b$ is $w \cdot h_{b,t}$ at the
# **last real token** $t$ of that row, the only one that has seen the whole answer.
#
# Write `last_token_scores(hidden, input_ids, mask, weight)`.
#
# * `hidden` (B, T, D), `input_ids` (B, T), `weight` (D,);
# * `mask` (B, T) is 1 (or `True`) on real tokens; they stand side by side, and padding may be on the
#   right, on the left or on both sides, in one and the same batch;
# * the padding token **is** the EOS token, here with id 2; prompts end with EOS, answers too, unless
#   they were cut off;
# * the hidden states of padding may hold anything, NaN too;
# * a row without any real token scores 0;
# * the result has shape (B,), with a gradient to `hidden` and `weight`.
#
# <details><summary>A hint</summary>
#
# `mask.sum(1) - 1` is right as long as nothing stands before the first token. Give each column its
# number, and find the largest one that is real.
# </details>


# %% task="last-token-score"
def last_token_scores(hidden, input_ids, mask, weight):
    ### BEGIN SOLUTION
    columns = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    last = (columns * mask).argmax(dim=1)  # (B,)
    rows = torch.arange(len(hidden), device=hidden.device)
    scores = hidden[rows, last] @ weight  # (B, D) @ (D,)
    return torch.where(mask.any(dim=1), scores, 0.0)
    ### END SOLUTION


# %% task="last-token-score" points=4
check.last_token_score(last_token_scores)

# %% tags=["hidden-test", "solution-only"]
assert check.last_token_score(last_token_scores).passed

# %% [markdown]
# ### Four ways to read a trained model
#
# The course's reward model, trained on all pairs with the right token, scores the held-out pairs.
# Everything is padded with EOS, once on the right, once on the left. Beside your function: the rule
# "last token that is not EOS", and the last column.

# %% tags=["hide-input"]
# @title The course's function, in case yours has not passed, and the rules to compare with


def course_last_token_scores(hidden, input_ids, mask, weight):
    places = [max((t for t, m in enumerate(row) if m), default=-1) for row in mask.tolist()]
    picked = [h[t] @ weight if t >= 0 else h.new_zeros(()) for h, t in zip(hidden, places)]  # noqa: B905
    return torch.stack(picked)


course_last_token_scores.__name__ = "last_token_scores"
EOS = world.tokenizer.eos_token_id


def not_eos(hidden, input_ids, mask, weight):
    columns = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    last = (columns * (input_ids != EOS)).argmax(dim=1)
    return hidden[torch.arange(len(hidden)), last] @ weight


def last_column(hidden, input_ids, mask, weight):
    return hidden[:, -1] @ weight


# %%
from course_utils.encoding import pad_left

kept = world.reward_model()  # trained on all pairs, as `course run` does
head = kept.head.weight[0].detach()  # (D,)
rules = {
    "your function": check.use(last_token_scores, otherwise=course_last_token_scores),
    "last token that is not EOS": not_eos,
    "last column": last_column,
}


@torch.no_grad()
def states(answers, side):
    """Hidden states (N, T, D), ids and mask (N, T) of the held-out prompts' answers."""
    rows = kept.encode(asked, answers)
    batch = pad_left([r[:: -1 if side == "right" else 1] for r in rows], EOS)
    turn = (1,) if side == "right" else ()  # padding a mirrored row on the left: right padding
    ids = batch.input_ids.flip(turn).to(kept.device)
    mask = batch.attention_mask.flip(turn).to(kept.device)
    # Positions are counted from the first column; this model's (RoPE) mind distances only
    return kept.trunk(input_ids=ids, attention_mask=mask).last_hidden_state, ids, mask


rows, yours = [], {}
for side in ("right", "left"):
    read = [states(answers, side) for answers in (preferred_answers, other_answers)]
    for name, rule in rules.items():
        chosen, rejected = (rule(*state, head).cpu() for state in read)  # (N,), (N,)
        yours.setdefault(side, chosen)  # your function is the first of the rules
        rows.append(
            {
                "read at": name,
                "padding": side,
                "right on held-out pairs": (chosen > rejected).float().mean().item(),
                "mean score": torch.cat([chosen, rejected]).mean().item(),
            }
        )
table = (
    pd.DataFrame(rows).set_index(["read at", "padding"]).sort_index(level=0, sort_remaining=False)
)
table.style.format({"right on held-out pairs": "{:.1%}", "mean score": "{:+.3f}"})

# %% tags=["hidden-test"]
for scores in yours.values():  # on whichever side the padding is
    torch.testing.assert_close(scores, raw_scores(kept, preferred_answers), rtol=1e-3, atol=1e-3)
mean = table["mean score"]
assert abs(mean["last token that is not EOS", "right"] - mean["your function", "right"]) > 1e-3
assert abs(mean["last column", "left"] - mean["last column", "right"]) > 1e-3

# %% [markdown] task="why-last-token" points=2
# **In words.** Padding with EOS and reading the last token that is not EOS raises no error. Why may
# such a model even *train* well, and what can it never learn? Which of the three rules would you
# notice first, and by what?
#
# ### BEGIN SOLUTION
# The token before the end has seen all of the answer but its end, so if the same token is read in
# training and in use the head adapts to it, the loss falls, and accuracy looks normal. In the table
# the model was trained with one token and is read at another: its scores are on another level and
# are worse or no better, for the head never saw that state in training. The rule does not mind the
# side of the padding either, so that test does not unmask it.
#
# What it can never see is whether the answer *ended*: an answer that was cut off and one that was
# finished give the same state. A policy trained against it is not told to stop.
#
# The last column gives itself away: its scores change with the side of the padding (and so with what
# else is in the batch). The safe test is to score the same answer alone, padded left and padded
# right, and to ask for equal numbers; for the trap, to print the token that is read.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · A zero and a unit
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# Only differences of scores are learnt, so a reward model's zero and unit are accidents. PPO weighs
# the reward against a KL penalty and needs both. So one measures the SFT model's own answers, once,
# and keeps the two numbers:
#
# $$\tilde r = \frac{r - \mu}{s}, \qquad \mu = \frac{1}{n} \sum_{i \text{ counted}} r_i^{SFT}, \qquad
# s^2 = \frac{1}{n-1} \sum_{i \text{ counted}} \big(r_i^{SFT} - \mu\big)^2$$
#
# Write `normalise_rewards(rewards, reference, mask=None)`.
#
# * `rewards` has any shape, and so has the result; `reference` (N,) are the SFT answers' scores;
#   `mask` (N,) is 1 (or `True`) where a score counts (an empty answer, say, does not) and 0 elsewhere;
#   without a mask all count;
# * scores that do not count may be NaN;
# * if a single score counts, or their spread is under 1e-6 (equal but for rounding), subtract the mean
#   and divide by nothing;
# * if no score counts, the rewards come back as they are;
# * raw scores may lie around 30,000 with a spread of a few units: the same answers on another scale,
#   $a \cdot r + b$ with $a > 0$, must get the same rewards.
#
# <details><summary>A hint</summary>
#
# Select what counts first, then measure. `torch.std` divides by n - 1 unless told otherwise, and gives
# NaN for one number. A spread computed as mean(r²) - mean(r)² dies at 30,000.
# </details>


# %% task="reward-normalisation"
def normalise_rewards(rewards, reference, mask=None):
    ### BEGIN SOLUTION
    counted = reference if mask is None else reference[mask.bool()]
    counted = counted.double()
    if len(counted) == 0:
        return rewards
    mean = counted.mean()
    spread = counted.std() if len(counted) > 1 else 0.0
    if spread < 1e-6:
        spread = 1.0
    return ((rewards.double() - mean) / spread).float()
    ### END SOLUTION


# %% task="reward-normalisation" points=4
check.reward_normalisation(normalise_rewards)

# %% tags=["hidden-test", "solution-only"]
assert check.reward_normalisation(normalise_rewards).passed

# %% [markdown]
# ### Three models, one scale
#
# Three reward models score the same answers: those of the base model, of the SFT model, and good ones
# written for SFT. First raw, then with your function, where the SFT model's answers are the reference.


# %% tags=["hide-input"]
# @title The course's function, in case yours has not passed
def course_normalise_rewards(rewards, reference, mask=None):
    counted = reference if mask is None else reference[mask.bool()]
    return objectives.RewardNormalisation.fit(counted).apply(rewards)


course_normalise_rewards.__name__ = "normalise_rewards"

# %%
normalise = check.use(normalise_rewards, otherwise=course_normalise_rewards)

demonstrations = world.demonstrations("heldout", 24 if world.tier.is_fast else 96)
questions = [text_of(row["prompt"], "user") for row in demonstrations]
answered = {
    "base": world.generate(world.base(), questions),
    "SFT": world.generate(world.sft(), questions),
    "demonstrations": [text_of(row["completion"], "assistant") for row in demonstrations],
}
counts = torch.tensor([bool(answer.strip()) for answer in answered["SFT"]])  # (N,)

three = {"the course's": kept, **models}
raw, normal = {}, {}
for name, model in three.items():
    raw[name] = {who: raw_scores(model, said, questions) for who, said in answered.items()}
    reference = raw[name]["SFT"]
    normal[name] = {who: normalise(r, reference, counts) for who, r in raw[name].items()}

numbers = {"raw": raw, "normalised": normal}
means = pd.DataFrame(
    {
        (kind, who): {name: r[name][who].mean().item() for name in three}
        for kind, r in numbers.items()
        for who in answered
    }
)
means["raw", "spread of SFT"] = [raw[name]["SFT"][counts].std().item() for name in three]
means = means.sort_index(axis=1, level=0, sort_remaining=False, ascending=False)
means.style.format("{:+.2f}").set_caption("Mean reward of whose answers, by reward model")

# %% tags=["hide-input"]
# @title How widely the scores lie, drawn
for kind, r in numbers.items():
    figure = plots.figure(f"Scores of the SFT model's answers, {kind}", x="score", height=260)
    for name, tone in zip(three, (plots.COLOURS["sft"], *tones.values()), strict=True):
        drawn = {"name": name, "line_color": tone, "boxpoints": False, "showlegend": False}
        figure.add_box(x=r[name]["SFT"].tolist(), **drawn)
    display(figure)

# %% tags=["hidden-test"]
for name in three:
    scaled = normal[name]["SFT"][counts]
    assert abs(scaled.mean()) < 1e-3
    assert abs(scaled.std() - 1) < 1e-3
    moved = normalise(5 * raw[name]["base"] - 40, 5 * raw[name]["SFT"] - 40, counts)
    torch.testing.assert_close(moved, normal[name]["base"], rtol=1e-3, atol=1e-3)

# %% [markdown] task="why-normalise" points=2
# **In words.** Which numbers became comparable between the three models, and which stayed as they
# were? What would happen to PPO with a fixed β if you went from the model without a margin to the one
# with a margin and did not normalise? And what is lost?
#
# ### BEGIN SOLUTION
# After normalising, the SFT model's answers have mean 0 and spread 1 under all three models: +1 means
# "one standard deviation better than what the SFT model usually says", whoever judges. The order of
# any two answers by one model is as before, and so is its accuracy; disagreements between the models
# about who is better remain.
#
# PPO maximises reward - β KL. The model with a margin spreads its raw scores more widely, so the same
# β would weigh less against it: the policy would move further from the reference, as if β had been
# divided by the ratio of the spreads. A constant added to the scores would add a bonus or a penalty
# to every answer, which the value function has to learn first.
#
# What is lost are the odds: σ of a difference of normalised rewards is no probability any more; one
# has to keep $s$ and multiply by it.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · Right, and as sure as it says
#
# *Difficulty 3 of 5 · about 30 minutes · 5 points*
#
# Two functions. **Accuracy**: the share of pairs in which the chosen answer scores higher.
#
# Write `reward_accuracy(chosen, rejected)`: (N,) and (N,) scores, to a tensor of shape (). **A tie
# counts one half**, so that a model that says the same of everything is a coin.
#
# **Calibration**: when the model says "80 %", is it so four times in five? Its prediction is $P_i =
# \sigma(d_i)$, the probability that the *first* answer of a pair is preferred, with the margin $d_i =
# r(\text{first}) - r(\text{second})$. Sort the pairs into bins by $P$ and compare in each bin what was
# predicted with what came true, the expected calibration error (Naeini et al. 2015):
#
# $$\text{ECE} = \sum_{b \text{ not empty}} \frac{n_b}{N} \Big| \underset{i \in b}{\text{mean}}\;
# y_i - \underset{i \in b}{\text{mean}}\; P_i \Big|$$
#
# Write `expected_calibration_error(margins, preferred, bins=10)`.
#
# * `margins` (N,) are the $d_i$; `preferred` (N,) the $y_i$, integers: 1 where the first answer was
#   preferred, 0 where the second;
# * `bins` bins of equal width over [0, 1]: bin $b$ holds $b / \text{bins} \le P < (b + 1) /
#   \text{bins}$, and the last one $P = 1$ too; empty bins count nothing;
# * margins may be ±10,000, where P is exactly 0 or 1 in floating point;
# * the result has shape (), at least one pair is given.
#
# <details><summary>A hint</summary>
#
# `(P * bins).long()` is the bin of every pair but those with P = 1. The mean of nothing is NaN, so
# skip empty bins.
# </details>


# %% task="accuracy-and-calibration"
def reward_accuracy(chosen, rejected):
    ### BEGIN SOLUTION
    right = (chosen > rejected).float()
    tied = (chosen == rejected).float()
    return (right + tied / 2).mean()
    ### END SOLUTION


def expected_calibration_error(margins, preferred, bins=10):
    ### BEGIN SOLUTION
    said = torch.sigmoid(margins.float())  # (N,) P that the first is preferred
    came = preferred.float()
    place = (said * bins).long().clamp(max=bins - 1)  # (N,) its bin
    total = torch.zeros(())
    for b in range(bins):
        inside = place == b
        if inside.any():
            gap = (came[inside].mean() - said[inside].mean()).abs()
            total = total + inside.sum() / len(said) * gap
    return total
    ### END SOLUTION


# %% task="accuracy-and-calibration" points=5
check.accuracy_and_calibration(reward_accuracy, expected_calibration_error)

# %% tags=["hidden-test", "solution-only"]
assert check.accuracy_and_calibration(reward_accuracy, expected_calibration_error).passed

# %% [markdown]
# ### Do its odds come true?
#
# The two models of task 1 on the held-out pairs. Which answer of a pair comes first is drawn by lot,
# for a reward model must not know. The second plot multiplies all margins by a factor before they
# become probabilities.

# %% tags=["hide-input"]
# @title The course's functions, in case yours have not passed
from course_utils.evaluation import calibration


def course_calibration_error(margins, preferred, bins=10):
    return torch.tensor(calibration(margins, preferred, bins).ece)


course_calibration_error.__name__ = "expected_calibration_error"

# %%
accuracy = check.use(reward_accuracy, otherwise=objectives.reward_accuracy)
error = check.use(expected_calibration_error, otherwise=course_calibration_error)

first = torch.rand(len(heldout), generator=torch.Generator().manual_seed(1)) < 0.5  # chosen first?
side = torch.where(first, 1.0, -1.0)
margins = {name: side * (chosen - rejected) for name, (chosen, rejected) in both.items()}  # (N,)
came_true = first.long()
factors = [2 ** (k / 4) for k in range(-12, 9)]
errors = {name: [error(f * d, came_true).item() for f in factors] for name, d in margins.items()}

rows = {
    name: {
        "right": accuracy(*both[name]).item(),
        "right, all margins × 4": accuracy(4 * both[name][0], 4 * both[name][1]).item(),
        "calibration error": error(d, came_true).item(),
        "error, all margins × 4": error(4 * d, came_true).item(),
        "best factor": factors[min(range(len(factors)), key=errors[name].__getitem__)],
    }
    for name, d in margins.items()
}
calibrated = pd.DataFrame(rows).T
calibrated.style.format("{:.3f}").format("{:.1%}", subset=list(calibrated.columns[:2]))

# %% tags=["hide-input"]
# @title The odds, drawn
figure = plots.figure(
    "Do its odds come true?", x="what it said", y="how often it came true", height=320
)
plots.line(figure, [0, 1], [0, 1], "perfect", "#888888", line={"dash": "dot"})
for name, d in margins.items():
    found = [b for b in calibration(d, came_true).bins if b.count >= 5]
    said, came = [b.confidence for b in found], [b.accuracy for b in found]
    plots.line(figure, said, came, name, tones[name], mode="lines+markers")
display(figure.update_xaxes(tickformat=".0%").update_yaxes(tickformat=".0%"))

figure = plots.figure("Your calibration error", x="factor on all margins", y="error", height=280)
for name, values in errors.items():
    plots.line(figure, factors, values, name, tones[name])
places = {"tickvals": [1 / 8, 1 / 4, 1 / 2, 1, 2, 4], "ticktext": ["⅛", "¼", "½", "1", "2", "4"]}
display(figure.update_xaxes(type="log", **places).update_yaxes(rangemode="tozero"))
chance = [
    error(d, (torch.rand(len(d)) < d.sigmoid()).long()).item()
    for d in [margins["no margin"]]
    for _ in range(50)
]
Markdown(
    f"From {len(heldout)} pairs, even a judge whose every word comes true would show an error of about "
    f"{sum(chance) / len(chance):.3f}, by chance."
)

# %% tags=["hidden-test"]
assert (calibrated["right"] == calibrated["right, all margins × 4"]).all(), "order does not change"
assert all(0 <= e <= 1 for values in errors.values() for e in values)
if not world.tier.is_fast:
    assert calibrated.loc["margin 2", "calibration error"] > 0.05
    assert calibrated.loc["margin 2", "best factor"] < 1

# %% [markdown] task="why-calibration" points=2
# **In words.** Why does a factor on all margins change the calibration error and not the accuracy?
# Which factor would you give the model that was trained with a margin, and on which pairs would you
# choose it? Name one use of a reward model for which calibration matters, and one for which it does
# not.
#
# ### BEGIN SOLUTION
# Accuracy looks at the sign of a margin only, and a positive factor keeps all signs. The calibration
# error compares probabilities, and the factor moves all of them: above 1 away from one half, below 1
# towards it.
#
# The model with a margin is too sure, its curve is flatter than the diagonal. So a factor below 1, the
# place of its minimum in the second plot, repairs it (temperature scaling); chosen on pairs that were
# neither trained on nor used for the final report, for a minimum found on the test pairs flatters
# itself. No finer than chance allows: below the error of a perfect judge nothing can be told.
#
# It does not matter for best-of-n, which takes the highest score and so the order alone. It matters
# where probabilities are used as such: to throw out pairs on which the model is unsure, to weigh AI
# labels, to compare or average several reward models, or as a reward scale against β in PPO.
# ### END SOLUTION

# %% [markdown]
# ## Task 5 · A taste for length
#
# *Difficulty 3 of 5 · about 25 minutes · 4 points*
#
# Does a scorer like long answers because they are long? It is not enough to look whether longer
# answers score higher: they may be better, too. So explain the margin by both, at once:
#
# $$m_i \approx a \cdot q_i + b \cdot \ell_i, \qquad (\hat a, \hat b) = \underset{a, b}{\arg\min}
# \sum_i \big(m_i - a q_i - b \ell_i\big)^2$$
#
# For pair $i$ all three are differences, first answer minus second: $m_i$ of the scores, $q_i$ of the
# true quality, $\ell_i$ of the lengths in words. There is no intercept: with equal quality and length
# neither side is favoured, and so swapping the two answers of a pair changes nothing.
#
# Write `length_bias(margins, lengths, quality)` that returns $\hat b$, what one more word is worth to
# the scorer at equal quality.
#
# * `margins` (N,), `lengths` (N,) integers, `quality` (N,); the result has shape ();
# * where all of `quality` is 0, $\hat b$ is the slope of the margin on the length alone;
# * write $\tilde \ell$ for what is left of the lengths once quality has explained what it can:
#   $\tilde \ell = \ell - c \, q$ with the least-squares slope $c$. Where $\sum \tilde \ell^2 \le
#   10^{-6} \sum \ell^2$ (equal lengths, or lengths that follow quality exactly) nothing can be told,
#   and the result is 0.
#
# <details><summary>A hint</summary>
#
# By the theorem of Frisch, Waugh and Lovell $\hat b$ is the slope of $m$ on $\tilde \ell$ alone. The
# least-squares slope of y on x without an intercept is $\sum x y / \sum x^2$; use it twice. Integers
# do not multiply with floats in `@`: convert them.
# </details>


# %% task="length-bias"
def length_bias(margins, lengths, quality):
    ### BEGIN SOLUTION
    m, length, q = margins.double(), lengths.double(), quality.double()
    shared = (q @ length) / (q @ q) if q.any() else 0.0
    own = length - shared * q  # (N,) what quality does not explain
    if own @ own <= 1e-6 * (length @ length):
        return torch.zeros(())
    return (m @ own) / (own @ own)
    ### END SOLUTION


# %% task="length-bias" points=4
check.length_bias(length_bias)

# %% tags=["hidden-test", "solution-only"]
assert check.length_bias(length_bias).passed

# %% [markdown]
# ### An annotator with a habit
#
# The long-lover adds 2 gold points for every ten words. We let them judge the pairs of task 1 and
# train a reward model on their labels, with your loss again. Then your test is put to five scorers:
# the truth itself, the long-lover in person, and three reward models.


# %% tags=["hide-input"]
# @title The course's function, in case yours has not passed
def course_length_bias(margins, lengths, quality):
    if not lengths.any():
        return torch.zeros(())
    columns = torch.stack([quality.double(), lengths.double()], dim=1)  # (N, 2)
    return torch.linalg.lstsq(columns, margins.double()[:, None], driver="gelsd").solution[1, 0]


course_length_bias.__name__ = "length_bias"

# %%
from course_utils.world import Annotator

bias = check.use(length_bias, otherwise=course_length_bias)
habit = 2.0  # gold points for ten words
long_lover = Annotator(
    temperature=world.tier.annotator_temperature, length_bias=habit, seed=world.seed
)


def judged_by(annotator, prompts, chosen, rejected):
    """The same pairs, with this annotator's verdicts."""
    turned = [annotator.compare(*row) == 1 for row in zip(prompts, chosen, rejected, strict=True)]
    both_ways = [(b, a) if t else (a, b) for a, b, t in zip(chosen, rejected, turned, strict=True)]
    return prompts, [a for a, _ in both_ways], [b for _, b in both_ways]


fooled, _ = train(*judged_by(long_lover, *shown))


def differences(score):
    """score(prompt, answer) of the chosen minus that of the rejected, held-out pairs: (N,)."""
    rows = zip(asked, preferred_answers, other_answers, strict=True)
    return torch.tensor([float(score(p, a) - score(p, b)) for p, a, b in rows])


longer = differences(lambda _, answer: len(answer.split())).long()  # ℓ (N,) words
better = differences(lambda prompt, answer: world.gold(prompt, answer).total)  # q (N,) gold points
scorers = {"the truth": better, "the long-lover in person": differences(long_lover.utility)}
judges = {
    "model of the honest annotator": models["no margin"],
    "the course's model": kept,
    "model of the long-lover": fooled,
}
for name, model in judges.items():
    scorers[name] = raw_scores(model, preferred_answers) - raw_scores(model, other_answers)


def interval(m, resamples=200):
    """Half of a 95 % interval of ten words' worth, by drawing the pairs again."""
    g = torch.Generator().manual_seed(0)
    drawn = [torch.randint(len(m), (len(m),), generator=g) for _ in range(resamples)]
    found = torch.tensor([10 * float(bias(m[i], longer[i], better[i])) for i in drawn])
    low, high = found.quantile(torch.tensor([0.025, 0.975]))
    return (high - low).item() / 2


rows = {
    name: {
        "prefers the longer": (
            (m * longer > 0).sum() / (m * longer != 0).sum().clamp(min=1)
        ).item(),
        "ten words, quality ignored": 10 * float(bias(m, longer, 0 * better)),
        "ten words, quality equal": 10 * float(bias(m, longer, better)),
        "±": interval(m),
    }
    for name, m in scorers.items()
}
biases = pd.DataFrame(rows).T
biases.style.format("{:+.2f}").format("{:.0%}", subset=["prefers the longer"])

# %% tags=["hide-input"]
# @title Ten words' worth, drawn
figure = plots.figure("What are ten more words worth?", y="score, at equal quality", height=320)
figure.add_bar(
    x=list(biases.index),
    y=biases["ten words, quality equal"],
    error_y={"array": biases["±"], "color": "#888", "thickness": 1},
    marker_color=[plots.COLOURS[c] for c in ("gold", "ppo", "reward", "sft", "ppo_low_beta")],
)
figure

# %% tags=["hidden-test"]
equal = biases["ten words, quality equal"]
assert abs(equal["the truth"]) < 1e-3, "an unbiased scorer has no bias"
assert abs(equal["the long-lover in person"] - habit) < 1e-2, "a known habit is found"
if not world.tier.is_fast:
    assert equal["model of the long-lover"] > equal["model of the honest annotator"] + 0.5

# %% [markdown] task="why-length" points=2
# **In words.** Compare the three columns for the truth itself: which of them would have accused it
# wrongly? What did the reward model take over from the long-lover? And with real people, where no
# gold reward is known: what would you hold constant instead?
#
# ### BEGIN SOLUTION
# The truth goes by quality alone. The slope that ignores quality is not 0 for it, because length and
# quality go together a little in these pairs (here shorter answers tend to be better); the share of
# longer answers it prefers need not be one half for the same reason. Only at equal quality is it 0.
# The long-lover's 2 points come out exactly in the same way.
#
# The model of the long-lover has taken over the habit itself: ten words are worth more than a point
# of its scores, many intervals away from 0, while the honest annotator's model shows a small
# fraction of that, and rather a taste for brevity. Its units are log-odds of the choice, not gold points, so the number need not be 2.
#
# With real people quality has to be replaced by something measured another way: ratings by a second
# group with written rules, correctness checked against a reference, or pairs of one answer and its
# own padded version, where quality is equal by construction. One can also match or weigh pairs so
# that length no longer goes with the label.
# ### END SOLUTION
