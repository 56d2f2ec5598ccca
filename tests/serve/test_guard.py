"""The gate: who comes in, from which page, with which body; and what every answer carries."""

import socket
import time
from pathlib import Path

import httpx
import pytest
from live_server import OWNER_TOKEN, Served

from fledge.core.config import build
from fledge.serve import guard
from fledge.serve.command import ChatOptions, owner_token
from fledge.serve.guard import BODY_BYTES, Hosts

ASK = {"messages": [{"role": "user", "content": "hi"}], "sampling": {"max_tokens": 1}}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@pytest.fixture
def browser(served: Served) -> httpx.Client:
    """A client that has signed in by the printed address and sends what our page sends."""
    client = served.client(None, Origin=served.url, **{"X-Fledge": "1"})
    client.get("/", params={"token": OWNER_TOKEN})
    return client


def port_of(served: Served) -> int:
    return int(served.url.rpartition(":")[2])


# ---- signing in


def test_the_printed_address_signs_in_once_and_hides_the_token(served: Served):
    answer = served.client(None).get("/", params={"token": OWNER_TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"fledge_{port_of(served)}={OWNER_TOKEN}; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "domain" not in cookie.lower()


@pytest.mark.parametrize("token", ["", "wrong", "a\r\nSet-Cookie: x=y", "a;b", 'a"b', "x" * 600, "é"])
def test_a_wrong_token_signs_nobody_in(served: Served, token: str):
    answer = served.client(None).get("/", params={"token": token})
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    assert "fledge chat" in answer.json()["error"]["message"]


def test_a_browser_without_a_token_reads_a_page_that_says_what_to_do(served: Served):
    answer = served.client(None, Accept="text/html,*/*").get("/", params={"token": "<script>"})
    assert answer.status_code == 401 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "open the address that `fledge chat` printed" in answer.text and "<script" not in answer.text
    assert answer.headers["content-security-policy"] == POLICY
    assert "error" in served.client(None, Accept="text/html").get("/api/me").json()


def test_a_revoked_token_stops_working_within_seconds(served: Served, monkeypatch: pytest.MonkeyPatch):
    from fledge.feedback.store import Store

    monkeypatch.setattr("fledge.serve.service._KNOWN_SECONDS", 0.05)
    with Store.open(served.service.url) as store:
        store.put_person("person", "leaving", "rater", "a-token-to-be-revoked", id="p_leaving")
        client = served.client(None, Authorization="Bearer a-token-to-be-revoked")
        assert client.get("/api/me").status_code == 200
        store.disable_person("p_leaving")
    time.sleep(0.1)
    assert client.get("/api/me").status_code == 401


# ---- from which page


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:{port}", "127.0.0.1:1", "127.0.0.1", "localhost.evil.com:{port}", "a@127.0.0.1:{port}",
             "127.0.0.1:{port}.evil.com", "0.0.0.0:{port}", "[::2]:{port}", "", "127.0.0.1:{port},evil.com"],
)  # fmt: skip
def test_a_foreign_host_is_421(served: Served, host: str):
    host = host.format(port=port_of(served))
    answer = served.client("owner", Host=host).get("/api/me")
    assert answer.status_code == 421 and answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_our_own_hosts_are_let_in(served: Served, host: str):
    assert served.client("owner", Host=host.format(port=port_of(served))).get("/api/me").status_code == 200


def test_names_of_a_proxy_and_addresses_of_an_open_server():
    assert "chat.example.org" in Hosts("127.0.0.1", 8000, ["Chat.Example.org"])
    assert "chat.example.org:443" in Hosts("127.0.0.1", 8000, ["chat.example.org"])
    everywhere = Hosts("0.0.0.0", 8000)
    assert "192.168.1.5:8000" in everywhere  # an address cannot be rebound
    assert "evil.com:8000" not in everywhere and "192.168.1.5:8000" not in Hosts("192.168.1.4", 8000)
    assert "192.168.1.4:8000" in Hosts("192.168.1.4", 8000)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.com", "X-Fledge": "1"}, 403),
        ({"Origin": "null", "X-Fledge": "1"}, 403),
        ({"Origin": "", "X-Fledge": "1"}, 403),
        ({"Origin": "http://127.0.0.1:1", "X-Fledge": "1"}, 403),
        ({"X-Fledge": "1"}, 403),  # a browser always says where a POST comes from
        ({"Origin": "{own}"}, 403),
        ({"Origin": "{own}", "X-Fledge": "0"}, 403),
        ({"Origin": "{own}", "X-Fledge": "1", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "{own}", "X-Fledge": "1", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "{own}", "X-Fledge": "1", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "{own}", "X-Fledge": "1"}, 200),
    ],
)
def test_a_post_by_cookie_must_come_from_our_page(served: Served, headers: dict, status: int):
    client = served.client(None)
    client.get("/", params={"token": OWNER_TOKEN})
    given = {name: value.format(own=served.url) for name, value in headers.items()}
    assert client.post("/api/ask", json=ASK, headers=given).status_code == status


