# %% [markdown] seconds=60
# # Exercises 04 · PPO with a KL penalty
#
# Six tasks that belong to lesson 04: five pieces of PPO, and a look at curves that have gone wrong. For
# each one: write the function, run the check below it until it says *passed*, then run the small
# experiment, which trains with **your** function inside the course's PPO trainer.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.
#
# Everywhere: B answers of up to C tokens, padded on the **right**, and `mask` (B, C), boolean, true on the
# answer's tokens (the end token included) and false on padding.

# %% tags=["setup", "hide-input"]

# %%
import contextlib
import dataclasses
from unittest import mock

import pandas as pd
import torch

from course_utils import Lab, check, objectives, plots
from course_utils.training.ppo import PPOTrainer, advantages, rollout, update
from course_utils.training.ppo import trainer as trainer_module

lab = Lab.open()
world = lab.world  # tier tiny: the small universe, whatever the machine
sft, reward_model = world.sft(), world.reward_model()
asked = world.prompts("train", 500)

# %% [markdown]
# ## Task 1 · Three estimates of the KL
#
# *Difficulty 1 of 5 · about 10 minutes · 3 points*
#
# The tokens are drawn from the policy. With $d = \log \pi(y_t) - \log \pi_{\text{ref}}(y_t)$
#
# $$k_1 = d \qquad\qquad k_2 = \tfrac{1}{2} d^2 \qquad\qquad k_3 = e^{-d} - 1 + d$$
#
# Write `kl_estimate(logprobs, ref_logprobs, kind)`.
#
# * `logprobs`, `ref_logprobs`: log-probabilities of the same tokens, both (B, C) or both of any other
#   shape; `kind` is `"k1"`, `"k2"` or `"k3"`;
# * the result has the shape of the inputs, an estimate for each token, and can be differentiated by
#   `logprobs`;
# * inputs may be bfloat16; compute and return float32 then;
# * $k_2$ and $k_3$ are never negative, and right to two digits, even where d is a ten-thousandth in
#   float32. No clamp is asked for.
#
# <details><summary>A hint</summary>
#
# For a small d, exp(-d) is very near 1, and subtracting 1 leaves the rounding error. `torch` has a
# function that computes the difference without making the 1 first.
# </details>


# %% task="kl-estimate"
def kl_estimate(logprobs, ref_logprobs, kind):
    ### BEGIN SOLUTION
    d = logprobs.float() - ref_logprobs.float()
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    return torch.expm1(-d) + d
    ### END SOLUTION


# %% task="kl-estimate" points=3
check.kl_estimate(kl_estimate)

# %% tags=["hidden-test", "solution-only"]
assert check.kl_estimate(kl_estimate).passed

# %% [markdown]
# ### Your estimate as a loss
#
# Suppose somebody puts the mean estimate into the *loss* to pull a policy back to its reference. The
# policy here is the SFT model's distribution of the first token of an answer, for a few dozen prompts,
# its logits free to move; the reference is the base model's. Each step draws tokens from the policy and
# descends the mean of your estimate. All three estimate the same number. Which of them pulls?

# %%
from course_utils.generation import encode_prompts

mine = check.use(kl_estimate, otherwise=objectives.kl_estimate)


@torch.no_grad()
def first_logits(model, prompts):
    """Logits of the first token of an answer: (N, V)."""
    batch = encode_prompts(world.tokenizer, prompts).to(model.device)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = model(batch.input_ids, batch.attention_mask, position_ids=positions).logits
    return logits[:, -1].float()


start, reference = (first_logits(m, asked[:32]) for m in (sft, world.base()))
pulled = {}
for kind in ("k1", "k2", "k3"):
    torch.manual_seed(0)
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=10.0)
    pulled[kind] = []
    for _ in range(20 if world.tier.is_fast else 60):
        log_pi = logits.log_softmax(-1)  # (N, V)
        tokens = torch.multinomial(log_pi.detach().exp(), 8, replacement=True)  # (N, 8)
        estimate = mine(log_pi.gather(1, tokens), reference.log_softmax(-1).gather(1, tokens), kind)
        optimizer.zero_grad()
        estimate.mean().backward()
        optimizer.step()
        pulled[kind].append(float(objectives.exact_kl(logits.detach(), reference).mean()))

# %% tags=["hide-input"]
# @title The exact KL while the mean of each estimate is descended
figure = plots.figure("An estimate as a loss", "step", "exact KL(π ‖ π_ref), nats")
for (kind, curve), colour in zip(pulled.items(), ("ppo_low_beta", "sft", "dpo"), strict=True):
    plots.line(figure, range(1, len(curve) + 1), curve, kind, plots.COLOURS[colour])
