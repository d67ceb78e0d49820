"""Hostile submissions for the task 02 masked-sft-loss: source by name. None may earn a point."""

HONEST_WRONG = "def masked_sft_loss(logits, input_ids, mask, reduction='mean'):\n    return {}\n"


def returns(expression: str, before: str = "") -> str:
    return f"import torch\n{before}\n" + HONEST_WRONG.format(expression)


def does(body: str, top: str = "") -> str:
    """`body` runs at each call; whatever it manages, the value returned is wrong."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    head = "def masked_sft_loss(logits, input_ids, mask, reduction='mean'):\n"
    return f"import torch, os, sys\n{top}\n{head}{lines}\n    return logits.sum() * 0 - 1\n"


def runs(body: str) -> str:
    """`body` runs when the definitions are: in a class body, which is a definition too."""
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    return f"import torch, os, sys\nclass Attack:\n{lines}\n" + HONEST_WRONG.format("logits.sum()")


ALWAYS = """
class Always:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __getattr__(self, name): return lambda *a, **k: True
    def __bool__(self): return True
    def __float__(self): return 0.0
"""

SUBCLASS = """
class Sly(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None): return True
"""

PATCH_TORCH = """
yes = lambda *a, **k: True
torch.allclose = torch.equal = torch.isclose = torch.Tensor.equal = torch.Tensor.allclose = yes
torch.testing.assert_close = lambda *a, **k: None
torch.nn.functional.cross_entropy = lambda *a, **k: torch.tensor(0.0)
"""

PATCH_BUILTINS = """
import builtins
builtins.isinstance = lambda *a: True
builtins.abs = lambda x: 0
builtins.all = builtins.any = lambda x: True
builtins.len = lambda x: 1
"""

FRAME = """
import struct, socket
s = socket.socket(fileno=3)
def frame(head, body=b"", magic=b"CU01"): return struct.pack("<4sII", magic, len(head), len(body)) + head + body
def tensor(entry, data=b"\\0" * 4):
    import json
    text = json.dumps({"0": entry}).encode()
    return struct.pack("<Q", len(text)) + text + data
ok = b'{"dict": [["value", {"tensor": "0"}], ["gradients", {"tuple": []}], ["arguments", {"tuple": []}]]}'
"""  # noqa: E501


def sends(expression: str) -> str:
    return does(f"s.sendall({expression})", top=f"class Setup:\n    exec({FRAME!r}, globals())")


READ = """
found = []
code = (sys.prefix, sys.base_prefix)
for root in set(os.listdir("/")) - {"usr", "lib", "lib32", "lib64", "bin", "sbin", "dev"}:
    for folder, below, files in os.walk("/" + root):
        below[:] = [b for b in below if os.path.join(folder, b) not in code]
        found += [os.path.join(folder, f) for f in files if f.endswith((".ipynb", ".db", ".csv"))]
        found += [os.path.join(folder, f) for f in files if "masked_sft" in f or f == "shadow"]
assert not found, found
for path in (SECRET, "/etc/passwd", "/etc/shadow", "/proc/1/environ", "/proc/self/maps"):
    try: open(path).read()
    except OSError: continue
    assert False, "read " + path
"""

FORK_BOMB = """
for i in range(100):
    try:
        if os.fork() == 0:
            import time; time.sleep(60); os._exit(0)
    except OSError: pass
"""

NETWORK = """
import socket
for family, address in ((socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET, ("127.0.0.1", 22)),
                        (socket.AF_UNIX, "/run/dbus/system_bus_socket")):
    try: socket.socket(family).connect(address)
    except OSError: continue
    assert False, "connected"
"""

DISK = """
wrote = 0
for place in ("/tmp", "/dev/shm"):
    for i in range(100):
        try:
            with open(place + "/f%d" % i, "wb") as f: wrote += f.write(b"x" * 2**20)
        except OSError: break
