"""What the dashboard draws: which columns of a run's rows make one panel, and what they mean.

A panel appears as soon as a row has one of its columns, so one dashboard serves every trainer.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    column: str  # key of the run's rows
    label: str  # in the legend
    tone: str = "c-ink"  # a colour class of base.css
    held: bool = False  # measured on held-out data: dashed


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small chart."""

    label: str
    unit: str
    help: str  # what it tells, in one sentence
    curves: tuple[Curve, ...]
    zero: bool = False  # 0 belongs on the axis
    more: bool = False  # shown on demand only
    target: str = ""  # key of the run's config with a value to draw as a reference line


def _one(column: str, label: str, unit: str, help: str, tone: str = "c-sft", **rest: Any) -> Panel:
    return Panel(label, unit, help, (Curve(column, label, tone),), **rest)


def _both(column: str, label: str, unit: str, help: str, **rest: Any) -> Panel:
    """Training and held-out values of the same quantity."""
    held = Curve(f"eval_{column}", "held out", "c-gold", held=True)
    return Panel(label, unit, help, (Curve(column, "training", "c-sft"), held), **rest)


PANELS = (
    _both("loss", "loss", "nats", "What is minimised."),
    _both("accuracy", "accuracy", "share", "Right tokens (SFT), or pairs ordered as labelled."),
    _both("margin", "margin", "reward", "Reward of the chosen minus that of the rejected answer."),
    Panel(
        "implicit",
        "β log π/π_ref",
        "DPO's rewards: both may fall while their distance grows.",
        (
            Curve("chosen_reward", "chosen", "c-dpo"),
            Curve("rejected_reward", "rejected", "c-ppo", held=True),
        ),
    ),
    Panel(
        "reward",
        "per answer",
        "What the reward model says and, where it is known, what answers are really worth (gold).",
        (Curve("reward", "reward model", "c-sft"), Curve("gold", "gold", "c-gold", held=True)),
    ),
    _one(
        "kl",
        "KL to the reference",
        "nats per answer",
        "How far the policy has moved from its reference, estimated on its own answers (k1).",
        "c-ppo",
        zero=True,
        target="kl_target",
    ),
    _one("beta", "β", "reward per nat", "The price of KL in the reward.", "c-best-of-n", zero=True),
    _one(
        "entropy",
        "entropy",
        "nats per token",
        "How undecided the policy is; near 0 it always says the same.",
        "c-dpo",
        zero=True,
    ),
    _one(
        "clip_fraction",
        "clip fraction",
        "of the tokens",
        "Share of tokens whose update the clip cut off; far above 0.2 the steps are too large.",
        "c-ppo-low-beta",
        zero=True,
    ),
    _one(
        "value_loss",
        "value loss",
        "squared reward",
        "How wrong the value head's forecast is.",
        "c-base",
        zero=True,
    ),
    Panel(
        "log-probabilities",
        "nats per answer",
        "Of the chosen and of the rejected answers, under the model in training.",
        (
            Curve("chosen_logprob", "chosen", "c-dpo"),
            Curve("rejected_logprob", "rejected", "c-ppo", held=True),
        ),
        more=True,
    ),
    _one(
        "explained_variance",
        "explained variance",
        "of the returns",
        "1: the value head foresees every return; 0: it does no better than their mean.",
        "c-base",
    ),
    _one(
        "completion_tokens",
        "answer length",
        "tokens",
        "Growing answers are often the first sign of a hacked reward.",
        "c-proxy",
    ),
    _one(
        "approx_kl",
        "KL of the update",
        "nats per token",
        "From the policy that sampled.",
        "c-ppo",
        zero=True,
        more=True,
    ),
    _one("grad_norm", "gradient norm", "", "Before clipping.", "c-proxy", zero=True, more=True),
    _one("learning_rate", "learning rate", "", "The optimizer's.", "c-base", zero=True, more=True),
)
COLUMNS = tuple(dict.fromkeys(curve.column for panel in PANELS for curve in panel.curves))


def present(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The columns that hold a number in at least one row."""
    return {name for row in rows for name in COLUMNS if row.get(name) is not None}


def chosen(columns: set[str], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The panels to draw, as the state holds them."""
    found = []
    for panel in PANELS:
        curves = [c for c in panel.curves if c.column in columns]
        if curves:
            shown = dataclasses.asdict(panel)
            shown["curves"] = [dataclasses.asdict(c) for c in curves]
            shown["target"] = config.get(panel.target) if panel.target else None
            found.append(shown)
    return found