figure.update_yaxes(rangemode="tozero")

# %% tags=["hidden-test"]
assert all(curve[0] > 0 for curve in pulled.values())
if not world.tier.is_fast:
    assert pulled["k2"][-1] < 0.8 * pulled["k2"][0]
    assert pulled["k3"][-1] < 0.8 * pulled["k3"][0]
    assert pulled["k1"][-1] > 0.9 * pulled["k1"][0]

# %% [markdown] task="why-k1" points=1
# **Question 1 (1 point, graded by a person).** Why does the loss made of $k_1$ not pull, although $k_1$ is
# right on average? And: a single token's $k_1$ may be below 0. When is a logged mean of $k_1$ below 0
# harmless, and when is it an alarm?
#
# ### BEGIN SOLUTION
# The gradient of the mean of $k_1$ is the mean of $\nabla \log \pi$ over samples of $\pi$, and
# $\sum \pi \nabla \log \pi = \nabla \sum \pi = \nabla 1 = 0$: only noise is left, which is why its curve
# does not come down like the other two. (It depends on π twice, in the sampling and in the logarithm,
# and a loss differentiates only the second. In the reward, $k_1$ multiplies $\nabla \log \pi$ and
# works.)
#
# The expectation of $k_1$ is the KL and cannot be negative, so a mean slightly below 0 is sampling noise
# as long as the true KL is near 0: few answers, the first steps. A mean clearly below 0, or one that
# falls and falls, cannot be noise: the sign is turned round, or the tokens were not drawn from the
# distribution that is scored.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · What every token earns
#
# *Difficulty 2 of 5 · about 15 minutes · 3 points*
#
# $$r_t = -\beta \big(\log \pi(a_t \mid s_t) - \log \pi_{\text{ref}}(a_t \mid s_t)\big) \;+\;
# \begin{cases} r_\phi(x, y) & t \text{ is the last token of the answer} \\ 0 & \text{else} \end{cases}$$
#
# Write `token_rewards(logprobs, ref_logprobs, scores, mask, beta)`.
#
# * `logprobs`, `ref_logprobs` (B, C); `scores` (B,), one for each answer; `mask` (B, C) boolean, at least
#   one token in every row; `beta` ≥ 0, a number;
# * the result is (B, C), exactly 0 on padding. There the log-probabilities may be anything, also NaN or
#   infinite;
# * rewards are plain numbers: the result carries no gradient. The arguments stay as they are.
#
# <details><summary>A hint</summary>
#
# The last token's column follows from the number of tokens in the row. `0 * nan` is `nan`, so
# multiplying by the mask is not enough: `torch.where` or `masked_fill` *replace*.
# </details>


# %% task="token-rewards"
def token_rewards(logprobs, ref_logprobs, scores, mask, beta):
    ### BEGIN SOLUTION
    with torch.no_grad():
        d = (logprobs - ref_logprobs).masked_fill(~mask, 0.0)
        rewards = -beta * d
        last = mask.sum(dim=1) - 1  # (B,)
        rewards[torch.arange(len(rewards)), last] += scores
        return rewards
    ### END SOLUTION


# %% task="token-rewards" points=3
check.token_rewards(token_rewards)

# %% tags=["hidden-test", "solution-only"]
assert check.token_rewards(token_rewards).passed

# %% [markdown]
# ### Your rewards in a real step
#
# From here on your functions go into the course's trainer. The next cell holds the plumbing: the
# library's versions with your signatures, and a context in which the trainer computes with others.

# %% tags=["hide-input"]
# @title Plumbing: other functions inside the trainer
library_rewards = objectives.per_token_rewards


def library_gae(rewards, values, mask, gamma, lam):
    return tuple(objectives.gae(rewards, values, mask, gamma, lam))


def library_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    tokens = max(int(mask.sum()), 1)
    return objectives.ppo_policy_loss(
        logprobs, old_logprobs, advantages, mask, clip, denominator=tokens
    ).loss


