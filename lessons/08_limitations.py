# %% [markdown] seconds=115
# # 08 · Limitations
# ## What happens when the reward is wrong, the labels noisy, the rank too low?
#
# Everything so far worked. This lesson breaks it, on purpose and with a ruler beside it: a method is
# understood when one knows where it fails. In this notebook you will
#
# 1. watch a policy climb its reward model past the point where it gets **worse**, and fit the law of
#    that curve,
# 2. train a reward model on an annotator with a habit, let it choose, and cure it,
# 3. flip up to 40% of the labels that **DPO** learns from, and try two losses made for that,
# 4. give **LoRA** a task of which the rank is known, from two to full,
# 5. find weights on which each **4-bit format** fails, and a rescue,
# 6. add up what the pipeline **costs**.
#
# Tier tiny: about two minutes on two cores that have other work too; on a T4: not measured yet. The first lesson that needs them
# also trains the models that it breaks, once: SFT, reward model, PPO with and without its brake, DPO
# (about four minutes of computing).

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

import math
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from IPython.display import Markdown, display

from course_utils import Lab, plots

lab = Lab.open()
world = lab.world  # whether a reward is wrong can only be said where the truth is known
fast = lab.tier.is_fast
lab

# %% [markdown] slides="22"
# ## The claims
#
# The lecture closes with what may go wrong:
#
# | the lecture says | what we do to find out |
# |---|---|
# | reward models can be **misaligned with people** | push a policy against one, and compare with the truth |
# | training loops are **costly** and **complex** | add up seconds, tokens, models, settings |
# | DPO needs good **preference data** | spoil the labels step by step |
# | LoRA may miss **global interactions** | a task whose change is of full rank by construction |
# | **quantization** formats need care | weights with outliers, and the same function without them |
#
# The truth is known only in the embedded world, so the measurements here are made there on every tier.
#
# ## 1 · The reward model is not the goal
#
# `course run` trains one PPO policy that is meant to fail: no KL penalty ($\beta = 0$) and many steps.
# On the way it was measured on held-out prompts, by the reward model that it climbs (the **proxy**) and
# by the gold reward that it never sees.
#
# **Your guess.** At which distance from SFT, in nats of KL, is the *true* quality highest? And where
# does it end, above or below the SFT model where it began?

# %%
my_guess_peak = 20.0  # nats
my_guess_end = "above"  # "above" or "below" SFT

# %%
pushed = pd.DataFrame(world.held_out("ppo_low_beta"))
pushed["d"] = pushed["kl"].clip(lower=0) ** 0.5  # √KL: the ruler of this lesson
peak = pushed.loc[pushed["gold"].idxmax()]
first, end = pushed.iloc[0], pushed.iloc[-1]
pushed[["step", "kl", "d", "proxy", "gold"]].style.hide(axis="index").format(precision=2)

# %% tags=["hidden-test"]
assert first["kl"] == 0
assert (pushed["d"] >= 0).all()
if not fast:
    assert end["proxy"] > peak["proxy"], "the proxy keeps rising"
    assert end["gold"] < peak["gold"] - 0.2, "and gold has fallen from its peak"

# %% [markdown]
# Both rewards over $d = \sqrt{\mathrm{KL}}$, above where they began. **Move the slider**: each stop is a
# moment at which training could have ended. Which curve would *you* have seen, had this been a real
# model?

# %% tags=["hide-input"]
# @title The over-optimisation explorer
from course_utils.pictures.overoptimisation import stop_explorer

explorer = stop_explorer(world.held_out("ppo_low_beta"))
explorer

# %% tags=["hidden-test"]
assert len(explorer.layout.sliders[0].steps) == len(pushed)

# %% tags=["hide-input"]
# @title In words
Markdown(
    f"The proxy went from {first['proxy']:+.2f} to **{end['proxy']:+.2f}**. Gold began at "
    f"{first['gold']:+.2f}, was highest at **{peak['gold']:+.2f}** (KL {peak['kl']:.1f} nats, step "
    f"{peak['step']:.0f}; you guessed {my_guess_peak:g} nats) and ended at **{end['gold']:+.2f}** (KL "
    f"{end['kl']:.1f} nats), {'below' if end['gold'] < first['gold'] else 'above'} SFT (you guessed "
    f"{my_guess_end})."
)

# %% [markdown]
# ### A law for the curve
#
# Gao et al. (2022) measured hundreds of such curves and found that two numbers describe each. With
# $d = \sqrt{\mathrm{KL}(\pi\,\|\,\pi_{\text{SFT}})}$ the gold reward above its start is
#
# $$R_{\text{best-of-}n}(d) = d\,(\alpha - \beta\, d) \qquad\qquad R_{\text{RL}}(d) = d\,(\alpha - \beta \log d)$$
#
# $\alpha$ says how fast quality rises at first, $\beta$ how fast the proxy's errors eat it up (it is not
# the β of the KL penalty). Both laws are *linear* in $\alpha$ and $\beta$, so least squares has a closed form,
# $w = (X^\top X)^{-1} X^\top y$: four lines.


# %%
def features(d, law):
    """(N, 2): the columns that α and β multiply, at distances d (N,)."""
    shrink = d * d if law == "best-of-n" else torch.xlogy(d, d)  # d log d, and 0 at d = 0
    return torch.stack([d, -shrink], dim=1)


def least_squares(X, y):
    """The w (2,) for which |X w - y|² is smallest, by the normal equations."""
    return torch.linalg.solve(X.T @ X, X.T @ y)


def top_of(law, alpha, beta):
    """The distance d at which the law is highest; None where it only rises."""
    if alpha <= 0 or beta <= 0:
        return None
    return alpha / (2 * beta) if law == "best-of-n" else math.exp(alpha / beta - 1)


toy_d = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
toy_gold = toy_d * (2.0 - 0.5 * toy_d)  # made with α = 2, β = 0.5
print("found again:", least_squares(features(toy_d, "best-of-n"), toy_gold).tolist())

# %% [markdown]
# Now the real points. NumPy's solver gives the same numbers.

# %%
d = torch.tensor(pushed["d"].to_numpy(), dtype=torch.float64)  # (N,)
gain = torch.tensor((pushed["gold"] - first["gold"]).to_numpy(), dtype=torch.float64)

laws = {}
for law in ("best-of-n", "RL"):
    X = features(d, law)
    w = least_squares(X, gain)
    theirs = np.linalg.lstsq(X.numpy(), gain.numpy(), rcond=None)[0]
    torch.testing.assert_close(w, torch.from_numpy(theirs), rtol=1e-6, atol=1e-9)
    left = float(((X @ w - gain) ** 2).mean()) ** 0.5
    laws[law] = {"α": float(w[0]), "β": float(w[1]), "misses by (RMS)": left}
    laws[law]["peak at KL"] = (top_of(law, *w.tolist()) or math.nan) ** 2
pd.DataFrame(laws).T.style.format("{:.2f}")

# %% tags=["hidden-test"]
assert top_of("best-of-n", 2.0, 0.5) == 2.0
grid = torch.linspace(0.01, 8, 8000, dtype=torch.float64)
curve = features(grid, "RL") @ torch.tensor([1.0, 0.6], dtype=torch.float64)
assert abs(float(grid[curve.argmax()]) - top_of("RL", 1.0, 0.6)) < 2e-3
assert top_of("RL", 1.0, -0.1) is None

# %% tags=["hide-input"]
# @title The laws, drawn
figure = plots.figure("Gold above SFT, and two laws", x="√KL (√nats)", y="gold above SFT")
band = [[bound - first["gold"] for bound in side] for side in zip(*pushed["interval"], strict=True)]
plots.line(
    figure, d.tolist(), gain.tolist(), "measured, 95% interval", plots.COLOURS["gold"],
    spread=tuple(band), mode="lines+markers",
)  # fmt: skip
many = torch.linspace(0, float(d.max()), 80, dtype=torch.float64)
for i, (law, found) in enumerate(laws.items()):
    fitted = features(many, law) @ torch.tensor([found["α"], found["β"]], dtype=torch.float64)
    name = f"{law}: α = {found['α']:.2f}, β = {found['β']:.2f}"
    look = {"dash": ("dot", "dash")[i]}
    plots.line(figure, many.tolist(), fitted.tolist(), name, plots.colour((3, 0)[i]), line=look)
figure

