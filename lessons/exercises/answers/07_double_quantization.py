from course_utils.grading.mutants import Mutant

ALONE = """
import math
import torch
import torch.nn.functional as F

def double_quantize(scales, levels, block=256):
    mean = scales.sum() / len(scales)
    rest = F.pad(scales - mean, (0, -len(scales) % block)).reshape(-1, block)
    second = rest.abs().max(1)[0]
    scaled = torch.nan_to_num(rest / second[:, None])
    codes = (scaled.unsqueeze(-1) - levels).abs().argmin(-1)
    return [codes.reshape(-1)[: len(scales)].to(torch.uint8), second, mean]

def restore_scales(codes, second, mean, levels, block=256):
    place = torch.arange(len(codes)) // block
    return mean + second[place] * levels[codes.long()]

def bits_per_parameter(n, block=64, second_block=256, double=True):
    blocks = math.ceil(n / block)
    stored = 8 * math.ceil(n / 2)
    stored += 8 * blocks + 32 * math.ceil(blocks / second_block) + 32 if double else 32 * blocks
    return torch.tensor(stored / n, dtype=torch.float64)
"""

LOOPS = """
import torch

def double_quantize(scales, levels, block=256):
    mean = torch.tensor(sum(scales.tolist()) / len(scales))
    codes, second = [], []
    for start in range(0, len(scales), block):
        part = scales[start : start + block] - mean
        largest = max(float(part.max()), -float(part.min()))
        second.append(largest)
        borders = (levels[:-1] + levels[1:]) / 2
        codes.append(torch.bucketize(part / (largest or 1.0), borders))
    return torch.cat(codes).byte(), torch.tensor(second), mean

def restore_scales(codes, second, mean, levels, block=256):
    parts = [levels[c.long()] * s for c, s in zip(codes.split(block), second)]
    return torch.cat(parts) + mean

def bits_per_parameter(n, block=64, second_block=256, double=True):
    stored, blocks = (n + 1) // 2, (n + block - 1) // block
    if double:
        stored += blocks + 4 + 4 * ((blocks + second_block - 1) // second_block)
    else:
        stored += 4 * blocks
    return stored * 8 / n
"""

_LEVEL = "eight_bit, second = quantize_blocks(scales - mean, levels, block)"
_BITS = "return 8 * (code_bytes + scale_bytes) / n"
_BYTES = """count = -(-n // block)  # blocks
    if not double:
        return 8 * (code_bytes + 4 * count) / n
    scale_bytes = count + 4 * -(-count // second_block) + 4"""
