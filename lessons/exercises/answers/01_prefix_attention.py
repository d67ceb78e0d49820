from course_utils.grading.mutants import Mutant

MIXTURE = """
import torch

def prefix_attention(q, k, v, prefix_k, prefix_v, mask):
    # He et al. 2022: (1 - share) of attention to the text, and share of attention to the prefix
    T, d = q.shape[-2:]
    allowed = torch.ones(T, T, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    text = (q.float() @ k.float().transpose(-1, -2) / d**0.5).masked_fill(~allowed, -torch.inf)
    if prefix_k.shape[1] == 0:
        return (text.softmax(dim=-1).nan_to_num() @ v.float()).to(q.dtype)
    prefix = q.float() @ prefix_k.float().transpose(-1, -2) / d**0.5  # (B, H, T, N)
    share = torch.sigmoid(prefix.logsumexp(-1) - text.logsumexp(-1)).unsqueeze(-1)
    safe = torch.where(allowed.any(-1, keepdim=True), text, 0.0)
    mixed = (1 - share) * (safe.softmax(dim=-1) @ v.float())
    return (mixed + share * (prefix.softmax(dim=-1) @ prefix_v.float())).to(q.dtype)
"""

PREFIX_BEHIND = """
import torch
import torch.nn.functional as F

def prefix_attention(q, k, v, prefix_k, prefix_v, mask):
    # attention does not mind the order of its keys, so the prefix may as well stand at the end
    B, _, T, _ = q.shape
    N = prefix_k.shape[1]
    keys = torch.cat([k, prefix_k[None].repeat(B, 1, 1, 1)], dim=2)
    values = torch.cat([v, prefix_v[None].repeat(B, 1, 1, 1)], dim=2)
    visible = torch.zeros(B, 1, T, T + N, dtype=torch.bool)
    for t in range(T):
        visible[:, 0, t, : t + 1] = mask[:, : t + 1] == 1
    visible[..., T:] = True
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=visible)
    return torch.where(visible.any(-1, keepdim=True), out, torch.zeros_like(out))
"""

_KEYS = "keys = torch.cat([prefix_k.expand(B, -1, -1, -1), k], dim=2)"
_HIDDEN = 'scores = scores.masked_fill(~seen, float("-inf"))'
_WEIGHTS = "weights = torch.where(seen, scores.softmax(dim=-1), 0.0)"
_RESULT = "return weights.to(q.dtype) @ values"
_SEEN = "seen = F.pad(text, (N, 0), value=True)"
_OWN = "torch.where(text, scores[..., N:], -1e30).softmax(dim=-1) @ v"
_PREFIX = "scores[..., :N].softmax(dim=-1) @ prefix_v"
MUTANTS = (
    Mutant("zeros", _RESULT, "return torch.zeros_like(q)", "zero"),
    Mutant("prefix masked", "value=True", "value=False", "no prefix"),
    Mutant("square causal mask", _SEEN,
           "seen = torch.ones(T, N + T).tril().bool() & F.pad(mask.bool()[:, None, None], (N, 0),"
           " value=True)", "prefix masked causally"),
    Mutant("is_causal", _RESULT, "return F.scaled_dot_product_attention(q, keys, values, "
           "is_causal=True)", "is_causal"),
    Mutant("future", "causal & mask", "torch.ones_like(causal) & mask", "not causal"),
    Mutant("padding seen", "causal & mask.bool()[:, None, None]", "causal.expand(B, 1, T, T)",
           "no padding mask"),
    Mutant("strictly before", ".tril()", ".tril(-1)", "own token hidden"),
    Mutant("no mask", _HIDDEN, "seen = torch.ones_like(seen)", "no mask"),
    Mutant("no scale", "/ d**0.5", "", "no scale"),
    Mutant("divided by d", "/ d**0.5", "/ d", "scale d"),
    Mutant("all heads' width", "/ d**0.5", "/ (q.shape[1] * d) ** 0.5", "scale of all heads"),
    Mutant("swapped", _KEYS, _KEYS + "; prefix_k, prefix_v = prefix_v, prefix_k; "
           + _KEYS, "swapped"),
    Mutant("two softmaxes", _RESULT, f"return {_OWN} + {_PREFIX}", "two softmaxes"),
    Mutant("half and half", _RESULT, f"return ({_OWN} + {_PREFIX}) / 2", "half and half"),
    Mutant("masked to 0", _HIDDEN, "scores = scores * seen; seen = torch.ones_like(seen)",
           "masked to 0"),
    Mutant("masked afterwards", _HIDDEN, "", "masked after softmax"),
    Mutant("over the queries", "softmax(dim=-1)", "softmax(dim=2)", "wrong axis"),
    Mutant("output of padding blanked", _RESULT,
           "return weights.to(q.dtype) @ values * mask[:, None, :, None].to(q.dtype)",
           "queries at padding"),
    Mutant("residual", _RESULT, "return weights.to(q.dtype) @ values + v", "values added"),
    Mutant("unstable", "scores.softmax(dim=-1)",
           "scores.exp() / scores.exp().sum(dim=-1, keepdim=True)", "unstable"),
    Mutant("-10,000 for -inf", _HIDDEN + "\n    " + _WEIGHTS,
           "weights = scores.masked_fill(~seen, -1e4).softmax(dim=-1)", "weak mask"),
    Mutant("gives float32", _RESULT, "return weights @ values.float()", "half precision"),
    Mutant("NaN where nothing is seen", _WEIGHTS, "weights = scores.softmax(dim=-1)",
           "nothing to see"),
    Mutant("in place", _RESULT, "mask.zero_(); " + _RESULT, "in place"),
    Mutant("prefix detached", _KEYS, _KEYS.replace("prefix_k", "prefix_k.detach()"), "detached"),
    Mutant("weights detached", _RESULT, "return weights.detach().to(q.dtype) @ values",
           "detached"),
    Mutant("prefix in front of the result", _RESULT, "out = weights.to(q.dtype) @ values; return "
           "torch.cat([prefix_v.expand(B, -1, -1, -1), out], dim=2)", "wrong shape"),
    Mutant("hole", _KEYS, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (MIXTURE, PREFIX_BEHIND)
