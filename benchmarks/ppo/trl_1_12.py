"""trl 1.12.0's experimental PPOTrainer, the last release that had one, on the same workload."""

import tempfile

import torch
import workload as w
from datasets import Dataset
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class GoodShare(nn.Module):
    """The learning task as the classifier that this trainer asks for: score = last hidden state."""

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Identity()

    def backbone(self, input_ids, **_):
        good = (input_ids >= w.GOOD.start) & (input_ids < w.GOOD.stop)
        answers = good[:, w.PROMPT_TOKENS :].float().cumsum(1)
        length = torch.arange(1, answers.shape[1] + 1)
        share = torch.cat([torch.zeros(len(good), w.PROMPT_TOKENS), 10 * answers / length], dim=1)

        class Output:
            hidden_states = (share.unsqueeze(-1),)

        return Output


def main() -> None:
    options = w.options(__doc__)
    meter = w.Meter()
    tokenizer = w.tokenizer()
    policy = GPT2LMHeadModel(w.config())
    reward = (
        GoodShare()
        if options.task == "learn"
        else GPT2ForSequenceClassification(w.config(labels=1))
    )
    value = GPT2ForSequenceClassification(w.config(labels=1))
    nn.init.zeros_(value.score.weight)
    config = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        # one minibatch an "accumulated" batch: with gradient_accumulation_steps = 4 accelerate
        # would make one optimizer update of the four
        per_device_train_batch_size=w.PROMPTS,
        gradient_accumulation_steps=1,
        num_mini_batches=w.MINIBATCHES,
        num_ppo_epochs=w.EPOCHS,
        total_episodes=w.PROMPTS * options.iterations,
        response_length=w.NEW_TOKENS,
        temperature=w.TEMPERATURE,
        learning_rate=w.LEARNING_RATE,
        lr_scheduler_type="constant",
        kl_coef=w.BETA,
        gamma=w.GAMMA,
        lam=w.LAM,
        cliprange=w.CLIP,
        cliprange_value=w.VALUE_CLIP,
        vf_coef=w.VF_COEF,
        num_sample_generations=0,
        use_cpu=True,
        bf16=options.precision == "bf16",
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=options.seed,
    )
    rows = w.prompt_ids(w.PROMPTS * options.iterations, options.seed)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        eval_dataset=Dataset.from_dict({"input_ids": rows[: w.PROMPTS]}),
    )
    ppo_trainer.batch_generation = meter.timed("rollout", ppo_trainer.batch_generation)
    ppo_trainer.forward = meter.timed("scoring", ppo_trainer.forward, only_without_grad=True)
    ppo_trainer.get_reward = meter.timed("scoring", ppo_trainer.get_reward)
    log = trainer.log

    def logged(metrics, *args, **kwargs):
        if "objective/kl" in metrics:
            meter.iteration(score=metrics["objective/scores"], kl=metrics["objective/kl"])
        else:
            log(metrics, *args, **kwargs)

    trainer.log = logged
    trainer.train()
    meter.finish(policy.num_parameters())


if __name__ == "__main__":
    main()
