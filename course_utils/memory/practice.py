"""A recipe put into practice on a small random model, to hold the calculator to what it measures.

    measured = measure(shape, recipe, seq=128, batch=4, completion=96)      # bytes, on the CPU

The steps are the course's own pieces (logits at the answer's positions, `Reference`, `sample`, the
losses of `objectives`) in the plainest loop.
"""

import contextlib
import dataclasses
import gc
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.generation import sample
from course_utils.memory.measure import LiveTensorMemory, allocator_peak
from course_utils.memory.recipe import Recipe
from course_utils.memory.shape import ModelShape
from course_utils.models import (
    PolicyWithValue,
    Reference,
    chosen_hidden,
    freeze,
    parts_of,
    unwrapped,
)
from course_utils.objectives import clipped_value_loss, dpo_loss, ppo_policy_loss
from course_utils.objectives.likelihood import token_logprobs
from course_utils.objectives.preference import bradley_terry_loss
from course_utils.training.reward_model import sequence_classifier

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# ---- models ------------------------------------------------------------------------------------


def config_of(shape: ModelShape) -> Any:
    """The Hugging Face config of a shape, without dropout."""
    from transformers import GPT2Config, LlamaConfig, OPTConfig, Qwen3Config

    tokens = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    common = {"vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied, **tokens}
    if shape.family == "gpt2":
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(
            n_embd=shape.hidden,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_inner=shape.ffn,
            n_positions=shape.context,
            **common,
            **dropout,
        )
    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
    }
    if shape.family == "opt":
        embedding = shape.embedding or shape.hidden
        return OPTConfig(
            ffn_dim=shape.ffn, word_embed_proj_dim=embedding, dropout=0.0, **sizes, **common
        )
    sizes |= {
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.ffn,
        "head_dim": shape.head_dim,
        "attention_bias": shape.attention_bias,
    }
    return (Qwen3Config if shape.qk_norm else LlamaConfig)(**sizes, **common)


def build(shape: ModelShape, recipe: Recipe, device: str = "cpu") -> Any:
    """A random model as the recipe holds it, in train mode; with adapters if it has them.

    For the task "reward" it is a sequence classifier with one output.
    """
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    attention = "flash_attention_2" if recipe.attention == "flash" else recipe.attention
    model = AutoModelForCausalLM.from_config(config_of(shape), attn_implementation=attention)
    model = model.to(DTYPES[recipe.weights])
    if recipe.method == "qlora":
        _quantize(model, recipe)
    model = model.to(device)
    if recipe.task == "reward":
        model = sequence_classifier(model)
    if recipe.peft:
        model = _with_adapters(model, recipe)
    if recipe.checkpointing:
        inner = unwrapped(model)
        newer = getattr(inner, "activation_checkpointing_enable", None)
        (newer or inner.gradient_checkpointing_enable)({"use_reentrant": False})
    return model.train(recipe.trains)


def _quantize(model: Any, recipe: Recipe) -> None:
    """Puts bitsandbytes' 4-bit layers in the place of the blocks' matrices, as loading does.

    They are packed to 4 bits when the model is next moved to a device.
    """
    import bitsandbytes as bnb
    from transformers.pytorch_utils import Conv1D

    computing = recipe.weights if recipe.autocast == "none" else recipe.autocast
    for layer in blocks(model):
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if not isinstance(child, nn.Linear | Conv1D):
                    continue
                weight = child.weight.data
                weight = weight.T.contiguous() if isinstance(child, Conv1D) else weight
                new = bnb.nn.Linear4bit(
                    weight.shape[1],
                    weight.shape[0],
                    bias=child.bias is not None,
                    compute_dtype=DTYPES[computing],
                    compress_statistics=recipe.double_quant,
                    quant_type="nf4",
                )
                new.weight = bnb.nn.Params4bit(
                    weight,
                    requires_grad=False,
                    compress_statistics=recipe.double_quant,
                    quant_type="nf4",
                    module=new,
                )
                new.bias = child.bias
                # else an evaluation repacks the weights on CPUs with AVX512-BF16, and training
                # after it goes wrong without a word
                new.support_avx512bf16_for_cpu = False
                setattr(parent, name, new)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True


def blocks(model: Any) -> Any:
    """The list of decoder blocks."""
    trunk = unwrapped(model).base_model
    trunk = getattr(trunk, "decoder", trunk)
    return trunk.layers if hasattr(trunk, "layers") else trunk.h


def _with_adapters(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = recipe.targets
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.rank,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=model.config.model_type == "gpt2" and recipe.method != "qlora",
        task_type="SEQ_CLS" if recipe.task == "reward" else "CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(DTYPES[recipe.adapters])
    return model


def make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> Any:
    """The recipe's optimizer; a paged one needs CUDA and is an ordinary one elsewhere."""
    name = recipe.optimizer
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    if name in ("sgd", "sgd-momentum"):
        momentum = 0.9 if name == "sgd-momentum" else 0.0
        return torch.optim.SGD(parameters, lr=1e-5, momentum=momentum)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, lr=1e-5, relative_step=False, scale_parameter=False)
    import bitsandbytes as bnb

    paged = name.startswith("paged")
    if name.endswith("8bit"):
        return (bnb.optim.PagedAdamW8bit if paged else bnb.optim.AdamW8bit)(parameters, lr=1e-5)
    return bnb.optim.PagedAdamW32bit(parameters, lr=1e-5)


# ---- one step of each task ---------------------------------------------------------------------


