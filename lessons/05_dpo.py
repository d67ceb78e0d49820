# %% [markdown] seconds=120
# # 05 · Direct preference optimisation
# ## Where did the reward model go?
#
# RLHF as you know it by now is three trainings and a loop that samples: SFT, a reward model, PPO.
# Then a paper of 2023 said: *your language model is secretly a reward model*. The comparisons can
# train the policy directly, with a loss that looks like a classifier's. In this notebook you will
#
# 1. **derive** that loss in five steps, each one checked with numbers,
# 2. write it in six lines and get TRL's value, and its gradient,
# 3. train with it, and be surprised by what happens to the *chosen* answers,
# 4. put DPO, PPO and best-of-n on **one axis of KL**,
# 5. push it too far, and find out what it costs.
#
# Tier tiny: about two minutes on two cores that have other work too. The first lesson that needs them also trains the SFT
# model, the reward model and PPO for comparison, once (about two minutes).

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

from course_utils import Lab

lab = Lab.open()
sft = lab.sft()  # what DPO starts from, and the reference that it is held to
train_pairs, heldout_pairs = lab.pairs()  # the very comparisons that trained the reward model

print(f"{len(train_pairs):,} pairs to learn from, {len(heldout_pairs):,} held out")
pair = train_pairs[0]
for part in ("prompt", "chosen", "rejected"):
    print(f"{part:>9}: {pair[part][-1]['content']}")

# %% tags=["hidden-test"]
assert set(train_pairs.column_names) >= {"prompt", "chosen", "rejected"}

# %% [markdown] slides="17"
# ## 1 · The claim
#
# The lecture says of DPO (Rafailov et al. 2023): *no RL loop, no reward model; it learns straight
# from preference data, and is **simpler and more stable** than PPO.*
#
# $$\mathcal{L}_{\text{DPO}}(\theta) = -\,\mathbb{E}_{(x,\,y_w,\,y_l)}\left[\log
# \frac{\exp\left(\beta \log \frac{\pi_\theta(y_w|x)}{\pi_{\text{ref}}(y_w|x)}\right)}
# {\exp\left(\beta \log \frac{\pi_\theta(y_w|x)}{\pi_{\text{ref}}(y_w|x)}\right) +
# \exp\left(\beta \log \frac{\pi_\theta(y_l|x)}{\pi_{\text{ref}}(y_l|x)}\right)}\right]$$
#
# $y_w$ is the chosen answer (*winner*), $y_l$ the rejected one (*loser*), $\pi_{\text{ref}}$ the SFT
# model, frozen. On the slide the leading **minus** is missing: without it one would *minimise* the
# probability that the chosen answer wins. We shall see the sign at work in a moment.
#
# **Your guess**, before you run on:

# %%
my_guess_chosen = "rises"  # log π(chosen answer) while DPO trains: "rises", "stays" or "falls"?
my_guess_better = "PPO"  # more true quality at the same distance from SFT: "DPO" or "PPO"?

# %% [markdown]
# ## 2 · The derivation, in five steps with numbers
#
# ### Step 1: what RLHF wants
#
# Whatever the algorithm, RLHF looks for the policy that solves
#
# $$\max_\pi\; \mathbb{E}_{y\sim\pi}\left[r(x,y)\right] - \beta\,\mathrm{KL}\left(\pi(\cdot|x)\,\|\,\pi_{\text{ref}}(\cdot|x)\right)$$
#
# Take one prompt and pretend that only four answers exist. Then a policy is four numbers, and the
# problem can be solved by brute force: gradient ascent on four logits.

# %%
import torch

torch.manual_seed(0)
ref = torch.tensor([0.50, 0.30, 0.15, 0.05])  # π_ref: what SFT says, and how often
r = torch.tensor([0.0, 1.0, 0.5, 2.0])  # r(x, y): how good each answer is
beta = 0.5


def objective(policy):
    """E_π[r] - β KL(π ‖ π_ref) of a policy over four answers."""
    return (policy * r).sum() - beta * (policy * (policy / ref).log()).sum()


logits = ref.log().clone().requires_grad_()
optimizer = torch.optim.Adam([logits], lr=0.05)
for _ in range(500):
    optimizer.zero_grad()
    (-objective(logits.softmax(0))).backward()
    optimizer.step()