@contextlib.contextmanager
def inside_the_trainer(rewards=library_rewards, gae=library_gae, loss=library_loss):
    """PPOTrainer computes with these functions while the block runs."""

    def as_advantages(r, values, mask, gamma, lam, after=None):
        return objectives.Advantages(*gae(r, values, mask, gamma, lam))

    def as_policy_loss(logprobs, old, adv, mask, clip, dual_clip=None, denominator=None):
        # the trainer's minibatch comes in parts: a part's mean weighs as its share of the tokens
        share = mask.sum() / denominator
        known = objectives.ppo_policy_loss(logprobs, old, adv, mask, clip, denominator=denominator)
        return objectives.LossStats(loss(logprobs, old, adv, mask, clip) * share, known.stats)

    with (
        mock.patch.object(advantages, "per_token_rewards", rewards),
        mock.patch.object(advantages, "gae", as_advantages),
        mock.patch.object(update, "ppo_policy_loss", as_policy_loss),
    ):
        yield


def practise(steps, change=None, reference=None, **settings):
    """A short run of PPO from the SFT model: its rows, and the answers of its first and last step."""
    short = {"steps": steps, "rollouts_per_step": 32}
    short["learning_rate"] = 1.5 * world.settings.ppo.learning_rate
    if world.tier.is_fast:  # COURSE_FAST=1: only to see that everything runs
        short |= {"steps": min(steps, 2), "rollouts_per_step": 16}
        settings["epochs"] = 1
    config = dataclasses.replace(world.settings.ppo, **{**short, **settings})
    trainer = PPOTrainer(
        world.sft(), reward_model, world.tokenizer, asked, config, reference=reference
    )
    if change is not None:
        change(trainer)
    done = [(step.stats, step.rollouts) for step in trainer]
    return [stats for stats, _ in done], done[0][1], done[-1][1]


# %% [markdown]
# One step of the trainer, with your rewards. The reference here is the *base* model, so that the policy,
# the SFT model, is some way off from the start. One answer of the step, token by token, and its bill:

# %%
mine = check.use(token_rewards, otherwise=library_rewards)
with inside_the_trainer(rewards=mine):
    _, batch, _ = practise(1, reference=world.base())

lengths = batch.mask.sum(1)  # (B,)
row = int((lengths - 14).abs().argmin())  # an answer of about 14 tokens
answer = batch.rows(world.tokenizer)[row]
earned = batch.rewards[row, : lengths[row]].tolist()
beta = world.settings.ppo.beta
paid = beta * sum(answer["kl"])
print(answer["prompt"], "→", answer["completion"])
print(f"score {answer['score']:+.3f} - β KL {paid:+.3f} = {answer['score'] - paid:+.3f}")
print(f"sum of your rewards            = {sum(earned):+.3f}")

# %% tags=["hide-input"]
# @title The rewards of its tokens
figure = plots.figure("What every token earned", "", "reward")
plots.bars(
    figure,
    [f"{t}: {token}" for t, token in enumerate(answer["tokens"], 1)],
    earned,
    [plots.COLOURS["reward" if t == len(earned) else "sft"] for t in range(1, len(earned) + 1)],
)

# %% tags=["hidden-test"]
cut = 0.0 if answer["ended"] else world.settings.ppo.missing_eos_penalty
assert abs(sum(earned) - (answer["score"] - cut - paid)) < 1e-3
assert (batch.rewards[~batch.mask] == 0).all()

# %% [markdown] task="why-the-last-token" points=1
# **Question 2 (1 point, graded by a person).** A trainer puts the score one column after the last real
# token, where padding begins. Its shapes all fit and it trains. Name two things that go wrong, one of
# them for the answers that fill all C columns.
#
# ### BEGIN SOLUTION
# With a correct mask the column after the end counts for nothing: GAE starts at the last real token, so
# the score is lost, and the policy learns from the KL penalty alone. If the mask is made one longer to
# rescue it, the policy and the critic are trained on a token that was never chosen, and the end token,
# the decision to stop here, gets the score only through the value of that extra place. An answer that
# fills all C columns has no place after it: the score is dropped, or raises an error, or is clamped back
# onto the last token, so that cut answers are scored by another rule than the finished ones.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · Advantages
#
# *Difficulty 3 of 5 · about 25 minutes · 5 points*
#
# $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad \hat A_t = \delta_t + \gamma \lambda \hat A_{t+1},
# \qquad R_t = \hat A_t + V(s_t)$$
#
# Write `gae(rewards, values, mask, gamma, lam)`.
#
# * `rewards`, `values`, `mask` (B, C); `values` holds $V(s_t)$, the value *before* token t; `gamma` and
#   `lam` are numbers from 0 to 1;
# * it returns a pair `(advantages, returns)`, both (B, C) and both exactly 0 on padding; the advantages
#   are not whitened;
# * after an answer's last real token $V$ and $\hat A$ are 0: the answer is over;
# * rewards and values on padding may be anything, also NaN, and must not matter. The arguments stay
#   as they are.
#
# <details><summary>A hint</summary>
#
# Put 0 where the mask is false, in a copy of both inputs, before anything else. Then go through the
# columns from the last to the first with one loop for all rows at once.
# </details>


