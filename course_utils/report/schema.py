"""What `report.json` holds and what `build_report` reads: plain JSON, every section optional.

A section that is absent, empty or None becomes a sentence saying so. A number may be None (JSON's
way to write NaN or infinity); NaN itself is tolerated too. Keys of models used throughout: "base",
"sft", "best_of_n", "ppo", "ppo_low_beta" (PPO pushed too far), "dpo"; others show their own label.

    results = {
        "title": "...", "tier": "tiny", "seed": 0, "seconds": 171.2,
        "models": [{"key": "base", "label": "Base", "evaluation": evaluation.to_json()}, ...],
        "curves": {"sft": sft_log.rows, "ppo": ppo_log.rows}, ...
    }
    write_report("runs/latest/report.html", results)
"""

from typing import Any, TypedDict

Row = dict[str, Any]  # one row of a RunLog: "step" and named numbers
Interval = list[float]  # [low, high], 95% unless a section says otherwise


class Estimate(TypedDict, total=False):
    """A mean over prompts with its bootstrap interval; the JSON form of `evaluation.Estimate`."""

    mean: float | None
    low: float | None
    high: float | None
    n: int  # prompts averaged over


class Gold(TypedDict):
    """One answer's gold reward: `total` is the sum of `parts` (part name -> weighted score)."""

    total: float
    parts: dict[str, float]


class KL(TypedDict, total=False):
    """KL(policy || reference), nats per answer; the JSON form of `evaluation.KLEstimate`."""

    k1: Estimate
    k3: Estimate
    exact: Estimate  # per-position KL over the whole vocabulary, summed over the sampled answer


class EvaluationJSON(TypedDict, total=False):
    """The JSON form of `evaluation.Evaluation`; the page uses all but `completions`."""

    prompts: int
    samples_per_prompt: int
    temperature: float
    max_new_tokens: int
    seed: int
    gold: Estimate | None  # None without a gold reward
    parts: dict[str, Estimate] | None
    reward: Estimate | None  # reward model (proxy); None without one
    kl: KL | None  # None without a reference
    length: Estimate  # tokens per answer, end token included
    truncated_rate: float  # share of answers cut off at max_new_tokens
    distinct_1: float  # distinct unigrams / unigrams over all answers
    distinct_2: float
    completions: list[dict[str, Any]]  # "prompt", "text", "gold", "parts", "reward", "tokens", ...
    forgetting: float | None  # optional, added by the pipeline: rise in loss (nats/token) over base


class Model(TypedDict, total=False):
    """One column of the comparison, in the order shown."""

    key: str
    label: str
    evaluation: EvaluationJSON | None


class Answer(TypedDict, total=False):
    """One model's answer to one of the lecture's prompts."""

    text: str
    gold: Gold | None
    reward: float | None
    kl: float | None  # nats, this answer's KL to the reference


class Answers(TypedDict):
    """One prompt and what each model (by key) said."""

    prompt: str
    answers: dict[str, Answer]


class Curves(TypedDict, total=False):
    """RunLog rows per stage. Read where present (first alias that a row has):

    sft:    loss, eval_loss, token accuracy (accuracy | mean_token_accuracy)
    reward: loss, eval_loss, accuracy, eval_accuracy, margin
    dpo:    loss, margin (rewards/margins), accuracy (rewards/accuracies), kl, gold
    ppo, ppo_low_beta: reward, gold, kl, entropy, clip_fraction, completion_tokens,
        eos_rate, beta, ...
    """

    sft: list[Row]
    reward: list[Row]
    ppo: list[Row]
    ppo_low_beta: list[Row]
    dpo: list[Row]


class FrontierPoint(TypedDict, total=False):
    """One point of the reward-KL frontier; points of one method are joined in the order given."""

    method: str  # "base", "sft", "best_of_n", "ppo", "ppo_low_beta", "dpo"
    kl: float | None  # nats per answer to the SFT model (best-of-n: the analytic bound)
    gold: float | None  # mean held-out gold reward
    interval: Interval | None
    label: str  # "n = 4", "step 40", "β = 0.1"
    example: Answer | None  # shown when the point is chosen; may hold "prompt" too
    prompt: str  # the prompt that `example` answers


class OverOptimisationRow(TypedDict, total=False):
    """One measurement along the low-β PPO run; the first should be step 0, the SFT model itself."""

    step: int
    kl: float | None  # nats per answer to the SFT model
    proxy: float | None  # reward model's score, normalised
    gold: float | None  # on training prompts' rollouts
    gold_heldout: float | None  # on held-out prompts (preferred when most rows have it)


class OverOptimisation(TypedDict, total=False):
    rows: list[OverOptimisationRow]
    beta: float | None  # the run's KL coefficient


class Bin(TypedDict):
    """One bin of a reliability diagram."""

    low: float  # probability, bin edges
    high: float
    confidence: float | None  # mean predicted P(chosen better)
    accuracy: float | None  # share in which it was
    count: int


class RewardModelReport(TypedDict, total=False):
    """`evaluation.PairAccuracy.to_json()` with `Calibration.to_json()` under "calibration"."""

    accuracy: Estimate  # held-out pairs, ties count 1/2; against the annotator's labels
    accuracy_gold: Estimate  # the same pairs against the gold reward, when known
    ties: int
    pairs: int
    calibration: dict[str, Any]  # {"bins": [Bin], "ece": float}


class WinRate(TypedDict, total=False):
    """How often `a` beats `b` on the same prompts by gold reward, ties counting 1/2."""

    a: str  # model keys
    b: str
    rate: float
    interval: Interval
    ties: float  # share of ties
    n: int  # prompts
    judge: str  # "gold reward" unless said otherwise


class Cost(TypedDict, total=False):
    """One stage's costs."""

    stage: str
    seconds: float | None
    cpu_seconds: float | None
    generated_tokens: int | None
    trained_tokens: int | None
    flops: float | None  # estimate: 2N per forward token, 6N per trained token
    peak_mib: float | None  # high-water mark of the process's memory when the stage ended


class Rollout(TypedDict, total=False):
    """One sampled answer with per-token quantities: the rollout row of a RunLog, unchanged."""

    step: int
    prompt: str
    completion: str
    tokens: list[str]
    token_ids: list[int]
    logprobs: list[float]
    ref_logprobs: list[float]
    kl: list[float]
    values: list[float]
    advantages: list[float]
    rewards: list[float]
    score: float | None
    gold: float | None
    run: str  # optional: which run it belongs to, "ppo" or "ppo_low_beta"


class Results(TypedDict, total=False):
    """The whole of report.json."""

    title: str
    tier: str
    seed: int
    seconds: float
    started: str  # ISO date and time
    machine: str  # "Linux, 2 cores, 8 GiB, no GPU"
    command: str  # what the user typed
    versions: dict[str, str | None]  # python, course_utils, torch, ...; git commit too
    settings: dict[str, Any]  # stage -> {field: value}, or flat
    stages: list[str]  # the stages that ran: ["sft", "rm", "ppo", "dpo"]
    models: list[Model]
    answers: list[Answers]
    curves: Curves
    frontier: list[FrontierPoint]
    overoptimisation: OverOptimisation | None
    reward_model: RewardModelReport | None
    win_rates: list[WinRate]
    costs: list[Cost]
    rollouts: list[Rollout]
    evaluated_on: str  # "held-out prompts" (the default), "your prompts", ...
    notes: list[str]  # sentences to show under the title: dropped rows, a fallback taken, ...
