"""A causal model outside our families, run by `transformers` behind the same forward(Batch) -> Output and the same engine.

Slower than a family of ours: documents that share a row are scored as rows of their own, logits come from the library's
own code, and decoding keeps no cache. No code of the model's author runs: only classes that `transformers` itself has.
Shapes: B rows, T positions, D width, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from fledge.core.batch import Batch
from fledge.core.model import Head, ModelConfig, Output, weighted_logp
from fledge.generate.torch_decoder import DecodesItself
from fledge.interop.families import REFUSED

_CHECKED_TOKENS = 16  # of a row that tells whether the output is a plain product of the states
_SPREAD = 2  # documents scored together are at most this many times as long as the shortest of them


def read_foreign(raw: dict[str, Any], name: str) -> tuple[dict[str, Any], list[str]]:
    """(config.json without what asks for other code, the keys left out). `name` is used in errors.

    Raises ValueError for a model that `transformers` has no causal class of, or whose weights are quantised.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{name}: model_type = {kind!r}: transformers {transformers.__version__} has no such model, and code that comes "
            "with a model is never run"
        )
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None:
            raise ValueError(f"{name}: {key} = {str(raw[key])[:80]!r}: {REFUSED[key][1]}")
    if CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name}: model_type = {kind!r}: transformers has no causal language model of it")
    # Keys that begin with _ are the library's own, not the model's; auto_map and its like name files of Python.
    dropped = sorted(k for k in raw if k.startswith("_") or k in ("auto_map", "trust_remote_code", "custom_pipelines"))
    return {k: v for k, v in raw.items() if k not in dropped}, [k for k in dropped if k != "_name_or_path"]


def config_of(fields: dict[str, Any]) -> transformers.PretrainedConfig:
    """The library's own config of these fields."""
    fields = dict(fields)
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    if config.get_text_config().is_encoder_decoder:
        raise ValueError(f"model_type = {config.model_type!r}: an encoder-decoder; only decoders can be trained here")
    return config


def class_of(config: transformers.PretrainedConfig, name: str) -> type[transformers.PreTrainedModel]:
    """The causal class of a config. Raises ValueError where config.json names another one."""
    made = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    made = made[0] if isinstance(made, tuple) else made
    if config.architectures not in (None, [], [made.__name__]):
        raise ValueError(
            f"{name}: architectures = {config.architectures!r}: of {config.model_type}, {made.__name__} is run"
        )
    return made


def model_config(config: transformers.PretrainedConfig, context_tokens: int | None) -> ModelConfig:
    """What the rest of fledge asks about a model. Raises ValueError where it names no context and none is given."""
    text = config.get_text_config()
    held = text.to_dict() | {new: getattr(text, new) for new in text.attribute_map}
    longest = held.get("max_position_embeddings")
    if context_tokens is None and longest is None:
        raise ValueError(f"config.json of {config.model_type} names no longest sequence: set --context-tokens")
    if longest is not None and context_tokens is not None and context_tokens > longest:
        raise ValueError(
            f"context_tokens = {context_tokens}: the model was made for {longest}: it can only be shortened"
        )
    heads = held.get("num_attention_heads") or 1
    return ModelConfig(
        vocab_size=held["vocab_size"],
        layers=held["num_hidden_layers"],
        width=held["hidden_size"],
        heads=heads,
        kv_heads=held.get("num_key_value_heads") or heads,
        ffn_width=held.get("intermediate_size") or 4 * held["hidden_size"],
        context_tokens=context_tokens or longest,
        tied=bool(held.get("tie_word_embeddings", True)),
    )


def empty_network(fields: dict[str, Any]) -> transformers.PreTrainedModel:
    """The network of a checked config.json, its weights not yet set; torch's random numbers are left as they were."""
    config = config_of(fields)
    with torch.random.fork_rng(devices=[]):
        return class_of(config, "config.json")._from_config(config, dtype=torch.float32)


