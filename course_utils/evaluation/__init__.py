"""What a model is worth, with error bars: gold reward, win rate, KL, forgetting, costs.

statistics    bootstrap intervals over prompts, win rates, distinct-n
policy        evaluate_policy: one model on a set of prompts -> Evaluation; best-of-n on top
sampling      answers and their KL to the reference
documents     perplexity and forgetting
preferences   a reward model's accuracy and calibration
best_of_n     unbiased estimates for every n from N samples
costs         seconds, memory, FLOPs
"""

from course_utils.evaluation.best_of_n import BestOfN, best_of_n, expected_best, subset_weights
from course_utils.evaluation.costs import (
    CostMeter,
    forward_flops,
    matmul_parameters,
    peak_memory_mib,
    training_flops,
)
from course_utils.evaluation.documents import DocumentLoss, forgetting, perplexity
from course_utils.evaluation.policy import (
    Completion,
    Evaluation,
    evaluate_best_of_n,
    evaluate_policy,
)
from course_utils.evaluation.preferences import (
    Bin,
    Calibration,
    PairAccuracy,
    calibration,
    pair_accuracy,
    reward_model_accuracy,
)
from course_utils.evaluation.sampling import KLEstimate, kl_to_reference
from course_utils.evaluation.statistics import (
    Estimate,
    WinRate,
    bootstrap_interval,
    distinct_n,
    estimate,
    win_rate,
)
from course_utils.objectives.kl import best_of_n_kl

__all__ = [
    "BestOfN",
    "Bin",
    "Calibration",
    "Completion",
    "CostMeter",
    "DocumentLoss",
    "Estimate",
    "Evaluation",
    "KLEstimate",
    "PairAccuracy",
    "WinRate",
    "best_of_n",
    "best_of_n_kl",
    "bootstrap_interval",
    "calibration",
    "distinct_n",
    "estimate",
    "evaluate_best_of_n",
    "evaluate_policy",
    "expected_best",
    "forgetting",
    "forward_flops",
    "kl_to_reference",
    "matmul_parameters",
    "pair_accuracy",
    "peak_memory_mib",
    "perplexity",
    "reward_model_accuracy",
    "subset_weights",
    "training_flops",
    "win_rate",
]
