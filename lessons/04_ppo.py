# %% [markdown] slides="11 12" seconds=80
# # 04 · PPO with a KL penalty
# ## How far may a model go for reward, and what holds it back?
#
# Demonstrations do not teach a model what people *prefer* (Ouyang et al. 2022). So far the pipeline
# has made an **SFT** model that imitates, and a **reward model** that learnt from ranked answers which
# ones people like. The last step lets the model practise: it answers, is scored, and moves towards the
# better answers by reinforcement learning (**PPO**).
#
# In this notebook you will
#
# 1. see why a model that simply maximises its reward goes wrong, on paper, before anything is trained,
# 2. build PPO's six pieces from scratch, each equal to the library's,
# 3. put them together into one real PPO step and get the trainer's own numbers,
# 4. train, look at every token, then **take the KL penalty away** and watch what happens.
#
# Tier tiny: about 80 s on two cores that have other work too (the first lesson that asks for the SFT
# and the reward model also trains them, about a minute more). On a T4 with tier small: not measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

import dataclasses

import pandas as pd
import torch

from course_utils import Lab, objectives, plots

lab = Lab.open()
world = lab.world  # where the true quality of an answer is known (on tier tiny: the lab itself)

# %%
sft = lab.sft()  # π_SFT: where PPO starts, and what it is held to
reward_model = lab.reward_model()  # r_φ(x, y): one number for an answer
tokenizer, device = lab.tokenizer, lab.device

# %% tags=["hidden-test"]
assert abs(reward_model.normalisation.mean) < 1e3
assert reward_model.normalisation.std > 0

# %% [markdown]
# ## 1 · Practice instead of imitation
#
# Six answers of the SFT model to one question, the best first *as the reward model sees it*.


# %% tags=["hide-input"]
# @title How tables are shown
def show(table, precision=2):
    """A table without its index, text on the left."""
    look = table.style.hide(axis="index").format(precision=precision)
    look = look.set_properties(**{"text-align": "left"})
    return look.set_table_styles([{"selector": "th", "props": "text-align: left"}])


# %%
question = lab.lecture_prompts[0]
drawn = lab.generate(sft, [question] * 6)
scores = reward_model([question] * 6, drawn)
table = pd.DataFrame({"reward model": scores, "answer": drawn})
if lab.gold:  # the truth, where it is known
    table.insert(1, "gold", [lab.gold(question, answer).total for answer in drawn])
print(question)
show(table.sort_values("reward model", ascending=False))

# %% tags=["hidden-test"]
assert len(scores) == len(drawn) == 6

# %% [markdown]
# The idea of RLHF in one sentence: **make the upper answers more likely and the lower ones less.** Do
# that many times, each time with fresh answers of the model as it has become. Nobody has to write a
# good answer; somebody has to recognise one.
#
# ## 2 · Why not simply maximise the reward?
#
# **Your guess.** The reward model is right about most answers, and wrong about a few. If the policy
# maximises its score without any limit, what becomes of the *true* quality?
#
# * (a) it rises, and ends a little below the best possible
# * (b) it rises, then falls
# * (c) it falls from the start

# %%
my_guess = "a"

# %% [markdown]
# We can compute this without training anything. Take a policy with only five answers to give. The
# reward model overrates one, which the SFT model practically never says.

# %%
five = pd.DataFrame(
    [
        ("right, dry", 0.45, 0.0, 1.0),
        ("half wrong", 0.30, -1.0, -0.5),
        ("right and warm", 0.20, 1.0, 1.6),
        ("right, warm and complete", 0.0499, 1.5, 2.2),
        ("flattery and nonsense", 0.0001, 2.6, -1.5),  # where the reward model is wrong
    ],
    columns=["answer", "π_SFT", "reward model", "gold"],
)
show(five, precision=4)

# %% [markdown] slides="15"
# The lecture's penalty is $\mathcal{L}_{\text{KL}} = \beta \cdot \text{KL}(\pi_\theta \,\|\,
# \pi_{\text{SFT}})$: every bit of distance from the SFT model costs. PPO then looks for
#
# $$\max_\pi \; \mathbb{E}_{y \sim \pi}\big[r_\phi(x, y)\big] - \beta\, \text{KL}(\pi \,\|\, \pi_{\text{SFT}}),
# \qquad \text{KL}(\pi \,\|\, \pi_{\text{SFT}}) = \sum_y \pi(y) \log \frac{\pi(y)}{\pi_{\text{SFT}}(y)}$$
#
# and the solution is known in closed form (lesson 05 derives it): $\pi^*(y) \propto \pi_{\text{SFT}}(y)\,
# e^{\,r_\phi(x, y) / \beta}$. Let us believe it only after plain gradient ascent has found the same.

# %%
reference = torch.tensor(five["π_SFT"], dtype=torch.float64)
proxy = torch.tensor(five["reward model"], dtype=torch.float64)
gold = torch.tensor(five["gold"], dtype=torch.float64)


def kl(policy, reference):
    """KL(π ‖ π_SFT) in nats, exactly."""
    return (policy * (policy / reference).log()).sum()


def best_policy(beta):
    """The policy that maximises E[r] - β KL."""
    return (reference.log() + proxy / beta).softmax(-1)


logits = reference.log().clone().requires_grad_()
optimizer = torch.optim.Adam([logits], lr=0.05)
for _ in range(400):
    policy = logits.softmax(-1)
    objective = (policy * proxy).sum() - 0.5 * kl(policy, reference)
    optimizer.zero_grad()
    (-objective).backward()
    optimizer.step()

torch.testing.assert_close(logits.softmax(-1).detach(), best_policy(0.5), atol=1e-3, rtol=0)
torch.testing.assert_close(
    kl(best_policy(0.5), reference), objectives.exact_kl(best_policy(0.5).log(), reference.log())
)

# %%
betas = torch.logspace(1.5, -1.3, 60).tolist()  # from a short leash to nearly none
perfect = pd.DataFrame(
    {
        "β": beta,
        "KL": float(kl(best_policy(beta), reference)),
        "proxy": float(best_policy(beta) @ proxy),
        "gold": float(best_policy(beta) @ gold),
    }
    for beta in betas
)
peak = perfect.loc[perfect["gold"].idxmax()]

# %% tags=["hide-input"]
# @title The best possible policy for every β, drawn
figure = plots.figure(
    "Perfect optimisation of an imperfect reward", x="√KL  (small β to the right)", y="reward"
)
root = perfect["KL"] ** 0.5
plots.line(figure, root, perfect["proxy"], "reward model (proxy)", plots.COLOURS["reward"])
plots.line(figure, root, perfect["gold"], "gold (truth)", plots.COLOURS["gold"])
figure.add_vline(x=peak["KL"] ** 0.5, line={"dash": "dot", "color": "#888"})
figure.add_annotation(
    x=peak["KL"] ** 0.5, y=proxy.max().item(), text=f" β = {peak['β']:.2f}", showarrow=False,
    xanchor="left",
)  # fmt: skip
figure

# %% tags=["hidden-test"]
assert (perfect["proxy"].diff().dropna() > -1e-9).all(), "less β, more proxy"
assert perfect["gold"].iloc[-1] < perfect["gold"].iloc[0] < peak["gold"]

# %% [markdown]
# **This picture is the reason for the KL penalty.** At first the policy shifts weight among answers
# that the SFT model gives anyway; there the reward model has seen plenty, and proxy and truth rise
# together. Far out live the answers that nobody ever ranked. Some of them are overrated, and a
# maximiser finds exactly those: it does not need to be malicious, only good at its job. Going there
# costs KL, since the SFT model hardly ever says such things. The penalty prices the risk, and β is the
# exchange rate: *reward units per nat*.
#
# So (b), if the reward model errs anywhere. Section 10 asks whether a real training run does the same.

