from course_utils.grading.mutants import Mutant

TABLE = """
def recipe_memory(linear, other, adapters, recipe, block=64, second_block=256):
    sizes = {"linear": linear, "other": other, "adapters": 0 if recipe == "full" else adapters}
    bits = {"linear": 4 if recipe == "qlora" else 16, "other": 16, "adapters": 16}
    trained = ("linear", "other") if recipe == "full" else ("adapters",)
    GIB = 1024.0**3
    weights = sum(sizes[part] * bits[part] / 8 for part in sizes) / GIB
    scales = linear * (8 + 32 / second_block) / block / 8 / GIB if recipe == "qlora" else 0
    gradients = sum(sizes[part] * 2 for part in trained) / GIB
    optimizer = 4 * gradients
    return dict(weights=weights, scales=scales, gradients=gradients, optimizer=optimizer,
                total=weights + scales + gradients + optimizer)
"""

TENSORS = """
import torch

def recipe_memory(linear, other, adapters, recipe, block=64, second_block=256):
    P, O, R = (torch.tensor(float(n), dtype=torch.float64) / 2**30 for n in (linear, other, adapters))
    if recipe == "full":
        terms = 2 * (P + O), 0 * P, 2 * (P + O), 8 * (P + O)
    elif recipe == "lora":
        terms = 2 * (P + O + R), 0 * P, 2 * R, 8 * R
    else:
        terms = 0.5 * P + 2 * (O + R), P / block + 4 * P / block / second_block, 2 * R, 8 * R
    found = dict(zip(("weights", "scales", "gradients", "optimizer"), terms))
    found["total"] = sum(terms)
    return found
"""

_QLORA = "weights = linear / 2 + 2 * other + 2 * adapters"
_LORA = "weights = 2 * linear + 2 * (other + adapters)"
_FULL = "weights = 2 * (linear + other)\n"
_SCALES = "scales = linear / block + 4 * linear / (block * second_block)"
_STATES = "= 8 * trained  # two moments, four bytes each"
_GIB = "size / 2**30"
MUTANTS = (
    Mutant("zeros", _GIB, "0.0", "zero"),
    Mutant("GB", _GIB, "size / 1e9", "GB"),
    Mutant("bytes", _GIB, "size", "bytes"),
    Mutant("MiB", _GIB, "size / 2**20", "MiB"),
    Mutant("bits", _GIB, "size * 8 / 2**30", "bits"),
    Mutant("fp32 weights", _FULL, "weights = 4 * (linear + other)\n", "fp32 weights"),
    Mutant("adapters in full", _FULL, "weights = 2 * (linear + other + adapters)\n",
           "adapters in full"),
    Mutant("fp32 gradients", "= 2 * trained", "= 4 * trained", "fp32 gradients"),
    Mutant("one moment", _STATES, "= 4 * trained", "half the moments"),
    Mutant("master copy", _STATES, "= 12 * trained", "master copy"),
    Mutant("base trained", "linear + other if recipe == \"full\" else adapters", "linear + other",
           "frozen base trained"),
    Mutant("all trained", "else adapters", "else linear + other + adapters", "base and adapters"),
    Mutant("no gradients", "= 2 * trained", "= 0 * trained", "no gradients"),
    Mutant("adapters weigh nothing", _LORA, "weights = 2 * (linear + other)", "adapters missing"),
    Mutant("no scales in total", "= sum(found.values())", "= sum(found.values()) - scales",
           "scales not in total"),
    Mutant("weights only in total", "= sum(found.values())", "= weights + scales",
           "total of the weights"),
    Mutant("a key", 'found["total"] =', 'found["sum"] =', "not the dict"),
    Mutant("16-bit base", _QLORA, "weights = 2 * (linear + other + adapters)", "16-bit base"),
    Mutant("4-bit embedding", _QLORA, "weights = (linear + other) / 2 + 2 * adapters",
           "all in 4 bits"),
    Mutant("4-bit adapters", _QLORA, "weights = linear / 2 + 2 * other + adapters / 2",
           "adapters in 4 bits"),
    Mutant("4 bytes", _QLORA, "weights = 4 * linear + 2 * other + 2 * adapters", "bytes for bits"),
    Mutant("a byte", _QLORA, "weights = linear + 2 * other + 2 * adapters", "one byte"),
    Mutant("single scales", _SCALES, "scales = 4 * linear / block", "no double quantization"),
    Mutant("no second scales", _SCALES, "scales = linear / block", "second scales missing"),
    Mutant("second of the weights", _SCALES, "scales = linear / block + 4 * linear / second_block",
           "second scales of the weights"),
    Mutant("scales of all", _SCALES,
           "scales = (linear + other) * (1 / block + 4 / (block * second_block))", "scales of all"),
    Mutant("no scales", _SCALES, "scales = 0.0", "no scales"),
    Mutant("defaults", "block=64, second", "block=128, second", "defaults"),
    Mutant("no return", "return {key", "{key", "not the dict"),
    Mutant("hole", "trained = ", "raise NotImplementedError('your code here'); trained = ", "blank"),
)  # fmt: skip

ALTERNATIVES = (TABLE, TENSORS)
