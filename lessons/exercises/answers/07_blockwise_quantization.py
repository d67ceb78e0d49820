from course_utils.grading.mutants import Mutant

LOOPS = """
import torch

def quantize_blocks(x, levels, block=64):
    numbers = x.float().reshape(-1)
    codes, scales = [], []
    for start in range(0, len(numbers), block):
        part = numbers[start : start + block]
        scale = part.abs().max()
        scales.append(scale)
        if scale == 0:
            scale = torch.tensor(1.0)
        for number in part:
            codes.append(int((number / scale - levels).abs().argmin()))
    return torch.tensor(codes, dtype=torch.uint8), torch.stack(scales)

def dequantize_blocks(codes, scales, levels, block, shape, dtype="float32"):
    numbers = [float(scales[i // block]) * float(levels[c]) for i, c in enumerate(codes.tolist())]
    return torch.tensor(numbers).view(*shape).to(getattr(torch, dtype))
"""

RECIPROCAL = """
import torch
import torch.nn.functional as F

def _scales(x, block):
    blocks = F.pad(x, (0, -len(x) % block)).unfold(0, block, block)
    return blocks.abs().max(dim=1).values

def quantize_blocks(x, levels, block=64):
    x = x.detach().to(torch.float32).contiguous().view(-1)
    scales = _scales(x, block)
    each = (1 / scales.clamp(min=1e-38))[torch.arange(len(x)) // block]
    distance = ((x * each)[:, None] - levels[None, :]).abs()
    return distance.argmin(dim=1).byte(), scales

def dequantize_blocks(codes, scales, levels, block, shape, dtype="float32"):
    flat = torch.index_select(levels, 0, codes.int())
    for i in range(0, len(flat), block):
        flat[i : i + block] *= scales[i // block]
    return flat.to(dict(float32=torch.float32, bfloat16=torch.bfloat16)[dtype]).view(shape)
"""

_SCALES = "scales = blocks.abs().amax(dim=1)"
_CODES = "codes = torch.bucketize(blocks / safe.unsqueeze(1), borders)"
_PAIR = "return codes.flatten()[: len(flat)].to(torch.uint8), scales"
_BACK = "return (values * own_scale).reshape(shape).to(getattr(torch, dtype))"
MUTANTS = (
    Mutant("zeros", _PAIR, "return (0 * codes.flatten()[: len(flat)]).to(torch.uint8), scales",
           "zero"),
    Mutant("signed maximum", "blocks.abs().amax", "blocks.amax", "signed maximum"),
    Mutant("mean", "blocks.abs().amax", "blocks.abs().mean", "mean"),
    Mutant("one scale", _SCALES, "scales = blocks.abs().amax().repeat(len(blocks))",
           "one scale"),
    Mutant("one scale alone", _SCALES, "scales = blocks.abs().amax().view(1)", "one scale"),
    Mutant("codes by one scale", "safe = ", "safe = scales.max().expand_as(scales); unused = ",
           "one scale"),
    Mutant("level below", "borders = (levels[:-1] + levels[1:]) / 2", "borders = levels[1:]",
           "level below"),
    Mutant("level above", "borders = (levels[:-1] + levels[1:]) / 2", "borders = levels[:-1]",
           "level above"),
    Mutant("not scaled", "blocks / safe.unsqueeze(1)", "blocks", "not scaled"),
    Mutant("multiplied", "blocks / safe", "blocks * safe", "multiplied"),
    Mutant("magnitudes", "blocks / safe", "blocks.abs() / safe", "magnitudes"),
    Mutant("other levels", "borders = (levels",
           "levels = torch.linspace(-1, 1, len(levels)); borders = (levels", "levels ignored"),
    Mutant("other end", _PAIR, "return (15 - codes.flatten()[: len(flat)]).to(torch.uint8), scales",
           "other end"),
    Mutant("padded", "codes.flatten()[: len(flat)].to", "codes.flatten().to", "padded"),
    Mutant("tail dropped", "flat = x.float().flatten()",
           "flat = x.float().flatten(); flat = flat[: len(flat) // block * block]",
           "tail dropped"),
    Mutant("rows", "flat = x.float().flatten()  #",
           "from torch.nn.functional import pad\n"
           "    rows = pad(x.float(), (0, -x.shape[-1] % block)).view(len(x), -1, block)\n"
           "    s = rows.abs().amax(2)\n"
           "    b = (levels[:-1] + levels[1:]) / 2\n"
           "    c = torch.bucketize(rows / s.unsqueeze(2), b).flatten(1)[:, : x.shape[-1]]\n"
           "    return c.flatten().to(torch.uint8), s.flatten()\n    flat = x.flatten()  #",
           "per row"),
    Mutant("long codes", ".to(torch.uint8)", "", "wrong dtype"),
    Mutant("zero block", "torch.where(scales > 0, scales, torch.ones(()))", "scales", "zero block"),
    Mutant("clamped", "torch.where(scales > 0, scales, torch.ones(()))", "scales.clamp(min=1e-8)",
           "tiny"),
    Mutant("half precision", "torch.cat([flat, padding])",
           "torch.cat([flat.to(x.dtype), padding.to(x.dtype)])", "half precision"),
    Mutant("view", "x.float().flatten()", "x.float().view(-1)", "transposed"),
    Mutant("in place", "return codes.fl", "x.zero_()\n    return codes.fl", "in place"),
    Mutant("codes alone", _PAIR, "return codes.flatten()[: len(flat)].to(torch.uint8)",
           "not a tuple"),
    Mutant("back: not scaled", "(values * own_scale)", "values", "not scaled"),
    Mutant("back: divided", "(values * own_scale)", "(values / own_scale)", "divided"),
    Mutant("back: tiled", "scales.repeat_interleave(block)[: len(codes)]",
           "scales.repeat(block)[: len(codes)]", "scales not repeated"),
    Mutant("back: codes as numbers", "values = levels[codes.long()]", "values = codes.float()",
           "codes as numbers"),
    Mutant("back: uint8 index", "levels[codes.long()]", "levels[codes]", "raised"),
    Mutant("back: neighbour's scale", "scales.repeat", "scales.roll(-1).repeat", "next scale"),
    Mutant("back: flat", ".reshape(shape)", "", "shape not restored"),
    Mutant("back: dtype", ".to(getattr(torch, dtype))", "", "dtype not restored"),
    Mutant("back: no return", _BACK, "(values * own_scale)", "not a tensor"),
    Mutant("hole", "flat = x", "raise NotImplementedError('your code here'); flat = x", "blank"),
)  # fmt: skip

ALTERNATIVES = (LOOPS, RECIPROCAL)