by_ascent = logits.softmax(0).detach()
print("reference        ", ref.numpy().round(3))
print("found by ascent  ", by_ascent.numpy().round(3))

# %% [markdown]
# ### Step 2: the answer in closed form
#
# The optimum can be written down: tilt the reference by the reward, then normalise.
#
# $$\pi^*(y|x) = \frac{1}{Z(x)}\,\pi_{\text{ref}}(y|x)\,\exp\left(\tfrac{1}{\beta}\,r(x,y)\right)$$
#
# (Why: the objective is $-\beta\,\mathrm{KL}(\pi\,\|\,\pi^*) + \beta\log Z(x)$, and a KL is smallest,
# zero, when both are equal.)

# %%
tilted = ref * (r / beta).exp()
Z = tilted.sum()
optimum = tilted / Z
print("closed form      ", optimum.numpy().round(3))

torch.testing.assert_close(optimum, by_ascent, atol=2e-3, rtol=0)
torch.testing.assert_close(objective(optimum), beta * Z.log())

# %% [markdown]
# Nobody can compute $Z(x)$ for a language model: it is a sum over *all* answers there could be. That
# is why PPO samples and climbs. DPO takes the other way round.
#
# ### Step 3: read it backwards
#
# Solve the closed form for the reward. *Every* policy is the optimum of *some* reward:
#
# $$r(x,y) = \beta \log\frac{\pi^*(y|x)}{\pi_{\text{ref}}(y|x)} + \beta \log Z(x)$$

# %%
recovered = beta * (optimum / ref).log() + beta * Z.log()
print("reward           ", r.numpy())
print("recovered        ", recovered.numpy().round(3))
torch.testing.assert_close(recovered, r)

# %% [markdown]
# ### Step 4: comparisons cancel what cannot be computed
#
# People do not give rewards, they compare. In the Bradley-Terry model of lesson 03 only the
# *difference* of two rewards counts, and $\beta\log Z(x)$ is the same for both answers to one prompt:
#
# $$P(y_w \succ y_l) = \sigma\big(r(x,y_w) - r(x,y_l)\big) =
# \sigma\left(\beta\log\frac{\pi^*(y_w|x)}{\pi_{\text{ref}}(y_w|x)} -
# \beta\log\frac{\pi^*(y_l|x)}{\pi_{\text{ref}}(y_l|x)}\right)$$

# %%
w, l = 3, 0  # noqa: E741  (answer 3 against answer 0)
from_rewards = torch.sigmoid(r[w] - r[l])
from_policy = torch.sigmoid(beta * (optimum / ref).log()[w] - beta * (optimum / ref).log()[l])
print(
    f"P(answer {w} beats answer {l}): {from_rewards:.4f} by rewards, {from_policy:.4f} by policies"
)
torch.testing.assert_close(from_policy, from_rewards)

# %% [markdown] slides="17"
# ### Step 5: maximum likelihood
#
# Put the policy that we train in the place of $\pi^*$ and make the labels that people gave likely.
# That is $\mathcal{L}_{\text{DPO}}$. With $u$ for the difference in the brackets it is
# $-\log\sigma(u)$, and the lecture's fraction is the same thing: $\frac{e^a}{e^a + e^b} = \sigma(a-b)$.
#
# With comparisons alone, and neither $r$ nor $Z$, the four-answer policy comes out at the same place.
# Without the minus it runs the other way:

# %%
import torch.nn.functional as F

wins = torch.sigmoid(r[:, None] - r[None, :])  # (4, 4) how often answer i beats answer j


