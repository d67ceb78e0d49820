"""Set 01: how many numbers a method trains, and how many the model then has.

    count_parameters(parameters, method, settings) -> (trained, all)

`parameters` is a list of {"name": "layers.0.self_attn.q_proj.weight", "shape": [d, k],
"tied_to": None}; the second name of a tied matrix is an entry with "tied_to", and no new numbers.
"""

from typing import Any

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, show
from course_utils.grading.tasks.set_01._inputs import name_number

Entry = dict[str, Any]
METHODS = ("full", "bitfit", "lora", "houlsby", "prefix", "prompt")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def _model(seed: int, size: int, tied: bool = False, biases: bool = True) -> list[Entry]:
    """A decoder's parameters: keys and values narrower than queries, some biases, odd neighbours.

    No two widths are the same, and none divides a count of another method by chance.
    """
    V, D, kv, F = 101 + 7 * seed, 20 + 2 * size, 6 + size, 45 + 3 * size
    shapes = {
        "self_attn.q_proj": (D + 3, D),
        "self_attn.k_proj": (kv, D),
        "self_attn.v_proj": (kv, D),
        "self_attn.o_proj": (D, D + 3),
        "self_attn.rel_q_proj": (5, D),  # another module: its name only ends alike
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
    }
    found = [_entry("embed_tokens.weight", V, D)]
    for layer in range(2 + size % 3):
        for name, shape in shapes.items():
            found.append(_entry(f"layers.{layer}.{name}.weight", *shape))
            if biases and "mlp" not in name:
                found.append(_entry(f"layers.{layer}.{name}.bias", shape[0]))
        found.append(_entry(f"layers.{layer}.input_layernorm.weight", D))
    found.append(_entry("norm.weight", D))
    head = {**_entry("lm_head.weight", V, D), "tied_to": "embed_tokens.weight" if tied else None}
    return [head, *found] if seed % 2 else [*found, head]


def _entry(name: str, *shape: int) -> Entry:
    return {"name": name, "shape": list(shape), "tied_to": None}


def _settings(method: str, seed: int, size: int) -> dict[str, Any]:
    return {
        "full": {},
        "bitfit": {},
        "lora": {"rank": 2 + size % 3, "targets": ["q_proj", "v_proj", "down_proj"]},
        "houlsby": {"bottleneck": 4 + seed % 3, "targets": ["o_proj", "down_proj"]},
        "prefix": {"length": 3 + size, "targets": ["k_proj", "v_proj"]},
        "prompt": {"length": 5 + size, "targets": ["embed_tokens"]},
    }[method]


def _size(entry: Entry) -> int:
    count = 1
    for n in entry["shape"]:
        count *= n
    return count


def _targeted(parameters: list[Entry], settings: dict[str, Any]) -> list[tuple[int, int]]:
    """(rows, columns) of each weight whose module's own name is among the targets."""
    ends = tuple("." + target + ".weight" for target in settings.get("targets", ()))
    return [tuple(p["shape"]) for p in parameters if ("." + p["name"]).endswith(ends)]


def reference(parameters: list[Entry], method: str, settings: dict[str, Any]) -> tuple[int, int]:
    """(trained, all)."""
    base = sum(_size(p) for p in parameters if p["tied_to"] is None)
    if method == "full":
        return base, base
    if method == "bitfit":
        return sum(_size(p) for p in parameters if p["name"].endswith(".bias")), base
    found = _targeted(parameters, settings)
    if method == "lora":
        new = sum(settings["rank"] * (rows + columns) for rows, columns in found)
    elif method == "houlsby":
        M = settings["bottleneck"]
        new = sum((M + 1) * rows + (rows + 1) * M for rows, _ in found)
    elif method == "prefix":
        new = sum(settings["length"] * rows for rows, _ in found)
    else:
        new = sum(settings["length"] * columns for _, columns in found)
    return new, base + new


Known = dict[str, tuple[int, str]]


def _known(parameters: list[Entry], method: str, settings: dict[str, Any]) -> Known:
    """Mistakes in the trained numbers: what each would give."""
    _, total = reference(parameters, method, settings)
    base = sum(_size(p) for p in parameters if p["tied_to"] is None)
    if method == "full":
        return {"zero": (0, "full fine-tuning trains everything")}
    if method == "bitfit":
        thin = sum(_size(p) for p in parameters if len(p["shape"]) == 1)
        outputs = sum(p["shape"][0] for p in parameters if len(p["shape"]) == 2)
        return {
            "norms counted": (thin, "norms are vectors too, but no biases: go by the name's end"),
            "missing biases": (outputs, "BitFit here trains the biases that exist, not one for "
                               "every matrix"),
            "nothing frozen": (base, "bitfit trains the biases alone"),
        }  # fmt: skip
    frozen = f"{method} leaves the base frozen: only the new numbers train"
    known = {"nothing frozen": (total, frozen)}
    if method == "lora":
        return known | _known_lora(parameters, settings)
    if method == "houlsby":
        return known | _known_houlsby(parameters, settings)
    return known | _known_vectors(parameters, method, settings)