# %% task="gae"
def gae(rewards, values, mask, gamma, lam):
    ### BEGIN SOLUTION
    rewards = rewards.masked_fill(~mask, 0.0)
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])  # (B,) Â_{t+1}, V(s_{t+1})
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
        advantages[:, t] = advantage  # 0 on padding: all that went in is 0 there
    return advantages, advantages + values
    ### END SOLUTION


# %% task="gae" points=5
check.gae(gae)

# %% tags=["hidden-test", "solution-only"]
assert check.gae(gae).passed

# %% [markdown]
# ### How far back does the news travel?
#
# A short run of PPO with your advantages. Then the answers of its first step (where the critic still says
# 0 everywhere) and of its last one again, with four values of λ: how large is the advantage of a token,
# by its distance from the end of the answer, where the score stands?

# %%
mine = check.use(gae, otherwise=library_gae)
with inside_the_trainer(gae=mine):
    _, first_batch, last_batch = practise(8)


def by_distance(batch, lam, far=12):
    """Mean |Â| of the tokens that are 0, 1, … far - 1 tokens before the end."""
    found, _ = mine(batch.rewards, batch.values, batch.mask, 1.0, lam)  # (B, C)
    position = torch.arange(found.shape[1], device=found.device)
    distance = batch.mask.sum(1, keepdim=True) - 1 - position  # (B, C), negative on padding
    return [float(found[distance == k].abs().mean()) for k in range(far)]


lambdas = (0.0, 0.5, 0.95, 1.0)
travelled = {
    name: {lam: by_distance(batch, lam) for lam in lambdas}
    for name, batch in (("first step", first_batch), ("last step", last_batch))
}
pd.DataFrame(
    {
        f"λ = {lam:g}": {
            name: f"{curves[lam][10] / curves[lam][0]:.0%}" for name, curves in travelled.items()
        }
        for lam in lambdas
    }
).style.set_caption(
    "size of the advantage 10 tokens before the end, as a share of the last token's"
)

# %% tags=["hide-input"]
# @title By distance from the end
from plotly.subplots import make_subplots

figure = make_subplots(1, 2, subplot_titles=list(travelled), shared_yaxes=True)
for column, curves in enumerate(travelled.values(), 1):
    for number, (lam, curve) in enumerate(curves.items()):
        figure.add_scatter(
            x=list(range(len(curve))), y=curve, name=f"λ = {lam:g}", showlegend=column == 1,
            line={"color": plots.colour(number), "width": 2.5}, row=1, col=column,
        )  # fmt: skip
figure.update_xaxes(title="tokens before the end", gridcolor="rgba(128,128,128,.25)")
figure.update_yaxes(gridcolor="rgba(128,128,128,.25)")
figure.update_yaxes(title="mean |Â|", col=1)
figure.update_layout(height=340, **plots.LOOK)

# %% tags=["hidden-test"]
at_first = travelled["first step"]
assert at_first[0.0][10] < 0.01 * at_first[0.0][0], "V = 0 and KL = 0: only the last token knows"
assert abs(at_first[1.0][10] / at_first[1.0][0] - 1) < 0.35
assert at_first[0.5][10] < at_first[0.95][10]

