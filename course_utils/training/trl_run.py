"""TRL's trainers inside our runs: what is logged and shown, when it is saved, how it goes on.

TRL supplies the objective and transformers' Trainer the loop. The names of theirs that this relies
on are listed in tests/training/test_trl_contract.py.
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback

from course_utils.errors import RunError
from course_utils.training.checkpoint import load_training_state, save_training_state
from course_utils.training.lm_head import use_compact_head
from course_utils.training.run import RunLog
from course_utils.training.settings import TrainSettings
from course_utils.training.trl_data import Data, Order, rows_per_step

# TRL's names -> ours; the rest of what it logs is left out
COMMON_METRICS = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "num_tokens": "tokens",
    "entropy": "entropy",
}


@dataclasses.dataclass
class Course:
    """What a trainer of ours knows beyond TRL's."""

    name: str  # of the stage: the progress bar's, and errors'
    settings: TrainSettings
    data: Data
    metrics: dict[str, str]  # TRL's names -> ours
    log: RunLog | None
    progress: bool
    start: dict[str, Any]  # what a continuation must have in common with this run
    evaluates: bool
    seconds: float = 0.0  # of training before this process continued it


class RunCallback(TrainerCallback):
    """Decides when to log, evaluate and save; writes the rows; moves the progress bar."""

    def __init__(self, course: Course) -> None:
        self.course = course
        self._row: dict[str, Any] | None = None  # waits for its evaluation
        self._writes = False  # one process of several does
        self._bar: Any = None
        self._began = 0.0

    def seconds(self) -> float:
        return self.course.seconds + time.perf_counter() - self._began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        self._began = time.perf_counter()
        self._writes = self.course.log is not None and state.is_world_process_zero
        shown = self.course.progress and state.is_world_process_zero
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.course.name,
            unit="step",
            disable=not shown,
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        settings, step = self.course.settings, state.global_step
        last = step >= state.max_steps

        def due(every: int) -> bool:
            return last or (every > 0 and step % every == 0)

        control.should_log = due(settings.log_every)
        control.should_evaluate = self.course.evaluates and due(settings.eval_every)
        saves = self.course.log is not None and settings.save_every > 0
        control.should_save = saves and due(settings.save_every)
        if control.should_evaluate or control.should_save:
            control.should_log = True  # a checkpoint holds no half-averaged loss
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        state.log_history.clear()  # the RunLog has it
        logs = logs or {}
        names = self.course.metrics
        row = {ours: logs[theirs] for theirs, ours in names.items() if theirs in logs}
        evaluated = {
            f"eval_{ours}": logs[f"eval_{theirs}"]
            for theirs, ours in names.items()
            if f"eval_{theirs}" in logs and ours != "tokens"
        }
        if "loss" in row:
            epoch = (
                state.global_step * rows_per_step(self.course.settings) / len(self.course.data.rows)
            )
            row = {"step": state.global_step, "epoch": round(epoch, 6), **row}
            row["tokens"] = int(row["tokens"])
            row["seconds"] = round(self.seconds(), 3)
            self._row = row
            self._bar.set_postfix(
                {k: f"{row[k]:.3g}" for k in ("loss", "accuracy", "margin") if k in row},
                refresh=False,
            )
            if not control.should_evaluate:
                self.write_row()
            self._check(row)
        elif evaluated and self._row is not None:
            self._row.update(evaluated)
            self.write_row()

    def write_row(self) -> None:
        """Writes the waiting row, if there is one."""
        row, self._row = self._row, None
        if row is not None and self._writes and self.course.log is not None:
            self.course.log.append(row)

    def _check(self, row: dict[str, Any]) -> None:
        """Stops a run whose loss is lost, before its weights can reach a checkpoint."""
        values = {"the loss": row.get("loss", 0.0)}
        if self.course.settings.precision != "fp16":  # there such a step is skipped
            values["the gradient's norm"] = row.get("grad_norm", 0.0)
        for name, value in values.items():
            if not math.isfinite(value):
                raise RunError(
                    f"{self.course.name}: {name} is {value} at step {row['step']}; lower "
                    f"learning_rate (now {self.course.settings.learning_rate:g}), and with fp16 "
                    "try bf16 or fp32"
                )

    def close(self) -> None:
        """Writes a row that an interrupt kept from its evaluation; ends the progress bar."""
        self.write_row()
        if self._bar is not None:
            self._bar.close()


class Trainable:
    """The trained parameters of a model as something to save: frozen ones come from the caller."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}


class RunTrainer:
    """Mixed into TRL's trainers: our data, order and checkpoints instead of theirs."""

    args: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    state: Any

    def __init__(self, *args: Any, course: Course, **kwargs: Any) -> None:
        self.course = course
        self.run_callback = RunCallback(course)
        # TRL rounds the adapters of a 4-bit model to bf16, also on a T4 or a CPU: take that back
        model = kwargs["model"]
        before = [(p, p.data) for p in model.parameters() if p.requires_grad]
        super().__init__(*args, callbacks=[self.run_callback], **kwargs)  # type: ignore[call-arg]
        for parameter, data in before:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        from transformers import PrinterCallback

        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]

    def _send_telemetry(self) -> None:
        """A course sends nothing home."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # tokenised already

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return Order(self.course.data.order)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # theirs walks through all modules at every step

    # ---- checkpoints: theirs are pickles -----------------------------------------------------

    def _parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        trained = self.accelerator.unwrap_model(self.model)
        stepped = {"optimizer": self.optimizer, "schedule": self.lr_scheduler}
        if self.accelerator.scaler is not None:
            stepped["scaler"] = self.accelerator.scaler
        return {"trained": Trainable(trained)}, stepped

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        log = self.course.log
        if log is not None and self.args.should_save:
            modules, optimizers = self._parts()
            extra = {
                "start": self.course.start,
                "seconds": self.run_callback.seconds(),
                "tokens": self._total_train_tokens,
            }

            def write(directory: Path) -> None:
                save_training_state(directory, modules, optimizers, extra)
                self.state.save_to_json(str(directory / "trainer_state.json"))

            log.save_checkpoint(self.state.global_step, write)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights are loaded with the optimizer's state, below."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            extra = load_training_state(checkpoint, *self._parts())
            self.course.seconds = extra["seconds"]
            self._total_train_tokens = extra["tokens"]

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_training_state(checkpoint, {})


class LanguageRunTrainer(RunTrainer):
    """For SFT and DPO, whose loss is made of token log-probabilities."""

    _compacted = False

    def use_compact_heads(self) -> None:
        """Our head for the CPU in place of TRL's; see lm_head.py."""
        if self._compacted or self.args.device.type != "cpu":
            return
        self._compacted = True
        use_compact_head(self.model)
        reference = getattr(self, "ref_model", None)
        if reference is not None and not (self.args.bf16 or self.args.fp16):
            use_compact_head(reference)  # under autocast TRL has wrapped it already

    def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
        self.use_compact_heads()
        return super()._precompute_ref_logps(*args, **kwargs)  # type: ignore[misc]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.use_compact_heads()
        return super().train(*args, **kwargs)  # type: ignore[misc]


@functools.cache
def course_trainer(base: type, mixin: type = RunTrainer) -> type:
    """TRL's trainer class with ours mixed in."""
    return type(f"Course{base.__name__}", (mixin, base), {})
