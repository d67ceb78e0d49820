# %% [markdown] seconds=60
# # Exercises 08 · Limitations
#
# Five tasks that belong to lesson 08: choose the best of n answers, estimate what that brings, fit the
# curve of over-optimisation, learn from labels of which some are wrong, and count the directions of a
# weight change. For each one: write the function, run the check below it until it says *passed*, then
# run the small experiment, which uses **your** function on real models.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import math

import torch
import torch.nn.functional as F

from course_utils import Lab, check

lab = Lab.open()
world = lab.world  # tier tiny: the small universe in which the true quality (gold) is known
fast = lab.tier.is_fast
world

# %% [markdown]
# ## Task 1 · Best of n, and how far it goes
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# Draw $n$ answers, keep the one that the reward model likes best: alignment without training. Its
# distance from the model that answers is known in closed form, as an upper bound:
#
# $$\mathrm{KL}(\pi_{\text{best-of-}n}\,\|\,\pi) \;\le\; \log n - \frac{n-1}{n} \quad\text{nats}$$
#
# Write `best_of_n(rewards)`.
#
# * `rewards` (P, N), N answers to each of P prompts, float16 or larger, not changed by your function;
# * the result has shape (P,) and holds integers (int64 is usual): the **position** 0 … N - 1 of each
#   prompt's answer with the highest reward;
# * of several equal ones the **first**;
# * NaN is no reward: such an answer is never chosen while the prompt has another one. $-\infty$ *is* a
#   reward, the lowest; so it is chosen where all others are NaN. A prompt with NaN alone gives 0.
#
# And `best_of_n_kl(n)`: the bound above as a float, for an integer n ≥ 1.
#
# <details><summary>A hint</summary>
#
# `torch.argmax` gives the first of several equal values, and takes NaN for the largest number of all.
# Turning NaN into $-\infty$ helps almost always; think about the row `[nan, -inf]`. Which positions hold
# the row's highest *number*?
# </details>


# %% task="best-of-n"
def best_of_n(rewards):
    ### BEGIN SOLUTION
    number = ~rewards.isnan()  # (P, N): where there is a reward
    highest = rewards.masked_fill(~number, -math.inf).amax(dim=1, keepdim=True)  # (P, 1)
    candidates = (rewards == highest) & number  # (P, N); none in a row of NaN
    return candidates.int().argmax(dim=1)  # the first candidate, or 0
    ### END SOLUTION


def best_of_n_kl(n):
    ### BEGIN SOLUTION
    return math.log(n) - (n - 1) / n
    ### END SOLUTION


# %% task="best-of-n" points=4
check.best_of_n(best_of_n, best_of_n_kl)

# %% tags=["hidden-test", "solution-only"]
assert check.best_of_n(best_of_n, best_of_n_kl).passed

# %% [markdown]
# ### Try it: what the reward model would send
#
# The SFT model answers held-out prompts, N times each. Of each answer we know the reward model's score,
# which chooses, and its gold reward, which nobody has in life.

# %%
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from course_utils import objectives, plots
from course_utils.evaluation.policy import score_all

P, N = (8, 6) if fast else (24, 32)
sft, reward_model = world.sft(), world.reward_model()
prompts = world.prompts("heldout", P)
repeated = [prompt for prompt in prompts for _ in range(N)]
answers = world.generate(sft, repeated)
rewards = torch.tensor(score_all(reward_model, repeated, answers)).view(P, N)
gold = torch.tensor(
    [world.gold(p, a).total for p, a in zip(repeated, answers, strict=True)]
).view(P, N)  # fmt: skip

# %% tags=["hide-input"]
# @title The course's functions, with the same signatures
from course_utils.evaluation.best_of_n import expected_best as library_expected_best


def course_best_of_n(rewards):
    return torch.from_numpy(rewards.numpy().argmax(axis=1))  # the reward model gives no NaN


def course_expected_best(rewards, scores, n):
    return torch.from_numpy(library_expected_best(rewards.numpy(), scores.numpy())[:, n - 1])


# %%
choose = check.use(best_of_n, otherwise=course_best_of_n)
bound = check.use(best_of_n_kl, otherwise=objectives.best_of_n_kl)

chosen = choose(rewards)  # (P,)
rows = torch.arange(P)
pd.DataFrame(
    {
        "prompt": prompts,
        "first answer": [answers[i * N] for i in range(P)],
        f"best of {N} by the reward model": [answers[i * N + k] for i, k in enumerate(chosen)],
        "gold, first": gold[:, 0],
        "gold, chosen": gold[rows, chosen],
        "gold, best there was": gold.amax(1),
    }
).head(4).style.hide(axis="index").format(precision=2).set_properties(**{"text-align": "left"})

# %% tags=["hidden-test"]
assert (rewards[rows, chosen] == rewards.amax(1)).all()
assert (gold[rows, chosen] <= gold.amax(1)).all()

# %% [markdown]
# Now the bound. Suppose that the model gives exactly the answers we drew, each as often as it came. Then
# the distribution of the best of $n$ can be written down: with $F$ for the share of answers up to a
# reward, the winner lies in a group of equal rewards with probability $F_{\le}^n - F_{<}^n$. So its KL is
# known exactly, and can be compared with the bound.