# %% [markdown] task="why-lambda" points=2
# **Question 3 (2 points, graded by a person).** Look at the first step. With λ = 0, what would the first
# update teach the policy, and what not? And what has changed at the last step, where λ = 0 is no longer
# blind? Say in one sentence what λ trades against what.
#
# ### BEGIN SOLUTION
# At the first step the value head says 0 everywhere and policy and reference are the same, so δ is 0
# everywhere except at the last token, where it is the score. With λ = 0 only the last token has an
# advantage: the update teaches when to stop, nothing about the words before, although they made the score.
# With λ = 0.95 the score travels back, losing 5% a token, and with λ = 1 each token gets it whole.
#
# At the last step the critic predicts the score from what has been written so far, so V changes where an
# answer turns good or bad, and δ there is the news. λ = 0 now gives credit in the middle of an answer too,
# as far as the critic is right. λ trades the bias of the critic (small λ believes it) against the noise of
# one drawn answer (large λ believes what really came).
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · The clipped loss
#
# *Difficulty 3 of 5 · about 20 minutes · 5 points*
#
# $$\mathcal{L} = -\frac{1}{n} \sum_{t\ \text{counts}} \min\big(r_t \hat A_t,\;
# \text{clip}(r_t,\, 1 - \varepsilon,\, 1 + \varepsilon)\, \hat A_t\big), \qquad
# r_t = \frac{\pi_\theta(a_t \mid s_t)}{\pi_{\text{old}}(a_t \mid s_t)}$$
#
# Write `clipped_loss(logprobs, old_logprobs, advantages, mask, clip=0.2)`.
#
# * all four tensors are (B, C); the result has shape (), to be *minimised*: the mean over the n tokens of
#   the batch that count, and 0 where none counts;
# * gradient flows into `logprobs` only. `old_logprobs` and `advantages` are constants, also if they happen
#   to carry a graph;
# * on padding all inputs may be anything, also NaN or infinite; neither the loss nor its gradient may
#   become NaN;
# * when something has gone wrong, a log-ratio can be ±200, and exp of that overflows: clamp the log-ratio
#   to ±20 first.
#
# <details><summary>A hint</summary>
#
# Before the first update of a step every ratio is 1. The *value* of the loss is then minus the mean
# advantage; what is its gradient by one token's log-probability? For padding: what `exp` never sees
# cannot spoil its gradient.
# </details>


# %% task="clipped-loss"
def clipped_loss(logprobs, old_logprobs, advantages, mask, clip=0.2):
    ### BEGIN SOLUTION
    log_ratio = (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0)
    ratio = log_ratio.clamp(-20, 20).exp()  # r_t, 1 on padding
    adv = advantages.detach().masked_fill(~mask, 0.0)
    objective = torch.min(ratio * adv, ratio.clamp(1 - clip, 1 + clip) * adv)
    return -objective.sum() / mask.sum().clamp(min=1)
    ### END SOLUTION


# %% task="clipped-loss" points=5
check.clipped_loss(clipped_loss)

# %% tags=["hidden-test", "solution-only"]
assert check.clipped_loss(clipped_loss).passed

# %% [markdown]
# ### Your PPO
#
# Rewards, advantages and loss: together they are the whole of PPO's arithmetic. A few steps of the
# trainer with all three of yours, and the same steps with the library's:

# %%
yours = {
    "rewards": check.use(token_rewards, otherwise=library_rewards),
    "gae": check.use(gae, otherwise=library_gae),
    "loss": check.use(clipped_loss, otherwise=library_loss),
}
with inside_the_trainer(**yours):
    my_rows, _, _ = practise(4)
its_rows, _, _ = practise(4)
names = [
    "reward",
    "kl",
    "policy_loss",
    "value_loss",
    "ratio_first_max",
    "ratio_max",
    "clip_fraction",
]
pd.DataFrame({"yours, last step": my_rows[-1], "library, last step": its_rows[-1]}).loc[
    names
].astype(float).style.format("{:.5f}")

# %% tags=["hidden-test"]
assert abs(my_rows[0]["ratio_first_max"] - 1) < 1e-3
assert abs(my_rows[0]["policy_loss"] - its_rows[0]["policy_loss"]) < 1e-3
assert abs(my_rows[-1]["kl"] - its_rows[-1]["kl"]) < 0.05

# %% [markdown]
# Now the clip itself. Six passes over the answers of each step instead of two, with three ε: nearly
# none at all, the usual one, and so wide that it hardly ever cuts. How far has the policy run?

# %%
runs = {}
for clip in (0.01, 0.2, 1.0):
    with inside_the_trainer(**yours):
        runs[clip], _, _ = practise(3, epochs=6, clip=clip)
clips = pd.DataFrame(
    {
        f"ε = {clip:g}": {
            "tokens stopped by the clip": sum(r["clip_fraction"] for r in rows) / len(rows),
            "KL to the SFT model, last step": rows[-1]["kl"],
            "reward, last step": rows[-1]["reward"],
        }
        for clip, rows in runs.items()
    }
)
clips.style.format("{:.3f}")

# %% tags=["hidden-test"]
stopped = clips.loc["tokens stopped by the clip"]
assert stopped["ε = 0.01"] > stopped["ε = 0.2"] >= stopped["ε = 1"]

