"""Set 01: attention with a prefix, over padded rows.

    prefix_attention(q, k, v (B, H, T, d), prefix_k, prefix_v (H, N, d), mask (B, T))
        -> (B, H, T, d)

Every query sees the whole prefix and, of the text, the real tokens up to its own (Li and Liang
2021; He et al. 2022, equation 7). A query that sees nothing (N = 0, padding before it) gives 0.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call, Failed
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_01._inputs import is_near

NAMES = ("q", "k", "v", "prefix_k", "prefix_v", "mask")
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _inputs(seed: int, size: int, N: int | None = None) -> Inputs:
    """Rows with padding before the text, after it, and none."""
    generator = torch.Generator().manual_seed(seed)
    B, H, T, d = 3 + size % 2, 2 + size % 2, 5 + size % 8, 3 + size % 4
    N = 2 + size % 3 if N is None else N
    shapes = ((B, H, T, d),) * 3 + ((H, N, d),) * 2
    q, k, v, prefix_k, prefix_v = (torch.randn(s, generator=generator) for s in shapes)
    mask = torch.ones(B, T, dtype=torch.long)
    mask[0, : 1 + size % 3] = 0
    mask[1, T - 2 :] = 0
    return 1.5 * q, k, v, prefix_k, prefix_v, mask


def _causal(mask: Tensor) -> Tensor:
    """What a query may see of the text: (B, T queries, T keys)."""
    T = mask.shape[1]
    places = torch.arange(T)
    return (places[None, :] <= places[:, None]) & mask.bool()[:, None, :]


def _widened(text: Tensor, N: int) -> Tensor:
    """(B, T, T) of the text -> (B, T, N + T) with the prefix in front, in sight of all."""
    return torch.cat([text.new_ones(*text.shape[:2], N), text], dim=2)


def _scores(q: Tensor, k: Tensor, prefix_k: Tensor, scale: float | None = None) -> Tensor:
    """(B, H, T, N + T) in float64."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    to_prefix = torch.einsum("bhtd,hnd->bhtn", q.double(), prefix_k.double())
    to_text = torch.einsum("bhtd,bhsd->bhts", q.double(), k.double())
    return torch.cat([to_prefix, to_text], dim=3) * scale


def _mixed(weights: Tensor, v: Tensor, prefix_v: Tensor) -> Tensor:
    N = prefix_v.shape[1]
    from_prefix = torch.einsum("bhtn,hnd->bhtd", weights[..., :N], prefix_v.double())
    return from_prefix + torch.einsum("bhts,bhsd->bhtd", weights[..., N:], v.double())