# %% [markdown]
# Two numbers for a whole training run: a good description. Is it also a *prediction*? Fit the laws again
# to the points **up to the peak** only, as somebody would who is still training, and ask them where the
# peak will be.

# %%
so_far = pushed["step"].to_numpy() <= peak["step"]
for law in laws:
    if so_far.sum() < 3:
        print("too few measurements before the peak to fit two numbers")
        break
    alpha, beta = least_squares(features(d, law)[so_far], gain[so_far]).tolist()
    top = top_of(law, alpha, beta)
    said = "no peak: only rising" if top is None else f"the peak at KL {top**2:.1f}"
    said = "no peak below KL 100" if top and top**2 > 100 else said
    print(f"{law:>9}: foresees {said}; it was at KL {peak['kl']:.1f}")

# %% [markdown]
# Before the peak the curve hardly bends, and gold is what one does not have in life. So in practice
# people stop by something that can be measured: a **KL budget**, or a second, held-out judge
# (`PPOConfig(kl_stop=…)` and `HeldOutJudge`, docs/ppo.md). What would a budget have saved here?

# %%
rules = {}
for budget in (1.0, 2.0, 4.0, 8.0, math.inf):
    stopped = pushed[pushed["kl"] <= budget].iloc[-1]
    rules["no rule" if budget == math.inf else f"KL ≤ {budget:g} nats"] = {
        "stops after step": stopped["step"],
        "gold": stopped["gold"],
        "gold lost to the peak": peak["gold"] - stopped["gold"],
        "training not done": 1 - stopped["step"] / end["step"],
    }
rules = pd.DataFrame(rules).T
rules.style.format("{:.2f}").format("{:.0f}", subset=["stops after step"]).format(
    "{:.0%}", subset=["training not done"]
)

# %% tags=["hidden-test"]
assert rules["gold lost to the peak"].min() >= 0
assert rules.loc["no rule", "training not done"] == 0

# %% tags=["hide-input"]
# @title In words
kept = rules.drop(index="no rule")["gold"]
rule, lost = kept.idxmax(), rules.loc["no rule", "gold lost to the peak"]
Markdown(
    f"The best of these budgets is **{rule}**: it would have kept {kept.max() - end['gold']:+.2f} gold points of "
    f"the {lost:.2f} that lie between the peak and the end, and saved "
    f"{rules.loc[rule, 'training not done']:.0%} of the steps. Which budget is best is known "
    "only afterwards; but a bad guess of the budget costs "
    f"{rules.drop(index='no rule')['gold lost to the peak'].max():.2f} at most, and none costs {lost:.2f}."
)

# %% [markdown]
# ### What does it sound like past the peak?
#
# The policy at the end of the run, beside SFT and the PPO policy that has its KL penalty.

# %%
sft = world.sft()
policies = {
    "SFT": sft,
    "PPO": world.trained("ppo"),
    "pushed too far": world.trained("ppo_low_beta"),
}
world.answers(policies, world.lecture_prompts[: 1 if fast else 2], samples=1 if fast else 9)

# %% [markdown]
# ### Why it must come so
#
# A proxy is the truth plus an error: $r = g + e$. Whoever selects for $r$ selects for both. Does gold
# still rise? Take the best of $n$ by $r$ and look at the $g$ of it, with two kinds of error: normal, and
# one with **heavy tails** (small as a rule, now and then enormous).
#
# **Your guess.** For which error does gold *fall* again as $n$ grows?

# %%
my_guess_tail = "both"  # "normal", "heavy", "both" or "neither"


# %%
def gold_of_best(error, n, trials, rng):
    """Mean gold of the best of n by proxy = gold + error; gold is standard normal."""
    g = rng.standard_normal((trials, n))
    e = rng.standard_normal((trials, n)) if error == "normal" else rng.standard_t(2, (trials, n))
    chosen = (g + e).argmax(axis=1)  # what the proxy likes best
    return g[np.arange(trials), chosen].mean()


rng = np.random.default_rng(world.seed)
sizes = [1, 2, 4, 8, 16, 64, 256] if fast else [1, 2, 4, 8, 16, 64, 256, 1024, 4096]
trials = 200 if fast else 1000
errors = {e: [gold_of_best(e, n, trials, rng) for n in sizes] for e in ("normal", "heavy")}

# %% tags=["hidden-test"]
if not fast:
    assert errors["normal"][-1] > errors["normal"][3]
    assert errors["heavy"][-1] < max(errors["heavy"]) - 0.2

# %% tags=["hide-input"]
# @title Gold of the best of n, drawn
figure = plots.figure("Selecting by truth plus error", x="n", y="gold of the chosen one")
for i, (error, values) in enumerate(errors.items()):
    plots.line(figure, sizes, values, f"{error} error", plots.colour(i), mode="lines+markers")
display(figure.update_xaxes(type="log"))
fell = {e: v[-1] < max(v) - 0.1 for e, v in errors.items()}
falling = [e for e, down in fell.items() if down] or ["neither"]
Markdown(
    f"Gold fell again with: **{' and '.join(falling)}** (you guessed {my_guess_tail}). A harmless error only "
    "slows the gain. An error that is rarely huge is found by whoever looks long enough, and then the "
    "winner is chosen for its error alone. (Kwa et al. 2024 prove it, for a KL penalty too.)"
)

# %% [markdown]
# Does that happen in our policy? For each answer we know proxy *and* gold. If the reward model is a good
# judge of what the policy says, they go together; let us see how well, before and after.

# %%
rm = world.reward_model()
n = 16 if fast else 160
judged = {
    name: world.evaluate(policies[name], n=n, reward=rm)
    for name in ("SFT", "PPO", "pushed too far")
}
together = {
    name: float(np.corrcoef(e.scores("reward").ravel(), e.scores().ravel())[0, 1])
    for name, e in judged.items()
}
for name, r in together.items():
    print(f"{name:<15} gold {judged[name].gold}   proxy and gold go together: r = {r:+.2f}")

# %% tags=["hidden-test"]
assert all(-1 <= r <= 1 for r in together.values())

# %% tags=["hide-input"]
# @title In words
drop = together["SFT"] - together["pushed too far"]
Markdown(
    "On the answers of the policy that was pushed too far the reward model's score "
    + (
        "says **less** about the truth than"
        if drop > 0.05
        else "says about as much about the truth as"
    )
    + f" on those of SFT (r = {together['pushed too far']:+.2f} against {together['SFT']:+.2f}). "
    + (
        "The reward model was trained on pairs from around SFT; the policy moved to where it had never "
        "been tested."
        if drop > 0.05
        else "Then it is not the order among the answers that broke, but their level: all are overrated."
    )
)

# %% [markdown]
# ## 2 · An annotator with a habit
#
# Where do errors come from? Often from the people. Lesson 03 showed that a reward model inherits its
# annotator's liking for length. Here we follow the mistake to its end: what would be *said* under such a
# reward model? For that no policy needs training: **best-of-n** (draw $n$ answers, keep the one that the
# judge likes best) selects as PPO would, and moves $\log n - \frac{n-1}{n}$ nats away at most.
#
# The habit: ten more words are worth two gold points. The recipe, pairs and steps are the same; only the
# labels differ. A third judge has honest labels but few of them.

# %%
from course_utils.data import worldsets
from course_utils.training.reward import train_reward_model
from course_utils.world.annotators import Annotator

pairs, heldout_pairs = world.pairs()
temperature = world.tier.annotator_temperature
honest = Annotator(temperature=temperature, seed=world.seed)
long_lover = Annotator(temperature=temperature, length_bias=2.0, seed=world.seed)


def judged_by(annotator, rows):
    """The same pairs, with this annotator's verdicts."""
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    said = [tuple(turns[-1]["content"] for turns in row) for row in texts]
    return worldsets.preferences(said, annotator)


few, many_pairs = (
    pairs.select(range(min(64, len(pairs)))),
    pairs.select(range(min(900, len(pairs)))),
)
loved = judged_by(long_lover, many_pairs)
agree = np.mean([a["chosen"] == b["chosen"] for a, b in zip(loved, many_pairs, strict=True)])
print(f"the long-lover agrees with the honest annotator on {agree:.0%} of {len(loved)} pairs")

# %% tags=["hidden-test"]
a, b = "yes.", "yes. " * 20
question = pairs[0]["prompt"][-1]["content"]
gap = long_lover.utility(question, b) - honest.utility(question, b)
assert abs(gap - 2.0 * 20 / 10) < 1e-9, "length_bias counts per ten words"
assert 0 < agree < 1

