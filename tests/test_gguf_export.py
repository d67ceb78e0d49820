"""GGUF files are read back by transformers (and llama.cpp, where installed): same logits, same
token ids."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils import gguf_export, world
from course_utils.errors import CourseError

pytest.importorskip("gguf")

TEXT = (
    "Explain the moon landing to a 6 year old, in 12 words.\n\n  A rocket can't be 3456 years old!"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = [{"role": "user", "content": TEXT}]


def byte_level_tokenizer(cut: str = "gpt-2") -> Any:
    """Byte-level BPE trained on a few words, as SmolLM2's, Llama 3's or Qwen's in small."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if cut == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True), plain]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif cut == "gpt-2":
        backend.pre_tokenizer = plain
    else:
        regex = {name: pattern for pattern, name in gguf_export.CUTS.items()}[cut]
        steps = [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 20, trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])  # added, and not special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|pad|>",
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def random_model(kind: str, size: int, seed: int = 0, **changes: Any) -> Any:
    """A random decoder: grouped queries (4 heads, 2 for keys), D = 64."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "initializer_range": 0.3,  # logits that depend on the position
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**values, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # not all 1 or 0, so that a swap shows
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.float().eval()


def read(path: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32")
    return model.eval(), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def logits(model: Any, ids: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.as_tensor(ids)[None]).logits[0].float()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("llama", {"head_dim": 32}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_transformers_reads_the_same_model_and_tokenizer(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    cut = {"llama": "smollm", "qwen2": "qwen2", "qwen3": "qwen2"}[kind]
    tokenizer = byte_level_tokenizer(cut)
    model = random_model(kind, len(tokenizer) + 3, **changes)  # three embeddings without a token
    path = gguf_export.export_gguf(model, tokenizer, tmp_path / "new" / "model.gguf", "f32")
    again, words = read(path)
    ids = tokenizer(TEXT).input_ids
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=1e-5, atol=1e-5)
    assert words(TEXT).input_ids == ids
    asked = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"]
    assert words.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"] == asked
    assert words.decode(asked) == tokenizer.decode(asked)
    for token in ("bos", "eos", "unk", "pad"):
        assert getattr(words, f"{token}_token_id") == getattr(tokenizer, f"{token}_token_id")
    assert words("a <think> b").input_ids == tokenizer("a <think> b").input_ids
    assert [p.name for p in path.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(("type", "error"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2)])
def test_rounded_weights_are_near_and_smaller(tmp_path: Path, type: str, error: float) -> None:
    tokenizer = byte_level_tokenizer()
    model = random_model("llama", len(tokenizer), intermediate_size=80)  # 80: no multiple of 32
    exact = gguf_export.export_gguf(model, tokenizer, tmp_path / "exact.gguf", "f32")
    path = gguf_export.export_gguf(model, tokenizer, tmp_path / "model.gguf", type)
    again, _ = read(path)
    assert path.stat().st_size < 0.65 * exact.stat().st_size
    for name, value in model.state_dict().items():
        there = again.state_dict()[name]
        if value.ndim == 1:
            assert torch.equal(there, value)
        else:
            assert 0 < (there - value).norm() / value.norm() < error, name


def test_the_shipped_cuts_are_the_ones_transformers_knows() -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    for pattern, name in gguf_export.CUTS.items():
        assert mapping.GGUF_PRE_TOKENIZER_SPLITS[name] == pattern


@pytest.mark.parametrize("cut", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama_cpp")
def test_llama_cpp_computes_the_same(tmp_path: Path, cut: str) -> None:
    from llama_cpp import Llama

    tokenizer = byte_level_tokenizer(cut)
    kind = "qwen2" if cut == "qwen2" else "llama"
    model = random_model(kind, len(tokenizer))
    path = gguf_export.export_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    engine = Llama(str(path), n_ctx=256, logits_all=True, verbose=False, n_threads=1)
    ids = engine.tokenize(TEXT.encode(), add_bos=True, special=True)
    assert ids == tokenizer(TEXT).input_ids
    engine.eval(ids)
    theirs = torch.tensor(engine.scores[: len(ids)])
    ours = logits(model, ids)
    assert (theirs - ours).abs().max() < 0.02 * ours.std()  # llama.cpp rounds its cache to fp16
    assert engine.token_eos() == tokenizer.eos_token_id
    assert engine.metadata["tokenizer.chat_template"] == CHATML


def test_the_worlds_model_goes_without_its_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = world.load_base_model(), world.load_tokenizer()
    with pytest.raises(CourseError, match=r"Unigram.*tokenizer=None writes the weights alone"):
        gguf_export.export_gguf(model, tokenizer, tmp_path / "world.gguf")
    assert not list(tmp_path.iterdir())  # nothing is left of the attempt
    path = gguf_export.export_gguf(model, None, tmp_path / "world.gguf", "f16")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype="float32")
    ids = tokenizer("black holes are").input_ids
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=1e-4, atol=1e-4)


def test_what_cannot_be_written_is_said(tmp_path: Path, tiny_model: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from course_utils.adapters import apply_lora

    def refuses(model: Any, message: str, type: str = "f16", path: Path = tmp_path / "m") -> None:
        with pytest.raises(CourseError, match=message):
            gguf_export.export_gguf(model, None, path, type)
        assert not (tmp_path / "m").exists()

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    refuses(gpt2, r"\(gpt2\) cannot be written.*convert_hf_to_gguf")
    refuses(tiny_model, "choose from f32, f16, bf16, q8_0", type="q4_k")
    refuses(tiny_model, "is a directory", path=tmp_path)
    refuses(apply_lora(tiny_model), "merge it first")
    refuses(random_model("llama", 40, attention_bias=True), "biases in the attention")
    scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    refuses(
        random_model("llama", 40, rope_parameters=scaled), r"scaled rotary positions \(linear\)"
    )
    refuses(random_model("llama", 40, hidden_act="gelu"), "the activation gelu")
    small = random_model("llama", 40)
    with pytest.raises(CourseError, match="the model 40 embeddings"):
        gguf_export.export_gguf(small, byte_level_tokenizer(), tmp_path / "m")
