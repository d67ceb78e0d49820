from course_utils.grading.mutants import Mutant

BY_METHOD = """
def size(shape):
    return shape[0] * (size(shape[1:]) if len(shape) > 1 else 1) if shape else 1

def lora(shape, s):
    return s["rank"] * sum(shape)

def houlsby(shape, s):
    width, M = shape[0], s["bottleneck"]
    return width * M + M + M * width + width

def prefix(shape, s):
    return s["length"] * shape[0]

def prompt(shape, s):
    return s["length"] * shape[1]

NEW = {"lora": 1, "houlsby": 2, "prefix": 3, "prompt": 4}

def count_parameters(parameters, method, settings):
    base = trained = new = 0
    for entry in parameters:
        module, _, kind = entry["name"].rpartition(".")
        n = size(entry["shape"]) if not entry["tied_to"] else 0
        base += n
        trained += n if method == "full" or (method == "bitfit" and kind == "bias") else 0
        if kind == "weight" and module.rpartition(".")[2] in settings.get("targets", []):
            way = [lora, houlsby, prefix, prompt][NEW[method] - 1]
            new += way(entry["shape"], settings)
    return trained + new, base + new
"""

WITH_TORCH = """
import torch

def count_parameters(parameters, method, settings):
    with torch.device("meta"):  # real modules that take no memory
        own = {p["name"]: torch.empty(p["shape"]) for p in parameters if p["tied_to"] is None}
        parts = []
        for p in parameters:
            path = p["name"].split(".")
            if path[-1] != "weight" or path[-2] not in settings.get("targets", ()):
                continue
            d, k = p["shape"]
            if method == "lora":
                r = settings["rank"]
                parts += [torch.nn.Linear(k, r, bias=False), torch.nn.Linear(r, d, bias=False)]
            elif method == "houlsby":
                M = settings["bottleneck"]
                parts += [torch.nn.Linear(d, M), torch.nn.Linear(M, d)]
            else:
                wide = d if method == "prefix" else k
                parts.append(torch.nn.Embedding(settings["length"], wide))
    base = {name: t.numel() for name, t in own.items()}
    new = sum(t.numel() for part in parts for t in part.parameters())
    chosen = {"full": base, "bitfit": [name for name in base if name.endswith(".bias")]}
    return sum(base[name] for name in chosen.get(method, ())) + new, sum(base.values()) + new
"""

_TIED = 'own = [p for p in parameters if p["tied_to"] is None]'
_LORA = 'new = sum(settings["rank"] * (d + k) for d, k in found)'
_MATCH = 'if p["name"].split(".")[-2:] in names'
_HOULSBY = "new = sum(2 * d * M + d + M for d, _ in found)"
_PREFIX = 'new = sum(settings["length"] * d for d, _ in found)'
_PROMPT = 'new = sum(settings["length"] * k for _, k in found)'
_END = "return new, base + new"
_BITFIT = 'if p["name"].endswith(".bias")'
MUTANTS = (
    Mutant("zeros", 'if method == "full":', "if True:\n        return 0, 0\n    if False:", "zero"),
    Mutant("full for all", 'if method == "full":', "if True:", "nothing frozen"),
    Mutant("base trains too", _END, "return base + new, base + new", "nothing frozen"),
    Mutant("tied twice", _TIED, "own = parameters", "tied twice"),
    Mutant("tied never", _TIED, _TIED[:-1] + ' and p["name"] not in [q["tied_to"] for q in '
           "parameters]]", "tied never"),
    Mutant("tied trained twice", "return base, base",
           'return sum(math.prod(p["shape"]) for p in parameters), base', "tied trained twice"),
    Mutant("no LoRA beside a tied head", 'for p in parameters if p["name"].split', "for p in own "
           'if p["name"].split', "LoRA beside a tied head"),
    Mutant("new left out", _END, "return new, base", "new numbers left out"),
    Mutant("base left out", _END, "return new, new", "the base left out"),
    Mutant("BitFit adds biases", "return trained, base", "return trained, base + trained",
           "trained twice"),
    Mutant("vectors are biases", _BITFIT, 'if len(p["shape"]) == 1', "norms counted"),
    Mutant("missing biases", 'sum(math.prod(p["shape"]) for p in own ' + _BITFIT + ")",
           'sum(p["shape"][0] for p in own if len(p["shape"]) == 2)', "missing biases"),
    Mutant("substring", _MATCH, 'if len(p["shape"]) == 2 and any(t in p["name"] for t in '
           'settings["targets"])', "substring"),
    Mutant("whole matrices", _LORA, "new = sum(d * k for d, k in found)", "whole matrices"),
    Mutant("r d k", _LORA, 'new = sum(settings["rank"] * d * k for d, k in found)',
           "rank times matrix"),
    Mutant("A alone", _LORA, 'new = sum(settings["rank"] * k for d, k in found)', "A alone"),
    Mutant("B alone", _LORA, 'new = sum(settings["rank"] * d for d, k in found)', "B alone"),
    Mutant("square", _LORA, 'new = sum(settings["rank"] * 2 * d for d, k in found)', "square"),
    Mutant("one layer", _MATCH, 'if ".1." not in p["name"] and ".2." not in p["name"] and '
           '".3." not in p["name"] and p["name"].split(".")[-2:] in names', "one layer"),
    Mutant("adapter without biases", _HOULSBY, "new = sum(2 * d * M for d, _ in found)",
           "no biases"),
    Mutant("down alone", _HOULSBY, "new = sum(d * M + M for d, _ in found)", "one map"),
    Mutant("adapter in front", _HOULSBY, "new = sum(2 * k * M + k + M for _, k in found)",
           "wrong side"),
    Mutant("prefix of hidden width", _PREFIX, 'new = sum(settings["length"] * k for d, k in found)',
           "hidden width"),
    Mutant("keys alone", _PREFIX, _PREFIX + " // 2", "keys alone"),
    Mutant("prefix twice", _PREFIX, "new = 2 * " + _PREFIX[6:], "per layer twice"),
    Mutant("prompt of V", _PROMPT, 'new = sum(settings["length"] * d for d, _ in found)',
           "wrong side"),
    Mutant("float", _END, "return new, (base + new) / 1", "not a whole number"),
    Mutant("share in percent", _END, "return 100 * new / (base + new)", "not a pair"),
    Mutant("in place", _TIED, _TIED + '; settings["counted"] = True', "in place"),
    Mutant("float32", _END, "import torch; return new, int(torch.tensor(float(base + new), "
           "dtype=torch.float32))", "a model of billions"),
    Mutant("at least one target", _END, "return new or base, base + new", "no targets"),
    Mutant("hole", _TIED, "raise NotImplementedError('your code here')", "blank"),
)  # fmt: skip

ALTERNATIVES = (BY_METHOD, WITH_TORCH)
