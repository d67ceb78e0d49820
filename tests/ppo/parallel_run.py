"""A short PPO run, the same script for one process and for several; prints nothing.

python parallel_run.py OUT.safetensors '{"sharded": false, ...settings}'
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import torch
from accelerate import PartialState
from safetensors.torch import save_file

from course_utils.training.ppo import HeldOutJudge, PPOConfig, PPOTrainer
from course_utils.training.ppo.processes import whole_tensor
from course_utils.training.run import RunLog


def fixtures(path: Path) -> Any:
    """A conftest.py as a module."""
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    common = fixtures(Path(__file__).parents[1] / "conftest.py")
    ppo = fixtures(Path(__file__).parent / "conftest.py")
    out, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    state = PartialState(cpu=True)
    torch.set_num_threads(1)
    tokenizer = common.build_tokenizer()
    policy = ppo.lively(common.build_model(tokenizer), tokenizer)
    seed = state.process_index if options.pop("other_seeds", False) else 0
    torch.manual_seed(seed)
    if options.pop("lora", False):
        from peft import LoraConfig, get_peft_model

        policy = get_peft_model(policy, LoraConfig(r=2, target_modules="all-linear"))
    judge = None
    if options.pop("judge", False):
        judge = HeldOutJudge(ppo.share_of_wanted, ["hello", "why"], every=1, patience=9)
    resume = options.pop("resume", False)
    logged = options.pop("log", False)
    config = PPOConfig(
        **{
            "steps": 2,
            "rollouts_per_step": 16,
            "minibatches": 2,
            "micro_batch": 3,
            "max_new_tokens": 10,
            "learning_rate": 1e-3,
            "rollouts_every": 0,
            "save_every": 1,
            **options,
        }
    )
    log = None
    if logged and state.is_main_process:
        log = RunLog.create(out.with_name("run"), {}, seed=0, resume=resume)
    trainer = PPOTrainer(
        policy,
        ppo.share_of_wanted,
        tokenizer,
        ppo.PROMPTS,
        config,
        log=log,
        judge=judge,
    )
    if resume:
        trainer.resume()
    rows = trainer.train(progress=False)
    tensors = {
        name: whole_tensor(p.detach()).clone() for name, p in trainer.actor.named_parameters()
    }
    if state.is_main_process:
        save_file(tensors, out)
        kept = ("step", "reward", "kl", "grad_norm", "ratio_max", "ratio_min", "entropy", "judge")
        found = [{name: row[name] for name in kept if name in row} for row in rows]
        out.with_suffix(".json").write_text(
            json.dumps({"processes": trainer.processes.size, "rows": found})
        )
    # gloo's threads may still run when the interpreter goes, and then abort the process
    state.wait_for_everyone()
    state.destroy_process_group()


if __name__ == "__main__":
    main()