# %% tags=["hide-input"]
# @title Exact KL against the bound, for three prompts
def exact_kl(texts, scores, n):
    """KL of best-of-n from the distribution that draws one of these texts: nats."""
    share, reward_of = {}, {}
    for text, score in zip(texts, scores, strict=True):
        share[text] = share.get(text, 0.0) + 1 / len(texts)
        reward_of[text] = float(score)
    kl, below = 0.0, 0.0
    for level in sorted(set(reward_of.values())):
        mass = sum(share[t] for t in share if reward_of[t] == level)
        wins = (below + mass) ** n - below**n  # the group's probability to hold the winner
        kl += wins * math.log(wins / mass) if wins > 0 else 0.0
        below += mass
    return kl


def drawn(i):
    return answers[i * N : (i + 1) * N]


by_variety = sorted(range(P), key=lambda i: len(set(drawn(i))))
shown = [by_variety[0], by_variety[P // 4], by_variety[-1]]  # few, some, most different answers
sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256]
figure = plots.figure("How far best-of-n moves", x="n", y="KL (nats)", height=380)
plots.line(figure, sizes, [bound(n) for n in sizes], "bound", "#888", line={"dash": "dash"})
exact = {}
for k, i in enumerate(shown):
    different = len(set(drawn(i)))
    exact[i] = [exact_kl(drawn(i), rewards[i], n) for n in sizes]
    name = f"{different} different of {N}: “{prompts[i][:38]}…”"
    plots.line(figure, sizes, exact[i], name, plots.colour(k))
figure.update_layout(legend={"orientation": "h", "y": -0.3})
figure.update_xaxes(type="log", tickvals=[1, 4, 16, 64, 256])

# %% tags=["hidden-test"]
for i in shown:
    assert all(kl <= bound(n) + 1e-6 for kl, n in zip(exact[i], sizes, strict=True))
    assert exact[i][0] < 1e-6, "best of one is the model itself"

# %% [markdown] task="why-a-bound" points=2
# **In words** *(2 points)*: the bound grows for ever, the exact curves level off. At which height, and why?
# And why does the curve with the fewest different answers lie below the others long before? What does
# that mean for a plot that puts best-of-n beside PPO by this bound?
#
# ### BEGIN SOLUTION
# Once n is so large that the best answer is nearly always among the n, another draw changes nothing:
# best-of-n then always gives that answer, and its KL is $\log (1/p)$ of that answer's probability $p$. Here an
# answer that was drawn once has $p = 1/N$, so the height is $\log N$ (it is partly of our own making: the real
# model has more answers than we drew). The bound is exact only if no answer comes twice (a continuous
# distribution without ties). Where a few answers come again and again, choosing among equal ones moves
# nothing, so the KL stays below the bound from the start; a model with a single answer does not move at
# all. So in the plot best-of-n stands too far to the right: it is given more KL than it used, and beside a
# PPO run, whose KL is measured, it looks worse than it is.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · What best-of-n brings, from one set of samples
#
# *Difficulty 4 of 5 · about 30 minutes · 4 points*
#
# How good is best of 4? To draw 4 answers and look at the best is one noisy number. With $N \ge n$
# samples there are $\binom{N}{n}$ subsets of $n$, and the mean over **all** of them is unbiased and as
# quiet as can be (Stiennon et al. 2020, Nakano et al. 2021, Gao et al. 2022). No loop over subsets is needed.
# Sort the answers by reward, $k = 1$ the lowest: the $k$-th wins if it is in the subset and the other
# $n - 1$ come from the $k - 1$ below it,
#
# $$\widehat{R}_n = \sum_{k=n}^{N} \frac{\binom{k-1}{n-1}}{\binom{N}{n}}\; s_{(k)}$$
#
# Write `expected_best(rewards, scores, n)`.
#
# * `rewards` (P, N) choose, `scores` (P, N) are what is measured on the chosen answer ($s_{(k)}$ belongs to
#   the answer with the k-th lowest *reward*); all finite, not changed by your function; 1 ≤ n ≤ N;
# * the result has shape (P,), float32 or float64: each prompt's mean over all subsets of n different
#   samples;
# * answers with **equal rewards share**: in a subset a coin decides among them, so the result does not
#   depend on the order of the answers;
# * N may be more than a thousand, n anything up to N. $\binom{1100}{550}$ is larger than any float: see to it
#   that nothing overflows, and that no digits are lost (float64).
#
# <details><summary>A hint</summary>
#
# The best of all N is in the subset with probability n / N: that is the last weight. How many times
# smaller is its neighbour's, $\binom{k-2}{n-1} / \binom{k-1}{n-1}$? For equal rewards: the *sum* of the weights of all
# answers up to some place is the probability that all n come from there. A group of equals has the
# weights of its places together, and each of its members an equal part.
# </details>


# %% task="expected-best-of-n"
def expected_best(rewards, scores, n):
    ### BEGIN SOLUTION
    N = rewards.shape[1]
    weights = [n / N]  # of rank N: is the best of all in the subset?
    for k in range(N, 1, -1):  # from rank k to rank k - 1
        weights.append(weights[-1] * (k - n) / (k - 1))
    weights = torch.tensor(weights[::-1], dtype=torch.float64)  # (N,) lowest rank first
    up_to = F.pad(weights.cumsum(0), (1, 0))  # (N + 1,): P(all n are among the lowest m)
    below = (rewards[:, None, :] < rewards[:, :, None]).sum(-1)  # (P, N) answers that are worse
    equal = (rewards[:, None, :] == rewards[:, :, None]).sum(-1)  # (P, N) itself included
    each = (up_to[below + equal] - up_to[below]) / equal  # (P, N) its probability to win
    return (each * scores.double()).sum(1)
    ### END SOLUTION


# %% task="expected-best-of-n" points=4
check.expected_best_of_n(expected_best)

# %% tags=["hidden-test", "solution-only"]
assert check.expected_best_of_n(expected_best).passed

# %% [markdown]
# ### Try it: reward and gold of the best of n
#
# The same answers as in task 1. The bands say what comes out if one looks at **one** subset (the first n)
# and the answers come in another order: 5% to 95% over many orders. Your estimate uses all subsets, so
# it knows no order.

# %%
expected = check.use(expected_best, otherwise=course_expected_best)
sizes = list(range(1, N + 1))
mean_reward = [float(expected(rewards, rewards, n).mean()) for n in sizes]
mean_gold = [float(expected(rewards, gold, n).mean()) for n in sizes]

# %% tags=["hide-input"]
# @title One subset against all of them, drawn
orders = 20 if fast else 200
generator = torch.Generator().manual_seed(world.seed)
one_subset = torch.zeros(orders, N)  # gold of the best of the first n, in `orders` orders
for o in range(orders):
    order = torch.rand(P, N, generator=generator).argsort(1)
    r, g = rewards.gather(1, order), gold.gather(1, order)
    for n in sizes:
        one_subset[o, n - 1] = g[rows, choose(r[:, :n])].mean()
low, high = (torch.quantile(one_subset, q, dim=0).tolist() for q in (0.05, 0.95))

figure = plots.figure(f"Best of n by the reward model, {P} prompts", x="n", y="mean", height=380)
plots.line(figure, sizes, mean_gold, "gold, all subsets", plots.COLOURS["gold"],
           spread=(low, high))  # fmt: skip
plots.line(figure, sizes, one_subset[0].tolist(), "gold, one subset", plots.COLOURS["gold"],
           line={"dash": "dot", "width": 1.5})  # fmt: skip
plots.line(figure, sizes, mean_reward, "reward, all subsets", plots.COLOURS["reward"])
display(figure)
widths = {n: high[n - 1] - low[n - 1] for n in (1, 4, N)}
Markdown(
    f"From n = 1 to {N} the reward rises by {mean_reward[-1] - mean_reward[0]:+.2f} (in units of its "
    f"spread over SFT's answers), gold by {mean_gold[-1] - mean_gold[0]:+.2f}; gold is highest at n = "
    f"**{1 + int(np.argmax(mean_gold))}** ({max(mean_gold):.2f}). One subset's gold is uncertain by "
    + ", ".join(f"{w:.2f} at n = {n}" for n, w in widths.items())
    + "; the estimate from all subsets by 0, as far as the order goes."
)

# %% tags=["hidden-test"]
assert abs(mean_reward[0] - float(rewards.mean())) < 1e-4
assert abs(mean_reward[-1] - float(rewards.amax(1).mean())) < 1e-4
assert all(b >= a - 1e-6 for a, b in zip(mean_reward, mean_reward[1:], strict=False))
if not fast:  # unbiased: the mean over orders of the one-subset estimate is the estimate
    middle = one_subset.mean(0)
    spread = one_subset.std(0) / orders**0.5
    assert ((middle - torch.tensor(mean_gold)).abs() <= 5 * spread + 1e-4).all()

# %% [markdown] task="why-all-subsets" points=2
# **In words** *(2 points)*: the band is widest on the left and has no width at n = N. Is the estimate
# at n = N therefore the surest one of all? You want to report best of 16: how many samples would you
# draw for each prompt, and why not 16?
#
# ### BEGIN SOLUTION
# No. The band shows only what the *order* of these samples does. At n = N there is one subset, so no
# order matters; but another N samples would give another maximum, and nothing averages that away: the
# estimate at n = N rests on one answer for each prompt. At small n it is the mean over very many subsets,
# and the order's noise (the wide band) is what the estimator takes away. So for best of 16 draw clearly
# more than 16, say 64: then $\binom{64}{16}$ subsets share the work, and about four answers near the top carry
# the estimate in place of one. More prompts help too, since the prompts differ more than the samples.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · The peak of over-optimisation
#
# *Difficulty 3 of 5 · about 25 minutes · 4 points*
#
# Gao et al. (2022) describe how gold moves as a policy is pushed against a reward model by two numbers.
# With $d = \sqrt{\mathrm{KL}}$ and gold measured from its start,
#
# $$R(d) = d\,(\alpha - \beta\, d) \qquad\qquad d^* = \frac{\alpha}{2\beta}$$
#
# Write `fit_overoptimisation(kl, gold, weights=None)`.
#
# * `kl` (M,) in nats and `gold` (M,), float32: M ≥ 3 points, gold above its start; not changed;
# * the result is a tuple of three floats `(alpha, beta, peak)`: the least squares
#   $\min_{\alpha,\beta} \sum_i w_i\,\big(d_i(\alpha - \beta d_i) - \text{gold}_i\big)^2$, **without an intercept**, and the $d \ge 0$ at
#   which the fitted law is highest;
# * `weights` (M,), $w_i \ge 0$, some may be 0; None: all alike. Only their ratios matter;
# * a KL that was estimated slightly below 0 counts as 0;
# * where β ≤ 0 the law rises for ever in the end: the peak is `math.inf`. Where α ≤ 0 < β it only falls: 0;
# * all points may lie far from the start, where $d$ and $d^2$ are nearly one direction: compute in
#   float64, and add nothing to make it "safer".
#
# <details><summary>A hint</summary>
#
# The law is a straight combination of two columns, $d$ and $-d^2$. `torch.linalg.lstsq` wants a matrix
# (M, 2) and a right side (M, 1). It has no weights; but a row that is multiplied by $c$ has its squared
# error multiplied by $c^2$.
# </details>


# %% task="overoptimisation-peak"
def fit_overoptimisation(kl, gold, weights=None):
    ### BEGIN SOLUTION
    d = kl.double().clamp(min=0).sqrt()  # (M,)
    X = torch.stack([d, -d * d], dim=1)  # (M, 2): what α and β multiply
    y = gold.double()
    if weights is not None:
        root = weights.double().sqrt()
        X, y = X * root[:, None], y * root
    alpha, beta = torch.linalg.lstsq(X, y[:, None]).solution[:, 0].tolist()
    if beta <= 0:
        return alpha, beta, math.inf
    return alpha, beta, max(alpha, 0.0) / (2 * beta)
    ### END SOLUTION


# %% task="overoptimisation-peak" points=4
check.overoptimisation_peak(fit_overoptimisation)

# %% tags=["hidden-test", "solution-only"]
assert check.overoptimisation_peak(fit_overoptimisation).passed


# %% tags=["hide-input"]
# @title The course's function, with the same signature
def course_fit(kl, gold, weights=None):
    d = kl.double().clamp(min=0).sqrt().numpy()
    root = np.sqrt(np.ones(len(d)) if weights is None else weights.double().numpy())
    columns = np.stack([d, -(d**2)], axis=1) * root[:, None]
    a, b = np.linalg.lstsq(columns, gold.double().numpy() * root, rcond=None)[0]
    return float(a), float(b), math.inf if b <= 0 else max(float(a), 0.0) / (2 * float(b))


# %% [markdown]
# ### Try it: PPO without its brake
#
# `course run` trains one PPO policy that is meant to fail: no KL penalty, many steps. On the way it was
# measured on held-out prompts. A point counts by how surely it is known: $w = 1 / (\text{half width of its interval})^2$.

# %%
fit = check.use(fit_overoptimisation, otherwise=course_fit)
pushed = pd.DataFrame(world.held_out("ppo_low_beta"))
kl = torch.tensor(pushed["kl"].to_numpy(), dtype=torch.float32)  # (M,)
gain = torch.tensor((pushed["gold"] - pushed["gold"][0]).to_numpy(), dtype=torch.float32)
half = torch.tensor([(high - low) / 2 for low, high in pushed["interval"]])
alpha, beta, peak = fit(kl, gain, 1 / half**2)
measured = float(kl[gain.argmax()].clamp(min=0)) ** 0.5
print(
    f"α = {alpha:.3f}, β = {beta:.3f}: peak at d = {peak:.2f}; the best measured point: {measured:.2f}"
)

# %% tags=["hidden-test"]
toy = torch.tensor([0.0, 1.0, 4.0, 9.0])
toy_fit = fit(toy, toy.sqrt() * (2 - 0.5 * toy.sqrt()))
assert all(abs(a - b) < 1e-5 for a, b in zip(toy_fit, (2.0, 0.5, 2.0), strict=True))
if not fast:
    assert 0 < peak < float(kl.max()) ** 0.5, "the run passed its peak"

# %% [markdown]
# How sure is that? Draw each point again within its interval, fit again, many times. And would a fit
# have *warned* anybody? So the fit is repeated with the first points only, as it could have been done
# while the run went on.

# %% tags=["hide-input"]
# @title The fit, its uncertainty, and what it says early
generator = torch.Generator().manual_seed(world.seed)
noise = torch.randn(20 if fast else 300, len(kl), generator=generator) * half / 1.96
again = [fit(kl, gain + e, 1 / half**2)[2] for e in noise]
span = np.quantile(again, [0.05, 0.95], method="nearest")

d = kl.clamp(min=0).sqrt()
grid = torch.linspace(0, float(d.max()), 80)
figure = plots.figure("Gold above SFT", x="√KL (√nats)", y="gold above SFT", height=380)
band = ((gain - half).tolist(), (gain + half).tolist())
plots.line(figure, d.tolist(), gain.tolist(), "PPO without its brake", plots.COLOURS["ppo_low_beta"],
           spread=band, mode="lines+markers")  # fmt: skip
plots.line(figure, grid.tolist(), (grid * (alpha - beta * grid)).tolist(), "the law, all points",
           plots.colour(0), line={"dash": "dash"})  # fmt: skip
bon_kl = torch.tensor([bound(n) for n in sizes])
bon_gain = torch.tensor(mean_gold) - mean_gold[0]
plots.line(figure, bon_kl.sqrt().tolist(), bon_gain.tolist(), "best of n (task 2, by the bound)",
           plots.COLOURS["best_of_n"])  # fmt: skip
if math.isfinite(peak) and 0 < peak < float(d.max()):
    figure.add_vline(x=peak, line_dash="dot", line_color="#888", annotation_text="d*")
display(figure)
early = {
    f"first {m} points": dict(zip(("α", "β", "peak d*"), fit(kl[:m], gain[:m], 1 / half[:m] ** 2),
                                  strict=True)) | {"last d seen": float(d[m - 1])}
    for m in range(3, len(kl) + 1)
}  # fmt: skip
display(pd.DataFrame(early).T.style.format("{:.2f}"))
bon_fit = fit(bon_kl, bon_gain)
Markdown(
    f"With all points the peak is at d = **{peak:.2f}** (KL {peak**2:.1f}), 90% of the redrawn fits between "
    f"{span[0]:.2f} and {span[1]:.2f}. In the table compare the last two columns: a peak beyond the last d "
    "seen is a prediction, one before it a report. (The same law fitted to best-of-n over its bound: α = "
    f"{bon_fit[0]:.2f}, β = {bon_fit[1]:.2f}, peak at d = {bon_fit[2]:.2f}.)"
)

# %% [markdown] task="why-the-peak-comes-late" points=2
# **In words** *(2 points)*: look at the table's first rows. How far could you trust the peak that a fit
# foretells before the run has reached it, and why? What would you stop by, in a real run without gold?
#
# ### BEGIN SOLUTION
# Hardly at all. Before the peak the curve is nearly the straight line α d: the bend β d² is small against
# the noise of the points, so β is poorly known, and d* = α / 2β divides by it. The foretold peak jumps from
# row to row, and may be infinite where β comes out below 0. It is right only once points from beyond the
# peak are in, and then it is no longer needed. The law describes; it does not warn. And in life there is
# no gold column: one stops by what can be measured, a KL budget chosen from earlier runs, or comparisons
# by fresh people (or a judge that PPO did not train against) on the newest answers.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · Preferences with wrong labels
#
# *Difficulty 3 of 5 · about 25 minutes · 5 points*
#
# A share $\varepsilon$ of the labels is turned round: chosen is rejected and rejected chosen. Let $h$ be
# the difference of log-ratios that DPO looks at, in nats, and $u = \beta h$:
#
# $$h = \log\frac{\pi(y_w)}{\pi_{\text{ref}}(y_w)} - \log\frac{\pi(y_l)}{\pi_{\text{ref}}(y_l)} \qquad f(u) = -\log\sigma(u)$$
#
# $$\text{cDPO} = (1-\varepsilon)\,f(u) + \varepsilon\, f(-u) \qquad\qquad
# \text{robust} = \frac{(1-\varepsilon)\,f(u) - \varepsilon\, f(-u)}{1-2\varepsilon}$$
#
# cDPO expects that the label may be wrong (Mitchell 2023). The robust loss undoes the flips: its mean over
# a right label (probability $1-\varepsilon$) and its flip ($\varepsilon$) is the plain loss of the right one (Chowdhury et al. 2024).
#
# Write `noisy_preference_loss(h, beta, eps, robust=False)`.
#
# * `h` (B,), `beta` > 0 a float; `eps` in [0, 0.5), a float **or a tensor (B,)**: one for each pair, where
#   some annotators err more than others;
# * the result has shape (B,), float32: cDPO's loss of each pair, or with `robust=True` the robust one;
# * h may be ±10000, or bfloat16; ε may be 0.
#
# And `best_margin(beta, eps)`, eps a float: the h at which cDPO's loss is lowest, a float; `math.inf` for ε = 0.
#
# <details><summary>A hint</summary>
#
# `F.logsigmoid` is stable where the logarithm of a sigmoid is not. For the minimum: cDPO is a cross
# entropy between the label's probability 1 - ε and the model's σ(u). When is a cross entropy lowest?
# </details>


# %% task="noisy-preference-loss"
def noisy_preference_loss(h, beta, eps, robust=False):
    ### BEGIN SOLUTION
    u = beta * h.float()  # (B,)
    given, turned = -F.logsigmoid(u), -F.logsigmoid(-u)  # the label as it is, and turned round
    if robust:
        return ((1 - eps) * given - eps * turned) / (1 - 2 * eps)
    return (1 - eps) * given + eps * turned
    ### END SOLUTION


def best_margin(beta, eps):
    ### BEGIN SOLUTION
    return math.log((1 - eps) / eps) / beta if eps > 0 else math.inf
    ### END SOLUTION


# %% task="noisy-preference-loss" points=5
check.noisy_preference_loss(noisy_preference_loss, best_margin)

# %% tags=["hidden-test", "solution-only"]
assert check.noisy_preference_loss(noisy_preference_loss, best_margin).passed


# %% tags=["hide-input"]
# @title The course's functions, with the same signatures
def course_loss(h, beta, eps, robust=False):
    zero, variant = torch.zeros_like(h), "robust" if robust else "sigmoid"
    return objectives.dpo_loss(
        h, zero, zero, zero, beta, variant, label_smoothing=eps, reduction="none"
    )


def course_margin(beta, eps):
    return -math.log(eps / (1 - eps)) / beta if eps else math.inf


# %% [markdown]
# ### Try it: learn a noisy set by heart
#
# A small set of pairs, 30% of them turned round, gone over many times: the worst case for DPO, since in the
# end every single label is learned, the wrong ones too. Three losses, the same pairs, the same order.
#
# The pairs' log-probabilities under the SFT model are taken once, before: they do not change.

# %%
from course_utils.experiments.loop import padded
from course_utils.training.tokenise import preference_rows

EPS, BETA = 0.3, 0.2
size, steps = (16, 3) if fast else (64, 32)


def pairs_of(rows):
    """Two padded batches (input_ids, labels): the chosen and the rejected answers."""
    sides = []
    for side in ("chosen_ids", "rejected_ids"):
        told = [(row["prompt_ids"], row[side]) for row in rows]
        sides.append(padded([{"input_ids": p + a, "labels": [-100] * len(p) + a} for p, a in told]))
    return sides


def log_ratio(model, rows):
    """log π(chosen) - log π(rejected) of each pair: (B,)."""
    values = []
    for ids, labels in pairs_of(rows):
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[:, :-1]
        nll = F.cross_entropy(  # (B, T - 1), 0 where the label is -100
            logits.transpose(1, 2), labels[:, 1:].to(model.device), reduction="none"
        )
        values.append(-nll.sum(1))
    return values[0] - values[1]


def turn_round(rows, share, seed):
    """The pairs with a share of their labels wrong, and which ones (B,)."""
    wrong = torch.zeros(len(rows), dtype=torch.bool)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    wrong[order[: round(share * len(rows))]] = True
    swapped = [
        {**row, "chosen_ids": row["rejected_ids"], "rejected_ids": row["chosen_ids"]} if w else row
        for row, w in zip(rows, wrong.tolist(), strict=True)
    ]
    return swapped, wrong


pairs, heldout_pairs = world.pairs()
clean = preference_rows(pairs.select(range(size)), world.tokenizer, 128, "pairs")
noisy, wrong = turn_round(clean, EPS, world.seed)
with torch.no_grad():
    reference = log_ratio(sft, noisy)
print(f"{int(wrong.sum())} of {len(noisy)} labels are wrong")

# %%
loss_of = check.use(noisy_preference_loss, otherwise=course_loss)
margin_of = check.use(best_margin, otherwise=course_margin)


def train(eps, robust):
    """Goes over the noisy pairs again and again. Returns the model and h (2, steps) by label."""
    model, batch, order, history = world.sft(), min(16, len(noisy)), [], []
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.0)
    generator = torch.Generator().manual_seed(world.seed)
    last = torch.zeros(len(noisy))  # each pair's h when it was last seen
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(noisy), generator=generator).tolist()
        picked, order = order[:batch], order[batch:]
        h = log_ratio(model, [noisy[i] for i in picked]) - reference[picked]
        loss_of(h, BETA, eps, robust=robust).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last[picked] = h.detach().cpu()
        history.append((float(last[~wrong].median()), float(last[wrong].median())))
    return model, np.array(history).T


