"""What the doctor tells machines that are not at hand: a Colab T4, Kaggle, broken installations."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from course_utils import cli, doctor
from course_utils.hardware import Gpu, Hardware
from course_utils.tiers import choose_tier
from course_utils.traps import CHECKS, Finding, Situation, checks, release

ROOT = Path(__file__).resolve().parent.parent
T4 = Gpu("Tesla T4", 14.56, (7, 5), bf16_native=False)
L4 = Gpu("NVIDIA L4", 22.03, (8, 9), bf16_native=True)
P100 = Gpu("Tesla P100-PCIE-16GB", 15.9, (6, 0), bf16_native=False, supported=False)
LAPTOP = Hardware(cpus=8, ram_gib=16, system="Linux x86_64")
COLAB = Hardware(cpus=2, ram_gib=12.7, gpus=(T4,), platform="colab", system="Linux x86_64")
GOOD = {  # a machine with nothing to complain about but notes
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "ipywidgets": "8.1.8",
}
COLAB_PINS = {  # what Colab's GPU image had preinstalled on 2026-08-19, and TRL
    **GOOD,
    "python": "3.13.15",
    "torch": "2.11.0+cu128",
    "transformers": "5.15.0",
    "peft": "0.20.0",
    "datasets": "4.0.0",
    "ipywidgets": "7.7.1",
    "torchao": "0.10.0",
}


def found(hardware=LAPTOP, versions=GOOD, **situation) -> dict[str, Finding]:
    return {f.id: f for f in checks(hardware, versions, Situation(**situation))}


def bad(**arguments) -> set[str]:
    """Ids of the warnings and errors."""
    return {f.id for f in found(**arguments).values() if f.level in ("warning", "error")}


def test_a_good_machine_gets_no_warning_and_every_check_answers() -> None:
    findings = checks(LAPTOP, GOOD)
    assert bad() == set()
    assert len({f.id for f in findings}) == len(findings) == len(CHECKS)


def test_every_complaint_names_a_fix() -> None:
    worst = Situation(
        requirements=("torch>=99",),
        openmp_too_late=True,
        torch_threads=64,
        device_problem="no kernel image",
        weights_problem="model.safetensors is corrupted",
        disk_free_mib=10,
        vscode=True,
    )
    weak = dataclasses.replace(COLAB, gpus=(P100, T4), ram_gib=1.0, avx512_bf16=True)
    versions = {**COLAB_PINS, "python": "3.9.1", "ipywidgets": "8.1.9", "gguf": "0.19.0"}
    complaints = [f for f in checks(weak, versions, worst) if f.level != "ok"]
    assert len(complaints) >= 14
    assert all(f.fix for f in complaints)


def test_colab_t4() -> None:
    findings = found(hardware=COLAB, versions=COLAB_PINS)
    assert findings["torchao"].level == "warning"
    assert "torchao 0.10.0" in findings["torchao"].seen
    assert "pip uninstall -y torchao" in findings["torchao"].fix
    assert "emulates bf16" in findings["bf16"].seen
    assert "fp16=True, bf16=False" in findings["bf16"].fix
    assert findings["colab"].level == "note"
    assert bad(hardware=COLAB, versions=COLAB_PINS) == {"torchao"}
    fixed = {**COLAB_PINS, "torchao": "0.16.0"}
    assert bad(hardware=COLAB, versions=fixed) == set()


def test_colab_pins_satisfy_our_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = tuple(
        need
        for need in project["dependencies"]
        if need.split(">=")[0] in ("torch", "transformers", "trl", "peft", "datasets")
    )
    assert len(needed) == 5
    assert bad(hardware=COLAB, versions=COLAB_PINS, requirements=needed) == {"torchao"}


def test_native_bf16_is_fine() -> None:
    assert found(hardware=dataclasses.replace(COLAB, gpus=(L4,)))["bf16"].level == "ok"


def test_packages_missing_or_out_of_range() -> None:
    needs = ("torch>=2.8", "trl>=1.16,<2", "peft>=0.19")
    assert found(requirements=needs)["packages"].level == "ok"
    old = found(versions={**GOOD, "trl": "1.12.0"}, requirements=needs)["packages"]
    assert old.level == "warning"
    assert "trl 1.12.0" in old.seen
    gone = found(versions={**GOOD, "trl": None}, requirements=needs)["packages"]
    assert gone.level == "error"
    assert "missing: trl" in gone.seen
    assert found(requirements=None)["packages"].level == "warning"
    assert found(requirements=("tomli; python_version < '3'",))["packages"].level == "ok"


def test_torch_that_does_not_import_or_compute() -> None:
    broken = dataclasses.replace(LAPTOP, torch_problem="OSError: libtorch.so")
    assert found(hardware=broken)["torch"].level == "error"
    assert "libtorch" in found(hardware=broken)["torch"].seen
    assert found(device_problem="cuda: no kernel image")["torch"].level == "error"
    assert found(import_problem="the models cannot be imported")["torch"].level == "error"


@pytest.mark.parametrize(
    ("hardware", "cuda", "level", "said"),
    [
        (LAPTOP, "13.0", "note", "CUDA 13.0 build"),
        (dataclasses.replace(LAPTOP, nvidia_driver=True), "", "warning", "build for the CPU"),
        (dataclasses.replace(LAPTOP, nvidia_driver=True), "13.0", "warning", "finds no GPU"),
        (dataclasses.replace(LAPTOP, gpus=(P100,)), "13.0", "warning", "capability 6.0"),
        (COLAB, "12.8", "ok", "fits"),
        (LAPTOP, "", "ok", "fits"),
    ],
)
def test_torch_build_against_hardware(hardware, cuda, level, said) -> None:
    finding = found(hardware=hardware, torch_cuda=cuda)["torch-build"]
    assert finding.level == level
    assert said in finding.seen


def test_bitsandbytes_only_on_such_a_cpu_without_a_gpu() -> None:
    versions = {**GOOD, "bitsandbytes": "0.50.2"}
    such = dataclasses.replace(LAPTOP, avx512_bf16=True)
    assert bad(hardware=such, versions=versions) == {"bitsandbytes-cpu"}
    assert "qlora.guard_cpu(model)" in found(such, versions)["bitsandbytes-cpu"].fix
    assert bad(hardware=LAPTOP, versions=versions) == set()
    assert bad(hardware=such) == set()  # not installed
    assert bad(hardware=dataclasses.replace(COLAB, avx512_bf16=True), versions=versions) == set()


def test_openmp_and_threads() -> None:
    assert bad(openmp_too_late=True) == {"openmp"}
    mac = dataclasses.replace(LAPTOP, system="Darwin arm64")  # no libgomp there
    assert bad(hardware=mac, openmp_too_late=True) == set()
    assert found(environ={"OMP_WAIT_POLICY": "active"})["openmp"].level == "note"
    assert bad(torch_threads=9) == {"threads"}
    assert bad(torch_threads=8) == set()


def test_widgets_in_vs_code() -> None:
    versions = {**GOOD, "ipywidgets": "8.1.9"}
    assert found(versions=versions)["ipywidgets"].level == "note"
    assert bad(versions=versions, vscode=True) == {"ipywidgets"}
    assert bad(vscode=True) == set()


def test_versions_that_lost_something_are_notes() -> None:
    findings = found(versions={**GOOD, "gguf": "0.19.0"})
    assert "PPOTrainer" in findings["trl-ppo"].seen
    assert "scripts" in findings["datasets"].seen
    assert findings["gguf"].level == "note"
    older = found(versions={**GOOD, "trl": "1.12.3", "datasets": "3.6.0"})
    assert older["trl-ppo"].level == older["datasets"].level == older["gguf"].level == "ok"


def test_several_gpus_split_batches_unless_launched() -> None:
    kaggle = dataclasses.replace(COLAB, gpus=(T4, T4), platform="kaggle")
    assert bad(hardware=kaggle) == {"several-gpus"}
    assert "CUDA_VISIBLE_DEVICES=0" in found(hardware=kaggle)["several-gpus"].fix
    assert bad(hardware=kaggle, environ={"LOCAL_RANK": "0"}) == set()


@pytest.mark.parametrize(("mib", "level"), [(50, "error"), (500, "warning"), (5000, "ok")])
def test_disk_space(mib: float, level: str) -> None:
    assert found(disk_free_mib=mib, disk_path="/home")["disk"].level == level


def test_old_python_little_memory_corrupted_weights() -> None:
    assert found(versions={**GOOD, "python": "3.10.4"})["python"].level == "error"
    assert bad(hardware=dataclasses.replace(LAPTOP, ram_gib=1.5)) == {"memory"}
    assert bad(hardware=dataclasses.replace(LAPTOP, ram_gib=0)) == set()  # unknown
    broken = found(weights_problem="model.safetensors is corrupted")["weights"]
    assert broken.level == "error"
    assert "course world build" in broken.fix


def test_release() -> None:
    assert release("2.13.0+cpu") == (2, 13, 0)
    assert release("5.0.0rc1") == (5, 0, 0)
    assert release(None) == release("unknown") == ()


def report(*findings: Finding) -> doctor.Report:
    return doctor.Report(
        versions=COLAB_PINS,
        hardware=COLAB,
        choice=choose_tier(None, COLAB, {}),
        abilities=doctor.works(COLAB, COLAB_PINS, {}),
        findings=findings,
    )


def test_abilities_of_a_t4() -> None:
    works = {ability.name: ability for ability in report().abilities}
    assert works["fp16"].works
    assert not works["bf16"].works
    assert works["train on a GPU"].note == "T4"
    assert not works["QLoRA (4-bit)"].works
    assert works["QLoRA (4-bit)"].note == "pip install bitsandbytes"
    offline = {a.name: a for a in doctor.works(LAPTOP, GOOD, {"HF_HUB_OFFLINE": "1"})}
    assert not offline["models from the Hub"].works
    assert not offline["fp16"].works


def test_text_and_json_say_the_same() -> None:
    error = Finding("disk", "error", "10 MiB free at /", "free some space")
    ill = report(error, Finding("torchao", "ok", "not installed"))
    text, data = str(ill), json.loads(json.dumps(ill.to_dict()))
    assert "T4: no native bf16, so fp16 autocast over fp32 weights; 14.6 GiB; tier small" in text
    assert "10 MiB free at /" in text
    assert "fix: free some space" in text
    assert "not usable yet: mend the 1 error above" in text
    assert data["usable"] is False
    assert data["tier"]["tier"]["name"] == "small"
    assert data["tier"]["precision"] == "fp16"
    assert data["hardware"]["gpus"][0]["name"] == "Tesla T4"
    assert data["findings"][0] == dataclasses.asdict(error)
    assert report().usable
    assert "ready" in str(report())


def test_the_command_on_this_machine(monkeypatch, capsys) -> None:
    monkeypatch.delenv("COURSE_TIER", raising=False)
    code = cli.main(["doctor", "--json", "--tier", "tiny"])
    data = json.loads(capsys.readouterr().out)
    errors = [f["id"] for f in data["findings"] if f["level"] == "error"]
    assert code == (1 if errors else 0)
    assert "torch" not in errors  # a small computation was tried
    assert "packages" not in errors
    assert data["versions"]["python"].startswith("3.")
    assert data["hardware"]["cpus"] >= 1


def test_an_impossible_tier_is_told_and_is_no_crash(monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "detect_hardware", lambda environ: LAPTOP)
    assert cli.main(["doctor", "--tier", "large"]) == 1
    shown = capsys.readouterr().out
    assert "tier large" in shown
    assert "tier      none: see below" in shown


def test_a_corrupted_weight_file_is_seen(monkeypatch, tmp_path) -> None:
    from course_utils.world import model

    (tmp_path / "model.safetensors").write_bytes(b"short")
    (tmp_path / "manifest.json").write_text('{"sha256": {"model.safetensors": "0000"}}')
    monkeypatch.setattr(model, "assets", lambda: tmp_path)
    situation = doctor.look_around("cpu", {})
    assert "model.safetensors is corrupted" in situation.weights_problem


def test_a_device_that_is_not_there_is_reported() -> None:
    assert doctor.try_device("cpu") == ""
    assert doctor.try_device("cuda:99").startswith("cuda:99: ")
