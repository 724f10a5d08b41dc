"""Who may ask the server, and what leaves it."""

import base64

import pytest

pytest.importorskip("fastapi", reason="the API comes with the extra web")

from support.api import LIMITS, assert_error, client_of

PASSWORD = "correct horse"  # noqa: S105
BASIC = base64.b64encode(b"anybody:correct horse").decode()


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("host", "evil.example", 400),
        ("host", "127.0.0.1.evil.example", 400),
        ("host", "", 400),
        ("host", "127.0.0.2", 400),
        ("host", "LOCALHOST:1", 200),
        ("host", "[::1]:7860", 200),
        ("origin", "https://evil.example", 403),
        ("origin", "null", 403),
        ("origin", "http://127.0.0.1:7860.evil.example", 403),
        ("origin", "http://127.0.0.1:7860", 200),
    ],
)
def test_only_names_and_pages_of_this_machine_are_answered(client, header, value, status):
    answer = client.post("/search", json={"text": "a"}, headers={header: value})
    assert answer.status_code == status
    if status != 200:
        assert_error(answer, status)


@pytest.fixture
def locked(index):
    """A client of a server with a password, which gives none."""
    return client_of(index, keys=[PASSWORD])


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_password_is_not_asked_of_probes(locked, path):
    assert locked.get(path).status_code == 200


def test_any_of_several_keys_is_enough(index):
    client = client_of(index, keys=["first key", PASSWORD, "third key"])

    for key, status in (("first key", 200), (PASSWORD, 200), ("third key", 200), ("fourth key", 401), ("", 401)):
        assert client.get("/about", headers={"authorization": f"Bearer {key}"}).status_code == status


def test_pages_of_a_site_that_is_named_may_ask(index):
    client = client_of(index, keys=[PASSWORD], origins=["https://example.org"])
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    key = {"authorization": f"Bearer {PASSWORD}"}

    preflight = client.options("/v1/embeddings", headers={"origin": "https://example.org", **asked})
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    assert preflight.status_code == 200
    answer = client.get("/about", headers={"origin": "https://example.org", **key})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert client.options("/v1/embeddings", headers={"origin": "https://evil.example", **asked}).status_code == 400
    assert_error(client.get("/about", headers={"origin": "https://evil.example", **key}), 403)


@pytest.mark.parametrize(
    "address", ["/", "/page/app.js", "/about", "/openapi.json", "/files/1", "/metrics", "/nothing"]
)
def test_password_is_asked_for_everywhere_else(locked, address):
    answer = locked.get(address)

    assert_error(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Basic realm=")
    for authorization in (f"Basic {BASIC}", f"Bearer {PASSWORD}"):
        answer = locked.get(address, headers={"authorization": authorization})
        assert answer.status_code == (404 if address == "/nothing" else 200)


@pytest.mark.parametrize(
    "authorization",
    ["Bearer correct", "Basic !", "Basic Y29ycmVjdA==", f"Digest {PASSWORD}", "Basic é"],
)
def test_password_that_is_wrong(locked, authorization):
    assert_error(locked.get("/about", headers={"authorization": authorization.encode()}), 401)


def test_request_that_is_too_large_or_of_unknown_length(client):
    assert_error(client.post("/search", content=b"x" * (LIMITS.body + 1)), 413)
    assert_error(client.post("/search", content=iter([b"{}"])), 411)


@pytest.mark.parametrize("address", ["/", "/nothing"])
def test_policy_forbids_scripts_of_others_and_inline_ones(client, address):
    policy = client.get(address).headers["content-security-policy"]

    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
