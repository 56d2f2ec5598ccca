"""A judge behind HTTP, played by a server in a thread: good, busy, slow, malformed, refusing and forgetful."""

import json
import logging
import time
from collections.abc import Callable

import pytest
from chat_server import ChatServer

from fledge.feedback.judge import JudgeConfig, JudgeReward, judge_pair, judge_pairs, read_points, read_verdict
from fledge.feedback.rewards import checked
from fledge.tasks.base import Example, user


def judge_at(endpoint: ChatServer, **settings) -> JudgeReward:
    return JudgeReward(JudgeConfig(**{"url": endpoint.url, "model": "m", "backoff_seconds": 0.01, **settings}))


def ask(text: str = "1+1?") -> Example:
    return Example(id="e1", prompt=user(text), answers=("2",), kind="prompt", language="en")


def by_length(text: str, number: int) -> str:
    answer = text.split("[The answer to grade]\n")[1].split("\n[End]")[0]
    return json.dumps({"score": len(answer)})


# ---- points


def test_points_in_order_whoever_replies_first(endpoint):
    def uneven(text: str, number: int) -> str:
        time.sleep(0.03 * (number % 3))
        return by_length(text, number)

    server = endpoint(uneven)
    answers = ["x" * (i % 11) for i in range(22)]
    reward = checked(judge_at(server, concurrency=4))
    assert reward([ask()] * 22, answers) == [len(a) / 10 for a in answers]
    assert 1 < server.most <= 4, "several at once, but no more than allowed"
    assert reward([], []) == []


def test_what_is_asked(endpoint):
    server = endpoint(by_length)
    judge = judge_at(server, model="org/judge", rubric="Is it polite?", max_tokens=9, temperature=0.5)
    judge([ask("how {are} you?")], ["f{i}ne"])
    path, _, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("org/judge", 9, 0.5)
    assert "Is it polite?" in body["messages"][0]["content"]
    assert "user: how {are} you?" in body["messages"][1]["content"] and "f{i}ne" in body["messages"][1]["content"]


def test_the_full_url_may_be_given(endpoint):
    server = endpoint(by_length)
    judge_at(server, url=server.url + "/chat/completions/")([ask()], ["ab"])
    assert server.requests[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("reply", "points"),
    [
        ('{"score": 7}', 7), ('```json\n{"score": "7.5"}\n```', 7.5), ("Score: 3", 3), ("I think 4/10.", 4), ("8 out of 10", 8),
        ("[[6]]", 6), ("10", 10), ("**9**", 9), ('First {"score": 2}, no: {"score": 5}', 5), ("0", 0),
        ('It has 3 errors in 12 lines, so 2/10 before; {"score": 1}', 1),
    ],
)  # fmt: skip
def test_points_are_read(reply: str, points: float):
    assert read_points(reply) == points


@pytest.mark.parametrize(
    "reply", ["good", "it has 3 errors", '{"score": 11}', '{"score": -1}', "100", '{"points": null}', "12/10"]
)
def test_points_that_cannot_be_read(reply: str):
    with pytest.raises(ValueError, match=r"without points|not from 0 to 10"):
        read_points(reply)


# ---- failing


def test_a_busy_server_is_asked_again(endpoint):
    statuses = [429, 503, 500, 200]
    server = endpoint(lambda t, n: by_length(t, n) if statuses[n] == 200 else (statuses[n], {}, "wait"))
    assert judge_at(server)([ask()], ["abc"]) == [0.3]
    assert len(server.requests) == 4


def test_the_server_may_say_how_long_to_wait(endpoint):
    server = endpoint(lambda t, n: by_length(t, n) if n else (429, {"Retry-After": "0.3"}, ""))
    start = time.monotonic()
    judge_at(server, backoff_seconds=0.0)([ask()], ["abc"])
    assert time.monotonic() - start >= 0.3


def test_waits_double(endpoint, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr("fledge.generate.endpoint.time.sleep", waits.append)
    server = endpoint(lambda t, n: (500, {}, "down"))
    with pytest.raises(ConnectionError, match="did not answer 8 times, last: HTTP 500: down"):
        judge_at(server, retries=7, backoff_seconds=1.0)([ask()], ["abc"])
    assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_a_slow_judge_is_an_error_and_no_score(endpoint):
    server = endpoint(lambda t, n: time.sleep(0.6) or by_length(t, n))
    with pytest.raises(ConnectionError, match=r"did not answer 2 times, last: no reply within 0.1 s"):
        judge_at(server, timeout_seconds=0.1, retries=1)([ask()], ["abc"])


def test_slow_once_then_fast(endpoint):
    server = endpoint(lambda t, n: (time.sleep(0.5) if n == 0 else None) or by_length(t, n))
    assert judge_at(server, timeout_seconds=0.2)([ask()], ["abc"]) == [0.3]


def test_nobody_there(endpoint):
    server = endpoint(by_length)
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(ConnectionError, match=r"did not answer 2 times.*refused.*check that it runs"):
        judge_at(server, retries=1)([ask()], ["abc"])


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("I like it.", "without points"),
        ('{"score": 12}', "12 points, which is not from 0 to 10"),
        ("", "an empty reply"),
        ((200, {}, "<html>hello</html>"), "no chat completion"),
        ((200, {}, '{"choices": []}'), "no chat completion"),
        ((200, {}, '{"choices": [{"message": null}]}'), "no chat completion"),
        ((200, {}, "[" * 100_000), "no chat completion"),
        (
            (200, {}, json.dumps({"choices": [{"message": {"content": None, "refusal": "I can't."}}]})),
            "a refusal .*I can't",
        ),
    ],
)
def test_a_reply_that_holds_no_points_is_an_error_with_prompt_and_answer(endpoint, reply, said: str):
    server = endpoint(lambda t, n: reply)
    with pytest.raises(ValueError, match=f"{said}.* for the prompt '1\\+1\\?' .* the answer 'abc'"):
        judge_at(server, retries=2)([ask()], ["abc"])
    assert len(server.requests) == 3, "asked again before it is given up"