def learn(sign):
    """The four-answer policy learned from comparisons only; sign=-1 is the loss, +1 the slide."""
    logits = ref.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        rewards = beta * (logits.log_softmax(0) - ref.log())  # (4,) implicit
        u = rewards[:, None] - rewards[None, :]
        loss = sign * (wins * F.logsigmoid(u)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits.softmax(0).detach()


by_comparisons, slide_as_written = learn(sign=-1), learn(sign=+1)
for name, found in {
    "reference": ref,
    "RLHF's optimum": optimum,
    "DPO, from comparisons": by_comparisons,
    "the slide without its minus": slide_as_written,
}.items():
    print(f"{name:<28} {found.numpy().round(3)}   mean reward {(found * r).sum():.2f}")
torch.testing.assert_close(by_comparisons, optimum, atol=5e-3, rtol=0)

# %% tags=["hidden-test"]
assert (slide_as_written * r).sum() < (ref * r).sum(), "without the minus bad answers win"

# %% [markdown]
# No sampling happened, no reward was learned, and the policy is the one that PPO would look for. What
# was assumed on the way: people choose as Bradley and Terry say, the policy can represent the
# optimum, and the comparisons cover the answers that matter. Keep the last one in mind.
#
# ## 3 · The loss for a language model
#
# An answer is a sequence, and its log-probability is the **sum** over its tokens:
# $\log\pi(y|x) = \sum_t \log\pi(y_t\,|\,y_{<t}, x)$. Everything else is six lines.


# %%
def sequence_logprobs(model, rows):
    """(B,) log π(y|x) in nats. rows: (prompt_ids, answer_ids) of each of B answers."""
    sums = []
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer], device=model.device)  # (1, P + C)
        logprobs = model(ids).logits[:, :-1].log_softmax(-1)  # (1, P + C - 1, V): predicts the next
        tokens = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (1, P + C - 1)
        sums.append(tokens[0, len(prompt) - 1 :].sum())  # only the answer's
    return torch.stack(sums)


def my_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """L_DPO from log π(y|x), each (B,)."""
    reward_chosen = beta * (chosen - ref_chosen)  # r̂(x, y_w), the implicit reward
    reward_rejected = beta * (rejected - ref_rejected)
    u = reward_chosen - reward_rejected
    return -F.logsigmoid(u).mean()


# %% [markdown]
# Two answers as token ids. The chat template marks where the answer begins, and the end token
# belongs to it: a model must learn to stop.

# %%
from course_utils.training.tokenise import prompt_ids, whole_ids


def tokens_of(pairs, side):
    """[(prompt_ids, answer_ids)] of the chosen or the rejected answers."""
    prompts, answers = [row["prompt"] for row in pairs], [row[side] for row in pairs]
    starts = prompt_ids(lab.tokenizer, prompts)
    wholes = whole_ids(lab.tokenizer, prompts, answers)
    return [(s, whole[len(s) :]) for s, whole in zip(starts, wholes, strict=True)]


few = train_pairs.select(range(4))
chosen, rejected = tokens_of(few, "chosen"), tokens_of(few, "rejected")
prompt, answer = chosen[0]
print("prompt:", lab.tokenizer.convert_ids_to_tokens(prompt))
print("answer:", lab.tokenizer.convert_ids_to_tokens(answer))

# %% [markdown]
# At the start policy and reference are the same model, so $u = 0$ for every pair and the loss is
# $\log 2$, whatever $\beta$ is. A first loss of another value is a bug, and the commonest one there is:
# another chat template, another truncation, dropout left on.

# %%
import math

with torch.no_grad():
    own = [sequence_logprobs(sft, rows) for rows in (chosen, rejected)]
first_loss = my_dpo_loss(*own, *own, beta=0.1)
print(f"first loss {first_loss:.6f}, log 2 = {math.log(2):.6f}")
torch.testing.assert_close(first_loss.item(), math.log(2))

# %% [markdown]
# ### The library gives the same number
#
# TRL's `DPOTrainer` is what we train with below. To compare more than $\log 2$, let the **base**
# model be the reference of one step on exactly these four pairs.

# %%
from dataclasses import replace

from course_utils import RunLog, objectives, train_dpo

base = lab.base()
settings = replace(lab.settings.dpo, steps=1, batch_size=4, gradient_accumulation=1)
log = RunLog.create(lab.run_directory("dpo-one-step"), {}, lab.seed, overwrite=True)
train_dpo(lab.sft(), lab.tokenizer, few, settings, log, reference=base, progress=False)
trl_loss = log.rows[0]["loss"]

policy = lab.sft().train(False).requires_grad_(True)
with torch.no_grad():
    held = [sequence_logprobs(base, rows) for rows in (chosen, rejected)]
