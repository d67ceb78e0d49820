"""Frames and values: what crosses comes back the same, whatever else comes is a typed failure."""

import contextlib
import json
import socket
import struct
import threading
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from course_utils.grading.protocol import (
    DTYPES,
    LENGTHS,
    MAGIC,
    Closed,
    Late,
    Malformed,
    Opaque,
    Pipe,
    ReplyError,
    TooLarge,
    decode,
    encode,
)

BOUNDED = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield Pipe(ours, max_head=10_000, max_body=10_000), theirs
    ours.close()
    theirs.close()


def soon():
    return time.monotonic() + 0.05


def test_values_come_back_the_same():
    value = {"a": [1, -2.5, None, True, "é"], "b": (float("inf"), []), "c": ({},)}
    assert decode(*encode(value)) == value


def test_tensors_of_every_allowed_dtype_come_back_bit_for_bit():
    for dtype, _ in DTYPES.values():
        for tensor in (torch.arange(6).to(dtype).view(2, 3).t(), torch.zeros(0, 4, dtype=dtype)):
            back = decode(*encode([tensor]))[0]
            assert back.dtype == dtype
            assert torch.equal(back, tensor)
    assert decode(*encode(torch.tensor(float("nan")))).isnan()


def test_what_is_not_plain_becomes_opaque():
    class Sneaky(torch.Tensor):
        pass

    class Text(str):
        pass

    deep = []
    for _ in range(50):
        deep = [deep]
    odd = [torch.zeros(2).as_subclass(Sneaky), Text("x"), 2**70, {1: 2}, object(), {3}]
    odd += [torch.zeros(2, dtype=torch.complex64), torch.zeros(3).to_sparse()]
    odd += [torch.zeros(2, device="meta"), torch.zeros(1).expand(2**40)]
    assert all(isinstance(v, Opaque) for v in decode(*encode(odd)))
    assert "Opaque" in repr(decode(*encode(deep)))


def test_one_tensor_named_twice_gives_two():
    a, b = decode(b'{"list": [{"tensor": "x"}, {"tensor": "x"}]}', save({"x": torch.zeros(2)}))
    a += 1
    assert b.sum() == 0


def body(**entry):
    head = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **entry}})
    return struct.pack("<Q", len(head)) + head.encode() + b"\0" * 4


@pytest.mark.parametrize(
    ("head", "tensors"),
    [
        (b"{", b""), (b"\xff", b""), (b"[1]", b""), (b"{}", b""), (b'{"x": 1, "y": 2}', b""),
        (b"[" * 100_000, b""), (b"1" * 5_000, b""), (b"9223372036854775808", b""),
        (b'{"tensor": "missing"}', b""), (b'{"tensor": ["x"]}', body()),
        (b'{"dict": [[1, 2]]}', b""), (b'{"list": ' * 20 + b"[]" + b"}" * 20, b""),
        (b"null", b"short"), (b"null", struct.pack("<Q", 2**63) + b"{}"),
        (b"null", body(dtype="C64")), (b"null", body(dtype="F8_E4M3")), (b"null", body(dtype=[])),
        (b"null", body(shape=[2])), (b"null", body(shape=[-1])), (b"null", body(shape=[1.0])),
        (b"null", body(shape=[True])), (b"null", body(shape=[1] * 9)),
        (b"null", body(data_offsets=[0, 2**60])), (b"null", body(data_offsets="x")),
        (b"null", body(extra=1)), (b"null", struct.pack("<Q", 2) + b"[]"),
    ],
)  # fmt: skip
def test_malformed_replies_are_malformed(head, tensors):
    with pytest.raises(Malformed):
        decode(head, tensors)


@pytest.mark.parametrize("shape", [[2**40], [0, 2**62], [2**31, 2**31]])
def test_tensors_that_claim_to_be_huge_are_too_large(shape):
    with pytest.raises(TooLarge):
        decode(b"null", body(shape=shape))
    with pytest.raises(TooLarge):
        decode(b'{"list": [' + b"0," * 30_000 + b"0]}", b"")


def test_frames_cross_a_pipe(ends):
    ours, theirs = ends
    Pipe(theirs).send({"x": torch.ones(3)})
    assert torch.equal(ours.receive(soon())["x"], torch.ones(3))


def test_silence_a_slow_drip_and_a_full_pipe_are_late(ends):
    ours, theirs = ends
    with pytest.raises(Late):
        ours.receive(soon())
    stop = threading.Event()

    def drip():
        for byte in LENGTHS.pack(MAGIC, 1000, 0) + b" " * 1000:
            if stop.wait(0.01):
                return
            theirs.send(bytes([byte]))

    dripping = threading.Thread(target=drip)
    dripping.start()
    with pytest.raises(Late):
        ours.receive(soon())
    stop.set()
    dripping.join()
    with pytest.raises(Late):
        ours.send("x" * 10_000_000, soon())


def test_an_end_that_is_gone_is_closed_and_large_or_foreign_frames_are_refused(ends):
    ours, theirs = ends
    theirs.sendall(LENGTHS.pack(MAGIC, 20_000, 0) + b"HTTP/1.1 200 OK")
    with pytest.raises(TooLarge):
        ours.receive(soon())
    with pytest.raises(Malformed):
        ours.receive(soon())
    theirs.close()
    with pytest.raises(Closed):
        ours.receive(soon())
    with pytest.raises(Closed):
        ours.send("x", soon())


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(
        st.sampled_from(["list", "tuple", "dict", "tensor", "opaque", "x"]), v, max_size=2),
    max_leaves=10,
)  # fmt: skip
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES, "C64", ""]) | PLAIN,
     "shape": st.lists(st.integers(-1, 5)) | PLAIN,
     "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | PLAIN}
)  # fmt: skip


@st.composite
def bodies(draw):
    head = json.dumps(draw(st.dictionaries(st.sampled_from("xy"), ENTRY | PLAIN))).encode()
    length = draw(st.just(len(head)) | st.integers(0, 2**64 - 1))
    return struct.pack("<Q", length) + head + draw(st.binary(max_size=40))


@BOUNDED
@given(
    head=st.binary(max_size=50) | PLAIN.map(lambda v: json.dumps(v).encode()),
    tensors=st.binary(max_size=50) | bodies(),
)
def test_any_bytes_are_a_value_or_a_typed_failure(head, tensors):
    with contextlib.suppress(ReplyError):
        decode(head, tensors)


@BOUNDED
@given(value=PLAIN)
def test_any_plain_value_is_encoded_and_read_back(value):
    assert encode(decode(*encode(value)))[0] == encode(value)[0]