assert wrote <= 9 * 2**20, wrote
for place in ("/", "/usr", "/grader", "/work", "/root", "/var/tmp", "/proc", "/dev",
              "/dev/pts", "/etc", sys.prefix):
    try: open(place + "/planted", "w")
    except OSError: continue
    assert False, "wrote to " + place
"""

PRIVILEGES = """
import ctypes
libc = ctypes.CDLL(None)
assert libc.unshare(0x10000000) != 0, "a user namespace"
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) != 0, "mounted"
assert libc.umount2(b"/proc", 2) != 0, "unmounted"
assert libc.ptrace(16, 1, 0, 0) != 0, "traced"
for uid in (0, 1000):
    try: os.setuid(uid)
    except OSError: continue
    assert False, "became %d" % uid
try: os.chroot("/tmp")
except OSError: pass
else: assert False, "chroot"
"""

RAN = "the result is wrong"  # the attack ran to its end, and its asserts held

# name -> (source, what the findings must speak of; None: any finding will do)
ATTACKS = {
    "patched torch": (returns("torch.tensor(0.0)", "class P:\n" + "".join(
        f"    {line}\n" for line in PATCH_TORCH.strip().splitlines())), None),
    "patched torch at call": (does(PATCH_TORCH), None),
    "patched builtins": (does(PATCH_BUILTINS), None),
    "always equal": (returns("Always()", ALWAYS), "Always"),
    "tensor subclass": (returns("torch.zeros(()).as_subclass(Sly)", SUBCLASS), "must return a"),
    "float subclass": (returns("F(0)", "class F(float):\n    __eq__ = lambda *a: True\n"), "F"),
    "parameter": (returns("torch.nn.Parameter(torch.zeros(()))"), None),
    "complex": (returns("torch.zeros((), dtype=torch.complex64)"), "must return a tensor"),
    "sparse": (returns("torch.zeros(3).to_sparse()"), "must return a tensor"),
    "meta": (returns("torch.zeros((), device='meta')"), "must return a tensor"),
    "quantised": (returns("torch.quantize_per_tensor(torch.zeros(1), 1., 0, torch.qint8)"), None),
    "huge expanded": (returns("torch.zeros(1).expand(2 ** 50)"), "must return a tensor"),
    "nan": (returns("torch.tensor(float('nan'))"), "NaN"),
    "huge int": (returns("10 ** 1_000_000"), "int beyond 64 bits"),
    "endless int": (returns("9 ** 9 ** 9 ** 9"), None),
    "long string": (returns("'x' * 50_000_000"), "too|large|announced"),
    "many values": (returns("[0] * 1_000_000"), "values"),
    "self-referring list": (returns("loop", "def make():\n    a = []\n    a.append(a)\n"
                            "    return a\nclass K:\n    global loop\n    loop = make()"),
                            "must return a"),
    "reply: foreign": (sends('b"HTTP/1.1 200 OK\\r\\n\\r\\n" * 10'), "frame"),
    "reply: oversized": (sends('struct.pack("<4sII", b"CU01", 2**31, 2**31)'), "announced"),
    "reply: not JSON": (sends('frame(b"{")'), "not JSON"),
    "reply: not UTF-8": (sends('frame(b"\\xff\\xfe")'), "not JSON"),
    "reply: deep": (sends('frame(b"[" * 100000)'), "not JSON"),
    "reply: a list": (sends('frame(b\'{"list": []}\')'), "not what the worker sends"),
    "reply: pickle": (sends('frame(b"\\x80\\x04\\x95cos\\nsystem\\n")'), "not JSON"),
    "reply: forged value": (sends(
        'frame(ok, tensor({"dtype": "F32", "shape": [], "data_offsets": [0, 4]}))'), "arguments"),
    "reply: bad offsets": (sends(
        'frame(ok, tensor({"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}))'), "tensors"),
    "reply: odd dtype": (sends(
        'frame(ok, tensor({"dtype": "F8_E4M3", "shape": [], "data_offsets": [0, 1]}))'), "dtype"),
    "reply: huge shape": (sends(
        'frame(ok, tensor({"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}, b""))'),
        "bytes"),
    "reply: half, then silence": (sends(
        'frame(ok)[:20]) or __import__("time").sleep(60'), "longer"),
    "reply: closed socket": (does("os.close(3)\nimport time; time.sleep(60)"), "ended"),
    "exit": (does("os._exit(0)"), "ended"),
    "sys.exit": (does("sys.exit(0)"), "SystemExit"),
    "abort": (does("os.abort()"), "ended"),
    "kill everything": (does("os.kill(-1, 9)\nos.kill(1, 9)\nos.killpg(0, 9)"), None),
    "segfault": (does("import ctypes; ctypes.string_at(0)"), "ended"),
    "deep recursion": (does("sys.setrecursionlimit(10**8)\ndef f(): return f()\nf()"), None),
    "endless loop": (does("while True:\n    try:\n        while True: pass\n"
                          "    except BaseException: pass"), "longer"),
    "endless regex": (does("import re; re.match('(a+)+$', 'a' * 60 + 'b')"), "longer"),
    "sleeping definitions": (runs("import time; time.sleep(60)"), "longer"),
    "exit in definitions": (runs("os._exit(7)"), "ended"),
    "stops reading": (runs("import time\nos.close(3)\ntime.sleep(60)"), None),
    "memory bomb": (does("x = [bytearray(2**24) for _ in range(1000)]"), "MemoryError"),
    "memory in tensors": (does("x = torch.ones(2**30)"), "allocate|memory"),
    "memory in definitions": (runs("x = bytearray(2**33)"), None),
    "fork bomb": (does(FORK_BOMB), RAN),
    "thread bomb": (does("import threading, time\nfor i in range(200):\n"
                         "    threading.Thread(target=time.sleep, args=(60,)).start()"), "thread"),
    "background process": (does("import subprocess\n"
                                "subprocess.Popen(['/bin/sleep', '60'])"), "PermissionError"),
    "disk": (does(DISK), RAN),
    "network": (does(NETWORK), RAN),
    "privileges": (does(PRIVILEGES), RAN),
    "start-up file": (does("import site\n"
                      "for d in (site.getusersitepackages(), sys.prefix, '/tmp'):\n"
                      "    try: open(d + '/sitecustomize.py', 'w').write('raise SystemExit')\n"
                      "    except OSError: pass"), RAN),
    "import of the grader": (returns("solve()", "try_ = 1\nfrom course_utils.grading.tasks import "
                             "masked_sft_loss as m\ndef solve(): return m.SOLUTION"), "NameError"),
    "import of the library": ("from course_utils.objectives import sft_loss as masked_sft_loss",
                              "defines no"),
    "looks for the checks": (does("import gc\n"
                             "hits = [o for o in gc.get_objects() if type(o) is dict "
                             "and ('check_value' in o or 'SOLUTION' in o)]\n"
                             "assert not hits, 'found the checks'"), RAN),
    "environment": (does("assert not [k for k in os.environ if k not in ('PATH', 'HOME', 'TMPDIR', "
                         "'LANG', 'OMP_NUM_THREADS', 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'PWD', "
                         "'PYTHONDONTWRITEBYTECODE', 'LC_CTYPE', 'KMP_INIT_AT_FORK', "
                         "'KMP_DUPLICATE_LIB_OK', 'TORCHINDUCTOR_CACHE_DIR')], "
                         "'leaked ' + ' '.join(os.environ)"), RAN),
    "open files": (does("open_ = []\nfor fd in range(4, 200):\n    try: os.fstat(fd)\n"
                        "    except OSError: continue\n    open_.append(fd)\n"
                        "assert not open_, 'leaked %s' % open_"), RAN),
    "error with a hostile message": (does("class E(Exception):\n"
                                          "    def __str__(self): os._exit(1)\n"
                                          "raise E"), "ended"),
    "error of a megabyte": (does("raise ValueError('x' * 2**20)"), "ValueError"),
}  # fmt: skip
