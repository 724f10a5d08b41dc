"""Who may ask the server, and what leaves it."""

import base64

import pytest

pytest.importorskip("fastapi", reason="the API comes with the extra web")

from fastapi.testclient import TestClient
from support.api import LIMITS, client_of, message

from onepeace.serve import guesses


def test_other_names_of_this_machine_and_other_sites_are_refused(client):
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", "", "[", "127.0.0.2"):
        assert client.get("/health", headers={"host": host}).status_code == 400
    for host in ("localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:7860"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1:7860.evil.example"):
        message(client.post("/search", json={"text": "a"}, headers={"origin": origin}), 403)
    assert client.get("/health", headers={"origin": "http://127.0.0.1:7860"}).status_code == 200


def test_password_is_asked_for_everywhere_but_for_health(index, ids):
    client = client_of(index, password="correct horse")  # noqa: S106
    basic = base64.b64encode(b"anybody:correct horse").decode()
    addresses = ["/", "/page/app.js", "/about", "/openapi.json", "/v1/models", f"/files/{ids['cat.jpg']}", "/nothing"]
    assert client.get("/health").status_code == 200
    for address in addresses:
        answer = client.get(address)
        message(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Basic realm=")
        for right in (f"Basic {basic}", "Bearer correct horse"):
            answer_to_password = client.get(address, headers={"authorization": right})
            assert answer_to_password.status_code == (404 if address == "/nothing" else 200)
    for wrong in ("", "Bearer correct", "Basic !", "Basic Y29ycmVjdA==", "Digest correct horse", "Bearer ", "Basic é"):
        message(client.get("/about", headers={"authorization": wrong.encode()}), 401)
    client = client_of(index, password="pässwört")  # noqa: S106
    assert client.get("/about", headers={"authorization": "Bearer pässwört".encode()}).status_code == 200


@pytest.fixture
def with_password(index, monkeypatch):
    """The status that a client gets for a password, and a clock to move."""
    now = [1000.0]
    monkeypatch.setattr(guesses.time, "monotonic", lambda: now[0])
    app = client_of(index, password="correct horse").app  # noqa: S106

    def get(password, address, **headers):
        client = TestClient(app, base_url="http://127.0.0.1:7860", client=(address, 1))
        return client.get("/about", headers={"authorization": f"Bearer {password}", **headers}).status_code

    return get, now


@pytest.mark.parametrize("network", ["10.0.1.7", "2001:db8::{}"])
def test_client_that_guesses_is_stopped_and_locks_nobody_else_out(with_password, network):
    get, now = with_password
    statuses = [get(f"guess {i}", network.format(i)) for i in range(guesses.GUESSES + 5)]
    assert statuses == [401] * guesses.GUESSES + [429] * 5
    assert get("correct horse", network.format("ffff")) == 429  # the right one is not told from others
    assert get("correct horse", "10.0.2.1") == 200
    assert get("correct horse", "2001:db8:0:1::1") == 200
    now[0] += guesses.WINDOW + 1
    assert get("correct horse", network.format("ffff")) == 200


def test_guesses_of_all_clients_are_limited_too_but_for_those_who_knew_it(with_password, monkeypatch):
    monkeypatch.setattr(guesses, "ALL_GUESSES", guesses.ALL_GUESSES // 20)
    get, now = with_password
    assert get("correct horse", "10.0.0.1") == 200
    statuses = {get(f"guess {i}", f"10.1.{i}.1") for i in range(guesses.ALL_GUESSES + 1)}
    assert statuses == {401, 429}
    assert get("correct horse", "10.0.2.1") == 429
    assert get("correct horse", "10.0.0.1") == 200
    now[0] += guesses.WINDOW + 1
    assert get("correct horse", "10.0.2.1") == 200


def test_request_that_is_too_large_or_of_unknown_length_is_refused(client):
    message(client.post("/search", content=b"x" * (LIMITS.body + 1)), 413)
    message(client.post("/search", content=iter([b"{}"])), 411)
    message(client.get("/nothing"), 404)
    message(client.put("/search", json={}), 405)


def test_everything_that_is_sent_forbids_scripts_of_others_and_inline_ones(client):
    for address in ("/", "/page/app.js", "/nothing", "/about"):
        policy = client.get(address).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
    page = client.get("/").text
    assert "<script>" not in page
    assert " style=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
