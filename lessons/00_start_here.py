# %% [markdown] seconds=40
# # 0 · Start here
# ## From a model that *knows* to a model that *helps*
#
# A language model that has read a whole web knows a great deal, and is of little use until
# somebody teaches it how to answer. This course is about that teaching: **fine-tuning** and
# **reinforcement learning from human feedback (RLHF)**.
#
# In this notebook you will
#
# 1. question a model that has only ever read,
# 2. measure how good its answers really are,
# 3. fine-tune it yourself, in seconds, and measure again,
# 4. see the whole road ahead, with the numbers of your own machine on it.
#
# Run the cells from top to bottom (<kbd>Shift</kbd>+<kbd>Enter</kbd>). Where a cell asks for **your
# guess**, write it down *before* you run on: a surprise teaches more than a fact. A laptop without
# a GPU is enough.

# %% tags=["setup", "hide-input"]

# %% [markdown]
# Every notebook begins by opening the **lab**. It looks at the machine, chooses a *tier* (which
# model, which data, how many steps) and says why. Later lessons let it choose by itself; this first
# one asks for the tier `tiny` everywhere. Its model and data ship with the course, and only there
# can the true quality of any answer be computed.

# %%
import time

started = time.perf_counter()

from course_utils import Lab

lab = Lab.open(tier="tiny")
lab

# %% tags=["hidden-test"]
assert lab.tier.name == "tiny"
assert "Tier tiny" in lab._repr_html_()

# %% [markdown] slides="1 12"
# ## 1 · The question of this course
#
# **A model is trained to predict the next word of everything people wrote. Why is that not enough?**
#
# Because *likely* is not *helpful*. The web holds right and wrong answers, kind and rude ones, to
# the point and rambling. A good predictor learns to produce all of them. Three wishes are left open:
#
# | wish | what is missing | what this course does about it |
# |---|---|---|
# | **alignment** | to do what people intend and value | supervised fine-tuning, reward models, PPO, DPO |
# | **adaptability** | to serve one domain, one task, one style | full fine-tuning, adapters, prefixes, LoRA |
# | **efficiency** | to do so on the hardware one has | LoRA, QLoRA, 4-bit weights |
#
# The road to alignment has the shape below. Keep it in sight: each box is a lesson, and at the end
# of this notebook there will be numbers in it.

# %% tags=["hide-input"]
# @title The road, drawn
from course_utils.pipeline_map import PipelineMap

PipelineMap()

# %% [markdown]
# ## 2 · A model that knows
#
# The model of tier `tiny` lives in a small universe that we wrote ourselves. Every fact of it is
# known, so every sentence the model says can be checked. It was trained on that universe's "web":
# encyclopedias, cookbooks, sums, and forum posts by people with all kinds of manners. (There are no
# capital letters in it.)

# %%
from course_utils.world.knowledge import load

knowledge = load()
base = lab.base()  # a fresh copy of the pretrained model

print(f"topics in the world   {len(knowledge.topics):>9,}")
print(f"prompts one can ask   {len(lab.prompts('train')) + len(lab.prompts('heldout')):>9,}")
print(f"words in the model    {len(lab.tokenizer):>9,}")
print(f"parameters            {base.num_parameters():>9,}")

# %% [markdown]
# What such a model does is always the same: given some words, it holds a probability for every
# word that may come next. Nothing else is inside.

# %%
import pandas as pd
import torch


def next_words(model, text, k=4):
    """The k likeliest next words and their probabilities."""
    start = lab.tokenizer.bos_token + text
    ids = lab.tokenizer(start, add_special_tokens=False, return_tensors="pt").input_ids  # (1, T)
    with torch.no_grad():
        logits = model(ids.to(model.device)).logits[0, -1]  # (V,)
    top = logits.softmax(-1).topk(k)
    words = [lab.tokenizer.decode([i]) for i in top.indices.tolist()]
    return dict(zip(words, top.values.tolist(), strict=True))


beginnings = ["black holes are made of", "the moon landing is", "lions"]
likely = {text: next_words(base, text) for text in beginnings}
pd.DataFrame(
    {
        text + " …": [f"{word}  ({p:.0%})" for word, p in found.items()]
        for text, found in likely.items()
    }
).style.hide(axis="index")

