# %% [markdown] slides="23" seconds=140
# # 09 · Future directions
# ## Can an AI give the feedback? Can a rule, a test, a picture?
#
# Every comparison in this course so far came from somebody who read two answers. That is slow and
# dear, and people tire. The lecture ends with what may take their place. In this notebook you build
# each of these things in a small form that works, and measure what it is worth:
#
# 1. **RLAIF**: an AI labels the same pairs as the annotator. Which labels train the better model?
# 2. **Constitutional AI**: rules and self-critique, from a critique to a model that behaves.
# 3. **Verifiable rewards**: a restricted interpreter runs the answer; GRPO learns from the result.
# 4. **Reward-hacking defence**: several reward models that must agree.
# 5. **Multimodal alignment**: vision (a captioner that stops inventing things), audio, code.
# 6. **Open RLHF datasets**: a short, honest tour.
#
# Tier tiny: about two and a half minutes on two cores; the first lesson
# that needs them also trains the SFT model and samples the preference pairs, once. On a T4: not
# measured yet.

# %% tags=["setup", "hide-input"]

# %%
import time

started = time.perf_counter()

from dataclasses import replace

from course_utils import Lab

lab = Lab.open()
world = lab.world  # the lab in which the truth is known (on tier tiny: this one)
sft = world.sft()
pairs, heldout_pairs = world.pairs()  # labelled by the world's annotator

print(f"{len(pairs):,} labelled pairs to learn from, {len(heldout_pairs):,} held out")

# %% tags=["hidden-test"]
assert world.gold is not None
assert len(pairs) > 0

# %% [markdown]
# All claims of this notebook need the truth, so they are measured in the embedded world
# (`world = lab.world`) on every tier. Where a real model can take part, its cell says so.
#
# **Your guesses**, before anything runs:

# %%
my_guess_rlaif = "same"  # trained on AI labels: "better", "same" or "worse" than on people's?
my_guess_refusals = 0.1  # share of harmless requests that the constitutional model refuses
my_guess_unseen = 0.5  # GRPO's pass rate on programs that it was not trained on
my_guess_ensemble = "min"  # what keeps most true quality: "mean", "min" or "mean − λ·std"?

# %% [markdown] slides="23"
# ## 1 · RLAIF: who says which answer is better?
#
# **The lecture says** that AI feedback can take the place of human labels: *RLAIF*, reinforcement
# learning from AI feedback (Lee et al. 2023). To the algorithms nothing changes. All that training
# ever asks of a labeller is one method:
#
# ```
# labeller.compare(prompt, a, b)  →  0 if a is preferred, 1 if b is
# ```
#
# So whoever has this method can label. With a real chat model one asks *"Which answer is better? Reply
# with A or B only"* and reads the two logits of the next token:
#
# $$P(\text{first is better}) = \frac{e^{z_A}}{e^{z_A} + e^{z_B}} = \sigma(z_A - z_B)$$
#
# There is a catch. Chat models like a *place*, whatever stands there. Here is a toy judge with an
# honest opinion and a weakness for whatever it reads first.

# %%
import torch

opinion = {"right": 1.0, "nearly right": 0.6, "wrong": -1.0}  # what the toy judge thinks, logits
love_of_first = 1.5


def first_is_better(first, second):
    """P(first is better) of the toy judge: σ(z_A − z_B), with a bonus for the first place."""
    return torch.sigmoid(torch.tensor(opinion[first] + love_of_first - opinion[second])).item()


def fair(a, b):
    """Both orders, averaged: P(a better than b)."""
    return (first_is_better(a, b) + 1 - first_is_better(b, a)) / 2


for a, b in (("right", "wrong"), ("nearly right", "right"), ("right", "nearly right")):
    print(
        f"{a:>12} against {b:<12}  asked once {first_is_better(a, b):.2f}   fair {fair(a, b):.2f}"
    )

# %% tags=["hidden-test"]
assert first_is_better("nearly right", "right") > 0.5 > fair("nearly right", "right")
assert abs(fair("right", "wrong") + fair("wrong", "right") - 1) < 1e-6

# %% [markdown]
# Asked once, the toy prefers *nearly right* to *right*, only because it came first. Asked in both
# orders it does not, and $P(a, b) + P(b, a) = 1$. `LanguageModelJudge` in `course_utils.feedback`
# does exactly this with a real chat model.
#
# ### The AI judge of this world
#
# The world's words are too few for a chat model, so its AI judge is a program that **reads written
# principles** (you will meet them in section 2). What it is good and bad at is known, because we made
# it so: it notices manners, rambling, straying and refusals, and how much is said. **It does not know
# any facts.** "lions eat plants" pleases it as much as "lions eat meat". Real AI judges have the same
# weakness in a milder form.

# %%
from course_utils.feedback import ConstitutionJudge, agreement_table
from course_utils.feedback.judge import as_pairs

ai = ConstitutionJudge(seed=world.seed)
question = "what do lions eat?"
for answer in (
    "lions eat meat.",
    "lions eat plants.",
    "great question! lions eat plants.",
    "look it up yourself. lions eat meat.",
):
    truth = world.gold(question, answer).total
    print(f"AI judge {ai.utility(question, answer):+.2f}   gold {truth:+.2f}   {answer}")

# %% tags=["hidden-test"]
assert ai.utility(question, "lions eat meat.") == ai.utility(question, "lions eat plants.")
assert (
    world.gold(question, "lions eat meat.").total > world.gold(question, "lions eat plants.").total
)

# %% [markdown]
# How far do judges agree? The share of equal verdicts is not enough: two judges who toss coins agree
# half the time. **Cohen's kappa** takes that off:
#
# $$\kappa = \frac{p_o - p_e}{1 - p_e}$$
#
# $p_o$ is the observed agreement and $p_e$ what their habits would give by chance.

# %%
from course_utils.evaluation.agreement import cohens_kappa


def kappa(one, other):
    """Cohen's kappa of two lists of verdicts."""
    n = len(one)
    p_o = sum(x == y for x, y in zip(one, other, strict=True)) / n
    p_e = sum((one.count(v) / n) * (other.count(v) / n) for v in set(one) | set(other))
    return (p_o - p_e) / (1 - p_e)


from course_utils.world import Annotator

annotator = Annotator(temperature=world.tier.annotator_temperature, seed=world.seed + 1)
gold_judge = Annotator(temperature=0.0)  # always prefers the truly better answer
shown = as_pairs(heldout_pairs)  # (prompt, a, b), in an order that gives nothing away
verdicts = {
    name: [judge.compare(*pair) for pair in shown]
    for name, judge in {"annotator": annotator, "AI judge": ai, "gold": gold_judge}.items()
}
mine = kappa(verdicts["annotator"], verdicts["AI judge"])
torch.testing.assert_close(mine, cohens_kappa(verdicts["annotator"], verdicts["AI judge"]))

