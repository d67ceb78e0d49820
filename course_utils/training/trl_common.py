"""What the three trainers on TRL share: its arguments, and one training from start to end.

Ours are the data (tokenised before, in an explicit order), the cadence of logging, evaluating and
saving, rows in a RunLog, and checkpoints without pickle that a killed run continues from bit for
bit (trl_run.py). The caller's model, tokenizer and random numbers are left as they were found.
"""

import contextlib
import copy
import dataclasses
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CheckpointError, CourseError, RunError
from course_utils.training.checkpoint import (
    load_training_state,
    random_state,
    restore_random_state,
)
from course_utils.training.jsonl import plain
from course_utils.training.lm_head import inner_model
from course_utils.training.run import RunLog
from course_utils.training.settings import TrainSettings
from course_utils.training.tokenise import Row
from course_utils.training.trl_data import Data, as_dataset
from course_utils.training.trl_run import (
    COMMON_METRICS,
    Course,
    Trainable,
    course_trainer,
)

FREE_TO_CHANGE = ("log_every", "eval_every", "save_every")  # between a run and its continuation


def common_arguments(
    settings: TrainSettings, steps: int, scratch: str, device: str = "cpu"
) -> dict[str, Any]:
    """Arguments of SFTConfig, RewardConfig and DPOConfig alike; little is left to defaults.

    TRL's own would be bf16 (even on a T4, where it is emulated), activation checkpointing, a
    progress bar, and reports to whatever tracker is installed.
    """
    from trl import SFTConfig

    names = {field.name for field in dataclasses.fields(SFTConfig)}
    # renamed in transformers 5.2x; the old name warns there
    recompute = "activation_checkpointing"
    recompute = recompute if recompute in names else "gradient_checkpointing"
    return {
        "output_dir": scratch,
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": 2 * settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule
        if settings.schedule != "constant"
        else "constant_with_warmup",
        "warmup_steps": round(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": settings.optimizer or "adamw_torch_fused",
        "seed": settings.seed,
        "bf16": settings.precision == "bf16",
        "fp16": settings.precision == "fp16",
        "use_cpu": device == "cpu",
        recompute: settings.checkpoint_activations,
        "max_length": None,  # the rows are cut already
        "pad_to_multiple_of": None,
        "dataset_num_proc": None,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device == "cuda",
        "remove_unused_columns": False,  # there are none
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "log_level": "error",
        "logging_strategy": "no",  # RunCallback says when
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_nan_inf_filter": False,  # a NaN loss must be seen
    }


# ---- one training ----------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Stage:
    """One training with TRL, described; `run()` does it."""

    name: str  # of the stage: the progress bar's, and errors'
    trainer: type  # TRL's trainer class
    mixin: type  # RunTrainer or LanguageRunTrainer
    config: Callable[[int, str, str], Any]  # (steps, scratch directory, device) -> TRL's config
    metrics: dict[str, str]  # TRL's names -> ours, beyond the common ones
    model: Any
    tokenizer: Any
    rows: list[Row]
    eval_rows: list[Row] | None
    settings: TrainSettings
    log: RunLog | None
    resume: bool
    progress: bool
    reference: Any = None  # DPO's, when it is a model of its own
    has_reference: bool = False  # the loss compares with the reference, or with the start
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)  # more for the trainer

    def run(self) -> None:
        """Trains the model in place, or continues, or restores what was finished before."""
        self._check_precision()
        found = self._checkpoint()
        data = Data.of(self.rows, self.settings)
        start = self._start(data)
        models = [self.model] if self.reference is None else [self.model, self.reference]
        with own_randomness(), as_found(*models), quiet_libraries(self.progress):
            if found is not None:
                finished = found[0] >= data.steps
                self._check_start(found[1], start, ("reference",) if finished else ())
                if finished:  # only the weights are wanted
                    load_training_state(found[1], {"trained": Trainable(self.model)})
                    return
            if self.log is not None and self.resume and is_main_process():
                self.log.rewind(0 if found is None else found[0])  # forget what came later
            with tempfile.TemporaryDirectory(prefix="course-") as scratch:
                self._train(data, start, scratch, found)

    def _train(
        self, data: Data, start: dict[str, Any], scratch: str, found: tuple[int, Path] | None
    ) -> None:
        course = Course(
            name=self.name,
            settings=self.settings,
            data=data,
            metrics={**COMMON_METRICS, **self.metrics},
            log=self.log,
            progress=self.progress,
            start=start,
            evaluates=self.eval_rows is not None,
        )
        trainer = course_trainer(self.trainer, self.mixin)(
            course=course,
            model=self.model,
            args=self.config(data.steps, scratch, self._device()),
            train_dataset=as_dataset(data.rows),
            eval_dataset=None if self.eval_rows is None else as_dataset(self.eval_rows),
            processing_class=copy.deepcopy(self.tokenizer),  # TRL writes into it
            **self.arguments,
        )
        try:
            trainer.train(resume_from_checkpoint=None if found is None else str(found[1]))
        finally:
            trainer.run_callback.close()

    def _device(self) -> str:
        """A CUDA GPU when there is one, else where the model is ("cpu" or "mps")."""
        return "cuda" if torch.cuda.is_available() else self.model.device.type

    def _check_precision(self) -> None:
        if self.settings.precision != "fp16":
            return
        if not torch.cuda.is_available():
            raise CourseError(
                f"{self.name}: fp16 training needs a CUDA GPU and none is seen; use precision "
                '"fp32" or "bf16"'
            )
        half = [n for n, p in self.model.named_parameters() if p.requires_grad and is_fp16(p)]
        if half:
            raise CourseError(
                f"{self.name}: {half[0]} is float16, and fp16 training needs float32 weights "
                "(autocast computes in float16); load the model with dtype=torch.float32"
            )

    def _checkpoint(self) -> tuple[int, Path] | None:
        """Where to go on; None at the beginning."""
        if self.log is None:
            if self.resume:
                raise CourseError(
                    f"{self.name}: resume=True needs the RunLog of the run: pass log="
                )
            return None
        if not self.resume:
            if self.log.rows:
                raise RunError(
                    f"{self.log.directory} has rows of a training already; pass resume=True to "
                    "continue it, or a log in a new directory"
                )
            return None
        return self.log.latest_checkpoint()

    def _start(self, data: Data) -> dict[str, Any]:
        """What a continuation must have in common with the run."""
        if self.log is None or (self.settings.save_every == 0 and not self.resume):
            return {}
        frozen = [(n, p) for n, p in self.model.named_parameters() if not p.requires_grad]
        reference = (self.model if self.reference is None else self.reference).named_parameters()
        settings = {k: v for k, v in plain(self.settings).items() if k not in FREE_TO_CHANGE}
        return {
            **{f"settings.{name}": value for name, value in settings.items()},
            "training data": data.sha256(),
            "frozen weights": fingerprint(frozen),
            **({"reference": fingerprint(reference)} if self.has_reference else {}),
        }

    def _check_start(self, checkpoint: Path, start: dict[str, Any], skip: tuple[str, ...]) -> None:
        saved = load_training_state(checkpoint, {})["start"]
        changed = [key for key in start if saved.get(key) != start[key] and key not in skip]
        if changed:
            key = changed[0]
            values = f" ({saved.get(key)!r} then, {start[key]!r} now)" if "settings" in key else ""
            raise CheckpointError(
                f"{self.name}: the run in {checkpoint.parent.parent} was started with other "
                f"{', '.join(changed)}{values}; resume with the same, or start a new run"
            )


