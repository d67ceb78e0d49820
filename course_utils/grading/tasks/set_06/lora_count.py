"""Set 06: how many numbers a LoRA config trains, of how many.

    lora_count(shapes, r, targets, modules_to_save=(), tied=False) -> trainable, total, share

`shapes` is a state dict's: parameter name -> shape. The rules are PEFT's: a name in `targets` means
the module of that name, or those whose name ends in "." + name; a saved module is trained as a
full copy beside the frozen original; two tied weights are one.
"""

from typing import Any

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, attempt, name_mistake, show
from course_utils.grading.tasks.set_06._inputs import Draw, whole_number

Shapes = dict[str, list[int]]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _model(seed: int, size: int) -> tuple[Shapes, int]:
    """Names and shapes of a small decoder with biases on q, and a rank."""
    draw = Draw(seed)
    D, V = 6 + 2 * size + draw.whole(0, 3), 50 + 3 * size
    F = 4 * D + 1 + draw.whole(0, 4)
    K = D // 2  # the width of grouped keys and values
    shapes: Shapes = {EMBEDDING: [V, D]}
    for layer in range(2 + size % 3):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": [D, D], f"{at}self_attn.q_proj.bias": [D],
            f"{at}self_attn.v_proj.weight": [K, D], f"{at}self_attn.v_proj.bias": [K],
            f"{at}self_attn.o_proj.weight": [D, D],
            f"{at}cross_attn.q_proj.weight": [D, D + 1], f"{at}cross_attn.q_proj.bias": [D],
            f"{at}mlp.gate_up_proj.weight": [2 * F, D], f"{at}mlp.up_proj.weight": [F + 1, D],
            f"{at}mlp.up_proj_gate.weight": [1, D], f"{at}mlp.down_proj.weight": [D, F],
            f"{at}input_layernorm.weight": [D],
        }  # fmt: skip
    shapes |= {"model.norm.weight": [D], HEAD: [V, D]}
    return shapes, 5 + draw.whole(0, 3)  # never the number of layers


def _size(shape: list[int]) -> int:
    n = 1
    for length in shape:
        n *= length
    return n


def _matched(shapes: Shapes, names: Any) -> list[str]:
    """The parameters of the modules that these names mean, each once."""
    found = []
    for name in shapes:
        parts = name.split(".")[:-1]
        ends = {".".join(parts[i:]) for i in range(len(parts))}
        if ends & set(names):
            found.append(name)
    return found


def _expected(
    shapes: Shapes, r: int, targets: Any, saved: Any = (), tied: bool = False
) -> dict[str, int]:
    adapted = [shapes[n] for n in _matched(shapes, targets) if len(shapes[n]) == 2]
    base = sum(map(_size, shapes.values())) - (_size(shapes[HEAD]) if tied else 0)
    lora = sum(r * (d + k) for d, k in adapted)
    copies = sum(_size(shapes[n]) for n in _matched(shapes, saved))
    return {"lora": lora, "copies": copies, "base": base, "total": base + lora + copies,
            "d": sum(r * d for d, _ in adapted), "k": sum(r * k for _, k in adapted),
            "full": sum(d * k for d, k in adapted)}  # fmt: skip


def _read(value: Any) -> Finding | tuple[int, int, float]:
    """The three numbers, or what is wrong with them."""
    wanted = "trainable, total, share"
    if not isinstance(value, list | tuple) or len(value) != 3:
        return Finding("not three numbers", f"return three numbers: {wanted}", show(value), wanted)
    whole = [whole_number(v) for v in value[:2]]
    share = value[2].item() if isinstance(value[2], Tensor) and value[2].numel() == 1 else value[2]
    if whole[0] is None or whole[1] is None:
        message = "trainable and total are counts: whole numbers (int)"
        return Finding("not whole", message, f"{show(value[0])} and {show(value[1])}", "two ints")
    if isinstance(share, bool) or not isinstance(share, int | float):
        return Finding("share no number", "the share must be a number", show(share), "a float")
    return whole[0], whole[1], float(share)


def _compare(
    got: float, right: float, known: dict[str, tuple[float, str]], rtol: float = 1e-12
) -> list[Finding]:
    def tensor(number: float) -> Tensor:
        return torch.tensor(float(number), dtype=torch.float64)

    table = {name: (tensor(value), message) for name, (value, message) in known.items()}
    fault = name_mistake(tensor(got), tensor(right), table, rtol)
    if fault and fault.mistake == "something else":
        fault = Finding(fault.mistake, fault.message, f"{got:.12g}", f"{right:.12g}")
    return [fault] if fault else []


