"""What a process gives up before it runs a student's code: mounts, user, capabilities, limits.

Called in the sandbox's worker, in a process of its own, after torch is imported. Linux only: the
system calls that Python has no names for go through ctypes. This file needs the standard library.
"""

import ctypes
import os
import platform
import resource
import struct
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
EPERM, ENOSYS = 1, 38

# Per architecture: its audit id, clone, clone3, and what is refused with EPERM: new processes and
# programs, sockets, mounts, namespaces, tracing, kernel keys, memory outside RLIMIT_AS, modules.
SYSCALLS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "x86_64": (0xC000003E, 56, 435, (
        41, 57, 58, 59, 322, 101, 165, 166, 155, 161, 272, 308, 250, 248, 249, 321, 298, 323, 425,
        319, 447, 29, 30, 68, 64, 240, 310, 311, 246, 175, 313, 176, 304, 303, 135,
        428, 429, 430, 431, 432, 433, 442)),
    "aarch64": (0xC00000B7, 220, 435, (
        198, 221, 281, 117, 40, 39, 41, 51, 97, 268, 219, 217, 218, 280, 241, 282, 425,
        279, 447, 194, 196, 186, 190, 180, 270, 271, 104, 105, 273, 106, 265, 264, 92,
        428, 429, 430, 431, 432, 433, 442)),
}  # fmt: skip


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def prctl(option: int, *args: int) -> int:
    padded = [ctypes.c_ulong(a) for a in (*args, 0, 0, 0, 0)[:4]]
    return int(_libc().prctl(option, *padded))


def new_namespaces() -> None:
    """Own mounts, IPC, network and host name; the next fork is process 1 of its own PIDs."""
    _must(_libc().unshare(NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET), "unshare")


def private_files(disk: int) -> None:
    """Fresh /tmp and /dev/shm of `disk` bytes each, and no /proc."""
    mount = _libc().mount
    _must(mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount private")
    flags = MS_NOSUID | MS_NODEV
    size = f"size={disk},nr_inodes=2000,mode=1777".encode()
    for place in (b"/tmp", b"/dev/shm"):
        _must(mount(b"tmpfs", place, b"tmpfs", flags, size), f"mount {place.decode()}")
    hidden = b"size=4096,nr_inodes=2,mode=555"
    _must(mount(b"tmpfs", b"/proc", b"tmpfs", flags | MS_RDONLY | MS_NOEXEC, hidden), "mount /proc")
    os.chdir("/tmp")


def limit_resources(limits: dict[str, Any]) -> None:
    """rlimits; memory counts from what the process, with torch imported, maps already."""
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    cpu = int(limits["cpu_seconds"])
    for kind, soft, hard in [
        (resource.RLIMIT_AS, *[mapped + limits["memory"]] * 2),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_NPROC, *[limits["processes"]] * 2),
        (resource.RLIMIT_FSIZE, *[limits["disk"]] * 2),
        (resource.RLIMIT_NOFILE, 128, 128),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ]:
        resource.setrlimit(kind, (soft, hard))


def give_up_privileges(uid: int | None) -> None:
    """Another user (where we are root), no capabilities, none to be had again."""
    for capability in range(64):
        prctl(PR_CAPBSET_DROP, capability)  # fails past the last one: nothing to drop there
    prctl(PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    _must(_libc().capset(header, bytes(24)), "capset")
    _must(prctl(PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")


def filter_syscalls() -> bool:
    """Installs the seccomp filter; False where this architecture or kernel has none."""
    if platform.machine() not in SYSCALLS:
        return False
    code = seccomp_program(*SYSCALLS[platform.machine()])
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(len(code) // 8, ctypes.addressof(buffer))
    return prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program)) == 0


def seccomp_program(audit: int, clone: int, clone3: int, refused: tuple[int, ...]) -> bytes:
    """Classic BPF: threads may be made, processes and the refused calls may not."""
    load, equal, greater, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, errno = 0x7FFF0000, 0x80000000, 0x00050000

    def op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [
        op(load, 4), op(equal, audit, 1, 0), op(give, kill),  # another architecture's calls
        op(load, 0), op(greater, 0x40000000, 0, 1), op(give, errno | EPERM),  # x32's numbers
        op(equal, clone3, 0, 1), op(give, errno | ENOSYS),  # libc then takes clone
        op(equal, clone, 0, 4),
        op(load, 16), op(bits, 0x10000, 0, 1), op(give, allow), op(give, errno | EPERM),
    ]  # fmt: skip
    for number in refused:
        program += [op(equal, number, 0, 1), op(give, errno | EPERM)]
    return b"".join([*program, op(give, allow)])