# %% tags=["hidden-test"]
assert all(0 < sum(found.values()) <= 1.0001 for found in likely.values())

# %% [markdown] slides="7"
# ## 3 · The same model, asked a question
#
# The lecture asks for something that people actually want: *“Explain black holes to a 5-year-old.”*
#
# **Your guess.** The model knows what black holes are. Will it say so? Choose before you run the
# next cell:
#
# * (a) yes, in plain words, for a child
# * (b) sometimes, and sometimes something else
# * (c) no, it will only continue the question

# %%
my_guess = "a"

# %%
from textwrap import fill

question = lab.lecture_prompts[0]
samples = lab.generate(base, [question] * 5)

print(question, "\n")
for answer in samples:
    print(fill(answer, 90, initial_indent="  – ", subsequent_indent="    "))
print(f"\nyour guess was ({my_guess})")

# %% tags=["hidden-test"]
assert len(samples) == 5
assert len(set(samples)) > 1, "five samples at temperature 1 should differ"

# %% [markdown]
# The facts are there, and so are the habits of the web: flattery, rambling, needless refusals,
# something wrong or beside the point. The model has no idea which answer you would want. It was
# never told.
#
# ## 4 · How good is an answer?
#
# For a real model we can only ask people. In our universe we can *compute* it. The **gold reward**
# reads an answer sentence by sentence and adds up its parts. Try it: change `my_answer`, and see
# what earns and what costs.

# %% tags=["hide-input"]
# @title How the parts are shown
from course_utils.world.gold import PARTS


def show_parts(score):
    """The parts of a gold reward as a table with bars."""
    print(f"gold reward {score.total:+.2f}")
    table = pd.DataFrame({"points": score.parts, "how they are counted": PARTS}).loc[list(PARTS)]
    table.index = table.index.str.replace("_", " ")
    look = table.style.format({"points": lambda points: f"{points:+.2f}" if points else "·"})
    look = look.set_properties(**{"text-align": "left"})
    look = look.set_table_styles([{"selector": "th", "props": "text-align: left"}])
    colours = ["#f0a860", "#78aaf0"]
    return look.bar(subset=["points"], align="zero", vmin=-1.5, vmax=1.5, color=colours)


# %%
my_answer = "great question! black holes are objects with strong gravity. they are made of cheese."

score = lab.gold(question, my_answer)
show_parts(score)

# %% tags=["hidden-test"]
assert abs(sum(score.parts.values()) - score.total) < 1e-9

# %% [markdown]
# Now all prompts that the lecture shows. Of 15 samples each we look at the *typical* one, that with
# the median gold reward. Rest the pointer on a coloured part to see what it means.

# %%
first_answers = lab.answers({"base model": base}, lab.lecture_prompts, samples=15)
first_answers

# %% tags=["hidden-test"]
assert len(first_answers) == len(lab.lecture_prompts)
assert first_answers.frame().gold.notna().all()

# %% [markdown]
# Three answers are anecdotes. So we ask many **held-out** prompts, ones that no fine-tuning in this
# course ever uses, and take the mean with a 95% bootstrap interval.

# %%
measured = {"base": lab.evaluate(base)}
print(f"base model: gold reward {measured['base'].gold} on {measured['base'].prompts} prompts")

# %% [markdown]
# ## 5 · Supervised fine-tuning, in seconds
#
# The oldest remedy is the simplest: **show it good answers.** Somebody writes demonstrations, pairs
# of a prompt and the answer one would like to read.

# %%
demonstrations = lab.demonstrations()
for row in demonstrations.select(range(3)):
    print("prompt: ", row["prompt"][0]["content"])
    print("answer: ", row["completion"][0]["content"], "\n")
print(f"{len(demonstrations):,} demonstrations")

# %% [markdown]
# The training objective is the one the model already knows, the log-likelihood of the next word,
# but counted **only on the answer**: for a prompt $x$ and a demonstration $y$ of $T$ words
#
# $$\mathcal{L}_{\text{SFT}}(\theta) = -\sum_{t=1}^{T} \log p_\theta(y_t \mid y_{<t},\, x)$$
#
# **Your guess.** The base model's gold reward stands above. What will it be after a few seconds of
# this? Two numbers, then run on.

