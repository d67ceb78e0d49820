"""A local Hub for each test that the libraries take for the real one; empty caches, no waiting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running Hub that the libraries of this process take for the real one."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    from course_utils.data.hub import fetch, load

    server = Hub()
    home = tmp_path / "hf"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    config = datasets.config
    monkeypatch.setattr(config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_DATASETS_OFFLINE", False, raising=False)
    monkeypatch.setattr(config, "HF_CACHE_HOME", str(home))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
    monkeypatch.setattr(config, "STREAMING_READ_RETRY_INTERVAL", 0.01)
    monkeypatch.setattr(config, "STREAMING_READ_MAX_RETRIES", 2)
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    monkeypatch.setattr(fetch, "WAITS", (0.01, 0.02, 0.03))
    monkeypatch.setattr(load, "_shown", set())
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    yield server
    server.close()