ways = {"DPO": (0.0, False), "cDPO": (EPS, False), "robust": (EPS, True)}
trained = {name: train(*way) for name, way in ways.items()}

# %% tags=["hide-input"]
# @title How far each loss goes, drawn
target = margin_of(BETA, EPS)
figure = plots.figure("The margin of the noisy pairs", x="step", y="median h (nats)", height=380)
for k, (name, (_, history)) in enumerate(trained.items()):
    tone = plots.colour((2, 0, 1)[k])
    plots.line(figure, range(1, steps + 1), history[0], f"{name}, right labels", tone)
    plots.line(figure, range(1, steps + 1), history[1], f"{name}, wrong labels", tone,
               line={"dash": "dot"})  # fmt: skip
figure.add_hline(y=target, line_dash="dash", line_color="#888",
                 annotation_text=f"best_margin = {target:.1f}")  # fmt: skip
display(figure)
n_checked = 12 if fast else 96
found = {"SFT": world.evaluate(sft, n=n_checked, reference=sft)} | {
    name: world.evaluate(model, n=n_checked, reference=sft) for name, (model, _) in trained.items()
}
with torch.no_grad():
    after = {name: (log_ratio(m, noisy) - reference).cpu() for name, (m, _) in trained.items()}
board = {
    name: {
        "wrong labels learned": float((h[wrong] > 0).float().mean()),
        "median h": float(h.median()),
        "largest h": float(h.max()),
        "gold": found[name].gold.mean,
        "KL": found[name].kl.mean,
    }
    for name, h in after.items()
}
style = pd.DataFrame(board).T.style.format("{:.2f}")
display(style.format("{:.0%}", subset=["wrong labels learned"]))
Markdown(
    f"SFT's gold is {found['SFT'].gold}. After {steps} steps: "
    + ", ".join(f"{name} {e.gold}" for name, e in found.items() if name != "SFT")
    + f". cDPO's best margin is h = {target:.2f}; its median is {board['cDPO']['median h']:.2f}."
)