class Practice:
    """Holds what a recipe holds, and does its steps; `held` is all of that."""

    def __init__(
        self,
        shape: ModelShape,
        recipe: Recipe,
        seq: int,
        batch: int,
        completion: int,
        device: str = "cpu",
    ) -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.batch, self.prompt, self.completion = batch, seq - completion, completion
        model = build(shape, recipe, device)
        self.model = model
        self.held: list[Any] = [model]
        self.reference: Reference | None = None
        if recipe.holds_reference:
            copy = freeze(build(shape, _plain(recipe), device))
            self.reference = Reference(model, copy)
            self.held.append(copy)
        elif recipe.task in ("dpo", "ppo") and recipe.reference != "none":
            self.reference = Reference(model)
        if recipe.task == "ppo":
            self.actor = PolicyWithValue(model)
            self.held.append(self.actor.value_head)
            if recipe.reward_model == "copy":
                self.scorer = freeze(sequence_classifier(build(shape, _plain(recipe), device)))
                self.held.append(self.scorer)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if recipe.task == "ppo":
            self.trained += list(self.actor.value_head.parameters())
        self.optimizer = make_optimizer(self.trained, recipe) if recipe.trains else None
        self.held.append(self.optimizer)
        rows = 2 * batch if recipe.task in ("dpo", "reward") else batch
        self.ids = torch.randint(2, shape.vocabulary, (rows, seq), device=self.device)
        columns = torch.arange(self.prompt - 1, seq - 1, device=self.device)
        starts = torch.arange(rows, device=self.device)[:, None] * seq
        self.where = (starts + columns).flatten()  # (N,) positions that predict the answer

    def step(self) -> None:
        """One optimizer step, or one batch of answers for inference."""
        if self.recipe.task == "inference":
            self._sample(self.batch)
            return
        with torch.enable_grad():
            loss = getattr(self, f"_{self.recipe.task}")()
            loss.backward()
        del loss
        assert self.optimizer is not None
        self.optimizer.step()
        if not self.recipe.accumulate:
            self.optimizer.zero_grad(set_to_none=True)

    def _autocast(self) -> Any:
        if self.recipe.autocast == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.recipe.autocast])

    def _sft(self) -> Tensor:
        with self._autocast():
            if self.recipe.logits == "all":
                return self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
            return -self._logprobs(self.model).mean()

    def _logprobs(self, model: Any) -> Tensor:
        """(N,) log-probabilities of the answers' tokens."""
        hidden = chosen_hidden(parts_of(model).trunk, self.ids, self.where)
        return token_logprobs(parts_of(model).logits(hidden), self.ids.flatten()[self.where + 1])

    def _reward(self) -> Tensor:
        with self._autocast():
            scores = self.model(input_ids=self.ids, use_cache=False).logits.float().squeeze(-1)
        return bradley_terry_loss(scores[: self.batch], scores[self.batch :])

    def _dpo(self) -> Tensor:
        with self._autocast():
            found = self._logprobs(self.model).view(2, self.batch, -1).sum(-1)
            with self._reference() as model:
                known = self._logprobs(model).view(2, self.batch, -1).sum(-1)
        return dpo_loss(found[0], found[1], known[0], known[1])

    def _reference(self) -> Any:
        assert self.reference is not None
        return self.reference.model()

    def _ppo(self) -> Tensor:
        drawn = self._sample(self.recipe.rollouts or self.batch)
        with torch.no_grad(), self._autocast():
            old = self.actor(self.ids, self.where)
            with self._reference() as model:
                known = self._logprobs(model)
            if self.recipe.reward_model == "copy":
                self.scorer(input_ids=self.ids, use_cache=False)
        del drawn
        mask = torch.ones(self.batch, self.completion, dtype=torch.bool, device=self.device)
        with self._autocast():
            scored = self.actor(self.ids, self.where)
        logprobs = old.logprobs.view(mask.shape)
        advantages = (known.view(mask.shape) - logprobs).detach()
        policy = ppo_policy_loss(scored.logprobs.view(mask.shape), logprobs, advantages, mask)
        values = old.values.view(mask.shape)
        value = clipped_value_loss(scored.values.view(mask.shape), values, values + 1, mask)
        return policy.loss + 0.5 * value.loss

    def _sample(self, rows: int) -> Any:
        mode = self.model.training
        self.model.eval()
        prompts = self.ids[:1, : self.prompt].expand(rows, -1)
        with self._autocast():
            drawn = sample(
                self.model,
                prompts,
                torch.ones_like(prompts),
                max_new_tokens=self.completion,
                eos_token_ids=[1],
                pad_token_id=0,
            )
        self.model.train(mode)
        return drawn


def _plain(recipe: Recipe) -> Recipe:
    """The same weights, nothing trained."""
    return dataclasses.replace(recipe, task="inference", checkpointing=False)


def measure(
    shape: ModelShape, recipe: Recipe, seq: int, batch: int, completion: int, steps: int = 2
) -> int:
    """Peak bytes of a step in the steady state on the CPU: the last of `steps` is watched."""
    practice = Practice(shape, recipe, seq, batch, completion)
    for _ in range(steps - 1):  # creates the optimizer's states
        practice.step()
    gc.collect()
    return allocator_peak(practice.step, LiveTensorMemory(*practice.held, practice.ids).live)


def watch(practice: Practice) -> LiveTensorMemory:
    """A step under LiveTensorMemory: its peak, and the shapes that were alive then."""
    practice.step()
    gc.collect()
    with LiveTensorMemory(*practice.held, practice.ids) as memory:
        memory.snapshot = True
        practice.step()
    return memory