# %% [markdown]
# ## 3 · A rollout: states, actions, log-probabilities
#
# PPO comes from games, so first the dictionary:
#
# | in a game | here |
# |---|---|
# | state $s_t$ | the prompt and the tokens written so far |
# | action $a_t$ | the next token |
# | policy $\pi_\theta(a_t \mid s_t)$ | the language model |
# | episode | one answer |
# | reward | the reward model's score, once, at the end |
#
# **From scratch: play one episode for each prompt**, keeping the log-probability of every token drawn.
# (No cache, no shortcuts, and no top-k: what is sampled must be the distribution that is scored.)

# %%
from course_utils.generation import encode_prompts, stop_ids


@torch.no_grad()
def roll_out(model, prompts, new_tokens):
    """Samples an answer to each prompt: ids and attention (B, P + C), log π of the answers (B, C)."""
    batch = encode_prompts(tokenizer, prompts).to(device)  # left-padded, (B, P)
    ids, attention = batch.input_ids, batch.attention_mask
    logprobs = []
    for _ in range(new_tokens):
        positions = (attention.cumsum(1) - 1).clamp(min=0)  # padding on the left has no position
        logits = model(ids, attention_mask=attention, position_ids=positions).logits[
            :, -1
        ]  # (B, V)
        log_pi = logits.log_softmax(-1)
        token = torch.multinomial(log_pi.exp(), 1)  # (B, 1)
        logprobs.append(log_pi.gather(1, token))
        ids = torch.cat([ids, token], dim=1)
        attention = torch.cat([attention, torch.ones_like(token)], dim=1)
    return ids, attention, torch.cat(logprobs, dim=1)


asked = lab.prompts("train", 32)
ids, attention, logprobs = roll_out(sft, asked, new_tokens=32)
answers = ids[:, -32:]  # (B, C)
print(tokenizer.decode(answers[0]))

# %% [markdown]
# Our loop does not stop, so there is text after the end token. Those tokens were never part of the
# answer: the **mask** must be true up to *and including* EOS. Including, because to stop is a decision
# too, and the one that carries the score. First a toy, then the real one.


# %%
def until_eos(ids, eos):
    """True on each row's tokens up to and including its first EOS: (B, C) -> (B, C)."""
    is_eos = torch.isin(ids, torch.tensor(eos, device=ids.device))
    ended_before = is_eos.cumsum(dim=1) - is_eos.long()  # EOS tokens strictly before t
    return ended_before == 0


EOS = 9
print(until_eos(torch.tensor([[5, 8, 9, 7, 9], [4, 4, 4, 4, 4]]), [EOS]).int())

mask = until_eos(answers, stop_ids(tokenizer, sft))  # (B, C)
assert torch.equal(mask, objectives.completion_mask_from_eos(answers, stop_ids(tokenizer, sft)))
print(tokenizer.decode(answers[0][mask[0]]))

# %% [markdown]
# The same tokens are scored again in one forward pass. The policy and the reference are the same model
# for now. Two things must then hold, and whoever writes PPO checks them before anything else.

# %%
from course_utils.models import token_logprobs

real = torch.cat([attention[:, :-32], mask.long()], dim=1)  # (B, P + C)
with torch.no_grad():
    again = token_logprobs(sft, ids, real, completion_start=ids.shape[1] - 32)  # (B, C)
    ref_logprobs = token_logprobs(lab.sft(), ids, real, completion_start=ids.shape[1] - 32)

ratio = (again - logprobs)[mask].exp()  # π_θ / π_old
print(f"ratio of the first update: {ratio.min():.6f} to {ratio.max():.6f}")
print(f"largest log π - log π_ref: {(again - ref_logprobs)[mask].abs().max():.1e}")

tolerance = 1e-3 if lab.choice.precision == "fp32" else 5e-2
torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=tolerance, rtol=0)
assert torch.equal(again, ref_logprobs), "the policy is the reference: KL = 0, exactly"

# %% tags=["hidden-test"]
assert mask[:, 0].all()
assert mask.shape == logprobs.shape == (32, 32)
assert not mask.all(), "some answer ends before the last column"

# %% [markdown]
# ## 4 · How far away? Three ways to estimate the KL
#
# Over a whole answer the sum over all possible texts is out of reach, so the KL is estimated from the
# sampled tokens. With $d = \log \pi(y_t) - \log \pi_{\text{ref}}(y_t)$ and tokens drawn from $\pi$
# (Schulman 2020):
#
# $$k_1 = d \qquad\qquad k_2 = \tfrac{1}{2} d^2 \qquad\qquad k_3 = e^{-d} - 1 + d$$
#
# **Your guess.** One of them is right on average and never negative. Which?

# %%
my_guess = "k1"


# %%
def my_kl(logprobs, ref_logprobs, kind):
    d = logprobs - ref_logprobs
    return {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}[kind]


policy = torch.tensor([0.45, 0.25, 0.15, 0.10, 0.05])  # a toy: five words
uniform = torch.full((5,), 0.2)
exact = float(kl(policy, uniform))
rows = {}
for kind in ("k1", "k2", "k3"):
    k = my_kl(policy.log(), uniform.log(), kind)  # (5,) the estimate, if that word is drawn
    torch.testing.assert_close(k, objectives.kl_estimate(policy.log(), uniform.log(), kind))
    mean = float((policy * k).sum())  # over infinitely many draws
    deviation = float((policy * (k - mean) ** 2).sum().sqrt())
    rows[kind] = {"bias": mean - exact, "spread of one sample": deviation, "least": float(k.min())}
print(f"exact KL: {exact:.4f} nats")
estimators = pd.DataFrame(rows).T
estimators.style.format("{:+.4f}")

# %% tags=["hidden-test"]
assert abs(estimators.loc["k1", "bias"]) < 1e-6
assert abs(estimators.loc["k3", "bias"]) < 1e-6
assert abs(estimators.loc["k2", "bias"]) > 1e-3
assert estimators.loc["k3", "least"] >= 0 > estimators.loc["k1", "least"]

# %% [markdown]
# Shape the two distributions yourself, and try the three examples: when is $k_2$ badly off, and when
# does even the steady $k_3$ jump?

# %%
from course_utils.inspectors import KLExplorer

KLExplorer()

# %% [markdown]
# Now real tensors. How far did *SFT itself* move from the base model, in nats per answer? The policy is
# the SFT model, the reference the base model, the tokens are those of section 3, and each answer's
# estimates are summed over its tokens. "Exact" sums over the whole vocabulary at every position.


# %%
def all_logits(model):
    """Logits that predict the answers' tokens: (B, C, V)."""
    positions = (real.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=real, position_ids=positions).logits
    return logits[:, -33:-1]  # the token in column t is predicted in column t - 1


with torch.no_grad():
    sft_logits, base_logits = all_logits(sft), all_logits(lab.base())
    log_pi = sft_logits.log_softmax(-1)
    log_ref = base_logits.log_softmax(-1)
    slow = (log_pi.exp() * (log_pi - log_ref)).sum(-1)  # (B, C)
    torch.testing.assert_close(slow, objectives.exact_kl(sft_logits, base_logits))
    chosen = [x.gather(-1, answers.unsqueeze(-1)).squeeze(-1) for x in (log_pi, log_ref)]  # (B, C)

per_answer_kl = {"exact": (slow * mask).sum(1)}
for kind in ("k1", "k2", "k3"):
    per_answer_kl[kind] = (my_kl(*chosen, kind) * mask).sum(1)  # (B,)
pd.DataFrame(
    {name: {"mean": float(k.mean()), "spread over answers": float(k.std())}
     for name, k in per_answer_kl.items()}
).T.style.format("{:.2f}")  # fmt: skip