# %% tags=["hidden-test"]
assert set(board) == set(ways)
if not fast:
    assert abs(board["cDPO"]["median h"] - target) < 0.35 * target, "cDPO stops at its minimum"
    assert board["DPO"]["median h"] > 1.5 * board["cDPO"]["median h"], "DPO does not stop"
    assert board["cDPO"]["KL"] < board["DPO"]["KL"]

# %% [markdown] task="why-cdpo-stops" points=2
# **In words** *(2 points)*: which of the three tells right labels from wrong ones? What then did cDPO gain,
# and why does the robust loss, which is the unbiased one, go furthest here?
#
# ### BEGIN SOLUTION
# None does. In the plot the dotted lines (wrong labels) follow the full ones, and the table says that the
# wrong labels were learned as well, by nearly every pair of a set that is seen so often. A loss looks at
# one pair at a time and cannot know which is wrong. What cDPO knows is how sure one may be: its gradient
# is 0 at h = log((1-ε)/ε)/β and pulls back beyond, so all margins, right or wrong, stop there, the policy
# stays near SFT (small KL), and so does its gold. Plain DPO is never done: log σ(u) can always be raised, so
# wrong labels are driven as far as right ones. The robust loss is right *on average* over many fresh
# pairs, where each flip is met by its opposites. On few pairs seen often there is no average: each one
# pushes harder than in DPO, by ε/(1-2ε) even when it is certain, without an end. Unbiased, at the price of
# more variance.
# ### END SOLUTION

