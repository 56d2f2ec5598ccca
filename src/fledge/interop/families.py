"""config.json of the families we know <-> ModelConfig, by an allow-list: what is not read here is ignored by name.

Fields and defaults are those of `transformers` 5 and of older files (rope_theta and rope_scaling beside each other).
A family can hold a model exactly when reading what `write_config` writes gives that model again.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from fledge.core.model import ModelConfig, RopeScaling

MOST_LAYERS = 1024
SPARE_ROWS = 1024  # families pad their embeddings to multiples of up to 512
_LARGEST = 2**31


class Family(NamedTuple):
    """What tells one family from another."""

    prefix: str  # of its classes in transformers
    defaults: dict[str, Any] = {}  # of fields that a file may leave out


class Reading(NamedTuple):
    """A config.json understood."""

    family: str
    model: ModelConfig
    ignored: list[str]  # keys outside the allow-list, sorted


# Ordered as an export without a wish tries them: the plainest that can hold the model is taken.
FAMILIES: dict[str, Family] = {
    "llama": Family("Llama"),
    "mistral": Family("Mistral", {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096}),
    "qwen2": Family("Qwen2", {"num_key_value_heads": 32, "max_position_embeddings": 32768}),
    "qwen3": Family("Qwen3", {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128}),
    "olmo2": Family("Olmo2", {"rms_norm_eps": 1e-5}),
    "smollm3": Family(
        "SmolLM3",
        {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "gemma3_text": Family(
        "Gemma3",
        {
            "num_key_value_heads": 4, "max_position_embeddings": 131072, "head_dim": 256, "rope_theta": 1e6,
            "tie_word_embeddings": True, "sliding_window": 4096,
        },
    ),
    "bert": Family("Bert"),
}  # fmt: skip

# Fields that change nothing that is computed here: passed over without a word.
NEUTRAL = frozenset(
    """_name_or_path architectures model_type transformers_version torch_dtype dtype use_cache initializer_range
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id decoder_start_token_id attention_dropout
    hidden_dropout_prob attention_probs_dropout_prob classifier_dropout hidden_dropout embd_pdrop resid_pdrop
    pretraining_tp output_attentions output_hidden_states return_dict gradient_checkpointing id2label label2id
    problem_type task_specific_params finetuning_task tokenizer_class prefix use_return_dict chunk_size_feed_forward
    gradient_checkpointing_use_reentrant directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head pooler_type mlm cache_implementation no_rope_layer_interval _sliding_window_pattern
    is_llama_config rope_interleaved unsloth_version unsloth_fixed""".split()
)
# Fields that would change what is computed: (the value at which they do not, what they are).
REFUSED: dict[str, tuple[Any, str]] = {
    "quantization_config": (None, "its weights are quantised; import the unquantised model"),
    "compression_config": (None, "its weights are compressed; import the plain model"),
    "partial_rotary_factor": (1.0, "rotary positions on a part of the head are not among these families"),
    "attn_logit_softcapping": (None, "soft caps of attention are not supported"),
    "final_logit_softcapping": (None, "soft caps of logits are not supported"),
    "use_bidirectional_attention": (False, "this is an embedding model of that family"),
    "pruned_heads": ({}, "heads were cut out of its layers"),
    "is_encoder_decoder": (False, "encoder-decoder models are not supported"),
    "add_cross_attention": (False, "cross-attention is not supported"),
    "position_embedding_type": ("absolute", "only learned absolute positions are supported"),
}
_REMOTE = {"auto_map", "trust_remote_code", "custom_pipelines", "_attn_implementation", "_attn_implementation_internal"}


class _Fields:
    """The fields of one config.json; whoever takes one states its type, and what nobody takes is left over."""

    def __init__(self, raw: dict[str, Any], defaults: dict[str, Any], name: str):
        self.raw, self.defaults, self.name = raw, defaults, name
        self.taken: set[str] = set()

    def wrong(self, key: str, value: Any, must: str) -> ValueError:
        return ValueError(f"{self.name}: {key} = {value!r}: must be {must}")

    def get(self, key: str, default: Any = None) -> Any:
        self.taken.add(key)
        value = self.raw.get(key)
        return self.defaults.get(key, default) if value is None and key not in self.raw else value

    def count(self, key: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        value = self.get(key, default)
        if value is None:
            value = default
        if value is None:
            raise ValueError(f"{self.name}: {key} is missing: the file is not whole or not of this family")
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, value, f"a whole number between {least:,} and {most:,}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            raise self.wrong(key, value, "true or false")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.get(key, default)
        if value not in allowed:
            raise self.wrong(key, value, f"{' or '.join(allowed)}; this family is known with nothing else")
        return value


def read_config(raw: dict[str, Any], name: str = "config.json") -> Reading:
    """A config.json as a family and a ModelConfig. `name` is used in errors.

    Raises ValueError for a family, a class or a value that is not supported, naming field and value.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(
            f"{name}: model_type = {family!r}: the families read here are {', '.join(FAMILIES)}; any other can only be "
            "trained through `transformers`, which is slower: import it with --backend transformers"
        )
    for key, (harmless, why) in REFUSED.items():
        if raw.get(key) not in (None, harmless):
            raise ValueError(f"{name}: {key} = {str(raw[key])[:80]!r}: {why}")
    fields = _Fields(raw, FAMILIES[family].defaults, name)
    head, classes = _head(raw, family, fields)
    common = {"head": head, "classes": classes, "vocab_size": fields.count("vocab_size")}
    model = (_bert if family == "bert" else _decoder)(family, fields, common)
    if problems := model.problems():
        raise ValueError(f"{name} cannot be used: " + "; ".join(problems))
    ignored = sorted(raw.keys() - fields.taken - NEUTRAL - REFUSED.keys())
    return Reading(family, model, ignored)


