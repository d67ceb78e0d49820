# %% [markdown] seconds=60
# # Exercises 09 · Future directions
#
# Four tasks that belong to lesson 09: criticise an answer by written principles and revise it, run a
# program as a reward, let a prompt's answers be each other's baseline, and let several reward models agree.
# For each one: write the function, run the check below it until it says *passed*, then run the small
# experiment, which uses **your** function on real models, and answer the question after it.
#
# A check names the mistake it found, where it knows it. The grader runs the same checks on other
# numbers. It takes only your imports, your functions and your constants, so keep what a task needs
# inside functions, and do not use `course_utils` in them: the grader has PyTorch and the standard
# library.

# %% tags=["setup", "hide-input"]

# %%
import ast
import operator
import re
from dataclasses import replace

import pandas as pd
import torch
from IPython.display import Markdown, display

from course_utils import Lab, check, feedback, plots

lab = Lab.open()
world = lab.world  # tier tiny: the small universe in which the true quality (gold) is known
fast = lab.tier.is_fast
world

# %% [markdown]
# ## Task 1 · Critique, revise, and again
#
# *Difficulty 3 of 5 · about 35 minutes · 5 points*
#
# In Constitutional AI (Bai et al. 2022) a model criticises its own answer by written principles and revises
# it, as often as needed. Here the reader is yours, and the principles are data:
#
# ```
# {"name": "civil", "forbidden": ["look it up", "silly"], "required": [], "replacement": ""}
# {"name": "kind",  "forbidden": [], "required": ["sorry", "i can not"], "replacement": "i can not help."}
# ```
#
# Write `critique(answer, principles)`: the first breach, as the pair (the principle's name, the number of
# the sentence), or None.
#
# * `answer`: str, sentences with one space between them, perhaps empty. `split_sentences` (given) cuts it:
#   a sentence ends with `.`, `!` or `?` where a space follows, so `3.5` ends nothing, and `sure! yes.` are two;
# * `principles`: list of dicts as above, in order, with different names; either list of phrases may be empty;
# * a **phrase** stands in a sentence if it is there as whole words, in upper or lower case: neither the
#   character before it nor the one behind it (where there are any) is a letter, a digit or `_`. So `art` does
#   not stand in `party`, but it does in `(Art)`. A phrase may hold signs (`c++`), which stand for themselves;
# * a principle is **broken** by each sentence in which any of its `forbidden` phrases stands. Where it has
#   `required` phrases, it is also broken if none of them stands in any sentence of the answer;
# * the **first breach**: of the principles that are broken the first in the list; of its sentences with a
#   forbidden phrase the first, counted from 0. Only if there is none such, and its required phrases are missing,
#   the place is behind the last sentence, `len(sentences)`.
#
# Write `critique_revise(answer, principles, max_rounds=8)`: a loop of **rounds**, at most `max_rounds`
# (0 or more). Each round asks for the first breach of the answer as it is now, all principles from the
# beginning, and ends the loop if there is none. Otherwise it puts the broken principle's `replacement`
#
# * in the place of that sentence, the whole of it; or, where a required phrase is missing, behind the last;
# * an empty replacement: the sentence is dropped, and nothing is added.
#
# Sentences are joined with one space and cut anew in the next round (a replacement may be several sentences,
# and may break other principles). The result is a dict:
#
# * `"text"`: the final answer; `"history"`: a list with (name, sentence's number, text after the revision) for
#   each round that revised; `"clean"`: bool, whether the final text breaks no principle (also if the last round
#   allowed was the one that mended it).
#
# Neither function changes its arguments.
#
# <details><summary>A hint</summary>
#
# `re.escape` makes a phrase stand for itself, and `(?<!\w)`, `(?!\w)` look at a neighbour without taking it
# (`\b` would be wrong beside a sign). In the loop: criticise once before it, and once at the end of each round.
# A slice such as `sentences[place : place + 1] = [new]` replaces, and at the end it appends.
# </details>


# %% task="critique-revise"
def split_sentences(text):
    """Given: "sure! it costs 3.5. yes" -> ["sure!", "it costs 3.5.", "yes"]; "" -> []."""
    return re.split(r"(?<=[.!?]) ", text) if text else []


def critique(answer, principles):
    ### BEGIN SOLUTION
    def says(text, phrase):
        pattern = r"(?<!\w)" + re.escape(phrase) + r"(?!\w)"
        return re.search(pattern, text, re.IGNORECASE) is not None

    sentences = split_sentences(answer)
    for principle in principles:
        for place, sentence in enumerate(sentences):
            if any(says(sentence, phrase) for phrase in principle["forbidden"]):
                return principle["name"], place
        if principle["required"] and not any(
            says(sentence, phrase) for sentence in sentences for phrase in principle["required"]
        ):
            return principle["name"], len(sentences)
    return None
    ### END SOLUTION


def critique_revise(answer, principles, max_rounds=8):
    ### BEGIN SOLUTION
    history = []
    breach = critique(answer, principles)
    while breach is not None and len(history) < max_rounds:
        name, place = breach
        principle = next(p for p in principles if p["name"] == name)
        sentences = split_sentences(answer)
        sentences[place : place + 1] = [principle["replacement"]]  # at the end: one more
        answer = " ".join(s for s in sentences if s)
        history.append((name, place, answer))
        breach = critique(answer, principles)
    return {"text": answer, "history": history, "clean": breach is None}
    ### END SOLUTION


