"""Fixtures for every test: no network, fixed seeds, a toy tokenizer and a toy model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import course_utils  # noqa: F401  (sets the OpenMP variables before anything imports torch)

# isort: split
import ipaddress
import random
import socket
import sys
from typing import Any

import pytest

WORDS = """
hello answer explain the moon landing black holes to a 5 6 year old child adult expert should i add
chorizo my paella ? . , ! yes no it is was and of in on for you me what why how do does people went
with rocket star light big small dark very like can cannot see pull rice saffron sausage traditional
recipe not good bad great help sure sorry because when where who many one two three
""".split()  # noqa: SIM905
SPECIALS = {
    "pad_token": "<|pad|>",
    "unk_token": "<|unk|>",
    "bos_token": "<|bos|>",
    "eos_token": "<|end|>",
}
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
# The answer starts right at the generation marker: a blank there has no token, and transformers
# then silently leaves the whole answer out of the mask.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|> ' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- (message['content'] | trim + ' <|end|>') | trim -}}{%- endgeneration -%}"
    "{{- ' ' if not loop.last -}}"
    "{%- else -%}"
    "{{- message['content'] | trim + ' ' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|> ' -}}{%- endif -%}"
)


def build_tokenizer() -> Any:
    """A word-level tokenizer with the course's special tokens and chat template; pad is not eos."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIALS.values(), *ROLES, *dict.fromkeys(WORDS)]
    vocabulary = {word: index for index, word in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIALS["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIALS,
        additional_special_tokens=list(ROLES),
        padding_side="left",
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any, seed: int = 0) -> Any:
    """A random Llama (hidden 32, 2 layers, fp32, eval); the same weights for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float().eval()
    torch.set_rng_state(state)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@pytest.fixture
def tiny_tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> Any:
    return build_model(tiny_tokenizer)


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    random.seed(0)
    for name in ("numpy", "torch"):
        if name in sys.modules:  # a test that needs neither should not pay for its import
            library = sys.modules[name]
            (library.random.seed if name == "numpy" else library.manual_seed)(0)


def _is_local(address: Any) -> bool:
    if not isinstance(address, tuple):  # a unix socket path
        return True
    host = str(address[0])
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection or a name look-up that leaves this machine fails the test that makes it."""

    def guard(name: str) -> None:
        real = getattr(socket.socket, name)

        def checked(self: socket.socket, address: Any) -> Any:
            if not _is_local(address):
                raise PermissionError(f"tests must not use the network: {name} to {address!r}")
            return real(self, address)

        monkeypatch.setattr(socket.socket, name, checked)

    guard("connect")
    guard("connect_ex")
    real_lookup = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _is_local((name, 0)) and name != socket.gethostname():
            raise PermissionError(f"tests must not use the network: look-up of {name!r}")
        return real_lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
