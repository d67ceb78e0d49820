"""Frames between grader and sandbox: plain values and tensors, limits and deadlines, no pickle.

    frame = b"CU01" · head length (u32) · body length (u32) · head (JSON) · body (safetensors)

A value is None, bool, int, float, str, a tensor, or a list, tuple or dict (keys: str) of values;
in JSON, containers and tensors are objects with one key that names what they are. What cannot
cross becomes `Opaque`, so that the grader can say what a function returned instead.
The other end is not trusted: whatever it sends is a value or a `ReplyError`, nothing else.
"""

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAGIC = b"CU01"
LENGTHS = struct.Struct("<4sII")
MAX_HEAD = 4 * 2**20  # bytes
MAX_BODY = 64 * 2**20  # bytes
MAX_DEPTH = 12  # of containers within containers
MAX_NODES = 20_000  # values in one message
MAX_TENSORS = 256
MAX_DIMS = 8

DTYPES = {
    "BOOL": (torch.bool, 1), "U8": (torch.uint8, 1), "I8": (torch.int8, 1),
    "I16": (torch.int16, 2), "I32": (torch.int32, 4), "I64": (torch.int64, 8),
    "F16": (torch.float16, 2), "BF16": (torch.bfloat16, 2),
    "F32": (torch.float32, 4), "F64": (torch.float64, 8),
}  # fmt: skip
_CODES = {dtype: code for code, (dtype, _) in DTYPES.items()}


class ReplyError(Exception):
    """No usable reply came: see the subclasses. A failed task, never a crash."""


class Malformed(ReplyError):
    """What came is not a frame, not JSON, or not a value."""


class TooLarge(ReplyError):
    """The frame announces, or the value would need, more than is allowed."""


class Late(ReplyError):
    """The deadline passed while sending or receiving."""


class Closed(ReplyError):
    """The other end is gone."""


@dataclass(frozen=True)
class Opaque:
    """Stands for something that is not a plain value; `type` is its type's name."""

    type: str


def printable(text: str, instead: str = "?", keep: str = "") -> str:
    """A stranger's text with `instead` for characters that are not shown or turn lines round."""
    return "".join(c if c.isprintable() or c in keep else instead for c in text)


def encode(value: Any) -> tuple[bytes, bytes]:
    """A value -> (JSON head, safetensors body)."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    head = json.dumps(_pack(value, tensors, 0)).encode()
    return head, save(tensors) if tensors else b""


def _pack(value: Any, tensors: dict[str, Tensor], depth: int) -> Any:
    kind = type(value)  # exact types: a subclass may lie about itself
    if depth <= MAX_DEPTH:
        if value is None or kind in (bool, float, str):
            return value
        if kind is int and abs(value) < 2**63:
            return value
        if kind in (list, tuple):
            name = "list" if kind is list else "tuple"
            return {name: [_pack(v, tensors, depth + 1) for v in value]}
        if kind is dict and all(type(k) is str for k in value):
            return {"dict": [[k, _pack(v, tensors, depth + 1)] for k, v in value.items()]}
        if kind in (Tensor, torch.nn.Parameter) and _crosses(value):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
    if kind is Opaque:
        return {"opaque": str(value.type)[:100]}
    name = "int beyond 64 bits" if kind is int else f"{kind.__module__}.{kind.__qualname__}"
    return {"opaque": str(name)[:100]}


def _crosses(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.dtype in _CODES
        and tensor.dim() <= MAX_DIMS
        and tensor.device.type != "meta"
        and tensor.numel() * tensor.element_size() <= MAX_BODY
    )


def decode(head: bytes, body: bytes) -> Any:
    """(head, body) from an untrusted end -> the value. Raises Malformed or TooLarge."""
    tensors = _tensors(body) if body else {}
    try:
        packed = json.loads(head.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the head is not JSON: {type(error).__name__}") from None
    return _unpack(packed, tensors, 0, [MAX_NODES])


def _unpack(packed: Any, tensors: dict[str, Tensor], depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise TooLarge(f"more than {MAX_NODES:,} values in one reply")
    if packed is None or isinstance(packed, bool | float | str):
        return packed
    if isinstance(packed, int):
        if abs(packed) < 2**63:
            return packed
        raise Malformed("an integer beyond 64 bits")
    if not isinstance(packed, dict) or len(packed) != 1 or depth > MAX_DEPTH + 1:
        raise Malformed("not a value, or nested too deeply")
    ((kind, inner),) = packed.items()
    if kind in ("list", "tuple") and isinstance(inner, list):
        values = [_unpack(v, tensors, depth + 1, left) for v in inner]
        return values if kind == "list" else tuple(values)
    if kind == "dict" and isinstance(inner, list):
        result = {}
        for pair in inner:
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                raise Malformed("a dictionary's item is not a pair with a string first")
            result[pair[0]] = _unpack(pair[1], tensors, depth + 1, left)
        return result
    if kind == "opaque" and isinstance(inner, str):
        return Opaque(printable(inner[:100]))
    if kind == "tensor" and isinstance(inner, str) and inner in tensors:
        return tensors[inner].clone()  # a name used twice must not make two values one
    raise Malformed(f"unknown kind of value {str(kind)[:20]!r}")


def _tensors(body: bytes) -> dict[str, Tensor]:
    """The body's tensors, after its own header has been checked against what is allowed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        (length,) = struct.unpack_from("<Q", body)
        if length > len(body) - 8:
            raise Malformed("the tensors' header is longer than the body")
        described = json.loads(body[8 : 8 + length])
        if not isinstance(described, dict) or len(described) > MAX_TENSORS:
            raise Malformed("not a table of tensors, or too many of them")
        for entry in described.values():
            _check_entry(entry)
        return load(body)
    except (SafetensorError, struct.error, ValueError, RecursionError, RuntimeError) as error:
        raise Malformed(f"the tensors cannot be read: {type(error).__name__}") from None


