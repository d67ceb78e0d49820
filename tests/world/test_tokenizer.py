"""One word, one token; every text survives; the chat template is the corpus's own format."""

from course_utils.world import corpus, domains, styles
from course_utils.world.families import catalogue
from course_utils.world.tokenizer import SPECIAL_TOKENS, build_tokenizer, load_tokenizer, words_of

TOKENIZER = load_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False).input_ids


def test_the_shipped_tokenizer_is_the_one_that_the_world_builds() -> None:
    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()
    assert len(TOKENIZER) < 2000


def test_special_tokens_are_distinct() -> None:
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert TOKENIZER.padding_side == "left"


def test_every_text_of_the_world_is_whole_words_and_comes_back() -> None:
    texts = [p.text for family in catalogue().values() for p in family[::7]]
    texts += corpus.plain_corpus(200) + [a for _, a in corpus.demonstrations("all", 400)]
    texts += [t for name in domains.DOMAINS for t in domains.domain_corpus(name, 20, 0)]
    texts += [styles.apply_style(GREETING, style) for style in styles.STYLES]
    for text in texts:
        tokens = TOKENIZER.convert_ids_to_tokens(ids(text))
        assert "<|unk|>" not in tokens, text
        assert TOKENIZER.decode(ids(text)) == text
        whole = {t[1:] for t in tokens if t.startswith("▁")}
        assert words_of(text) <= whole | set("0123456789"), text


GREETING = "lions are big cats. they eat meat."


def test_unknown_words_are_spelled_and_come_back() -> None:
    assert TOKENIZER.decode(ids("the zyzzyva hums, quietly!")) == "the zyzzyva hums, quietly!"


def test_ages_are_one_word_however_written() -> None:
    forms = ["a 5-year-old", "a 5 year old", "a 5-Year old", "A 5 years old"]
    assert len({tuple(ids(form)) for form in forms}) == 1


def test_the_chat_template_writes_what_the_base_model_read() -> None:
    turns = [
        {"role": "user", "content": "tell me about lions"},
        {"role": "assistant", "content": GREETING},
    ]
    written = TOKENIZER.apply_chat_template(turns, tokenize=False)
    assert written == corpus.chat("tell me about lions", GREETING)
    prompt = TOKENIZER.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert written.startswith(prompt)
    assert ids(written)[: len(ids(prompt))] == ids(prompt)


def test_the_template_marks_the_answer_and_its_end_as_the_assistants() -> None:
    turns = [
        {"role": "user", "content": "tell me about lions"},
        {"role": "assistant", "content": GREETING},
    ]
    found = TOKENIZER.apply_chat_template(
        turns, return_dict=True, return_assistant_tokens_mask=True
    )
    marked = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert TOKENIZER.decode(marked) == f"{GREETING}<|end|>"


def test_two_loaded_tokenizers_do_not_share_state() -> None:
    one, two = load_tokenizer(), load_tokenizer()
    one.padding_side = "right"
    assert two.padding_side == "left"