moving = [sequence_logprobs(policy, rows) for rows in (chosen, rejected)]
mine = my_dpo_loss(*moving, *held, beta=settings.beta)
ours = objectives.dpo_loss(*moving, *held, beta=settings.beta)

print(f"from scratch {mine.item():.6f}   course {ours.item():.6f}   TRL {trl_loss:.6f}")
torch.testing.assert_close(mine, ours)
tolerance = 1e-4 if lab.choice.precision == "fp32" else 2e-2  # TRL computes in the tier's precision
torch.testing.assert_close(mine.item(), trl_loss, atol=tolerance, rtol=tolerance)

# %% tags=["hidden-test"]
assert abs(trl_loss - math.log(2)) > 1e-3, "nothing was compared"

# %% [markdown]
# ### What the gradient does
#
# $$\nabla_\theta\mathcal{L}_{\text{DPO}} = -\beta\;\mathbb{E}\Big[\underbrace{\sigma\big(\hat r(y_l) -
# \hat r(y_w)\big)}_{\text{how wrong the order is}}\big(\nabla\log\pi(y_w|x) - \nabla\log\pi(y_l|x)\big)\Big]$$
#
# Raise the chosen answer, lower the rejected one, and the more so the more wrong the model's own
# ranking is. The weight is what keeps it from pushing for ever on pairs that are right already.

# %%
weights = objectives.dpo_gradient_weight(*moving, *held, beta=settings.beta)  # (4,) in (0, 1)
pushed = (-settings.beta * weights * (moving[0] - moving[1])).mean()  # its gradient is the formula

parameters = list(policy.parameters())
by_loss = torch.autograd.grad(mine, parameters, retain_graph=True)
by_formula = torch.autograd.grad(pushed, parameters)
gap = max((a - b).abs().max().item() for a, b in zip(by_loss, by_formula, strict=True))
print("weights of the four pairs:", weights.cpu().numpy().round(3))
print(f"largest difference of the two gradients: {gap:.1e}")
assert gap < 1e-4

# %% [markdown]
# Move the sliders: the two log-ratios say how far the policy has gone on each answer. Try **both
# answers got rarer**: the loss cannot tell it from the opposite.

# %% tags=["hide-input"]
# @title The DPO explorer
from course_utils.inspectors import DPOExplorer

DPOExplorer(beta=0.1, chosen=0, rejected=-8)

# %% [markdown]
# ## 4 · Train
#
# The same start, the same pairs, no sampling. You guessed what happens to the chosen answers.

# %%
from course_utils.evaluation import CostMeter

settings = lab.settings.dpo
run = RunLog.create(
    lab.run_directory("dpo-lesson"), {"beta": settings.beta}, lab.seed, overwrite=True
)
with CostMeter("DPO") as dpo_cost:
    dpo = train_dpo(lab.sft(), lab.tokenizer, train_pairs, settings, run)

# %% tags=["hidden-test"]
assert abs(run.rows[0]["loss"] - math.log(2)) < 0.02, "policy = reference at the start"
assert len(run.rows) == settings.steps

# %% tags=["hide-input"]
# @title Loss, accuracy and log-probabilities, drawn
from IPython.display import Markdown, display

from course_utils import plots

steps = run.frame()


def smooth(column):
    """Mean over up to ten steps: single batches are noisy."""
    return steps[column].rolling(10, min_periods=1).mean()


figure = plots.figure(
    "What each answer's implicit reward does", "optimizer step", "r̂ = β log π/π_ref"
)
plots.line(figure, steps.step, smooth("chosen_reward"), "chosen", plots.COLOURS["sft"])
plots.line(figure, steps.step, smooth("rejected_reward"), "rejected", plots.COLOURS["ppo"])
plots.line(
    figure, steps.step, smooth("margin"), "margin", plots.COLOURS["dpo"], line={"dash": "dot"}
)
display(figure)
last = steps.tail(10).mean(numeric_only=True)
moved = last["chosen_reward"] / settings.beta  # nats
went = "rises" if moved > 0.5 else "falls" if moved < -0.5 else "stays"
Markdown(
    f"Averaged over the last steps the log-probability of a **chosen** answer has moved by **{moved:+.1f} "
    f"nats** (it {went}; you guessed that it {my_guess_chosen}), that of a **rejected** one by "
    f"{last['rejected_reward'] / settings.beta:+.1f} nats. The loss went from {steps.loss.iloc[0]:.3f} to "
    f"{last['loss']:.3f}, and {last['accuracy']:.0%} of the training pairs are in the right order."
)

