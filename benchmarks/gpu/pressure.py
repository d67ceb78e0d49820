"""Optimizers when the GPU has no room for their states: does the paged one survive?

The rest of the GPU's memory is taken by a ballast tensor, so that beside weights, gradients and
activations only half of what 8-bit states need is left. Then three steps are tried, and, when they
were done, three more with the ballast gone. AdamW and its 8-bit form should run out of memory; a
paged optimizer's states are in unified memory, which the driver moves to the CPU's.
"""

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch
from conduct import Row, Skip, out_of_memory, reason
from stages import GIB, TINY, fresh_peak

from course_utils.memory import ModelShape, find_shape, recipe
from course_utils.memory.practice import Practice

MODEL = "smollm2-360m"
STEPS = 3


def room_for(bare: int, parameters: int) -> int:
    """Bytes left to the training: its peak without optimizer states, and half of 8-bit ones.

    Two moments of a byte each: 2 bytes a parameter, so that half of them is one.
    """
    return bare + parameters


def practice(shape: ModelShape, optimizer: str, place: dict[str, Any]) -> Practice:
    """Full fine-tuning in fp32 weights on a batch so small that activations hardly count."""
    chosen = recipe("full", optimizer=optimizer, autocast="none")
    seq, batch = (16, 2) if place["dry"] else (128, 2)
    return Practice(shape, chosen, seq, batch, seq // 2, device=place["device"])


def three_steps(trained: Practice) -> float:
    """Seconds of a step, the mean of three."""
    began = time.perf_counter()
    for _ in range(STEPS):
        trained.step()
    if trained.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS


def under_pressure(place: dict[str, Any], optimizer: str) -> Iterator[Row]:
    """One optimizer; whether it survives is the result, running out of memory is no failure."""
    shape = TINY if place["dry"] else find_shape(MODEL)
    row: Row = {"what": f"{shape.name}, {optimizer}"}
    if place["device"] == "cpu":
        row["step_seconds"] = three_steps(practice(shape, optimizer, place))
        yield {**row, "note": "no pressure on a CPU, where nothing is paged: only tried"}
        return
    bare = practice(shape, "sgd", place)  # has no states
    three_steps(bare)
    needs = torch.cuda.max_memory_reserved()
    del bare
    fresh_peak(place)
    room = room_for(needs, shape.parameters)
    free = torch.cuda.mem_get_info()[0]
    if free <= room:
        raise Skip(f"{free / GIB:.1f} GiB are free and {room / GIB:.1f} are needed")
    ballast = torch.empty(free - room, dtype=torch.uint8, device="cuda")
    row |= {"room_gib": room / GIB, "ballast_gib": (free - room) / GIB}
    try:
        trained = practice(shape, optimizer, place)
        row["step_seconds"] = three_steps(trained)
    except Exception as error:
        if not out_of_memory(error):
            raise
        note = f"does not survive: {reason(error)[:120]}"
        yield {**row, "survived": False, "note": note}
        return
    row["peak_gib"] = (torch.cuda.max_memory_allocated() - (free - room)) / GIB
    del ballast
    gc.collect()
    torch.cuda.empty_cache()
    row["free_step_seconds"] = three_steps(trained)
    note = f"survives; {row['free_step_seconds']:.3g} s a step when the memory is free again"
    yield {**row, "survived": True, "note": note}
