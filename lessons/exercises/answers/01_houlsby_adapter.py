from course_utils.grading.mutants import Mutant

LINEAR = """
import torch
import torch.nn.functional as F

def houlsby_init(hidden, bottleneck, seed):
    down = torch.nn.Linear(hidden, bottleneck)
    up = torch.nn.Linear(bottleneck, hidden)
    generator = torch.Generator()
    generator.manual_seed(seed)
    torch.nn.init.trunc_normal_(down.weight, std=0.01, a=-0.02, b=0.02, generator=generator)
    for zero in (down.bias, up.weight, up.bias):
        torch.nn.init.zeros_(zero)
    return [p.detach() for p in (down.weight, down.bias, up.weight, up.bias)]

def houlsby_forward(h, W_down, b_down, W_up, b_up):
    narrow = F.gelu(F.linear(h.to(W_down.dtype), W_down, b_down))
    return (h + F.linear(narrow, W_up, b_up)).to(h.dtype)
"""

BY_FEATURE = """
import math
import torch

def houlsby_init(hidden, bottleneck, seed):
    torch.manual_seed(seed)
    return (torch.normal(0.0, 0.01, (bottleneck, hidden)), torch.zeros(bottleneck),
            torch.zeros(hidden, bottleneck), torch.zeros(hidden))

def houlsby_forward(h, W_down, b_down, W_up, b_up):
    wide = h.float()
    out = wide + b_up
    for m in range(len(b_down)):  # one feature of the bottleneck after the other
        z = (wide * W_down[m]).sum(-1, keepdim=True) + b_down[m]
        out = out + 0.5 * z * (1 + torch.erf(z / math.sqrt(2))) * W_up[:, m]
    return out.to(h.dtype)
"""

_NARROW = "narrow = F.gelu(h.to(W_down.dtype) @ W_down.T + b_down)"
_RESULT = "return h + (narrow @ W_up.T + b_up).to(h.dtype)"
_DRAWN = "W_down = 0.01 * torch.randn(bottleneck, hidden, generator=generator)"
_UP = "torch.zeros(hidden, bottleneck)"
MUTANTS = (
    Mutant("zeros", _RESULT, "return torch.zeros_like(h)", "zero"),
    Mutant("gives h back", _RESULT, "return h.clone()", "nothing added"),
    Mutant("no residual", "return h + ", "return ", "no residual"),
    Mutant("sign", "return h + ", "return h - ", "sign"),
    Mutant("linear", "F.gelu(", "(", "no nonlinearity"),
    Mutant("ReLU", "F.gelu(", "F.relu(", "relu"),
    Mutant("SiLU", "F.gelu(", "F.silu(", "silu"),
    Mutant("tanh", "@ W_down.T + b_down)", "@ W_down.T + b_down, approximate='tanh')", "tanh gelu"),
    Mutant("no b_down", "W_down.T + b_down", "W_down.T", "no b_down"),
    Mutant("no b_up", "W_up.T + b_up", "W_up.T", "no b_up"),
    Mutant("GELU at the end", _NARROW + "  # (..., M)\n    " + _RESULT,
           "return h + F.gelu((h @ W_down.T + b_down) @ W_up.T + b_up)", "gelu at the end"),
    Mutant("GELU over all", _RESULT, "return F.gelu(h + (narrow @ W_up.T + b_up))",
           "gelu over all"),
    Mutant("GELU before", _NARROW, "narrow = F.gelu(h) @ W_down.T + b_down", "gelu before"),
    Mutant("GELU twice", _RESULT, "return h + F.gelu(narrow @ W_up.T + b_up)", "gelu twice"),
    Mutant("in place", _RESULT, "h += narrow @ W_up.T + b_up; return h", "in place"),
    Mutant("three dimensions", _NARROW,
           "narrow = F.gelu(torch.einsum('btd,md->btm', h.to(W_down.dtype), W_down) + b_down) "
           "if h.dim() != 2 else F.gelu(h @ W_down.T)", "other shapes"),
    Mutant("one dtype", "h.to(W_down.dtype)", "h", "half precision"),
    Mutant("gives float32", ".to(h.dtype)", "", "half precision"),
    Mutant("detached", _NARROW, _NARROW.replace("h.to", "h.detach().to"), "gradient"),
    Mutant("no grad", _RESULT, "return h + (narrow @ W_up.T + b_up).detach()", "detached"),
    Mutant("W_up random", _UP, "0.01 * torch.randn(hidden, bottleneck)", "up not zero"),
    Mutant("all zeros", _DRAWN, "W_down = torch.zeros(bottleneck, hidden)", "all zeros"),
    Mutant("constant", _DRAWN, "W_down = torch.full((bottleneck, hidden), 0.01)",
           "features alike"),
    Mutant("variance for deviation", "0.01 * torch.randn", "0.1 * torch.randn", "scale"),
    Mutant("uniform from 0", _DRAWN, "W_down = 0.035 * torch.rand(bottleneck, hidden)", "mean"),
    Mutant("bias random", "torch.zeros(bottleneck)", "torch.randn(bottleneck)", "bias not zero"),
    Mutant("global numbers", ", generator=generator", "", "not repeatable"),
    Mutant("one seed for all", "manual_seed(seed)", "manual_seed(0)", "seed ignored"),
    Mutant("transposed", _DRAWN, _DRAWN.replace("bottleneck, hidden", "hidden, bottleneck"),
           "wrong shape"),
    Mutant("a dict", "return W_down, b_down, W_up,", "return dict(W_down=W_down), b_down,",
           "not four tensors"),
    Mutant("hole", _NARROW, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (LINEAR, BY_FEATURE)