def _check_entry(entry: Any) -> None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Malformed("a tensor's entry has other fields than dtype, shape and data_offsets")
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Malformed(f"a tensor of dtype {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS:
        raise Malformed("a tensor's shape is not a short list")
    size = DTYPES[dtype][1]
    for n in shape:
        if type(n) is not int or n < 0:
            raise Malformed("a tensor's shape has an entry that is not a size")
        size *= max(n, 1)  # (0, 2**62) holds nothing, and breaks arithmetic all the same
    if size > MAX_BODY:
        raise TooLarge(f"a tensor of {size:,} bytes")


class Pipe:
    """One end of a stream socket with deadlines on whole messages, not on single reads."""

    def __init__(self, sock: socket.socket, max_head: int = MAX_HEAD, max_body: int = MAX_BODY):
        self.socket = sock
        self.max_head, self.max_body = max_head, max_body

    def send(self, value: Any, deadline: float | None = None) -> None:
        """Sends a value; `deadline` is in time.monotonic()'s seconds. Raises Late or Closed."""
        head, body = encode(value)
        data = memoryview(LENGTHS.pack(MAGIC, len(head), len(body)) + head + body)
        try:
            while data:
                self.socket.settimeout(_left(deadline))
                data = data[self.socket.send(data[: 1 << 20]) :]
        except TimeoutError:
            raise Late("it stopped reading what was sent") from None
        except OSError as error:
            raise Closed(f"it is gone: {error.strerror}") from None

    def receive(self, deadline: float | None = None) -> Any:
        """The next value. Raises Late, Closed, Malformed or TooLarge."""
        magic, head, body = LENGTHS.unpack(self._exactly(LENGTHS.size, deadline))
        if magic != MAGIC:
            raise Malformed("what came does not start like a frame")
        if head > self.max_head or body > self.max_body:
            raise TooLarge(f"a reply of {head + body:,} bytes was announced")
        return decode(self._exactly(head, deadline), self._exactly(body, deadline))

    def _exactly(self, count: int, deadline: float | None) -> bytes:
        data = bytearray()
        try:
            while len(data) < count:
                self.socket.settimeout(_left(deadline))
                chunk = self.socket.recv(min(count - len(data), 1 << 20))
                if not chunk:
                    raise Closed("it ended without a complete reply")
                data += chunk
        except TimeoutError:
            raise Late("no complete reply came in time") from None
        except OSError as error:
            raise Closed(f"it is gone: {error.strerror}") from None
        return bytes(data)

    def close(self) -> None:
        self.socket.close()


def _left(deadline: float | None) -> float | None:
    """Seconds until the deadline; raises TimeoutError when it has passed (0 would not block)."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
