"""What a stage cost: wall-clock and CPU seconds, tokens, FLOPs, peak memory.

FLOPs are counted, not measured: a forward pass costs about 2N per token (a multiply and an add for
each of the N weights), the backward pass twice that, so 6N per trained token (Kaplan et al. 2020,
§2.1).
Attention's own T-dependent term is left out; it is T / (6 D) of the rest, 4% at T = 32, D = 128.
"""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def matmul_parameters(model: "torch.nn.Module") -> int:
    """N: the weights that every token is multiplied with.

    The input embedding is a look-up and costs nothing, unless it is tied to the output layer: then
    the shared weights are counted once, for the output. Frozen weights count too.
    """
    total = sum({id(p): p.numel() for p in model.parameters()}.values())
    inputs = getattr(model, "get_input_embeddings", lambda: None)()
    if inputs is None:
        return total
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    tied = outputs is not None and outputs.weight is inputs.weight
    return total if tied else total - inputs.weight.numel()


def forward_flops(parameters: int, tokens: float) -> float:
    """2N per token: scoring, or generating one token with a KV cache (prompt tokens count too)."""
    return 2.0 * parameters * tokens


def training_flops(parameters: int, tokens: float, trainable: int | None = None) -> float:
    """6N per token: 2N forward, 2N for the activations' gradients, 2N for the weights' gradients.

    With LoRA only `trainable` weights need the last part: 4N + 2 trainable.
    """
    return (4.0 * parameters + 2.0 * (parameters if trainable is None else trainable)) * tokens


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process so far, MiB; None where unknown (Windows).

    Linux: VmHWM of /proc/self/status (getrusage's number would include the parent's before exec).
    macOS: getrusage, in bytes there. Memory on a GPU is not included.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024  # kB
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


class CostMeter:
    """Measures a stage: `with CostMeter("ppo") as cost: ...; cost.generated_tokens += 96`.

    CPU seconds are of all threads of this process. `row()` is a line of the report's cost table.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.generated_tokens = 0
        self.trained_tokens = 0
        self.flops = 0.0
        self.seconds = 0.0  # filled when the block ends; several blocks add up
        self.cpu_seconds = 0.0

    def __enter__(self) -> "CostMeter":
        self._started = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.seconds += time.perf_counter() - self._started[0]
        self.cpu_seconds += time.process_time() - self._started[1]

    def row(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "generated_tokens": self.generated_tokens,
            "trained_tokens": self.trained_tokens,
            "flops": self.flops,
            "peak_mib": peak_memory_mib(),
        }
