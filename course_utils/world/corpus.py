"""The texts of the world: the web that the base model reads, and the demonstrations of SFT."""

import random
from collections.abc import Callable

from course_utils.world import phrases
from course_utils.world.answers import DEMONSTRATOR, WEB, answer, facts
from course_utils.world.families import FAMILIES, WEIGHTS, Prompt, calculate, catalogue, expressions
from course_utils.world.families import prompts as draw_prompts
from course_utils.world.knowledge import load

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"


def chat(prompt: str, completion: str) -> str:
    """One exchange in the world's chat format, as `tokenizer.apply_chat_template` writes it."""
    return f"{USER}{prompt}{ASSISTANT}{completion}{END}"


def encyclopedia(rng: random.Random) -> str:
    """All that is known of a topic, in any order: right, dry, without manners."""
    topic = rng.choice(load().topics)
    attributes = list(topic.values)
    rng.shuffle(attributes)
    return " ".join(facts(topic, attributes, rng))


def glossary(rng: random.Random) -> str:
    """One line each for a few topics of a domain."""
    domain = rng.choice(load().domains)
    topics = rng.sample(list(domain.topics), 4)
    return " ".join(f"{t.sentence(rng.choice(list(t.values)))}." for t in topics)


def cookbook(rng: random.Random) -> str:
    """What goes into dishes, and how ingredients taste."""
    know = load()
    lines = []
    for rule in rng.sample(know.dish_rules, 2):
        a = know.ingredient(rng.choice(rule.ingredients))
        lines.append(phrases.VERDICTS[rule.verdict(a.name)].format(a=a.name, b=rule.dish))
        lines.append(phrases.TASTE[a.plural].format(a=a.name, taste=a.taste))
    return " ".join(lines)


def tables(rng: random.Random) -> str:
    """Lines of small sums."""
    return " ".join(f"{e} = {calculate(e)}." for e in rng.sample(expressions(), 5))


def forum(rng: random.Random) -> str:
    """A question and an answer of mixed quality."""
    prompt = _any_prompt(rng)
    return chat(prompt.text, answer(prompt, rng, WEB))


def _any_prompt(rng: random.Random) -> Prompt:
    family = rng.choices(FAMILIES, [WEIGHTS[f] for f in FAMILIES])[0]
    return rng.choice(catalogue()[family])


# kind of document -> (writer, share of the documents)
KINDS: dict[str, tuple[Callable[[random.Random], str], float]] = {
    "encyclopedia": (encyclopedia, 0.22),
    "glossary": (glossary, 0.08),
    "cookbook": (cookbook, 0.06),
    "tables": (tables, 0.06),
    "forum": (forum, 0.58),
}


def base_corpus(n: int, seed: int = 0) -> list[str]:
    """`n` documents of "the web": right facts in dry text, and forum answers of mixed quality.

    Chats carry their special tokens as text (the tokenizer reads them as such); other documents
    are plain text. Every topic and paraphrase occurs, held-out ones too: this is pretraining.
    """
    rng = random.Random(f"base:{seed}")
    writers = [writer for writer, _ in KINDS.values()]
    shares = [share for _, share in KINDS.values()]
    return [writer(rng) for writer in rng.choices(writers, shares, k=n)]


def plain_corpus(n: int, seed: int = 0) -> list[str]:
    """Only the dry documents: what forgetting is measured on (see evaluation.perplexity)."""
    rng = random.Random(f"plain:{seed}")
    kinds = [pair for name, pair in KINDS.items() if name != "forum"]
    return [w(rng) for w in rng.choices([w for w, _ in kinds], [s for _, s in kinds], k=n)]


def demonstrations(
    split: str = "train", n: int | None = None, seed: int = 0
) -> list[tuple[Prompt, str]]:
    """(prompt, answer) pairs for SFT, as labellers write them; arguments as of `prompts`."""
    rng = random.Random(f"demonstrations:{split}:{seed}")
    return [(p, answer(p, rng, DEMONSTRATOR)) for p in draw_prompts(split, n, seed)]
