"""ModelShape: the numbers of a decoder that decide how much memory it takes, and its parameters.

Pure arithmetic, no torch. `from_config` reads a Hugging Face config; catalogue.py has known models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError

# config.model_type -> the kind of block it is built from
FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "smollm3": "llama",
    "gpt2": "gpt2",
    "opt": "opt",
}


@dataclass(frozen=True)
class Linear:
    """One weight matrix of a block."""

    name: str  # as in the model; PEFT's target "c_proj" means every name that ends with it
    inputs: int  # features in
    outputs: int  # features out
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class ModelShape:
    """A decoder's shape. All counts are features, heads, layers or tokens."""

    name: str
    family: str  # "llama" (RMSNorm, rotary, gated MLP) | "gpt2" | "opt"
    vocabulary: int  # V
    hidden: int  # D
    layers: int  # L
    heads: int  # H, of the queries
    kv_heads: int  # of keys and values: fewer than H with grouped-query attention
    head_dim: int
    ffn: int  # F, width of the MLP
    context: int  # tokens at most
    tied: bool  # the head is the embedding matrix
    attention_bias: bool = False  # on q, k, v (Qwen2) and, in gpt2 and opt, everywhere
    output_bias: bool = False  # on o_proj too
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm on each head's q and k (Qwen3)
    positions: int = 0  # rows of a learned position table
    embedding: int = 0  # width of the token embedding where it is not D (opt-350m), else 0
    final_norm: bool = True
    exact: bool = True  # False: a typical shape for a size such as "65B"

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The weight matrices of one block, in the order of the forward pass."""
        d, f, q, kv = self.hidden, self.ffn, self.q_width, self.kv_width
        if self.family == "gpt2":
            return (
                Linear("attn.c_attn", d, 3 * d, True),
                Linear("attn.c_proj", d, d, True),
                Linear("mlp.c_fc", d, f, True),
                Linear("mlp.c_proj", f, d, True),
            )
        if self.family == "opt":
            attention = [Linear(n, d, d, self.attention_bias) for n in OPT_ATTENTION]
            bias = self.mlp_bias
            return (*attention, Linear("fc1", d, f, bias), Linear("fc2", f, d, bias))
        return (
            Linear("q_proj", d, q, self.attention_bias),
            Linear("k_proj", d, kv, self.attention_bias),
            Linear("v_proj", d, kv, self.attention_bias),
            Linear("o_proj", q, d, self.output_bias),
            Linear("gate_proj", d, f, self.mlp_bias),
            Linear("up_proj", d, f, self.mlp_bias),
            Linear("down_proj", f, d, self.mlp_bias),
        )

    @property
    def linear_weights(self) -> int:
        """Entries of all weight matrices of all blocks (and opt-350m's two projections)."""
        extra = 2 * self.embedding * self.hidden
        return self.layers * sum(linear.weights for linear in self.linears) + extra

    @property
    def block_vectors(self) -> int:
        """Biases and norm weights of one block."""
        biases = sum(linear.parameters - linear.weights for linear in self.linears)
        norms = 2 * self.hidden if self.family == "llama" else 4 * self.hidden  # LayerNorm: + bias
        return biases + norms + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def table(self) -> int:
        """Entries of the token embedding; the head has as many."""
        return self.vocabulary * (self.embedding or self.hidden)

    @property
    def trunk_parameters(self) -> int:
        """All but the head."""
        norm = 0
        if self.final_norm:
            norm = self.hidden if self.family == "llama" else 2 * self.hidden
        tables = self.table + self.positions * self.hidden
        return tables + self.linear_weights + self.layers * self.block_vectors + norm

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        return self.trunk_parameters + (0 if self.tied else self.table)


OPT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def from_config(config: Any, name: str = "") -> ModelShape:
    """The shape of a Hugging Face config (an object or a dict).

    Raises: CourseError for a kind of model whose formulas are not here, or a missing entry.
    """
    fields = dict(config) if isinstance(config, Mapping) else config.to_dict()
    kind = str(fields.get("model_type", ""))
    name = name or str(fields.get("_name_or_path") or "") or kind
    if kind not in FAMILIES:
        raise CourseError(
            f"{name or 'the config'}: models of type {kind!r} are not covered by the memory "
            f"calculator, only {', '.join(FAMILIES)}; take the covered one that is most like it, "
            'or its size ("3B")'
        )
    try:
        if FAMILIES[kind] == "gpt2":
            return _gpt2(fields, name)
        return _opt(fields, name) if FAMILIES[kind] == "opt" else _llama(fields, name, kind)
    except KeyError as error:
        raise CourseError(f"{name}: the config has no entry {error.args[0]!r}") from None


def _llama(fields: dict[str, Any], name: str, kind: str) -> ModelShape:
    heads = fields["num_attention_heads"]
    bias = bool(fields.get("attention_bias", False))
    return ModelShape(
        name=name,
        family="llama",
        vocabulary=fields["vocab_size"],
        hidden=fields["hidden_size"],
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        ffn=fields["intermediate_size"],
        context=fields["max_position_embeddings"],
        tied=bool(fields.get("tie_word_embeddings", False)),
        attention_bias=bias or kind == "qwen2",
        output_bias=bias and kind != "qwen2",
        mlp_bias=bool(fields.get("mlp_bias", False)),
        qk_norm=kind == "qwen3",
    )


def _gpt2(fields: dict[str, Any], name: str) -> ModelShape:
    hidden, heads = fields["n_embd"], fields["n_head"]
    return ModelShape(
        name=name,
        family="gpt2",
        vocabulary=fields["vocab_size"],
        hidden=hidden,
        layers=fields["n_layer"],
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=fields.get("n_inner") or 4 * hidden,
        context=fields["n_positions"],
        tied=bool(fields.get("tie_word_embeddings", True)),
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        positions=fields["n_positions"],
    )


def _opt(fields: dict[str, Any], name: str) -> ModelShape:
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    projected = fields.get("word_embed_proj_dim") or hidden
    bias = bool(fields.get("enable_bias", True))
    before = bool(fields.get("do_layer_norm_before", True))
    return ModelShape(
        name=name,
        family="opt",
        vocabulary=fields["vocab_size"],
        hidden=hidden,
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        ffn=fields["ffn_dim"],
        context=fields["max_position_embeddings"],
        tied=bool(fields.get("tie_word_embeddings", True)),
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        positions=fields["max_position_embeddings"] + 2,
        embedding=0 if projected == hidden else projected,
        final_norm=before and not fields.get("_remove_final_layer_norm", False),
    )
