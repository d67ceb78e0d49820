"""A JupyterLab of its own for a test: one notebook, its own settings, no network."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def wait(ready: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := ready():
            return found
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s for {what}")


@contextlib.contextmanager
def jupyterlab(folder: Path, notebook: str, cells: list[str]) -> Iterator[str]:
    """Writes `notebook` into the folder and starts a server there; yields its address."""
    import nbformat

    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(book, folder / notebook)
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    places = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    environment = {
        **os.environ,
        **{f"JUPYTER_{name}_DIR": str(folder / place) for name, place in places.items()},
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--IdentityProvider.token="]
    command += ["--allow-root", f"--ServerApp.root_dir={folder}"]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)

    def address() -> str | None:
        assert server.poll() is None, (folder / "server.log").read_text()
        for file in (folder / "runtime").glob("jpserver-*.json"):
            url = json.loads(file.read_text() or "{}").get("url")
            if url:
                with urllib.request.urlopen(f"{url}api/status", timeout=60):
                    return str(url)
        return None

    try:
        yield wait(address, "JupyterLab")
    finally:
        server.terminate()
        server.wait(timeout=30)
