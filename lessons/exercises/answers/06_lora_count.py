from course_utils.grading.mutants import Mutant

SETS = """
def product(shape):
    n = 1
    for length in shape:
        n = n * length
    return n

def modules(shapes, names):
    found = set()
    for name in names:
        for parameter in shapes:
            module = parameter[: parameter.rindex(".")]
            if module == name or module.endswith("." + name):
                found.add(module)
    return found

def lora_count(shapes, r, targets, modules_to_save=(), tied=False):
    trained = 0
    for module in modules(shapes, targets):
        for part in ("weight", "bias"):
            shape = shapes.get(module + "." + part, [])
            if len(shape) == 2:
                trained += r * shape[0] + shape[1] * r
    for module in modules(shapes, modules_to_save):
        for parameter in shapes:
            if parameter.rsplit(".", 1)[0] == module:
                trained += product(shapes[parameter])
    everything = trained + sum(product(s) for s in shapes.values())
    if tied:
        everything -= product(shapes["lm_head.weight"])
    return [trained, everything, trained / everything]
"""

TENSORS = """
import re
import torch

def matched(names, parameter):
    module = ".".join(parameter.split(".")[:-1])
    return any(re.search(r"(^|\\.)" + re.escape(name) + "$", module) for name in names)

def lora_count(shapes, r, targets, modules_to_save=(), tied=False):
    parts = []
    frozen = []
    for parameter, shape in shapes.items():
        frozen.append(torch.empty(shape, device="meta").numel())
        if len(shape) == 2 and matched(targets, parameter):
            parts += [r * shape[0], r * shape[1]]
        if matched(modules_to_save, parameter):
            parts.append(frozen[-1])
    total = torch.tensor(frozen + parts).sum()
    if tied:
        total -= torch.empty(shapes["model.embed_tokens.weight"], device="meta").numel()
    trainable = torch.tensor(parts).sum()
    return trainable, total, trainable.double() / total
"""

_RANK = "lora += r * sum(shape)"
_OUT = "return trainable, total, trainable / total"
_RULE = '("." + module).endswith("." + name)'
MUTANTS = (
    Mutant("nothing", _RANK, "lora += 0", "zero"),
    Mutant("all trained", _OUT, "return frozen, total, trainable / total", "everything"),
    Mutant("full matrices", _RANK, "lora += numbers", "full matrices"),
    Mutant("only B", _RANK, "lora += r * shape[0]", "one factor B"),
    Mutant("only A", _RANK, "lora += r * shape[1]", "one factor A"),
    Mutant("no rank", _RANK, "lora += sum(shape)", "rank left out"),
    Mutant("d times k", _RANK, "lora += r * numbers", "product"),
    Mutant("r squared", _RANK, "lora += r * r * sum(shape)", "rank squared"),
    Mutant("biases adapted", " and len(shape) == 2", "", "biases adapted"),
    Mutant("biases trained", " and len(shape) == 2:\n            lora += r * sum(shape)",
           ":\n            lora += r * sum(shape) if len(shape) == 2 else shape[0]",
           "biases trained"),
    Mutant("one layer", "means(targets, parameter) and",
           'means(targets, parameter) and "layers.0." in parameter and', "one layer"),
    Mutant("substring", _RULE, "name in module", "substring"),
    Mutant("no dot", _RULE, "module.endswith(name)", "no dot"),
    Mutant("last part", _RULE, 'module.split(".")[-1] == name', "last part only"),
    Mutant("targets cut", _RULE, 'module.split(".")[-1] == name.split(".")[-1]', "target cut"),
    Mutant("dot needed", _RULE, 'module.endswith("." + name)', "whole name missed"),
    Mutant("twice", _RANK,
           "lora += r * sum(shape) * sum(means([t], parameter) for t in targets)",
           "counted twice"),
    Mutant("saved ignored", "copies += numbers", "copies += 0", "saved ignored"),
    Mutant("saved biases", "copies += numbers", "copies += numbers * (len(shape) > 1)",
           "saved biases"),
    Mutant("tied copies", "copies += numbers",
           'copies += numbers * (not (tied and parameter == "lm_head.weight"))', "tied copies"),
    Mutant("base as total", "total = frozen + trainable", "total = frozen", "adapter left out"),
    Mutant("tied twice", "if not (tied and", "if not (False and", "tied twice"),
    Mutant("head never", "if not (tied and", "if not (True and", "head left out"),
    Mutant("copies replace", "total = frozen + trainable", "total = frozen + lora",
           "saved replaces"),
    Mutant("percent", _OUT, "return trainable, total, 100 * trainable / total", "percent"),
    Mutant("of the base", _OUT, "return trainable, total, trainable / (total - trainable)",
           "of the base"),
    Mutant("upside down", _OUT, "return trainable, total, total / trainable", "upside down"),
    Mutant("frozen share", _OUT, "return trainable, total, 1 - trainable / total",
           "frozen share"),
    Mutant("whole share", _OUT, "return trainable, total, trainable // total", "something else"),
    Mutant("two numbers", _OUT, "return trainable, total", "not three numbers"),
    Mutant("floats", _OUT, "return float(trainable), total, trainable / total", "not whole"),
    Mutant("share in words", _OUT, 'return trainable, total, f"{trainable / total:%}"',
           "share no number"),
    Mutant("keywords only", "targets, modules_to_save=()", "targets, *, modules_to_save=()",
           "arguments"),
)  # fmt: skip

ALTERNATIVES = (SETS, TENSORS)
