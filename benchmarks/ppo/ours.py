"""Our PPOTrainer on the benchmark's workload."""

import course_utils  # noqa: F401  (sets the OpenMP variables before torch is imported)

# isort: split
import workload as w
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from course_utils.training.ppo import PPOConfig, PPOTrainer, per_answer
from course_utils.training.reward_model import RewardModel


def main() -> None:
    options = w.options(__doc__)
    meter = w.Meter()
    tokenizer = w.tokenizer()
    policy = GPT2LMHeadModel(w.config())
    size = policy.num_parameters()
    if options.lora:
        from peft import LoraConfig, get_peft_model

        policy = get_peft_model(policy, LoraConfig(r=8, target_modules="all-linear"))
    if options.task == "learn":
        reward = per_answer(lambda prompt, answer: w.share_of_good_text(answer))
    else:
        reward = RewardModel(GPT2ForSequenceClassification(w.config(labels=1)), tokenizer)
    config = PPOConfig(
        steps=options.iterations,
        rollouts_per_step=w.PROMPTS,
        epochs=w.EPOCHS,
        minibatches=w.MINIBATCHES,
        micro_batch=w.PROMPTS // w.MINIBATCHES,
        max_new_tokens=w.NEW_TOKENS,
        temperature=w.TEMPERATURE,
        learning_rate=w.LEARNING_RATE,
        value_lr_factor=1.0,
        beta=w.BETA,
        gamma=w.GAMMA,
        lam=w.LAM,
        clip=w.CLIP,
        value_clip=w.VALUE_CLIP,
        vf_coef=w.VF_COEF,
        missing_eos_penalty=0.0,
        precision=options.precision,
        seed=options.seed,
    )
    prompts = [w.as_text(ids) for ids in w.prompt_ids(w.PROMPTS * options.iterations, options.seed)]
    trainer = PPOTrainer(policy, reward, tokenizer, prompts, config)
    for step in trainer:
        meter.parts = {name: list(trainer.timings[name]) for name in ("rollout", "scoring")}
        meter.iteration(score=step.stats["reward"], kl=step.stats["kl"])
    meter.finish(size)


if __name__ == "__main__":
    main()