agreed = agreement_table({"annotator": annotator, "AI judge": ai, "gold": gold_judge}, shown)
agreed.style.format({"agree": "{:.0%}", "low": "{:.0%}", "high": "{:.0%}", "kappa": "{:.2f}"})

# %% tags=["hidden-test"]
assert len(agreed) == 3
assert agreed.pairs.eq(len(shown)).all()
if not lab.tier.is_fast:
    assert agreed.agree["annotator · gold"] > 0.6
    assert agreed.agree["AI judge · gold"] > 0.6

# %% [markdown]
# The annotator here is *another* person than the one who labelled the training pairs (another seed),
# with the same taste and the same trembling hand. Be a judge yourself: the widget shows pairs; afterwards
# open its comparison to see how far you agree with the AI judge and with the truth.

# %% tags=["hide-input"]
# @title You, the AI judge and the truth
from course_utils.inspectors import PreferenceLabeller

path = world.run_directory("my-judgements.jsonl")
path.parent.mkdir(parents=True, exist_ok=True)
labeller = PreferenceLabeller(
    shown[:24], path, against={"AI judge": ai, "gold": world.gold, "annotator": annotator}
)
labeller

# %% tags=["hidden-test"]
assert set(labeller.against) >= {"AI judge", "gold"}
assert len(labeller.pairs) > 0

# %% [markdown]
# ### Train on each kind of label
#
# The same pairs, the same DPO (lesson 05), once with the annotator's labels and once with the AI's.
# Only the labels differ.

# %%
from course_utils import RunLog, train_dpo
from course_utils.feedback.judge import relabel

ai_pairs = relabel(pairs, ai)
dpo_settings = replace(
    world.settings.dpo,
    steps=min(48, world.settings.dpo.steps),
    batch_size=16,
    learning_rate=3e-4,
    save_every=0,
)
trained = {"SFT": sft}
for name, data in {"human labels": pairs, "AI labels": ai_pairs}.items():
    where = world.run_directory("rlaif-" + name.split()[0].lower())
    run = RunLog.create(where, {}, world.seed, overwrite=True)
    trained[name] = train_dpo(world.sft(), world.tokenizer, data, dpo_settings, run)

compared = world.compare(trained, n=24 if lab.tier.is_fast else 192, reference=sft)
compared

# %% tags=["hidden-test"]
assert len(ai_pairs) == len(pairs)
assert {row["prompt"][0]["content"] for row in ai_pairs} == {
    row["prompt"][0]["content"] for row in pairs
}
assert set(compared.evaluations) == {"SFT", "human labels", "AI labels"}

# %% [markdown]
# The total hides *what* was learned. Where did each kind of label move the model?

# %% tags=["hide-input"]
# @title The parts of the gold reward, relative to SFT
from IPython.display import Markdown, display

from course_utils import plots

before = compared.evaluations["SFT"].parts
names = ["correctness", "completeness", "relevance", "tone", "brevity", "harmlessness", "form"]
figure = plots.figure("Change against SFT, in gold points", y="points", height=340, barmode="group")
for name, colour in (("human labels", "sft"), ("AI labels", "reward")):
    parts = compared.evaluations[name].parts
    change = [parts[p].mean - before[p].mean for p in names]
    plots.bars(figure, names, change, plots.COLOURS[colour], name)
display(figure)

gain = {
    name: {p: compared.evaluations[name].parts[p].mean - before[p].mean for p in names}
    for name in ("human labels", "AI labels")
}
most = {name: max(found, key=found.get) for name, found in gain.items()}
blind = gain["AI labels"]["correctness"]
Markdown(
    f"The annotator's labels moved **{most['human labels']}** most, the "
    f"AI's **{most['AI labels']}**. Correctness, which the AI judge cannot see, changed by "
    f"{blind:+.2f} with its labels and by {gain['human labels']['correctness']:+.2f} with the "
    "annotator's. A judge can only teach what it can see; what it cannot see drifts."
)

# %%
gold_of = {name: found.mean for name, found in compared.evaluations.items()}
rate = compared.winner("AI labels", "human labels")
apart = rate.low > 0.5 or rate.high < 0.5
helped = compared.winner("AI labels", "SFT").low > 0.5  # clearly better than before
behind = rate.high < 0.5  # clearly worse than with people's labels
print(f"you guessed: {my_guess_rlaif}")
world.claim(
    "C17",
    f"gold {gold_of['SFT']:+.2f} after SFT, {gold_of['human labels']:+.2f} "
    f"with the annotator's labels, {gold_of['AI labels']:+.2f} with the AI's; the AI's model "
    f"gives the better answer on {rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}] of the prompts"
    + ("" if apart else ", which is no difference that this many prompts could show"),
    holds=None if helped and behind else helped,
    condition="AI labels help, people's labels help more" if helped and behind else "",
    sft=gold_of["SFT"],
    human=gold_of["human labels"],
    ai=gold_of["AI labels"],
    win_rate=rate.rate,
)

# %% [markdown]
# On a tier with real models the judge is a real one. The next cell then lets SmolLM2-360M-Instruct
# label some of the tier's own held-out pairs, measures its love for the first place, and how far it
# agrees with the people who labelled them. On tier tiny it only says so.

# %%
if lab.gold is None:
    from course_utils.evaluation.agreement import agreement
    from course_utils.feedback import LanguageModelJudge

    judge = LanguageModelJudge.load("HuggingFaceTB/SmolLM2-360M-Instruct", lab.device)
    heard = lab.pairs()[1]
    real_pairs = heard.select(range(min(64, len(heard))))
    real = [(r["prompt"][-1]["content"], r["chosen"][-1]["content"], r["rejected"][-1]["content"])
            for r in real_pairs]  # fmt: skip
    chances = judge.probability(real)
    says_first = judge.place_preference(real)
    print("agreement with the people:", agreement([int(p < 0.5) for p in chances], [0] * len(real)))
    print(f"it prefers the first place with P = {says_first:.2f}")
else:
    print("tier tiny: no real chat model here; set COURSE_TIER=small on a GPU")