# %% [markdown]
# ## Task 5 · How many directions does a change have?
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# The rank of a matrix counts every direction, however small: with a little noise each matrix has full
# rank. Two counts that need no threshold, from the singular values $\sigma_1 \ge \sigma_2 \ge \dots$:
#
# $$\text{effective rank} = e^{H(p)},\quad H(p) = -\sum_i p_i \log p_i,\quad p_i = \frac{\sigma_i}{\sum_j \sigma_j}
# \qquad\qquad \text{stable rank} = \frac{\|W\|_F^2}{\|W\|^2}$$
#
# (Roy and Vetterli 2007; Rudelson and Vershynin 2007. $\|W\|$ is the spectral norm.)
#
# Write `effective_rank(W)` and `stable_rank(W)`.
#
# * `W` (d, k), of any shape, float32 or bfloat16, not changed; the results are floats;
# * a matrix of zeros gives 0 in both;
# * a singular value that is exactly 0 adds nothing;
# * both counts are the same for W, its transpose and any multiple of it, also where the numbers of W are
#   as small as 1e-28 or as large as 1e25.
#
# <details><summary>A hint</summary>
#
# `torch.linalg.svdvals` gives the singular values, largest first, but not in bfloat16. The squares of
# float32 numbers beyond 1e19 are infinite. `torch.special.entr(p)` is -p log p, and 0 at p = 0.
# </details>