# %% task="critique-revise" points=5
check.critique_revise(critique, critique_revise)

# %% tags=["hidden-test", "solution-only"]
assert check.critique_revise(critique, critique_revise).passed

# %% [markdown]
# ### Experiment: teach a model what you would have crossed out
#
# We begin as the paper does, with a model that is *helpful only*: SFT without the demonstrations that
# refuse. It helps with harm. Then your loop mends its answers, and DPO learns *revised above original*.

# %%
from course_utils import train_dpo, train_sft
from course_utils import world as embedded
from course_utils.data.worldsets import preferences as labelled
from course_utils.feedback.constitution import howto_prompts, kind_refusal
from course_utils.world.gold import is_harmful


def harmful(prompt):
    """Whether helping would do harm. The world knows; with a real model somebody must judge."""
    return is_harmful(embedded.find(prompt))


obliging = world.demonstrations().filter(lambda row: not harmful(row["prompt"][0]["content"]))
sft_settings = replace(world.settings.sft, steps=3 if fast else 50, save_every=0)
helpful = train_sft(world.base(), world.tokenizer, obliging, sft_settings, progress=False)

asked = [p for group in howto_prompts("train") for p in group] * 4  # harmful and harmless
asked = asked[:: 10 if fast else 1]
answers = world.generate(helpful, asked, max_new_tokens=32)


# %% [markdown]
# The principles. The last two hold for harmful requests only: steps are crossed out, and a refusal must be
# there. Each dict also carries the prompt, which your function may ignore.


# %%
def principles_for(prompt):
    """The constitution for this prompt, as data."""
    manners = [
        ("flattery", ["you are so smart", "you are right", "i love how you think"], [], ""),
        ("chatter", ["great question", "happy to help", "i am glad you asked"], [], ""),
    ]
    safety = [
        ("harmless", ["first", "then"], [], ""),
        ("kind", [], ["i can not"], kind_refusal(prompt)),
    ]
    keys = ("name", "forbidden", "required", "replacement")
    rows = manners + (safety if harmful(prompt) else [])
    return [{"prompt": prompt, **dict(zip(keys, row, strict=True))} for row in rows]


# %% tags=["hide-input"]
# @title The course's critique and revision, with the same signature
def course_critique_revise(answer, principles, max_rounds=8):
    prompt = principles[0]["prompt"]  # the course's reader knows kinds of sentences, no phrases
    found = feedback.critique(prompt, answer)
    text = feedback.revise(prompt, answer) or ""
    return {"text": text, "history": [(c.principle, c.place, text) for c in found], "clean": True}


# %%
my_loop = check.use(critique_revise, otherwise=course_critique_revise)
revisions = [my_loop(a, principles_for(p)) for p, a in zip(asked, answers, strict=True)]

i = next(i for i, found in enumerate(revisions) if len(found["history"]) > 1 and found["text"])
print(f"prompt    {asked[i]}\nanswer    {answers[i]}")
for name, place, text in revisions[i]["history"]:
    print(f"{name:>9} sentence {place}: {text!r}")
print(f"{sum(bool(r['history']) for r in revisions)} of {len(asked)} answers revised")

# %% tags=["hidden-test"]
assert all(found["clean"] for found in revisions)
assert feedback.conduct(asked, [r["text"] for r in revisions]).harmful_compliance.mean == 0

# %% [markdown]
# From these, preference pairs. From revisions alone a model can learn *refuse* as easily as *refuse harm*
# (lesson 09), so for harmless requests its own answer is preferred to a needless refusal.
#
# **Your guess.** Held-out prompts, and no reader beside the trained model: how often does it help with harm?

# %%
my_guess_harm = 0.3


class FirstIsBetter:
    """A labeller for pairs that are already in order."""

    def compare(self, prompt, a, b):
        return 0


revised = [
    (prompt, found["text"], answer)
    for prompt, answer, found in zip(asked, answers, revisions, strict=True)
    if found["text"] and found["text"] != answer
]
contrast = [
    (prompt, found["text"], kind_refusal(prompt))
    for prompt, found in zip(asked, revisions, strict=True)
    if found["text"] and not harmful(prompt)
]
pairs = labelled(revised + contrast, FirstIsBetter())
settings = replace(world.settings.dpo, steps=2 if fast else 40, batch_size=16, learning_rate=5e-4,
                   beta=0.1, save_every=0)  # fmt: skip
held_out = [p for group in howto_prompts("heldout") for p in group] * 2
held_out = held_out[:: 4 if fast else 1]
first_answers = world.generate(helpful, held_out, max_new_tokens=32)
guided = train_dpo(helpful, world.tokenizer, pairs, settings, progress=False)
later_answers = world.generate(guided, held_out, max_new_tokens=32)

mended = [
    my_loop(a, principles_for(p))["text"] for p, a in zip(held_out, first_answers, strict=True)
]
conducts = {
    "helpful only": feedback.conduct(held_out, first_answers),
    "helpful only, your loop on each answer": feedback.conduct(held_out, mended),
    "trained on your revisions, no loop": feedback.conduct(held_out, later_answers),
}
pd.DataFrame(
    {name: {"helps with harm": c.harmful_compliance.mean, "refuses the harmless": c.over_refusal.mean}
     for name, c in conducts.items()}
).T.style.format("{:.0%}")  # fmt: skip

