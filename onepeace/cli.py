"""Command line: the sub-commands and exit codes. Only the module of the command that is run is imported.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 failed, or some items failed; 2 wrong
usage, such as a path on the command line that does not exist.
"""

import argparse
import contextlib
import difflib
import errno
import io
import logging
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

from onepeace import __version__, threads
from onepeace.errors import UsageError, UserError, printable
from onepeace.extensions import import_extension

COMMANDS = {
    "search": "find pictures, sounds and texts by text, a picture, a sound or a mix of them",
    "index": "build an index of files, keep it up to date, and inspect it",
    "embed": "write the vectors of files, tables and texts to a file",
    "serve": "serve an index as a web page and a JSON API",
    "mcp": "serve an index to a language model over MCP (stdio)",
    "classify": "classify files: zero-shot by your labels, or with the heads of a fine-tuned model",
    "caption": "write a one-sentence caption for each picture and sound",
    "answer": "answer a question about pictures",
    "ground": "locate a phrase in pictures, as a bounding box",
    "explain": "show where in pictures, or when in sounds, a query is found",
    "evaluate": "evaluate a model on datasets",
    "finetune": "fine-tune a model on your own files, and report the improvement",
    "train": "train a model from a recipe",
    "shards": "create training shards from a public dataset, a table or a folder of files",
    "convert": "convert a released checkpoint to a model folder",
    "export": "export the branches of a model as ONNX or torch.export files",
    "info": "show the contents and memory needs of a model or checkpoint file",
    "doctor": "show what is installed, what works, and how to fix the rest",
}
MODULES = dict.fromkeys(("caption", "answer", "ground"), "onepeace.generative.command")
"""Module by command, for commands whose module is not that of their name in onepeace/commands."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of the system by which an output has no room."""
COMPLETING = "_ARGCOMPLETE"
"""Environment variable by which a shell asks for completions (argcomplete)."""