_SCALES = "scale_bytes = count + 4 * -(-count // second_block) + 4"
MUTANTS = (
    Mutant("zeros", "return eight_bit, second, mean", "return eight_bit, 0 * second, mean", "zero"),
    Mutant("mean 0", "mean = scales.mean()", "mean = 0 * scales.mean()", "mean not subtracted"),
    Mutant("minimum", "mean = scales.mean()", "mean = scales.min()", "minimum"),
    Mutant("median", "mean = scales.mean()", "mean = scales.median()", "median"),
    Mutant("mean of blocks", "mean = scales.mean()",
           "mean = torch.stack([s.mean() for s in scales.split(block)])\n"
           "    return quantize_blocks(scales - mean.repeat_interleave(block)[: len(scales)], "
           "levels, block) + (mean,)", "mean of blocks"),
    Mutant("nothing subtracted", "quantize_blocks(scales - mean, levels", "quantize_blocks(scales, "
           "levels", "not centred"),
    Mutant("codes of the raw", _LEVEL, _LEVEL + "\n    r = scales / second.repeat_interleave(block)"
           "[: len(scales)]\n    eight_bit = torch.bucketize(r, (levels[:-1] + levels[1:]) / 2)"
           ".to(torch.uint8)", "codes not centred"),
    Mutant("codes not scaled", _LEVEL, _LEVEL + "\n    eight_bit = torch.bucketize(scales - mean, "
           "(levels[:-1] + levels[1:]) / 2).to(torch.uint8)", "not scaled"),
    Mutant("level below", _LEVEL, _LEVEL + "\n    r = (scales - mean) / second.repeat_interleave("
           "block)[: len(scales)]\n    eight_bit = (torch.bucketize(r, levels, right=True) - 1)"
           ".clamp(0, 255).to(torch.uint8)", "level below"),
    Mutant("no blocks", "scales - mean, levels, block)", "scales - mean, levels, len(scales))",
           "one scale"),
    Mutant("signed", _LEVEL, _LEVEL + "\n    second = torch.stack([s.max() for s in (scales - mean)"
           ".split(block)])", "signed maximum"),
    Mutant("long codes", "return eight_bit,", "return eight_bit.long(),", "wrong dtype"),
    Mutant("in place", "return eight_bit,", "scales.zero_()\n    return eight_bit,", "in place"),
    Mutant("two things", "return eight_bit, second, mean", "return eight_bit, second",
           "not a tuple"),
    Mutant("equal scales", _LEVEL, _LEVEL + "\n    second = second + 0 / second",
           "equal scales"),
    Mutant("back: no mean", "return centred + mean", "return centred", "mean not added"),
    Mutant("back: mean subtracted", "return centred + mean", "return centred - mean",
           "mean subtracted"),
    Mutant("back: not scaled", "return centred + mean", "return levels[codes.long()] + mean",
           "not scaled"),
    Mutant("back: mean scaled", "return centred + mean",
           "return (levels[codes.long()] + mean) * second.repeat_interleave(block)[: len(codes)]",
           "mean scaled"),
    Mutant("back: tiled", "return centred + mean",
           "return levels[codes.long()] * second.repeat(block)[: len(codes)] + mean",
           "scales not repeated"),
    Mutant("bits: double ignored", "if not double", "if True", "double ignored"),
    Mutant("bits: no codes", "code_bytes = -(-n // 2)", "code_bytes = 0", "scales only"),
    Mutant("bits: no scales", _BITS, "return 8 * code_bytes / n", "codes only"),
    Mutant("bits: bytes", _BITS, "return (code_bytes + scale_bytes) / n", "bytes"),
    Mutant("bits: in all", _BITS, "return 8 * (code_bytes + scale_bytes)", "all of them"),
    Mutant("bits: formula", "code_bytes = -(-n // 2)",
           "return 4 + (8 / block + 32 / block / second_block if double else 32 / block)\n"
           "    code_bytes = -(-n // 2)", "formula"),
    Mutant("bits: no mean", "second_block) + 4", "second_block)", "mean missing"),
    Mutant("bits: no second scales", _SCALES, "scale_bytes = count + 4", "second scales missing"),
    Mutant("bits: of the weights", _SCALES, "scale_bytes = count + 4 * -(-n // second_block) + 4",
           "second scales of the weights"),
    Mutant("bits: second of 8", _SCALES, "scale_bytes = count + -(-count // second_block) + 4",
           "second scales of 8 bits"),
    Mutant("bits: scales of 32", _SCALES, "scale_bytes = 4 * count + 4 * -(-count // second_block) "
           "+ 4", "scales of 32 bits"),
    Mutant("bits: rounded down", "count = -(-n // block)  #", "count = n // block  #",
           "rounded down"),
    Mutant("bits: both rounded down", _BYTES, _BYTES.replace("-(-n // block)", "n // block")
           .replace("-(-count // second_block)", "(count // second_block)"), "rounded down twice"),
    Mutant("bits: odd", "-(-n // 2)", "n // 2", "odd code"),
    Mutant("bits: default", "second_block=256, double=True", "second_block=256, double=False",
           "defaults"),
    Mutant("hole", "mean = scales.mean()", "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (ALONE, LOOPS)
