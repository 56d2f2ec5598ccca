"""A model in the hand: it writes, reads and tells of itself as the parts do that it is made of."""

import math
import shutil
import xml.etree.ElementTree
from pathlib import Path

import pytest
import torch
from api_runs import CHATS, LOOP, make_runs

from fledge import api
from fledge.core.checkpoint import load_checkpoint
from fledge.core.log import read_jsonl
from fledge.generate.chat import chat_engine, continue_text
from fledge.generate.sampling import Sampling


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("open") / "runs")


@pytest.fixture(scope="module")
def sft(runs: Path) -> api.Model:
    return api.open_run(runs / "sft")


def test_open_run_tells_what_it_is(runs: Path, sft: api.Model):
    assert sft.run == runs / "sft" and sft.path == runs / "sft" / "checkpoints" / "step-0000003"
    assert sft.card["stage"] == "sft" and sft.id == load_checkpoint(runs / "sft").id
    assert sft.parameters == sum(t.numel() for t in load_checkpoint(runs / "sft").model_tensors().values())
    for place in (str(runs / "sft"), sft.path):
        assert api.open_run(place).id == sft.id
    assert "&lt;" not in repr(sft) and "sft model" in repr(sft) and f"{sft.parameters:,}" in sft._repr_html_()
    with pytest.raises(ValueError, match="no checkpoint in"):
        api.open_run(runs / "nowhere")


def test_complete_is_the_engine_and_a_list_is_a_batch(sft: api.Model):
    opened = sft.opened
    expected = continue_text(
        chat_engine(opened.model, opened.tokenizer), opened.tokenizer, ["ada and", "bo"], Sampling(max_tokens=6, seed=5)
    )
    found = sft.complete(["ada and", "bo"], max_tokens=6, seed=5)
    assert found == [a.text for a in expected] and [r.finish for r in found] == [a.finish for a in expected]
    alone = sft.complete("ada and", max_tokens=6, seed=5)
    assert alone == found[0] and isinstance(alone, str) and alone.dropped_turns == 0
    assert sft.complete([]) == [] and sft.chat([]) == []


def test_chat_takes_texts_conversations_and_lists_of_them(sft: api.Model):
    greedy = {"temperature": 0.0, "max_tokens": 6}
    question = [{"role": "user", "content": "who is ada"}]
    one = sft.chat("who is ada", **greedy)
    assert isinstance(one, str) and one == sft.chat(question, **greedy)
    assert sft.chat(["who is ada", question, "who is bo"], **greedy)[:2] == [one, one]
    assert "".join(sft.stream("who is ada", **greedy)) == one
    system = [{"role": "system", "content": "be brief"}, *question]
    assert sft.chat("who is ada", system="be brief", **greedy) == sft.chat(system, **greedy)
    longer = [
        *question,
        {"role": "assistant", "content": "ada is here. " * 4},
        {"role": "user", "content": "who is bo"},
    ]
    assert sft.chat(longer, **greedy).dropped_turns == 2


def test_bad_questions_and_sampling_are_told(sft: api.Model):
    with pytest.raises(ValueError, match="did you mean temperature"):
        sft.chat("hi", temprature=0.5)
    with pytest.raises(ValueError, match="max_tokens = 0: must be at least 1"):
        sft.complete("hi", max_tokens=0)
    with pytest.raises(ValueError, match=r"a message is \{'role': 'user'"):
        sft.chat([{"role": "user"}])
    with pytest.raises(ValueError, match="conversation is empty"):
        sft.chat([[]])
    with pytest.raises(ValueError, match="the model reads 48: shorten it"):
        sft.logprobs("ada and bo " * 60)
    with pytest.raises(ValueError, match="has no tokens"):
        sft.logprobs("")


