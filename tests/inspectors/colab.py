"""Every inspector on Colab's versions: constructs, and emits its three layers from a real kernel.

    python3 -m venv /tmp/colab
    /tmp/colab/bin/pip install ipywidgets==7.7.1 anywidget==0.9.21 ipykernel==6.17.1 \
        ipython==7.34.0 pandas torch==2.13.0 transformers==5.23.0 datasets peft
    PYTHONPATH=. /tmp/colab/bin/python tests/inspectors/colab.py

Run with the interpreter to be checked. Also a check of a live run: rows that
another thread reads while the cell runs must reach the front end.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

SETUP = """
import sys, time; sys.path[:0] = {paths!r}
from pathlib import Path
from made import every, ppo_row, ppo_run, random
from course_utils.inspectors import watch
run = ppo_run(Path({folder!r}) / "ppo", 12, 4)
shown = every(Path({folder!r}) / "all")
print(*shown)
"""
LIVE = """
board = watch(run, every=0.05)
board
"""
TRAIN = """
rng = random.Random(0)
for step in range(13, 23):
    run.append(ppo_row(rng, step, 22)); time.sleep(0.1)
"""
CHECK = "board.stop(); print(board.summary()['rows'], board.error)"
DISPLAYS = ("display_data", "execute_result")
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(client: Any, source: str) -> list[dict[str, Any]]:
    """The messages that reach the front end until the cell has ended. Raises for a failed cell."""
    own = client.execute(source)
    found = []
    while True:
        message = client.get_iopub_msg(timeout=120)
        found.append(message)
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != own:
            continue
        if kind == "error":
            raise RuntimeError("\n".join(content["traceback"]))
        if kind == "status" and content["execution_state"] == "idle":
            return found


def is_increment(message: dict[str, Any]) -> bool:
    data = message["content"].get("data") if message["msg_type"] == "comm_msg" else None
    if not isinstance(data, dict):
        return False
    whole = "rows" in data.get("state", {}).get("state", {})
    return whole or (data.get("content") or {}).get("kind") == "append"


def is_print(message: dict[str, Any]) -> bool:
    return message["msg_type"] == "stream" and message["content"]["name"] == "stdout"


def main() -> None:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    try:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(__file__).parent
            paths = [str(here.parents[1]), str(here)]
            said = run(client, SETUP.format(paths=paths, folder=folder))
            for name in "".join(m["content"]["text"] for m in said if is_print(m)).split():
                said = run(client, f"shown[{name!r}]")
                shown = [m["content"]["data"] for m in said if m["msg_type"] in DISPLAYS]
                assert len(shown) == 1, (name, [m["msg_type"] for m in said])
                assert shown[0]["text/plain"].startswith(name), shown[0]["text/plain"]
                assert "data-cui=" in shown[0]["text/html"], name
                assert shown[0][WIDGET]["model_id"], name
                print(f"{name}: text, HTML ({len(shown[0]['text/html']):,} bytes), widget")
            run(client, LIVE)
            arrived = sum(map(is_increment, run(client, TRAIN)))
            said = run(client, CHECK)
            text = "".join(m["content"]["text"] for m in said if is_print(m))
            assert text.strip() == "22 None", text
            assert arrived >= 5, f"{arrived} increments while the cell ran"
            print(f"live: {arrived} increments arrived while the training cell ran")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    print(f"Python {sys.version.split()[0]}, {_versions()}")


def _versions() -> str:
    from importlib.metadata import version

    names = ("ipywidgets", "anywidget", "ipykernel", "ipython")
    return ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    main()
