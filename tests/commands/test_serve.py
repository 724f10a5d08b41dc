"""The command line of `onepeace serve`; what it serves is tested in tests/serve."""

import pytest

from onepeace.cli import main
from onepeace.commands import serve
from onepeace.serve import server


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder with no samples in it, no password, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.PASSWORD, raising=False)
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def served(monkeypatch):
    """What the server was started with."""
    started = {}
    monkeypatch.setattr(server, "run", lambda index, **options: started.update(options, files=len(index)) or 0)
    return started


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "onepeace index build"),
        (("x", "--password", "short"), "password"),
        (("x", "--port", "65536"), "--port"),
        (("no-such-file", "--port", "0"), "no-such-file"),
    ],
)
def test_wrong_usage_is_said_in_one_line(capsys, arguments, named):
    assert main(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_problems_are_listed_whenever_there_is_nothing_else(served, random_folder, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    for _ in range(2):  # the second time the file is known
        assert main(["serve", str(tmp_path / "broken.jpg"), "--model", str(random_folder), "--device", "cpu"]) == 0
        assert "broken.jpg: " in capsys.readouterr().err
        assert served["files"] == 0


def test_a_password_is_made_up_for_every_address_but_this_machines(served, monkeypatch, capsys, random_folder, samples):
    picture = str(samples / "images" / "dog.jpg")

    def password(*options):
        arguments = ["serve", picture, *options, "--model", str(random_folder), "--device", "cpu"]
        assert main(arguments) == 0
        return served["auth"]

    assert password() is None
    assert served["files"] == 1
    first, second = password("--host", "0.0.0.0"), password("--host", "0.0.0.0")  # noqa: S104
    assert len(first) >= 16
    assert first != second
    assert f": {first}" in capsys.readouterr().out
    assert password("--password", "correct horse") == "correct horse"
    monkeypatch.setenv(serve.PASSWORD, "battery staple")
    assert password("--host", "::") == "battery staple"