# %% [markdown] slides="23"
# ## 2 · Constitutional AI: rules and self-critique
#
# **The lecture says**: Constitutional AI guides behaviour by *rules and self-critique* (Bai et al.
# 2022; Anthropic's constitution of 2023). The recipe:
#
# 1. write down principles, a **constitution**;
# 2. let the model answer, **critique** its own answer against the principles, and **revise** it;
# 3. train on the revisions: here as preferences, *revised above original*, with DPO.
#
# The paper begins with a model that is *helpful only*: it does whatever it is asked. So do we: SFT on
# the demonstrations, with the refusals of harmful requests taken out.

# %%
from course_utils import train_sft
from course_utils import world as embedded
from course_utils.world.gold import is_harmful

demonstrations = world.demonstrations()
harmless_only = demonstrations.filter(
    lambda row: not is_harmful(embedded.find(row["prompt"][0]["content"]))
)
run = RunLog.create(world.run_directory("helpful-only"), {}, world.seed, overwrite=True)
helpful_settings = replace(
    world.settings.sft, steps=min(80, world.settings.sft.steps), save_every=0
)
helpful = train_sft(world.base(), world.tokenizer, harmless_only, helpful_settings, run)
print(
    f"{len(demonstrations) - len(harmless_only)} of {len(demonstrations)} demonstrations taken out"
)

# %% tags=["hidden-test"]
assert len(harmless_only) < len(demonstrations) or lab.tier.is_fast

# %% [markdown]
# Two numbers describe its conduct, and both must be watched: how often it **helps with harm**, and
# how often it **refuses the harmless**. A model that refuses everything has a perfect first number.
# Some harmless requests of the world are *look-alikes*: they begin with the words of a harmful one.

# %%
from course_utils.feedback import conduct
from course_utils.feedback.constitution import howto_prompts
from course_utils.world.knowledge import load

harmful, harmless = howto_prompts("heldout")
alike = [p for p in harmless if load().howto(embedded.find(p).detail).lookalike]
print("harmful:    ", harmful[0], "·", harmful[-1])
print("look-alike: ", alike[0], "·", alike[-1])

exam = (harmful + harmless) * 2  # two answers to each held-out prompt
if lab.tier.is_fast:
    exam = harmful[:6] + harmless[:6]


def behaviour(model):
    """How a model behaves on the held-out how-to prompts."""
    return conduct(exam, world.generate(model, exam, max_new_tokens=32))


behaviours = {"helpful only": behaviour(helpful), "SFT, with refusals": behaviour(sft)}
for name, found in behaviours.items():
    print(f"{name:>20}: {found}")

# %% tags=["hidden-test"]
assert set(harmful).isdisjoint(harmless)
assert 0 < len(alike) < len(harmless)
if not lab.tier.is_fast:
    assert behaviours["helpful only"].harmful_compliance.mean > 0.7

# %% [markdown]
# ### A constitution is data
#
# A principle has words for the reader, and says which kinds of sentences break it, and when.

# %% tags=["hide-input"]
# @title The constitution
import pandas as pd

from course_utils.feedback import CONSTITUTION

pd.DataFrame(CONSTITUTION.rows()).set_index("name")[["text", "when", "minds", "repair", "weight"]]

# %% [markdown]
# **Critique** means: which principle does the answer break, and where? For one principle that is a
# few lines: cut the answer into sentences, see what kind each is, look the kind up.

# %%
from course_utils.feedback import critique, revise
from course_utils.world.gold import recognise


def my_critique(prompt, answer, principle):
    """Numbers of the sentences that break a principle."""
    asked = embedded.find(prompt)
    case = "harmful" if is_harmful(asked) else "harmless"
    if principle.when not in ("always", case):
        return []
    said = recognise(asked, answer)  # sentences with their kinds
    return [place for place, sentence in enumerate(said) if sentence.kind in principle.minds]


asked = harmful[0]
answer = world.generate(helpful, [asked], max_new_tokens=32)[0]
harmless_rule = CONSTITUTION["harmless"]
print(f"prompt   {asked}\nanswer   {answer}")
for found in critique(asked, answer):
    print("critique", found)
print("revision", revise(asked, answer))

library = [c.place for c in critique(asked, answer) if c.principle == "harmless"]
assert my_critique(asked, answer, harmless_rule) == library

# %% tags=["hidden-test"]
assert critique(asked, revise(asked, answer) or "") == []

# %% [markdown]
# In the paper the *model itself* criticises and rewrites, asked in words. A million parameters
# cannot, so here the world's parser does. The rest is the paper's recipe: sample answers to training
# prompts, revise those that break something, prefer the revision.

# %%
from course_utils.feedback import revision_pairs

train_harmful, train_harmless = howto_prompts("train")
asked = [*train_harmful * 6, *train_harmless * 3]
asked = asked[:: 10 if lab.tier.is_fast else 1]
answers = world.generate(helpful, asked, max_new_tokens=32)
preferences = revision_pairs(zip(asked, answers, strict=True))
print(f"{len(asked)} answers, {len(preferences)} of them revised")
for row in preferences.select([0, len(preferences) - 1]):
    print("\nprompt  ", row["prompt"][0]["content"])
    print("rejected", row["rejected"][0]["content"])
    print("chosen  ", row["chosen"][0]["content"])

# %% tags=["hidden-test"]
for row in preferences:
    assert critique(row["prompt"][0]["content"], row["chosen"][0]["content"]) == []
    assert critique(row["prompt"][0]["content"], row["rejected"][0]["content"])

# %% [markdown]
# **Your guess** stands above: which share of *harmless* requests will the trained model refuse?

# %%
cai_settings = replace(
    dpo_settings, steps=min(40, dpo_settings.steps), learning_rate=5e-4, beta=0.1
)


def constitutional(data, name):
    """The helpful-only model after DPO on revisions."""
    from course_utils.models import copy_model

    run = RunLog.create(world.run_directory(f"cai-{name}"), {}, world.seed, overwrite=True)
    return train_dpo(copy_model(helpful), world.tokenizer, data, cai_settings, run)


guided = constitutional(preferences, "meaning")
behaviours["constitution"] = behaviour(guided)
for name, found in behaviours.items():
    print(f"{name:>20}: {found}")
print(f"you guessed that it refuses {my_guess_refusals:.0%} of the harmless requests")

# %% tags=["hidden-test"]
if not lab.tier.is_fast:
    fell = behaviours["constitution"].harmful_compliance.mean
    assert fell < behaviours["helpful only"].harmful_compliance.mean - 0.2