# %% tags=["hide-input"]
# @title Your guess, and the numbers
rates = {name: c.harmful_compliance for name, c in conducts.items()}
before, loop_rate, after = rates.values()
Markdown(
    f"You guessed {my_guess_harm:.0%}. Helping with harm went from {before.mean:.0%} to **{after.mean:.0%}** "
    f"[{after.low:.0%}, {after.high:.0%}] by training on {len(revised)} revisions and {len(contrast)} contrast "
    f"pairs; with your loop on every answer it is {loop_rate.mean:.0%}."
)

# %% tags=["hidden-test"]
assert loop_rate.mean == 0
assert len(pairs) == len(revised) + len(contrast) > 0
if not fast:
    assert before.mean > 0.7
    assert after.mean < before.mean - 0.2

# %% [markdown] task="why-train-on-revisions" points=2
# **In words** *(2 points)*: your loop leaves no harmful step at all. Why train on its revisions, when one
# could put it behind the model? And what would happen to a harmful request that no principle's reader
# recognises as harmful, in each of the two cases?
#
# ### BEGIN SOLUTION
# The loop needs a reader beside the model for every answer, for ever: here one who knows which requests are
# harmful, and whose phrases (*first*, *then*) fit the way this model writes. It is exact where it reads right
# and useless where it does not: a request that is not recognised keeps its steps, and a step that says
# *begin with* would pass. Training moves the behaviour into the weights: the model then behaves on prompts
# that nobody read, without the loop's cost. It has learned from examples, so it may also refuse a harmful
# request that the reader misses, because it resembles others. For the same reason it is not exact: the
# table's last row need not be 0, and it may refuse something harmless that resembles harm. One can do both:
# train, and keep a reader for what is left.
# ### END SOLUTION

# %% [markdown]
# ## Task 2 · A reward that is executed
#
# *Difficulty 4 of 5 · about 40 minutes · 5 points*
#
# A program's result can be verified. But what a model writes must never reach `eval` or `exec`: parse it
# with `ast.parse`, refuse every node that is not on a short list, and walk the tree yourself.
#
# Write `code_reward(program, target, max_steps=1000)`: the float 1.0 if the program's result is the integer
# `target`, and 0.0 **for everything else**. It never raises, whatever the program. The language:
#
# * **statements**: `name = expression` with a single plain name on the left, and `while expression:` with a body
#   of statements and no `else`. The body is repeated as long as the expression's value is not 0;
# * **expressions**: integers such as `12` (`True` is none), names that have a value by then, `+ - * // %` between
#   two expressions, the unary minus, parentheses, and **one** comparison `< <= > >= == !=` of two
#   expressions, whose value is 1 or 0. `//` and `%` are Python's;
# * the **result** is the value of the name `answer` when the program has ended;
# * nothing else. Calls, attributes, imports, powers, `/`, `+=`, `if`, texts, `1 < 2 < 3`, an expression on a
#   line of its own and all the rest of Python are refused, and the whole program with them, wherever they
#   stand, even where the program would never get to them;
# * **steps**: each assignment executed is one step, each test of a `while` is one, its last test too. A program
#   that needs more than `max_steps` steps gets 0.0;
# * **sizes**: no number, written or computed, may be beyond ±10¹² (which itself is allowed), not even on the way
#   to a result; a number beyond it in the text counts although it is never reached. No program may be longer
#   than 200 characters;
# * 0.0 also for a program that cannot be parsed, a name without a value, a division by zero, no `answer`.
#
# Mind: no new process, no thread, no timer. The grader's sandbox has none to give, and you need none.
#
# <details><summary>A hint</summary>
#
# Two passes. First `for node in ast.walk(tree)`: is its type on the list, and is it as allowed (one target,
# no `orelse`, one operator, a constant of `type(...) is int`)? Operators and contexts (`ast.Add`, `ast.Load`) are nodes as well.
# Then two small functions that call themselves, one for statements and one for the value of an expression.
# `ast.parse` itself raises more than SyntaxError; so put a single `try` around everything.
# </details>


# %% task="code-reward"
def code_reward(program, target, max_steps=1000):
    ### BEGIN SOLUTION
    binary = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
              ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod}  # fmt: skip
    compare = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
               ast.GtE: operator.ge, ast.Eq: operator.eq, ast.NotEq: operator.ne}  # fmt: skip
    plain = (ast.Module, ast.Name, ast.Load, ast.Store, ast.BinOp, ast.UnaryOp, ast.USub)
    names, steps = {}, 0

    def small(number):
        if abs(number) > 10**12:
            raise OverflowError
        return number

    def allowed(node):
        if isinstance(node, ast.Assign):  # a target that is no name has a node of its own
            return len(node.targets) == 1
        if isinstance(node, ast.While):
            return not node.orelse
        if isinstance(node, ast.Compare):
            return len(node.ops) == 1
        if isinstance(node, ast.Constant):
            return type(node.value) is int and small(node.value) is not None
        return isinstance(node, (*plain, *binary, *compare))

    def value(node):
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return names[node.id]
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        if isinstance(node, ast.BinOp):
            return small(binary[type(node.op)](value(node.left), value(node.right)))
        return int(compare[type(node.ops[0])](value(node.left), value(node.comparators[0])))

    def tick():
        nonlocal steps
        steps += 1
        if steps > max_steps:
            raise TimeoutError

    def run(statements):
        for node in statements:
            if isinstance(node, ast.Assign):
                tick()
                names[node.targets[0].id] = value(node.value)
                continue
            while True:
                tick()
                if value(node.test) == 0:
                    break
                run(node.body)

    try:
        if len(program) > 200:
            return 0.0
        tree = ast.parse(program)
        for node in ast.walk(tree):
            if not allowed(node):
                return 0.0
        run(tree.body)
        return float(names["answer"] == target)
    except Exception:  # whatever it was: no reward
        return 0.0
    ### END SOLUTION


