"""The frame of the command line: help, exit codes, one-line errors, quiet ends. The commands have their own tests."""

import os
import signal
import subprocess
import sys
from importlib import import_module

import pytest

from onepeace import __version__
from onepeace.cli import COMMANDS, MODULES, main

# The command line with `run` of `search` replaced by the given lines, so that only the frame is tested.
FAKE = """
import sys, types
import onepeace.cli
from onepeace.errors import UsageError, UserError
def run(args):
    {body}
    return 0
module = types.ModuleType("onepeace.commands.search")
module.add_arguments = lambda parser: parser.add_argument("--top", type=int)
module.run = run
sys.modules[module.__name__] = module
"""


def faked(body: str, *arguments: str, stdout=subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    code = FAKE.format(body=body) + "sys.exit(onepeace.cli.main())"
    command = [sys.executable, "-c", code, "search", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(command, text=True, stdout=stdout, stderr=subprocess.PIPE, env=environment)


@pytest.fixture
def run(monkeypatch, capfd):
    """In this process: (exit code, stdout, stderr)."""

    def run(body, *arguments):
        monkeypatch.setitem(sys.modules, "onepeace.commands.search", None)  # put back at the end
        exec(FAKE.format(body=body), {})  # noqa: S102
        return main(arguments or ["search"]), *capfd.readouterr()

    return run


def test_help_lists_every_command_and_each_has_its_own(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert f"    {name} " in out
        assert text in " ".join(out.split())
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: onepeace {name}")
        assert callable(import_module(f"onepeace.commands.{MODULES.get(name, name)}").run)


def test_version_is_the_package_version():
    done = subprocess.run([sys.executable, "-m", "onepeace", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"onepeace {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serach", "x"], "did you mean search?"),
        (["frobnicate"], "there are search, index, embed"),
        (["index", "udpate", "x"], "did you mean update?"),
        (["index", "update", "x", "--modle", "y"], "did you mean --model?; see: onepeace index update --help"),
        (["search", "x", "--sort", "dat"], "did you mean date?"),
        (["search", "x", "--top", "y"], "--top"),
        ([], "see: onepeace --help"),
        (["--frobnicate"], "--frobnicate; see: onepeace --help"),
        (["doctor", "x"], "x; see: onepeace doctor --help"),
        (["finetune", "-o", "x"], "required: SOURCE; see"),
        (["shards", "-o", "x/y"], "required: SOURCE; see"),
        (["train", "--print"], "required: RECIPE; see"),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_name_and_exit_code_2(arguments, named, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err.startswith("onepeace: ")) == ("", 1, True)
    assert named in err


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return 1", 1, ""),
        ("raise UserError('a.wav: 0 samples;\\nrecord again')", 1, "onepeace: a.wav: 0 samples; record again\n"),
        ("raise UsageError('give --text')", 2, "onepeace: give --text\n"),
        ("1 / 0", 1, "onepeace: ZeroDivisionError: division by zero (run with --debug for the traceback)\n"),
        # Not a closed stdout, so not quiet:
        ("raise BrokenPipeError('x')", 1, "onepeace: BrokenPipeError: x (run with --debug for the traceback)\n"),
        ("raise OSError(28, 'No space left', 'a.npz')", 1, "onepeace: a.npz: cannot be written (No space left)\n"),
        (
            "raise PermissionError(13, 'Permission denied', 'a.index')",
            1,
            "onepeace: a.index: cannot be read or written (Permission denied)\n",
        ),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_end_of_a_run(run, body, code, message):
    assert run(body) == (code, "", message)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_the_encoding_of_stdout_lacks_are_escaped(encoding, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = faked("print('dog \\u65e5 \\udcff')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "dog \\u65e5 \\udcff\n", "")


QUIET = """
import os, sys
from onepeace.cli import _only_python_writes_stderr
for _ in range(2):
    with _only_python_writes_stderr():
        print("in", file=sys.stderr)
        os.write(2, b"printed by C")
    print("out", file=sys.stderr)
"""


def test_stderr_comes_back_after_each_run_in_one_process():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "in\nout\n" * 2)


def test_log_of_the_package_goes_to_stderr():
    body = (
        "import logging; logging.getLogger('onepeace.hub').info('loading'); logging.getLogger('other').info('chatter')"
    )
    done = faked(body)
    assert (done.returncode, done.stderr, done.stdout) == (0, "onepeace: loading\n", "")


def test_debug_shows_the_traceback(run):
    for arguments in (["search", "--debug"], ["--debug", "search"]):
        for body, expected in (("1 / 0", 1), ("raise UserError('x')", 1), ("raise UsageError('x')", 2)):
            code, _, err = run(body, *arguments)
            assert (code, err.split()[0]) == (expected, "Traceback")


@pytest.fixture
def closed_pipe():
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["more than the buffer", "in the buffer"])
def test_closed_pipe_ends_quietly(closed_pipe, arguments):
    done = faked("for i in range(100_000): print('a line of output')", *arguments, stdout=closed_pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_error_is_told_even_when_the_pipe_is_closed(closed_pipe):
    done = faked("raise UserError('told')", stdout=closed_pipe)
    assert (done.returncode, done.stderr) == (1, "onepeace: told\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = faked("print('x')", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "onepeace: the output: cannot be written (No space left on device)\n"


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_ctrl_c_ends_with_130_and_says_what_is_kept():
    body = "args.kept = 'it is kept'; print('ready', flush=True); import time; time.sleep(60)"
    command = [sys.executable, "-c", FAKE.format(body=body) + "sys.exit(onepeace.cli.main())", "search"]
    # A test run in the background of a shell hands its children an ignored SIGINT.
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **heard) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "onepeace: stopped; it is kept\n")


def test_options_may_stand_between_positional_arguments(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {size: tiny}\ndata: {train: [{shards: x, pair: [image, text]}]}\nobjective: [{term: contrastive}]\n"
        "schedule: {steps: 5}\nrun: {out: runs/x}\n"
    )
    assert main(["train", str(recipe), "seed=7", "--print", "run.batch_size=3"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 7" in printed
    assert "batch_size: 3" in printed


@pytest.mark.skipif(os.name == "nt", reason="answers come through file descriptor 8")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("onepeace sea", {"search"}),
        ("onepeace search x --sort d", {"date"}),
    ],
)
def test_shells_are_told_how_a_word_may_go_on(line, wanted):
    environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
    command = f"exec '{sys.executable}' -m onepeace 8>&1 9>/dev/null 1>/dev/null 2>&1"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert {*done.stdout.split()} == wanted


def test_a_script_for_each_shell(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert main(["completion", shell]) == 0
        assert "_ARGCOMPLETE" in capsys.readouterr().out