# %%
my_guess_sft = 0.0  # gold reward after fine-tuning
my_guess_share = 0.5  # share of prompts on which the fine-tuned model gives the better answer

# %%
from dataclasses import asdict

from course_utils import RunLog, train_sft

settings = lab.settings.sft
run = RunLog.create(lab.run_directory("start-here"), asdict(settings), lab.seed, overwrite=True)
sft = train_sft(lab.base(), lab.tokenizer, demonstrations, settings, log=run)

# %% tags=["hidden-test"]
assert len(run.rows) > 0
assert not torch.equal(next(sft.parameters()), next(base.parameters()))

# %% [markdown]
# Everything a training run leaves behind is in one folder, a *run*. Here is its loss, step by step.

# %% tags=["hide-input"]
# @title The loss, drawn
import plotly.graph_objects as go

LOOK = {
    "template": "plotly_white",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"size": 13, "color": "#888"},
    "margin": {"l": 60, "r": 20, "t": 40, "b": 50},
    "height": 300,
}
losses = run.frame().dropna(subset=["loss"])
smooth = losses.loss.rolling(10, min_periods=1).mean()
figure = go.Figure(layout={"title": "Loss on the demonstrations", "showlegend": False, **LOOK})
figure.add_scatter(x=losses.step, y=losses.loss, line={"color": "rgba(40,120,220,.35)", "width": 1})
figure.add_scatter(x=losses.step, y=smooth, line={"color": "#2878dc", "width": 3})
figure.update_layout(xaxis_title="optimizer step", yaxis_title="nats per word of the answer")

# %% [markdown]
# ## 6 · Before and after
#
# The same prompts, the same way of sampling (again the median of 15), two models.

# %%
models = {"base model": base, "after SFT": sft}
table = lab.answers(models, lab.lecture_prompts, samples=15)
table

# %% tags=["hidden-test"]
assert set(table.frame().model) == {"base model", "after SFT"}

# %% [markdown]
# And the same held-out prompts as before:

# %%
from course_utils.evaluation import win_rate

measured["sft"] = lab.evaluate(sft)
wins = win_rate(measured["sft"].scores(), measured["base"].scores())

for name, found in measured.items():
    print(f"{name:>4}: gold reward {found.gold}")
print(f"\nyou guessed {my_guess_sft:+.2f}, measured {measured['sft'].mean:+.2f}")
print(
    f"the fine-tuned answer is better on {wins.rate:.0%} of the prompts, you guessed {my_guess_share:.0%}"
)

# %% tags=["hidden-test"]
assert measured["base"].prompts == measured["sft"].prompts > 0
if not lab.tier.is_fast:  # three training steps prove nothing
    assert measured["sft"].gold.low > measured["base"].gold.high
    assert wins.low > 0.5

# %% [markdown]
# **Your guess.** Which part of the gold reward did the demonstrations repair most? Which is still
# far from its best?

# %% tags=["hide-input"]
# @title The parts before and after, drawn
names = [name for name in PARTS if any(abs(m.parts[name].mean) > 0.01 for m in measured.values())]
labels = [name.replace("_", " ") for name in names]
figure = go.Figure(
    layout={"title": "Mean points by part of the gold reward", "barmode": "group", **LOOK}
)
for key, colour in {"base": "#9a9aa4", "sft": "#2878dc"}.items():
    estimates = [measured[key].parts[name] for name in names]
    figure.add_bar(
        name={"base": "base model", "sft": "after SFT"}[key],
        x=labels,
        y=[e.mean for e in estimates],
        error_y={
            "array": [e.high - e.mean for e in estimates],
            "arrayminus": [e.mean - e.low for e in estimates],
            "color": "#888",
            "thickness": 1,
        },
        marker_color=colour,
    )
figure

# %% tags=["hide-input"]
# @title In words
from IPython.display import Markdown, display

from course_utils.world.phrases import WARM_CLOSERS, WARM_OPENERS

