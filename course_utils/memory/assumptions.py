"""What an estimate takes for granted, as sentences to print beside it."""

from course_utils.memory.recipe import Recipe
from course_utils.memory.shape import ModelShape


def assumptions(
    shape: ModelShape, recipe: Recipe, seq: int, batch: int, completion: int, device: str
) -> list[str]:
    """Sentences; every one names something that the reader could have otherwise."""
    said = [_shape(shape), _batch(recipe, seq, batch, completion), _weights(shape, recipe)]
    if recipe.trains:
        said += _training(shape, recipe, device)
    said += _models(recipe, batch)
    if device == "cuda":
        said.append(
            "One GPU; 500 MiB go to the CUDA context and cuBLAS, and 5% of the peak to memory that "
            "the allocator holds in blocks that do not fit. Data, other processes and a desktop "
            "are not counted."
        )
    return [sentence for sentence in said if sentence]


def _shape(shape: ModelShape) -> str:
    size = f"{shape.parameters:,} parameters: {shape.layers} layers, width {shape.hidden}, "
    size += f"MLP {shape.ffn}, {shape.heads} heads ({shape.kv_heads} of keys and values), "
    size += f"vocabulary {shape.vocabulary:,}, head {'tied' if shape.tied else 'of its own'}."
    return size if shape.exact else f"No such model was looked up; {shape.name} is taken as {size}"


def _batch(recipe: Recipe, seq: int, batch: int, completion: int) -> str:
    pairs = recipe.task in ("reward", "dpo")
    rows = f"{batch} pair{'s' * (batch > 1)} (two rows each)" if pairs else f"{batch} "
    rows += "" if pairs else f"row{'s' * (batch > 1)}"
    text = f"{rows} of {seq} tokens at a time, all padded to that length"
    if recipe.task == "reward":
        return f"{text}; one score a row, no logits."
    if recipe.logits == "tiled" and recipe.trains:
        return (
            f"{text}; logits of {completion} positions a row in tiles (TRL's fused head on GPUs)."
        )
    return f"{text}; logits of {completion} positions a row, the softmax in fp32."


def _weights(shape: ModelShape, recipe: Recipe) -> str:
    if recipe.method == "qlora":
        double = recipe.double_quant
        bits = "4.127 (scales in 8 bit: double quantization)" if double else "4.5 (fp32 scales)"
        return (
            f"The blocks' matrices are NF4 with {bits} bits a parameter; embedding, head and norms "
            f"stay in {recipe.weights} (prepare_model_for_kbit_training would make them fp32)."
        )
    computing = (
        "and so is all arithmetic"
        if recipe.autocast in ("none", recipe.weights)
        else f"with {recipe.autocast} autocast: matrix products, and a copy of each matrix"
    )
    return f"Weights are {recipe.weights}, {computing}."


def _training(shape: ModelShape, recipe: Recipe, device: str) -> list[str]:
    said = []
    if recipe.peft:
        targets = recipe.targets
        where = "every matrix of the blocks" if targets == "all-linear" else str(targets)
        said.append(
            f"LoRA of rank {recipe.rank} in {recipe.adapters} on {where}, no dropout; nothing else "
            "is trained."
        )
    said.append(_optimizer(recipe, device))
    kept = "only the input of each block is kept, and the rest computed again"
    kept = kept if recipe.checkpointing else "all that a block needs for its backward pass is kept"
    kernel = {
        "eager": "attention written out keeps T x T probabilities",
        "sdpa": "attention is torch's fused kernel (no padding mask, no T x T matrix)",
        "flash": "attention is FlashAttention (no T x T matrix)",
    }[recipe.attention]
    said.append(f"Activations as in transformers 5.23, without dropout: {kept}; {kernel}.")
    if recipe.attention == "sdpa" and shape.kv_heads < shape.heads and recipe.compute == 4:
        said.append(
            "In fp32 with grouped heads CUDA may fall back to attention with a T x T matrix: then "
            'count with attention="eager".'
        )
    more = "" if recipe.accumulate else " (with gradient accumulation they live on: accumulate)"
    said.append(f"Gradients are freed after each optimizer step{more}.")
    return said


def _optimizer(recipe: Recipe, device: str) -> str:
    name = recipe.optimizer
    states = {
        "adamw": "AdamW (fused): two moments in the type of the trained weights",
        "paged-adamw": "AdamW of bitsandbytes: two fp32 moments",
        "sgd": "SGD without momentum: no states",
        "sgd-momentum": "SGD: one buffer in the type of the trained weights",
        "adafactor": "Adafactor (transformers'): a number for each row and each column",
    }.get(name, "AdamW of bitsandbytes: two 8-bit moments with a scale for every 256 numbers")
    if name.startswith("paged") and device == "cuda":
        return (
            f"{states}; they are paged: in unified memory that moves to the CPU when the GPU is "
            "full, so they are not counted here."
        )
    if name == "adamw-8bit":
        return f"{states} (tensors below 4096 numbers: fp32; transformers' Trainer: embedding too)."
    return f"{states}."


def _models(recipe: Recipe, batch: int) -> list[str]:
    said = []
    if recipe.task in ("dpo", "ppo") and recipe.reference != "none":
        said.append(
            "The reference is a frozen copy of the model."
            if recipe.holds_reference
            else "The reference is the model itself with its adapter switched off: no second copy."
        )
    if recipe.task == "dpo":
        said.append("The reference's pass comes after the policy's, as in TRL.")
    if recipe.task == "ppo":
        model = "a copy of this model's size, in the same type"
        judge = model if recipe.reward_model == "copy" else "a function without memory"
        rows = recipe.rollouts or batch
        said.append(
            f"Policy and value head share one trunk; the reward is {judge}; {rows} answers are "
            "sampled at a time, with a key/value cache for all tokens."
        )
    return said