def _loosely(parameters: list[Entry], settings: dict[str, Any]) -> list[tuple[int, int]]:
    """The matrices whose names merely contain a target."""
    matrices = [p for p in parameters if len(p["shape"]) == 2]
    return [tuple(p["shape"]) for p in matrices if any(t in p["name"] for t in settings["targets"])]


def _known_lora(parameters: list[Entry], settings: dict[str, Any]) -> Known:
    found, r = _targeted(parameters, settings), settings["rank"]
    loose, layer = _loosely(parameters, settings), found[: len(settings["targets"])]
    return {
        "substring": (sum(r * (d + k) for d, k in loose), "a module counts whose own name *is* the "
                      "target; yours also takes modules whose name merely contains it"),
        "whole matrices": (sum(d * k for d, k in found), "LoRA trains two thin matrices beside W, "
                           "not W itself"),
        "rank times matrix": (sum(r * d * k for d, k in found), "you take r·d·k: A is (r, k) and B "
                              "is (d, r), their sizes add up"),
        "A alone": (sum(r * k for _, k in found), "B is missing: there are two matrices"),
        "B alone": (sum(r * d for d, _ in found), "A is missing: there are two matrices"),
        "square": (sum(2 * r * d for d, _ in found), "you take d for k: matrices need not be "
                   "square"),
        "one layer": (sum(r * (d + k) for d, k in layer), "you count one layer only"),
    }  # fmt: skip


def _known_houlsby(parameters: list[Entry], settings: dict[str, Any]) -> Known:
    found, M = _targeted(parameters, settings), settings["bottleneck"]
    loose, layer = _loosely(parameters, settings), found[: len(settings["targets"])]
    return {
        "substring": (sum(2 * d * M + d + M for d, _ in loose), "a module counts whose own name "
                      "*is* the target"),
        "no biases": (sum(2 * d * M for d, _ in found), "an adapter's two maps have biases"),
        "one map": (sum(d * M + M for d, _ in found), "an adapter has two maps, down and up"),
        "wrong side": (sum(2 * k * M + k + M for _, k in found), "the adapter stands behind the "
                       "module, so its width is the module's output, not its input"),
        "one layer": (sum(2 * d * M + d + M for d, _ in layer), "you count one layer only"),
    }  # fmt: skip


def _known_vectors(parameters: list[Entry], method: str, settings: dict[str, Any]) -> Known:
    """Of a prefix and of a prompt."""
    found, N = _targeted(parameters, settings), settings["length"]
    sides = [(d, k) if method == "prefix" else (k, d) for d, k in found]  # the right one first
    hidden = next(p["shape"][1] for p in parameters if p["name"] == "embed_tokens.weight")
    widths = [wide for wide, _ in sides]
    return {
        "hidden width": (N * hidden * len(found), "a prefix's vectors are as wide as the module's "
                         "*output*, and keys and values may be narrower than the hidden size"),
        "keys alone": (N * sum(widths[::2]), "a prefix has keys and values"),
        "wrong side": (N * sum(other for _, other in sides), "you take the wrong side of the "
                       "matrix: a shape is (out, in), an embedding's (words, width)"),
        "one layer": (N * sum(widths[: len(settings["targets"])]), "you count one layer only"),
        "per layer twice": (2 * N * sum(widths), "each target is counted twice: k_proj and v_proj "
                            "are two targets already"),
    }  # fmt: skip


def _pair(call: Call, parameters: list[Entry], method: str, settings: dict[str, Any]) -> Any:
    """The two counts, or a Finding."""
    outcome = call(parameters, method, settings)
    value = outcome.value
    if not isinstance(value, tuple | list) or len(value) != 2:
        message = "count_parameters must return two whole numbers: (trained, all)"
        return Finding("not a pair", message, show(value), "a tuple of two ints")
    if list(outcome.arguments) != [parameters, method, settings]:
        return Finding("in place", "your function changes one of its arguments")
    return value