# %% [markdown]
# **Your guess.** The SFT model's answers have a true quality; best of 24 by the honest reward model raises
# it. What does the best of 24 by the long-lover's do, and to how many words, from about a dozen?

# %%
my_guess_gold_moves = "rises less"  # "rises as much", "rises less" or "falls"
my_guess_words = 15

# %%
recipe = world.settings.reward
short = {
    "long-lover": (loved, replace(recipe, steps=min(36, recipe.steps))),
    "few pairs": (few, replace(recipe, steps=min(16, recipe.steps), batch_size=16)),
}
judges = {"honest": rm}
for name, (labelled, steps) in short.items():
    judges[name] = train_reward_model(
        world.base(), world.tokenizer, labelled, steps, progress=False
    )

# %% [markdown]
# ### The cure
#
# What length alone explains can be taken off: a line through (length, score) of the SFT model's
# answers, and only what lies above the line counts.
#
# $$r'(x, y) = r(x, y) - s\,\big(|y| - \overline{|y|}\big), \qquad s = \frac{\sum_i (|y_i| - \overline{|y|})\, r_i}{\sum_i (|y_i| - \overline{|y|})^2}$$
#
# It knows neither the annotator nor the truth. From scratch, and the library's:

# %%
from course_utils.evaluation.policy import score_all
from course_utils.training.ppo import LengthControlled

asked = world.prompts("train", 12 if fast else 256)
own = world.generate(sft, asked)
scores = np.array(score_all(judges["long-lover"], asked, own))
words = np.array([len(text.split()) for text in own], dtype=float)
slope = float((words - words.mean()) @ scores / ((words - words.mean()) ** 2).sum())

cured = LengthControlled.fit(judges["long-lover"], asked, own)
print(f"slope {slope:+.4f} points a word; the library's {cured.slope:+.4f}")
assert math.isclose(slope, cured.slope, rel_tol=1e-4)
judges["long-lover, cured"] = cured

# %% tags=["hidden-test"]
after = np.array(score_all(cured, asked, own))
assert abs(np.corrcoef(words, after)[0, 1]) < 1e-3, "nothing of the length is left on these answers"

# %% [markdown]
# Now all judges choose among *the same* answers, so that nothing but their taste differs.

# %%
from course_utils.evaluation.best_of_n import best_of_n, expected_best

N = 6 if fast else 24
prompts = world.prompts("heldout", 8 if fast else 48)
repeated = [p for p in prompts for _ in range(N)]
texts = world.generate(sft, repeated)
shape = (len(prompts), N)

golds = np.array([world.gold(p, t).total for p, t in zip(repeated, texts, strict=True)])
lengths = np.array([len(t.split()) for t in texts], dtype=float)
rows = [texts[i : i + N] for i in range(0, len(texts), N)]  # P lists of N answers
taste = {name: np.array(score_all(j, repeated, texts)) for name, j in judges.items()}
taste["the truth"] = golds  # the best that a judge could be

chosen = {
    name: best_of_n(rows, s.reshape(shape), golds.reshape(shape), world.seed)
    for name, s in taste.items()
}


def within(values, others):
    """Correlation of two numbers of each answer, among the answers to one prompt."""
    x, y = (v.reshape(shape) - v.reshape(shape).mean(1, keepdims=True) for v in (values, others))
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


board = pd.DataFrame(
    {
        name: {
            "score and gold (r)": within(s, golds),
            "score and length (r)": within(s, lengths),
            "words, n = 1": lengths.mean(),
            f"words, n = {N}": expected_best(s.reshape(shape), lengths.reshape(shape)).mean(0)[-1],
            "gold, n = 1": chosen[name].gold[0].mean,
            f"gold, n = {N}": chosen[name].gold[-1].mean,
        }
        for name, s in taste.items()
    }
).T
board.style.format("{:+.2f}").format("{:.1f}", subset=["words, n = 1", f"words, n = {N}"])

# %% tags=["hidden-test"]
assert np.ptp(board["gold, n = 1"]) < 1e-9, "n = 1 is the plain SFT model for every judge"
assert board[f"gold, n = {N}"].idxmax() == "the truth"
if not fast:
    assert (
        board.loc["long-lover", "score and length (r)"]
        > board.loc["honest", "score and length (r)"]
    )
    assert board.loc["honest", f"gold, n = {N}"] > board.loc["long-lover", f"gold, n = {N}"]

# %% tags=["hide-input"]
# @title Best-of-n under five judges, drawn
figure = plots.figure(
    "The same answers, five judges", x="√KL (√nats, at most)", y="gold", height=380
)
tones = dict(zip(taste, ("reward", "ppo_low_beta", "base", "dpo", "gold"), strict=True))
for name, found in chosen.items():
    root = [kl**0.5 for kl in found.kl]
    dash = {"dash": "dot"} if name == "the truth" else {}
    plots.line(
        figure, root, [g.mean for g in found.gold], name, plots.COLOURS[tones[name]], line=dash
    )
display(figure)
ends = {name: found.gold[-1].mean for name, found in chosen.items()}
begin = chosen["honest"].gold[0].mean
tops = {name: 1 + int(np.argmax([g.mean for g in found.gold])) for name, found in chosen.items()}
lover = ends["long-lover"] - begin
moves = "rises less" if lover > 0.05 else "falls" if lover < -0.05 else "hardly moves"
moves = "rises as much" if lover >= ends["honest"] - begin else moves
long_words = board.loc["long-lover", f"words, n = {N}"]
Markdown(
    f"From {begin:+.2f} the honest reward model's choice brings gold to {ends['honest']:+.2f}. Under the "
    f"long-lover's it **{moves}**, to {ends['long-lover']:+.2f} with {long_words:.0f} words (you guessed: "
    f"{my_guess_gold_moves}, {my_guess_words} words). The cure brings {ends['long-lover, cured']:+.2f}, "
    f"few honest pairs {ends['few pairs']:+.2f}. The peaks lie at n = "
    + ", ".join(f"{tops[name]} ({name})" for name in tops)
    + (
        ": **the better the judge, the further one may go.**"
        if tops["honest"] > max(tops["long-lover"], tops["few pairs"])
        else ". (Best-of-n goes only a short way; PPO, above, went to where the honest one fails too.)"
    )
)

# %% [markdown]
# Look at two prompts: what each judge would send to the user.

# %% tags=["hide-input"]
# @title The chosen answers
picked = [
    {"prompt": prompts[i] if name == "honest" else "", "judge": name, "answer": chosen[name].chosen[i],
     "words": len(chosen[name].chosen[i].split()), "gold": golds.reshape(shape)[i, chosen[name].chosen_index[i]]}
    for i in np.argsort(-lengths.reshape(shape).std(1))[:2]
    for name in ("honest", "long-lover", "long-lover, cured")
]  # fmt: skip
look = pd.DataFrame(picked).style.hide(axis="index").format({"gold": "{:+.2f}"})
look.set_properties(**{"text-align": "left"})

# %% [markdown]
# The cure has a price. It takes off *all* that goes with length, and some of
# it was deserved: a complete answer is longer than a lazy one. And it is linear and blind: a judge who
# likes flattery in place of length it does not cure at all.

# %%
c08 = (
    f"PPO without its brake: proxy {first['proxy']:+.2f} → {end['proxy']:+.2f}, gold {first['gold']:+.2f} → "
    f"{peak['gold']:+.2f} (KL {peak['kl']:.1f}) → {end['gold']:+.2f} (KL {end['kl']:.1f}). Best of {N} from "
    f"{begin:+.2f}: {ends['honest']:+.2f} by the honest reward model, {ends['long-lover']:+.2f} by one that "
    f"learned to love length, {ends['long-lover, cured']:+.2f} after the cure."
)
world.claim(
    "C08",
    c08,
    holds=bool(end["gold"] < peak["gold"] - 0.1 and end["proxy"] > peak["proxy"]),
    gold_start=first["gold"], gold_peak=peak["gold"], kl_peak=peak["kl"], gold_end=end["gold"],
    proxy_end=end["proxy"], best_of_n_honest=ends["honest"], best_of_n_biased=ends["long-lover"],
)  # fmt: skip

