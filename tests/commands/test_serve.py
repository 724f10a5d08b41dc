"""The command line of `onepeace serve`; what it serves is tested in tests/serve."""

import pytest

from onepeace.commands import serve
from onepeace.index import cache
from onepeace.serve import server


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder with no samples in it, no password, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.PASSWORD, raising=False)
    monkeypatch.setattr(cache, "indexes_folder", lambda: tmp_path / "cache")


@pytest.fixture
def started(monkeypatch):
    """What the server was started with."""
    arguments = {}

    def start(service, **options):
        arguments.update(options, files=sum(service.about()["files"].values()))
        return 0

    monkeypatch.setattr(server, "run", start)
    return arguments


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "onepeace index build"),
        (("x", "--password", "short"), "password"),
        (("x", "--port", "65536"), "--port"),
    ],
)
def test_wrong_usage_is_one_line(run, arguments, word):
    (line,) = run("serve", *arguments, code=2).err.splitlines()
    assert word in line


def test_problems_are_listed_whenever_there_is_nothing_else(started, run_model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for _ in range(2):  # the second time the file is known
        assert "broken.jpg: " in run_model("serve", tmp_path / "broken.jpg").err
        assert started["files"] == 0


def test_password_is_made_up_for_other_addresses(started, run_model, dog):
    run_model("serve", dog)
    assert started["files"] == 1
    assert started["keys"] == []

    passwords = set()
    for _ in range(2):
        out = run_model("serve", dog, "--host", "0.0.0.0").out  # noqa: S104
        assert f": {started['keys'][0]}" in out
        assert len(started["keys"][0]) >= 16
        passwords.add(started["keys"][0])
    assert len(passwords) == 2


def test_password_of_option_and_environment(started, run_model, dog, monkeypatch):
    run_model("serve", dog, "--password", "correct horse")
    assert started["keys"] == ["correct horse"]
    monkeypatch.setenv(serve.PASSWORD, "battery staple")
    run_model("serve", dog, "--host", "::")
    assert started["keys"] == ["battery staple"]