# %% tags=["hidden-test"]
if not lab.tier.is_fast:
    assert last["margin"] > 0
    assert last["accuracy"] > 0.5

# %% [markdown]
# **Does that surprise you?** The loss sees only the *difference*. Two answers to one prompt share
# many words, so lowering the rejected one drags the chosen one along; and probability that is taken
# from both must go to answers that are in **neither** column. Where it goes, no label says. In many
# public runs the chosen log-probability falls from the first step on, and people file bug reports;
# it is not a bug, it is what the loss asks for. Section 8 shows a run that goes much further.
#
# ## 5 · What came out

# %%
shown = (
    lab.lecture_prompts
    if lab.gold
    else [row["prompt"][-1]["content"] for row in heldout_pairs.select(range(3))]
)
lab.answers({"SFT": sft, "DPO": dpo}, shown, samples=9)

# %%
rm = lab.reward_model()
compared = lab.compare({"SFT": sft, "DPO": dpo}, reward=rm, reference=sft)
wins_dpo = compared.winner("DPO", "SFT")
print(
    f"DPO's answer is the better one on {wins_dpo.rate:.0%} [{wins_dpo.low:.0%}, {wins_dpo.high:.0%}]"
)
compared

# %% [markdown]
# ### The secret reward model
#
# Step 3 said that every policy *is* a reward model. So let ours judge: which share of the **held-out**
# pairs does $\hat r = \beta\log\pi/\pi_{\text{ref}}$ put into the annotator's order, and which share the
# reward model that was trained for nothing else, on the same pairs?

# %%
from course_utils.evaluation import reward_model_accuracy


def implicit_reward(model):
    """A reward function (prompts, answers) -> scores out of a DPO policy."""

    def score(prompts, answers):
        rows = tokens_of(
            [{"prompt": [{"role": "user", "content": p}], "answer": [{"role": "assistant", "content": a}]}
             for p, a in zip(prompts, answers, strict=True)],
            "answer",
        )  # fmt: skip
        with torch.no_grad():
            moved = sequence_logprobs(model, rows) - sequence_logprobs(sft, rows)
        return (settings.beta * moved).tolist()

    return score


judged = list(heldout_pairs.select(range(min(200, len(heldout_pairs)))))
by_policy = reward_model_accuracy(implicit_reward(dpo), judged)
by_reward_model = reward_model_accuracy(rm, judged)
print(f"implicit reward of the DPO policy  {by_policy.accuracy}")
print(f"reward model                       {by_reward_model.accuracy}")

# %% tags=["hidden-test"]
assert 0 <= by_policy.accuracy.mean <= 1
assert by_policy.accuracy.n == by_reward_model.accuracy.n

# %% [markdown]
# ## 6 · One axis for all methods
#
# Which method is *better* is the wrong question: one could always train longer. A fair one is: **how
# much true quality for how much distance from SFT?** Three contestants, in the world where quality is
# known:
#
# * **best-of-n**: sample $n$ answers, keep the one the reward model likes best. No training at all,
#   $n$ times the work at each question, KL at most $\log n - \frac{n-1}{n}$.
# * **PPO**, measured along its training (lesson 04).
# * **DPO**, at two $\beta$.
#
# **Your guess** was that at the same KL the better one is… (see above). Let us look.

# %%
world = lab.world
world_sft = world.sft()
tighter = 1.0  # a second β, which holds the policy closer