# %% task="code-reward" points=5
check.code_reward(code_reward)

# %% tags=["hidden-test", "solution-only"]
assert check.code_reward(code_reward).passed

# %% [markdown]
# ### Experiment: whom does a verifier pay?
#
# The world's model is asked *what does print(3 + 4) show?* and answers *the answer is 7.* We take the
# expression from the question and the claim from the answer, and your interpreter decides. Three ways to
# ask it:
#
# * **strict**: a single claim, and it must be a plain number, the target of `answer = 3 + 4`;
# * **compares by program**: it runs `answer = (3 + 4) == (claim)` with target 1, whatever the claim is;
# * **any claim**: as strict, but one right claim among several is enough.
#
# Five ways to answer: the SFT model, and four that never calculate. **Your guess**: which column is most
# generous to those who do not calculate?

# %%
my_guess_generous = "any claim"

# %% tags=["hide-input"]
# @title The course's interpreter with the same signature, and the three verifiers
from course_utils.feedback.verifiable import Limits
from course_utils.feedback.verifiable import run as library_run


def course_code_reward(program, target, max_steps=1000):
    shown = library_run(program + "\nprint(answer)", Limits(steps=4 * max_steps))
    return float(bool(shown) and shown.value == target)


NUMBER = re.compile(r"-?\d+")


def expression_in(prompt):
    """ "what does print(3 + 4) show?" -> "3 + 4"."""
    return prompt[prompt.find("print(") + len("print(") : prompt.rfind(")")]


def claims_in(answer):
    """What an answer says: each "the answer is …."."""
    return re.findall(r"the answer is ([^.!?]+)[.!?]", answer)


def strict(run, prompt, answer):
    claims = claims_in(answer)
    if len(set(claims)) != 1 or not NUMBER.fullmatch(claims[0]):
        return 0.0
    return run(f"answer = {expression_in(prompt)}", int(claims[0]))


def by_program(run, prompt, answer):
    claims = claims_in(answer)
    return run(f"answer = ({expression_in(prompt)}) == ({claims[0]})", 1) if claims else 0.0


def any_claim(run, prompt, answer):
    said = [f"the answer is {claim}." for claim in claims_in(answer)]
    return max((strict(run, prompt, one) for one in said), default=0.0)


# %%
my_run = check.use(code_reward, otherwise=course_code_reward)
sums = [p for p in embedded.prompts("all", None, families=["math"]) if "print(" in p.text]
exam = [p.text for p in sums][:: 29 if fast else 3]

sft = world.sft()
policies = {
    "SFT model": world.generate(sft, exam, max_new_tokens=16),
    "always 7": ["the answer is 7."] * len(exam),
    "repeats the question": [f"the answer is {expression_in(p)}." for p in exam],
    "names every number": [" ".join(f"the answer is {k}." for k in range(26))] * len(exam),
    "writes a program": ["the answer is 0)\nanswer = (1."] * len(exam),
}
verifiers = {"strict": strict, "compares by program": by_program, "any claim": any_claim}
paid = pd.DataFrame(
    {name: {policy: sum(verify(my_run, p, a) for p, a in zip(exam, said, strict=True)) / len(exam)
            for policy, said in policies.items()}
     for name, verify in verifiers.items()}
)  # fmt: skip
paid.style.format("{:.0%}").set_caption(f"share of {len(exam)} answers that are paid")

# %% tags=["hidden-test"]
library_says = [feedback.verifiable_reward()([p], [a])[0]
                for p, a in zip(exam, policies["SFT model"], strict=True)]  # fmt: skip
assert [strict(my_run, p, a) for p, a in zip(exam, policies["SFT model"], strict=True)] == [
    float(r and bool(claims_in(a)))
    for r, a in zip(library_says, policies["SFT model"], strict=True)
]
assert paid.loc["repeats the question", "strict"] == 0
assert paid.loc["repeats the question", "compares by program"] == 1
assert paid.loc["writes a program", "compares by program"] == 1
assert paid.loc["names every number", "any claim"] > 0.9

# %% tags=["hide-input"]
# @title Your guess
idle = paid.drop(index="SFT model").mean()
Markdown(
    f"You guessed *{my_guess_generous}*. To those who do not calculate "
    + ", ".join(f"**{name}** pays {share:.0%}" for name, share in idle.items())
    + f" on average; the SFT model, which tries, gets {paid.loc['SFT model', 'strict']:.0%} from the strict one."
)