# %% [markdown]
# ## 3 · DPO and labels that are wrong
#
# DPO has no reward model between the labels and the policy. Is it therefore safe from a reward model's
# errors, or does it take every wrong label to heart? People mislabel more than one would think: in the
# InstructGPT paper labellers agreed with each other on about 73% of pairs.
#
# **Your guess.** We flip 0, 20 and 40% of the labels. At 50% they would say nothing. How much of DPO's
# gain over SFT is left at 40%?

# %%
my_guess_left = 0.8  # share of the gain

# %% [markdown]
# ### Two losses that expect mistakes
#
# With $u$ for the difference of implicit rewards (lesson 05), and a share $\varepsilon$ of flipped labels:
#
# $$\text{DPO} = -\log\sigma(u)$$
# $$\text{cDPO} = -(1-\varepsilon)\log\sigma(u) - \varepsilon\log\sigma(-u) \qquad
# \text{robust} = \frac{-(1-\varepsilon)\log\sigma(u) + \varepsilon\log\sigma(-u)}{1 - 2\varepsilon}$$
#
# **cDPO** (Mitchell 2023) does not want to be surer than the labels deserve: its minimum is at
# $\sigma(u) = 1 - \varepsilon$, not at infinity. **robust** (Chowdhury et al. 2024) is made so that the flips
# *cancel on average*: its mean over right and flipped labels is the plain loss on right ones.


# %%
def dpo(u):
    return -F.logsigmoid(u)


def cdpo(u, eps):
    return (1 - eps) * dpo(u) + eps * dpo(-u)


def robust(u, eps):
    return ((1 - eps) * dpo(u) - eps * dpo(-u)) / (1 - 2 * eps)


u = torch.linspace(-6, 6, 1201)
eps = 0.2
lowest = float(u[cdpo(u, eps).argmin()])
print(f"cDPO is lowest at u = {lowest:.2f}; log((1-ε)/ε) = {math.log((1 - eps) / eps):.2f}")

flips_averaged = (1 - eps) * robust(u, eps) + eps * robust(-u, eps)
torch.testing.assert_close(flips_averaged, dpo(u), rtol=1e-5, atol=1e-5)

# %% [markdown]
# The library's losses are the same functions:

# %%
from course_utils import objectives, train_dpo
from course_utils.evaluation.statistics import estimate

zero = torch.zeros_like(u)
quiet = {"beta": 1.0, "reduction": "none", "label_smoothing": eps}
torch.testing.assert_close(cdpo(u, eps), objectives.dpo_loss(u, zero, zero, zero, **quiet))
by_library = objectives.dpo_loss(u, zero, zero, zero, variant="robust", **quiet)
torch.testing.assert_close(robust(u, eps), by_library)

# %% tags=["hide-input"]
# @title What one pair pushes, drawn
figure = plots.figure(
    f"Push of one pair (−dL/du) at ε = {eps:g}", "u = r̂(chosen) − r̂(rejected)", "push"
)
for i, (name, loss) in enumerate(
    {"DPO": dpo, "cDPO": lambda x: cdpo(x, eps), "robust": lambda x: robust(x, eps)}.items()
):
    at = u.clone().requires_grad_()
    (push,) = torch.autograd.grad(-loss(at).sum(), at)
    plots.line(figure, u.tolist(), push.tolist(), name, plots.colour(i))
figure.add_hline(y=0, line_dash="dot", line_color="#888")

# %% [markdown]
# Where the push is negative the loss *pulls back*. cDPO does so beyond its minimum. The robust loss
# pushes harder than DPO (the division by $1-2\varepsilon$) and never stops: a single pair could drive it to
# $-\infty$. Only the flipped pairs, which push the other way, hold it, and only on average.
#
# ### Train
#
# Five short runs from the same SFT model, on the same pairs in the same order; only labels and loss
# differ. The labels already hold the honest annotator's own doubts (a Bradley-Terry choice); the flips
# come on top. The pairs flipped at 20% are flipped at 40% too.


# %%
def flipped(rows, share, seed=0):
    """The pairs with a share of their labels turned round."""
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    unlucky = set(order[: round(share * len(rows))])
    turn = [i in unlucky for i in range(len(rows))]
    chosen = [row["rejected"] if t else row["chosen"] for row, t in zip(rows, turn, strict=True)]
    rejected = [row["chosen"] if t else row["rejected"] for row, t in zip(rows, turn, strict=True)]
    return type(rows).from_dict(
        {"prompt": rows["prompt"][:], "chosen": chosen, "rejected": rejected}
    )


quick = replace(world.settings.dpo, steps=2 if fast else 36, batch_size=16, learning_rate=4e-4)
shared = pairs.select(range(min(quick.steps * quick.batch_size, len(pairs))))
noisy = {share: flipped(shared, share, world.seed) for share in (0.0, 0.2, 0.4)}
for share, rows_ in noisy.items():
    turned = np.mean([a["chosen"] != b["chosen"] for a, b in zip(rows_, shared, strict=True)])
    print(f"asked for {share:.0%} flips: {turned:.0%} of {len(rows_)} pairs")

# %% tags=["hidden-test"]
assert noisy[0.0]["chosen"][:] == shared["chosen"][:]
turned = {s: {i for i, (a, b) in enumerate(zip(r, shared, strict=True)) if a["chosen"] != b["chosen"]}
          for s, r in noisy.items()}  # fmt: skip
assert turned[0.2] <= turned[0.4], "more noise flips the same pairs and others"

# %%
runs = [
    ("DPO", 0.0, {}),
    ("DPO", 0.2, {}),
    ("DPO", 0.4, {}),
    ("cDPO, ε = 0.4", 0.4, {"label_smoothing": 0.4}),
    ("robust, ε = 0.4", 0.4, {"loss": "robust", "label_smoothing": 0.4}),
]
noise_results, answer_scores = [], {}
checked = 12 if fast else world.tier.evaluation_prompts
sft_found = world.evaluate(sft, n=checked)
for name, share, loss in runs:
    trained = train_dpo(
        world.sft(), world.tokenizer, noisy[share], replace(quick, **loss), progress=False
    )
    found = world.evaluate(trained, n=checked, reference=sft)
    answer_scores[name, share] = found.scores()  # (P, 1) gold of each answer
    noise_results.append(
        {"loss": name, "flipped": share, "gold": found.gold.mean, "low": found.gold.low,
         "high": found.gold.high, "KL": found.kl.mean}
    )  # fmt: skip
    print(f"{name:<16} {share:.0%} flipped: gold {found.gold}, KL {found.kl.mean:.2f}")

by_noise = {row["flipped"]: row for row in noise_results if row["loss"] == "DPO"}

# %% tags=["hidden-test"]
assert len(noise_results) == len(runs)
if not fast:
    assert by_noise[0.0]["gold"] > by_noise[0.4]["gold"] - 0.1, "one seed: up to chance"

# %% tags=["hide-input"]
# @title Gold over label noise, drawn
figure = plots.figure("What wrong labels cost", x="labels flipped", y="gold on held-out prompts")
plain = list(by_noise.values())
band = ([row["low"] for row in plain], [row["high"] for row in plain])
plots.line(figure, [r["flipped"] for r in plain], [r["gold"] for r in plain], "DPO",
           plots.COLOURS["dpo"], spread=band, mode="lines+markers")  # fmt: skip
for i, row in enumerate(noise_results[3:]):
    bars = {
        "array": [row["high"] - row["gold"]],
        "arrayminus": [row["gold"] - row["low"]],
        "thickness": 1,
    }
    figure.add_scatter(
        x=[row["flipped"] + 0.008 * (i + 1)], y=[row["gold"]], mode="markers", error_y=bars, name=row["loss"],
        marker={"size": 11, "symbol": "diamond", "color": plots.colour((1, 3)[i])},
    )  # fmt: skip
figure.add_hline(y=sft_found.mean, line_dash="dot", line_color="#888", annotation_text="SFT")
figure.update_xaxes(tickformat=".0%")

# %%
clean_gain = by_noise[0.0]["gold"] - sft_found.mean
left = {s: (row["gold"] - sft_found.mean) / clean_gain for s, row in by_noise.items()}
remedy = max(noise_results[3:], key=lambda row: row["gold"])


def ahead(one, other):
    """How much more gold one run has than another, prompt by prompt, with its 95% interval."""
    return estimate(answer_scores[one] - answer_scores[other], seed=world.seed)