dpo_points = []
for value in (world.settings.dpo.beta, tighter):
    if lab is world and value == settings.beta:
        trained = dpo
    else:
        changed = replace(world.settings.dpo, beta=value)
        trained = train_dpo(world.sft(), world.tokenizer, world.pairs()[0], changed, progress=False)
    found = world.evaluate(trained, reward=world.reward_model(), reference=world_sft)
    dpo_points.append({"method": "dpo", "kl": found.kl.mean, "gold": found.mean, "beta": value,
                       "interval": list(found.interval), "label": f"β = {value:g}",
                       "prompt": found.completions[0].prompt,
                       "example": {"text": found.completions[0].text}})  # fmt: skip
    print(f"DPO, β = {value:<5g} KL {found.kl.mean:5.2f}   gold {found.gold}")

# %% tags=["hidden-test"]
assert len(dpo_points) == 2
if not lab.tier.is_fast:
    by_beta = {point["beta"]: point["kl"] for point in dpo_points}
    assert by_beta[tighter] < by_beta[world.settings.dpo.beta], "a larger β holds closer"

# %%
from course_utils.evaluation.policy import evaluate_best_of_n

prompts = world.prompts("heldout", 96 if not lab.tier.is_fast else 8)
best = evaluate_best_of_n(
    world_sft,
    world.tokenizer,
    prompts,
    world.reward_model(),
    gold=world.gold,
    samples=16,
    seed=lab.seed,
)
ppo_points = [
    {**row, "method": "ppo", "label": f"step {row['step']}", "example": {"text": row["text"]}}
    for row in world.held_out("ppo")
]

# %% tags=["hide-input"]
# @title The frontier: choose a point to read an answer
from course_utils.inspectors import FrontierViewer

frontier = FrontierViewer(
    [*best.frontier(), *ppo_points, *sorted(dpo_points, key=lambda p: p["kl"])]
)
frontier

# %% tags=["hide-input"]
# @title In words
import numpy as np


def gold_at(points, kl):
    """Gold at a KL, in a straight line between measured points; None outside of them."""
    rows = sorted((p["kl"], p["gold"]) for p in points)
    if not rows[0][0] <= kl <= rows[-1][0]:
        return None
    return float(np.interp(kl, *zip(*rows, strict=True)))


start = {"kl": 0.0, "gold": ppo_points[0]["gold"]}
middle = max(dpo_points, key=lambda p: p["gold"])
kl = middle["kl"]
same_kl = {
    "DPO": middle["gold"],
    "PPO": gold_at(ppo_points, kl),
    "best-of-n": gold_at(best.frontier(), kl),
}
known = {name: value for name, value in same_kl.items() if value is not None}
leader = max(known, key=known.get)
low, high = middle["interval"]
Markdown(
    f"DPO's best point (β = {middle['beta']:g}) lies at {kl:.2f} nats from SFT. At that distance: "
    + ", ".join(f"{name} {value:+.2f}" for name, value in known.items())
    + f". The highest is **{leader}** (you guessed {my_guess_better}). DPO's 95% interval there is "
    f"[{low:+.2f}, {high:+.2f}]"
    + (
        ": the others lie outside of it."
        if all(not low <= v <= high for n, v in known.items() if n != "DPO")
        else ", wide enough that one run does not settle it."
    )
)

# %% tags=["hidden-test"]
assert frontier.summary()["points"] >= 2 + 2
assert known

# %% [markdown]
# PPO practises: it samples *new* answers as it improves, and the reward model grades what the policy
# says *now*. DPO learns from answers that the SFT model gave *before*: as the policy moves away, the
# pairs speak less and less about what it would say. That is the price of leaving out the loop, and
# the assumption of section 2 come due. (Sampling new pairs from the trained policy and labelling
# those, *online* or *iterated* DPO, buys some of it back.)
#
# ## 7 · Is it simpler? Is it more stable?
#
# Simpler can be counted. Stable means: how much does the result depend on luck? One cheap look is
# to train three times, half as long, with other orders of the same pairs.

