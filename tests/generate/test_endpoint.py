"""An endpoint behind HTTP: what a reply says besides its text, and which failures concern one question only."""

import json
import time

import pytest

from fledge.generate.endpoint import (
    Endpoint,
    EndpointConfig,
    Reply,
    Unanswered,
    at_once,
    require_text,
    split_address,
)

HELLO = [{"role": "user", "content": "hello"}]


def ask(server, read=require_text, **settings):
    config = EndpointConfig(**{"url": server.url, "model": "m", "backoff_seconds": 0.01, "retries": 1, **settings})
    return Endpoint(config, "endpoint here").ask(HELLO, read, "the greeting")


def choice(**message) -> tuple[int, dict, str]:
    finish = message.pop("finish", "stop")
    return 200, {}, json.dumps({"choices": [{"message": message, "finish_reason": finish}]})


def whole(reply: Reply) -> Reply:
    return reply


def test_a_reply_with_its_finish_and_its_refusal(endpoint):
    assert ask(endpoint(lambda t, n: choice(content="cut", finish="length")), whole) == Reply("cut", "length", None)
    assert ask(endpoint(lambda t, n: choice(content=None, refusal="no")), whole) == Reply("", "stop", "no")
    assert ask(endpoint(lambda t, n: choice(content="ok", finish=None)), whole) == Reply("ok", "", None)


def test_what_is_sent(endpoint):
    server = endpoint(lambda t, n: "hi")
    assert ask(server, top_p=0.9, temperature=0.25, max_tokens=7) == "hi"
    assert ask(server) == "hi"
    first, second = (body for _, _, body in server.requests)
    assert first == {"model": "m", "messages": HELLO, "temperature": 0.25, "max_tokens": 7, "top_p": 0.9}
    assert "top_p" not in second


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_question_may_be_refused_while_others_are_not(endpoint, status):
    server = endpoint(lambda t, n: (status, {}, "too long"))
    with pytest.raises(Unanswered, match=f"endpoint here refused with HTTP {status}: 'too long'"):
        ask(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_all_is_none_of_the_question(endpoint, status):
    with pytest.raises(ValueError, match=f"HTTP {status}") as told:
        ask(endpoint(lambda t, n: (status, {}, "no")))
    assert not isinstance(told.value, Unanswered)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (choice(content=""), "an empty reply"),
        (choice(content=None, refusal="I can't"), "a refusal .*I can't"),
        ((200, {}, '{"choices": [{"message": {"content": "half \\ud800 a pair"}}]}'), "no chat completion"),
    ],
)
def test_a_reply_that_cannot_be_read_is_asked_again_and_then_unanswered(endpoint, reply, said):
    server = endpoint(lambda t, n: reply)
    with pytest.raises(Unanswered, match=f"{said}.* for the greeting"):
        ask(server)
    assert len(server.requests) == 2


def test_the_first_failure_of_many_leaves_the_rest():
    begun = []

    def job(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        time.sleep(0.002 * (number > 3))
        return number * number

    assert at_once(2, [lambda n=n: job(n) for n in range(3)]) == [0, 1, 4]
    begun.clear()
    with pytest.raises(ValueError, match="three"):
        at_once(1, [lambda n=n: job(n) for n in range(50)])
    assert len(begun) < 50


def test_an_address_with_its_model():
    assert split_address("http://host:1/v1#org/model") == ("http://host:1/v1", "org/model")
    assert split_address("http://host:1/v1") == ("http://host:1/v1", "")
    problems = EndpointConfig(url="host", model="", concurrency=0).problems()
    assert len(problems) == 3 and "write URL#MODEL" in problems[1]
