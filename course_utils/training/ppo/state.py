"""A trainer's whole state on disk: weights, optimizer, generators, position in the prompts, β."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from course_utils.errors import CheckpointError
from course_utils.models import is_peft, parts_of
from course_utils.training.checkpoint import load_training_state, save_training_state
from course_utils.training.ppo.processes import WholeState

if TYPE_CHECKING:
    from course_utils.training.ppo.trainer import PPOTrainer


def _trained(trainer: "PPOTrainer") -> nn.Module:
    """What training changes: everything, or with PEFT the adapter and the value head only."""
    if not is_peft(trainer.policy):
        return trainer.actor
    view = nn.Module()
    for name, parameter in trainer.actor.named_parameters():
        if parameter.requires_grad:
            view.register_parameter(name.replace(".", "/"), parameter)
    return view


def _parts(trainer: "PPOTrainer") -> tuple[dict[str, Any], dict[str, Any]]:
    """Modules and optimizers to save, whole even if the processes hold shards of them."""
    modules: dict[str, Any] = {"actor": _trained(trainer)}
    if trainer.judge is not None:
        modules["judge"] = trainer.judge
    optimizers: dict[str, Any] = {"adam": trainer.updater.optimizer}
    if trainer.processes.sharded:
        modules = {name: WholeState(module) for name, module in modules.items()}
        optimizers = {name: WholeState(optimizer) for name, optimizer in optimizers.items()}
    return modules, optimizers


def state_writer(trainer: "PPOTrainer") -> Callable[[Path], None]:
    """Collects the trainer's state; the function returned fills a checkpoint's directory."""
    modules, optimizers = _parts(trainer)
    extra = {
        "step": trainer.steps_done,
        "tokens": trainer.tokens,
        "prompts": len(trainer.prompts.prompts),
        "prompts_drawn": trainer.prompts.drawn,
        "beta": trainer.kl_control.beta,
        "stop_reason": trainer.stop_reason,
        "micro_batch": trainer.updater.micro_batch,
        "scaler": trainer.updater.scaler.state_dict(),
        "judged": trainer.judge.history if trainer.judge is not None else [],
        "reference": _fingerprint(trainer),
    }
    generators = {"sampling": trainer.generator}
    return lambda where: save_training_state(where, modules, optimizers, extra, generators)


def load_state(trainer: "PPOTrainer", directory: Path) -> None:
    """Sets the trainer to a checkpoint. Raises CheckpointError when it is of another run."""
    reference = _fingerprint(trainer)
    if trainer.judge is not None:
        trainer.judge.keep(trainer.policy)  # tensors to load into
    modules, optimizers = _parts(trainer)
    extra = load_training_state(directory, modules, optimizers, {"sampling": trainer.generator})
    for part in (*modules.values(), *optimizers.values()):
        if isinstance(part, WholeState):
            part.put_back()
    if trainer.judge is not None:
        trainer.judge.history = [(int(step), float(value)) for step, value in extra["judged"]]
    if extra["prompts"] != len(trainer.prompts.prompts):
        raise CheckpointError(
            f"{directory} is of a run on {extra['prompts']} prompts, there are now "
            f"{len(trainer.prompts.prompts)}; resume with the same prompts"
        )
    if max(abs(a - b) for a, b in zip(extra["reference"], reference, strict=True)) > 1e-2:
        raise CheckpointError(
            f"the run of {directory} measured its KL from another reference; make the trainer with "
            "the policy that the run started from (for example the SFT model), not a trained one"
        )
    trainer.steps_done, trainer.tokens = extra["step"], extra["tokens"]
    trainer.prompts.drawn = extra["prompts_drawn"]
    trainer.kl_control.beta = extra["beta"]
    trainer.stop_reason = extra["stop_reason"]
    trainer.updater.micro_batch = extra["micro_batch"]
    if trainer.updater.scaler.is_enabled():
        trainer.updater.scaler.load_state_dict(extra["scaler"])


def _fingerprint(trainer: "PPOTrainer") -> list[float]:
    """The reference's log-probabilities after a few tokens: tells one model from another."""
    ids = torch.arange(1, 9, device=trainer.policy.device).unsqueeze(0)
    with trainer.processes.whole(), trainer.reference.model() as model:
        parts = parts_of(model)
        hidden = parts.trunk(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
        return parts.logits(hidden).float().log_softmax(dim=-1)[:8].tolist()
