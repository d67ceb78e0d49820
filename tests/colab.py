"""Executes notebooks as on Colab: its versions, nothing of the course installed, a wheel uploaded.

    python3.13 -m venv /tmp/colab
    /tmp/colab/bin/pip install transformers==5.15.0 tokenizers==0.22.2 peft==0.20.0 \
        accelerate==1.14.0 datasets==4.0.0 huggingface_hub==1.27.0 pyarrow==18.1.0 numpy==2.1.3 \
        pandas==2.2.3 ipywidgets==7.7.1 anywidget==0.9.21 plotly==5.24.1 ipykernel==6.17.1 \
        ipython==7.34.0 torchao==0.10.0 torch nbclient
    .venv/bin/pip wheel --no-deps -w /tmp/wheel .
    COURSE_FAST=1 /tmp/colab/bin/python tests/colab.py /tmp/wheel/*.whl notebooks/0*.ipynb

The setup cell installs the wheel and what it needs into that environment, so the first notebook
tests the installation, and the others that a second run changes nothing. A stub stands for
google.colab; hidden tests are executed like nbmake does.
"""

import asyncio
import importlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WATCHED = ("torch", "transformers", "numpy", "pandas", "pyarrow", "ipykernel", "ipywidgets", "peft")


def main() -> None:
    wheel, *notebooks = map(Path, sys.argv[1:])
    before = versions()
    with tempfile.TemporaryDirectory() as work:
        content = Path(work) / "content"  # Colab's working directory
        stub = Path(work) / "stub" / "google" / "colab"
        for folder in (content, stub):
            folder.mkdir(parents=True)
        (stub / "__init__.py").write_text("")
        shutil.copy(wheel, content)
        os.environ["PYTHONPATH"] = str(stub.parent.parent)
        for path in notebooks:
            started = time.perf_counter()
            failed = execute(json.loads(path.read_text(encoding="utf-8")), content)
            took = time.perf_counter() - started
            print(f"{path.name}: {failed or 'passed'}, {took:.0f} s", flush=True)
    after = versions()
    changed = [f"{n} {before[n]} -> {after[n]}" for n in WATCHED if before[n] != after[n]]
    print("replaced by the setup cell:", ", ".join(changed) or "nothing that Colab came with")


def versions() -> dict[str, str | None]:
    importlib.invalidate_caches()
    found = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    return {name: found.get(name) for name in WATCHED}


def execute(notebook: dict[str, Any], folder: Path) -> str:
    """Runs every cell and its hidden tests; returns the first error, or nothing."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    cells = [{"cell_type": "code", "source": "import google.colab", "metadata": {}}]
    for cell in notebook["cells"]:
        cells.append(cell)
        for test in cell["metadata"].get("nbmake", {}).get("post_cell_execute", []):
            cells.append({"cell_type": "code", "source": test, "metadata": {}})
    for number, cell in enumerate(cells):
        cell |= {"id": f"cell-{number}", "source": "".join(cell["source"])}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    made = nbformat.from_dict({**notebook, "cells": cells})
    client = NotebookClient(made, timeout=900, resources={"metadata": {"path": str(folder)}})
    try:
        asyncio.run(client.async_execute())
    except CellExecutionError as error:
        return f"FAILED {error.ename}: {error.evalue[:500]}"
    return ""


if __name__ == "__main__":
    main()
