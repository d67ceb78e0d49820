from course_utils.grading.mutants import Mutant

MERGED = """
import torch

def lora_init(d, k, r, seed):
    torch.manual_seed(seed)
    A = torch.empty(r, k)
    torch.nn.init.kaiming_uniform_(A, a=5**0.5)
    return [A, torch.zeros(d, r)]

def lora_forward(x, W, bias, A, B, alpha):
    weight = W.detach().float() + (alpha / A.shape[0]) * (B @ A)
    out = torch.einsum("...k,dk->...d", x.float(), weight)
    if bias is not None:
        out = out + bias.detach().float()
    return out.to(x.dtype)
"""

LOOP = """
import random
import torch

def lora_init(d, k, r, seed):
    rng = random.Random(seed)
    rows = [[rng.uniform(-(k**-0.5), k**-0.5) for _ in range(k)] for _ in range(r)]
    return torch.tensor(rows), torch.zeros(d, r)

def lora_forward(x, W, bias, A, B, alpha):
    out = torch.matmul(x, W.data.transpose(0, 1))
    if bias is not None:
        out = out + bias.data
    for i in range(A.size(0)):
        out = out + ((x * A[i]).sum(-1, keepdim=True) * B[:, i] * alpha / A.size(0)).to(x.dtype)
    return out.to(x.dtype)
"""

_OUT = "return frozen + change.to(x.dtype)"
_SCALE = "alpha / len(A) *"
MUTANTS = (
    Mutant("zeros", _OUT, "return 0 * (frozen + change)", "zero"),
    Mutant("sign", _OUT, "return -(frozen + change)", "sign"),
    Mutant("base alone", _OUT, "return frozen", "no update"),
    Mutant("update alone", _OUT, "return change", "no base"),
    Mutant("subtracted", _OUT, "return frozen - change", "update subtracted"),
    Mutant("no scale", _SCALE, "", "scale ignored"),
    Mutant("alpha", _SCALE, "alpha *", "alpha not divided"),
    Mutant("1 over r", _SCALE, "1 / len(A) *", "alpha left out"),
    Mutant("r over alpha", _SCALE, "len(A) / alpha *", "scale upside down"),
    Mutant("rsLoRA", _SCALE, "alpha / len(A) ** 0.5 *", "root of the rank"),
    Mutant("over k", _SCALE, "alpha / A.shape[1] *", "not the rank"),
    Mutant("over d", _SCALE, "alpha / len(B) *", "not the rank of B"),
    Mutant("scaled base", _OUT, "return change + alpha / len(A) * frozen", "base scaled"),
    Mutant("no bias", "None if bias is None else bias.detach()", "None", "no bias"),
    Mutant("bias twice", _OUT, "return frozen + change + bias", "bias twice"),
    Mutant("in place", _OUT, "x *= 1.5; return frozen + change", "in place"),
    Mutant("W learns", "W.detach()", "W", "W not frozen"),
    Mutant("bias learns", "else bias.detach()", "else bias", "bias not frozen"),
    Mutant("A detached", "@ A.T", "@ A.detach().T", "A detached"),
    Mutant("B detached", "@ B.T", "@ B.detach().T", "B detached"),
    Mutant("path closed", "F.linear(x, W", "F.linear(x.detach(), W", "base path detached"),
    Mutant("x detached", "frozen = F", "x = x.detach(); frozen = F", "x detached"),
    Mutant("narrow detached", "x.to(A.dtype) @", "x.detach().to(A.dtype) @", "gradient"),
    Mutant("bias needed", "None if bias is None else bias.detach()", "bias.detach()",
           "bias of None"),
    Mutant("matrices only", "x.to(A.dtype) @ A.T", "x.to(A.dtype).mm(A.T)", "leading dimensions"),
    Mutant("one dtype", "x.to(A.dtype)", "x", "mixed dtypes"),
    Mutant("float32 out", "change.to(x.dtype)", "change", "dtype"),
    Mutant("transposed", _OUT, "return (frozen + change).T", "wrong shape"),
    Mutant("no return", _OUT, "frozen + change", "not a tensor"),
    Mutant("B random", "torch.zeros(d, r)", "torch.randn(d, r)", "B not zero"),
    Mutant("zero at the input", "return A, torch.zeros(d, r)",
           "return 0 * A, torch.ones(d, r)", "A zero, B random"),
    Mutant("both zero", "return A,", "return 0 * A,", "both zero"),
    Mutant("seed ignored", "manual_seed(seed)", "manual_seed(7)", "seed ignored"),
    Mutant("not repeatable", ", generator=generator", "", "not repeatable"),
    Mutant("normal", "(2 * torch.rand(r, k, generator=generator) - 1)",
           "torch.randn(r, k, generator=generator)", "too wide"),
    Mutant("root of r", "/ math.sqrt(k)", "/ math.sqrt(r)", "too wide"),
    Mutant("over k, no root", "/ math.sqrt(k)", "/ k", "too narrow"),
    Mutant("from 0", "2 * torch.rand(r, k, generator=generator) - 1",
           "torch.rand(r, k, generator=generator)", "not centred"),
    Mutant("one row", "torch.rand(r, k, generator=generator)",
           "torch.rand(1, k, generator=generator).expand(r, k)", "rows alike"),
    Mutant("A transposed", "return A,", "return A.T,", "wrong shape"),
    Mutant("only A", "return A, torch.zeros(d, r)", "return A", "not a pair"),
)  # fmt: skip

ALTERNATIVES = (MERGED, LOOP)