def _softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Over the keys seen, (B, T, N + T); zeros where none is."""
    none = torch.tensor(-torch.inf, dtype=scores.dtype)
    scores = torch.where(seen[:, None], scores, none)
    top = scores.amax(dim=-1, keepdim=True).clamp(min=-1e300)  # a row that sees nothing has -inf
    powers = (scores - top).exp()
    return powers / powers.sum(dim=-1, keepdim=True).clamp(min=1e-300)


def reference(
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, mask: Tensor
) -> Tensor:
    """The output in float64."""
    seen = _widened(_causal(mask), prefix_k.shape[1])
    return _mixed(_softmax(_scores(q, k, prefix_k), seen), v, prefix_v)


def _known(given: Inputs) -> dict[str, tuple[Tensor, str]]:
    """The values of the known mistakes: all of them computed from the same inputs."""
    q, k, v, prefix_k, prefix_v, mask = given
    N, T, d = prefix_k.shape[1], q.shape[2], q.shape[3]
    text, real = _causal(mask), mask.bool()[:, None, :].expand(-1, T, -1)
    seen, scores = _widened(text, N), _scores(q, k, prefix_k)
    right = _softmax(scores, seen)

    def over(seen: Tensor) -> Tensor:
        return _mixed(_softmax(scores, seen), v, prefix_v)

    def scaled(scale: float) -> Tensor:
        return _mixed(_softmax(_scores(q, k, prefix_k, scale), seen), v, prefix_v)

    square = torch.ones(T, N + T, dtype=torch.bool).tril().expand(len(mask), -1, -1)
    top_left = square & _widened(real, N)
    strict = text & ~torch.eye(T, dtype=torch.bool)
    no_prefix = torch.cat([torch.zeros_like(seen[..., :N]), text], dim=2)
    only_prefix = torch.cat([torch.ones_like(seen[..., :N]), torch.zeros_like(text)], dim=2)
    unmasked = scores.softmax(dim=-1)
    return {
        "zero": (over(seen) * 0, "your output is 0 whatever comes in"),
        "no prefix": (over(no_prefix), "the prefix has no effect: its keys are left out or masked"),
        "prefix masked causally": (over(top_left), "the causal mask counts the prefix as text, so "
                                   "early queries see only its beginning; every query sees all N, "
                                   "and the text's columns start at N"),
        "is_causal": (over(square), "padding is seen, and the causal mask counts the prefix as "
                      "text, as `is_causal=True` does: build the mask yourself, the text's columns "
                      "from N on"),
        "not causal": (over(_widened(real, N)), "queries see the tokens after them: the causal "
                       "mask is missing"),
        "no padding mask": (over(_widened(_causal(torch.ones_like(mask)), N)), "padding is seen as "
                            "if it were text: `mask` is not used"),
        "own token hidden": (over(_widened(strict, N)), "a query does not see its own token: it "
                             "sees all keys up to its own place, that one included"),
        "no mask": (over(torch.ones_like(seen)), "nothing is masked, neither the future nor the "
                    "padding"),
        "no scale": (scaled(1.0), "the scores are not divided by √d"),
        "scale d": (scaled(1 / d), "the scores are divided by d; divide by √d, once"),
        "scale of all heads": (scaled((q.shape[1] * d) ** -0.5), "the scores are divided by the "
                               "root of all heads' features; d is one head's"),
        "swapped": (_mixed(_softmax(_scores(q, k, prefix_v), seen), v, prefix_k), "prefix_k is "
                    "used as values and prefix_v as keys"),
        "two softmaxes": (over(no_prefix) + over(only_prefix), "text and prefix each have a "
                          "softmax of their own; they share one, so that all weights sum to 1"),
        "half and half": ((over(no_prefix) + over(only_prefix)) / 2, "text and prefix are averaged "
                          "in equal parts; how much the prefix gets is up to the one softmax"),
        "masked to 0": (_mixed((scores * seen[:, None]).softmax(dim=-1), v, prefix_v), "masked "
                        "scores are set to 0, and exp(0) = 1 still counts; they must go to -inf"),
        "masked after softmax": (_mixed(unmasked * seen[:, None], v, prefix_v), "the mask comes "
                                 "after the softmax, so the weights no longer sum to 1"),
        "wrong axis": (_mixed(seen[:, None] * torch.where(seen[:, None], scores, -1e30).softmax(2),
                              v, prefix_v), "your softmax runs over the queries; for each query "
                       "it must run over the keys"),
        "values added": (_mixed(right, v, prefix_v) + v.double(), "v is added to the result: the "
                         "residual sum is the layer's affair, not attention's"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Queries of real tokens, then those at padding, and that the inputs are left alone."""
    given = _inputs(seed, size)
    real = given[5].bool()[:, None, :].expand(given[0].shape[:3])  # (B, H, T)
    expected, outcome = reference(*given), call(*given)
    got = outcome.value
    fault = wrong_type(got, tuple(given[0].shape))
    if not fault:
        known = {name: (value[real], said) for name, (value, said) in _known(given).items()}
        fault = name_mistake(got[real], expected[real], known)
    if not fault and not is_close(got, expected):
        message = (
            "queries of real tokens are right, those at padding are not: padding decides which "
            "keys are seen, every query gets its output"
        )
        shown = show(got[~real].norm()), show(expected[~real].norm())
        fault = Finding("queries at padding", message, *shown)
    fault = fault or changed(NAMES, given, outcome.arguments)
    return [fault] if fault else []