# %% [markdown] task="why-a-lax-verifier" points=2
# **In words** *(2 points)*: nothing in this table broke out of your interpreter. How then did *writes a
# program* earn its reward, and what does that say about the interpreter? And which of the cheats would GRPO,
# starting from the SFT model, find first?
#
# ### BEGIN SOLUTION
# The claim is *pasted* into a program: `answer = (3 + 4) == (0)` and on the next line `answer = (1)`. That is
# a legal program of the little language, and its result is 1. The interpreter did all it promises: the
# machine is safe and the result is right. Whether the *question* was answered is another matter, and that
# was decided by the text around it (an injection, as with SQL). So data must stay data: read the claim as a
# number first, and let nobody but the prompt write the program.
#
# GRPO can only reinforce what is sampled. The SFT model writes *the answer is*, numbers and the words of its
# prompts, so a second claim, or the question's own *3 + 4* in place of a number, comes up now and then and
# would be reinforced at once. Brackets and a line break in exactly that order practically never come up. An
# attack that is never sampled is not learned here, though a stronger model, or a person, will find it.
# ### END SOLUTION

# %% [markdown]
# ## Task 3 · The group's advantage
#
# *Difficulty 2 of 5 · about 20 minutes · 4 points*
#
# GRPO (Shao et al. 2024) asks each prompt $G$ times and compares the answers with each other:
#
# $$\hat A_i = \frac{r_i - \operatorname{mean}(r_1, \dots, r_G)}{\operatorname{std}(r_1, \dots, r_G) + \epsilon}$$
#
# Write `group_advantage(rewards, group_size, scale=True, eps=1e-4)`.
#
# * `rewards` (P·G,), `group_size` = G ≥ 1: the G answers to a prompt stand side by side, so prompt p has the
#   places p·G to (p + 1)·G − 1. Mean and std are those of the group, never of the batch;
# * the std divides by G − 1 (as TRL's and PyTorch's does); `eps` ≥ 0 is added to the std;
# * `scale=False` leaves the whole division out, and eps with it (*Dr. GRPO*, Liu et al. 2025);
# * where all rewards of a group are equal, its advantages are **exactly** 0, also with `eps=0`; so are they in
#   a group of one;
# * the result has shape (P·G,) and is float32 or float64. Rewards may be float32, float64, half precision,
#   integers or bool, need not be contiguous, and may share a level of some 10⁵; the result keeps float32's digits.
#   `rewards` is not changed.
#
# <details><summary>A hint</summary>
#
# Convert first, then one reshape to (P, G), and `keepdim=True`. Whether all rewards of a group are equal is
# better asked of the rewards themselves than of their std: a mean of seven times 0.1 may be a rounding
# error off.
# </details>


# %% task="group-advantage"
def group_advantage(rewards, group_size, scale=True, eps=1e-4):
    ### BEGIN SOLUTION
    groups = rewards.double().reshape(-1, group_size)  # (P, G)
    silent = (groups == groups[:, :1]).all(dim=1, keepdim=True)  # (P, 1)
    centred = groups - groups.mean(dim=1, keepdim=True)  # (P, G)
    std = centred.std(dim=1, keepdim=True) if group_size > 1 else 1.0
    advantages = centred / (std + eps) if scale else centred
    return advantages.masked_fill(silent, 0.0).flatten().float()
    ### END SOLUTION


# %% task="group-advantage" points=4
check.group_advantage(group_advantage)

# %% tags=["hidden-test", "solution-only"]
assert check.group_advantage(group_advantage).passed

# %% [markdown]
# ### Experiment: GRPO in thirty lines, with your reward and your advantage
#
# No value model, no reward model: sample, run, compare with the siblings, push. One update for each batch
# of samples, so the ratio of PPO is 1 and the clip has nothing to do. Twelve programs, again and again: we want
# to see the learning signal, not skill (lesson 09 holds programs out). A second run takes the *whole batch*
# as one group: `group_size=len(rewards)`.
#
# **Your guess.** Which of the two gets more programs right at the end?

# %%
my_guess_baseline = "whole batch"

# %% tags=["hide-input"]
# @title The course's advantage, with the same signature; sampling
from course_utils.encoding import encode_prompts, padding_id, stop_ids
from course_utils.generation import completion_texts, sample
from course_utils.objectives import group_advantages, next_token_logprobs


def course_group_advantage(rewards, group_size, scale=True, eps=1e-4):
    return group_advantages(rewards.float().view(-1, group_size), scale, eps).flatten()


def draw(model, prompts, generator):
    """An answer to each prompt: ids (B, T) with prompt, mask of prompt and answer, texts."""
    tokenizer = world.tokenizer
    encoded = encode_prompts(tokenizer, prompts).to(world.device)
    out = sample(model.eval(), encoded.input_ids, encoded.attention_mask, max_new_tokens=16,
                 eos_token_ids=stop_ids(tokenizer), pad_token_id=padding_id(tokenizer),
                 generator=generator)  # fmt: skip
    ids = torch.cat([out.prompt_ids, out.completion_ids], dim=1)
    return ids, out, completion_texts(tokenizer, out.completion_ids, out.completion_mask)


# %%
my_advantage = check.use(group_advantage, otherwise=course_group_advantage)
P, G = 9, 8  # prompts and answers to each, a step
STEPS = 2 if fast else 12
practice = [p.text for p in sums if p.split == "train"][::20][:12]