gain = {
    name: measured["sft"].parts[name].mean - measured["base"].parts[name].mean for name in PARTS
}
best = max(gain, key=gain.get)
tone = {key: round(found.parts["tone"].mean, 2) + 0.0 for key, found in measured.items()}
shown = [
    lab.gold(row["prompt"][0]["content"], row["completion"][0]["content"])
    for row in demonstrations.select(range(min(500, len(demonstrations))))
]
warmest = lab.gold(question, f"{WARM_OPENERS[0]} {WARM_CLOSERS[0]}").parts["tone"]
friendly = sum(one.parts["tone"] > 0 for one in shown) / len(shown)
Markdown(
    f"The largest gain is in **{best.replace('_', ' ')}** ({gain[best]:+.2f}). **Tone** went from "
    f"{tone['base']:+.2f} to {tone['sft']:+.2f}, where a warm opening and a warm closing would earn "
    f"{warmest:+.2f}: only {friendly:.0%} of the demonstrations are friendly, and the model is about as "
    "friendly as they are. It copies what it is shown, manners and all."
)

# %% tags=["hidden-test"]
assert warmest > 0.5
assert 0 <= friendly < 0.9, "the text says that few demonstrations are friendly"

# %% [markdown] slides="11 12"
# ## 7 · Why the course does not end here
#
# Fine-tuning copies its demonstrations, with their limits: it is **only as good as the people who
# wrote them**, it is often bland, and it cannot learn from an answer that is *almost* good. Yet
# nearly everybody can say which of two answers they like better, even one they could not have
# written. That is the idea of RLHF:
#
# 1. sample answers, let people **compare** them;
# 2. train a **reward model** to predict which one they prefer;
# 3. let the model practise: **PPO** raises its reward and keeps it close to where it started;
# 4. or skip the reward model: **DPO** learns from the comparisons themselves.
#
# One command runs all of it on your machine, in minutes. In a terminal, in the folder of the course:
#
# ```
# make run
# ```
#
# (On Colab: `!course run` in a new cell.) It writes a page to look at, `runs/latest/report.html`,
# and its numbers to `report.json`. When that file exists, the next cell puts *your* numbers into the
# picture.

# %% tags=["hide-input"]
# @title Your own run
import json

report_file = lab.run_directory("latest") / "report.json"
report = json.loads(report_file.read_text()) if report_file.exists() else {}

rows = {
    model["key"]: {"model": model["label"], **model["evaluation"]["gold"]}
    for model in report.get("models", [])
    if ((model.get("evaluation") or {}).get("gold") or {}).get("mean") is not None
}
here = {key: f"gold {found.mean:+.2f}" for key, found in measured.items()}
yours = {key: f"gold {row['mean']:+.2f}" for key, row in rows.items()}
accuracy = ((report.get("reward_model") or {}).get("accuracy") or {}).get("mean")
if accuracy is not None:
    yours["reward"] = f"right on {accuracy:.0%} of pairs"

if rows:
    print(f"Your own run, tier {report.get('tier')}, seed {report.get('seed')}; 95% intervals:")
    found = pd.DataFrame(rows.values()).set_index("model")[["mean", "low", "high", "n"]]
    display(found.style.format("{:+.2f}", subset=["mean", "low", "high"], na_rep="–"))
else:
    print("No run of yours yet: these numbers are this notebook's, `make run` brings the rest.")
PipelineMap(yours or here)

# %% tags=["hidden-test"]
assert set(here) == {"base", "sft"}
assert report_file.exists() or not yours

