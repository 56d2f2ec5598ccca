"""`fledge votes` and `fledge invite` as a user types them."""

from pathlib import Path

import pytest
from voters import Voters

from fledge.cli import main
from fledge.feedback.store import Store, store_url


@pytest.fixture
def run(place: Path) -> Path:
    """A run with a few votes."""
    with Store.open(store_url(place)) as store:
        voters = Voters(store)
        votes = [voters.thumb(1, dwell_ms=2500), voters.pair("left"), voters.new("score", draft=voters.a, value=4)]
        store.put_votes([(voters.ann, v) for v in votes] + [(voters.bo, voters.thumb(-1, draft=voters.a))])
    return place


def test_votes_in_figures(run: Path, capsys: pytest.CaptureFixture):
    assert main(["votes", str(run)]) == 0
    said = capsys.readouterr().out
    assert "4 votes: 1 pair, 1 score, 2 thumb" in said and "Ann" in said and "Bo 波" in said
    assert "left was taken in 100% of 1 decided pairs" in said and "sft run/checkpoints/step-0000120" in said


def test_check_tells_a_whole_store_from_a_damaged_one(run: Path, capsys: pytest.CaptureFixture):
    assert main(["votes", "check", str(run)]) == 0
    assert "4 votes, every digest, link and reference holds" in capsys.readouterr().err.replace("\n", " ")
    path = run / "votes.sqlite3"
    whole = path.read_bytes()
    at = whole.index("貝爾莫拉".encode())
    path.write_bytes(whole[:at] + "貝爾莫垃".encode() + whole[at + 12 :])
    assert main(["votes", "check", str(run)]) == 2
    assert "draft d_b: its text changed after it was stored" in capsys.readouterr().err


def test_backup_is_checked_and_never_overwrites(run: Path, capsys: pytest.CaptureFixture):
    for expected in (0, 2):
        assert main(["votes", "backup", str(run), "--out", str(run / "copy.sqlite3")]) == expected
    said = capsys.readouterr().err.replace("\n", " ")
    assert "4 votes, checked" in said and "exists: name a new file" in said
    assert main(["votes", "check", str(run), "--store", str(run / "copy.sqlite3")]) == 0


def test_migrate_there_and_back(run: Path, postgres_url: str, capsys: pytest.CaptureFixture):
    assert main(["votes", "migrate", str(run), "--to", postgres_url]) == 0
    assert "the chain of 4 votes ends in" in capsys.readouterr().err.replace("\n", " ")
    assert main(["votes", "migrate", str(run), "--store", postgres_url, "--to", str(run / "back.sqlite3")]) == 0
    with (
        Store.open(store_url(run), read_only=True) as one,
        Store.open(store_url("", str(run / "back.sqlite3"))) as other,
    ):
        assert list(one.votes()) == list(other.votes()) and other.verify() == (4, [])
    assert main(["votes", "migrate", str(run), "--to", postgres_url]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["votes"], "run: required"),
        (["votes", "RUN/none"], "no votes yet"),
        (["votes", "chekc", "RUN"], "action = 'chekc': must be check, backup, migrate"),
        (["votes", "backup", "RUN"], "out: required"),
        (["votes", "migrate", "RUN"], "to: required"),
        (["votes", "migrate", "RUN/none", "--to", "RUN/x"], "no votes yet"),
        (["votes", "RUN", "--out", "x"], "out: goes with `fledge votes backup RUN`"),
        (["votes", "check", "RUN", "--to", "x"], "to: goes with `fledge votes migrate RUN`"),
        (["invite", "RUN/none", "Cy"], "no such run"),
        (["invite", "RUN", "Cy", "--revoke"], "nobody called 'Cy' is invited"),
        (["invite", "RUN", " "], "name: must not be blank"),
    ],
)
def test_what_cannot_be_done_is_told(run: Path, words: list[str], says: str, capsys: pytest.CaptureFixture):
    assert main([word.replace("RUN", str(run)) for word in words]) == 2
    assert says in capsys.readouterr().err
    assert not (run / "none").exists()


def test_a_token_is_shown_once_and_ends_when_revoked(run: Path, capsys: pytest.CaptureFixture):
    assert main(["invite", str(run), "Cy"]) == 0
    token = capsys.readouterr().out.strip()
    assert len(token) >= 43
    assert token.encode() not in (run / "votes.sqlite3").read_bytes()
    with Store.open(store_url(run), read_only=True) as store:
        person = store.person_of_secret(token)
        assert (person.name, person.role, person.kind) == ("Cy", "rater", "person")
    assert main(["invite", str(run), "Cy"]) == 2
    assert main(["invite", str(run), "Cy", "--revoke"]) == 0
    with Store.open(store_url(run), read_only=True) as store:
        assert store.person_of_secret(token) is None
    assert main(["invite", str(run), "Cy"]) == 0
    assert capsys.readouterr().out.strip() != token