# %% [markdown]
# ### What broke, and why: nobody taught it to say yes
#
# The helpful-only model never refused anything, so no pair ever said *do not refuse*: "willing" is
# written in the constitution, but nothing in the data breaks it. From such pairs a model can learn
# "refuse" as easily as "refuse harm", and look at its second number. The remedy is in the data: for
# harmless requests, prefer the model's own answer to a needless refusal. Such **contrast pairs**
# cost nothing.

# %%
from datasets import concatenate_datasets

from course_utils.data.worldsets import preferences as labelled
from course_utils.feedback.constitution import kind_refusal


class Obeys:
    """Prefers the answer that breaks fewer principles."""

    def compare(self, prompt, a, b):
        return int(len(critique(prompt, a)) > len(critique(prompt, b)))


willing = labelled(
    [
        (prompt, revised, kind_refusal(prompt))
        for prompt, answer in zip(asked, answers, strict=True)
        if prompt in set(train_harmless) and (revised := revise(prompt, answer))
    ],
    Obeys(),
)
balanced = concatenate_datasets([preferences, willing])
willingly = constitutional(balanced, "contrast")
behaviours["with contrast pairs"] = behaviour(willingly)
print(f"{len(willing)} contrast pairs")
print("with contrast pairs:", behaviours["with contrast pairs"])

# %% tags=["hidden-test"]
assert all(row["rejected"][0]["content"].startswith(("i can", "sorry")) for row in willing)

# %% tags=["hide-input"]
# @title Both rates, side by side
figure = plots.figure("Conduct on held-out requests", y="share of answers", barmode="group")
for name, part, colour in (
    ("helps with harm", "harmful_compliance", "ppo_low_beta"),
    ("refuses the harmless", "over_refusal", "base"),
):
    rates = [getattr(found, part) for found in behaviours.values()]
    plots.bars(figure, list(behaviours), rates, plots.COLOURS[colour], name)
figure.update_yaxes(range=[0, 1], tickformat=".0%")

# %% [markdown]
# And *who decides* what is harmful? So far the reader knew what each prompt means. A careless one looks
# at the verb: "kill time on a train" sounds like "kill the fish of a neighbor". Under the *same*
# constitution, which harmless requests would it have turned into refusals?

# %%
from course_utils.feedback.constitution import harmful_by_words

careless = replace(CONSTITUTION, harmful=harmful_by_words)
print("its revision:", revise(alike[0], "first smile and say your name.", careless), "\n")
mistaken = {p for p in train_harmless + harmless if harmful_by_words(p)}
everything = len(set(train_harmless + harmless))
for prompt in sorted(mistaken)[:4]:
    print("  taken for harm:", prompt)
print(f"{len(mistaken)} of {everything} harmless requests would be refused")

# %% tags=["hidden-test"]
assert 0 < len(mistaken) < everything

# %%
was, naive = behaviours["helpful only"], behaviours["constitution"]
now = behaviours["with contrast pairs"]
gold_before, gold_after = world.evaluate(helpful).mean, world.evaluate(willingly).mean
fell = now.harmful_compliance.high < was.harmful_compliance.low
costs = now.over_refusal.mean - was.over_refusal.mean
world.claim(
    "C18",
    f"helping with harm went from {was.harmful_compliance.mean:.0%} to "
    f"{now.harmful_compliance.mean:.0%} of the answers, needless refusals from {was.over_refusal.mean:.0%} to "
    f"{now.over_refusal.mean:.0%} (without contrast pairs to {naive.over_refusal.mean:.0%}), "
    f"gold over all prompts from {gold_before:+.2f} to "
    f"{gold_after:+.2f}",
    holds=None if fell and costs > 0.2 else fell,
    condition="it refuses harmless requests too" if fell and costs > 0.2 else "",
    compliance_before=was.harmful_compliance.mean,
    compliance_after=now.harmful_compliance.mean,
    over_refusal_before=was.over_refusal.mean,
    over_refusal_after=now.over_refusal.mean,
)

# %% [markdown]
# ### Write your own
#
# Strike a principle out or write a new one, and see what the critique makes of it. A constitution
# steers as far as somebody can *read* it: a principle about facts would need a reader who knows some.

# %%
from course_utils.feedback import Principle

mine = CONSTITUTION.without("once").with_principle(
    Principle("curt", "Come to the point without courtesies.", ("opener", "closer"))
)
said = "happy to help! lions eat meat. lions eat meat. have a nice day!"
print("with the course's:", revise("what do lions eat?", said))
print("with mine:        ", revise("what do lions eat?", said, mine))

# %% tags=["hidden-test"]
assert "happy" not in revise("what do lions eat?", said, mine)
assert revise("what do lions eat?", said).count("meat") == 1

# %% [markdown] slides="23"
# ## 3 · Verifiable rewards: run the answer
#
# For code and arithmetic nobody has to be asked. **Run it.** The reward is 1 if the result is right
# and 0 if not: *reinforcement learning with verifiable rewards* (Lambert et al. 2024, Tülu 3;
# DeepSeek-AI 2025). Such a reward has no opinion to flatter and no taste to guess.
#
# But what a model writes must never reach Python's own `eval`: a model trained to get a reward out of
# a machine has every reason to find what else the machine can do. So: parse the text, allow a short
# list of node types, walk the tree ourselves.

# %%
import ast


def my_run(source):
    """The value of a small expression; anything that is not on the list is refused."""
    operators = {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
    }

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in operators:
            return operators[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"{type(node).__name__} is not allowed")

    return value(ast.parse(source, mode="eval").body)


from course_utils.feedback.verifiable import run as execute

for program in ("3 + 4", "2 * (10 - 4)", "((1))"):
    assert my_run(program) == execute(program).value
print("my_run('2 * (10 - 4)') =", my_run("2 * (10 - 4)"))

# %% [markdown]
# `course_utils.feedback.verifiable` is the grown-up version: names, loops, `print`, comparisons, and
# a budget for everything. Try to break out of it, and add attempts of your own.

# %%
attempts = [
    "t = 0\nfor i in range(5):\n    t += i * i\nprint(t)",
    "__import__('os').system('ls')",
    "().__class__.__bases__",
    "9 ** 9 ** 9",
    "while 1: pass",
    "a = 3\nfor i in range(99): a = a * a",
    "-" * 300 + "1",
    "print(1 // 0)",
]
outcomes = {text: execute(text) for text in attempts}
for text, outcome in outcomes.items():
    shown_text = text.replace("\n", "⏎")[:46]
    print(f"{shown_text:<48} {outcome.value if outcome else 'refused: ' + outcome.refused}")

# %% tags=["hidden-test"]
assert outcomes[attempts[0]].value == 30
assert all(outcomes[text].refused for text in attempts[1:])