def check_trainable(call: Call, seed: int, size: int) -> list[Finding]:
    """Plain targets, nothing saved: Σ r (d + k)."""
    shapes, r = _model(seed, size)
    targets = ["v_proj", "down_proj"]
    read = _read(call(shapes, r, targets).value)
    if isinstance(read, Finding):
        return [read]
    n = _expected(shapes, r, targets)
    biases = sum(_size(shapes[p]) for p in _matched(shapes, targets) if len(shapes[p]) == 1)
    layers = sum("v_proj.weight" in p for p in shapes)
    return _compare(read[0], n["lora"], {
        "zero": (0, "nothing is counted; which names in `shapes` belong to the targets?"),
        "everything": (n["base"], "all weights are counted; LoRA trains A and B only"),
        "full matrices": (n["full"], "these are the target weights themselves, which are frozen; "
                          "count A and B"),
        "one factor B": (n["d"], "only B is counted: A has r·k numbers as well"),
        "one factor A": (n["k"], "only A is counted: B has d·r numbers as well"),
        "rank left out": (n["lora"] // r, "the rank is missing"),
        "product": (r * n["full"], "A and B have r·k and d·r numbers: these add up, d and k are "
                    "not multiplied"),
        "rank squared": (r * n["lora"], "the rank counts twice"),
        "biases trained": (n["lora"] + biases, "the targets' biases are counted; LoRA leaves them "
                           "frozen"),
        "biases adapted": (n["lora"] + r * biases, "a bias has one dimension: no A and B on it"),
        "one layer": (n["lora"] // layers, "every layer has the target modules, not one alone"),
    })  # fmt: skip


def check_names(call: Call, seed: int, size: int) -> list[Finding]:
    """Which modules the targets mean."""
    shapes, r = _model(seed, size)

    def count(chosen: list[str]) -> int:
        return sum(r * sum(shapes[n]) for n in chosen if len(shapes[n]) == 2)

    targets = ["up_proj", "self_attn.q_proj"]
    modules = {name: name.removesuffix(".weight") for name in shapes}
    within = [n for n, m in modules.items() if any(t in m for t in targets)]
    ending = [n for n, m in modules.items() if m.endswith(tuple(targets))]
    last = [n for n, m in modules.items() if m.split(".")[-1] in targets]
    tails = [n for n, m in modules.items() if m.split(".")[-1] in ("up_proj", "q_proj")]
    whole = [n for n, m in modules.items() if m in targets]
    read = _read(call(shapes, r, targets).value)
    if isinstance(read, Finding):
        return [read]
    found = _compare(read[0], _expected(shapes, r, targets)["lora"], {
        "substring": (count(within), "a target also counts in the middle of a name: 'up_proj' is "
                      "not 'up_proj_gate'"),
        "no dot": (count(ending), "a target's name must begin after a dot: 'up_proj' is not "
                   "'gate_up_proj'"),
        "last part only": (count(last), "a target may have dots of its own, as "
                           "'self_attn.q_proj' has"),
        "target cut": (count(tails), "'self_attn.q_proj' does not mean 'cross_attn.q_proj'"),
        "whole names only": (count(whole), "a target may be the end of a module's name"),
    })  # fmt: skip
    if found:
        return found
    targets = ["q_proj", "self_attn.q_proj", "lm_head"]
    read = _read(call(shapes, r, targets).value)
    if isinstance(read, Finding):
        return [read]
    right = _expected(shapes, r, targets)["lora"]
    twice = _expected(shapes, r, ["self_attn.q_proj"])["lora"]
    return _compare(read[0], right, {
        "counted twice": (right + twice, "two targets may mean the same module; it has one LoRA"),
        "whole name missed": (_expected(shapes, r, targets[:2])["lora"], "'lm_head' is a module's "
                              "whole name: there is no dot before it"),
    })  # fmt: skip


def check_share(call: Call, seed: int, size: int) -> list[Finding]:
    """Tied weights and saved modules: trainable, total and the share."""
    shapes, r = _model(seed, size)
    targets = ["q_proj", "o_proj"]
    for saved, tied in (([], True), ([], False), (["embed_tokens", "v_proj"], False),
                        (["embed_tokens", "lm_head"], True)):  # fmt: skip
        message = "modules_to_save and tied must be allowed"
        outcome = attempt(call, "arguments", message, shapes, r, targets, saved, tied)
        read = outcome if isinstance(outcome, Finding) else _read(outcome.value)
        if isinstance(read, Finding):
            return [read]
        n = _expected(shapes, r, targets, saved, tied)
        found = _check_numbers(read, n, shapes, saved, tied)
        if found:
            return found
    return []


def _check_numbers(
    read: tuple[int, int, float], n: dict[str, int], shapes: Shapes, saved: list[str], tied: bool
) -> list[Finding]:
    trainable, total, head = n["lora"] + n["copies"], n["total"], _size(shapes[HEAD])
    weights = sum(_size(shapes[p]) for p in _matched(shapes, saved) if p.endswith("weight"))
    once = n["copies"] - head if tied and saved else n["copies"]
    found = _compare(read[0], trainable, {
        "saved ignored": (n["lora"], "modules_to_save are trained in full; count them"),
        "saved biases": (n["lora"] + weights, "a saved module is trained with its bias"),
        "tied copies": (n["lora"] + once, "each saved module gets a copy of its own, even if the "
                        "two were tied"),
    }) or _compare(read[1], total, {
        "adapter left out": (n["base"], "A, B and the saved copies are in the model as well: they "
                             "belong to the total"),
        "tied twice": (total + head, "lm_head is tied to the embedding: one weight, counted once"),
        "head left out": (total - head, "lm_head is not tied here: its weight counts too"),
        "saved replaces": (n["base"] + n["lora"], "a saved module is a copy beside the frozen "
                           "original; both are in the model"),
    })  # fmt: skip
    return found or _compare(read[2], trainable / total, {
        "percent": (100 * trainable / total, "the share is a fraction between 0 and 1, not %"),
        "of the base": (trainable / n["base"], "the share is of all numbers, those of the adapter "
                        "included"),
        "of the frozen": (trainable / (total - trainable), "the share is of all numbers, not of "
                          "the frozen ones"),
        "upside down": (total / trainable, "the share is upside down"),
        "frozen share": (1 - trainable / total, "this is the frozen share"),
    }, rtol=1e-6)  # fmt: skip


TASK = Task(
    set="06",
    name="lora-count",
    functions=("lora_count",),
    checks=(
        Check("trainable", 2, check_trainable),
        Check("which modules", 1, check_names),
        Check("total and share", 1, check_share),
    ),
)
