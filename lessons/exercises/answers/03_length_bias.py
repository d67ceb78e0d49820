from course_utils.grading.mutants import Mutant

NORMAL_EQUATIONS = """
import torch

def length_bias(margins, lengths, quality):
    m, l, q = (v.double() for v in (margins, lengths, quality))
    if not q.any():
        return (m @ l) / (l @ l) if l.any() else torch.tensor(0.0)
    determinant = (q @ q) * (l @ l) - (q @ l) ** 2  # of the 2 x 2 system, by Cramer's rule
    if determinant <= 1e-6 * (q @ q) * (l @ l):
        return torch.tensor(0.0)
    return ((q @ q) * (m @ l) - (q @ l) * (m @ q)) / determinant
"""

LEAST_SQUARES = """
import torch

def length_bias(margins, lengths, quality):
    l, q = lengths.double(), quality.double()
    own = l - q * torch.linalg.lstsq(q[:, None], l[:, None], driver="gelsd").solution[0, 0]
    if not own.square().sum() > 1e-6 * l.square().sum():
        return torch.zeros(())
    x = torch.stack([q, l], dim=1)
    return torch.linalg.lstsq(x, margins.double()[:, None], driver="gelsd").solution[1, 0]
"""

FLOATS = """
import torch

def slope(y, x):
    xx = sum(v * v for v in x)
    return sum(a * b for a, b in zip(x, y)) / xx if xx else 0.0

def without(y, x):
    s = slope(y, x)
    return [b - s * a for a, b in zip(x, y)]

def length_bias(margins, lengths, quality):
    m, l, q = margins.tolist(), lengths.tolist(), quality.tolist()
    own = without(l, q)
    if sum(v * v for v in own) <= 1e-6 * sum(v * v for v in l):
        return torch.tensor(0.0)
    return torch.tensor(slope(without(m, q), own))
"""

_OWN = "own = length - shared * q"
_END = "return (m @ own) / (own @ own)"
_GUARD = "own @ own <= 1e-6 * (length @ length)"
MUTANTS = (
    Mutant("zeros", _END, "return (m @ own) / (own @ own) * 0", "zero"),
    Mutant("sign", _END, "return -(m @ own) / (own @ own)", "sign"),
    Mutant("intercept", _END, "return torch.linalg.lstsq(torch.stack([torch.ones_like(q), q, length]"
           ", 1), m[:, None]).solution[2, 0]", "intercept"),
    Mutant("quality ignored", _OWN, "own = length", "quality ignored"),
    Mutant("quality ignored, intercept", _OWN, "own = length - length.mean()",
           "quality ignored, intercept"),
    Mutant("quality subtracted", _OWN, "own = length; m = m - q", "quality subtracted"),
    Mutant("quality's slope", "m, length, q = margins.double(), lengths.double(), quality.double()",
           "m, q, length = margins.double(), lengths.double(), quality.double()", "quality's slope"),
    Mutant("correlation", _END, "return torch.corrcoef(torch.stack([m, length]))[0, 1]",
           "correlation"),
    Mutant("partial correlation", _END, "m = m - q * (q @ m) / (q @ q); return (m @ own) / "
           "(m.norm() * own.norm())", "partial correlation"),
    Mutant("reversed", _END, "m = m - q * (q @ m) / (q @ q); return (m @ own) / (m @ m)", "reversed"),
    Mutant("out of the margin only", _OWN, "own = length; m = m - q * (q @ m) / (q @ q)",
           "half taken out"),
    Mutant("denominator", _END, "return (m @ own) / (length @ length)", "half taken out"),
    Mutant("not divided", _END, "return m @ own", "not divided"),
    Mutant("covariance", _END, "return (m @ own) / len(m)", "covariance"),
    Mutant("equal lengths", _GUARD, "own @ own < 1e-6 * (length @ length)", "equal lengths"),
    Mutant("collinear", _GUARD, "not length.any()", "collinear"),
    Mutant("equal quality", " if q.any() else 0.0", "", "equal quality"),
    Mutant("a float", _END, "return float((m @ own) / (own @ own))", "not a tensor"),
    Mutant("both slopes", _END, "b = (m @ own) / (own @ own); return torch.stack([(m - b * length) @"
           " q / (q @ q), b])", "wrong shape"),
    Mutant("integers", "lengths.double()", "lengths", "raised"),
    Mutant("in place", _OWN, "lengths.sub_(1); own = length - shared * q", "in place"),
)  # fmt: skip

ALTERNATIVES = (NORMAL_EQUATIONS, LEAST_SQUARES, FLOATS)