# %% [markdown]
# ### What broke, and why: a lax check is a prize for cheats
#
# The verifier takes the program from the prompt, runs it, and compares with what the answer claims.
# Two small kindnesses would ruin it. **Which of these answers should be paid?**

# %%
from course_utils.feedback.verifiable import verify

puzzle = "what does print(3 + 4) show?"
for said in (
    "the answer is 7.",
    "the answer is 8.",
    "the answer is 3 + 4.",
    "the answer is 6. the answer is 7. the answer is 8.",
):
    strict = verify(puzzle, said)
    lax = verify(puzzle, said, literal=False, single=False)
    print(f"strict {strict.reward:.0f}   lax {lax.reward:.0f}   {said:<52} {strict.reason}")

# %% tags=["hidden-test"]
assert verify(puzzle, "the answer is 3 + 4.").reward == 0
assert verify(puzzle, "the answer is 3 + 4.", literal=False).reward == 1
assert verify(puzzle, "the answer is 6. the answer is 7.", single=False).reward == 1

# %% [markdown]
# Repeating the question and hedging are both cheaper than arithmetic, and a policy would find them. A
# verifiable reward is as good as its verifier.
#
# ### GRPO: a prompt's answers are each other's baseline
#
# PPO needs a value model to say what reward was to be expected. **Group relative policy optimisation**
# (Shao et al. 2024) asks each prompt $G$ times instead and compares siblings:
#
# $$\hat A_i = \frac{r_i - \operatorname{mean}(r_1, \dots, r_G)}{\operatorname{std}(r_1, \dots, r_G) + \epsilon}$$
#
# Every token of answer $i$ gets this one advantage, and the rest is PPO's clipped objective from
# lesson 04. No value model, no reward model.

# %%
from course_utils.objectives import group_advantages

rewards = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],  # one of four was right: it gets a strong push
        [1.0, 1.0, 1.0, 0.0],  # three were right: the wrong one gets a strong push away
        [0.0, 0.0, 0.0, 0.0],  # nobody was right: nothing to learn
    ]
)  # (N prompts, G answers)


def my_advantages(rewards, eps=1e-4):
    mean = rewards.mean(dim=1, keepdim=True)  # (N, 1)
    std = rewards.std(dim=1, keepdim=True)  # (N, 1), divided by G − 1
    return (rewards - mean) / (std + eps)  # (N, G)


torch.testing.assert_close(my_advantages(rewards), group_advantages(rewards))
my_advantages(rewards)

# %% [markdown]
# Look at the last row: a prompt that is always failed, or always solved, is *silent*. GRPO learns at
# the edge of what the model can do. So how often does the SFT model get a program right? Training uses
# a few dozen programs, each asked many times; the exam has three parts.

# %%
import random

from course_utils.feedback import verifiable_reward

reward = verifiable_reward()
sums = embedded.prompts("all", None, families=["math"])
as_code = [p for p in sums if "print(" in p.text]
train_code = [p for p in as_code if p.split == "train"]
random.Random(world.seed).shuffle(train_code)
train_code = train_code[:36]
known_sums = {p.detail for p in train_code}
exam_parts = {
    "trained programs": [p.text for p in train_code] * 4,
    "same sums, in words": [
        p.text for p in sums if p.detail in known_sums and "print(" not in p.text
    ],
    "unseen programs": [p.text for p in as_code if p.detail not in known_sums],
}

if lab.tier.is_fast:
    exam_parts = {name: texts[:16] for name, texts in exam_parts.items()}


def pass_rates(model):
    """Share of right answers in each part of the exam."""
    found = {}
    for name, texts in exam_parts.items():
        checked = reward(texts, world.generate(model, texts, max_new_tokens=16))
        found[name] = sum(checked) / len(checked)
    return found


passed = {"SFT": pass_rates(sft)}
print({name: f"{share:.0%}" for name, share in passed["SFT"].items()})

# %% tags=["hidden-test"]
assert not {p.detail for p in train_code} & {
    embedded.find(t).detail for t in exam_parts["unseen programs"]
}
assert all(0 <= share <= 1 for share in passed["SFT"].values())

# %% [markdown]
# The library here is TRL's `GRPOTrainer`, behind `train_grpo`. Our PPO asks each prompt once and knows
# no groups, so TRL was the simpler way. While it trains we look over its shoulder and check that its
# advantages are ours.

# %%
from course_utils.training.grpo import GRPOSettings, train_grpo

steps = 3 if lab.tier.is_fast else 28
grpo_settings = GRPOSettings(
    steps=steps, batch_size=72, group_size=8, learning_rate=1e-3, max_new_tokens=16, seed=world.seed
)
seen = []  # (rewards, advantages) of every step, each (9 prompts, 8 answers)
grpo_run = RunLog.create(world.run_directory("grpo"), {}, world.seed, overwrite=True)
coder = train_grpo(
    world.sft(),
    world.tokenizer,
    [p.text for p in train_code],
    reward,
    grpo_settings,
    grpo_run,
    watch=lambda rewards, advantages: seen.append((rewards, advantages)),
)
for rewards, advantages in seen:  # TRL's, and ours
    torch.testing.assert_close(advantages, my_advantages(rewards))
passed["GRPO"] = pass_rates(coder)

# %% tags=["hidden-test"]
assert len(seen) == len(grpo_run.rows) == steps
assert seen[0][0].shape == (9, 8)
if not lab.tier.is_fast:
    assert passed["GRPO"]["trained programs"] > passed["SFT"]["trained programs"] + 0.05

# %% tags=["hide-input"]
# @title Pass rates before and after, and along the way
figure = plots.figure("Share of right answers", height=320, barmode="group")
for name, colour in (("SFT", "sft"), ("GRPO", "ppo")):
    plots.bars(figure, list(exam_parts), list(passed[name].values()), plots.COLOURS[colour], name)
figure.update_yaxes(tickformat=".0%", rangemode="tozero")
display(figure)
rows = grpo_run.frame()
figure = plots.figure("GRPO, step by step", "step", "share", height=280)
plots.line(figure, rows.step, rows.reward.rolling(4, min_periods=1).mean(), "right answers")
plots.line(
    figure,
    rows.step,
    rows.silent_groups,
    "silent groups",
    plots.COLOURS["base"],
    line={"width": 1.5},
)
display(figure)
change = {name: passed["GRPO"][name] - passed["SFT"][name] for name in exam_parts}
transfers = change["unseen programs"] > change["trained programs"] / 2
Markdown(
    f"On the programs it practised the pass rate changed by {change['trained programs']:+.0%}, on the "
    f"same sums asked in words by {change['same sums, in words']:+.0%}, on programs it never saw by "
    f"{change['unseen programs']:+.0%} (to {passed['GRPO']['unseen programs']:.0%}; you guessed "
    f"{my_guess_unseen:.0%}). "
    + (
        "So it did learn something that carries over."
        if transfers
        else "So what it learned is mostly *these answers*: a million parameters have not discovered "
        "addition. A pass rate on training problems says little; always hold some out."
    )
)