lost = ahead(("DPO", 0.0), ("DPO", 0.4))
helped = ahead((remedy["loss"], 0.4), ("DPO", 0.4)).low > 0
world.claim(
    "C11",
    f"gold {by_noise[0.0]['gold']:+.2f} with clean labels, {by_noise[0.2]['gold']:+.2f} with 20% flipped, "
    f"{by_noise[0.4]['gold']:+.2f} with 40% (SFT {sft_found.mean:+.2f}); 40% cost {lost}. Best remedy at 40%: "
    f"{remedy['loss']}, {remedy['gold']:+.2f}.",
    holds=bool(lost.low > 0),
    clean=by_noise[0.0]["gold"], noise_20=by_noise[0.2]["gold"], noise_40=by_noise[0.4]["gold"],
    remedy=remedy["gold"],
)  # fmt: skip

# %% tags=["hide-input"]
# @title In words
kl_of = {row["loss"]: row["KL"] for row in noise_results if row["flipped"] == 0.4}
little = ahead(("DPO", 0.0), ("DPO", 0.2))
gain_left = (
    f"Clean labels had gained {clean_gain:+.2f} over SFT; at 40% "
    + (f"**{left[0.4]:.0%}**" if left[0.4] > 0 else "**nothing**")
    + f" of that is left (you guessed {my_guess_left:.0%}). "
    if clean_gain > 0.05
    else "Clean labels brought no gain worth the name in these few steps. "
)
Markdown(
    f"Prompt by prompt, 20% flipped labels cost {little} gold points, 40% cost {lost}"
    + (": more than chance explains. " if lost.low > 0 else ": chance could explain it. ")
    + gain_left
    + (
        f"{remedy['loss']} does better than plain DPO there, by more than chance explains. "
        if helped
        else "Neither remedy beats plain DPO there by more than chance explains. They are no magic: with two "
        "labels in five wrong, what they know is how far *not* to go, not which pairs are wrong. "
    )
    + f"Look at the KL too: plain DPO on 40% noise moved {kl_of['DPO']:.2f} nats, cDPO "
    f"{kl_of['cDPO, ε = 0.4']:.2f}, robust {kl_of['robust, ε = 0.4']:.2f}, and DPO on clean labels "
    f"{by_noise[0.0]['KL']:.2f}. (Each is one short run: another seed moves all of these numbers.)"
)

# %% [markdown]
# What should one expect? Random flips cancel in the *average* push: of 100 pairs with 20 flipped, 80
# pull one way and 20 the other, and 60% of the signal is left; with 40 flipped a fifth. The noise stays
# whole. More pairs buy signal over noise back. Mistakes that are **not** random, such as the long-
# lover's, do not cancel at all: there more pairs only teach the habit better.

# %% [markdown]
# ## 4 · When is a rank too low?
#
# *Low-rank updates suffice, but may miss global interactions.* Lesson 06 saw the first half: on SFT a
# LoRA of rank 1 goes most of the way. The second half needs a task whose change **cannot** be of low
# rank, and we know of none by looking at data. So we build one.
#
# ### How many directions does a change have?
#
# `matrix_rank` is no help: any change with a little noise in it has full rank. Three ways to count
# directions *that matter*, from the singular values $\sigma_i$:
#
# $$\text{energy: least } r \text{ with } \frac{\sum_{i\le r}\sigma_i^2}{\sum_i\sigma_i^2} \ge 0.9 \qquad
# \text{effective rank: } e^{H(p)},\; p_i = \frac{\sigma_i}{\sum_j\sigma_j} \qquad
# \text{participation: } \frac{(\sum_i\sigma_i^2)^2}{\sum_i\sigma_i^4}$$
#
# All three give $n$ (the energy: $0.9\,n$) for $n$ equal singular values, and about 1 when one outweighs
# the rest. They differ in how much a long tail of small values counts.


# %%
def directions(matrix):
    """The three counts of a (d, k) matrix."""
    sigma = torch.linalg.svdvals(matrix.detach().double().cpu())  # (min(d, k),), falling
    power = sigma**2
    p = sigma / sigma.sum()
    return {
        "90% of the energy": int((power.cumsum(0) / power.sum() < 0.9).sum()) + 1,
        "effective rank": float(torch.exp(-(torch.xlogy(p, p)).sum())),
        "participation": float(power.sum() ** 2 / (power**2).sum()),
    }


for name, toy in {
    "four equal": torch.eye(4),
    "one large": torch.diag(torch.tensor([1.0, 0.01, 0.01, 0.01])),
}.items():
    print(f"{name:<11}", {count: round(value, 2) for count, value in directions(toy).items()})

# %% [markdown]
# The library counts the same:

# %%
from course_utils.adapters import effective_rank, rank_for_energy

tried = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
assert math.isclose(directions(tried)["effective rank"], effective_rank(tried), rel_tol=1e-9)
assert directions(tried)["90% of the energy"] == rank_for_energy(tried, 0.9)

# %% tags=["hidden-test"]
assert math.isclose(directions(torch.eye(7))["participation"], 7.0)
assert math.isclose(directions(torch.eye(7))["effective rank"], 7.0)

# %% [markdown]
# ### A task with a known rank
#
# Take the SFT model's last layer. It turns a hidden state $h$ into scores for words, $W h$, with one
# row of $W$ for each word. Now the reader uses a **cipher**: some words have changed places, and the
# model must write *b* wherever it wrote *a* before, and *a* for *b*. The perfect answer is known. Swap
# the rows:
#
# $$W' = P\,W \qquad\Rightarrow\qquad \Delta W = (P - I)\,W, \qquad \operatorname{rank} \Delta W = \min(\text{pairs swapped},\ D)$$
#
# (One swapped pair is the outer product $(e_a - e_b)(w_b - w_a)^\top$: rank one. If no swapped rows depend
# on each other, every pair adds one.) So *easy* and *full-rank* are the same task with another number of
# pairs. Nothing else is trained: the rest of the model is frozen and run once.

# %%
from course_utils.experiments.loop import padded
from course_utils.training.tokenise import demonstration_rows

model = world.sft()
W = model.get_output_embeddings().weight.detach()  # (V, D)
V, D = W.shape


def states(split, n):
    """Hidden states (N, D) before the last layer and the words (N,) that follow, of answers."""
    longest = world.settings.sft.max_length
    rows = demonstration_rows(world.demonstrations(split, n), world.tokenizer, longest, split)
    ids, labels = (t.to(model.device) for t in padded(rows))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]  # (B, T - 1, D)
    answer = labels[:, 1:] >= 0
    return hidden[answer].float(), labels[:, 1:][answer]


H, words_next = states("train", 48 if fast else 500)
H_held, words_held = states("heldout", 24 if fast else 150)

name_of = [token.strip("▁") for token in world.tokenizer.convert_ids_to_tokens(range(V))]
counts = torch.bincount(words_next, minlength=V)
often = [i for i in counts.argsort(descending=True).tolist() if counts[i] and name_of[i].isalpha()]
most = len(often) // 2  # pairs; `often`: word ids, the most frequent first


def cipher(pairs):
    """(V,) word -> the word that takes its place; the most frequent words are swapped first."""
    table = torch.arange(V, device=W.device)
    a, b = often[: 2 * pairs : 2], often[1 : 2 * pairs : 2]
    table[a], table[b] = table[b], table[a]
    return table


easy, hard = "easy: 2 pairs swapped", f"hard: all {most} pairs"
tasks = {easy: cipher(2), hard: cipher(most)}
print("the easy cipher swaps", [tuple(name_of[i] for i in often[k : k + 2]) for k in (0, 2)])

# %%
changes = {name: W[table] - W for name, table in tasks.items()}
base_weights = dict(world.base().named_parameters())
real = [
    directions(weight - base_weights[name])
    for name, weight in model.named_parameters()
    if "layers." in name and weight.dim() == 2
]
counted = {name: directions(change) for name, change in changes.items()}
counted["full SFT, median weight"] = {
    count: float(np.median([row[count] for row in real])) for count in real[0]
}
counted[f"random {V} × {D}"] = directions(
    torch.randn(V, D, generator=torch.Generator().manual_seed(0))
)
pd.DataFrame(counted).T.style.format("{:.1f}").set_caption(f"directions of ΔW, of at most {D}")

