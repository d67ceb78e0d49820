"""Synthetic logs of PPO runs, healthy ones and some with a known mistake in them.

The shapes are those of real runs of the embedded world's model (24 steps of 48 answers), with
scales and noise drawn anew: KL of a run with β about 0.1 saturates at 2-3 nats, without β it climbs
to 18; with the sign turned round to -90; with 20 times the learning rate it stands at 28 after one
step; without a mask it is 170 in the first row, where policy and reference are the same model.
"""

import math
import random

Log = dict[str, list[float]]

FAULTS = ("temperature", "mask", "sign", "learning rate", "per token")
NAMES = ("healthy", *FAULTS)


def log(name: str, draw: random.Random, variant: str = "") -> Log:
    """The log of a run with that mistake (or "healthy"); `variant` makes it a harder case."""
    rows = 4 if "short" in variant else draw.randint(16, 28)
    kl = _kl(name, variant, rows, draw)
    made: Log = {"kl": kl, **_rest(name, variant, kl, draw)}
    if "adaptive" in variant or name == "per token":
        target = _target(name, variant, kl, draw)
        tokens = draw.uniform(16, 30) if name == "per token" else 1.0
        made["beta"] = _controlled(made["beta"][0], kl, target, tokens, draw)
        made["kl_target"] = [target] * rows
    return made


def _kl(name: str, variant: str, rows: int, draw: random.Random) -> list[float]:
    """Nats per answer; 0 in the first row of every run that has its mask and its temperature."""
    noise = [draw.gauss(0, 1) for _ in range(rows)]
    end = draw.uniform(1.8, 3.5)
    slow = [end / (1 + math.exp(-(t - 8) / 2)) * (t > 0) for t in range(rows)]  # an S from 0
    if name == "sign":
        end = draw.uniform(3.0, 6.0) if variant else draw.uniform(20.0, 90.0)
        slow = [-end * (t / rows) ** 1.5 for t in range(rows)]
    elif name == "learning rate":
        top, back = draw.uniform(22, 60), draw.uniform(9, 20)
        jump = (0.0, 2.2, 7.0, top) if variant else (0.0, top, 1.5 * top)
        slow = [jump[t] if t < len(jump) else back + (top - back) * 0.75**t for t in range(rows)]
    elif name == "mask":
        first = draw.uniform(16, 25) if variant else draw.uniform(80, 200)
        slow = [first * (1 + 0.12 * t if t < 5 else 1.6 * 0.85 ** (t - 5)) for t in range(rows)]
    elif name == "temperature":
        slow = [draw.uniform(0.3, 0.8) + 1.2 * value for value in slow]
    elif name == "per token" or variant == "no penalty":
        end = draw.uniform(9.0, 18.0)  # a run that nothing holds: but it takes its time
        slow = [end / (1 + math.exp(-(t - 11) / 1.8)) * (t > 0) for t in range(rows)]
    steady = [s * (1 + 0.06 * e) for s, e in zip(slow, noise, strict=True)]
    if variant == "half precision":  # an estimate may dip below 0 while the policy is near
        return [
            k + 0.03 * e - 0.1 * (t < 4) for t, (k, e) in enumerate(zip(steady, noise, strict=True))
        ]
    return steady


def _target(name: str, variant: str, kl: list[float], draw: random.Random) -> float:
    """Nats: passed by the runaway run, reached by the healthy one, out of reach in some."""
    if name == "per token":
        return max(kl) / draw.uniform(3.0, 6.0)
    if name == "sign":  # its KL never rises above 0
        return draw.uniform(1.0, 4.0)
    return max(kl) * (2.0 if "low" in variant else draw.uniform(0.55, 0.7))


def _controlled(
    beta: float, kl: list[float], target: float, tokens: float, draw: random.Random
) -> list[float]:
    """β of each row: the controller's, fed with each row's KL divided by `tokens`."""
    part = draw.uniform(0.08, 0.2)  # answers / horizon
    betas = [beta]
    for measured in kl[:-1]:
        error = min(max(measured / tokens / target - 1, -0.2), 0.2)
        betas.append(betas[-1] * (1 + error * part))
    return betas


def _rest(name: str, variant: str, kl: list[float], draw: random.Random) -> Log:
    """The other columns, row by row."""
    rows = len(kl)
    tells = name == "temperature"
    ratio = draw.uniform(1.25, 1.8) if tells else 1.0
    jitter = 0.03 if "half" in variant else 1e-5  # rounding: what half precision alone gives
    start, rise = draw.uniform(0.0, 0.4), draw.uniform(0.5, 1.0)
    if name in ("learning rate", "mask"):
        rise = -draw.uniform(0.5, 1.5)
    entropy, fall = draw.uniform(0.2, 0.9), draw.uniform(0.6, 1.0)
    if variant == "certain":
        fall = 0.05  # exploration ends: no mistake in the code
    limit = draw.choice((32.0, 48.0, 64.0))
    cut = 1.0 if variant == "cut answers" else 0.0
    length = draw.uniform(14, 20)
    width = limit if cut or name == "mask" else length
    lost = draw.uniform(0.6, 1.0) if name == "mask" else 0.0  # it forgets how to stop
    clipped = draw.uniform(0.1, 0.2) if name in ("learning rate", "mask") else 0.01
    made: Log = {n: [] for n in (
        "reward", "beta", "entropy", "ratio_first_max", "clip_fraction", "completion_tokens",
        "eos_rate",
    )}  # fmt: skip
    beta = 0.0 if variant == "no penalty" else draw.uniform(0.02, 0.2)
    for t in range(rows):
        done = t / (rows - 1)
        made["reward"].append(start + rise * math.sqrt(done) + draw.gauss(0, 0.08))
        made["beta"].append(beta)
        made["entropy"].append(entropy * fall**done + draw.gauss(0, 0.004))
        made["ratio_first_max"].append(ratio * (1 + jitter * draw.uniform(0.1, 1.0)))
        made["clip_fraction"].append(clipped * draw.uniform(0.6, 1.3) + 0.06 * tells)
        noise = 0.0 if width == limit else draw.gauss(0, 0.8)
        made["completion_tokens"].append(width + noise + (width < limit) * 4 * done)
        made["eos_rate"].append(max(0.0, 1.0 - cut - lost * done))
    if variant:
        made["seconds"] = [draw.uniform(0.5, 0.8) for _ in range(rows)]  # a real log has more
    return made