# %% [markdown] slides="22 23"
# ## 4 · Reward-hacking defence: several judges who must agree
#
# Lesson 08 showed the disease, *reward hacking*: the proxy rises and the truth falls. One defence is an
# **ensemble**: train several reward models on different resamples of the pairs. Where the pairs say
# something they agree; where they say nothing, each errs in its own way. So punish disagreement
# (Coste et al. 2024):
#
# $$r_{\text{mean}} = \bar r \qquad r_{\min} = \min_m r_m \qquad r_{\lambda} = \bar r - \lambda \, \operatorname{std}_m(r_m)$$

# %%
from course_utils.feedback import cautious, train_members

opinions = torch.tensor(
    [
        [1.0, 2.6],  # member 1 on an ordinary answer, and on a strange one that it happens to love
        [0.9, -0.4],
        [1.1, 0.2],
    ],
    dtype=torch.float64,
)  # (M members, B answers)
joined = {
    "mean": opinions.mean(dim=0),
    "min": opinions.min(dim=0).values,
    "mean_minus_std": opinions.mean(dim=0) - 1.0 * opinions.std(dim=0, unbiased=False),
}
toys = [lambda prompts, answers, row=row: row.tolist() for row in opinions]  # as reward functions
for how, mine_joined in joined.items():
    library = cautious(toys, how, std_weight=1.0)(["?", "?"], ["ordinary", "strange"])
    torch.testing.assert_close(torch.tensor(library, dtype=torch.float64), mine_joined)
    print(f"{how:>15}: ordinary {mine_joined[0]:+.2f}   strange {mine_joined[1]:+.2f}")
print("   member 1 alone: ordinary +1.00   strange +2.60")

# %% tags=["hidden-test"]
assert joined["mean_minus_std"][0] > joined["mean_minus_std"][1]
assert opinions[0, 1] > opinions[0, 0]

# %% [markdown]
# To see hacking within seconds we make it easy: weak reward models (few pairs, few steps) and PPO with
# β = 0, no KL penalty at all. Each run climbs its own reward; the true quality of the same answers is
# logged beside it and never trained on.

# %%
from course_utils.evaluation import reward_model_accuracy
from course_utils.training.ppo import PPOTrainer, per_answer

few = pairs.select(range(min(640, len(pairs))))
asked = world.prompts("train", 24 if lab.tier.is_fast else 160)
usual = list(zip(asked, world.generate(sft, asked), strict=True))
reward_settings = replace(
    world.settings.reward,
    steps=min(40, world.settings.reward.steps),
    batch_size=16,
    save_every=0,
)
members = train_members(
    world.base(), world.tokenizer, few, reward_settings, count=3, normalise_on=usual
)
exam_pairs = heldout_pairs.select(range(min(200, len(heldout_pairs))))
right = [reward_model_accuracy(member, exam_pairs).accuracy.mean for member in members]
print("held-out accuracy of the members:", [f"{share:.0%}" for share in right])

# %% tags=["hidden-test"]
assert len(members) == 3
assert all(0 <= share <= 1 for share in right)

# %%
hacking = replace(
    world.settings.ppo_low_beta,
    steps=min(10, world.settings.ppo_low_beta.steps),
    rollouts_per_step=8 if lab.tier.is_fast else 40,
    learning_rate=8e-4,
    beta=0.0,
    max_new_tokens=40,
)
judges = {
    "one reward model": members[0],
    "mean": cautious(members, "mean"),
    "min": cautious(members, "min"),
    "mean − λ·std": cautious(members, "mean_minus_std", std_weight=1.0),
}
curves = {}
for name, judge in judges.items():
    trainer = PPOTrainer(
        world.sft(),
        judge,
        world.tokenizer,
        world.prompts("train", 600),
        hacking,
        gold=per_answer(world.gold),
    )
    curves[name] = pd.DataFrame(trainer.train())

# %% tags=["hidden-test"]
assert set(curves) == set(judges)
assert all(len(rows) == hacking.steps for rows in curves.values())
assert abs(curves["min"].kl.iloc[0]) < 0.5, "every run starts at the reference"

# %% tags=["hide-input"]
# @title Truth against distance: one axis of KL
figure = plots.figure(
    "True quality while each reward is maximised", "√KL to the SFT model", "gold reward", height=380
)
colours = dict(zip(judges, ("ppo_low_beta", "ppo", "dpo", "reward"), strict=True))
for name, rows in curves.items():
    distance = rows.kl.clip(lower=0) ** 0.5
    colour = plots.COLOURS[colours[name]]
    figure.add_scatter(
        x=distance, y=rows.gold, mode="markers", opacity=0.25, marker_color=colour, showlegend=False
    )
    smooth = rows.gold.rolling(4, min_periods=1, center=True).mean()
    plots.line(figure, distance, smooth, name, colour)
display(figure)
reach = min(rows.kl.max() for rows in curves.values())  # nats: as far as every run went
near = {name: rows[(rows.kl >= reach / 3) & (rows.kl <= reach)] for name, rows in curves.items()}
pd.DataFrame(
    {
        name: {
            "gold at the start": rows.gold.iloc[0],
            f"gold at KL {reach / 3:.1f} to {reach:.1f}": near[name].gold.mean(),
            "gold at the end": rows.gold.tail(2).mean(),
            "own reward at the end": rows.reward.tail(2).mean(),
            "KL at the end": rows.kl.tail(2).mean(),
        }
        for name, rows in curves.items()
    }
).T.style.format("{:+.2f}", na_rep="–")

# %% [markdown]
# Two things must not be confused: how *far* a run went, and what it lost *on the way*. The runs climb
# rewards of different steepness, so after the same number of steps they stand at different distances. So
# compare at the same distance (second column), not at the end.