# %% tags=["hidden-test"]
assert (per_answer_kl["exact"] >= -1e-4).all()
assert (per_answer_kl["k3"] >= -1e-4).all()
library = objectives.kl_estimate(*chosen, "k3", mask).sum(1)
torch.testing.assert_close(per_answer_kl["k3"], library, rtol=1e-4, atol=1e-4)

# %% [markdown]
# How to read a number of nats: at a KL of $K$ the policy finds its own typical answer $e^K$ times as
# likely as the reference does. 1 nat is a change of habit, 10 nats another author.
#
# ## 5 · The reward, token by token
#
# PPO pays the KL where it arises. Each token costs what it moved, and the reward model's score comes
# on the **last real token** (Ziegler et al. 2019; InstructGPT):
#
# $$r_t = -\beta \log \frac{\pi_{\text{old}}(a_t \mid s_t)}{\pi_{\text{SFT}}(a_t \mid s_t)} \;+\;
# \begin{cases} r_\phi(x, y) & t \text{ is the last token} \\ 0 & \text{else} \end{cases}$$
#
# This is $k_1$, an ordinary number: nothing is differentiated through it. Two toy answers, one of four
# tokens, one of two:


# %%
def my_rewards(logprobs, ref_logprobs, scores, mask, beta):
    """(B, C) what every token earned."""
    rewards = -beta * (logprobs - ref_logprobs) * mask
    last = mask.long().cumsum(1).argmax(1)  # (B,) the place of the last real token
    rewards[torch.arange(len(rewards)), last] += scores
    return rewards


toy_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
toy_logprobs = torch.tensor([[-1.0, -0.5, -0.2, -0.7], [-0.3, -1.0, -9.0, -9.0]])
toy_ref = torch.tensor([[-1.5, -0.5, -1.2, -0.4], [-0.8, -0.9, -1.0, -1.0]])
toy_scores = torch.tensor([1.0, -0.5])

toy_rewards = my_rewards(toy_logprobs, toy_ref, toy_scores, toy_mask, beta=0.1)
print(toy_rewards)
torch.testing.assert_close(
    toy_rewards,
    objectives.per_token_rewards(toy_logprobs, toy_ref, toy_scores, toy_mask, beta=0.1),
)

# %% tags=["hidden-test"]
k1 = objectives.kl_estimate(toy_logprobs, toy_ref, "k1", toy_mask).sum(1)
torch.testing.assert_close(toy_rewards.sum(1), toy_scores - 0.1 * k1)
assert (toy_rewards[1, 2:] == 0).all()

# %% [markdown]
# Summed over an answer this is $r_\phi(x, y) - \beta \cdot k_1(y)$: on average exactly the objective of
# section 2. (Where the lecture writes $\mathcal{L}_{\text{KL}}$ beside the loss, InstructGPT and our
# trainer put it inside the reward. The maximum is the same.)
#
# ## 6 · Who deserves the credit? Values and advantages
#
# One score for thirty tokens. Which of them were good? A **value head** learns to predict, at every
# token, what will still be earned from here: $V(s_t) = w \cdot h_t + b$ on the policy's own hidden
# state. A token was good if things turn out better than predicted. The surprise of one step is
#
# $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
# \hat A_t = \sum_{l \ge 0} (\gamma \lambda)^l \, \delta_{t+l}$$
#
# (generalised advantage estimation, Schulman et al. 2016; $\gamma = 1$ for answers). Written backwards
# it is one line: $\hat A_t = \delta_t + \gamma \lambda \hat A_{t+1}$.


# %%
def my_gae(rewards, values, mask, lam, after=None):
    """(B, C) advantages; `after` (B,): the value after the last token, 0 if the answer was over."""
    rows = []
    for b, length in enumerate(mask.sum(1).tolist()):  # one answer at a time: slow and plain
        advantage, next_value = 0.0, 0.0 if after is None else after[b]
        row = torch.zeros_like(rewards[b])
        for t in reversed(range(length)):
            delta = rewards[b, t] + next_value - values[b, t]  # δ_t, γ = 1
            advantage = delta + lam * advantage
            row[t], next_value = advantage, values[b, t]
        rows.append(row)
    return torch.stack(rows)


toy_values = torch.tensor([[0.2, 0.3, 0.1, 0.6], [0.1, -0.2, 5.0, 5.0]])
for lam in (0.0, 0.95, 1.0):
    mine = my_gae(toy_rewards, toy_values, toy_mask, lam)
    library = objectives.gae(toy_rewards, toy_values, toy_mask, lam=lam)
    torch.testing.assert_close(mine, library.advantages)
    print(f"λ = {lam:<4}  Â of the first answer:", [f"{a:+.3f}" for a in mine[0].tolist()])

# %% [markdown]
# **Your guess.** The first token of the first answer: at λ = 0 only what the critic says counts, at
# λ = 1 only what really came. Which row of the printout can be wrong on average (biased), and which
# one is noisy?
#
# The two limits, written out, and the sum from the formula as a check:

# %%
later = torch.tensor(
    [[toy_rewards[b, t:].sum() for t in range(4)] for b in range(2)]
)  # reward to go
monte_carlo = (later - toy_values) * toy_mask
torch.testing.assert_close(my_gae(toy_rewards, toy_values, toy_mask, 1.0), monte_carlo)

next_values = torch.cat([toy_values[:, 1:] * toy_mask[:, 1:], torch.zeros(2, 1)], dim=1)
delta = (toy_rewards + next_values - toy_values) * toy_mask  # δ_t
torch.testing.assert_close(my_gae(toy_rewards, toy_values, toy_mask, 0.0), delta)

powers = 0.95 ** torch.arange(4.0)
by_formula = (powers * delta[0]).sum()  # Â_0 = Σ λ^l δ_l
torch.testing.assert_close(my_gae(toy_rewards, toy_values, toy_mask, 0.95)[0, 0], by_formula)

# an answer cut at the length limit was not over: its last step may look at V(s_T) instead of 0
cut = torch.tensor([0.8, 0.0])
torch.testing.assert_close(
    my_gae(toy_rewards, toy_values, toy_mask, 0.95, after=cut),
    objectives.gae(toy_rewards, toy_values, toy_mask, lam=0.95, bootstrap_values=cut).advantages,
)

# %% [markdown]
# λ = 0 believes the critic, which knows nothing at the start (bias); λ = 1 believes the single answer
# that was drawn (noise). 0.95 is the usual compromise. The critic's own target is
# $R_t = \hat A_t + V(s_t)$. Last, advantages are **whitened** (mean 0, deviation 1 over all tokens of a
# step), so that a learning rate means the same whatever the scale of the rewards.

# %% [markdown] slides="15"
# ## 7 · The clipped objective
#
# Sampling is expensive, so the same answers serve for several updates. But after the first update the
# policy is no longer the one that sampled. The **ratio** corrects for that,
#
# $$r_t(\theta) = \frac{\pi_\theta(a_t \mid s_t)}{\pi_{\text{old}}(a_t \mid s_t)}$$
#
# and the clip stops the policy from running away on old evidence:
#
# $$\mathcal{L}_{\text{PPO}} = \mathbb{E}\Big[\min\big(r_t(\theta)\, \hat A_t,\;
# \text{clip}(r_t(\theta),\, 1 - \varepsilon,\, 1 + \varepsilon)\, \hat A_t\big)\Big]$$
#
# **Your guess.** ε = 0.2. A token was good ($\hat A_t = +1$) and has become 1.5 times as likely. What is
# the gradient of its term with respect to $r_t$? And if it has become *half* as likely?

# %%
my_guess = {"r = 1.5": 1.0, "r = 0.5": 1.0}


# %%
def my_objective(ratio, advantage, epsilon=0.2):
    """What PPO maximises, per token."""
    return torch.min(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)


