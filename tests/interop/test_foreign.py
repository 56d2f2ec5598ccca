"""Models that only `transformers` runs: scored, trained, asked and exported like ours, on random weights of five kinds."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import transformers
from hf_models import CASES, TOKENS, byte_level
from hf_models import make_model as make_theirs

from fledge.core.batch import Batch
from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import TrainConfig
from fledge.core.log import MetricsLog
from fledge.core.train import Interrupted
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.interop.command import ModelExportOptions, ModelImportOptions, export_model, import_model
from fledge.interop.foreign import ForeignModel, documents
from fledge.interop.gguf_export import export_gguf
from fledge.stages.common import open_model
from fledge.stages.sft import SftRecipe
from fledge.stages.sft import run as sft

SMALL = {"vocab_size": 416, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
# learned positions and dropout; soft caps; a factor on logits; parallel blocks; no attention at all
KINDS = {
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "Gemma2": {**DECODER, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "Granite": {**DECODER, "logits_scaling": 4.0},
    "GPTNeoX": {k: v for k, v in DECODER.items() if k != "num_key_value_heads"},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "expand": 2},
}


def make(kind: str, seed: int = 0) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(**SMALL, **KINDS[kind])
    torch.manual_seed(seed)
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    model = getattr(transformers, name)(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.15, generator=generator))
    return model.eval()


def save(folder: Path, model: transformers.PreTrainedModel, texts) -> Path:
    model.save_pretrained(folder)
    byte_level(texts).save_pretrained(folder)
    return folder


@pytest.fixture
def opened(tmp_path: Path, sentences):
    """opened(kind) -> (their model, ours) by way of a folder and a run."""

    def make_both(kind: str, **options):
        theirs = make(kind)
        save(tmp_path / "hf", theirs, sentences)
        if kind == "Mamba":
            options = {"context_tokens": 64, **options}
        import_model(
            ModelImportOptions(path=str(tmp_path / "hf"), out=str(tmp_path / "run"), backend="transformers", **options)
        )
        return theirs, open_model(tmp_path / "run", device="cpu", precision="float32")

    return make_both


def random_tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, TOKENS, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch_of(tokens: torch.Tensor, doc: torch.Tensor | None = None) -> Batch:
    weight = torch.ones(tokens.shape[0], tokens.shape[1] - 1)
    weight[:, :2] = 0.0
    return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weight=weight, units=1.0, doc=doc, want_entropy=True)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_are_those_of_transformers(opened, kind: str):
    theirs, ours = opened(kind)
    tokens = random_tokens(2, 21)
    batch = batch_of(tokens)
    with torch.no_grad():
        found = ours.model(batch)
        expected = theirs(tokens[:, :-1]).logits.log_softmax(-1)
    assert expected.std() > 0.1
    picked = expected.gather(2, batch.targets[..., None])[..., 0] * batch.weight
    torch.testing.assert_close(found.logp, picked, atol=1e-4, rtol=0)
    entropy = -(expected.exp() * expected).sum(-1) * batch.weight
    torch.testing.assert_close(found.entropy, entropy, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_score_as_they_do_alone(opened, kind: str):
    _, ours = opened(kind)
    tokens = random_tokens(2, 24)
    doc = torch.tensor([[0] * 9 + [1] * 14, [0] * 2 + [1] * 16 + [-1] * 5], dtype=torch.int32)
    batch = batch_of(tokens, doc)
    packed = ours.model(batch).logp
    seen = 0
    for row, start, stop in ((0, 0, 9), (0, 9, 23), (1, 0, 2), (1, 2, 18)):
        alone = ours.model(batch_of(tokens[row : row + 1, start : stop + 1])).logp[0]
        weighed = batch.weight[row, start:stop] > 0
        weighed[:2] = False
        torch.testing.assert_close(packed[row, start:stop][weighed], alone[weighed], atol=1e-4, rtol=0)
        seen += int(weighed.sum())
    assert seen > 20


def test_documents_of_like_length_go_together():
    doc = torch.tensor([[4, 4, 4, 4, 4, 7], [1, 1, 2, 2, 2, -1]])
    groups = [(rows.flatten().tolist(), places.tolist()) for rows, places in documents(doc)]
    assert groups == [
        ([0, 1], [[5, -1], [0, 1]]),
        ([1, 0], [[2, 3, 4, -1, -1], [0, 1, 2, 3, 4]]),
    ]


@pytest.mark.parametrize("kind", ["GPT2", "Gemma2", "Mamba"])
def test_greedy_answers_are_those_of_transformers(opened, kind: str):
    theirs, ours = opened(kind)
    prompts = [row[:n].tolist() for row, n in zip(random_tokens(3, 12), (5, 12, 8), strict=True)]
    answers = Engine(ours.model, [2]).generate(prompts, Sampling(temperature=0.0, max_tokens=10), batch_rows=2)
    for prompt, answer in zip(prompts, answers, strict=True):
        made = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=2, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert list(answer.tokens) == made
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt + made])).logits[0].log_softmax(-1)
        first = torch.tensor(answer.logp)
        picked = expected[len(prompt) - 1 : -1].gather(1, torch.tensor(made)[:, None])[:, 0]
        if kind == "GPT2":  # Mamba's fast and slow ways of reading differ in rounding
            torch.testing.assert_close(first, picked, atol=1e-3, rtol=0)


def test_the_same_model_by_our_own_code_gives_the_same_answers(tmp_path: Path, sentences):
    """The slow twin of a native import."""
    assert "llama" in CASES
    save(tmp_path / "hf", make_theirs("llama"), sentences)
    for backend in ("native", "transformers"):
        import_model(ModelImportOptions(path=str(tmp_path / "hf"), out=str(tmp_path / backend), backend=backend))
    own, foreign = (open_model(tmp_path / b, device="cpu", precision="float32") for b in ("native", "transformers"))
    assert isinstance(foreign.model, ForeignModel)
    doc = torch.tensor([[0] * 9 + [1] * 14] * 2, dtype=torch.int32)
    batch = batch_of(random_tokens(2, 24), doc)
    torch.testing.assert_close(own.model(batch).logp, foreign.model(batch).logp, atol=1e-4, rtol=0)
    prompts = [[5, 9, 7], [30, 4, 4, 8, 100]]
    answers = [Engine(m.model, [2]).generate(prompts, Sampling(seed=3, max_tokens=8)) for m in (own, foreign)]
    assert [a.tokens for a in answers[0]] == [a.tokens for a in answers[1]]
    assert open_model(tmp_path / "transformers").tokenizer.encode("Tesk") == own.tokenizer.encode("Tesk")


def chats(path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is {name}?"},
                {"role": "assistant", "content": "By the Tesk."},
            ]
        }
        for name in ("Belmora", "Arvania", "Kolden", "Mira")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("kind", ["GPT2", "Gemma2"])
def test_it_is_fine_tuned_opened_and_exported(tmp_path: Path, opened, kind: str, capsys):
    theirs, _ = opened(kind)
    train = TrainConfig(steps=12, lr=3e-3, batch_tokens=128, device="cpu", precision="float32")
    data, out = str(chats(tmp_path / "chats.jsonl")), str(tmp_path / "sft")
    sft(SftRecipe(chats=[data], out=out, parent=str(tmp_path / "run"), train=train))
    assert "slower than our own code" in "".join(capsys.readouterr())
    losses = [json.loads(line)["loss"] for line in (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines() if "loss" in line]  # fmt: skip
    assert losses[-1] < losses[0] - 0.5
    after = open_model(tmp_path / "sft", device="cpu", precision="float32")
    assert isinstance(after.model, ForeignModel)
    export_model(ModelExportOptions(run=str(tmp_path / "sft"), out=str(tmp_path / "out")))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = random_tokens(1, 20)
    with torch.no_grad():
        expected = again(tokens).logits
        torch.testing.assert_close(after.model.network(tokens).logits, expected)
        assert not torch.allclose(theirs(tokens).logits, expected, atol=1e-2)
    spoken = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert spoken.eos_token == "<|im_end|>"
    assert spoken.chat_template == after.tokenizer.format.template


def test_stopped_and_resumed_is_the_same_run(tmp_path: Path, opened, monkeypatch: pytest.MonkeyPatch):
    opened("GPT2")
    data = str(chats(tmp_path / "chats.jsonl"))
    train = TrainConfig(steps=6, lr=3e-3, batch_tokens=128, device="cpu", precision="float32")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        recipe = SftRecipe(chats=[data], out="run", parent=str(tmp_path / "run"), train=train)
        if name == "cut":
            write = MetricsLog.write

            def stopping(self, row, speed, write=write):
                write(self, row, speed)
                if row["step"] == 3:
                    os.kill(os.getpid(), signal.SIGTERM)

            with monkeypatch.context() as during:
                during.setattr(MetricsLog, "write", stopping)
                with pytest.raises(Interrupted):
                    sft(recipe, quiet=True)
        sft(recipe, quiet=True)
    whole, cut = (list_checkpoints(tmp_path / name / "run")[-1] for name in ("whole", "cut"))
    for name in ("model.safetensors", "optimizer.safetensors", "card.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_heads_begin_at_zero_and_are_kept(opened, tmp_path: Path):
    _, _ = opened("GPT2")
    scored = open_model(tmp_path / "run", head="reward", device="cpu", precision="float32").model
    batch = batch_of(random_tokens(2, 10))
    assert torch.equal(scored(batch).value, torch.zeros(2, 9))
    with torch.no_grad():
        scored.value_head.fill_(0.1)
    value = scored(batch).value
    assert value.std() > 0
    torch.testing.assert_close(value, scored.hidden(batch.tokens).sum(-1) * 0.1)


def test_new_control_tokens_get_rows_of_their_own(tmp_path: Path, sentences):
    theirs = make("GPTNeoX")
    theirs.resize_token_embeddings(TOKENS - 3, mean_resizing=False)
    theirs.save_pretrained(tmp_path / "hf")
    tokenizer = byte_level(sentences)
    held = json.loads(tokenizer.backend_tokenizer.to_str())
    names = ("<|im_start|>", "<|im_end|>")
    ids = {t["content"]: t["id"] for t in held["added_tokens"]}
    assert set(names) <= ids.keys()
    held["added_tokens"] = [t for t in held["added_tokens"] if t["content"] not in names]
    for name in names:
        held["model"]["vocab"] = {f"<unused{i}>" if w == name else w: i for w, i in held["model"]["vocab"].items()}
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(held))
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    theirs = make("GPTNeoX")
    theirs.resize_token_embeddings(TOKENS, mean_resizing=False)
    theirs.save_pretrained(tmp_path / "hf")
    options = {"path": str(tmp_path / "hf"), "out": str(tmp_path / "run"), "backend": "transformers"}
    import_model(ModelImportOptions(**options, template="chatml"))
    opened = open_model(tmp_path / "run", device="cpu", precision="float32")
    added = list(opened.tokenizer.chat_format.added)
    rows = opened.model.embedding
    assert len(added) == 2 and len(rows) == max(added) + 1
    assert torch.equal(rows[added[0]], rows[: min(added)].mean(0))
    assert load_checkpoint(tmp_path / "run").card["imported"]["foreign"]["vocab_size"] == len(rows)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"model_type": "my_own_model", "auto_map": {"AutoModel": "evil.py"}},
            "has no such model, and code that comes with",
        ),
        ({"model_type": "clip"}, "no causal language model"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* its weights are quantised"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, "architectures = .* GPT2LMHeadModel is run"),
        ({"n_embd": 64}, "mismatched keys"),
        ({"n_layer": 3}, "missing keys"),
        ({"n_layer": 1}, "unexpected keys"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, sentences, fields: dict, error: str):
    folder = save(tmp_path / "hf", make("GPT2"), sentences)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=error):
        import_model(ModelImportOptions(path=str(folder), out=str(tmp_path / "run"), backend="transformers"))
    assert not (tmp_path / "run").exists()


def test_code_in_the_folder_is_never_run(tmp_path: Path, sentences, capsys):
    folder = save(tmp_path / "hf", make("GPT2"), sentences)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'run-by-us')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "evil.Model"}, "trust_remote_code": True, "_attn_implementation_internal": "evil/x"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    import_model(ModelImportOptions(path=str(folder), out=str(tmp_path / "run"), backend="transformers"))
    open_model(tmp_path / "run")
    assert not (tmp_path / "run-by-us").exists()
    said = "".join(capsys.readouterr())
    assert "auto_map" in said and "no code of a model is ever run" in said


def test_a_pickle_is_never_opened(tmp_path: Path, sentences):
    folder = save(tmp_path / "hf", make("GPT2"), sentences)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle runs code when it is opened"):
        import_model(ModelImportOptions(path=str(folder), out=str(tmp_path / "run"), backend="transformers"))


def test_gguf_is_left_to_llama_cpps_own_converter(tmp_path: Path, opened):
    opened("GPT2")
    with pytest.raises(ValueError, match="gpt2, which only `transformers` runs: export with --to hf"):
        export_gguf(tmp_path / "run", tmp_path / "a.gguf")


def test_adapters_say_that_they_need_our_own_blocks(opened):
    from fledge.core.adapters import AdapterConfig
    from fledge.core.adapting import attach

    _, ours = opened("GPT2")
    with pytest.raises(ValueError, match=r"adapters sit on core\.model\.Transformer"):
        attach(ours.model, AdapterConfig())