def test_malformed_once_then_good(endpoint):
    server = endpoint(lambda t, n: by_length(t, n) if n else "hm, let me think")
    assert judge_at(server)([ask()], ["abc"]) == [0.3]


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "set FLEDGE_JUDGE_KEY"), (403, "set FLEDGE_JUDGE_KEY"), (404, "check url and model")]
)
def test_a_refusal_for_good_is_not_repeated(endpoint, status: int, hint: str):
    server = endpoint(lambda t, n: (status, {}, "no such thing"))
    with pytest.raises(ValueError, match=f"HTTP {status}: 'no such thing'; {hint}"):
        judge_at(server)([ask()], ["abc"])
    assert len(server.requests) == 1


def test_the_first_failure_leaves_the_rest_unasked(endpoint):
    server = endpoint(lambda t, n: (400, {}, "bad"))
    with pytest.raises(ValueError, match="HTTP 400"):
        judge_at(server, concurrency=2)([ask()] * 500, ["a"] * 500)
    assert len(server.requests) < 250


# ---- the key


def test_the_key_is_sent_and_told_nowhere(endpoint, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_JUDGE_KEY", "sk-very-secret")
    server = endpoint(lambda t, n: by_length(t, n) if n == 0 else (401, {}, "bad key"))
    judge = judge_at(server, key_variable="MY_JUDGE_KEY")
    assert judge([ask()], ["abc"]) == [0.3]
    assert server.requests[0][1]["Authorization"] == "Bearer sk-very-secret"
    with pytest.raises(ValueError, match="MY_JUDGE_KEY") as told:
        judge([ask()], ["abc"])
    out, err = capfd.readouterr()
    everything = [str(told.value), judge.name, judge.identity, repr(judge.config), caplog.text, out, err]
    assert not any("secret" in text for text in everything)


def test_no_key_no_header(endpoint):
    server = endpoint(by_length)
    judge_at(server)([ask()], ["a"])
    assert "Authorization" not in server.requests[0][1]


def test_a_redirect_does_not_carry_the_key_elsewhere(endpoint, monkeypatch):
    monkeypatch.setenv("FLEDGE_JUDGE_KEY", "sk-very-secret")
    elsewhere = endpoint(by_length)
    server = endpoint(lambda t, n: (302, {"Location": elsewhere.url + "/chat/completions"}, ""))
    with pytest.raises((ValueError, ConnectionError)):
        judge_at(server, retries=0)([ask()], ["a"])
    assert "secret" in str(server.requests[0][1])
    assert len(elsewhere.requests) == 1 and "secret" not in str(elsewhere.requests[0][1])


# ---- pairs


def pair_judge(prefer: Callable[[str, str], str]) -> Callable[[str, int], str]:
    def answer(text: str, number: int) -> str:
        a, b = (text.split(f"[Answer {letter}]\n")[1].split("\n[End]")[0] for letter in "AB")
        return f"Thinking... [[{prefer(a, b)}]]"

    return answer


def test_a_pair_is_judged_in_both_orders(endpoint):
    longer = endpoint(pair_judge(lambda a, b: "A" if len(a) > len(b) else "B" if len(b) > len(a) else "C"))
    judge = judge_at(longer)
    assert judge_pair(judge, ask(), "long one", "short") == "first"
    assert judge_pair(judge, ask(), "short", "long one") == "second"
    assert judge_pair(judge, ask(), "same", "size") == "tie"
    assert len(longer.requests) == 6
    rows = [(ask(), "a" * i, "a" * 5) for i in range(10)]
    assert judge_pairs(judge, rows) == ["second"] * 5 + ["tie"] + ["first"] * 4


@pytest.mark.parametrize("place", "AB")
def test_a_preference_for_a_place_is_a_tie(endpoint, place: str):
    assert judge_pair(judge_at(endpoint(pair_judge(lambda a, b: place))), ask(), "one", "two") == "tie"


def test_a_pair_without_a_verdict_is_an_error(endpoint):
    with pytest.raises(ValueError, match="without a verdict"):
        judge_pair(judge_at(endpoint(lambda t, n: "both are fine"), retries=1), ask(), "one", "two")


@pytest.mark.parametrize(
    ("reply", "letter"), [("[[A]]", "A"), ("B", "B"), ("**c**", "C"), ("[[A]] ... finally [[B]]", "B"), ("b.", "B")]
)
def test_verdicts_are_read(reply: str, letter: str):
    assert read_verdict(reply) == letter


# ---- settings


def test_every_impossible_setting_is_told_at_once():
    with pytest.raises(ValueError) as told:
        JudgeReward(
            JudgeConfig(url="ftp://u:p@host/v1", model="", max_tokens=0, concurrency=0, retries=-1, timeout_seconds=0)
        )
    for part in (
        "must begin with http",
        "no password",
        "model: empty",
        "max_tokens = 0",
        "concurrency = 0",
        "retries = -1",
        "timeout_seconds = 0",
    ):
        assert part in str(told.value)


def test_identity_follows_what_changes_the_points():
    def identity(**settings) -> str:
        return JudgeReward(JudgeConfig(**{"url": "http://a/v1", "model": "m", **settings})).identity

    assert identity() == identity(url="http://b/v1", retries=9)
    assert len({identity(), identity(model="n"), identity(rubric="other"), identity(temperature=1.0)}) == 4
