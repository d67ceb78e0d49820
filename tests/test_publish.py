"""Model cards, saved models that plain transformers loads, and a push to a Hub on this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from course_utils import publish, world
from course_utils.errors import CourseError

RESULTS = pandas.DataFrame({"gold": {"SFT": 1.25, "DPO": 1.5}})


def card(**changes: Any) -> str:
    values: dict[str, Any] = {
        "name": "my: model",
        "base": "world",
        "method": "DPO",
        "data": "pairs",
        "intended": "a course",
        "limits": ["knows one small world"],
        "settings": {"beta": 0.2},
        "results": RESULTS,
    }
    return publish.model_card(**{**values, **changes})


def test_a_card_has_the_hubs_header_and_every_section() -> None:
    import yaml

    text = card(base='a "b": c')
    header, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(header)["base_model"] == 'a "b": c'
    assert yaml.safe_load(header)["tags"] == ["course", "dpo"]
    for said in ("# my: model", "- knows one small world", "| DPO | 1.500 |", "| beta | 0.2 |"):
        assert said in body


def test_a_card_without_limits_is_refused() -> None:
    with pytest.raises(CourseError, match="advertisement"):
        card(limits=[])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "mine"
    model, tokenizer = world.load_base_model(), world.load_tokenizer()
    return publish.save_model(directory, model, tokenizer, card())


def test_plain_transformers_loads_what_was_saved(saved: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ids = tokenizer("black holes are", return_tensors="pt").input_ids
    expected = world.load_base_model()(ids).logits
    torch.testing.assert_close(again(ids).logits, expected)
    assert (saved / "README.md").read_text(encoding="utf-8") == card()


class Hub(ThreadingHTTPServer):
    """Takes the requests of one push; `files` has what was committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.private: bool | None = None
        self.refuse = 0  # an HTTP status to answer every request with


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:  # the name that http.server calls
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.server.refuse:
            self._reply({"error": "no"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)  # older versions of the client say "private"
            self.server.private = asked.get("private") or asked.get("visibility") == "private"
            self._reply({"url": self._here()})
        elif "/preupload/" in self.path:
            wanted = [f["path"] for f in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._reply({"files": [{"path": path, **mode} for path in wanted]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            self._reply({"commitUrl": f"{self._here()}/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._reply({"errors": [], "warnings": []})

    def _here(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/ada/mine"

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def push(hub: Hub, saved: Path, repository: str = "ada/mine", token: str | None = "secret") -> str:
    return publish.push(saved, repository, token, endpoint=f"http://127.0.0.1:{hub.server_port}")


def test_a_push_sends_every_file_privately_with_the_token(hub: Hub, saved: Path) -> None:
    assert push(hub, saved).endswith("/ada/mine")
    assert set(hub.files) == {path.name for path in saved.iterdir()}
    assert hub.files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert hub.tokens == {"Bearer secret"}
    assert hub.private is True


def test_what_the_hub_refuses_is_said(hub: Hub, saved: Path) -> None:
    hub.refuse = 403
    with pytest.raises(CourseError, match="the Hub did not take"):
        push(hub, saved)


def test_faults_before_anything_is_sent(
    hub: Hub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(CourseError, match="write access"):
        push(hub, saved, token=None)
    with pytest.raises(CourseError, match="user/name"):
        push(hub, saved, "mine")
    with pytest.raises(CourseError, match="cannot name a repository"):
        push(hub, saved, "ada/not a name")
    with pytest.raises(CourseError, match="use save_model first"):
        publish.push(tmp_path, "ada/mine", "t")
    assert not hub.tokens