# %%
half = replace(world.settings.dpo, steps=max(1, world.settings.dpo.steps // 2))
golds = []
for seed in (101, 102, 103):
    again = world.sft()
    train_dpo(again, world.tokenizer, world.pairs()[0], replace(half, seed=seed), progress=False)
    golds.append(world.evaluate(again).mean)
print("DPO, gold with three orders of the same pairs:", [round(g, 2) for g in golds])

# %% tags=["hide-input"]
# @title What each needs
import pandas as pd

ppo_settings, ppo_rows = world.settings.ppo, world.log("ppo").rows
ppo_seconds = sum(row["seconds"] for row in ppo_rows if "seconds" in row)
needs = pd.DataFrame(
    {
        "DPO": {
            "models in memory": "1 (the reference's log-probabilities are computed once)",
            "a reward model first": "no",
            "answers sampled in training": 0,
            "fields of its settings": len(type(settings).__dataclass_fields__),
        },
        "PPO": {
            "models in memory": "3 (policy with value head, reference, reward model)",
            "a reward model first": "yes",
            "answers sampled in training": ppo_settings.steps * ppo_settings.rollouts_per_step,
            "fields of its settings": len(type(ppo_settings).__dataclass_fields__),
        },
    }
)
display(needs.style.set_properties(**{"text-align": "left"}))
print(f"DPO's training here: {dpo_cost.seconds:.0f} s, {dpo_cost.cpu_seconds:.0f} CPU s")

# %%
spread = float(np.std(golds, ddof=1))
lab.world.claim(
    "C10",
    f"DPO needs one model and no sampling. Its gold varies by ±{spread:.2f} over three orders of the "
    f"pairs (trained half as long); at {kl:.2f} nats from SFT it has {middle['gold']:+.2f}"
    + (f", PPO {known['PPO']:+.2f}." if "PPO" in known else "; PPO was not measured so near."),
    holds=None,
    condition="simpler, yes; how stable needs PPO's spread over seeds too, and simple is not better: "
    "compare at the same KL",
    dpo_spread=spread,
    dpo_gold=middle["gold"],
    kl=kl,
)

# %% [markdown]
# ## 8 · What broke, and why
#
# **Pushed too far.** DPO has no loop, but it has no brake either: as long as $\sigma(-u)$ is not zero
# each pair pushes. Half as many steps, with a small $\beta$ and a large learning rate:

# %%
wild_settings = replace(half, beta=0.01, learning_rate=5 * half.learning_rate)
wild_run = RunLog.create(lab.run_directory("dpo-wild"), {}, lab.seed, overwrite=True)
wild = train_dpo(
    world.sft(), world.tokenizer, world.pairs()[0], wild_settings, wild_run, progress=False
)
wild_found = world.compare(
    {"SFT": world_sft, "DPO, no brake": wild}, reward=world.reward_model(), reference=world_sft
)
wild_found

# %% tags=["hide-input"]
# @title In words
wild_last = wild_run.frame().tail(10).mean(numeric_only=True)
wild_row = wild_found.frame().loc["DPO, no brake"]
Markdown(
    f"Training accuracy {wild_last['accuracy']:.0%} (the run above: {last['accuracy']:.0%}). Yet the chosen "
    f"answers' log-probability moved by {wild_last['chosen_reward'] / wild_settings.beta:+.0f} nats, the policy is "
    f"{wild_row['kl']:.1f} nats from SFT, and its true quality is {wild_row['gold']:+.2f} "
    f"(SFT: {wild_found.frame().loc['SFT']['gold']:+.2f}). Implicit accuracy says nothing about what the "
    "policy will *say*."
)

# %% tags=["hidden-test"]
if not lab.tier.is_fast:
    assert wild_row["kl"] > middle["kl"]

# %% [markdown]
# **Mean in place of sum.** Some tutorials average the log-probabilities over tokens. It looks
# harmless and changes the objective: $\beta$ then means something else for each length. One pair,
# whose answers differ in length, shows it:

# %%
lengths = torch.tensor(
    [[len(a) for _, a in rows] for rows in (chosen, rejected)], dtype=torch.float
)
by_sum = objectives.reward_margins(*(x.detach() for x in (*moving, *held)), beta=1.0)
by_mean = (moving[0] - held[0]).detach().cpu() / lengths[0] - (
    moving[1] - held[1]
).detach().cpu() / lengths[1]
for i in range(len(few)):
    print(
        f"pair {i}: chosen {lengths[0][i]:.0f} tokens, rejected {lengths[1][i]:.0f}:"
        f"  margin by sums {by_sum[i]:+6.2f}, by means {by_mean[i]:+6.3f}"
    )

# %% [markdown]
# **Labels that are wrong.** DPO believes every label, and a pair that it cannot get right counts the
# most. Its relatives differ in where they stop pushing: cDPO expects a share $\varepsilon$ of wrong
# labels, IPO wants a fixed margin and no more. The curves are the losses of one pair over $u$; where a
# curve rises again, the loss pulls back. Lesson 08 trains with noisy labels.

# %% tags=["hide-input"]
# @title DPO and its relatives, drawn
u = torch.linspace(-4, 8, 121)
zero = torch.zeros_like(u)
figure = plots.figure("The loss of one pair", "margin u = r̂(y_w) − r̂(y_l), at β = 1", "loss")
curves = {
    "DPO": {},
    "cDPO, ε = 0.2": {"label_smoothing": 0.2},
    "IPO": {"variant": "ipo"},
    "hinge (SLiC)": {"variant": "hinge"},
}
for i, (name, options) in enumerate(curves.items()):
    losses = objectives.dpo_loss(u, zero, zero, zero, beta=1.0, reduction="none", **options)
    plots.line(figure, u.tolist(), losses.tolist(), name, plots.colour(i))
figure.update_yaxes(range=[0, 4])

# %% [markdown]
# Other traps that cost people days: a prompt tokenised alone and with its answer gives different
# tokens at the seam; an end token that is also the padding token, masked away, so that the model
# never learns to stop; pairs whose answers are the same after truncation, which add $\log 2$ each and
# nothing else (the course drops and counts them); in TRL, `label_smoothing` with the loss `"sigmoid"`
# does nothing, without a word. And nonsense is refused, with a reason:

# %%
from course_utils.errors import CourseError

for wrong in ({"beta": -1.0}, {"batch_size": 0}, {"label_smoothing": 0.7}):
    try:
        replace(lab.settings.dpo, **wrong)
    except (CourseError, ValueError) as error:
        print(f"{wrong}: {error}")
    else:
        raise AssertionError(f"{wrong} was accepted")

# %% [markdown]
# ## 9 · Check yourself
#
# <details>
# <summary><b>1.</b> The first logged loss of a DPO run is 0.71. What do you suspect?</summary>
#
# It should be log 2 = 0.693 to many digits, because policy and reference are the same model. So they
# are not: dropout is on, or the reference was loaded with another template, precision or adapter, or
# its log-probabilities were computed on differently truncated answers.
# </details>
#
# <details>
# <summary><b>2.</b> Both answers of every pair are bad. What will DPO teach? What would PPO do?</summary>
#
# DPO makes the less bad one likelier *relative* to the other; where the freed probability goes is left
# open. PPO samples its own answers and could find one that is better than both, if the reward model
# recognises it.
# </details>
#
# <details>
# <summary><b>3.</b> You double β. What happens to the KL after training, and to the weight of a pair with the same log-ratios?</summary>
#
# The KL falls: the same margin in reward needs half the nats. The weight σ(−u) of a pair that is in
# the right order falls too, because u doubles: the pair counts as learned sooner.
# </details>
#
# ## 10 · Read on
#
# * Rafailov et al. 2023, [Direct preference optimization: your language model is secretly a reward model](https://arxiv.org/abs/2305.18290)
# * Azar et al. 2023, [A general theoretical paradigm to understand learning from human preferences](https://arxiv.org/abs/2310.12036) (IPO)
# * Mitchell 2023, [A note on DPO with noisy preferences and its relationship to IPO](https://ericmitchell.ai/cdpo.pdf) (cDPO)
# * Xu et al. 2024, [Is DPO superior to PPO for LLM alignment?](https://arxiv.org/abs/2404.10719)
# * Gao et al. 2022, [Scaling laws for reward model overoptimization](https://arxiv.org/abs/2210.10760) (best-of-n's KL)
#
# **Exercises:** [exercises/05_dpo.ipynb](../exercises/05_dpo.ipynb): the log-probability of an answer,
# DPO's loss, the implicit reward and its accuracy, what a pair weighs, IPO, cDPO.
#
# **Next**: lesson 06 asks how *few* numbers have to move for all of this.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
