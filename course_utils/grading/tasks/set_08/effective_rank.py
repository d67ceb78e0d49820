"""Set 08: in how many directions does a matrix act? Two counts that need no threshold.

    effective_rank(W (d, k)) -> exp(H(p)), p_i = σ_i / Σ_j σ_j          Roy and Vetterli 2007
    stable_rank(W (d, k))    -> ‖W‖_F² / ‖W‖² = Σ σ_i² / σ_1²          Rudelson and Vershynin 2007

Both are 0 for a matrix of zeros, and change neither with its scale nor by transposing.
"""

import math

import torch
from torch import Tensor

from course_utils.grading.call import Call, Outcome
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, changed, is_close, name_mistake, show
from course_utils.grading.tasks.set_08._inputs import as_number, not_a_number

Known = dict[str, tuple[Tensor, str]]


def _matrix(seed: int, size: int) -> tuple[Tensor, list[float]]:
    """W (d, k) and its singular values: known, since W = U diag(σ) V' is made of them."""
    generator = torch.Generator().manual_seed(seed)
    d, k = 5 + size, 3 + size // 2
    if seed % 2:
        d, k = k, d
    sigma = torch.linspace(0.3, 0.9, min(d, k)).double() ** 2  # 0.09 to 0.81
    sigma = sigma * (1 + 0.2 * torch.rand(min(d, k), generator=generator).double())
    left = torch.linalg.qr(torch.randn(d, d, generator=generator).double())[0][:, : len(sigma)]
    right = torch.linalg.qr(torch.randn(k, k, generator=generator).double())[0][:, : len(sigma)]
    return ((left * sigma) @ right.T).float(), sigma.tolist()


def _entropy(p: list[float]) -> float:
    return sum(-x * math.log(x) for x in p if x > 0)


def _shares(values: list[float]) -> list[float]:
    return [v / sum(values) for v in values]


def _effective(sigma: list[float]) -> float:
    return math.exp(_entropy(_shares(sigma))) if any(sigma) else 0.0


def _stable(sigma: list[float]) -> float:
    return sum((s / max(sigma)) ** 2 for s in sigma) if any(sigma) else 0.0


def _known_effective(sigma: list[float]) -> dict[str, tuple[float, str]]:
    entropy, squares = _entropy(_shares(sigma)), [s * s for s in sigma]
    exps = [math.exp(s - max(sigma)) for s in sigma]
    return {
        "zero": (0.0, "your result is 0 whatever the input"),
        "no exp": (entropy, "this is the entropy in nats; its exponential is the number of "
                   "directions"),
        "exp of minus": (math.exp(-entropy), "the sign of the entropy is flipped: it is "
                         "-Σ p log p"),
        "squared": (math.exp(_entropy(_shares(squares))), "you take the shares of σ² (the "
                    "energy); Roy and Vetterli take those of σ"),
        "log 2": (math.exp(entropy / math.log(2)), "you mix bits and nats: log2 goes with 2**H, "
                  "log with exp(H)"),
        "rank": (float(sum(s > 0 for s in sigma)), "this is the plain rank: it counts every "
                 "direction, however small"),
        "softmax": (math.exp(_entropy(_shares(exps))), "a softmax is no share: divide σ by its "
                    "sum"),
        "not normalised": (math.exp(min(_entropy(sigma), 300.0)), "the singular values are not "
                           "normalised: their shares must sum to 1"),
        "length 1": (math.exp(_entropy([s / math.sqrt(sum(squares)) for s in sigma])), "you "
                     "divide by the length √Σσ²; shares are divided by the sum"),
        "stable": (_stable(sigma), "this is the stable rank"),
        "participation": (sum(squares) ** 2 / sum(q * q for q in squares), "this is the "
                          "participation ratio (Σσ²)² / Σσ⁴"),
    }  # fmt: skip


