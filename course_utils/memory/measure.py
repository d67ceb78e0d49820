"""How many bytes of tensors exist, and the most that existed at once; for the CPU.

`allocator_peak` is the yardstick that the calculator is held to: the allocator's own account.
`LiveTensorMemory` says which tensors they are. A GPU has `torch.cuda.max_memory_allocated`.
"""

import contextlib
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensorMemory(TorchDispatchMode):
    """Counts the bytes of live storages while the block runs.

        with LiveTensorMemory(model, optimizer) as memory:
            step()
        memory.peak  # bytes

    Every tensor that an operation returns is seen here; its storage counts from then until Python
    and autograd have both let go of it. Views share a storage, which counts once. What an operation
    allocates and frees inside its own kernel is not seen. Looking has a price: autograd adds in
    place only what nobody else holds, so two gradients of one tensor become three for a moment.

    Args:
        already: models, optimizers and tensors that exist before the block, to be counted too.
    """

    def __init__(self, *already: Any) -> None:
        super().__init__()
        self.live = 0  # bytes now
        self.peak = 0  # bytes at most
        self.at_peak: list[tuple[tuple[int, ...], torch.dtype, int]] = []  # if `snapshot` is set
        self.snapshot = False  # keep the shapes that were alive at the peak (slow; to look at)
        self._known: dict[int, tuple[int, tuple[int, ...], torch.dtype]] = {}
        for thing in already:
            for tensor in tensors_of(thing):
                self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = (size, tuple(tensor.shape), tensor.dtype)
        weakref.finalize(storage, self._gone, key)
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            if self.snapshot:
                found = self._known.values()
                self.at_peak = [(shape, dtype, size) for size, shape, dtype in found]

    def _gone(self, key: int) -> None:
        size, _, _ = self._known.pop(key, (0, (), torch.float32))
        self.live -= size


def tensors_of(thing: Any) -> Iterable[Tensor]:
    """All tensors of a module (4-bit states included), an optimizer, a tensor, or a container."""
    if isinstance(thing, Tensor):
        yield thing
        if thing.grad is not None:
            yield thing.grad
        state = getattr(thing, "quant_state", None)  # bitsandbytes' 4-bit weights
        if state is not None:
            yield from tensors_of([vars(state), vars(state.state2) if state.nested else {}])
    elif isinstance(thing, nn.Module):
        for tensor in [*thing.parameters(), *thing.buffers()]:
            yield from tensors_of(tensor)
    elif isinstance(thing, torch.optim.Optimizer):
        yield from tensors_of(list(thing.state.values()))
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_of(value)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_of(value)


def allocator_peak(step: Callable[[], None], live: int) -> int:
    """Peak bytes during `step()` by the CPU allocator's own account; `live` bytes are there before.

    Unlike LiveTensorMemory it does not look at tensors, so it changes nothing (a tensor that Python
    has seen is copied in a few places where autograd would else add in place). What one operation
    takes and gives back by itself is left out: that is its kernel's business, and a GPU's is
    another (a CPU's bf16 matrix product, for one, works in an fp32 buffer).
    """
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with _silent_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        step()
    results = p.profiler.kineto_results
    nodes = list(results.experimental_event_tree())
    events = []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.tag == _EventType.Allocation:
            fields = node.extra_fields
            events.append((node.start_time_ns, fields.alloc_size, fields.ptr, _owner(node)))
    events.sort(key=lambda event: event[0])
    peak = live
    scratch = _scratch(events)
    for number, (_, size, _, _) in enumerate(events):
        if number not in scratch:
            live += size
            peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _silent_profiler() -> Iterator[None]:
    """Nothing reaches stderr meanwhile: torch's profiler writes there by itself, below Python."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _owner(node: Any) -> int | None:
    """The operation that allocates: the innermost, or one of bitsandbytes with all inside of it."""
    owner, above = node.parent, node.parent
    while above is not None:
        if above.name.startswith("bitsandbytes::"):  # many operations on a CPU, a kernel on a GPU
            owner = above
        above = above.parent
    return None if owner is None else owner.id


def _scratch(events: list[tuple[int, int, int, Any]]) -> set[int]:
    """Numbers of the events that are an operation's own: taken and given back inside of it."""
    taken: dict[int, int] = {}
    found: set[int] = set()
    for number, (_, size, pointer, owner) in enumerate(events):
        if size > 0:
            taken[pointer] = number
            continue
        began = taken.pop(pointer, None)
        if began is not None and owner is not None and events[began][3] == owner:
            found |= {began, number}
    return found
