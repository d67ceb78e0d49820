"""trl 1.16's RLOOTrainer on the same workload: 16 prompts x 4 answers, each batch used 4 times."""

import tempfile
import time

import workload as w
from datasets import Dataset
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

GENERATIONS = 4


def main() -> None:
    options = w.options(__doc__)
    meter = w.Meter()
    tokenizer = w.tokenizer()
    folder = tempfile.mkdtemp()  # the reference is loaded from where the policy came from
    GPT2LMHeadModel(w.config()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = GPT2LMHeadModel.from_pretrained(folder)
    if options.task == "learn":

        def reward(completions, **_):
            return [w.share_of_good_text(text) for text in completions]

        more = {"reward_funcs": reward}
    else:
        classifier = GPT2ForSequenceClassification(w.config(labels=1))
        more = {"reward_funcs": classifier, "reward_processing_classes": w.tokenizer()}
    updates = w.EPOCHS * w.MINIBATCHES
    config = RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=w.PROMPTS // w.MINIBATCHES,
        gradient_accumulation_steps=1,
        generation_batch_size=w.PROMPTS,
        num_generations=GENERATIONS,
        num_iterations=w.EPOCHS,
        max_steps=updates * options.iterations,
        max_completion_length=w.NEW_TOKENS,
        temperature=w.TEMPERATURE,
        disable_dropout=True,
        learning_rate=w.LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=w.BETA,
        epsilon=w.CLIP,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=options.precision == "bf16",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=updates,
        disable_tqdm=True,
        seed=options.seed,
    )
    count = w.PROMPTS // GENERATIONS * options.iterations
    prompts = [w.as_text(ids) for ids in w.prompt_ids(count, options.seed)]
    trainer = RLOOTrainer(
        model=policy,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        **more,
    )
    make = trainer._generate_and_score_completions
    generate = meter.timed("rollout", trainer._generate)
    trainer._generate = generate
    spent = [0.0, 0.0]

    def scored(*args, **kwargs):
        """Generation is inside of it: scoring is the rest."""
        before = list(meter.parts.get("rollout", [0.0, 0.0]))
        wall, cpu = time.perf_counter(), time.process_time()
        result = make(*args, **kwargs)
        after = meter.parts["rollout"]
        spent[0] = time.perf_counter() - wall - (after[0] - before[0])
        spent[1] = time.process_time() - cpu - (after[1] - before[1])
        meter.parts["scoring"] = list(spent)
        return result

    trainer._generate_and_score_completions = scored

    class Rows(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "reward" in logs:
                per_token = logs["kl"]
                meter.iteration(
                    score=logs["reward"], kl=per_token * logs["completions/mean_length"]
                )

    trainer.add_callback(Rows())
    trainer.train()
    meter.finish(policy.num_parameters())


if __name__ == "__main__":
    main()