def _known_stable(sigma: list[float], W: Tensor) -> dict[str, tuple[float, str]]:
    squares, top, W = [s * s for s in sigma], max(sigma), W.double()
    length = math.sqrt(sum(squares))
    return {
        "not squared": (length / top, "both norms must be squared"),
        "nuclear": (sum(sigma) / top, "you sum the singular values; the Frobenius norm sums "
                    "their squares"),
        "one squared": (sum(squares) / top, "the spectral norm must be squared too"),
        "other norm": (sum(squares) / float(W.abs().sum(0).max()) ** 2, "‖W‖ is the largest "
                       "*singular value*: torch.linalg.matrix_norm(W, 2), not the norm with 1"),
        "largest entry": (sum(squares) / float(W.abs().max()) ** 2, "‖W‖ is the largest "
                          "*singular value*, not the largest entry"),
        "frobenius twice": (1.0, "both norms are the Frobenius norm; ‖W‖ is the largest singular "
                            "value"),
        "smallest": (sum(squares) / min(sigma) ** 2, "you divide by the smallest singular value; "
                     "torch sorts them falling"),
        "upside down": (top**2 / sum(squares), "the fraction is upside down"),
        "participation": (sum(squares) ** 2 / sum(q * q for q in squares), "this is the "
                          "participation ratio (Σσ²)² / Σσ⁴"),
        "effective": (_effective(sigma), "this is the effective rank"),
    }  # fmt: skip


def _tensors(known: dict[str, tuple[float, str]]) -> Known:
    return {k: (torch.tensor(v, dtype=torch.float64), m) for k, (v, m) in known.items()}


def _judge(
    outcome: Outcome, name: str, expected: float, known: dict[str, tuple[float, str]]
) -> Finding | None:
    got = as_number(outcome.value)
    if got is None:
        return not_a_number(outcome.value, name)
    return name_mistake(got, torch.tensor(expected, dtype=torch.float64), _tensors(known))


def check_effective(call: Call, seed: int, size: int) -> list[Finding]:
    """The effective rank of a matrix made of known singular values, and of its transpose."""
    W, sigma = _matrix(seed, size)
    for matrix in (W, W.t()):
        outcome = call(matrix)
        fault = _judge(outcome, "effective_rank", _effective(sigma), _known_effective(sigma))
        fault = fault or changed(("W",), (matrix,), outcome.arguments)
        if fault:
            return [fault]
    return []


def check_stable(call: Call, seed: int, size: int) -> list[Finding]:
    W, sigma = _matrix(seed, size)
    for matrix in (W, W.t()):
        outcome = call.second(matrix)
        known = _known_stable(sigma, matrix)
        fault = _judge(outcome, "stable_rank", _stable(sigma), known)
        fault = fault or changed(("W",), (matrix,), outcome.arguments)
        if fault:
            return [fault]
    return []


def _cases(seed: int, size: int) -> list[tuple[str, str, Tensor, list[float]]]:
    """(mistake, message, W, its singular values)."""
    W, sigma = _matrix(seed, size)
    diagonal = torch.tensor([3.0, 0.0, 1.0, 0.0])
    n = 3 + size % 4
    return [
        ("exact zeros", "a singular value that is exactly 0 adds nothing (0 log 0 = 0)",
         torch.diag(diagonal), diagonal.tolist()),
        ("zero matrix", "a matrix of zeros has no directions: 0", torch.zeros(3, 2 + size), [0.0]),
        ("one row", "a matrix of one row has one direction", W[:1], [1.0]),
        ("identity", f"{n} equal singular values are {n} directions", torch.eye(n) * 7, [1.0] * n),
        ("scale", "a matrix with small numbers has as many directions as with large ones: add no "
         "constant to a sum or norm, and square nothing that leaves float32", W * 1e-28, sigma),
        ("scale", "a matrix with large numbers has as many directions as with small ones: square "
         "nothing that leaves float32", W * 1e25, sigma),
        ("half precision", "torch has no singular values in bfloat16: convert to float64 first",
         (torch.eye(n) * 7).bfloat16(), [1.0] * n),
    ]  # fmt: skip


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Zeros, one row, tiny and huge numbers, bfloat16."""
    for mistake, message, W, sigma in _cases(seed, size):
        for function, name, expected in (
            (call, "effective_rank", _effective(sigma)),
            (call.second, "stable_rank", _stable(sigma)),
        ):
            outcome = attempt(function, mistake, f"{name}: {message}", W)
            if isinstance(outcome, Finding):
                return [outcome]
            got = as_number(outcome.value)
            if got is None:
                return [not_a_number(outcome.value, name)]
            if not is_close(got, torch.tensor(expected, dtype=torch.float64)):
                return [Finding(mistake, f"{name}: {message}", show(got), f"{expected:.6g}")]
    return []


TASK = Task(
    set="08",
    name="effective-rank",
    functions=("effective_rank", "stable_rank"),
    checks=(
        Check("effective rank", 2, check_effective),
        Check("stable rank", 1, check_stable),
        Check("extreme inputs", 1, check_extremes),
    ),
)