pulls = {}
for advantage in (1.0, -1.0):
    r = torch.tensor([0.5, 1.0, 1.5], requires_grad=True)
    value = my_objective(r, torch.full_like(r, advantage))
    value.sum().backward()
    library, clipped = objectives.clipped_surrogate(r.detach(), torch.full((3,), advantage))
    torch.testing.assert_close(value.detach(), library)
    assert torch.equal(r.grad == 0, clipped)
    pulls[f"Â = {advantage:+.0f}"] = dict(
        zip(("r = 0.5", "r = 1", "r = 1.5"), r.grad.tolist(), strict=False)
    )
print("gradient by r:")
pd.DataFrame(pulls).T.style.format("{:+.0f}")

# %% tags=["hidden-test"]
assert pulls["Â = +1"] == {"r = 0.5": 1.0, "r = 1": 1.0, "r = 1.5": 0.0}
assert pulls["Â = -1"] == {"r = 0.5": 0.0, "r = 1": -1.0, "r = 1.5": -1.0}

# %% [markdown]
# Zero in two corners only: where the token has *already* moved far enough in the direction that pays.
# The other two keep their full pull: a mistake can always be corrected.

# %%
from course_utils.inspectors import PPOClipExplorer

PPOClipExplorer()

# %% [markdown]
# The critic has a loss of its own, $\tfrac12 (V(s_t) - R_t)^2$, with the same caution: a value may move
# by at most ε per step and still be paid for.