# %% [markdown] slides="2 3"
# ## 8 · It happened before: three stories
#
# What you just saw in a universe of a hundred topics is how today's assistants came to be.
#
# | from | to | what was done | what came out |
# |---|---|---|---|
# | **GPT-3** (2020) | **InstructGPT** (2022) | labellers' demonstrations, a reward model from their rankings, PPO | people preferred the answers of the 1.3B InstructGPT to those of the 175B GPT-3 (Ouyang et al. 2022) |
# | **LLaMA** (2023) | **Alpaca**, **Vicuna** (2023) | SFT only: 52k instructions written by another model; about 70k conversations that users shared | a small lab can make an assistant out of an open model; imitation of a better model is not the same as being as good |
# | GPT-3.5, Anthropic's models | **ChatGPT** (2022), **Claude** (2023) | RLHF at scale, for Claude also a written constitution that an AI applies (Bai et al. 2022) | assistants that the public uses |
#
# The first row is a claim one can test: *a small aligned model beats a large unaligned one.* A later
# lesson does.
#
# ## 9 · Where the road leads
#
# By the end you will be able to
#
# * **compare** the methods of fine-tuning: what each updates, what it costs, what it forgets;
# * **explain** the pipeline SFT → reward model → RL, and build each stage from scratch;
# * **describe** PPO and DPO down to the gradient, and say when each fails;
# * **apply** LoRA and QLoRA to real models on the hardware you have;
# * **judge** trade-offs, limits and what comes next, by measuring instead of believing.
#
# | lesson | the question it asks |
# |---|---|
# | 00 start here | what does a model lack that has read everything? |
# | 01 categories of fine-tuning | which weights must move, and what does the model forget? |
# | 02 supervised fine-tuning | which words of a conversation should the loss count? |
# | 03 reward model | how do comparisons become a number, and can it be trusted? |
# | 04 PPO | how far may a model go for reward, and what holds it back? |
# | 05 DPO | where did the reward model go? |
# | 06 LoRA | how few numbers can hold a new skill? |
# | 07 QLoRA | how coarse may the weights be? |
# | 08 limitations | what happens when the reward is wrong, the labels noisy, the rank too low? |
# | 09 future directions | can an AI give the feedback? can a rule, a test, a picture? |
# | 10 capstone | which method wins on your budget? |
#
# Every lesson goes the same way: a claim, your guess, the idea built in a few lines, the library
# that gives the same number, a real run, and the claim **measured**, also when it comes out wrong.

# %% [markdown]
# ## 10 · Check yourself
#
# <details>
# <summary><b>1.</b> The base model knew the facts. Why were its answers so much worse than after a few seconds of training?</summary>
#
# Its training asked for the *likely* next word, and on its web likely answers are of every quality.
# Demonstrations did not teach it new facts: they moved probability to one of the many ways of
# answering that it already had.
# </details>
#
# <details>
# <summary><b>2.</b> The gold reward here is computed. With a real model, what takes its place, and what could go wrong?</summary>
#
# People compare answers, and a reward model learns to predict their choice. It is a stand-in (a
# *proxy*): where it errs, a model trained against it will find the error and make use of it. Here
# proxy and gold can be compared; lessons 04 and 08 do.
# </details>
#
# <details>
# <summary><b>3.</b> Someone offers you a million mediocre demonstrations, or ten thousand comparisons of answers. What speaks for each?</summary>
#
# SFT imitates what it is shown, the mediocre too, so more of it only copies the mean better; but it
# is simple, stable and cheap. Comparisons can point *beyond* what anyone wrote, since they say which
# way is better; but they need a model whose answers are worth comparing, so SFT comes first anyway.
# </details>
#
# ## 11 · Read on
#
# * Brown et al. 2020, [Language models are few-shot learners](https://arxiv.org/abs/2005.14165) (GPT-3)
# * Ouyang et al. 2022, [Training language models to follow instructions with human feedback](https://arxiv.org/abs/2203.02155) (InstructGPT)
# * Bai et al. 2022, [Training a helpful and harmless assistant with RLHF](https://arxiv.org/abs/2204.05862) and [Constitutional AI](https://arxiv.org/abs/2212.08073)
# * Touvron et al. 2023, [LLaMA](https://arxiv.org/abs/2302.13971); Taori et al. 2023, [Alpaca](https://crfm.stanford.edu/2023/03/13/alpaca.html); Chiang et al. 2023, [Vicuna](https://lmsys.org/blog/2023-03-30-vicuna/)
# * Rafailov et al. 2023, [Direct preference optimization](https://arxiv.org/abs/2305.18290) (DPO)
# * Hu et al. 2021, [LoRA](https://arxiv.org/abs/2106.09685); Dettmers et al. 2023, [QLoRA](https://arxiv.org/abs/2305.14314)

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