# %% [markdown] task="why-the-minimum" points=1
# **Question 4 (1 point, graded by a person).** Why the *smaller* of the two terms, and not simply the
# clipped one? Use a token with $\hat A_t < 0$ whose ratio has grown to 1.5. And why is a clip fraction of
# 0 in every step no good sign for ε, nor one of a half?
#
# ### BEGIN SOLUTION
# A bad token ($\hat A_t < 0$) has become 1.5 times as likely, by the updates for other tokens. The clipped
# term is constant there: no gradient, and the token would stay. The unclipped term $1.5 \hat A_t$ is
# smaller, the minimum takes it, and the token is still pushed down. So the clip only takes away the
# reward for going *further* in the direction that pays; a mistake can always be corrected.
#
# A fraction of 0 says that the clip never acts: then the same run would do without it, ε is too wide, or
# the learning rate so low that one could make more of the answers. A half says that most of the updates
# are spent on tokens without gradient: ε is too narrow, or the steps too many or too large (the table:
# the narrowest ε stops the most tokens).
# ### END SOLUTION

# %% [markdown]
# ## Task 5 · Who chooses β?
#
# *Difficulty 1 of 5 · about 10 minutes · 3 points*
#
# Ziegler et al. (2019) choose the KL and let β follow. After every step
#
# $$\beta \leftarrow \beta \left(1 + e \cdot \frac{n}{h}\right), \qquad
# e = \text{clip}\left(\frac{\text{KL}}{\text{target}} - 1,\; -0.2,\; 0.2\right)$$
#
# Write `next_beta(beta, kl, target, answers, horizon)`.
#
# * all arguments are plain numbers: `kl` the measured mean KL per answer, in nats (an estimate, so it can
#   be 0 or just below); `target` > 0 in nats per answer; `answers` = n, drawn since the last update;
#   `horizon` = h, in answers;
# * it returns the new β as a number.
#
# <details><summary>A hint</summary>
#
# Try it by hand at the target itself: nothing may change. Then at ten times the target: by how much may β
# change at most, if n / h is a tenth?
# </details>


# %% task="adaptive-kl"
def next_beta(beta, kl, target, answers, horizon):
    ### BEGIN SOLUTION
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * answers / horizon)
    ### END SOLUTION


# %% task="adaptive-kl" points=3
check.adaptive_kl(next_beta)

# %% tags=["hidden-test", "solution-only"]
assert check.adaptive_kl(next_beta).passed

# %% [markdown]
# ### Your controller at the wheel
#
# Two runs with your controller and a target of 0.5 nats. The only difference is the horizon: one hardly
# lets β move in so short a run, the other lets it move a lot.


# %%
def library_next_beta(beta, kl, target, answers, horizon):
    return objectives.AdaptiveKL(beta, target, horizon).update(kl, answers)


rule = check.use(next_beta, otherwise=library_next_beta)


@dataclasses.dataclass
class Controller:
    """What the trainer wants: a `beta`, and `update` after every step."""

    beta: float
    horizon: int
    target: float = 0.5

    def update(self, kl, samples):
        self.beta = float(rule(self.beta, kl, self.target, samples, self.horizon))
        return self.beta


steered = {}
for horizon in (10_000, 20):

    def steer(trainer, horizon=horizon):
        trainer.kl_control = Controller(0.1, horizon)

    steered[horizon], _, _ = practise(12, steer)
    print(
        f"horizon {horizon}: β {steered[horizon][0]['beta']:.3f} → {steered[horizon][-1]['beta']:.3f}"
    )

# %% tags=["hide-input"]
# @title KL and β, step by step
figure = make_subplots(1, 2, subplot_titles=["KL, nats an answer", "β"])
for (horizon, rows), colour in zip(steered.items(), ("sft", "ppo"), strict=True):
    for column, name in enumerate(("kl", "beta"), 1):
        figure.add_scatter(
            x=[r["step"] for r in rows], y=[r[name] for r in rows], name=f"horizon {horizon:,}",
            line={"color": plots.COLOURS[colour], "width": 2.5}, showlegend=column == 1, row=1,
            col=column,
        )  # fmt: skip
figure.add_hline(y=0.5, line={"dash": "dot", "color": "#888"}, row=1, col=1)
figure.update_xaxes(title="step", gridcolor="rgba(128,128,128,.25)")
figure.update_yaxes(rangemode="tozero", gridcolor="rgba(128,128,128,.25)")
figure.update_layout(height=320, **plots.LOOK)

# %% tags=["hidden-test"]
for horizon, rows in steered.items():
    for before, after in zip(rows, rows[1:], strict=False):
        drawn = 16 if world.tier.is_fast else 32
        expected = library_next_beta(before["beta"], before["kl"], 0.5, drawn, horizon)
        assert abs(after["beta"] - expected) < 1e-9