class ForeignModel(DecodesItself):
    """forward(Batch) -> Output of a network of `transformers`. It has no dropout: training and answers see one model."""

    def __init__(self, network: transformers.PreTrainedModel, config: ModelConfig):
        """config: what model_config() says of it, with the head."""
        super().__init__()
        self.network, self.config = network, config
        self.compute_dtype = torch.float32
        self.adapter = None  # adapters sit on our own blocks; see core/adapting.py
        width = config.width
        self.value_head = nn.Parameter(torch.zeros(1, width)) if config.head in ("tokens+value", "reward") else None
        self.class_head = nn.Parameter(torch.zeros(config.classes, width)) if config.head == "class" else None
        self._linear: bool | None = None
        self.register_state_dict_post_hook(_without_copies)
        self.train(False)

    def train(self, mode: bool = True) -> "ForeignModel":
        super().train(mode)
        self.network.eval()  # what dropout would do
        return self

    def initialise(self, seed: int) -> "ForeignModel":
        raise ValueError(f"{self.network.config.model_type} cannot begin with fresh weights here: leave `fresh` out")

    @property
    def embedding(self) -> Tensor:
        return self.network.get_input_embeddings().weight

    @property
    def head_weight(self) -> Tensor:
        """[V,D] rows that turn a hidden state into logits. Raises ValueError where these are no plain product."""
        self._require_linear()
        return self.network.get_output_embeddings().weight

    @property
    def plain(self) -> bool:
        """False: the fast decoding steps do not know it."""
        return False

    def hidden(self, tokens: Tensor, doc: Tensor | None = None) -> Tensor:
        """Last states [B,T,D] in compute_dtype of tokens [B,T]."""
        if doc is None:
            return self._states(tokens)
        found = torch.zeros(*tokens.shape, self.config.width, dtype=self.compute_dtype, device=tokens.device)
        for rows, places in documents(doc):
            own = tokens[rows, places.clamp(min=0)].masked_fill(places < 0, 0)
            there = places >= 0
            found = found.index_put((rows.expand_as(places)[there], places[there]), self._states(own)[there])
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """[..,D] -> [..,V] float32. Raises ValueError where the network does more than a product there."""
        weight = self.head_weight
        return functional.linear(hidden, weight.to(hidden.dtype)).float()

    def forward(self, batch: Batch) -> Output:
        """Log-probs at weighted positions only; the scalar and class heads where the config has them."""
        head = self.config.head
        if head == "tokens" and not self._is_linear():
            return self._scored_whole(batch)
        x = self.hidden(batch.tokens, batch.doc)
        value = classes = None
        if self.value_head is not None:
            value = functional.linear(x.float(), self.value_head).squeeze(-1)
        if self.class_head is not None:
            classes = functional.linear(x.float(), self.class_head)
        if head in ("reward", "class"):
            return Output(torch.zeros(batch.tokens.shape, device=x.device), None, value, classes)
        if not self._is_linear():
            return self._scored_whole(batch)._replace(value=value)
        return Output(*weighted_logp(x, self.head_weight, batch), value, classes)

    def next_logits(self, tokens: Tensor, at: Tensor) -> Tensor:
        """tokens [B,T], later ones are not seen; logits [B,V] float32 of what follows position at [B]."""
        rows = torch.arange(len(tokens), device=tokens.device)
        if self._is_linear():
            return self.logits(self._states(tokens)[rows, at])
        return self._whole_logits(tokens)[rows, at]

    def decoder(self, dtype: torch.dtype, slots: int, positions: int) -> "ForeignDecoder":
        return ForeignDecoder(self, slots, positions)

    def _autocast(self) -> torch.autocast:
        on = self.compute_dtype != torch.float32
        return torch.autocast(self.embedding.device.type, self.compute_dtype if on else torch.bfloat16, enabled=on)

    def _states(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            return self.network.base_model(input_ids=tokens, use_cache=False).last_hidden_state.to(self.compute_dtype)

    def _whole_logits(self, tokens: Tensor) -> Tensor:
        with self._autocast():
            return self.network(input_ids=tokens, use_cache=False).logits.float()

    def _is_linear(self) -> bool:
        """Whether logits are the states times the output rows, by a look at one row: soft caps and factors are not."""
        if self._linear is None:
            count = min(_CHECKED_TOKENS, self.config.context_tokens)
            tokens = torch.arange(count, device=self.embedding.device)[None] % self.config.vocab_size
            output = self.network.get_output_embeddings()
            with torch.no_grad(), torch.autocast(self.embedding.device.type, torch.bfloat16, enabled=False):
                states = self.network.base_model(input_ids=tokens, use_cache=False).last_hidden_state
                whole = self.network(input_ids=tokens, use_cache=False).logits
                product = functional.linear(states, output.weight)
            self._linear = torch.equal(product, whole)  # to the bit: a soft cap hardly moves small logits
        return self._linear

    def _require_linear(self) -> None:
        if not self._is_linear():
            raise ValueError(
                f"{self.network.config.model_type}: its logits are more than states times output rows (soft caps, a factor "
                "or a bias), so single states cannot be read; training, scoring and generation work"
            )

    def _scored_whole(self, batch: Batch) -> Output:
        """forward() by the network's own logits [B,T,V], a group of documents in memory at a time."""
        shape, device = batch.tokens.shape, batch.tokens.device
        logp = torch.zeros(shape, device=device)
        entropy = torch.zeros(shape, device=device) if batch.want_entropy else None
        doc = torch.zeros(shape, dtype=torch.int32, device=device) if batch.doc is None else batch.doc
        for rows, places in documents(doc):
            own = batch.tokens[rows, places.clamp(min=0)].masked_fill(places < 0, 0)
            place = places.clamp(min=0)
            counted = (places >= 0) & (batch.weight[rows, place] > 0)
            into = rows.expand_as(places)[counted], places[counted]
            scored = torch.log_softmax(self._whole_logits(own)[counted], -1)  # [N,V]
            target = batch.targets[into][:, None]
            logp = logp.index_put(into, scored.gather(1, target).squeeze(1))
            if entropy is not None:
                entropy = entropy.index_put(into, -(scored.exp() * scored).sum(1))
        return Output(logp, entropy, None)


def _without_copies(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Names of weights that stand under another name already (an output tied to the embedding) are left out."""
    own = {prefix + n for n, _ in module.named_parameters()}
    for name, _ in module.named_parameters(remove_duplicate=False):
        if prefix + name not in own:
            state.pop(prefix + name, None)


def documents(doc: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Groups of documents of like length: (row of each [N,1], positions of each [N,n], -1 after its end).

    doc [B,T]: the number of a position's document, -1 = padding.
    """
    runs: list[tuple[int, int, int]] = []  # length, row, start
    for row, numbers in enumerate(doc.cpu()):
        numbers, lengths = torch.unique_consecutive(numbers, return_counts=True)
        starts = lengths.cumsum(0) - lengths
        runs += [
            (n, row, s) for d, n, s in zip(numbers.tolist(), lengths.tolist(), starts.tolist(), strict=True) if d >= 0
        ]
    runs.sort()
    found = []
    while runs:
        alike = sum(n <= _SPREAD * runs[0][0] for n, _, _ in runs)
        group, runs = runs[:alike], runs[alike:]
        lengths, rows, starts = torch.tensor(group, device=doc.device).T[..., None]
        steps = torch.arange(int(lengths.max()), device=doc.device)
        found.append((rows, torch.where(steps < lengths, starts + steps, -1)))
    return found


class ForeignDecoder:
    """What TorchBatch, TorchRun and TorchSlots need of a decoder, without a cache: each step reads the whole text again."""

    virtual = 0

    def __init__(self, model: ForeignModel, slots: int, positions: int):
        self.model, self.device, self.positions = model, model.embedding.device, positions
        self.tokens = torch.zeros(slots, positions, dtype=torch.long, device=self.device)
        self.at = torch.zeros(slots, dtype=torch.long, device=self.device)

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Tensor, which: Tensor) -> Tensor:
        """Give slots [B] the prompts of which [B]; next-token logits [B,V]."""
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)
        tokens = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens = tokens.to(self.device)
        self.tokens[slots, : tokens.shape[1]] = tokens[which]
        self.at[slots] = lengths[which]
        return self.model.next_logits(tokens, lengths - 1)[which]

    def step(self, tokens: Tensor, reach: int) -> Tensor:
        """Append a token [B] to each slot; next logits [B,V] float32. reach: no slot has more text after it."""
        at = self.at.clamp(max=min(reach, self.positions) - 1)  # an idle slot may be further
        self.tokens.scatter_(1, at[:, None], tokens[:, None])
        return self.model.next_logits(self.tokens[:, : min(reach, self.positions)], at)

    def keep(self, slots: Tensor) -> None:
        """Keep only these slots."""
        self.tokens, self.at = self.tokens[slots], self.at[slots]


def new_foreign(fields: dict[str, Any], config: ModelConfig, head: Head) -> ForeignModel:
    """A model of a checked config.json with another head; weights not yet set, a value or class head at zero."""
    return ForeignModel(empty_network(fields), msgspec.structs.replace(config, head=head))


def read_network(folder: Path, fields: dict[str, Any]) -> transformers.PreTrainedModel:
    """The network with the weights of a folder whose files have been checked, float32.

    Raises ValueError naming a tensor that is missing, left over, of another shape or not finite.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"{folder} holds a PEFT adapter: import the whole model, or merge the adapter there first")
    config = config_of(fields)
    network, info = class_of(config, str(folder / "config.json")).from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if info[problem]:
            raise ValueError(
                f"{folder}: {problem.replace('_', ' ')}: {sorted(map(str, info[problem]))[0]}: config.json belongs to another "
                "checkpoint, or the weights are not whole"
            )
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{folder}: tensor {name!r} has values that are NaN or infinite: the weights are broken")
    return network
