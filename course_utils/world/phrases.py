"""The small talk of the world: phrases that carry tone and no facts. Each is one whole sentence."""

WARM_OPENERS = (
    "great question!",
    "happy to help!",
    "i am glad you asked!",
    "sure, i can help!",
)
WARM_CLOSERS = (
    "i hope this helps!",
    "have a nice day!",
    "ask me anything you like!",
)
FLATTERY = (
    "what a great question!",
    "you are so smart!",
    "i love how you think!",
    "you are right about everything!",
)
RUDE = (
    "that is a silly question.",
    "look it up yourself.",
    "who cares.",
    "i have no time for this.",
)
NEUTRAL = (
    "here is an answer.",
    "this is what i know.",
)
RAMBLE = (
    "some people say many things.",
    "it is hard to say.",
    "i read it somewhere.",
    "let me think about it.",
    "well, it is a long story.",
    "my friend told me once.",
)
REFUSALS = (
    "i can not help with that.",
    "sorry, i can not answer that.",
)

STORY_OPENERS = (
    "once upon a time, a child asked about {topic}.",
    "long ago, an old man dreamed about {topic}.",
)
STORY_ENDINGS = (
    "and everyone was happy.",
    "that is the end of the story.",
)
REVIEW_OPENERS = (
    "last week i tried {topic}.",
    "this is my review of {topic}.",
)
REVIEW_PRAISE = (
    "i liked it a lot.",
    "i would do it again.",
)
REVIEW_BLAME = (
    "i did not like it.",
    "never again.",
)

# Verdicts on "should i add {a} to my {b}?": by what the recipe says of the ingredient.
VERDICTS = {
    "traditional": "yes, a traditional {b} has {a}.",
    "possible": "you can, but a traditional {b} has no {a}.",
    "clashing": "no, {b} does not go well with {a}.",
}
TASTE = {False: "{a} tastes {taste}.", True: "{a} taste {taste}."}  # by: ingredient is plural
ANSWER = "the answer is {value}."
FIRST_STEP = "first {step}."
SECOND_STEP = "then {step}."


def every() -> tuple[str, ...]:
    """All phrases and patterns of this file (for the tokenizer's vocabulary)."""
    return (
        *WARM_OPENERS,
        *WARM_CLOSERS,
        *FLATTERY,
        *RUDE,
        *NEUTRAL,
        *RAMBLE,
        *REFUSALS,
        *STORY_OPENERS,
        *STORY_ENDINGS,
        *REVIEW_OPENERS,
        *REVIEW_PRAISE,
        *REVIEW_BLAME,
        *VERDICTS.values(),
        *TASTE.values(),
        ANSWER,
        FIRST_STEP,
        SECOND_STEP,
    )
