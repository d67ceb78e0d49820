"""One run on several processes: rows are shared out, results gathered, gradients summed.

Every process draws the same prompts, random numbers and minibatches, and does its share of the
rows. What comes back is gathered into the whole step's rollouts on every process (a few small
tensors), so advantages are whitened over all of them, and each minibatch's gradient is the sum of
the processes' parts, each divided by the tokens of the *whole* minibatch. The result is that of one
process, up to the order in which numbers are added.

    accelerate launch --num_processes 2 train.py         # the script is the same as for one
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError


class Processes:
    """What a trainer needs of its sibling processes. Alone, every method returns what it got."""

    def __init__(self, accelerator: Any = None) -> None:
        if accelerator is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            accelerator = Accelerator()
        self.rank, self.size = 0, 1
        self.device: torch.device | None = None  # None: wherever the policy is
        if accelerator is not None:
            self.rank, self.size = accelerator.process_index, accelerator.num_processes
            self.device = accelerator.device
        self._shards: list[Any] = []  # FSDP's modules, the outermost first

    @property
    def main(self) -> bool:
        """Whether this one writes the log and shows the progress."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        return bool(self._shards)

    # ---- rows --------------------------------------------------------------------------------

    def check(self, rows: int, minibatches: int, sharded: bool = False) -> None:
        """Raises CourseError unless every process gets as many rows of each minibatch."""
        if sharded and self.size == 1:
            raise CourseError(
                "sharded=True shares a policy out among several processes and this is one; start "
                "them with accelerate launch, or leave it out"
            )
        if self.size > 1 and rows % (self.size * minibatches):
            raise CourseError(
                f"rollouts_per_step = {rows} cannot be shared out evenly among {self.size} "
                f"processes in {minibatches} minibatches; make it a multiple of "
                f"{self.size * minibatches}"
            )

    def share(self, rows: Any) -> Any:
        """This process's part of a sequence or tensor: neighbours, in the order of the ranks."""
        part = len(rows) // self.size
        return rows[self.rank * part : (self.rank + 1) * part] if self.size > 1 else rows

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of each process -> (n * size, ...); dimension 1 is padded with 0."""
        if self.size == 1:
            return rows
        from accelerate.utils import gather, pad_across_processes

        numbers = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
        if rows.dim() > 1:
            numbers = pad_across_processes(numbers.contiguous(), dim=1)
        return gather(numbers.contiguous()).to(rows.dtype)

    def gather_list(self, items: Sequence[Any]) -> list[Any]:
        """Lists of each process, one after the other."""
        if self.size == 1:
            return list(items)
        from accelerate.utils import gather_object

        return list(gather_object(list(items)))

    def from_main(self, value: Any) -> Any:
        """The main process's value, on all."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box)
        return box[0]

    # ---- numbers and gradients -----------------------------------------------------------------

    def sum(self, values: Tensor) -> Tensor:
        """The processes' sum; `values` may be overwritten."""
        if self.size > 1:
            values = values.contiguous()
            torch.distributed.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The processes' maximum, entry by entry; `values` are overwritten."""
        if self.size > 1:
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the processes' sum; sharded ones are already."""
        if self.size == 1 or self.sharded:
            return
        flat = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten()
                for p in parameters
            ]
        )
        pieces = self.sum(flat).split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """L2 norm over all gradients, of which this process may hold shards."""
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        return float(self.sum(norm**2).sqrt() if self.sharded else norm)

    def same_start(self, model: nn.Module) -> None:
        """Everyone starts from the main process's weights (adapters are drawn at random)."""
        if self.size > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)

    # ---- FSDP ----------------------------------------------------------------------------------

    def shard(self, root: Any, blocks: Sequence[nn.Module], rehearsal: Any) -> None:
        """Shares weights, gradients and optimizer states out among the processes (FSDP2, ZeRO-3).

        Args:
            root: what training calls. blocks: parts that are gathered one at a time within it.
            rehearsal: arguments for a first call of `root`, at which FSDP finds out its structure.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        device = next(root.parameters()).device
        mesh = init_device_mesh(device.type, (self.size,))
        for module in (*blocks, root):
            fully_shard(module, mesh=mesh)
        self._shards = [root, *blocks]
        with torch.no_grad():
            root(*rehearsal)
        root.reshard()  # the outermost part stays whole after a forward pass

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all weights are whole on every process: for sampling and scoring.

        Answers end at different tokens on different processes, which could otherwise not gather
        the weights together at each.
        """
        for module in self._shards:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in self._shards:
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()

    def last_backward(self, last: bool) -> None:
        """FSDP adds gradients up over the processes in the backward pass: only in the last one."""
        if self._shards:
            self._shards[0].set_requires_gradient_sync(last)

    @property
    def loss_factor(self) -> float:
        """FSDP takes the mean of the processes' gradients, and ours are parts of a sum."""
        return float(self.size) if self.sharded else 1.0


def whole_tensor(value: Any) -> Any:
    """A sharded tensor gathered (on all processes at once), anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def local_part(tensor: Tensor) -> Tensor:
    """This process's shard, sharing memory with it; a tensor that is not sharded as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


class WholeState:
    """A sharded module or optimizer with the state_dict of an unsharded one, for checkpoints."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._state = torch.utils._pytree.tree_map(whole_tensor, owner.state_dict())

    def state_dict(self) -> Any:
        return self._state

    def load_state_dict(self, state: Any) -> None:
        self._state = state

    def put_back(self) -> None:
        """Shards what was loaded, and writes it into the owner."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        def spread(value: Any, like: Any) -> Any:
            if not isinstance(like, DTensor):
                return value
            return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

        if not isinstance(self._owner, torch.optim.Optimizer):
            with torch.no_grad():
                for name, tensor in self._owner.state_dict().items():
                    tensor.copy_(spread(self._state[name], tensor))
            return
        parameters = [p for group in self._owner.param_groups for p in group["params"]]
        for number, values in self._state["state"].items():
            for name, value in values.items():
                if value.dim():  # the moments; "step" is a number
                    values[name] = spread(value, parameters[number])
        self._owner.load_state_dict(self._state)
