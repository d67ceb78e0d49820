"""trl 0.11.4's classic PPOTrainer (generate and step) on the same workload."""

import torch
import workload as w
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from trl.models import create_reference_model


def main() -> None:
    options = w.options(__doc__)
    meter = w.Meter()
    tokenizer = w.tokenizer()
    policy = AutoModelForCausalLMWithValueHead(GPT2LMHeadModel(w.config()))
    policy.is_peft_model = False
    torch.nn.init.zeros_(policy.v_head.summary.weight)
    torch.nn.init.zeros_(policy.v_head.summary.bias)
    policy.v_head.dropout = torch.nn.Identity()
    classifier = GPT2ForSequenceClassification(w.config(labels=1)).eval()
    config = PPOConfig(
        batch_size=w.PROMPTS,
        mini_batch_size=w.PROMPTS // w.MINIBATCHES,
        gradient_accumulation_steps=1,
        ppo_epochs=w.EPOCHS,
        learning_rate=w.LEARNING_RATE,
        adap_kl_ctrl=False,
        init_kl_coef=w.BETA,
        gamma=w.GAMMA,
        lam=w.LAM,
        cliprange=w.CLIP,
        cliprange_value=w.VALUE_CLIP,
        vf_coef=w.VF_COEF,
        max_grad_norm=1.0,
        seed=options.seed,
    )
    trainer = PPOTrainer(config, policy, create_reference_model(policy), tokenizer)
    trainer.batched_forward_pass = meter.timed(
        "scoring", trainer.batched_forward_pass, only_without_grad=True
    )
    settings = {
        "max_new_tokens": w.NEW_TOKENS,
        "min_length": -1,
        "top_k": 0,
        "top_p": 1.0,
        "do_sample": True,
        "temperature": w.TEMPERATURE,
        "pad_token_id": w.PAD,
        "eos_token_id": w.EOS,
    }

    def reward(queries, answers):
        if options.task == "learn":
            return [
                torch.tensor(w.share_of_good([t for t in a.tolist() if t > w.EOS])) for a in answers
            ]
        rows = [torch.cat(pair) for pair in zip(queries, answers, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=w.PAD)
        with torch.no_grad():
            return list(classifier(ids, attention_mask=(ids != w.PAD).long()).logits[:, 0])

    generate = meter.timed("rollout", trainer.generate)
    score = meter.timed("scoring", reward)
    rows = w.prompt_ids(w.PROMPTS * options.iterations, options.seed)
    for number in range(options.iterations):
        batch = rows[number * w.PROMPTS : (number + 1) * w.PROMPTS]
        queries = [torch.tensor(ids) for ids in batch]
        answers = generate(queries, batch_size=w.PROMPTS, return_prompt=False, **settings)
        scores = score(queries, answers)
        stats = trainer.step(queries, answers, scores)
        meter.iteration(score=float(torch.stack(scores).mean()), kl=float(stats["objective/kl"]))
    meter.finish(sum(p.numel() for p in policy.pretrained_model.parameters()))


if __name__ == "__main__":
    main()