# %% task="effective-rank"
def effective_rank(W):
    ### BEGIN SOLUTION
    sigma = torch.linalg.svdvals(W.double())  # (min(d, k),) largest first
    if sigma[0] == 0:
        return 0.0
    p = sigma / sigma.sum()
    return float(torch.special.entr(p).sum().exp())
    ### END SOLUTION


def stable_rank(W):
    ### BEGIN SOLUTION
    values = torch.linalg.svdvals(W.double())
    return float((values / values[0]).square().sum()) if values[0] > 0 else 0.0
    ### END SOLUTION


# %% task="effective-rank" points=4
check.effective_rank(effective_rank, stable_rank)

# %% tags=["hidden-test", "solution-only"]
assert check.effective_rank(effective_rank, stable_rank).passed

# %% [markdown]
# ### Try it: whole matrices and LoRA
#
# The base model reads texts of the ship's log, a domain whose words it has never seen. Once with all
# numbers of its attention and MLP matrices free, once with a LoRA on the same matrices; everything else
# is frozen, the batches are the same. Then $\Delta W$, what training did to each matrix, is measured. A
# random matrix of the same shape stands beside it.

# %% tags=["hide-input"]
# @title The course's functions, with the same signatures
from course_utils import adapters


def course_effective_rank(W):
    return adapters.effective_rank(W) if bool(W.any()) else 0.0