# %% [markdown] task="why-a-target" points=1
# **Question 5 (1 point, graded by a person).** In the run with the short horizon β falls first, although
# the KL is about to rise far beyond the target. Why, and what does that do to the KL after it? Why does one
# nevertheless rather hand a *target* from one reward model to the next than a β?
#
# ### BEGIN SOLUTION
# The policy starts as its own reference, so the KL is 0 and below any target: the controller lowers β
# in the very steps in which the policy begins to move. β comes back up only when the KL has passed
# the target, so the KL overshoots: the controller acts late, and the shorter the horizon, the larger the
# swings it can make. The long horizon hardly moves β at all in so few steps.
#
# A β is an exchange rate between a reward model's units and nats: with a reward model whose scores are
# twice as wide, the same β lets the policy go further. A target is in nats and means the same distance
# for each reward model; the controller finds the β that goes with it.
# ### END SOLUTION

# %% [markdown]
# ## Task 6 · Which mistake made these curves?
#
# *Difficulty 3 of 5 · about 25 minutes · 4 points*
#
# A run's log says more about a mistake than its code. Write `diagnose(log)`: `log` is a dict, the name
# of a column -> a list of floats, one for each step; it returns one of these six strings.
#
# | answer | what was done | the sign in the log |
# |---|---|---|
# | `"temperature"` | sampled at one temperature and scored at another | `ratio_first_max`, the largest ratio *before* the step's first update, is above 1.2 from the first row on |
# | `"mask"` | no mask after the end token | `kl` is above 10 nats in the first row already, where the policy *is* the reference |
# | `"sign"` | the KL's sign turned round | the mean of `kl` is below -0.5 |
# | `"learning rate"` | learning rate 20 times too high | `kl` is 0 in the first row, but above 10 nats at some step among the first five |
# | `"per token"` | the controller of an adaptive β is fed the KL per token, not per answer | `beta` falls even after rows in which `kl` was above `kl_target` |
# | `"healthy"` | none of these | none of these |
#
# * Columns that are always there: `kl` (nats per answer), `reward`, `beta`, `entropy`, `ratio_first_max`,
#   `clip_fraction`, `completion_tokens`, `eos_rate`. A log may have others too. `kl_target` (the same number in
#   every row) is there only if β is adaptive. A row's `beta` was used in that row; the row's `kl` then sets
#   the next row's. A log may have very few rows.
# * A run has one of these mistakes at most.
# * In a healthy log `ratio_first_max` may be as large as 1.05 (half precision) and a row's `kl` as low
#   as -0.3 (it is an estimate), on average not below -0.15; `kl` may climb to 20 nats and beyond where
#   nothing holds it (β = 0), but then slowly; entropy may fall, answers may all be cut at the limit
#   (`eos_rate` 0), and an adaptive β falls as long as the KL is below its target.
#
# <details><summary>A hint</summary>
#
# Most of the signs are one line each. The order of your questions matters: a run without a mask also has
# more than 10 nats among the first five rows. For the last one look at pairs of rows: `kl[t]`, and what
# became of `beta` from t to t + 1.
# </details>


# %% task="diagnose"
def diagnose(log):
    ### BEGIN SOLUTION
    kl, beta = log["kl"], log["beta"]
    if log["ratio_first_max"][0] > 1.1:
        return "temperature"
    if kl[0] > 5:
        return "mask"
    if sum(kl) / len(kl) < -0.3:
        return "sign"
    if max(kl[:5]) > 7:
        return "learning rate"
    if "kl_target" in log:
        far = [t for t in range(len(kl) - 1) if kl[t] > log["kl_target"][t]]
        if any(beta[t + 1] < beta[t] for t in far):
            return "per token"
    return "healthy"
    ### END SOLUTION


# %% task="diagnose" points=4
check.diagnose(diagnose)

# %% tags=["hidden-test", "solution-only"]
assert check.diagnose(diagnose).passed

# %% [markdown]
# ### Real runs, broken on purpose
#
# The check's curves are made up. These are not: five short runs of the trainer with the five mistakes
# in them, and two of your own from above. The folded cell breaks the trainer; run it without reading if
# you want to look at the curves first.

# %% tags=["hide-input"]
# @title Five ways to break a trainer
real_sample, real_kl = rollout.sample, trainer_module.sequence_kl


def hot_sample(*args, **options):
    """Samples at temperature 1, whatever the settings say."""
    return real_sample(*args, **{**options, "temperature": 1.0})


def endless_sample(*args, **options):
    """Everything after the end token counts too."""
    found = real_sample(*args, **options)
    return dataclasses.replace(found, completion_mask=torch.ones_like(found.completion_mask))


