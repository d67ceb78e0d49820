"""The lecture's two pictures of RLHF: its three steps, and a reward model beside its LM."""

from course_utils.pictures.draw import FROZEN, LINE, Picture, arrow, box, text

SFT, REWARD, PPO = "40,120,220", "150,90,200", "235,125,20"
# title, its colour, and the boxes of a step from top to bottom: (colour, title, words)
STEPS = (
    (
        "1 · demonstrations",
        SFT,
        (
            (FROZEN, "a prompt is sampled", "explain the moon landing to a 6 year old"),
            (FROZEN, "a labeller answers it", "some people went to the moon …"),
            (SFT, "supervised fine-tuning", "the model imitates: the SFT model"),
        ),
    ),
    (
        "2 · comparisons",
        REWARD,
        (
            (FROZEN, "the SFT model answers often", "one prompt, answers A, B, C, D"),
            (FROZEN, "a labeller ranks them", "D ≻ C ≻ A = B"),
            (REWARD, "reward model", "learns to score as people rank"),
        ),
    ),
    (
        "3 · reinforcement learning",
        PPO,
        (
            (FROZEN, "a new prompt is sampled", "write a story about frogs"),
            (PPO, "the policy answers", "it starts as the SFT model"),
            (REWARD, "the reward model scores", "one number for the whole answer"),
        ),
    ),
)
_WIDE, _HIGH, _GAP = 284, 58, 28  # of a box, and between two, in SVG units


def three_steps() -> Picture:
    """Slide 12: demonstrations -> SFT, comparisons -> reward model, reward -> PPO."""
    drawing, said = "", []
    for column, (title, colour, boxes) in enumerate(STEPS):
        x = 8 + column * (_WIDE + 36)
        drawing += (
            f'<text x="{x}" y="24" font-size="15" font-weight="700" fill="rgb({colour})">'
            f"{title}</text>\n"
        )
        for row, (tone, name, words) in enumerate(boxes):
            y = 40 + row * (_HIGH + _GAP)
            drawing += box(x, y, _WIDE, _HIGH, tone, name, words)
            if row:
                drawing += _down(x + _WIDE // 2, y - _GAP, y)
        said.append(f"{title}: " + ", ".join(f"{name} ({words})" for _, name, words in boxes))
    x, y = 8 + 2 * (_WIDE + 36), 40 + 2 * (_HIGH + _GAP)  # of the last box
    loop = f"M{x + _WIDE},{y + 30} h16 V{40 + _HIGH + _GAP + 29} h-6"
    drawing += arrow(loop, f"{x + _WIDE + 2},{40 + _HIGH + _GAP + 29}", "left")
    drawing += text(x + _WIDE // 2, y + _HIGH + 22, "PPO changes the policy, again and again")
    words = "; ".join(said) + "; PPO changes the policy by the score, again and again"
    return Picture(words, x + _WIDE + 24, y + _HIGH + 34, drawing)


def _down(x: int, start: int, end: int) -> str:
    return (
        f'<path d="M{x},{start + 4} V{end - 9}" fill="none" stroke="{LINE}" stroke-width="1.7"/>'
        f'<path d="M{x},{end - 2}l-5,-9 h10 z" fill="{LINE}"/>'
    )


# ---- one trunk, two heads ------------------------------------------------------------------------

PROMPT, ANSWER = ("what", "is", "jupiter", "?"), ("a", "planet", ".", "end")
_STEP, _LEFT = 52, 14  # width of a token, and of the margin


def two_heads() -> Picture:
    """Slide 13: next-token prediction at every position, and one score at the last token."""
    right = _LEFT + 8 * _STEP + 70
    drawing = (
        _model(_LEFT, SFT, "language model", "head: D × V, a probability for each next word")
        + "".join(_chances(_LEFT + i * _STEP, i) for i in range(8))
        + _model(right, REWARD, "reward model", "")
        + box(right + 4 * _STEP, 92, 4 * _STEP - 6, 38, REWARD, "scalar head: D × 1")
        + _up(right + 7 * _STEP + 23, 92, 58)
        + f'<text x="{right + 7 * _STEP + 23}" y="46" text-anchor="middle" font-size="17" '
        'font-weight="700" fill="currentColor">r = 0.7</text>\n'
    )
    words = (
        "Left, a language model: tokens -> trunk -> at every position a probability for each next "
        "word. Right, a reward model: the same trunk -> a scalar head on the last token -> one "
        "score r for prompt and answer"
    )
    return Picture(words, right + 8 * _STEP + 14, 300, drawing)


def _model(x: int, colour: str, title: str, head: str) -> str:
    """Tokens, the trunk over them, and arrows; a head over the whole width if `head` says so."""
    wide = 8 * _STEP - 6
    drawn = box(x, 158, wide, 58, FROZEN, "trunk: the transformer's layers", "hidden states, D")
    for i, token in enumerate(PROMPT + ANSWER):
        tone = FROZEN if i < len(PROMPT) else colour
        drawn += box(x + i * _STEP, 246, 46, 26, tone) + text(x + i * _STEP + 23, 263, token)
        drawn += _up(x + i * _STEP + 23, 246, 218)
        if head or i == 7:
            drawn += _up(x + i * _STEP + 23, 158, 132)
    if head:
        drawn += box(x, 92, wide, 38, colour, head)
    prompt, answer = x + 2 * _STEP - 3, x + 6 * _STEP - 3
    drawn += text(prompt, 292, "prompt x") + text(answer, 292, "answer y")
    return drawn + (
        f'<text x="{x}" y="20" font-size="15" font-weight="700" fill="rgb({colour})">{title}'
        "</text>\n"
    )


def _up(x: int, start: int, end: int) -> str:
    return arrow(f"M{x},{start} V{end + 8}", f"{x},{end}", "up")


def _chances(x: int, place: int) -> str:
    """A few bars, taller and lower by turns: a distribution over the next word."""
    heights = [(9, 26, 14), (22, 8, 12), (10, 14, 30), (28, 10, 8)][place % 4]
    return "".join(
        f'<rect x="{x + 9 + 10 * i}" y="{84 - h}" width="8" height="{h}" fill="rgba({SFT},.6)"/>'
        for i, h in enumerate(heights)
    )