# %%
def my_value_loss(values, old_values, returns, mask, epsilon=0.2):
    near = old_values + (values - old_values).clamp(-epsilon, epsilon)
    worse = torch.max((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * worse[mask].mean()


moved = toy_values + torch.tensor([0.3, -0.1, 0.0, 0.5])
torch.testing.assert_close(
    my_value_loss(moved, toy_values, later, toy_mask),
    objectives.clipped_value_loss(moved, toy_values, later, toy_mask).loss,
)

# %% [markdown]
# ## 8 · Who chooses β?
#
# A fixed β is simplest. Ziegler et al. (2019) let it adapt instead: choose the KL you are willing to
# pay, and raise β while the policy is further away than that, lower it while it is nearer.


# %%
def adapt(beta, kl, target, answers, horizon):
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * answers / horizon)


beta, control = 0.05, objectives.AdaptiveKL(0.05, target=6.0, horizon=2_000)
for measured in (0.0, 2.0, 5.0, 9.0, 14.0, 8.0):
    beta = adapt(beta, measured, 6.0, answers=96, horizon=2_000)
    assert abs(beta - control.update(measured, 96)) < 1e-12
    print(f"KL {measured:4.1f}  →  β {beta:.4f}")

# %% [markdown]
# Three things can be seen below: a controller that hardly moves, one that overshoots, and why a target
# travels better between reward models than a β does.

# %%
from course_utils.inspectors import KLControlExplorer

KLControlExplorer()

# %% [markdown]
# ## 9 · All of it in one step
#
# Now the real thing: rollouts of the real model, and two updates written out with the pieces above. The
# trainer of the course samples the answers and does its own step on them; then we do ours, from the
# same start, on the same answers, and compare.

# %%
from course_utils.training.ppo import PPOTrainer, per_answer

one_step = dataclasses.replace(
    lab.settings.ppo, steps=1, rollouts_per_step=32, epochs=2, minibatches=1, precision="fp32",
    temperature=1.0,
)  # fmt: skip
rival = PPOTrainer(lab.sft(), reward_model, tokenizer, asked, one_step)
theirs = rival.step()
rollouts = theirs.rollouts  # prompts, answers, their tokens, the reward model's scores
print(rollouts.prompts[0], "→", rollouts.completions[0], f"  score {rollouts.scores[0]:+.2f}")


# %%
def my_step(policy, value_head, optimizer, rollouts, config, epsilon=None, temperature=1.0):
    """PPO's updates on one batch of answers, written out; returns everything on the way."""
    epsilon = config.clip if epsilon is None else epsilon
    tokens = rollouts.sequences  # rows: prompt, answer, padding on the right
    ids = tokens.ids  # (B, T)
    column = torch.arange(ids.shape[1] - 1, device=ids.device)  # column t predicts token t + 1
    first = tokens.prompt_lengths.unsqueeze(1) - 1
    mask = (column >= first) & (column < first + tokens.completion_lengths.unsqueeze(1))  # (B, T-1)

    def look(model):
        hidden = model.base_model(ids).last_hidden_state[:, :-1]  # (B, T-1, D)
        log_pi = (model.get_output_embeddings()(hidden) / temperature).log_softmax(-1)
        values = value_head(hidden).squeeze(-1)  # V(s_t)
        return log_pi.gather(-1, ids[:, 1:, None]).squeeze(-1), values  # each (B, T-1)

    with torch.no_grad():  # 1. what the rollout knows: constants of this step
        old_logprobs, old_values = look(policy)
        ref_logprobs, _ = look(sft)
        scores = rollouts.scores - config.missing_eos_penalty * (~rollouts.ended).float()
        rewards = my_rewards(old_logprobs, ref_logprobs, scores, mask, config.beta)
        plain = objectives.gae(rewards, old_values, mask, lam=config.lam).advantages
        returns = plain + old_values
        kept = plain[mask]
        advantages = torch.zeros_like(plain).masked_scatter(
            mask, (kept - kept.mean()) / (kept.var() + 1e-8).sqrt()
        )
    said = {"rewards": rewards[mask], "advantages": advantages[mask], "ratios": [], "losses": []}
    said["kl"] = float(((old_logprobs - ref_logprobs) * mask).sum(1).mean())
    for _ in range(config.epochs):  # 2. several updates on the same answers
        new_logprobs, values = look(policy)
        ratio = (new_logprobs - old_logprobs).exp()  # r_t(θ)
        policy_loss = -my_objective(ratio, advantages, epsilon)[mask].mean()
        value_loss = my_value_loss(values, old_values, returns, mask, config.value_clip)
        optimizer.zero_grad()
        (policy_loss + config.vf_coef * value_loss).backward()
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(everything, config.max_grad_norm)
        optimizer.step()
        said["ratios"].append(ratio[mask].detach())
        said["losses"].append((policy_loss.item(), value_loss.item()))
    return said


def fresh_start(config):
    """A policy that is the SFT model, a value head of zeros, and the optimizer of both."""
    policy = lab.sft()
    head = torch.nn.Linear(policy.config.hidden_size, 1, device=device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    faster = config.learning_rate * config.value_lr_factor  # the head starts from nothing
    groups = [{"params": [*policy.parameters()]}, {"params": [*head.parameters()], "lr": faster}]
    options = {"lr": config.learning_rate, "eps": config.adam_eps, "weight_decay": 0.0}
    return policy, head, torch.optim.AdamW(groups, **options)


my_policy, my_head, my_optimizer = fresh_start(one_step)
mine = my_step(my_policy, my_head, my_optimizer, rollouts, one_step)

# %% [markdown]
# Before the first update the policy is the reference: **KL = 0 and every ratio is 1.** After one update
# it is not any more. And the trainer's numbers are ours:

# %%
assert mine["kl"] == 0.0
torch.testing.assert_close(mine["ratios"][0], torch.ones_like(mine["ratios"][0]))

inside = rollouts.mask  # the trainer keeps its numbers as (B, C), we kept the tokens in a row
torch.testing.assert_close(mine["rewards"], rollouts.rewards[inside], atol=1e-5, rtol=1e-4)
torch.testing.assert_close(mine["advantages"], rollouts.advantages[inside], atol=1e-4, rtol=1e-3)

average = [sum(both) / 2 for both in zip(*mine["losses"], strict=True)]
two = mine["ratios"][1]
pairs = {
    "KL before the first update": (mine["kl"], theirs.stats["kl"]),
    "largest ratio, first update": (
        float(mine["ratios"][0].max()),
        theirs.stats["ratio_first_max"],
    ),
    "largest ratio, second update": (float(two.max()), theirs.stats["ratio_max"]),
    "smallest ratio, second update": (float(two.min()), theirs.stats["ratio_min"]),
    "policy loss, mean of both": (average[0], theirs.stats["policy_loss"]),
    "value loss, mean of both": (average[1], theirs.stats["value_loss"]),
}
for name, (ours, its) in pairs.items():
    assert abs(ours - its) < 1e-3 + 1e-3 * abs(its), f"{name}: {ours} is not {its}"
compared = pd.DataFrame(pairs, index=["mine", "PPOTrainer"]).T
compared.style.format("{:.6f}")

# %%
trained = dict(rival.policy.named_parameters())
moved_by = max(float((trained[n] - p).abs().max()) for n, p in sft.named_parameters())
apart = max(float((trained[n] - p).abs().max()) for n, p in my_policy.named_parameters())
print(f"largest change of a weight in these two updates:    {moved_by:.1e}")
print(f"largest difference between my weights and the trainer's: {apart:.1e}")

# %% tags=["hidden-test"]
assert abs(theirs.stats["kl"]) < 1e-4
assert abs(theirs.stats["ratio_first_max"] - 1) < 1e-4
assert apart < 0.02 * moved_by, (apart, moved_by)

# %% [markdown] slides="16"
# The rest of a trainer is bookkeeping: minibatches, micro-batches, half precision, logs, checkpoints.
#
# **Is it stable?** The lecture says so, and the clip is the reason. Test it with your own step: ten
# updates on the *same* 32 answers, with the clip and without. How far does the policy run, on evidence
# that does not grow?

# %%
many = dataclasses.replace(one_step, epochs=3 if lab.tier.is_fast else 10)
runaway = {}
for name, epsilon in {"with the clip": 0.2, "without": 1e6}.items():
    parts = fresh_start(many)
    said = my_step(*parts, rollouts, many, epsilon=epsilon)
    # KL(π_old ‖ π_θ) per token: the mean of (r - 1) - log r over tokens that π_old drew
    runaway[name] = [float((r - 1 - r.log()).mean()) for r in said["ratios"]]
figure = plots.figure("Many updates on the same answers", "update", "KL(π_old ‖ π_θ), nats a token")
for (name, curve), colour in zip(runaway.items(), ("ppo", "ppo_low_beta"), strict=True):
    plots.line(figure, range(1, len(curve) + 1), curve, name, plots.COLOURS[colour])
figure

# %% tags=["hidden-test"]
assert all(curve[0] < 1e-6 for curve in runaway.values()), (
    "nothing has moved before the first update"
)
if not lab.tier.is_fast:
    assert runaway["without"][-1] > runaway["with the clip"][-1]

# %% [markdown]
# ## 10 · Practise
#
# Now the trainer, for real: a reward model to please, a reference to stay close to, and a β. Every few
# steps we measure the policy on **held-out** prompts, which PPO never practises on. (Three quarters of
# the tier's steps at one and a half times its learning rate: a lesson has to be short.)

# %%
from course_utils.evaluation import CostMeter
from course_utils.inspectors import RolloutInspector, watch
from course_utils.training.run import RunLog


def short(config, **changes):
    """The tier's settings of PPO, made shorter, with more answers kept for looking at."""
    steps, rate = max(1, round(0.75 * config.steps)), 1.5 * config.learning_rate
    quick = {"steps": steps, "learning_rate": rate, "rollouts_every": 3, "rollouts_saved": 12}
    return dataclasses.replace(config, **{**quick, **changes})


def measure(where, policy, step):
    """Held-out prompts: the reward model's opinion, the truth where it is known, and the KL."""
    found = where.evaluate(
        policy, reward=where.reward_model(), reference=where.sft(), batch_size=256
    )
    gold = found.gold.mean if found.gold else float("nan")
    return {
        "step": step, "kl": found.kl.mean, "proxy": found.reward.mean, "gold": gold, "found": found,
    }  # fmt: skip


def practise(where, name, config, every, start=None):
    """PPO from the SFT model; interrupted, it returns the policy as far as it came."""
    path, cost = [start or measure(where, where.sft(), 0)], CostMeter(name)
    run = RunLog.create(
        where.run_directory(name), dataclasses.asdict(config), where.seed, overwrite=True
    )
    trainer = PPOTrainer(
        where.sft(),
        where.reward_model(),
        where.tokenizer,
        where.prompts("train", 2_000),
        config,
        log=run,
        gold=per_answer(where.gold) if where.gold else None,  # logged, never trained on
    )
    try:
        while not trainer.finished:
            with cost:
                trainer.step()
            if trainer.steps_done % every == 0 or trainer.finished:
                path.append(measure(where, trainer.policy, trainer.steps_done))
    except KeyboardInterrupt:
        print(f"stopped after step {trainer.steps_done}: everything below works with what is there")
    return trainer, run, path, cost


# %% [markdown]
# **Your guess.** β is 0.1, so a nat costs a tenth of a reward unit (a reward unit is one standard
# deviation among the SFT model's answers). How many nats from the SFT model will the policy be at the
# end? And how much will the *reward model's* score have risen?

# %%
my_guess_kl, my_guess_rise = 20.0, 0.2

# %% [markdown]
# The next cell opens a dashboard on a run that does not exist yet; the one after it trains. Watch the
# two together: what moves first, reward or KL?

# %%
dashboard = watch(lab.run_directory("lesson-04"))
dashboard

# %%
config = short(lab.settings.ppo)
trainer, run, path, cost = practise(lab, "lesson-04", config, every=5)
ppo = trainer.policy

# %%
dashboard.stop()
first, last = path[0], path[-1]
print(
    f"before the first update: KL {run.rows[0]['kl']:.6f}, largest ratio {run.rows[0]['ratio_first_max']:.6f}"
)
print(f"held-out, {first['found'].prompts} prompts, after {trainer.steps_done} steps:")
print(f"  KL                {last['kl']:.2f} nats per answer, you guessed {my_guess_kl:.2f}")
print(
    f"  reward model      {first['proxy']:+.2f} → {last['proxy']:+.2f}, you guessed {my_guess_rise:+.2f} more"
)
if lab.gold:
    print(f"  gold              {first['gold']:+.2f} → {last['gold']:+.2f}")

# %% tags=["hidden-test"]
assert abs(run.rows[0]["kl"]) < 1e-3 or lab.choice.precision != "fp32"
assert abs(run.rows[0]["ratio_first_max"] - 1) < 0.05
assert trainer.finished
assert path[-1]["step"] == trainer.steps_done == len(run.rows)
if not lab.tier.is_fast:
    assert last["proxy"] > first["proxy"] + 0.2, "PPO must raise what it maximises"

# %%
dashboard

# %% [markdown]
# ## 11 · Token by token
#
# The trainer kept some of its answers with everything it knew about each token. Move the slider from
# the first step to the last, and colour by
#
# * **log ratio**: where did the policy leave the reference? Look at the first words and the last ones.
# * **reward**: almost all of it stands on the last token; the small ones before it are the price −β d.
# * **value**: at step 1 the critic knows nothing. Later it rises and falls *within* an answer: it has
#   learnt to smell a mistake before the sentence is over.
# * **advantage**: the sum of the two views, and what the update really pulls.
#
# Beside each answer stands one of the SFT model to the same prompt.


# %%
def with_references(where, run):
    """The run's answers, each beside one of the SFT model."""
    kept = list(dict.fromkeys(row["prompt"] for row in run.rollouts()))
    answers = where.generate(where.sft(), kept)
    return RolloutInspector(run, references=dict(zip(kept, answers, strict=True)))


with_references(lab, run)

# %% tags=["hidden-test"]
shown = RolloutInspector(run)
assert shown.steps[0] == 1
assert shown.steps[-1] == trainer.steps_done
assert {"kl", "advantages", "values", "rewards"} <= set(shown.summary()["quantities"])

# %% [markdown]
# ## 12 · Take the KL away
#
# The same trainer, the same reward model, the same prompts; only **β = 0**, and it may practise
# longer. From here on we need to know the truth, so this part runs in the embedded world on any tier.
#
# **Your guess**, before you run: the reward model's score and the gold reward at the end, compared with
# the run above. (On section 2's picture: how far to the right does it get?)

# %%
my_guess_proxy, my_guess_gold = "higher", "higher"  # "higher", "lower" or "the same"

# %%
unleashed_board = watch(world.run_directory("lesson-04-no-kl"))
unleashed_board

# %%
longer = min(24, world.settings.ppo_low_beta.steps)
no_kl = short(world.settings.ppo, beta=0.0, steps=longer)
unleashed, unleashed_run, unleashed_path, unleashed_cost = practise(
    world, "lesson-04-no-kl", no_kl, every=4, start=path[0] if world is lab else None
)

# %%
unleashed_board.stop()
if world is lab:
    leashed_path = path
else:  # the same β in the world, to compare with
    _, _, leashed_path, _ = practise(world, "lesson-04-world", short(world.settings.ppo), every=5)

two_runs = {f"β = {world.settings.ppo.beta:g}": leashed_path, "β = 0": unleashed_path}
top = max(unleashed_path, key=lambda point: point["gold"])
end, begin = unleashed_path[-1], unleashed_path[0]

# %% tags=["hidden-test"]
assert begin["kl"] == 0.0
assert end["step"] == unleashed.steps_done
if not world.tier.is_fast:
    assert end["proxy"] > begin["proxy"] + 0.5
    assert top["gold"] > end["gold"], "without a leash gold falls in the end"
    assert end["kl"] > leashed_path[-1]["kl"]

# %% tags=["hide-input"]
# @title Proxy and gold against √KL, with and without the penalty
figure = plots.figure("How far for how much", x="√KL to the SFT model", y="reward", height=400)
for (name, points), colour in zip(two_runs.items(), ("ppo", "ppo_low_beta"), strict=True):
    root = [max(p["kl"], 0) ** 0.5 for p in points]
    band = [p["found"].gold.low for p in points], [p["found"].gold.high for p in points]
    style = {"colour": plots.COLOURS[colour], "mode": "lines+markers"}
    proxies, golds = [p["proxy"] for p in points], [p["gold"] for p in points]
    plots.line(figure, root, proxies, f"{name}: reward model", line={"dash": "dot"}, **style)
    plots.line(figure, root, golds, f"{name}: gold", spread=band, **style)
figure

# %% tags=["hide-input"]
# @title In words
from IPython.display import Markdown

fell = end["found"].gold.high < top["found"].gold.low
Markdown(
    f"Without the penalty the reward model's score went from {begin['proxy']:+.2f} to "
    f"**{end['proxy']:+.2f}**. The gold reward went from {begin['gold']:+.2f} to {top['gold']:+.2f} at a KL "
    f"of {top['kl']:.1f} nats, and then to **{end['gold']:+.2f}** at {end['kl']:.1f} nats"
    + (", a fall that the 95% intervals confirm. " if fell else "; the 95% intervals overlap. ")
    + f"With β = {world.settings.ppo.beta:g} the policy stands at {leashed_path[-1]['kl']:.1f} nats and "
    f"{leashed_path[-1]['gold']:+.2f} gold. You guessed: reward model {my_guess_proxy}, gold {my_guess_gold}."
)

# %% [markdown]
# **When the score rises and the answers get worse**, nothing in the training's own numbers tells: the
# reward goes up, the losses look fine. Only the KL warns. This is *over-optimisation* (Gao et al. 2023),
# also called reward hacking, or Goodhart's law: when a measure becomes a target, it ceases to be a good
# measure.
#
# ### What does it say at the end?

# %%
finals = {
    "SFT": begin["found"],
    f"PPO, β = {world.settings.ppo.beta:g}": leashed_path[-1]["found"],
    "PPO, β = 0": end["found"],
}
from course_utils.comparison import Comparison

Comparison(finals)


# %%
def sentences(found):
    """The share of answers that contain each sentence."""
    said = [s.strip() for c in found.completions for s in set(c.text.replace("!", ".").split("."))]
    return pd.Series([s for s in said if s]).value_counts() / len(found.completions)


habit = sentences(end["found"]).sub(sentences(begin["found"]), fill_value=0).nlargest(6)
share = pd.DataFrame(
    {name: sentences(found).reindex(habit.index, fill_value=0) for name, found in finals.items()}
)
print("the sentences that gained most, and the share of answers in which they stand")
share.style.format("{:.0%}")

# %% tags=["hidden-test"]
assert len(share) > 0
assert share.to_numpy().min() >= 0
assert share.to_numpy().max() <= 1

# %% [markdown]
# And the answers that fool the reward model most: highest score for the least gold.

# %%
fooled = sorted(end["found"].completions, key=lambda c: (c.gold or 0) - c.reward)[:4]
before = {c.prompt: c for c in begin["found"].completions}
rows = []
for c in fooled:
    rows.append(
        (c.prompt, "SFT", before[c.prompt].reward, before[c.prompt].gold, before[c.prompt].text)
    )
    rows.append(("", "β = 0", c.reward, c.gold, c.text))
show(pd.DataFrame(rows, columns=["prompt", "model", "reward model", "gold", "answer"]))

# %% tags=["hide-input"]
# @title Which parts of the gold reward it gained and lost
names = [n for n, part in end["found"].parts.items()
         if max(abs(f.parts[n].mean) for f in finals.values()) > 0.02]  # fmt: skip
figure = plots.figure("Points by part of the gold reward", barmode="group", height=340)
for (name, found), colour in zip(finals.items(), ("sft", "ppo", "ppo_low_beta"), strict=True):
    plots.bars(
        figure, [n.replace("_", " ") for n in names], [found.parts[n] for n in names],
        plots.COLOURS[colour], name,
    )  # fmt: skip
figure

# %% [markdown]
# Now read it token by token. Colour by **KL** and look where the policy pays no price any more.

# %%
with_references(world, unleashed_run)

# %% [markdown]
# ## 13 · The claim: reward for distance
#
# *PPO maximises the reward while the KL penalty keeps the policy near its start.* And, from Bai et al.
# (2022): the reward rises about **linearly in √KL**, at first. A straight line through the points of
# both runs up to the KL at which gold was highest:

# %%
import numpy as np

points = pd.DataFrame([*leashed_path, *unleashed_path[1:]])
early = points[points["kl"] <= max(top["kl"], 1.0)]
roots = early["kl"].clip(lower=0) ** 0.5
slope, offset = np.polyfit(roots, early["proxy"], 1) if len(early) > 2 else (0.0, 0.0)
left = early["proxy"] - (slope * roots + offset)
explained = float(1 - left.var() / early["proxy"].var()) if len(early) > 2 else 0.0
print(
    f"reward model = {offset:+.2f} {slope:+.2f} √KL explains {explained:.0%} of the {len(early)} points"
)

# %%
held = leashed_path[-1]
better = held["found"].gold.mean > begin["gold"]
rose, nearer = held["proxy"] > begin["proxy"], held["kl"] < end["kl"]
world.claim(
    "C07",
    f"β = {world.settings.ppo.beta:g}: reward model {begin['proxy']:+.2f} → {held['proxy']:+.2f}, gold "
    f"{begin['gold']:+.2f} → {held['gold']:+.2f} at {held['kl']:.1f} nats. β = 0: reward model "
    f"{end['proxy']:+.2f}, gold {end['gold']:+.2f} at {end['kl']:.1f} nats. Up to the peak of gold a line in √KL "
    f"explains {explained:.0%} of the reward.",
    holds=bool(rose and nearer and better),
    proxy=held["proxy"], gold=held["gold"], kl=held["kl"], kl_without=end["kl"], linear=explained,
)  # fmt: skip

# %%
world.claim(
    "C08",
    f"without the penalty the reward model's score rose from {begin['proxy']:+.2f} to {end['proxy']:+.2f}, "
    f"while gold rose to {top['gold']:+.2f} (KL {top['kl']:.1f}) and ended at {end['gold']:+.2f} (KL {end['kl']:.1f}).",
    holds=bool(end["proxy"] > top["proxy"] and end["gold"] < top["gold"]),
    gold_start=begin["gold"], gold_peak=top["gold"], gold_end=end["gold"], proxy_end=end["proxy"],
)  # fmt: skip

# %% [markdown] slides="16"
# ## 14 · Stable, exploring, expensive, sensitive
#
# The lecture's four words on PPO. **Stable** you have tested in section 9, **sensitive to the reward
# model's errors** in section 12. Two are left.
#
# **It explores**, since it learns from its own samples: a policy that never says something cannot learn
# that it was good. What it still has to try is measured by its *entropy*, in nats per token (0: it
# always says the same).

# %% tags=["hide-input"]
# @title Entropy, drawn
figure = plots.figure("What is left to explore", "step", "entropy, nats a token")
for name, log, colour in (
    (f"β = {config.beta:g}", run, "ppo"),
    ("β = 0", unleashed_run, "ppo_low_beta"),
):
    rows = log.frame()
    plots.line(figure, rows["step"], rows["entropy"], name, plots.COLOURS[colour])
figure.update_yaxes(rangemode="tozero")

# %%
for name, log, points in (("with KL", run, path), ("β = 0", unleashed_run, unleashed_path)):
    rows, said = log.frame(), points[-1]["found"]
    print(
        f"{name}: entropy {rows['entropy'].iloc[0]:.2f} → {rows['entropy'].iloc[-1]:.2f} nats a token, "
        f"{rows['clip_fraction'].mean():.1%} of tokens stopped by the clip, "
        f"{said.distinct_2:.2f} of all word pairs different (SFT {begin['found'].distinct_2:.2f})"
    )

# %% [markdown] slides="16"
# **It is expensive: rollouts.** Every step writes new answers, token by token, has them read by the
# reference and by the reward model, and only then learns. Beside it, SFT's own bill from when the lab
# trained it:

# %%
from course_utils.evaluation.costs import forward_flops, matmul_parameters, training_flops

parameters = matmul_parameters(ppo)
prompt_tokens = sum(map(len, trainer.prompts.tokens)) / len(trainer.prompts.tokens)
cost.generated_tokens = trainer.tokens
cost.trained_tokens = trainer.tokens * config.epochs
read = (
    trainer.tokens + prompt_tokens * trainer.steps_done * config.rollouts_per_step
)  # with prompts
cost.flops = (
    forward_flops(parameters, 3 * read)  # to sample, for the reference, for the reward model
    + training_flops(parameters, read * config.epochs)
)
bill = {
    "SFT": lab.cost("sft"),
    "PPO, this run": cost.row(),
}
table = pd.DataFrame(bill).T[
    ["seconds", "cpu_seconds", "generated_tokens", "trained_tokens", "flops"]
]
table = table.astype(float)
table["models held"] = [1, 3]  # PPO: policy (with value head), reference, reward model
learnt_from = [table.loc["SFT", "trained_tokens"], trainer.tokens]  # PPO uses each of them twice
table["FLOPs a word learnt from"] = table["flops"] / learnt_from
table.style.format("{:,.3g}")

# %% tags=["hidden-test"]
assert table.loc["SFT", "generated_tokens"] == 0 < table.loc["PPO, this run", "generated_tokens"]
assert (
    table.loc["PPO, this run", "FLOPs a word learnt from"]
    > table.loc["SFT", "FLOPs a word learnt from"]
)

# %%
times = table.loc["PPO, this run"] / table.loc["SFT"]
slower, dearer = times["cpu_seconds"] > 1.2, times["FLOPs a word learnt from"] > 1
lab.claim(
    "C09",
    f"{trainer.tokens:,} tokens written by the policy (SFT: none); for each of them "
    f"{times['FLOPs a word learnt from']:.1f} times the FLOPs that SFT spends on a token of a demonstration; "
    f"three models in memory instead of one; {times['cpu_seconds']:.1f} times SFT's CPU seconds in all.",
    holds=bool(slower) if slower == dearer else None,
    condition="" if slower == dearer else f"by the token yes, but {trainer.steps_done} steps are few",
    generated=trainer.tokens, cpu_factor=times["cpu_seconds"], flops_factor=times["FLOPs a word learnt from"],
)  # fmt: skip

# %% [markdown]
# ## 15 · The library: TRL without a critic
#
# TRL took its PPO trainer out in version 1.13 (too little used, too hard to maintain). What it keeps are
# relatives that need no value head: **GRPO** and **RLOO** sample several answers to *each* prompt and
# let them be each other's baseline. RLOO's advantage of an answer is its reward minus the mean of the
# *others'* (Ahmadian et al. 2024):
#
# $$\hat A_i = R_i - \frac{1}{G - 1} \sum_{j \ne i} R_j$$


# %%
def my_rloo(rewards):
    """(N, G) rewards of G answers to each of N prompts -> (N, G) advantages."""
    others = (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


# %% tags=["hide-input"]
# @title One generation of TRL's RLOOTrainer, with the rewards it saw and the advantages it made
import tempfile

from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer

from course_utils.training.trl_common import quiet_libraries

seen = []


def by_length(completions, **_):
    """Any reward will do here: the number of words."""
    seen.extend(float(len(c[0]["content"].split())) for c in completions)
    return seen[-len(completions) :]


with tempfile.TemporaryDirectory() as folder, quiet_libraries(progress=False):
    world.sft().save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)
    rloo = RLOOTrainer(
        model=folder,
        reward_funcs=by_length,
        args=RLOOConfig(
            output_dir=folder, num_generations=4, per_device_train_batch_size=8, max_completion_length=24,
            disable_dropout=True, beta=0.0, report_to="none", use_cpu=True, bf16=False, logging_steps=1,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": p}]} for p in world.prompts("train", 4)]
        ),
        processing_class=world.tokenizer,
    )  # fmt: skip
    rloo.current_gradient_accumulation_steps = 1
    made = rloo._generate_and_score_completions(next(iter(rloo.get_train_dataloader())))

# %%
rewards = torch.tensor(seen).view(-1, 4)  # (N, G)
torch.testing.assert_close(my_rloo(rewards), objectives.rloo_advantages(rewards))
torch.testing.assert_close(
    my_rloo(rewards).flatten(), made["advantages"].cpu(), rtol=1e-4, atol=1e-4
)
pd.DataFrame(my_rloo(rewards).numpy(), columns=[f"Â of answer {i}" for i in range(1, 5)]).round(2)

# %% tags=["hidden-test"]
assert my_rloo(rewards).sum(1).abs().max() < 1e-3, "a group's advantages add up to 0"

# %% [markdown]
# ## 16 · What broke, and why
#
# PPO with a mistake in it often still learns something, so mistakes survive for months. Each of these
# has been found in widely used code; each leaves a mark on a curve, if one looks. Four of them, done on
# purpose to the answers and runs of this notebook:


# %%
def temperature_forgotten():
    """Sampled at temperature 1, scored at 0.7: the sorted ratios before the first update."""
    with torch.no_grad():
        scored = token_logprobs(sft, ids, real, ids.shape[1] - 32, temperature=0.7)
    return (scored - logprobs)[mask].exp().sort().values.tolist()


def sign_turned_round():
    """The KL that a log would show with log π_ref - log π, step by step."""
    kept = pd.DataFrame([{"step": r["step"], "kl": sum(r["kl"])} for r in unleashed_run.rollouts()])
    return -kept.groupby("step")["kl"].mean()


def controlled(divisor):
    """β of an adaptive controller with a target of 1 nat per answer, fed with this run's KL."""
    control = objectives.AdaptiveKL(0.1, target=1.0, horizon=1_000)
    rows = unleashed_run.rows
    return [control.update(r["kl"] / (r["completion_tokens"] if divisor else 1), 96) for r in rows]


def steps_at(learning_rate):
    """The KL of a few steps of 32 answers."""
    few = dataclasses.replace(
        one_step, steps=2 if lab.tier.is_fast else 4, learning_rate=learning_rate
    )
    return [step.stats["kl"] for step in PPOTrainer(lab.sft(), reward_model, tokenizer, asked, few)]


rate = lab.settings.ppo.learning_rate
symptoms = {
    "ratio": temperature_forgotten(),
    "kl": sign_turned_round(),
    "beta": (controlled(False), controlled(True)),
    "rate": (steps_at(rate), steps_at(20 * rate)),
}
unmasked = float(my_kl(*chosen, "k1").sum(1).mean())
masked = float(per_answer_kl["k1"].mean())

# %% tags=["hide-input"]
# @title Four mistakes and their symptoms
from plotly.subplots import make_subplots

figure = make_subplots(2, 2, vertical_spacing=0.2, subplot_titles=(
    "1  scored at another temperature", "2  the KL's sign turned round",
    "3  KL per token into a target per answer", "4  learning rate × 20",
))  # fmt: skip
WRONG, RIGHT = plots.COLOURS["ppo_low_beta"], plots.COLOURS["sft"]


def draw(row, column, x, y, colour, name=None):
    figure.add_scatter(
        x=list(x), y=list(y), line={"color": colour, "width": 2.5}, mode="lines", row=row, col=column,
        name=name, showlegend=name is not None,
    )  # fmt: skip


places = range(len(symptoms["ratio"]))
draw(1, 1, places, [1.0] * len(places), RIGHT, "right")
draw(1, 1, places, symptoms["ratio"], WRONG, "wrong")
draw(1, 2, symptoms["kl"].index, -symptoms["kl"], RIGHT)
draw(1, 2, symptoms["kl"].index, symptoms["kl"], WRONG)
for row, column, key in ((2, 1, "beta"), (2, 2, "rate")):
    for curve, colour in zip(symptoms[key], (RIGHT, WRONG), strict=True):
        draw(row, column, range(1, len(curve) + 1), curve, colour)
for at, label in enumerate(("ratio, first update", "KL in the log", "β", "KL, nats an answer")):
    figure.update_yaxes(
        title=label, row=at // 2 + 1, col=at % 2 + 1, gridcolor="rgba(128,128,128,.25)"
    )
for at, label in enumerate(("tokens, sorted", "step", "step", "step")):
    figure.update_xaxes(
        title=label, row=at // 2 + 1, col=at % 2 + 1, gridcolor="rgba(128,128,128,.25)"
    )
figure.update_layout(height=560, **plots.LOOK)

# %% tags=["hidden-test"]
assert max(symptoms["ratio"]) > 1.01 or min(symptoms["ratio"]) < 0.99
assert abs(symptoms["rate"][1][0]) < 1e-3
if not lab.tier.is_fast:
    assert symptoms["kl"].iloc[-1] < 0
    assert symptoms["rate"][1][-1] > symptoms["rate"][0][-1]
    assert symptoms["beta"][0][-1] > symptoms["beta"][1][-1]

# %% [markdown]
# | mistake | symptom | look at |
# |---|---|---|
# | **1.** sampled at one temperature (or with top-k, or dropout on), scored without | the ratio is not 1 before the first update; part of the batch is clipped at once | `ratio_first_max`, `clip_fraction` of step 1 |
# | **2.** the KL's sign turned round (published code had it) | an average KL below 0, which cannot be; the policy is *paid* to go away | `kl` |
# | **3.** KL per token where a KL per answer belongs | β sinks and sinks, although the policy is far away | `beta` beside `kl` |
# | **4.** learning rate too high | the KL jumps within a few steps, then the reward falls | `kl`, `approx_kl`, `entropy` |
# | **5.** no mask after EOS, or one made from `id != pad` | the KL counts tokens that nobody said, and the score may hang on padding | answers' length beside `kl` |

# %%
print(
    f"mistake 5 on the answers of section 4: KL {masked:.2f} nats an answer, without the mask {unmasked:.2f}"
)

# %% [markdown]
# The best test is the cheapest: **before the first update KL = 0 and every ratio is 1.** Nearly all of
# PPO's bookkeeping has to be right for that.
#
# ## 17 · Check yourself
#
# <details>
# <summary><b>1.</b> In section 12 the reward kept rising while gold fell. Would a larger reward model, or more ranked pairs, make the KL penalty unnecessary?</summary>
#
# They move the peak to the right and up, as fewer answers are overrated and they lie further away. But
# any reward model is wrong somewhere, and it was trained on answers of a model near the SFT model. The
# further the policy moves, the less its score means. Lesson 08 measures how the peak moves.
# </details>
#
# <details>
# <summary><b>2.</b> You halve β. What happens to the KL at the end of a long run, if reward rises like √KL?</summary>
#
# With reward = a√KL the objective a√KL − βKL is largest at √KL = a / 2β: half the β, **four times** the
# KL. That is why a β which suits one reward model can be far off for another, and why a target KL
# travels better.
# </details>
#
# <details>
# <summary><b>3.</b> Somebody adds the mean of k1 = log π − log π_ref to the <i>loss</i> instead of subtracting it from the reward. Why does the policy run away nonetheless?</summary>
#
# The gradient of its mean is the mean of ∇ log π over samples of π, and that is 0: Σ π ∇ log π = ∇ Σ π
# = ∇ 1. In the reward, k1 multiplies ∇ log π and works. As a loss use k2, whose gradient is right
# (the explorer of section 4 shows where each one pushes).
# </details>
#
# ## 18 · Read on
#
# * Schulman et al. 2017, [Proximal policy optimization algorithms](https://arxiv.org/abs/1707.06347); 2016, [Generalized advantage estimation](https://arxiv.org/abs/1506.02438)
# * Schulman 2020, [Approximating KL divergence](http://joschu.net/blog/kl-approx.html)
# * Ziegler et al. 2019, [Fine-tuning language models from human preferences](https://arxiv.org/abs/1909.08593); Stiennon et al. 2020, [Learning to summarize from human feedback](https://arxiv.org/abs/2009.01325)
# * Ouyang et al. 2022, [InstructGPT](https://arxiv.org/abs/2203.02155); Bai et al. 2022, [Training a helpful and harmless assistant with RLHF](https://arxiv.org/abs/2204.05862)
# * Gao et al. 2023, [Scaling laws for reward model overoptimization](https://arxiv.org/abs/2210.10760)
# * Huang et al. 2024, [The N+ implementation details of RLHF with PPO](https://arxiv.org/abs/2403.17031)
# * Ahmadian et al. 2024, [Back to basics: REINFORCE style optimization](https://arxiv.org/abs/2402.14740) (RLOO); Shao et al. 2024, [DeepSeekMath](https://arxiv.org/abs/2402.03300) (GRPO)
#
# **Next:** the closed form of section 2 can be turned round: if the best policy follows from the reward,
# the reward follows from the policy. Then the reward model, the rollouts and this whole machine become
# unnecessary. Lesson 05 does that: **DPO**.
#
# **Exercises:** [exercises/04_ppo.ipynb](../exercises/04_ppo.ipynb): three estimates of the KL, what
# every token earns, advantages, the clipped loss, who chooses β, and which mistake made these curves.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