def course_stable_rank(W):
    return 1 / float(adapters.svd_energy(W)[0]) if bool(W.any()) else 0.0


# %%
from course_utils.experiments.loop import batches, mean_loss, text_rows, train_step
from course_utils.world import domain_corpus

RANK = 8
steps_here = 3 if fast else 40
texts = text_rows(domain_corpus("ship", 48 if fast else 640, world.seed), world.tokenizer)
held = text_rows(domain_corpus("ship", 8 if fast else 48, 10**6), world.tokenizer)


def tuned(model, lr):
    """Trains what is trainable; both ways see the same batches."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0)
    for _, batch in zip(range(steps_here), batches(texts, 16, world.seed), strict=False):
        train_step(model, optimizer, batch)
    return model


base = world.base()
before = dict(base.named_parameters())
lora = adapters.apply_lora(world.base(), RANK, 2.0 * RANK)
names = list(adapters.lora_layers(lora))  # the matrices that both ways may change
whole = world.base().requires_grad_(False)
for name in names:
    whole.get_submodule(name).weight.requires_grad_(True)
whole, lora = tuned(whole, 1e-3), tuned(lora, 1e-2)

WHOLE, LORA = "whole matrices", f"LoRA, rank {RANK}"
changes = {WHOLE: {}, LORA: {}, "random": {}}  # ΔW (d, k) of each matrix
generator = torch.Generator().manual_seed(world.seed)
for name, layer in adapters.lora_layers(lora).items():
    after_it = whole.get_submodule(name).weight.detach()
    changes[WHOLE][name] = (after_it - before[f"{name}.weight"].detach()).float().cpu()
    changes[LORA][name] = layer.delta().detach().float().cpu()
    changes["random"][name] = torch.randn(after_it.shape, generator=generator)
losses = {"base": base, WHOLE: whole, LORA: lora}
losses = {name: mean_loss(model, held) for name, model in losses.items()}
print(f"{len(names)} matrices; held-out loss:", {k: round(v, 3) for k, v in losses.items()})

# %%
effective = check.use(effective_rank, otherwise=course_effective_rank)
stable = check.use(stable_rank, otherwise=course_stable_rank)
ranks = pd.DataFrame(
    [
        {"ΔW of": how, "weight": name, "of at most": min(delta.shape),
         "effective rank": effective(delta), "stable rank": stable(delta)}
        for how, deltas in changes.items()
        for name, delta in deltas.items()
    ]
)  # fmt: skip
counts = ["of at most", "effective rank", "stable rank"]
medians = ranks.groupby("ΔW of", sort=False)[counts].median()
medians.style.format("{:.1f}").set_caption("median over the weight matrices")

# %% tags=["hidden-test"]
of_lora = ranks[ranks["ΔW of"] == LORA]
assert (of_lora["effective rank"] <= RANK + 1e-3).all(), "LoRA cannot have more directions than r"
assert (ranks["stable rank"] <= ranks["effective rank"] + 1e-6).all()
assert (ranks["effective rank"] <= ranks["of at most"] + 1e-6).all()

# %% tags=["hide-input"]
# @title Every weight matrix, drawn
figure = plots.figure("Directions of ΔW, each matrix a point", x="effective rank", y="stable rank")
for k, (how, group) in enumerate(ranks.groupby("ΔW of", sort=False)):
    figure.add_scatter(x=group["effective rank"], y=group["stable rank"], mode="markers", name=how,
                       text=group["weight"], marker={"color": plots.colour((0, 1, 6)[k])})  # fmt: skip
figure.add_vline(x=RANK, line_dash="dot", line_color="#888", annotation_text=f"r = {RANK}")
display(figure)
learned = {k: (losses["base"] - v) / losses["base"] for k, v in losses.items()}
effective_medians = medians["effective rank"]
Markdown(
    f"Median effective rank: whole matrices **{effective_medians[WHOLE]:.1f}**, LoRA "
    f"**{effective_medians[LORA]:.1f}** of {RANK}, random {effective_medians['random']:.1f}. Held-out loss: base "
    f"{losses['base']:.2f}, whole matrices {losses[WHOLE]:.2f} ({learned[WHOLE]:.0%} of it gone), LoRA "
    f"{losses[LORA]:.2f} ({learned[LORA]:.0%})."
)

# %% [markdown] task="why-two-ranks" points=2
# **In words** *(2 points)*: where whole matrices are free, the change has many more directions than LoRA's.
# Does LoRA therefore miss most of what was learned? Use both ranks and the losses that you measured.
#
# ### BEGIN SOLUTION
# Not by these numbers. The effective rank of the free ΔW is many times LoRA's, but its stable rank is small:
# a few directions hold most of the energy, and the rest is a long tail. The effective rank counts such a
# tail (it weighs by σ), the stable rank hardly does (σ²). Much of the tail is what an optimizer like Adam
# does to every entry, needed or not: its steps are of nearly one size wherever a gradient is. What counts
# is the held-out loss: with at most r directions LoRA takes away nearly as much of it. How many
# directions a change *has* and how many it *needs* are two questions. Only a task whose change must have a
# high rank (lesson 08, the cipher) shows LoRA's limit, and there one would see it in the loss.
# ### END SOLUTION
