"""Runs inside the sandbox: imports torch once, then forks a confined child for each task.

The parent never reads anything of a submission; it forks, kills and reports on a control socket:

    spawn (with a socket)  ->  spawned | failed <reason>
    kill                   ->  gone <exit code, negative for a signal> <CPU seconds> <who ended it>

The child serves one submission on the socket it was given: definitions first, then calls.
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

import torch

from course_utils.grading import confine
from course_utils.grading.call import describe, invoke, run_piece
from course_utils.grading.protocol import Pipe, ReplyError


def main(control_fd: int, options: dict[str, Any]) -> None:
    """Waits for orders until the grader goes away."""
    control = socket.socket(fileno=control_fd)
    confine.prctl(confine.PR_SET_DUMPABLE, 0)  # no child may look into this process
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    torch.set_num_threads(1)
    _warm_up()
    gc.collect()
    gc.freeze()  # the children share these pages
    control.send(b"ready seccomp" if _filters() else b"ready")
    child: int | None = None
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, 100, 1)
        if order == b"spawn" and descriptors:
            child, answer = _spawn(control, descriptors[0], options)
            os.close(descriptors[0])
        elif order == b"kill":
            answer, child = _end(child, options), None
        else:
            _end(child, options)
            return
        control.send(answer)


def _warm_up() -> None:
    """What torch and safetensors load at their first use is loaded before the forks."""
    from course_utils.grading.protocol import decode, encode

    x = torch.ones(2, 3, requires_grad=True)
    torch.nn.functional.cross_entropy(x, torch.zeros(2, dtype=torch.long)).backward()
    decode(*encode({"x": x.detach()}))


def _filters() -> bool:
    """Whether this machine takes the seccomp filter: a child tries."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            confine.prctl(confine.PR_SET_NO_NEW_PRIVS, 1)
            if confine.filter_syscalls():
                os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _spawn(control: socket.socket, fd: int, options: dict[str, Any]) -> tuple[int | None, bytes]:
    """Forks the child: directly, or through a middle process that makes its namespaces."""
    readable, writable = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            if options["isolate"]:
                confine.new_namespaces()
                child = os.fork()  # process 1 of its own PIDs: all of them end with it
                if child:
                    os.write(writable, str(child).encode())
                    os._exit(0)
            _child(fd, writable, options)
        except BaseException as error:
            os.write(writable, f"failed {describe(error)}".encode())
        os._exit(1)
    os.close(writable)
    said = b""
    while chunk := os.read(readable, 1000):  # ends when the child has confined itself
        said += chunk
    os.close(readable)
    if options["isolate"]:
        os.waitpid(middle, 0)
    if b"failed" in said:
        return None, said[said.index(b"failed") :][:1000]
    return int(said) if options["isolate"] else middle, b"spawned"


def _end(child: int | None, options: dict[str, Any]) -> bytes:
    if child is None:
        return b"gone 0 0 itself"
    who, (done, status, usage) = "itself", os.wait4(child, os.WNOHANG)
    for _ in range(20):  # its socket closes a moment before it is gone
        if done:
            break
        time.sleep(0.005)
        done, status, usage = os.wait4(child, os.WNOHANG)
    if not options["isolate"]:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if not done:
        who = "order"
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return f"gone {code} {usage.ru_utime + usage.ru_stime:.1f} {who}".encode()


def _child(fd: int, report: int, options: dict[str, Any]) -> None:
    """Confines itself, closes the report pipe (the sign that it did), serves; never returns."""
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.dup2(fd, 3) if fd != 3 else None
    if report != 4:
        os.dup2(report, 4)
    os.closerange(5, 4096)
    try:
        confine.limit_resources(options["limits"])
        if options["isolate"]:
            confine.private_files(options["limits"]["disk"])
            confine.give_up_privileges(options["uid"])
            confine.filter_syscalls()
        else:
            os.setsid()
            confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
    except BaseException as error:
        os.write(4, f"failed {describe(error)}".encode())
        os._exit(1)
    os.close(4)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Pipe(socket.socket(fileno=3)))
    os._exit(0)


def serve(pipe: Pipe) -> None:
    """Answers requests until the pipe closes."""
    namespace: dict[str, Any] = {"__name__": "submission", "__builtins__": __builtins__}
    while True:
        try:
            request = pipe.receive()
        except ReplyError:
            return
        try:
            reply = (
                _define(request, namespace) if "define" in request else _call(request, namespace)
            )
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            reply = {"raised": describe(error)}
        try:
            pipe.send(reply)
        except ReplyError:
            return
        except BaseException as error:
            pipe.send({"raised": f"what it returned cannot be sent: {describe(error)}"})


def _define(request: dict[str, Any], namespace: dict[str, Any]) -> dict[str, Any]:
    """Runs the pieces in order; one that raises is reported and the rest goes on."""
    faults = []
    for number, (source, cell, line) in enumerate(request["define"]):
        try:
            run_piece(source, cell, line, namespace)
        except BaseException as error:
            faults.append([number, describe(error)[:300]])
    return {"faults": faults[:50]}


def _call(request: dict[str, Any], namespace: dict[str, Any]) -> dict[str, Any]:
    name = request["call"]
    if name not in namespace:
        return {"missing": name}
    wrt = tuple(request["wrt"])
    outcome = invoke(namespace[name], request["args"], request["kwargs"], wrt)
    return {
        "value": outcome.value,
        "gradients": outcome.gradients,
        "arguments": outcome.arguments,
    }


def start(arguments: list[str]) -> None:
    """Entry point: CONTROL_FD OPTIONS_JSON; takes our own files off the import path first."""
    sys.path[:] = [entry for entry in sys.path if entry != "/grader"]
    main(int(arguments[0]), json.loads(arguments[1]))
