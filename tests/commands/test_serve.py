"""The command line of `onepeace serve`; what it serves is tested in tests/serve."""

import socket
import sys

import pytest

from onepeace.cli import main
from onepeace.commands import serve


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder with no samples in it, no password, and nothing of Gradio, which takes seconds to import."""
    monkeypatch.setitem(sys.modules, "gradio", sys)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(serve.PASSWORD, raising=False)


def refused(capsys, *arguments):
    assert main(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_an_index_it_says_how_to_make_one(capsys):
    assert refused(capsys).endswith("make one with: onepeace index build FOLDER --index my.index")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x", "--password", "short"), "the password has 5 characters; give at least 8"),
        (("x", "--port", "65536"), "'65536' is not a port"),
        (("x", "--host", "no.such.host.invalid"), "cannot listen at no.such.host.invalid"),
        (("no-such-file", "--port", "0"), "no-such-file: no such file or folder"),
    ],
)
def test_wrong_usage_is_said_in_one_line(capsys, arguments, said):
    assert said in refused(capsys, *arguments)


def test_what_draws_the_page_is_asked_for_before_files_are_embedded(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "no-such-file", "--port", "0"]) == 1
    assert "needs gradio: pip install" in capsys.readouterr().err


def test_port_that_is_taken_is_said(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"cannot listen at 127.0.0.1, port {port}" in refused(capsys, "x", "--port", port)


ALONE = ("127.0.0.1", "localhost", "LOCALHOST", "::1", "127.8.8.8")
FOR_OTHERS = ("0.0.0.0", "::", "192.168.1.7", "localhost.example.org", "")  # noqa: S104


@pytest.mark.parametrize(
    ("host", "alone"), [*((host, True) for host in ALONE), *((host, False) for host in FOR_OTHERS)]
)
def test_password_is_made_up_for_every_address_but_this_machines(host, alone, monkeypatch):
    def password(*given):
        parser = serve.argparse.ArgumentParser()
        serve.add_arguments(parser)
        return serve._password(parser.parse_args(["x", f"--host={host}", *given]))

    first, second = password(), password()
    assert (first is None) == alone
    if not alone:
        assert len(first) >= 16
        assert first != second
    assert password("--password", "correct horse") == "correct horse"
    monkeypatch.setenv(serve.PASSWORD, "battery staple")
    assert password() == "battery staple"
