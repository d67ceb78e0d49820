from course_utils.grading.mutants import Mutant

CRAMER = """
import math

def fit_overoptimisation(kl, gold, weights=None):
    w = [1.0] * len(kl) if weights is None else weights.tolist()
    d = [max(k, 0.0) ** 0.5 for k in kl.tolist()]
    top = max(w)

    def moment(power, by=None):
        by = [1.0] * len(d) if by is None else by
        return math.fsum(wi / top * di**power * y for wi, di, y in zip(w, d, by))

    g = gold.tolist()
    s2, s3, s4, t1, t2 = moment(2), moment(3), moment(4), moment(1, g), moment(2, g)
    determinant = s2 * s4 - s3 * s3
    alpha = (t1 * s4 - t2 * s3) / determinant
    beta = (t1 * s3 - t2 * s2) / determinant
    if beta <= 0:
        return [alpha, beta, math.inf]
    return [alpha, beta, alpha / (2 * beta) if alpha > 0 else 0.0]
"""

NUMPY = """
import numpy as np
import torch

def fit_overoptimisation(kl, gold, weights=None):
    d = np.sqrt(np.maximum(kl.numpy().astype(np.float64), 0))
    root = np.ones_like(d) if weights is None else np.sqrt(weights.numpy().astype(np.float64))
    q, r = np.linalg.qr(np.stack([d, d * d], 1) * root[:, None])
    a, b = np.linalg.solve(r, q.T @ (gold.numpy() * root))
    peak = np.inf if -b <= 0 else max(a, 0) / (-2 * b)
    return torch.tensor([a, -b, peak], dtype=torch.float64)
"""

_D = "d = kl.double().clamp(min=0).sqrt()"
_X = "X = torch.stack([d, -d * d], dim=1)"
_ROOT = "root = weights.double().sqrt()"
_IF = "if weights is not None:"
_SOLVE = "alpha, beta = torch.linalg.lstsq(X, y[:, None]).solution[:, 0].tolist()"
_END = "return alpha, beta, max(alpha, 0.0) / (2 * beta)"
MUTANTS = (
    Mutant("zeros", _D, "return 0.0, 0.0, 0.0; " + _D, "something else"),
    Mutant("no root", _D, "d = kl.double().clamp(min=0)", "no root"),
    Mutant("intercept", _SOLVE,
           "X = torch.cat([X, torch.ones_like(X[:, :1])], 1); "
           "alpha, beta, _ = torch.linalg.lstsq(X, y[:, None]).solution[:, 0].tolist()",
           "intercept"),
    Mutant("beta sign", _END, "return alpha, -beta, max(alpha, 0.0) / (2 * beta)", "beta sign"),
    Mutant("swapped", _END, "return beta, alpha, max(alpha, 0.0) / (2 * beta)", "swapped"),
    Mutant("RL law", _X, "X = torch.stack([d, -torch.xlogy(d, d)], dim=1)", "RL law"),
    Mutant("divided by d", "y = gold.double()",
           "y = gold.double()[d > 0] / d[d > 0]; X = X[d > 0] / d[d > 0, None]; "
           "weights = None if weights is None else weights[d > 0]", "divided by d"),
    Mutant("straight", _SOLVE, _SOLVE.replace("(X,", "(X * torch.tensor([1.0, 0.0]).double(),")
           + "; beta = 0.0", "no bend"),
    Mutant("zero crossing", _END, "return alpha, beta, max(alpha, 0.0) / beta", "zero crossing"),
    Mutant("peak in KL", _END, "return alpha, beta, (max(alpha, 0.0) / (2 * beta)) ** 2",
           "peak in KL"),
    Mutant("height", _END, "return alpha, beta, alpha**2 / (4 * beta)", "height"),
    Mutant("half", _END, "return alpha, beta, max(alpha, 0.0) / (4 * beta)", "half"),
    Mutant("weights ignored", _IF, "if False:", "weights ignored"),
    Mutant("weights squared", _ROOT, "root = weights.double()", "weights squared"),
    Mutant("root of weights", _ROOT, "root = weights.double() ** 0.25", "root of weights"),
    Mutant("1 / w", _ROOT, "root = weights.double().clamp(min=1e-6) ** -0.5", "as 1 / w"),
    Mutant("not scaled", _SOLVE,
           "alpha, beta = torch.linalg.solve(X.T @ X + 1e-5 * torch.eye(2).double(), X.T @ y)"
           ".tolist()", "scale of weights"),
    Mutant("float32", _SOLVE, "X, y = X.float(), y.float(); "
           "alpha, beta = torch.linalg.solve(X.T @ X, X.T @ y).tolist()", "digits"),
    Mutant("NaN below 0", _D, "d = kl.double().sqrt()", "KL below 0"),
    Mutant("magnitude", _D, "d = kl.double().abs().sqrt()", "KL below 0 turned round"),
    Mutant("no inf", "if beta <= 0:", "if beta == 0:", "no peak"),
    Mutant("below 0", _END, "return alpha, beta, alpha / (2 * beta)", "no peak"),
    Mutant("in place", "y = gold.double()", "y = gold.double(); gold += 1", "in place"),
    Mutant("no peak returned", _END, "return alpha, beta", "not three numbers"),
    Mutant("no return", _END, "max(alpha, 0.0) / (2 * beta)", "not three numbers"),
    Mutant("hole", _D, "raise NotImplementedError('your code here'); " + _D, "blank"),
)  # fmt: skip

ALTERNATIVES = (CRAMER, NUMPY)
