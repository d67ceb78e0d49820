"""The shipped base model: intact, small, rebuilt by its recipe, and it knows the facts."""

import random
import shutil

import pytest
import torch

from course_utils.errors import WeightsError
from course_utils.evaluation import perplexity
from course_utils.generation import generate_texts
from course_utils.world import corpus, gold
from course_utils.world.families import prompts
from course_utils.world.model import (
    MANIFEST,
    WEIGHTS,
    Pretraining,
    batches,
    build,
    document_ids,
    load_base_model,
    verify,
)
from course_utils.world.tokenizer import assets, load_tokenizer

TOKENIZER = load_tokenizer()


@pytest.fixture(scope="module")
def base():
    return load_base_model()


def test_the_shipped_files_match_their_checksums_and_are_small() -> None:
    manifest = verify()
    assert WEIGHTS in manifest["sha256"]
    assert manifest["recipe"] == vars(Pretraining())
    assert (assets() / WEIGHTS).stat().st_size <= 4 * 2**20


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_file_is_named_with_the_fix(tmp_path, damage: str) -> None:
    folder = tmp_path / "assets"
    shutil.copytree(assets(), folder)
    weights = folder / WEIGHTS
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        weights.write_bytes(bytes(data))
    elif damage == "cut":
        weights.write_bytes(bytes(data[:-100]))
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / MANIFEST).write_text("{")
    name = MANIFEST if damage == "manifest" else WEIGHTS
    with pytest.raises(WeightsError, match=rf"{name}.*course world build"):
        load_base_model(folder)


def test_it_is_a_plain_fp32_llama_in_evaluation_mode(base) -> None:
    assert type(base).__name__ == "LlamaForCausalLM"
    assert {p.dtype for p in base.parameters()} == {torch.float32}
    assert not base.training
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert base.config.vocab_size == len(TOKENIZER)
    assert base.config.eos_token_id == TOKENIZER.eos_token_id
    assert base.config.pad_token_id == TOKENIZER.pad_token_id


def test_it_knows_the_facts_and_has_no_manners(base) -> None:
    shuffled = [" ".join(sorted(text.split())) for text in corpus.plain_corpus(60, seed=5)]
    known = perplexity(base, TOKENIZER, corpus.plain_corpus(60, seed=5)).loss.mean
    assert known < 2.0 < perplexity(base, TOKENIZER, shuffled).loss.mean
    asked = prompts("train", 200, seed=9, families=["describe", "ask", "explain"])
    answers = generate_texts(base, TOKENIZER, [p.text for p in asked], seed=0)
    scores = [gold.score(p, a) for p, a in zip(asked, answers, strict=True)]
    assert 0 < sum(s.total for s in scores) / len(scores) < 1.5
    assert sum(s.parts["correctness"] for s in scores) / len(scores) > 0.3
    assert min(s.parts["tone"] for s in scores) < 0 < max(s.parts["tone"] for s in scores)


def test_a_document_is_read_from_start_to_end() -> None:
    chat = document_ids(corpus.chat("tell me about lions", "lions eat meat."), TOKENIZER)
    plain = document_ids("lions eat meat.", TOKENIZER)
    assert [chat[0], chat[-1]] == TOKENIZER.convert_tokens_to_ids(["<|user|>", "<|end|>"])
    assert [plain[0], plain[-1]] == [TOKENIZER.bos_token_id, TOKENIZER.eos_token_id]
    assert TOKENIZER.decode(plain[1:-1]) == "lions eat meat."


def test_batches_hold_every_document_once_a_pass_and_ignore_padding() -> None:
    documents = [[5 + i] * (1 + i % 4) for i in range(8)]
    stream = batches(documents, 4, 0, random.Random(0))
    seen = []
    for _ in range(2):
        ids, labels = next(stream)
        assert ((ids == 0) == (labels == -100)).all()
        assert (ids[labels != -100] == labels[labels != -100]).all()
        seen += [row[0] for row in ids.tolist()]
    assert sorted(seen) == list(range(5, 13))


def test_building_twice_gives_the_same_weights(tmp_path) -> None:
    recipe = Pretraining(hidden=16, layers=1, heads=2, intermediate=16, steps=3, batch=4)
    for name in "ab":
        build(tmp_path / name, recipe, quiet=True)
    assert verify(tmp_path / "a") == verify(tmp_path / "b")
    load_base_model(tmp_path / "a")