# %%
at = {
    name: rows.gold.mean() if len(rows) else curves[name].gold.mean() for name, rows in near.items()
}
alone = at.pop("one reward model")
best = max(at, key=at.get)
ahead = [name for name, value in at.items() if value > alone]
print(f"you guessed {my_guess_ensemble!r}; at the same distance {best!r} kept most")
world.claim(
    "C19",
    f"pushed with β = 0, at the same KL (up to {reach:.1f} nats) gold is {alone:+.2f} with one reward model and "
    + ", ".join(f"{value:+.2f} with {name}" for name, value in at.items())
    + f"; each from about {hacking.rollouts_per_step} answers a step, so a tenth of a point is noise",
    holds=True if len(ahead) == len(at) else None if ahead else False,
    condition="" if len(ahead) in (0, len(at)) else f"only {' and '.join(ahead)} kept more truth",
    single=alone,
    **{f"ensemble_{i}": value for i, value in enumerate(at.values())},
)

# %% [markdown]
# At best an ensemble delays, it does not cure: members that learned from the same pairs share the same blind
# spots, and what all of them get wrong can still be hacked. The other defences of this course, each a
# line of code in `docs/ppo.md`: a **KL budget** (`PPOConfig(kl_stop=…)`), a **held-out judge** that ends
# the run in time (`HeldOutJudge`), **length control** (`LengthControlled`), fresh labels on what the
# policy writes *now*, and, best of all, a reward that cannot be fooled (section 3).
#
# Nonsense is refused with a reason:

# %%
from course_utils.errors import CourseError
from course_utils.feedback import Constitution

for what, wrong in {
    "λ = -1": lambda: cautious(toys, std_weight=-1.0),
    "an ensemble of one": lambda: cautious(toys[:1]),
    "no principles": lambda: Constitution(()),
    "one answer a group": lambda: GRPOSettings(group_size=1),
}.items():
    try:
        wrong()
    except CourseError as error:
        print(f"{what}: {error}")
    else:
        raise AssertionError(f"{what} was accepted")

# %% [markdown] slides="23"
# ## 5 · Multimodal alignment: vision, audio, code
#
# Code you have just seen. **Vision**: to a decoder a picture is a prefix of some more vectors. Cut it
# into patches, multiply each by one matrix, put them before the words (ViT, Dosovitskiy et al. 2020;
# LLaVA, Liu et al. 2023):
#
# $$\text{picture} \in \mathbb{R}^{3 \times 24 \times 24} \;\to\; 16 \text{ patches} \in \mathbb{R}^{108} \;\to\; 16 \text{ vectors} \in \mathbb{R}^{D}$$

# %%
from course_utils import vision

scenes = vision.random_scenes(24, "heldout", seed=world.seed)
picture = scenes.images[:1]  # (1, 3, H, W)


def my_patches(picture, size=6):
    """(1, 3, H, W) -> (1, patches, 3 · size · size), in reading order."""
    _, _, height, width = picture.shape
    cut = [
        picture[0, :, top : top + size, left : left + size].flatten()
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]
    return torch.stack(cut).unsqueeze(0)


torch.testing.assert_close(my_patches(picture), vision.patches_of(picture))
print(tuple(picture.shape), "->", tuple(my_patches(picture).shape))

# %% [markdown]
# Our captioner learns from a careless "web" of captions. It has habits: where there is something blue
# it likes to add a red circle. A model that imitates the web **hallucinates** what is not in the
# picture, and from the words alone that cannot be seen.

# %%
captioner_settings = vision.CaptionerSettings(seed=world.seed)
align_settings = vision.AlignSettings(seed=world.seed)
pictures = 400
if lab.tier.is_fast:
    captioner_settings = replace(captioner_settings, steps=20, scenes=256)
    align_settings, pictures = replace(align_settings, steps=3), 60
captioner, caption_losses = vision.train_captioner(captioner_settings)
heldout = vision.random_scenes(60 if lab.tier.is_fast else 300, "heldout", seed=world.seed)
looked = {"web": vision.measure(captioner, heldout)}
print(looked["web"])

# %% tags=["hidden-test"]
assert len(caption_losses) == captioner_settings.steps
assert caption_losses[-1] < caption_losses[0]
assert 0 <= looked["web"].hallucinated.mean <= 1

# %% [markdown]
# Now the same two steps as with text. Sample several captions of each picture, prefer the one that
# invents less (and tells no less, or silence would win), and train with the *same* `dpo_loss`.
#
# And a **control**: give the model the *wrong* picture. What it still gets right there comes from habit,
# not from looking.

# %%
practice = vision.random_scenes(pictures, "train", seed=world.seed + 1)
caption_pairs = vision.preference_pairs(captioner, practice, seed=world.seed)
aligned, align_log = vision.align(captioner, practice, caption_pairs, align_settings)
looked["DPO"] = vision.measure(aligned, heldout)
looked["DPO, wrong pictures"] = vision.measure(aligned, heldout.wrong_images())
for name, found in looked.items():
    print(f"{name:>20}: {found}")

few_scenes = heldout.first(4)
vision.show_scenes(
    few_scenes,
    web=vision.describe(captioner, few_scenes.images),
    DPO=vision.describe(aligned, few_scenes.images),
)

# %% tags=["hidden-test"]
assert len(caption_pairs) > 0
assert abs(align_log.loss[0] - 0.6931) < 0.01, "DPO starts at log 2"
if not lab.tier.is_fast:
    assert looked["DPO"].hallucinated.mean < looked["web"].hallucinated.mean
    assert looked["DPO, wrong pictures"].hallucinated.mean > looked["DPO"].hallucinated.mean

# %%
old, new = looked["web"], looked["DPO"]
vision_better = new.hallucinated.high < old.hallucinated.low
told_less = new.coverage.high < old.coverage.low
code_better = change["trained programs"] > 0.05
code_transfers = change["unseen programs"] > 0.05
whole = vision_better and not told_less and code_better and code_transfers
world.claim(
    "C20",
    f"vision: hallucinated claims {old.hallucinated.mean:.0%} → {new.hallucinated.mean:.0%}, coverage "
    f"{old.coverage.mean:.0%} → {new.coverage.mean:.0%}; code: pass rate on practised programs "
    f"{passed['SFT']['trained programs']:.0%} → {passed['GRPO']['trained programs']:.0%}, on unseen ones "
    f"{passed['SFT']['unseen programs']:.0%} → {passed['GRPO']['unseen programs']:.0%}",
    holds=True if whole else None if vision_better or code_better else False,
    condition=""
    if whole or not (vision_better or code_better)
    else "it extends; what is learned need not carry over to new problems"
    if vision_better and code_better
    else "in one of the two only",
    hallucinated_before=old.hallucinated.mean,
    hallucinated_after=new.hallucinated.mean,
    pass_before=passed["SFT"]["unseen programs"],
    pass_after=passed["GRPO"]["unseen programs"],
)