def test_logprobs_are_those_of_the_loss(sft: api.Model):
    texts = ["ada and bo meet", "bo", "ada & 中文 🙂"]
    found = sft.logprobs(texts)
    for text, view in zip(texts, found, strict=True):
        assert view.text == text and len(view) == len(view.logp) == len(view.ids)
        (alone,) = [sft.logprobs(text)]
        assert alone.logp == pytest.approx(view.logp, abs=1e-4)
        ids = torch.tensor([[sft.opened.tokenizer.bos, *view.ids]])
        with torch.no_grad():
            logits = sft.opened.model.logits(sft.opened.model.hidden(ids[:, :-1])[0])
        direct = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None]).squeeze(1)
        assert view.logp == pytest.approx(direct.tolist(), abs=2e-2)  # bfloat16 sums in another order
        assert view.bits_per_byte == pytest.approx(-sum(view.logp) / math.log(2) / len(text.encode()))
    assert found[2]._repr_html_().count("<span") == len(found[2])
    assert "&amp;" in found[2]._repr_html_() and "p = " in found[2]._repr_html_()


def test_tokens_of_texts_and_of_conversations(sft: api.Model):
    view = sft.tokens("ada <|end|>")
    assert view.text == "ada <|end|>" and sft.opened.tokenizer.end not in view.ids
    with pytest.raises(ValueError, match=r"`logprobs\(text\)`"):
        view.bits_per_byte  # noqa: B018
    chat = sft.tokens(CHATS[0]["messages"])
    assert "".join(text for text, trained in chat.tokens if trained) == "ada is here.<|end|>"
    assert "background-color" in chat._repr_html_()


def test_next_is_a_distribution(sft: api.Model):
    found = sft.next("ada and", top=3)
    assert len(found) == 3 and [t.p for t in found] == sorted((t.p for t in found), reverse=True)
    shown = repr(found)
    assert "all others" in shown and f"{found[0].p:.1%}" in shown


def test_history_and_plot(runs: Path, sft: api.Model, tmp_path: Path):
    rows = read_jsonl(runs / "sft" / "metrics.jsonl")
    history = sft.history()
    assert history["step"] == [1, 2, 3] and history["loss"] == [row["loss"] for row in rows]
    svg = sft.plot()._repr_svg_()
    assert svg.startswith("<svg xmlns=") and "var(--" not in svg and "loss, nats per token" in svg
    xml.etree.ElementTree.fromstring(sft.plot("grad_norm", "lr").save(tmp_path / "chart.svg").read_text("utf-8"))
    with pytest.raises(ValueError, match=r"has no figure 'los': it has .*loss"):
        sft.plot("los")


def test_lineage_goes_up_to_the_first_model(runs: Path):
    found = api.open_run(runs / "rm").lineage()
    assert [a.stage for a in found] == ["reward", "sft", "pretrain"]
    assert [a.id for a in found] == [load_checkpoint(runs / n).id for n in ("rm", "sft", "base")]
    assert found._repr_html_().count("<tr>") == 4


def test_lineage_where_a_parent_is_gone(runs: Path, tmp_path: Path):
    shutil.copytree(runs / "base", tmp_path / "base")
    api.sft(out=tmp_path / "sft", parent=tmp_path / "base", chats=CHATS, train=LOOP)
    shutil.rmtree(tmp_path / "base")
    assert [(a.stage, a.id) for a in api.open_run(tmp_path / "sft").lineage()][1:] == [
        ("elsewhere", load_checkpoint(runs / "base").id)
    ]


def test_a_reward_model_scores_and_does_not_chat(runs: Path, sft: api.Model):
    reward = api.open_run(runs / "rm")
    scores = reward.score("who is ada", ["ada is here.", "no"])
    assert scores[0] == pytest.approx(
        reward.score([{"role": "user", "content": "who is ada"}], "ada is here."), abs=1e-2
    )
    assert scores[0] != scores[1]
    with pytest.raises(ValueError, match="head 'reward': it gives figures, not words"):
        reward.chat("who is ada")
    with pytest.raises(ValueError, match="a reward needs a model trained by `fledge reward`"):
        sft.score("who is ada", "ada")
