from course_utils.grading.mutants import Mutant

ADDMM = """
import torch

def merge(W, A, B, alpha, rslora=False):
    s = alpha / (len(A) ** 0.5 if rslora else len(A))
    return torch.addmm(W.to(torch.float32), B, A, alpha=s).type_as(W)

def unmerge(merged, A, B, alpha, rslora=False):
    s = alpha / (len(A) ** 0.5 if rslora else len(A))
    return torch.addmm(merged.to(torch.float32), B, A, alpha=-s).type_as(merged)
"""

OUTER = """
import math
import torch

def change(A, B, alpha, rslora):
    r = B.shape[1]
    total = torch.zeros(B.shape[0], A.shape[1], dtype=torch.float64)
    for i in range(r):
        total += torch.outer(B[:, i], A[i]).double()
    return total * (alpha / math.sqrt(r) if rslora else alpha / r)

def merge(W, A, B, alpha, rslora=False):
    return (W.double() + change(A, B, alpha, rslora)).float().to(W.dtype)

def unmerge(merged, A, B, alpha, rslora=False):
    return (merged.double() - change(A, B, alpha, rslora)).float().to(merged.dtype)
"""

_SUM = "(W.float() + scale * (B @ A)).to(W.dtype)"
_UNDO = "return merge(merged, A, -B, alpha, rslora)"
MUTANTS = (
    Mutant("zeros", _SUM, "0 * W", "zero"),
    Mutant("as it was", _SUM, "W.clone()", "unchanged"),
    Mutant("change alone", _SUM, "(scale * (B @ A)).to(W.dtype)", "change alone"),
    Mutant("subtracted", "W.float() +", "W.float() -", "sign"),
    Mutant("no scale", "scale * (B", "(B", "scale ignored"),
    Mutant("alpha", "else alpha / r", "else alpha", "alpha not divided"),
    Mutant("1 over r", "else alpha / r", "else 1 / r", "alpha left out"),
    Mutant("r over alpha", "else alpha / r", "else r / alpha", "scale upside down"),
    Mutant("over k", "r = A.shape[0]", "r = A.shape[1]", "not the rank"),
    Mutant("over d", "r = A.shape[0]", "r = B.shape[0]", "not the rank of B"),
    Mutant("weight scaled", _SUM, "(scale * (W + B @ A)).to(W.dtype)", "weight scaled"),
    Mutant("rslora ignored", "if rslora", "if False", "wrong rule"),
    Mutant("always rslora", "if rslora", "if True", "wrong rule"),
    Mutant("the two exchanged", "if rslora", "if not rslora", "wrong rule"),
    Mutant("in place", f"return {_SUM}", "W += scale * (B @ A); return W", "in place"),
    Mutant("transposed", "(B @ A)).to", "(B @ A)).T.to", "wrong shape"),
    Mutant("no return", f"return {_SUM}", _SUM, "not a tensor"),
    Mutant("added again", _UNDO, "return merge(merged, A, B, alpha, rslora)", "sign"),
    Mutant("not undone", _UNDO, "return merged.clone()", "unchanged"),
    Mutant("both negated", _UNDO, "return merge(merged, -A, -B, alpha, rslora)", "sign"),
    Mutant("undone without rslora", _UNDO, "return merge(merged, A, -B, alpha)", "wrong rule"),
    Mutant("undone in place", _UNDO,
           "return merged.copy_(merge(merged, A, -B, alpha, rslora))", "in place"),
    Mutant("float32 out", ".to(W.dtype)", "", "dtype changed"),
    Mutant("factors rounded", "B @ A", "(B.to(W.dtype) @ A.to(W.dtype)).float()", "rounded early"),
    Mutant("change rounded", _SUM, "W + (scale * (B @ A)).to(W.dtype)", "rounded early"),
    Mutant("one dtype", _SUM, "torch.addmm(W, B, A, alpha=scale)", "mixed dtypes"),
)  # fmt: skip

ALTERNATIVES = (ADDMM, OUTER)