class _Parser(argparse.ArgumentParser):
    """Parser with one-line errors that name the nearest choice.

    Options may stand between positional arguments: `search A --text x B`, `train R --print a.b=1`.
    """

    intermixed = False
    """True for a parser that cannot do that, and while `parse_known_intermixed_args` calls `parse_known_args`."""

    def add_subparsers(self, **options: Any) -> Any:
        self.intermixed = True
        return super().add_subparsers(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.intermixed or COMPLETING in os.environ:
            return super().parse_known_args(args, namespace)
        self.intermixed = True
        return self.parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        refused = re.fullmatch(r"(argument .*): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        if refused is None:
            raise UsageError(f"{message}; see: {self.prog} --help")
        argument, word, quoted = refused.groups()
        choices = quoted.replace("'", "")
        name = argument.removeprefix("argument ")
        what = f"no {name.lower()} {word!r}" if name.isupper() else f"{argument}: {word!r} is unknown"
        nearest = difflib.get_close_matches(word, choices.split(", "), n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are {choices}"
        raise UsageError(f"{what}; {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `onepeace ARGV...` (default: the arguments of this process) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    threads.sleep_while_waiting()
    if isinstance(sys.stdout, io.TextIOWrapper):  # letters that its encoding lacks are escaped, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    failure: Exception | None = None
    try:
        code = _run(arguments)
    except SystemExit as stop:  # --help and --version
        code = int(stop.code or 0)
    except KeyboardInterrupt:
        code = 130  # as shells report a program ended by Ctrl-C
    except Exception as error:
        code = 2 if isinstance(error, UsageError) else 1
        failure = error
    unwritten = _flush()
    failure = failure or unwritten
    if isinstance(failure, BrokenPipeError) and (unwritten is not None or _reader_is_gone()):
        return 141  # as shells report a program ended by a closed pipe, as by `head`
    if failure is None:
        return code
    _report(failure, with_traceback="--debug" in arguments)
    return code or 1


def _report(failure: Exception, with_traceback: bool) -> None:
    """Print an error as one line, or with its traceback."""
    if with_traceback:
        traceback.print_exception(failure)
    elif isinstance(failure, UserError):
        _say(str(failure))
    elif isinstance(failure, OSError) and failure.errno in FULL:
        _say(f"{failure.filename or 'the output'}: cannot be written ({failure.strerror})")
    elif isinstance(failure, OSError) and failure.filename:
        _say(f"{failure.filename}: cannot be read or written ({failure.strerror})")
    else:
        _say(f"{type(failure).__name__}: {failure} (run with --debug for the traceback)")


def _run(arguments: Sequence[str]) -> int:
    """Parse the arguments and run the command; only the module of this command is imported."""
    words = list(arguments)
    if COMPLETING in os.environ:  # the shell asks how the line goes on
        words = os.environ.get("COMP_LINE", "").split()[1:]
    command = _command_in(words)
    module = None if command is None else _module_of(command)
    parser, _ = _parsers(command, module)
    if COMPLETING in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)  # ends the process
    args = _parse(parser, arguments)
    if module is None:
        parser.error("no command given")
    with warnings.catch_warnings():
        if "--debug" not in arguments:  # about large and damaged pictures, without their names
            warnings.filterwarnings("ignore", module="PIL")
        # The package only writes to its loggers; their messages are enabled here, but not those of other packages.
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableLines("onepeace: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.WARNING)
        logging.getLogger("onepeace").setLevel(logging.INFO)
        try:
            return module.run(args)
        except KeyboardInterrupt:
            kept = getattr(args, "kept", None)  # what an interrupted command leaves behind
            if kept:
                _say(f"stopped; {kept}")
            raise


def _command_in(words: Sequence[str]) -> str | None:
    """The command: the first word that is no option, nor the value of one."""
    before = argparse.ArgumentParser(add_help=False)
    before.add_argument("--import", action="append")
    _, rest = before.parse_known_args(words)
    command = next((word for word in rest if not word.startswith("-")), None)
    return command if command in COMMANDS else None


def _parse(parser: _Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; an unknown one ends the program, with the nearest option if there is a near one."""
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = re.findall(r"--[\w-]+", args.parser.format_help())
        nearest = difflib.get_close_matches(unknown[0], options, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return args


def command_parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command, with all its arguments."""
    _, by_command = _parsers(command, _module_of(command))
    return by_command[command]


def _module_of(command: str) -> ModuleType:
    return import_module(MODULES.get(command, f"onepeace.commands.{command}"))


def _parsers(command: str | None, module: ModuleType | None) -> tuple[_Parser, dict[str, _Parser]]:
    """The parser of the command line, and that of each command; only the command in use has its arguments."""
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    text = "import a Python file or module first, which adds modalities, terms, layouts, ..."
    common.add_argument(
        "--import", action="append", type=import_extension, dest="imports", metavar="FILE.py", help=text
    )
    parser = _Parser(
        prog="onepeace",
        parents=[common],
        allow_abbrev=False,
        description="Embed pictures, sounds and text in one vector space.",
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"onepeace {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    by_command = {}
    for name, text in COMMANDS.items():
        child = commands.add_parser(
            name,
            parents=[common],
            allow_abbrev=False,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        child.set_defaults(parser=child)
        if module is not None and name == command:
            module.add_arguments(child)
        by_command[name] = child
    return parser, by_command


def _flush() -> OSError | None:
    """Flush stdout; return the error if this fails (full disk, closed pipe)."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # The interpreter would try again at exit, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _reader_is_gone() -> bool:
    """Whether stdout is closed; other broken pipes, of a worker or a connection, need a message."""
    if sys.stdout is None or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        print("onepeace:", printable(" ".join(message.splitlines())), file=sys.stderr)


class _PrintableLines(logging.Formatter):
    """Formatter of the log on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).splitlines())