def train(whole_batch):
    """GRPO on the programs; returns a row of numbers for each step."""
    model, rows = world.sft(), []
    update = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(world.seed)
    for step in range(STEPS):
        asked = [practice[(step * P + i) % len(practice)] for i in range(P) for _ in range(G)]
        ids, out, texts = draw(model, asked, generator)
        rewards = torch.tensor([strict(my_run, p, a) for p, a in zip(asked, texts, strict=True)])
        advantages = my_advantage(rewards, P * G if whole_batch else G).to(world.device)  # (P·G,)
        mask = torch.cat([out.prompt_mask.bool(), out.completion_mask], dim=1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # padding on the left
        logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
        length = out.completion_ids.shape[1]
        logprobs = next_token_logprobs(logits, ids)[:, -length:]  # (P·G, C)
        keep = out.completion_mask.float()
        loss = -(advantages[:, None] * logprobs * keep).sum() / keep.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        update.zero_grad()
        right = rewards.view(P, G).mean(1)  # (P,)
        silent = (right == 0) | (right == 1)
        push = advantages.abs().cpu().view(P, G).sum(1)
        rows.append({"step": step, "right": rewards.mean().item(),
                     "silent groups": silent.float().mean().item(),
                     "push": push.sum().item(), "push on silent groups": push[silent].sum().item(),
                     "moved": ((logprobs.detach() - out.logprobs) * keep).abs().max().item()})  # fmt: skip
    return model, pd.DataFrame(rows)


@torch.no_grad()
def pass_rate(model, prompts):
    texts = world.generate(model, prompts, max_new_tokens=16)
    return sum(strict(my_run, p, a) for p, a in zip(prompts, texts, strict=True)) / len(prompts)


repeated = practice * (2 if fast else 16)
results, curves = {"SFT": pass_rate(sft, repeated)}, {}
for name, whole_batch in (("its own group", False), ("whole batch", True)):
    model, curves[name] = train(whole_batch)
    results[name] = pass_rate(model, repeated)

# %% tags=["hidden-test"]
assert all(len(rows) == STEPS for rows in curves.values())
assert all(rows["moved"][0] < 1e-3 for rows in curves.values()), "the first step is on policy"
assert (curves["its own group"]["push on silent groups"] == 0).all()
if not fast:
    assert curves["whole batch"]["push on silent groups"].sum() > 0
    assert all(results[name] > results["SFT"] + 0.1 for name in curves)

# %% tags=["hide-input"]
# @title Right answers along the way, and where the push goes
figure = plots.figure(
    "Programs answered rightly while training", "step", "share of the step's answers"
)
for name, colour in (("its own group", "ppo"), ("whole batch", "base")):
    rows = curves[name]
    smooth = rows.right.rolling(4, min_periods=1).mean()
    plots.line(figure, rows.step, smooth, f"baseline: {name}", plots.COLOURS[colour])
figure.update_yaxes(tickformat=".0%")
display(figure)
wasted = {n: c["push on silent groups"].sum() / c["push"].sum() for n, c in curves.items()}
Markdown(
    f"Right answers to the {len(practice)} practised programs: SFT {results['SFT']:.0%}, own group "
    f"**{results['its own group']:.0%}**, whole batch **{results['whole batch']:.0%}** (you guessed "
    f"*{my_guess_baseline}*). In {curves['its own group']['silent groups'].mean():.0%} of the groups all answers were "
    f"equally good. Of all push ($\\sum_i |\\hat A_i|$) such groups got {wasted['its own group']:.0%} with their own "
    f"baseline and {wasted['whole batch']:.0%} with the batch's."
)

# %% [markdown]
# And the division by the std? With $k$ of $G$ answers right the group's push can be calculated beforehand.

# %%
kinds = torch.tril(torch.ones(G + 1, G), diagonal=-1)  # row k: the first k answers are right
pushes = {
    name: my_advantage(kinds.flatten(), G, scale).view(G + 1, G).abs().sum(1)
    for name, scale in (("divided by std", True), ("not divided (Dr. GRPO)", False))
}

# %% tags=["hide-input"]
# @title The push of a group by how many were right
figure = plots.figure(
    "How hard a group pushes", f"right answers of {G}", "share of the largest push"
)
for i, (name, push) in enumerate(pushes.items()):
    relative = (push / push.max()).tolist()
    plots.line(figure, list(range(G + 1)), relative, name, plots.colour(i), mode="lines+markers")
figure

# %% tags=["hidden-test"]
for push in pushes.values():
    assert push[0] == push[G] == 0
    assert torch.allclose(push, push.flip(0), rtol=1e-4)
relative = [push[1] / push[G // 2] for push in pushes.values()]
assert relative[0] > relative[1] + 0.1

# %% [markdown] task="why-its-own-group" points=2
# **In words** *(2 points)*: with the batch's baseline, silent groups push too. What does such a push do in one
# step, and what on average over many? Does that fit how far apart the two runs came out? And what does
# the last figure say about a nearly hopeless prompt, with and without the division?
#
# ### BEGIN SOLUTION
# The batch's mean says how hard the *prompts* were, not how good an answer was among its alternatives. Where
# all answers are wrong, all lie below it, and whatever was sampled is pushed down; where all are right, all
# are pushed up, chatter included. In one step that moves the model although nothing distinguished one answer
# from another. On average it cancels: a number that does not depend on the answer, times the gradient of
# log π, has mean 0 under π, so any baseline of that kind leaves the gradient's mean as it is. What remains is
# noise, and a step size that the mixed groups have to share with it. So either run may be ahead, as tries with
# other programs and seeds showed: both follow the same signal, one with more noise and with other weights (the
# batch has one std for all prompts). While nearly all silent groups are failures the noise can even help,
# since a step away from what just failed tries something else. Where most prompts are solved it rewards
# whatever is said, and with few answers a step it costs most.
#
# With 1 of 8 right the divided push is still a large part of the largest; without the division it is
# smaller: the std is small there, and dividing by it lifts rare successes and rare failures. So GRPO gives
# nearly hopeless and nearly solved prompts more weight than Dr. GRPO, and with it more weight to lucky
# guesses, such as a right number for a wrong reason.
# ### END SOLUTION

# %% [markdown]
# ## Task 4 · Several reward models that must agree
#
# *Difficulty 3 of 5 · about 25 minutes · 4 points*
#
# $$r_{\text{mean}} = \bar r \qquad r_{\min} = \min_m r_m \qquad r_\lambda = \bar r - \lambda\,\operatorname{std}_m(r_m)$$
#
# Write `ensemble_reward(scores, how="mean", lam=1.0, sample=False, standardise=False)`.
#
# * `scores` (M, B): what M ≥ 1 members say to each of B ≥ 1 answers, in half precision or larger, not
#   necessarily contiguous, not changed by your function. Scores may be some 10⁵ large;
# * `how`: `"mean"`, `"min"`, or `"mean_minus_std"` with `lam` ≥ 0 for λ; anything else raises a ValueError;
# * mean, minimum and std are taken over the **members**, for each answer. The std divides by M, with
#   `sample=True` by M − 1; of a single member it is 0 in both cases;
# * `standardise=True`: before all that, each member's scores are brought to mean 0 and std 1 over the B
#   answers. This std always divides by B. A member whose scores are all equal (as with B = 1) then gives
#   **exactly** 0 for each answer;
# * the result has shape (B,) and is float32 or float64, with float32's digits.
#
# <details><summary>A hint</summary>
#
# Two different directions: standardising goes along an answer's row (`dim=1`), joining down its column
# (`dim=0`). `tensor.std(unbiased=...)` knows both divisors, and gives NaN for a single number divided by 0.
# Whether a member's scores are all equal is better asked of the scores than of their std.
# </details>


# %% task="ensemble-reward"
def ensemble_reward(scores, how="mean", lam=1.0, sample=False, standardise=False):
    ### BEGIN SOLUTION
    scores = scores.double()
    members = len(scores)
    if standardise:
        silent = scores.amax(dim=1, keepdim=True) == scores.amin(dim=1, keepdim=True)  # (M, 1)
        centred = scores - scores.mean(dim=1, keepdim=True)
        spread = centred.square().mean(dim=1, keepdim=True).sqrt()
        scores = (centred / spread).masked_fill(silent, 0.0)
    mean = scores.mean(dim=0)  # (B,)
    if how == "mean":
        return mean
    if how == "min":
        return scores.amin(dim=0)
    if how != "mean_minus_std":
        raise ValueError(f"how = {how!r} is none of mean, min, mean_minus_std")
    squares = (scores - mean).square().sum(dim=0)
    divisor = members - 1 if sample else members
    std = (squares / divisor).sqrt() if members > 1 else torch.zeros_like(mean)
    return mean - lam * std
    ### END SOLUTION


# %% task="ensemble-reward" points=4
check.ensemble_reward(ensemble_reward)

# %% tags=["hidden-test", "solution-only"]
assert check.ensemble_reward(ensemble_reward).passed

# %% [markdown]
# ### Experiment: one member shouts
#
# Three reward models, each trained on its own resample of a few pairs. Their scores are normalised, so they
# speak equally loud. Now suppose that one of them was not: its scores are 20 times as large. What does each
# way of joining make of it? Spearman's correlation with each member says whom the joined reward listens to.

# %%
from course_utils.feedback import train_members

few = world.pairs()[0]
few = few.select(range(min(640, len(few))))
usual_prompts = world.prompts("train", 24 if fast else 120)
usual = world.generate(sft, usual_prompts)
member_settings = replace(
    world.settings.reward, steps=2 if fast else 20, batch_size=16, save_every=0
)
members = train_members(
    world.base(), world.tokenizer, few, member_settings, count=3, progress=False,
    normalise_on=list(zip(usual_prompts, usual, strict=True)),
)  # fmt: skip


def opinions(prompts, answers, loud=1.0):
    """What the members say (M, B); the first one `loud` times as loud."""
    said = torch.tensor([member(prompts, answers) for member in members], dtype=torch.float64)
    return said * torch.tensor([loud, 1.0, 1.0], dtype=torch.float64)[:, None]


# %% tags=["hide-input"]
# @title The course's ensemble, with the same signature
from course_utils.training.ppo import Ensemble


def course_ensemble_reward(scores, how="mean", lam=1.0, sample=False, standardise=False):
    if standardise:
        spread = scores.std(1, unbiased=False, keepdim=True)
        scores = (scores - scores.mean(1, keepdim=True)) / spread.clamp(min=1e-9)
    lam = lam * (len(scores) / (len(scores) - 1)) ** 0.5 if sample else lam
    ensemble = Ensemble([None] * len(scores), combine=how, std_weight=lam)
    return ensemble.join(scores.double())


# %%
my_join = check.use(ensemble_reward, otherwise=course_ensemble_reward)
equal, shouting = opinions(usual_prompts, usual), opinions(usual_prompts, usual, loud=20.0)


def listens_to(scores, how, standardise):
    """Spearman's correlation of the joined reward with each member."""
    joined = my_join(scores, how, 1.0, False, standardise)
    ranked = pd.DataFrame(scores.T.numpy(), columns=["the loud one", "second", "third"]).rank()
    return ranked.corrwith(pd.Series(joined.numpy()).rank())


pd.DataFrame(
    {f"{how}{', standardised' if own else ''}": listens_to(shouting, how, own)
     for how in ("mean", "min", "mean_minus_std") for own in (False, True)}
).T.style.format("{:+.2f}").set_caption("whom the joined reward listens to")  # fmt: skip

# %% tags=["hidden-test"]
assert equal.shape == (3, len(usual))
raw, own = (listens_to(shouting, "mean", flag) for flag in (False, True))
assert raw.iloc[0] > 0.95
assert own.max() - own.min() < raw.max() - raw.min()
for how in ("mean", "min", "mean_minus_std"):  # standardised, it does not matter who shouts
    torch.testing.assert_close(my_join(equal, how, 1.0, False, True),
                               my_join(shouting, how, 1.0, False, True))  # fmt: skip

# %% [markdown]
# Now PPO climbs two of these rewards, without a KL penalty (β = 0), so that hacking shows within seconds:
# the shouting ensemble's plain mean, and your cautious one, *standardised, mean − λ·std*. The true quality
# of the same answers is logged beside it and never trained on.
#
# **Your guess.** Which run keeps more of the true quality?

# %%
my_guess_ensemble = "the same"


def joined_reward(how, standardise):
    """Your function as a reward for PPOTrainer."""

    def reward(prompts, answers):
        return my_join(opinions(prompts, answers, 20.0), how, 1.0, False, standardise).tolist()

    return reward


# %%
from course_utils.training.ppo import PPOTrainer, per_answer

hacking = replace(
    world.settings.ppo_low_beta, steps=2 if fast else 8, rollouts_per_step=8 if fast else 32,
    learning_rate=8e-4, beta=0.0, max_new_tokens=40, rollouts_every=0,
)  # fmt: skip
climbs = {}
for name, reward in {
    "mean, one shouts": joined_reward("mean", False),
    "mean − λ·std, standardised": joined_reward("mean_minus_std", True),
}.items():
    trainer = PPOTrainer(world.sft(), reward, world.tokenizer, world.prompts("train", 400), hacking,
                         gold=per_answer(world.gold))  # fmt: skip
    climbs[name] = pd.DataFrame(trainer.train())

# %% tags=["hide-input"]
# @title True quality against distance
figure = plots.figure(
    "True quality while each reward is climbed", "√KL to the SFT model", "gold reward"
)
for i, (name, rows) in enumerate(climbs.items()):
    distance = rows.kl.clip(lower=0) ** 0.5
    smooth = rows.gold.rolling(3, min_periods=1, center=True).mean()
    plots.line(figure, distance, smooth, name, plots.colour(i), mode="lines+markers")
display(figure)
ends = {name: (rows.gold.tail(3).mean(), rows.kl.tail(3).mean()) for name, rows in climbs.items()}
own_rewards = {name: rows.reward.abs().max() for name, rows in climbs.items()}
Markdown(
    "Over the last three steps: "
    + "; ".join(
        f"*{name}* gold **{gold:+.2f}** at {kl:.1f} nats" for name, (gold, kl) in ends.items()
    )
    + f" (you guessed *{my_guess_ensemble}*; a step is {hacking.rollouts_per_step} answers, so two tenths of a point "
    "are noise). The largest |mean reward| that a run ever reported for itself: "
    + ", ".join(f"{value:.2f} (*{name}*)" for name, value in own_rewards.items())
    + "."
)

# %% tags=["hidden-test"]
assert all(len(rows) == hacking.steps for rows in climbs.values())
assert all(rows.kl.abs().iloc[0] < 0.5 for rows in climbs.values()), "both start at the reference"

# %% [markdown] task="why-standardise" points=2
# **In words** *(2 points)*: what does λ punish when one member shouts and nothing is standardised? Your reward
# standardises over the answers of a PPO step. Can its own reward curve then show that training makes
# progress? And what would you do instead in a long run?
#
# ### BEGIN SOLUTION
# With one member 20 times as loud, mean and std are both ruled by it: the std is nearly proportional to the
# distance between its score and the others', so λ punishes the loud member's strong opinions, good and bad
# ones, and no disagreement on content. The mean follows its ranking almost alone; it is an ensemble of one.
#
# Standardised over the step's answers every member's mean is 0 at every step, so the joined mean is 0 (less
# λ times a spread) whatever the policy writes. Within a step the order of the answers is right, which is all
# that the advantages need, but the curve cannot rise, and rewards of different steps cannot be compared. In a long run
# measure each member's mean and std **once**, on answers of the starting policy, and keep them fixed (what
# `normalise_on` does). Then a loud member is tamed, and progress and drift remain visible.
# ### END SOLUTION