def remote_keys(ignored: list[str]) -> list[str]:
    """Those that ask for the author's own code or for another implementation."""
    return [key for key in ignored if key in _REMOTE]


def require_fit(tokens: int, rows: int, place: Path | str) -> None:
    """Raise ValueError unless an embedding of `rows` is that of a tokenizer of `tokens`, up to the padding families add."""
    if not 0 <= rows - tokens <= min(SPARE_ROWS, rows // 8):
        raise ValueError(
            f"{place}: the tokenizer has {tokens} tokens, the embedding {rows} rows; "
            "use the checkpoint with the tokenizer it was trained with"
        )


def _head(raw: dict[str, Any], family: str, fields: _Fields) -> tuple[str, int]:
    """(head, number of classes) of the class that the file names."""
    prefix = FAMILIES[family].prefix
    language = ("MaskedLM", "PreTraining") if family == "bert" else ("CausalLM",)
    named = raw.get("architectures") or [f"{prefix}For{language[0]}"]
    kind = named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else None
    if kind in {f"{prefix}For{task}" for task in language}:
        return "tokens", 2
    if kind == f"{prefix}ForSequenceClassification" and family != "gemma3_text":
        labels = fields.get("id2label") or {}
        if not isinstance(labels, dict):
            raise fields.wrong("id2label", labels, "an object of names by number")
        number = fields.count("num_labels", len(labels) or 2)
        return ("reward", 2) if number == 1 and family != "bert" else ("class", number)
    raise ValueError(
        f"{fields.name}: architectures = {named!r}: of {family}, {prefix}For{language[0]} and "
        f"{prefix}ForSequenceClassification are read"
    )


def _rope(fields: _Fields, base: float, context: int, scaling: dict[str, Any] | None) -> tuple[float, RopeScaling]:
    """(base, scaling) from rope_parameters or from rope_theta beside rope_scaling."""
    if scaling is None:
        return base, RopeScaling()
    if not isinstance(scaling, dict):
        raise fields.wrong("rope_scaling", scaling, "an object with rope_type")
    known = {**scaling}
    kind = known.pop("rope_type", None) or known.pop("type", None) or "default"
    known.pop("type", None)
    inner = _Fields(known, {}, f"{fields.name}: rope_scaling")
    base = inner.number("rope_theta", base)
    if inner.number("partial_rotary_factor", 1.0) != 1.0:
        raise inner.wrong(
            "partial_rotary_factor", known["partial_rotary_factor"], "1; a part of the head is not supported"
        )
    if kind == "default":
        return base, RopeScaling()
    if kind not in ("linear", "llama3", "yarn"):
        raise inner.wrong("rope_type", kind, "default, linear, llama3 or yarn")
    values: dict[str, Any] = {"kind": kind, "factor": inner.number("factor", 0.0 if kind == "linear" else 1.0)}
    if kind != "linear":
        values["original_context"] = inner.count("original_max_position_embeddings", context)
    if kind == "llama3":
        values |= {"low": inner.number("low_freq_factor", 1.0), "high": inner.number("high_freq_factor", 4.0)}
    if kind == "yarn":
        known.update({k: d for k, d in (("beta_slow", 1), ("beta_fast", 32)) if known.get(k) in (None, 0)})
        values |= {name: inner.number(name, 1.0) for name in ("beta_slow", "beta_fast")}
        values |= {"truncate": inner.flag("truncate", True), "magnitude": _magnitude(inner, values["factor"])}
    if left := known.keys() - inner.taken:
        raise ValueError(f"{inner.name}: {min(left)} = {known[min(left)]!r}: not known for rope_type {kind!r}")
    return base, RopeScaling(**values)


def _magnitude(inner: _Fields, factor: float) -> float | None:
    """YaRN's factor on cosines and sines; None where it is the paper's."""
    given, *scales = (inner.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return inner.number("attention_factor", 1.0)
    if all(scales) and factor > 1:
        one, every = (inner.number(key, 1.0) for key in ("mscale", "mscale_all_dim"))
        return (0.1 * one * math.log(factor) + 1.0) / (0.1 * every * math.log(factor) + 1.0)
    return None


def _decoder(family: str, fields: _Fields, common: dict[str, Any]) -> ModelConfig:
    layers, heads = fields.count("num_hidden_layers", most=MOST_LAYERS), fields.count("num_attention_heads")
    width, context = fields.count("hidden_size"), fields.count("max_position_embeddings", 2048)
    head_width = fields.count("head_dim", max(1, width // heads))
    values = common | {
        "layers": layers,
        "width": width,
        "heads": heads,
        "kv_heads": heads if fields.get("num_key_value_heads", heads) is None else fields.count("num_key_value_heads", heads),
        "ffn_width": fields.count("intermediate_size"),
        "context_tokens": context,
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied": fields.flag("tie_word_embeddings"),
        "head_width": head_width,
    }  # fmt: skip
    bias = family not in ("mistral", "qwen2") and fields.flag("attention_bias")
    values |= {"bias": bias or family == "qwen2", "out_bias": bias}
    if family in ("llama", "smollm3"):
        values["mlp_bias"] = fields.flag("mlp_bias")
    if family == "olmo2":
        values |= {"norms": "post", "qk_norm": True, "qk_norm_whole": True}
    if family == "qwen3":
        values["qk_norm"] = True
    if family == "gemma3_text":
        values |= _gemma(fields, layers, context, head_width)
    else:
        fields.one_of("hidden_act", ("silu", "swish"), "silu")
        theta = fields.number("rope_theta", 10000.0)
        scaling = fields.get("rope_scaling") or fields.get("rope_parameters")
        fields.taken.add("rope_parameters")
        values["rope_base"], values["rope_scaling"] = _rope(fields, theta, context, scaling)
    return ModelConfig(**values, **_windows(family, fields, layers))


def _gemma(fields: _Fields, layers: int, context: int, head_width: int) -> dict[str, Any]:
    """What only Gemma 3 has: two bases of rotary positions, gains from one, scaled embeddings, a norm on both sides."""
    fields.one_of("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    fields.one_of("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    theta, local = fields.number("rope_theta", 1e6), fields.number("rope_local_base_freq", 1e4)
    scaling, newer = fields.get("rope_scaling"), fields.get("rope_parameters") or {}
    fields.taken.add("sliding_window_pattern")
    if newer:
        kinds = (
            [newer.get(kind) for kind in ("full_attention", "sliding_attention")] if isinstance(newer, dict) else [0]
        )
        scaling, near = kinds[0], kinds[-1] or {}
        if not isinstance(near, dict) or near.get("rope_type", "default") != "default":
            raise fields.wrong("rope_parameters", newer, "objects, default for sliding_attention")
        local = _Fields(near, {}, f"{fields.name}: rope_parameters").number("rope_theta", local)
    base, stretched = _rope(fields, theta, context, scaling)
    scalar = fields.number("query_pre_attn_scalar", 256.0)
    return {
        "norms": "sandwich", "qk_norm": True, "activation": "gelu_tanh", "embedding_scale": True, "gains_from_one": True,
        "rope_base": base, "rope_scaling": stretched, "local_rope_base": local,
        "query_scalar": None if scalar == head_width else scalar,
    }  # fmt: skip


def _windows(family: str, fields: _Fields, layers: int) -> dict[str, Any]:
    """Which layers see only a window, and which have no positions."""
    found: dict[str, Any] = {}
    if family == "smollm3":
        rotated = fields.get("no_rope_layers")
        every = fields.count("no_rope_layer_interval", 4)
        if rotated is None:  # 1 where there ARE positions, whatever the name says
            rotated = [int((i + 1) % every != 0) for i in range(layers)]
        if not isinstance(rotated, list) or len(rotated) != layers or any(i not in (0, 1) for i in rotated):
            raise fields.wrong("no_rope_layers", rotated, f"{layers} numbers, 0 for a layer without positions, else 1")
        found["no_rope_layers"] = tuple(i for i, rope in enumerate(rotated) if not rope)
    if family in ("llama", "olmo2"):
        return found
    window = fields.get("sliding_window")
    if family in ("qwen2", "qwen3", "smollm3") and not fields.flag("use_sliding_window"):
        window = None
    types, first = _layer_types(family, fields, layers), 0
    if window is None:
        if family == "gemma3_text" or (types and "sliding_attention" in types and family == "mistral"):
            raise fields.wrong("sliding_window", None, "a number, for layer_types has sliding_attention")
        fields.taken |= {"max_window_layers"}
        return found
    window = fields.count("sliding_window")
    if family in ("qwen2", "qwen3"):
        first = fields.count("max_window_layers", 28, least=0)
    if types is not None:
        near = tuple(i for i, kind in enumerate(types) if kind == "sliding_attention")
    elif family == "gemma3_text":
        every = fields.count("sliding_window_pattern", 6)
        near = tuple(i for i in range(layers) if (i + 1) % every)
    elif family == "smollm3":
        near = found["no_rope_layers"]
    else:
        near = tuple(range(first, layers))
    if not near:
        return found
    return found | {"window": window, "window_layers": None if len(near) == layers else near}


def _layer_types(family: str, fields: _Fields, layers: int) -> list[str] | None:
    if family == "mistral":  # whose code does not look at them
        return None
    types = fields.get("layer_types")
    if types is None:
        return None
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != layers or any(kind not in known for kind in types):
        raise fields.wrong("layer_types", types, f"{layers} times full_attention or sliding_attention")
    return types


def _bert(family: str, fields: _Fields, common: dict[str, Any]) -> ModelConfig:
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    fields.one_of("hidden_act", ("gelu",), "gelu")
    if fields.flag("is_decoder"):
        raise fields.wrong("is_decoder", True, "false: BERT is read as an encoder")
    return ModelConfig(
        **common,
        architecture="bert",
        causal=False,
        layers=fields.count("num_hidden_layers", most=MOST_LAYERS),
        width=width,
        heads=heads,
        kv_heads=heads,
        ffn_width=fields.count("intermediate_size"),
        context_tokens=fields.count("max_position_embeddings", 512),
        token_types=fields.count("type_vocab_size", 2),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        tied=fields.flag("tie_word_embeddings", True),
        head_width=max(1, width // heads),
    )