def turned_rewards(logprobs, ref_logprobs, scores, mask, beta):
    return library_rewards(ref_logprobs, logprobs, scores, mask, beta)


def turned_kl(rollouts):
    k1, k3 = real_kl(rollouts)
    return -k1, k3


class PerToken(Controller):
    """Divides the KL of an answer by about the number of its tokens."""

    def update(self, kl, samples):
        return super().update(kl / 18, samples)


def feed_per_token(trainer):
    trainer.kl_control = PerToken(0.1, 60, target=0.15)


rate = world.settings.ppo.learning_rate
real = {"your PPO": ("healthy", my_rows), "your controller": ("healthy", steered[20])}
with mock.patch.object(rollout, "sample", hot_sample):
    real["run A"] = "temperature", practise(3, temperature=0.7)[0]
with mock.patch.object(rollout, "sample", endless_sample):
    real["run B"] = "mask", practise(3)[0]
real["run C"] = "learning rate", practise(4, learning_rate=20 * rate)[0]
with (
    mock.patch.object(trainer_module, "sequence_kl", turned_kl),
    inside_the_trainer(rewards=turned_rewards),
):
    real["run D"] = "sign", practise(10, learning_rate=4 * rate)[0]
real["run E"] = "per token", practise(7, feed_per_token, learning_rate=2 * rate)[0]
COLUMNS = ["kl", "reward", "beta", "entropy", "ratio_first_max", "clip_fraction"]
COLUMNS += ["completion_tokens", "eos_rate"]
targets = {"your controller": 0.5, "run E": 0.15}
logs = {name: {c: [float(r[c]) for r in rows] for c in COLUMNS} for name, (_, rows) in real.items()}
for name, target in targets.items():
    logs[name]["kl_target"] = [target] * len(logs[name]["kl"])

# %% tags=["hide-input"]
# @title Their curves
shown = ("kl", "beta", "ratio_first_max", "reward")
titles = ("kl, cut at -20 and 40 nats", *shown[1:])
figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16)
for number, (name, log) in enumerate(logs.items()):
    for place, column in enumerate(shown):
        figure.add_scatter(
            x=list(range(1, len(log[column]) + 1)), y=log[column], name=name, legendgroup=name,
            line={"color": plots.colour(number), "width": 2.5}, showlegend=place == 0,
            mode="lines+markers", marker={"size": 5}, row=place // 2 + 1, col=place % 2 + 1,
        )  # fmt: skip
figure.update_xaxes(gridcolor="rgba(128,128,128,.25)")
figure.update_yaxes(gridcolor="rgba(128,128,128,.25)")
figure.update_yaxes(range=[-20, 40], row=1, col=1)  # one run is far above
figure.update_layout(height=560, **plots.LOOK)

# %% [markdown]
# What do *you* say, before your function does?


# %%
def no_diagnosis(log):
    return "not written yet"


said = check.use(diagnose, otherwise=no_diagnosis)
found = pd.DataFrame(
    {
        name: {
            "your diagnose": said(logs[name]),
            "what was done": truth,
            "kl, first row": logs[name]["kl"][0],
            "kl, last row": logs[name]["kl"][-1],
            "ratio, first row": logs[name]["ratio_first_max"][0],
        }
        for name, (truth, _) in real.items()
    }
).T
found

# %% tags=["hidden-test"]
assert abs(found.loc["run B", "kl, first row"]) > 10
assert found.loc["run A", "ratio, first row"] > 1.2
assert abs(found.loc["your PPO", "ratio, first row"] - 1) < 0.01

# %% tags=["hidden-test", "solution-only"]
if not world.tier.is_fast:
    assert (found["your diagnose"] == found["what was done"]).all(), found

# %% [markdown] task="why-curves" points=1
# **Question 6 (1 point, graded by a person).** Which of the five broken runs would the reward curve alone
# have given away, and after how many steps? Which two numbers would you look at before a long run even
# begins, and which of the mistakes do they show?
#
# ### BEGIN SOLUTION
# The reward hardly accuses anyone in time: in the runs above it is noisy, and rises in the runs with the
# sign or the controller wrong, since going away from the reference is what raises the reward model's
# score. Only the learning rate (and, later, the missing mask) brings it down, steps after the KL has said so.
#
# Before the first update policy and reference are the same model, so KL = 0 and every ratio is 1.
# The ratio shows the temperature (and top-k, dropout, left padding without positions); the KL shows the
# missing mask and a reference that is not the start. The other three only appear once the policy has moved:
# a KL below 0, a KL that jumps, a β that falls although the KL is above its target.
# ### END SOLUTION