def test_a_form_of_another_site_is_refused_and_nothing_is_readable_across_sites(served: Served, browser: httpx.Client):
    form = browser.post("/api/ask", content=b'{"messages":[]}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 415
    preflight = browser.options("/api/ask", headers={"Access-Control-Request-Method": "POST"})
    for answer in (form, preflight, browser.get("/api/me")):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    sneaky = served.client(
        None, **{"Sec-Fetch-Site": "cross-site", "Cookie": f"fledge_{port_of(served)}={OWNER_TOKEN}"}
    )
    assert sneaky.get("/api/me").status_code == 403
    assert served.client("owner", Origin="http://evil.com").post("/api/ask", json=ASK).status_code == 403


def test_web_sockets_are_not_served(served: Served):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x" * 22 + "==",
        "Sec-WebSocket-Version": "13",
    }
    assert served.client("owner", **upgrade).get("/api/ask").status_code in (404, 405)


# ---- what every answer carries


@pytest.mark.parametrize("path", ["/", "/static/style.css", "/api/me", "/v1/models", "/api/nothing", "/nothing"])
@pytest.mark.parametrize("who", ["owner", None])
def test_every_answer_is_sealed(served: Served, path: str, who: str | None):
    answer = served.client(who).get(path)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    if path.startswith(("/api", "/v1")):
        assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers
    assert answer.status_code == (401 if who is None else 404 if "nothing" in path else 200)


# ---- bodies


def test_only_json_of_a_sane_size_is_read(served: Served, browser: httpx.Client):
    def post(content: bytes, **headers: str) -> int:
        headers = {"Content-Type": "application/json", **headers}
        return browser.post("/api/ask", content=content, headers=headers).status_code

    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert post(b"{}", **{"Content-Type": kind}) == 415
    for packing in ("gzip", "br", "deflate", "identity"):
        assert post(b"{}", **{"Content-Encoding": packing}) == 415
    for broken in (
        b"",
        b"{",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 100_000,
        b'{"messages": NaN}',
        b"\xff",
        b'"\\ud800"',
        b"null",
    ):
        assert post(broken) == 400
    assert post(b'{"messages": []}' + b" " * (BODY_BYTES - 16)) == 400  # just within the limit: read, then judged
    assert post(b'{"messages": []}' + b" " * (BODY_BYTES - 15)) == 413
    assert post(b"x" * (4 * BODY_BYTES)) == 413
    assert browser.request("GET", "/api/me", content=b"{}").status_code == 400

    def chunks():
        for _ in range(40):
            yield b" " * 100_000

    streamed = browser.post("/api/ask", content=chunks(), headers={"Content-Type": "application/json"})
    assert streamed.status_code == 413


def raw(served: Served, data: bytes) -> bytes:
    """Send bytes, read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port_of(served)), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while part := connection.recv(65536):
            got += part
    return got


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "99999999999999999999999", "5\r\nContent-Length: 6"])
def test_a_lying_content_length_is_400(served: Served, length: str):
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1:{port_of(served)}\r\nAuthorization: Bearer {OWNER_TOKEN}\r\n"
    got = raw(served, f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{{}}".encode())
    assert got.split(b" ", 2)[1] == b"400"


def test_a_body_announced_as_huge_is_refused_unread(served: Served):
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1:{port_of(served)}\r\nAuthorization: Bearer {OWNER_TOKEN}\r\n"
    got = raw(served, f"{head}Content-Type: application/json\r\nContent-Length: {10**9}\r\n\r\n{{}}".encode())
    assert got.split(b" ", 2)[1] == b"413" and b"connection: close" in got.lower()


def test_a_body_cut_short_and_one_that_never_ends(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1:{port_of(served)}\r\nAuthorization: Bearer {OWNER_TOKEN}\r\n"
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port_of(served)), timeout=10) as slow:
        slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert slow.recv(65536).split(b" ", 2)[1] == b"408"
    assert 0.25 < time.monotonic() - started < 5


# ---- listening for others


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.org"])
def test_listening_for_the_network_needs_ones_own_token(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLEDGE_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"others could connect .* set FLEDGE_TOKEN .* ssh -L 8000"):
        owner_token(ChatOptions(run="x", host=host))
    with pytest.raises(ValueError, match="token has 5 characters: at least 32"):
        build(ChatOptions, {"run": "x", "host": host, "token": "short"})
    monkeypatch.setenv("FLEDGE_TOKEN", "short")
    with pytest.raises(ValueError, match="FLEDGE_TOKEN has 5 characters"):
        owner_token(ChatOptions(run="x", host=host))
    monkeypatch.setenv("FLEDGE_TOKEN", "a b" * 20)
    with pytest.raises(ValueError, match="made of letters"):
        owner_token(ChatOptions(run="x", host=host))
    monkeypatch.setenv("FLEDGE_TOKEN", "z" * 32)
    assert owner_token(ChatOptions(run="x", host=host)) == "z" * 32


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3"])
def test_on_this_machine_a_long_random_token_is_made(host: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLEDGE_TOKEN", raising=False)
    tokens = {owner_token(ChatOptions(run="x", host=host)) for _ in range(3)}
    assert len(tokens) == 3 and all(len(token) >= 43 for token in tokens)


def test_no_url_is_ever_fetched():
    """The server's code has no HTTP client in it."""
    import fledge.serve

    for path in Path(fledge.serve.__file__).parent.glob("*.py"):
        for word in ("urllib.request", "http.client", "httpx", "requests.get", "aiohttp"):
            assert word not in path.read_text(), f"{word} in {path.name}"
