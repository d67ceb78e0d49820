"""What we use of TRL and transformers' Trainer by name: when they drift, this breaks first."""

import dataclasses
import inspect

import pytest

from course_utils.training.dpo import DPOSettings, dpo_arguments
from course_utils.training.reward import RewardSettings, reward_arguments
from course_utils.training.sft import SFTSettings, sft_arguments
from course_utils.training.trl_run import LanguageRunTrainer, RunTrainer

STAGES = {
    "sft": ("SFTConfig", "SFTTrainer", sft_arguments, SFTSettings),
    "reward": ("RewardConfig", "RewardTrainer", reward_arguments, RewardSettings),
    "dpo": ("DPOConfig", "DPOTrainer", dpo_arguments, DPOSettings),
}
OVERRIDDEN = (
    "_send_telemetry",
    "_prepare_dataset",
    "_get_train_sampler",
    "floating_point_ops",
    "_save_checkpoint",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_scaler",
    "_load_rng_state",
    "train",
)


@pytest.fixture(params=STAGES)
def stage(request):
    import trl

    config, trainer, arguments, settings = STAGES[request.param]
    return getattr(trl, config), getattr(trl, trainer), arguments, settings


def test_every_argument_is_a_field_and_has_our_value(stage, tmp_path):
    config, _, arguments, settings = stage
    given = arguments(settings(seed=3, batch_size=5, gradient_accumulation=2), 40, str(tmp_path))
    fields = {field.name for field in dataclasses.fields(config)}
    assert set(given) <= fields, set(given) - fields
    made = config(**given)
    for name, value in given.items():
        if name not in ("report_to", "loss_type"):
            assert getattr(made, name) == value, name
    assert made.report_to == []
    # what TRL or Trainer would choose otherwise
    assert (made.bf16, made.fp16, made.gradient_checkpointing) == (False, False, False)
    assert (made.push_to_hub, made.dataloader_num_workers, made.seed) == (False, 0, 3)
    assert made.train_batch_size == 5
    assert made.get_warmup_steps(40) == 2
    assert made.optim == "adamw_torch_fused"


def test_precision_and_schedule_reach_the_config(stage, tmp_path):
    config, _, arguments, settings = stage
    given = arguments(settings(precision="bf16", schedule="constant"), 10, str(tmp_path))
    made = config(**given)
    assert (made.bf16, made.fp16) == (True, False)
    assert made.lr_scheduler_type == "constant_with_warmup"
    assert made.use_cpu
    half = arguments(settings(precision="fp16"), 10, str(tmp_path), "cuda")
    assert (half["fp16"], half["use_cpu"], half["dataloader_pin_memory"]) == (True, False, True)


def test_the_methods_we_replace_exist_with_these_parameters(stage):
    trainer = stage[1]
    for name in OVERRIDDEN:
        theirs = inspect.signature(getattr(trainer, name)).parameters
        ours = inspect.signature(getattr(LanguageRunTrainer, name)).parameters
        if any(p.kind is p.VAR_POSITIONAL for p in ours.values()):
            continue
        assert list(ours) == list(theirs), name


def test_what_else_we_rely_on():
    import transformers
    from accelerate import Accelerator
    from trl import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput

    assert hasattr(DPOTrainer, "_precompute_ref_logps")
    assert hasattr(transformers, "PrinterCallback")
    assert {"loss", "log_probs", "entropy", "mean_logits", "is_top1", "label_mask"} <= {
        field.name for field in dataclasses.fields(FusedCausalLMOutput)
    }
    # checkpoints: everything that resuming reads goes through the methods we replace
    source = inspect.getsource(transformers.Trainer)
    assert "torch.load(" in source, "Trainer no longer pickles: our overrides may be obsolete"
    loop = inspect.getsource(transformers.Trainer.train)
    assert "_load_from_checkpoint" in loop
    assert "trainer_state.json" in transformers.trainer.TRAINER_STATE_NAME
    assert {"scaler", "unwrap_model"} <= set(dir(Accelerator()))


def test_nothing_is_sent_home(toy, monkeypatch, tmp_path):
    import trl.trainer.base_trainer as module

    def send(*args, **kwargs):
        raise AssertionError("telemetry was sent")

    monkeypatch.setattr(module, "send_telemetry", send)
    monkeypatch.delenv("CI", raising=False)
    toy.train("sft", tmp_path / "r", steps=1, save_every=0)
    assert RunTrainer._send_telemetry is not None
