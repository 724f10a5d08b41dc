"""The frame of the command line: help, exit codes, one-line errors, quiet ends. The commands have their own tests."""

import os
import signal
import subprocess
import sys

import pytest
from support.readme import ROOT

from onepeace import __version__
from onepeace.cli import main

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


def fake_command(body: str, *arguments: str) -> list[str]:
    """The command line in a process of its own."""
    code = FAKE.format(body=body) + "sys.exit(onepeace.cli.main())"
    return [sys.executable, "-c", code, "search", *arguments]


def run_process(command, stdout=subprocess.PIPE, **environment) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(
        command,
        text=True,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        check=False,
    )


@pytest.fixture
def run_fake(monkeypatch, capfd):
    """Runs a body of `search` in this process: (exit code, stdout, stderr)."""

    def run(body, *arguments):
        monkeypatch.setitem(sys.modules, "onepeace.commands.search", None)  # put back at the end
        exec(FAKE.format(body=body), {})  # noqa: S102
        return main(arguments or ["search"]), *capfd.readouterr()

    return run


# ------------------------------------------------------------------ help and usage


def test_version_is_the_package_version():
    done = run_process([sys.executable, "-m", "onepeace", "--version"])
    assert done.returncode == 0
    assert done.stdout == f"onepeace {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serach", "x"], "did you mean search?"),
        (["index", "udpate", "x"], "did you mean update?"),
        (["index", "update", "x", "--modle", "y"], "did you mean --model?; see: onepeace index update --help"),
        (["search", "x", "--sort", "dat"], "did you mean date?"),
        ([], "see: onepeace --help"),
        (["doctor", "x"], "x; see: onepeace doctor --help"),
        (["train", "--print"], "required: RECIPE; see"),
    ],
)
def test_usage_error_is_one_line_with_a_hint(run, arguments, hint):
    out, err = run(*arguments, code=2)
    assert out == ""
    assert err.startswith("onepeace: ")
    assert err.count("\n") == 1
    assert hint in err


PATHS_THAT_ARE_MISSING = """
search nope/x a dog
search INDEX --image nope.jpg
search INDEX --like nope.jpg
search SAMPLES --text a --model nope
index build NEW nope
index update nope
index check nope
index remove nope x
index remove INDEX nope
index stats nope
mcp nope
embed nope.jpg -o NEW.npz
serve nope
classify SAMPLES --labels nope.txt
caption SAMPLES --model ./nope
explain SAMPLES --image nope.jpg
evaluate nope.yaml
evaluate RECIPE --data SAMPLES --model ./nope
finetune nope -o NEW
finetune SAMPLES -o NEW --model ./nope
train nope.yaml
shards nope -o NEW/x
convert nope.pt -o NEW
export ./nope -o NEW
info ./nope
--import nope.py doctor
"""


@pytest.mark.parametrize("line", PATHS_THAT_ARE_MISSING.strip().splitlines())
def test_path_that_does_not_exist_is_wrong_usage(run, index, samples, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    recipe = ROOT / "recipes/evaluate/tiny.yaml"
    places = {"SAMPLES": str(samples / "images"), "RECIPE": str(recipe), "INDEX": str(index)}
    arguments = [places.get(word, word) for word in line.split()]
    last_line = run(*arguments, code=2).err.splitlines()[-1]
    assert last_line.startswith("onepeace: ")
    assert "nope" in last_line
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_command_is_no_value_of_import(run, tmp_path, monkeypatch):
    """A module of one's own may be called like a command."""
    (tmp_path / "train.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "train", raising=False)
    assert run("--import", "train", "evaluate", "--help").out.startswith("usage: onepeace evaluate")


def test_options_may_stand_between_positional_arguments(tmp_path, run):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {size: tiny}\ndata: {train: [{shards: x, pair: [image, text]}]}\nobjective: [{term: contrastive}]\n"
        "schedule: {steps: 5}\nrun: {out: runs/x}\n"
    )
    out = run("train", recipe, "seed=7", "--print", "run.batch_size=3").out
    assert "seed: 7" in out
    assert "batch_size: 3" in out


@pytest.mark.skipif(os.name == "nt", reason="answers come through file descriptor 8")
def test_completion_of_a_word():
    line = "onepeace search x --sort d"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    command = f"exec '{sys.executable}' -m onepeace 8>&1 9>/dev/null 1>/dev/null 2>&1"
    assert run_process(["sh", "-c", command], **environment).stdout == "date"


# ------------------------------------------------------------------ ends


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
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_errors_are_one_line_with_an_exit_code(run_fake, body, code, message):
    assert run_fake(body) == (code, "", message)


@pytest.mark.parametrize("arguments", [["search", "--debug"], ["--debug", "search"]])
def test_debug_shows_the_traceback(run_fake, arguments):
    code, _, err = run_fake("raise UsageError('x')", *arguments)
    assert code == 2
    assert err.startswith("Traceback")


@pytest.fixture
def closed_pipe():
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["more than the buffer", "in the buffer"])
def test_closed_pipe_ends_quietly(closed_pipe, arguments):
    command = fake_command("for i in range(100_000): print('a line of output')", *arguments)
    done = run_process(command, stdout=closed_pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_closed_pipe_hides_no_error(closed_pipe):
    done = run_process(fake_command("raise UserError('told')"), stdout=closed_pipe)
    assert (done.returncode, done.stderr) == (1, "onepeace: told\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = run_process(fake_command("print('x')"), stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("onepeace: the output: ")


@pytest.mark.skipif(os.name == "nt", reason="signals as on Unix")
def test_ctrl_c_ends_with_130_and_says_what_is_kept():
    body = "args.kept = 'it is kept'; print('ready', flush=True); import time; time.sleep(60)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def hear_ctrl_c():  # a test run in the background of a shell hands its children an ignored SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(fake_command(body), preexec_fn=hear_ctrl_c, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert stderr == "onepeace: stopped; it is kept\n"


# ------------------------------------------------------------------ stdout and stderr


def test_log_of_the_package_goes_to_stderr():
    body = (
        "import logging; logging.getLogger('onepeace.hub').info('loading'); logging.getLogger('other').info('chatter')"
    )
    done = run_process(fake_command(body))
    assert (done.returncode, done.stderr, done.stdout) == (0, "onepeace: loading\n", "")