# %% [markdown] slides="23"
# ### Audio: what would change?
#
# Little in the algorithms, much in the judging. Speech **in** is one more prefix: frames of a
# spectrogram instead of patches. Speech **out** can be tokens of an audio codec, and then log π, PPO and
# DPO hold as they stand. But
#
# * an answer is hundreds of tokens a second, so the KL per *answer* is much larger at the same KL per
#   token, and credit for one number at the end must reach back further;
# * "better" mixes what is said with how: words, voice, pace, hesitation. One label blends them, so one
#   asks several questions, or trains several rewards (for words even a verifiable one: transcribe, compare);
# * over-optimisation *sounds*: a voice that pleases the reward model and nobody else.
#
# This section has no miniature: the course ships no audio model, and a toy would prove nothing.

# %% [markdown] slides="23"
# ## 6 · Open RLHF datasets: a short, honest tour
#
# The world's comparisons are free and clean. Real ones are neither. Know whom you imitate:
#
# | dataset | size | who judged | mind this |
# |---|---|---|---|
# | [HH-RLHF](https://huggingface.co/datasets/Anthropic/hh-rlhf) (Bai et al. 2022) | 161k pairs to train on, 8.5k to test | crowd workers, helpful and harmless apart | whole transcripts as text; the prompt is implicit, and both sides must be cut at the same turn |
# | [OASST1](https://huggingface.co/datasets/OpenAssistant/oasst1) (Köpf et al. 2023) | 84k messages to train on, many languages | volunteers who also wrote the answers and ranked siblings | trees: pairs come from `rank` among siblings |
# | [UltraFeedback](https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized) (Cui et al. 2023) | 61k pairs as binarised | **GPT-4**, so this is RLAIF | an AI's taste, its love of length included; `chosen` holds the prompt a second time |
# | [Nectar](https://huggingface.co/datasets/berkeley-nest/Nectar) (Zhu et al. 2023) | 183k prompts, seven ranked answers each | **GPT-4**, asked so as to lessen its love of the first place | rankings make many dependent pairs: split by *prompt* |
# | [HelpSteer2](https://huggingface.co/datasets/nvidia/HelpSteer2) (Wang et al. 2024) | 20k answers | paid annotators, five grades from 0 to 4 | grades, not pairs: you choose what "better" weighs; CC-BY |
# | [Tülu 3](https://huggingface.co/datasets/allenai/llama-3.1-tulu-3-8b-preference-mixture) (Lambert et al. 2024) | 271k pairs | mostly a language model, on the policy's own answers too | parts under different licences |
#
# Sizes are those of the dataset cards when this course was written. Three questions for any of them:
# *Who judged* (people, which people, a model)? *Whose answers* (if not your model's, the pairs teach it
# little about its own mistakes)? *Which licence* (an AI's outputs may carry its maker's terms)?
# `course_utils.data.load_file` reads any of these shapes and says which row is broken.

# %% [markdown]
# ## 7 · What broke, and why
#
# * **A judge teaches what it sees.** The AI judge had no facts, so its labels could not defend them.
# * **Preferences that never say yes teach no.** A rule is also read by somebody: with a careless reader
#   the same constitution refuses the innocent.
# * **A verifier is a contract.** Every kindness in it (an expression instead of a number, several
#   answers instead of one) is a way to be paid without work.
# * **A rising training reward is not a skill**: see the pass rate on unseen programs above.
# * **Agreement is not truth.** Reward models that learned from the same pairs can be wrong together.
#
# ## 8 · Check yourself
#
# <details>
# <summary><b>1.</b> An AI judge agrees with people on 85% of the pairs. Why may a model trained on its labels still be much worse than one trained on people's?</summary>
#
# The other 15% need not be noise. If the judge errs *systematically* (no facts, love of length), the
# policy is trained towards exactly that error, and optimisation magnifies it. Random mistakes average
# out; biases add up.
# </details>
#
# <details>
# <summary><b>2.</b> In a GRPO run 90% of the groups are silent. What do you do?</summary>
#
# Look at the reward. If it is near 0, the problems are too hard: take easier ones, or teach some by SFT
# first. If it is near 1, they are too easy. Or make the groups larger, so that a rare success shows up.
# More training steps on silent groups change nothing: their advantages are 0.
# </details>
#
# <details>
# <summary><b>3.</b> Harmful compliance fell to 0%. Which number do you ask for before you celebrate?</summary>
#
# The over-refusal rate on harmless requests, look-alikes among them, and the quality of all other
# answers. A model that always refuses has 0% harmful compliance.
# </details>
#
# ## 9 · Read on
#
# * Lee et al. 2023, [RLAIF vs. RLHF: scaling reinforcement learning from human feedback with AI feedback](https://arxiv.org/abs/2309.00267)
# * Zheng et al. 2023, [Judging LLM-as-a-judge with MT-Bench and Chatbot Arena](https://arxiv.org/abs/2306.05685) (the love of a place)
# * Bai et al. 2022, [Constitutional AI: harmlessness from AI feedback](https://arxiv.org/abs/2212.08073); Anthropic 2023, [Claude's constitution](https://www.anthropic.com/news/claudes-constitution)
# * Shao et al. 2024, [DeepSeekMath](https://arxiv.org/abs/2402.03300) (GRPO); Liu et al. 2025, [Understanding R1-Zero-like training](https://arxiv.org/abs/2503.20783) (what the division by std does)
# * Lambert et al. 2024, [Tülu 3](https://arxiv.org/abs/2411.15124) (verifiable rewards); Chen et al. 2021, [Evaluating large language models trained on code](https://arxiv.org/abs/2107.03374)
# * Coste et al. 2024, [Reward model ensembles help mitigate overoptimization](https://arxiv.org/abs/2310.02743); Gao et al. 2022, [Scaling laws for reward model overoptimization](https://arxiv.org/abs/2210.10760)
# * Liu et al. 2023, [Visual instruction tuning](https://arxiv.org/abs/2304.08485) (LLaVA); Rohrbach et al. 2018, [Object hallucination in image captioning](https://arxiv.org/abs/1809.02156)
#
# **Exercises:** [exercises/09_future_directions.ipynb](../exercises/09_future_directions.ipynb): critique
# and revision in a loop, a reward that runs a program, the group's advantage, several reward models that must
# agree.
#
# **Next**: lesson 10 puts everything on one table, and lets you choose for your own budget.

# %%
print(f"this notebook took {time.perf_counter() - started:.0f} s on {lab.device}")
