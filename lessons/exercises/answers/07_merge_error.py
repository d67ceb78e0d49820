from course_utils.grading.mutants import Mutant

ALONE = """
import torch

def _round(w, levels, block):
    flat = w.reshape(-1).clone()
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        scale = part.abs().max().clamp(min=1e-38)
        flat[start : start + block] = levels[(part[:, None] / scale - levels).abs().argmin(1)] * scale
    return flat.reshape(w.shape)

def merge_lora(weight, A, B, alpha, how, levels, block=64):
    r = len(A)
    update = torch.einsum("dr,rk->dk", B, A).mul(alpha).div(r)
    if how == "dequantize":
        return _round(weight, levels, block) + update
    if how == "requantize":
        return _round(_round(weight, levels, block) + update, levels, block)
    if how == "original":
        return weight + update
    return _round(weight + update, levels, block)

def output_error(x, merged, frozen, A, B, alpha):
    wanted = frozen + (alpha / len(A)) * (B @ A)
    y = torch.nn.functional.linear(x, wanted)
    off = torch.nn.functional.linear(x, merged - wanted)
    return (off.square().sum() / y.square().sum()).sqrt()
"""

DOUBLE = """
import torch

def _rounded(w, levels, block):
    flat = torch.nn.functional.pad(w.flatten(), (0, -w.numel() % block)).view(-1, block)
    scales = flat.abs().amax(1, keepdim=True)
    codes = torch.bucketize(torch.nan_to_num(flat / scales), (levels[1:] + levels[:-1]) / 2)
    return (levels[codes] * scales).flatten()[: w.numel()].view_as(w)

def merge_lora(weight, A, B, alpha, how, levels, block=64):
    merged = weight.clone()
    if how in ("dequantize", "requantize"):
        merged = _rounded(merged, levels, block)
    for i in range(A.shape[0]):
        merged = merged + alpha / A.shape[0] * B[:, i : i + 1] * A[i : i + 1]
    if how in ("requantize", "original-requantize"):
        merged = _rounded(merged, levels, block)
    return merged

def output_error(x, merged, frozen, A, B, alpha):
    x, merged, frozen, A, B = (t.double() for t in (x, merged, frozen, A, B))
    y = torch.stack([frozen @ row + alpha / len(A) * (B @ (A @ row)) for row in x])
    z = torch.stack([merged @ row for row in x])
    return torch.dist(z, y) / y.norm()
"""

_UPDATE = "update = alpha / A.shape[0] * (B @ A)"
_MERGED = 'return through_4_bits(merged) if how.endswith("requantize") else merged'
_SUM = "merged = start + update"
_ERROR = "return torch.linalg.norm(off) / torch.linalg.norm(y)"
MUTANTS = (
    Mutant("zeros", _SUM, "merged = 0 * weight", "zero"),
    Mutant("not scaled", _UPDATE, "update = B @ A", "not scaled"),
    Mutant("alpha alone", _UPDATE, "update = alpha * (B @ A)", "alpha alone"),
    Mutant("upside down", _UPDATE, "update = A.shape[0] / alpha * (B @ A)", "upside down"),
    Mutant("sign", _SUM, "merged = start - update", "sign"),
    Mutant("twice", _SUM, "merged = start + 2 * update", "merged twice"),
    Mutant("update lost", _SUM, "merged = start + 0", "update lost"),
    Mutant("update alone", _SUM, "merged = update", "update alone"),
    Mutant("never original", 'weight if how.startswith("original") else', "", "dequantize instead"),
    Mutant("always original", 'weight if how.startswith("original") else through_4_bits(weight)',
           "weight", "original instead"),
    Mutant("never rounded", _MERGED, "return merged", "dequantize instead"),
    Mutant("always rounded", _MERGED, "return through_4_bits(merged)", "requantize instead"),
    Mutant("rounded apart", _MERGED, "return start + through_4_bits(update) if 'req' in how else "
           "merged", "rounded apart"),
    Mutant("in place", _SUM, "weight += update; merged = start + (0 if start is weight else "
           "update)", "in place"),
    Mutant("transposed", _MERGED, "return (through_4_bits(merged) if how.endswith('requantize') "
           "else merged).T", "wrong shape"),
    Mutant("block ignored", "def through_4_bits(w):", "def through_4_bits(w, block=2 * block):",
           "something else"),
    Mutant("error: zero", _ERROR, "return 0 * off.sum()", "zero"),
    Mutant("error: absolute", _ERROR, "return torch.linalg.norm(off)", "not relative"),
    Mutant("error: squares", _ERROR, "return off.square().sum() / y.square().sum()", "squared"),
    Mutant("error: by token", _ERROR, "return (off.norm(dim=1) / y.norm(dim=1)).mean()",
           "mean over tokens"),
    Mutant("error: largest", _ERROR, "return off.abs().max() / y.abs().max()", "largest"),
    Mutant("error: magnitudes", _ERROR, "return off.abs().sum() / y.abs().sum()",
           "absolute values"),
    Mutant("error: by the merged", _ERROR,
           "return torch.linalg.norm(off) / torch.linalg.norm(x @ merged.T)",
           "divided by the merged"),
    Mutant("error: no adapter", "y = x @ frozen.T + alpha / A.shape[0] * (x @ A.T) @ B.T",
           "y = x @ frozen.T", "without the adapter"),
    Mutant("error: by the base", _ERROR,
           "return torch.linalg.norm(off) / torch.linalg.norm(x @ frozen.T)",
           "relative to the base"),
    Mutant("error: adapter not scaled", "x @ frozen.T + alpha / A.shape[0] *", "x @ frozen.T +",
           "not scaled"),
    Mutant("error: of the weights", _ERROR, "w = frozen + alpha / A.shape[0] * B @ A\n"
           "    return torch.linalg.norm(merged - w) / torch.linalg.norm(w)", "weights"),
    Mutant("error: a constant added", "torch.linalg.norm(y)", "(torch.linalg.norm(y) + 1e-4)",
           "not relative"),
    Mutant("error: cut at 1", _ERROR, _ERROR.replace("return ", "return (") + ").clamp(max=1)",
           "large errors"),
    Mutant("error: a float", _ERROR, "return float(torch.linalg.norm(off) / torch.linalg.norm(y))",
           "not a tensor"),
    Mutant("hole", "update = alpha", "raise NotImplementedError('your code here'); update = alpha",
           "blank"),
)  # fmt: skip

ALTERNATIVES = (ALONE, DOUBLE)