def _large(seed: int, size: int) -> Inputs:
    """Scores of up to 320,000 that float32 holds exactly: whole numbers, and √d = 2.

    In the first two rows, which have padding, all of them are below -20,000: there a hidden key
    whose score is a mere -10,000 takes everything.
    """
    generator = torch.Generator().manual_seed(seed)
    q, _, v, prefix_k, prefix_v, mask = _inputs(seed, size)
    B, H, T, _ = q.shape

    def whole(*shape: int) -> Tensor:
        return torch.randint(100, 401, (*shape, 4), generator=generator).float()

    def signs() -> Tensor:
        drawn = torch.randint(2, (B, H, T, 4), generator=generator).float() * 2 - 1
        drawn[:2] = 1
        return drawn

    values = [torch.randn(*t.shape[:-1], 4, generator=generator) for t in (v, prefix_v)]
    queries, keys = whole(B, H, T) * signs(), -whole(B, H, T) * signs()
    return queries, keys, values[0], -whole(H, prefix_k.shape[1]), values[1], mask


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Large scores, half precision, one token, rows of padding alone, no prefix."""
    given = _large(seed, size)
    got, expected = call(*given).value, reference(*given)
    fault = wrong_type(got, tuple(given[0].shape))
    if fault:
        return [fault]
    if not got.isfinite().all():
        message = "large scores give NaN or infinity: use torch.softmax, not exp over a sum"
        return [Finding("unstable", message)]
    if not is_close(got, expected):
        message = "scores may reach ten thousand and more: what is masked must get -inf, not a "
        return [Finding("weak mask", message + "large negative number that a score can outweigh")]
    for dtype in (torch.bfloat16, torch.float16):
        *floats, mask = _inputs(seed, size)
        half = [t.to(dtype) for t in floats]
        wanted = reference(half[0], half[1], half[2], half[3], half[4], mask)
        message = f"with {dtype} tensors it must work too and give {dtype}"
        try:
            got = call(*half, mask).value
        except Failed as failure:
            return [Finding("half precision", f"{message}: {failure.message}"[:350])]
        if not isinstance(got, Tensor) or got.dtype != dtype or not is_near(got, wanted, 0.03):
            return [Finding("half precision", message, show(got), f"a {dtype} tensor")]
    return _empty_rows(call, seed, size)


def _empty_rows(call: Call, seed: int, size: int) -> list[Finding]:
    q, k, v, prefix_k, prefix_v, mask = _inputs(seed, size)
    none = torch.zeros_like(mask)
    one = (q[:, :, :1], k[:, :, :1], v[:, :, :1], prefix_k, prefix_v, mask[:, :1])
    for given, what in (
        ((q, k, v, prefix_k, prefix_v, none), "rows of padding alone see the prefix alone"),
        (one, "a text of one token sees the prefix and itself"),
    ):
        got = call(*given).value
        if not isinstance(got, Tensor) or not is_close(got, reference(*given)):
            return [Finding("empty rows", f"{what}: your output is another one")]
    given = _inputs(seed, size, N=0)
    message = "with N = 0 it must be plain causal attention, and 0 for a query that sees no key"
    try:
        got = call(*given).value
    except Failed as failure:
        return [Finding("nothing to see", f"{message}: {failure.message}"[:350])]
    if not isinstance(got, Tensor) or not is_close(got, reference(*given)):
        return [Finding("nothing to see", message, show(got))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """By queries, keys and values, and by the prefix, which is what trains."""
    given = _inputs(seed, size)
    leaves = [t.clone().requires_grad_(True) for t in given[:5]]
    value = reference(leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], given[5])
    expected = torch.autograd.grad(value.sum(), leaves)
    gradients = call(*given, wrt=(0, 1, 2, 3, 4)).gradients
    for name, got in zip(NAMES[:5], gradients, strict=True):
        if got is None:
            message = f"no gradient reaches {name}: something is detached, or under no_grad"
            return [Finding("detached", message)]
    for name, got, right in zip(NAMES[:5], gradients, expected, strict=True):
        if not isinstance(got, Tensor) or not is_close(got, right):
            message = f"the gradient by {name} is wrong"
            return [Finding("gradient", message, show(got), show(right))]
    return []


TASK = Task(
    set="01",
    name="prefix-attention",
    functions=("prefix_attention",),
    checks=(
        Check("value", 2, check_value),
        Check("extreme inputs", 2, check_extremes),
        Check("gradient", 1, check_gradient),
    ),
)
