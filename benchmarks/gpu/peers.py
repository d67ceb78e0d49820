"""Trainers beside our PPO on the same GPU, shape, answers and number of updates, if installed."""

import random
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import stages
from conduct import Row, Skip

GROUP = 4  # answers of a prompt
UPDATES = 2  # of a step, as our part "ppo-…" does


def rloo(place: dict[str, Any]) -> Iterator[Row]:
    """TRL's RLOOTrainer, which has no critic: the on-policy trainer that TRL offers today."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    from course_utils.training.reward_model import sequence_classifier

    work, rng = stages.work_for(place), random.Random(0)
    precision = "fp32" if place["dry"] else "bf16" if place["has"]["bf16"] else "fp16"
    tokenizer, iterations = stages.tokenizer_for(work.shape), 2 if place["dry"] else 3
    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % UPDATES == 0:
                if place["device"] == "cuda":
                    import torch

                    torch.cuda.synchronize()
                clock.append(time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        stages.build(work.shape, place["device"]).save_pretrained(folder)
        tokenizer.save_pretrained(folder)  # the reference is loaded from there
        policy = AutoModelForCausalLM.from_pretrained(folder).to(place["device"])
        stages.fresh_peak(place)
        config = RLOOConfig(
            output_dir=folder,
            per_device_train_batch_size=work.answers // UPDATES // accumulation(work.answers),
            gradient_accumulation_steps=accumulation(work.answers),
            generation_batch_size=work.answers,
            num_generations=GROUP,
            num_iterations=1,
            max_steps=UPDATES * iterations,
            max_completion_length=work.new,
            disable_dropout=True,
            learning_rate=1e-6,
            beta=0.02,
            gradient_checkpointing=False,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=place["device"] == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        prompts = [stages.words(rng, work.shape, work.prompt) for _ in range(work.answers // GROUP)]
        trainer = RLOOTrainer(
            model=policy,
            reward_funcs=sequence_classifier(policy),
            reward_processing_classes=stages.tokenizer_for(work.shape),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts * iterations}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = (clock[-1] - clock[0]) / (len(clock) - 1)
    yield {
        "what": f"{work.shape.name}, {work.answers} answers of {work.new} after {work.prompt}",
        "precision": precision,
        "step_seconds": seconds,
        "tokens_s": work.answers * work.new / seconds,
        "note": f"TRL's RLOO, no critic, in {precision}; compare with ppo-{precision}",
        **stages.memory(place),
    }


def accumulation(answers: int) -> int:
    """Forward passes of an update, of at most 16 answers each, as ours."""
    return max(1, answers // UPDATES // 16)


def trl_ppo(place: dict[str, Any]) -> Iterator[Row]:
    """TRL's PPOTrainer, so that the table says why it is not there."""
    raise Skip(
        "not installed: trl has had no PPOTrainer since 1.13 and this course needs 1.16; "
        "benchmarks/ppo/run.py compares with those of 1.12 and 0.11, on the CPU"
    )
    yield {}