def is_fp16(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float16


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun


def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Tells two sets of weights apart: names, shapes and the sums of their bits as integers."""
    digest = hashlib.sha256()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, tensor in parameters:
        bits = tensor.detach().contiguous().view(integers[tensor.element_size()])
        text = f"{name} {tensor.dtype} {tuple(tensor.shape)} {int(bits.sum(dtype=torch.int64))}"
        digest.update(text.encode())
    return digest.hexdigest()


# ---- leaving things as they were -------------------------------------------------------------


@contextlib.contextmanager
def as_found(*models: Any) -> Iterator[None]:
    """Takes off what TRL and accelerate put on the models' forward; leaves them in eval mode."""
    inner = {id(m): m for model in models for m in (model, inner_model(model))}
    before = {key: dict(model.__dict__) for key, model in inner.items()}
    try:
        yield
    finally:
        for key, model in inner.items():
            for name in ("forward", "_original_forward"):
                model.__dict__.pop(name, None)
                if name in before[key]:
                    model.__dict__[name] = before[key][name]
            model.eval()


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """The caller's random numbers go on afterwards as if nothing had been trained."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@contextlib.contextmanager
def quiet_libraries(progress: bool) -> Iterator[None]:
    """Only errors from transformers, and only our progress bar."""
    import datasets
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled()
    own_bars = transformers_logging.is_progress_bar_enabled()
    hidden = os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    if not progress:
        transformers_logging.disable_progress_bar()  # over a model's weights
        os.environ["TQDM_DISABLE"] = "1"  # TRL's bar over the reference's log-probabilities
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # theirs, about each other's names
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
        if own_bars:
            transformers_logging.enable_progress_bar()
        if hidden is None:
            os.environ.pop("TQDM_DISABLE", None)