# %% tags=["hidden-test"]
assert int(torch.linalg.matrix_rank(changes[easy].double())) == 2
assert int(torch.linalg.matrix_rank(changes[hard].double())) == min(D, most)
for table in tasks.values():
    assert torch.equal(table[table], torch.arange(V, device=W.device)), "a swap undoes itself"
    swapped = F.cross_entropy(H_held @ W[table].T, table[words_held])
    torch.testing.assert_close(swapped, F.cross_entropy(H_held @ W.T, words_held))

# %% [markdown]
# **Your guess.** The rank of the hard task is as large as can be. How much of the loss that the cipher
# causes will a LoRA of rank 16 take away on the hard task?

# %%
my_guess_rank_16 = 0.2  # share of the loss


# %%
def learn(table, rank, lr, steps, size=512):
    """Trains ΔW on the cipher `table`; rank None: all numbers of ΔW. Returns (train loss, ΔW)."""
    g = torch.Generator().manual_seed(world.seed)
    if rank is None:
        parts = [torch.zeros(V, D)]  # ΔW itself
    else:
        parts = [torch.randn(rank, D, generator=g) / math.sqrt(D), torch.zeros(V, rank)]  # A, B
    parts = [p.to(W.device).requires_grad_() for p in parts]
    optimizer = torch.optim.Adam(parts, lr=lr)
    fading = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    last = []
    for _ in range(steps):
        i = torch.randint(len(H), (size,), generator=g).to(W.device)
        x = H[i]  # (512, D)
        moved = x @ parts[0].T if rank is None else (x @ parts[0].T) @ parts[1].T
        loss = F.cross_entropy(x @ W.T + moved, table[words_next[i]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        fading.step()
        last.append(float(loss.detach()))
    delta = parts[0] if rank is None else parts[1] @ parts[0]  # B A, (V, D)
    return float(np.mean(last[-20:])), delta.detach()


def held_loss(delta, table):
    """Nats per word of held-out answers, written in the cipher."""
    with torch.no_grad():
        return float(F.cross_entropy(H_held @ (W + delta).T, table[words_held]))


ranks = [1, 4, 16, None] if fast else [1, 2, 4, 16, 64, None]
steps = 3 if fast else 100
rates = (0.01, 0.03)  # each rank takes the rate with the lower training loss
possible = held_loss(0.0, torch.arange(V, device=W.device))  # without a cipher, or with it solved
sweep, deltas = {}, {}
for name, table in tasks.items():
    for r in ranks:
        best = min((learn(table, r, lr, steps) for lr in rates), key=lambda found: found[0])
        deltas[name, r] = best[1]
        sweep[name, r] = held_loss(deltas[name, r], table)
caused = {name: held_loss(0.0, table) - possible for name, table in tasks.items()}
print(f"without a cipher {possible:.2f} nats per word; each cipher adds", end=" ")
print({name: round(loss, 1) for name, loss in caused.items()})

# %% tags=["hidden-test"]
assert len(sweep) == 2 * len(ranks)
assert all(loss > 0 for loss in caused.values())
if not fast:
    assert sweep[easy, 4] - possible < 0.3, "rank 4 is enough for a task of rank 2"
    assert sweep[hard, 4] > sweep[hard, 16] > possible
    assert sweep[hard, 4] - possible > 10 * (sweep[easy, 4] - possible)

# %% tags=["hide-input"]
# @title The rank sweep, drawn
figure = plots.figure("Loss that is left", x="rank of LoRA", y="nats per word above the optimum")
labels = [str(r) if r else "full ΔW" for r in ranks]
for i, name in enumerate(tasks):
    plots.line(
        figure, labels, [max(sweep[name, r] - possible, 1e-3) for r in ranks], name, plots.colour(i),
        mode="lines+markers",
    )  # fmt: skip
figure.update_xaxes(type="category")
display(figure.update_yaxes(type="log"))
share = {key: 1 - (loss - possible) / caused[key[0]] for key, loss in sweep.items()}
trained = {r: r * (V + D) / (V * D) if r else 1.0 for r in ranks}
best_easy = min((r for r in ranks if r), key=lambda r: sweep[easy, r])
Markdown(
    f"On the easy task rank {best_easy} leaves {sweep[easy, best_easy] - possible:.2f} nats, "
    + ("**less** than" if sweep[easy, best_easy] < sweep[easy, None] else "no less than")
    + f" full training ({sweep[easy, None] - possible:.2f}). On the hard task rank 1 takes away "
    f"{share[hard, 1]:.0%} of the loss, rank 16 **{share[hard, 16]:.0%}** (you guessed "
    f"{my_guess_rank_16:.0%}) with {trained[16]:.0%} of the numbers, full training {share[hard, None]:.0%}; "
    f"in nats rank 16 still leaves {sweep[hard, 16] - possible:.2f}, full training "
    f"{sweep[hard, None] - possible:.2f}. (Neither is 0: some words are too rare to be learnt in these steps.)"
)

# %% [markdown]
# A low rank on a low-rank task need not be a compromise. It can be a **help**: what it cannot learn it
# cannot learn wrongly. On a task of full rank the mean loss may look good too. But a mean is ruled by
# what is frequent. Let us count the right words in two groups.

# %%
seen = words_held.unsqueeze(1) == torch.tensor(often, device=W.device)  # (N, words)
groups = {"the 20 most frequent words": seen[:, :20].any(1), "all other words": seen[:, 20:].any(1)}


def right_by_group(weights, table):
    """The share of held-out words that are right, by how frequent they are."""
    right = (H_held @ weights.T).argmax(1) == table[words_held]
    return {name: float(right[mask].float().mean()) for name, mask in groups.items()}


plainly = torch.arange(V, device=W.device)
tails = {"no cipher (optimum)": right_by_group(W, plainly)}
for r in ranks:
    name = f"LoRA of rank {r}" if r else "full ΔW"
    tails[name] = right_by_group(W + deltas[hard, r], tasks[hard])
pd.DataFrame(tails).T.style.format("{:.0%}").set_caption("next word right on the hard task")

# %% tags=["hidden-test"]
assert all(mask.any() for mask in groups.values())
assert not (groups["the 20 most frequent words"] & groups["all other words"]).any()
if not fast:
    assert tails["LoRA of rank 1"]["all other words"] < tails["full ΔW"]["all other words"]

# %% [markdown]
# Read the last column. The first directions go to what pays most, and the rare words wait for their own.
# That is what "missing global interactions" looks like: not a crash, but a **tail**, which the mean loss
# does not show.

# %%
LOW = 4
above = {key: loss - possible for key, loss in sweep.items()}
rare = {r: tails[f"LoRA of rank {r}" if r else "full ΔW"]["all other words"] for r in ranks}
world.claim(
    "C12",
    f"a task of rank 2: LoRA of rank {LOW} leaves {above[easy, LOW]:.2f} nats, full training "
    f"{above[easy, None]:.2f}. The same task at full rank ({D}): rank {LOW} leaves {above[hard, LOW]:.2f}, rank 16 "
    f"{above[hard, 16]:.2f}, full training {above[hard, None]:.2f}. Of all but the 20 most frequent words rank "
    f"{LOW} gets {rare[LOW]:.0%} right, rank 16 {rare[16]:.0%}, full training {rare[None]:.0%}.",
    holds=bool(above[easy, LOW] <= above[easy, None] + 0.05 and rare[16] < rare[None] - 0.05),
    easy_low=above[easy, LOW],
    easy_full=above[easy, None],
    hard_16=above[hard, 16],
    hard_full=above[hard, None],
    rare_16=rare[16],
    rare_full=rare[None],
)

# %% [markdown]
# What of real fine-tuning? Biderman et al. (2024) find the changes of full fine-tuning on code and
# mathematics to be of a rank 10 to 100 times that of usual LoRAs, and LoRA behind on them (and forgetting
# less). The table above says how many directions our own SFT used; lesson 06 cut them away and lost
# little. **How many directions a change has, and how many it needs, are two questions.**
#
# ## 5 · Formats that fail
#
# Lesson 07 found NF4 best *on real weights*. The levels of a format are a bet on how weights are
# distributed. So let us see other bets: numbers that are uniform, in two humps, normal and heavy-tailed,
# and this tier's own weights.
#
# **Your guess.** Which 4-bit format has the least error on *uniform* numbers, and which on heavy-tailed
# ones?

# %%
my_guess_uniform = "NF4"  # "NF4", "FP4" or "INT4"
my_guess_heavy = "NF4"

# %%
from course_utils.quantization import code_book, dequantize, linear_weights, quantize

LEVELS = {name: code_book(name.lower()).levels for name in ("NF4", "FP4", "INT4")}
LEVELS["int8"] = torch.arange(-127, 128) / 127


def rounded(w, levels, block=None):
    """w with every number rounded to the nearest level times its block's largest magnitude.

    block None: one scale for the whole tensor.
    """
    flat = w.flatten()  # row by row
    blocks = F.pad(flat, (0, -len(flat) % (block or len(flat)))).view(-1, block or len(flat))
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-38)  # (M, 1) absmax
    borders = (levels[1:] + levels[:-1]) / 2
    nearest = levels[torch.bucketize(blocks / scale, borders)]
    return (scale * nearest).flatten()[: len(flat)].view_as(w)


tried = torch.randn(50, 70, generator=torch.Generator().manual_seed(1))
for name in ("NF4", "FP4", "INT4"):
    torch.testing.assert_close(
        rounded(tried, LEVELS[name], 64), dequantize(quantize(tried, name.lower(), 64))
    )


def relative_error(w, back):
    return float((back - w).square().sum().sqrt() / w.square().sum().sqrt())


# %%
g = np.random.default_rng(lab.seed)
own_weights = list(linear_weights(lab.base()).values())[:8]
kinds = {
    "uniform": g.uniform(-1, 1, 65_536),
    "two humps": g.choice([-1, 1], 65_536) * (1 + 0.2 * g.standard_normal(65_536)),
    "normal": g.standard_normal(65_536),
    "heavy-tailed": g.standard_t(2, 65_536),
}
kinds = {name: torch.tensor(values, dtype=torch.float32) for name, values in kinds.items()}
kinds["this tier's weights"] = torch.cat(
    [w.detach().float().cpu().flatten()[:65_536] for w in own_weights]
)
format_errors = pd.DataFrame(
    {
        name: {f: relative_error(w, rounded(w, q, 64)) for f, q in LEVELS.items()}
        for name, w in kinds.items()
    }
).T
winner = format_errors[["NF4", "FP4", "INT4"]].idxmin(axis=1)
display(format_errors.style.format("{:.4f}").set_caption("RMS error over RMS weight, blocks of 64"))
Markdown(
    "Least error of the 4-bit formats: "
    + ", ".join(f"**{f}** on {name}" for name, f in winner.items())
    + f" (you guessed {my_guess_uniform} on uniform, {my_guess_heavy} on heavy-tailed numbers). "
    + (
        "No format is the best; one fits. "
        if winner.nunique() > 1
        else "One format wins everywhere here; the margins differ. "
    )
    + ", ".join(sorted(set(LEVELS) - {"int8"} - set(winner)))
    + (" fits none of these." if winner.nunique() < 3 else "")
)

# %% tags=["hidden-test"]
assert winner["uniform"] == "INT4"
assert winner["normal"] == "NF4"
assert (format_errors["int8"] < format_errors[["NF4", "FP4", "INT4"]].min(axis=1)).all()

# %% [markdown]
# ### The same function, harder to round
#
# Large language models have a few channels that are tens of times larger than the others (Dettmers et
# al. 2022). Ours is too small to have them, so we put them in, **without changing what the model
# computes**. Before each attention and MLP block the hidden state is multiplied, channel by channel, by
# the norm's weight $\gamma$, and then by a matrix. Divide $\gamma_j$ by $s$ and multiply column $j$ of the
# matrix by $s$:
#
# $$\sum_j W_{ij}\,\gamma_j\,\hat h_j \;=\; \sum_j (s_j W_{ij})\,\frac{\gamma_j}{s_j}\,\hat h_j$$
#
# **Your guess.** One channel of each layer, $s = 30$. The loss in fp32 stays as it is. Which of these
# will be ruined (a rise of more than 0.1 nats): int8 and NF4, each with one scale for a whole matrix
# and in blocks of 64?

# %%
my_guess_ruined = {"int8, one scale", "NF4, one scale", "NF4, blocks of 64"}

# %%
from course_utils.experiments.loop import mean_loss

CHANNEL, S = 7, 30.0


def with_outlier(model, s=S, channel=CHANNEL):
    """The same function with one large column in the matrices after each norm. In place."""
    for layer in model.model.layers:
        mlp, attention = layer.mlp, layer.self_attn
        for norm, maps in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            norm.weight.data[channel] /= s
            for linear in maps:
                linear.weight.data[:, channel] *= s
    return model


def round_maps(model, levels, block=None, keep=None):
    """Rounds every linear map in place; column `keep` stays as it is where it is large."""
    for weight in linear_weights(model).values():
        w = weight.detach().clone()
        column = w[:, keep].clone() if keep is not None else None
        if column is not None and column.abs().median() > 5 * w.abs().median():
            w[:, keep] = 0.0  # away before the absmax is taken
            back = rounded(w, levels, block)
            back[:, keep] = column
        else:
            back = rounded(w, levels, block)
        weight.data.copy_(back)
    return model


text = demonstration_rows(
    world.demonstrations("heldout", 16 if fast else 96), world.tokenizer, 128, "held"
)
ways = {
    "int8, one scale": ("int8", None, None, 8),
    "int8, blocks of 64": ("int8", 64, None, 8 + 32 / 64),
    "NF4, one scale": ("NF4", None, None, 4),
    "NF4, blocks of 64": ("NF4", 64, None, 4 + 32 / 64),
    "NF4, blocks of 16": ("NF4", 16, None, 4 + 32 / 16),
    (rescued := "NF4, blocks of 64, the column in 16 bits"): (
        "NF4",
        64,
        CHANNEL,
        4 + 32 / 64 + 12 / D,
    ),
}
made = {"as it is": world.sft, "with outliers": lambda: with_outlier(world.sft())}
fp32 = {how: mean_loss(make(), text) for how, make in made.items()}
losses = pd.DataFrame(
    {
        way: {
            "bits a weight": bits,
            **{
                how: mean_loss(round_maps(make().cpu(), LEVELS[levels], block, keep), text)
                - fp32[how]
                for how, make in made.items()
            },
        }
        for way, (levels, block, keep, bits) in ways.items()
    }
).T
print(
    f"fp32: {fp32['as it is']:.4f} as it is, {fp32['with outliers']:.4f} with outliers, nats per word"
)
losses.style.format("{:+.4f}").format("{:.2f}", subset=["bits a weight"]).set_caption(
    "rise of the loss by rounding"
)

# %% tags=["hidden-test"]
assert abs(fp32["as it is"] - fp32["with outliers"]) < 1e-3, "the function must stay the same"
if not fast:
    assert losses.loc["NF4, one scale", "with outliers"] > losses.loc["NF4, one scale", "as it is"]
    assert losses.loc[rescued, "with outliers"] < losses.loc["NF4, blocks of 64", "with outliers"]

# %% tags=["hide-input"]
# @title In words
RUINED = 0.1  # nats per word
ruined = [way for way in ways if losses.loc[way, "with outliers"] > RUINED]
rise = losses["with outliers"]
Markdown(
    f"The function is the same, its fp32 loss too. After rounding, with the outlier, the loss rises by more than "
    f"{RUINED:g} nats in: **{'; '.join(ruined) or 'none'}** (you guessed {', '.join(sorted(my_guess_ruined))}). "
    f"Blocks of 64 cut the rise of int8 from {rise['int8, one scale']:+.4f} to "
    f"{rise['int8, blocks of 64']:+.4f}, and of NF4 from {rise['NF4, one scale']:+.3f} to "
    f"{rise['NF4, blocks of 64']:+.3f}; blocks of 16 to {rise['NF4, blocks of 16']:+.3f}, for 1.5 bits more. To "
    f"keep the one column apart in 16 bits costs a tenth of a bit and leaves {rise[rescued]:+.3f} (without an outlier "
    f"NF4 costs {losses.loc['NF4, blocks of 64', 'as it is']:+.3f})."
)

# %% [markdown] slides="22"
# So *quantization formats need care* is precise: a format fails where **few numbers set the scale for
# many**. Blocks contain the damage and cost bits; keeping the outliers apart is LLM.int8() (Dettmers et
# al. 2022); and moving them out of the matrix by the very equation above, read from right to left, is
# SmoothQuant (Xiao et al. 2022) and AWQ (Lin et al. 2023).
#
# ## 6 · What it costs
#
# *Training loops are **costly** and **complex***. Every stage of `course run` kept its bill.
#
# **Your guess.** Of all computing in SFT → reward model → PPO, which share is PPO with the reward model it
# needs? And DPO, how many times cheaper than those two?

# %%
my_guess_share = 0.5
my_guess_cheaper = 2

# %%
from course_utils.evaluation.costs import forward_flops, matmul_parameters

bill = {key: world.cost(key) for key in ("sft", "reward", "ppo", "dpo")}
answer_tokens = float(judged["SFT"].length.mean)
per_question = 16 * answer_tokens  # best of 16, by the reward model
weights = matmul_parameters(sft)
costs = pd.DataFrame(
    {
        {"sft": "SFT", "reward": "reward model", "ppo": "PPO", "dpo": "DPO"}[key]: {
            "CPU seconds": row["cpu_seconds"],
            "GFLOP": row["flops"] / 1e9,
            "tokens sampled": row["generated_tokens"],
            "tokens trained on": row["trained_tokens"],
            "models in memory": {"sft": 1, "reward": 1, "ppo": 3, "dpo": 1}[key],
            "settings": len(type(getattr(world.settings, key)).__dataclass_fields__),
        }
        for key, row in bill.items()
    }
).T
display(costs.style.format("{:,.0f}"))
print(
    f"best of 16 trains nothing, and samples {per_question:.0f} tokens for each question for ever: "
    f"{2 * forward_flops(weights, per_question) / 1e9:.2f} GFLOP, scoring included"
)

# %% tags=["hidden-test"]
assert costs.loc["DPO", "tokens sampled"] == 0
assert costs.loc["PPO", "tokens sampled"] > 0

# %% tags=["hide-input"]
# @title In words
with_rl = costs.loc[["reward model", "PPO"]].sum()
ppo_share = with_rl["CPU seconds"] / (with_rl + costs.loc["SFT"])["CPU seconds"]
cheaper = with_rl["CPU seconds"] / costs.loc["DPO", "CPU seconds"]
dpo_gold = world.evaluate(world.trained("dpo"), n=checked).gold
ppo_gold = world.held_out("ppo")[-1]
break_even = with_rl["GFLOP"] * 1e9 / (2 * forward_flops(weights, per_question))
Markdown(
    f"Reward model and PPO take **{ppo_share:.0%}** of the pipeline's CPU seconds (you guessed "
    f"{my_guess_share:.0%}), and **{cheaper:.1f} times** what DPO takes (you guessed {my_guess_cheaper}). What they "
    f"buy: gold {ppo_gold['gold']:+.2f} for PPO at a KL of {ppo_gold['kl']:.1f}, {dpo_gold} for DPO. Best of 16 has "
    f"spent as much as that training after about {break_even:,.0f} questions. The labels both need are not on "
    "this bill, and with people they are most of it."
)

# %% [markdown] slides="22"
# The lecture's five limits once more, with what one can do about each:
#
# | limit | what one sees | what helps |
# |---|---|---|
# | reward models are **misaligned** with people | the score rises, the answers get worse | KL penalty or budget, held-out judge, ensembles (lesson 09), debiasing, fresh labels on the *new* policy's answers |
# | training loops are **costly** and **complex** | models in memory, settings, sampling | DPO, best-of-n, LoRA, one trunk for policy and critic |
# | DPO needs good **preference data** | gold falls with label noise | more pairs, annotators who agree, cDPO or robust; habits do not average out |
# | LoRA may miss **global interactions** | mean loss fine, rare cases wrong | a higher rank, rsLoRA, full fine-tuning of the one matrix that needs it |
# | **quantization** formats need care | outliers set the scale | blocks, outliers apart, smoothing; measure the *loss*, not the weights |
#
# ## 7 · What broke, and why
#
# * **The proxy was only asked where it knew.** Reward models are tested on pairs from around SFT; PPO moves
#   away from there on purpose. Accuracy on held-out pairs says nothing about the next KL of ten nats.
# * **Gold was never on the screen.** Past the peak all numbers that training shows improved. Only the KL
#   warned.
# * **A cure fitted on SFT's answers** takes off what length explains *there*. Fit it again when the policy
#   has moved.
# * **A rank sweep at one learning rate** measures learning rates: ours gave each rank the better of two.
# * **An error of weights is not an error of the model**: the same function had two different rounding
#   errors.
#
# And nonsense is refused, with a reason:

# %%
from course_utils.errors import CourseError

nonsense = {
    "half of the labels wrong": lambda: replace(quick, label_smoothing=0.5),
    "noise of 150%": lambda: Annotator(noise=1.5),
    "a habit of infinite strength": lambda: Annotator(length_bias=math.inf),
    "answers of one length": lambda: LengthControlled.fit(rm, asked[:2], ["yes.", "no."]),
    "the rank of nothing": lambda: effective_rank(torch.zeros(3, 3)),
    "an unknown format": lambda: quantize(tried, "nf5"),
    "blocks of no weights": lambda: quantize(tried, "nf4", block=0),
    "best of no answers": lambda: best_of_n([[]], np.zeros((1, 0))),
}
for what, attempt in nonsense.items():
    try:
        attempt()
    except (CourseError, ValueError) as error:
        print(f"{what}: {error}\n")
    else:
        raise AssertionError(f"{what} was accepted")

# %% [markdown]
# ## 8 · Check yourself
#
# <details>
# <summary><b>1.</b> Your reward model is right on 90% of held-out pairs, your colleague's on 75%. You both run PPO. Who may go further in KL, and what would you measure to be sure?</summary>
#
# Probably you: a better proxy moves the peak to the right and up. But accuracy was measured on pairs from
# around SFT, and it could rest on a habit that annotators share, such as length. Have people (or a
# held-out judge) compare answers of *later* checkpoints with those of earlier ones, and stop where the
# win rate no longer rises.
# </details>
#
# <details>
# <summary><b>2.</b> You could buy twice as many pairs at 30% wrong labels or keep yours at 10%. DPO: what decides?</summary>
#
# Random flips at a share ε leave (1 − 2ε) of the signal: 0.4 against 0.8. Noise averages out with the
# square root of the number, so twice the pairs bring a factor 1.4, not 2: keep yours. If the mistakes
# are a habit in place of chance, more pairs do not help at all.
# </details>
#
# <details>
# <summary><b>3.</b> A LoRA of rank 8 reaches the loss of full fine-tuning within 1%, yet users of rare languages complain. How does that fit together?</summary>
#
# The mean loss is ruled by what is frequent. The first directions go to what pays most, and what is left
# over sits in the tail, as in the hard cipher. Measure by group, then raise the rank or give that group
# data and an adapter of its own.
# </details>
#
# ## 9 · Read on
#
# * Gao et al. 2022, [Scaling laws for reward model overoptimization](https://arxiv.org/abs/2210.10760)
# * Kwa et al. 2024, [Catastrophic Goodhart: regularizing RLHF with KL divergence does not mitigate heavy-tailed reward misspecification](https://arxiv.org/abs/2407.14503)
# * Singhal et al. 2023, [A long way to go: investigating length correlations in RLHF](https://arxiv.org/abs/2310.03716)
# * Mitchell 2023, [A note on DPO with noisy preferences and its relationship to IPO](https://ericmitchell.ai/cdpo.pdf); Chowdhury et al. 2024, [Provably robust DPO: aligning language models with noisy feedback](https://arxiv.org/abs/2403.00409)
# * Biderman et al. 2024, [LoRA learns less and forgets less](https://arxiv.org/abs/2405.09673); Roy and Vetterli 2007, *The effective rank: a measure of effective dimensionality*
# * Dettmers et al. 2022, [LLM.int8()](https://arxiv.org/abs/2208.07339); Xiao et al. 2022, [SmoothQuant](https://arxiv.org/abs/2211.10438); Lin et al. 2023, [AWQ](https://arxiv.org/abs/2306.00978)
# * Casper et al. 2023, [Open problems and fundamental limitations of reinforcement learning from human feedback](https://arxiv.org/abs/2307.15217)
#
# **Exercises:** [exercises/08_limitations.ipynb](../exercises/08_limitations.ipynb): best of n and its KL,
# what best-of-n brings (from one set of samples), the peak of over-optimisation, preferences with wrong
# labels, effective and stable rank.
#
# **Next**: lesson 09 takes these limits as its programme: feedback from an AI, rules, tests that can be
# executed, and several reward models in place of one.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