def _compare(
    call: Call, parameters: list[Entry], method: str, settings: dict[str, Any], place: int
) -> Finding | None:
    """The trained numbers (place 0) or all numbers (place 1) against the reference."""
    got = _pair(call, parameters, method, settings)
    if isinstance(got, Finding):
        return got
    expected = reference(parameters, method, settings)
    if place == 0:
        known = _known(parameters, method, settings)
    else:
        known = _known_totals(parameters, method, expected)
    fault = name_number(got[place], expected[place], known)
    if fault:
        what = f"{method}, {'numbers that train' if place == 0 else 'all numbers'}: "
        return Finding(fault.mistake, what + fault.message, fault.got, fault.expected)
    return None


def _known_totals(parameters: list[Entry], method: str, right: tuple[int, int]) -> Known:
    trained, total = right
    twice = sum(_size(p) for p in parameters if p["tied_to"] is not None)
    added = 0 if method in ("full", "bitfit") else trained
    return {
        "tied twice": (total + twice, "a tied matrix has two names and is stored once: count it "
                       "once"),
        "tied never": (total - twice, "a tied matrix is counted under neither of its names; it "
                       "is stored once"),
        "new numbers left out": (total - added, "the method's new numbers belong to the model "
                                 "too"),
        "trained twice": (total + trained, f"{method} trains numbers that the model has already; "
                          "they add nothing to it"),
        "the base left out": (trained, "all numbers are the base's and the new ones"),
    }  # fmt: skip


def check_trained(call: Call, seed: int, size: int) -> list[Finding]:
    """Each method on a model without tied matrices."""
    parameters = _model(seed, size)
    for method in METHODS:
        fault = _compare(call, parameters, method, _settings(method, seed, size), 0)
        if fault:
            return [fault]
    return []


def check_all(call: Call, seed: int, size: int) -> list[Finding]:
    """All numbers, and a head tied to the embedding."""
    for tied in (False, True):
        parameters = _model(seed, size, tied)
        for method in METHODS:
            fault = _compare(call, parameters, method, _settings(method, seed, size), 1)
            if fault:
                return [fault]
    parameters = _model(seed, size, tied=True)
    fault = _compare(call, parameters, "full", {}, 0)
    if fault:
        message = "full, numbers that train: a tied matrix is one matrix, and trains once"
        return [Finding("tied trained twice", message, fault.got, fault.expected)]
    settings = {"rank": 2, "targets": ["lm_head"]}
    fault = _compare(call, parameters, "lora", settings, 0)
    if fault:
        message = (
            "LoRA beside a tied head: W is shared, but the new A and B belong to the head alone, "
            "and train"
        )
        return [Finding("LoRA beside a tied head", message, fault.got, fault.expected)]
    return []


def _edges(seed: int, size: int) -> list[tuple[str, list[Entry], str, dict[str, Any]]]:
    small, plain = _model(seed, size), _model(seed, size, biases=False)
    wide = [
        _entry(f"layers.{i}.mlp.{name}.weight", *shape)
        for i in range(80)
        for name, shape in (("up_proj", (22016 + seed, 8192)), ("down_proj", (8192, 22016 + seed)))
    ]
    wide.append(_entry("norm.weight", 8191))  # odd: not to be had in float32
    nothing: dict[str, Any] = {"rank": 4, "targets": []}
    prompt = {"length": 3, "targets": ["wte"]}
    return [
        ("no targets", small, "lora", nothing),
        ("no targets", small, "houlsby", {"bottleneck": 4, "targets": ["fc2"]}),
        ("no biases to train", plain, "bitfit", {}),
        ("an empty model", [], "full", {}),
        ("another model's names", [_entry("wte.weight", 50 + seed, 12)], "prompt", prompt),
        ("a model of billions", wide, "full", {}),
        ("a model of billions", wide, "lora", {"rank": 64, "targets": ["up_proj", "down_proj"]}),
    ]


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """No targets, no biases, no parameters; billions of them, counted to the last one."""
    for what, parameters, method, settings in _edges(seed, size):
        got = _pair(call, parameters, method, settings)
        expected = reference(parameters, method, settings)
        if isinstance(got, Finding):
            return [Finding(what, f"{what}: {got.message}", got.got, got.expected)]
        for mine, right in zip(got, expected, strict=True):
            fault = name_number(mine, right, {})
            if fault:
                return [Finding(what, f"{what} ({method}): the count is wrong", show(got),
                                str(expected))]  # fmt: skip
    return []


TASK = Task(
    set="01",
    name="trainable-parameters",
    functions=("count_parameters",),
    checks=(
        Check("numbers that train", 2, check_trained),
        Check("all numbers, tied once", 1, check_all),
        Check("edge cases", 1, check_edges),
    ),
)
