"""The code in Markdown files: finding it, running it, and writing what it prints back into the file.

`make readme` brings README.md and docs/ up to date. A console block holds commands, after "$ ", and what they print.
A text block right after a python block holds what that prints. `<!-- not run: reason -->` before a block leaves it out.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from onepeace.cli import main as onepeace

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<left_out>[^\n]+) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$"
    r"(?:\n+^```text\n(?P<shown>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block of Markdown."""

    line: int
    """Of its first line of code, from 1."""
    language: str
    code: str
    """Of a console block only the commands."""
    left_out: str | None = None
    """Why it is not run."""
    shown: str | None = None
    """What it prints, as the file says: all lines of a console block, or the text block after one of python."""
    place: tuple[int, int] = (0, 0)
    """Where ``shown`` begins and ends in the file."""


def blocks_of(text: str) -> list[Block]:
    """The python and shell blocks of a Markdown text."""
    blocks = []
    for found in BLOCK.finditer(text):
        language, code, shown = found["language"], found["code"], None
        if language == "console":
            shown, code = code, "".join(f"{command}\n" for command in commands_of(code.splitlines()))
        elif language == "python":
            shown = found["shown"]
        if language in ("python", "bash", "console"):
            line = text.count("\n", 0, found.start("code")) + 1
            place = found.span("code" if language == "console" else "shown")
            blocks.append(Block(line, language, code, found["left_out"], shown, place))
    return blocks


def commands_of(lines: Sequence[str]) -> list[str]:
    """What a user typed in a console: the lines after "$ ", each with those that continue it after "> "."""
    typed: list[str] = []
    for line in lines:
        if typed and typed[-1].endswith("\\"):
            typed[-1] += "\n" + line.removeprefix("> ")
        elif line.startswith("$ "):
            typed.append(line.removeprefix("$ "))
    return typed


@contextlib.contextmanager
def like_checkout(parent: Path) -> Iterator[Path]:
    """A working folder below ``parent`` with links to the checkout's files: what is written there does not reach it.

    `onepeace` and `python` are those of this interpreter.
    """
    folder, programs, before = parent / "onepeace", parent / "bin", Path.cwd()
    folder.mkdir()
    programs.mkdir()
    for entry in ROOT.iterdir():
        # Not runs: what is written below a linked folder would reach it.
        if not entry.name.startswith(".") and entry.suffix != ".egg-info" and entry.name != "runs":
            (folder / entry.name).symlink_to(entry)
    for name, arguments in {"onepeace": "-m onepeace", "python": ""}.items():
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        script.chmod(0o755)
    first = {"PATH": programs, "PYTHONPATH": ROOT}
    paths = {name: f"{path}{os.pathsep}{os.environ.get(name, '')}" for name, path in first.items()}
    with mock.patch.dict(os.environ, paths):
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def run_block(name: str, block: Block, namespace: dict[str, Any]) -> str:
    """Run a block in the working folder, and return what it prints; of a console block with the commands.

    AssertionError when a command fails. `onepeace` runs in this process, as torch takes long to load, and each other
    line in a shell of its own.
    """
    where = f"{name}:{block.line}"
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)  # noqa: S102
        return stdout.getvalue()
    printed = ""
    for command in re.split(r"(?<!\\)\n", block.code.rstrip("\n")):
        if block.language == "console":
            printed += f"$ {command}\n".replace("\\\n", "\\\n> ")
        printed += _run(where, command)
    return printed


def _run(where: str, command: str) -> str:
    first, _, rest = command.partition(" | ")
    words = shlex.split(first, comments=True)
    if words[0] != "onepeace" or {">", "&&"} & set(words):
        return _run_shell(where, command)
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = onepeace(words[1:])
    assert code == 0, f"{where}: exit code {code} of {command}"
    return _run_shell(where, rest, stdout.getvalue()) if rest else stdout.getvalue()


def _run_shell(where: str, code: str, given: str = "") -> str:
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], input=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def run_blocks(name: str, blocks: Sequence[Block]) -> list[str]:
    """What each block prints. They share the names of python, and the folder."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    return [run_block(name, block, namespace) for block in blocks]


def demonstration(blocks: Sequence[Block]) -> Block:
    """The first block that shows commands with what they print."""
    return next(block for block in blocks if block.language == "console")


def update(page: Path) -> None:
    """Replace what the blocks of a page print."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for block in blocks_of(text) if block.left_out is None]
    printed = dict(zip(blocks, run_blocks(page.name, blocks), strict=True))
    for block in reversed(blocks):  # from the end, so that places stay right
        if block.shown is not None:
            text = text[: block.place[0]] + printed[block] + text[block.place[1] :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    pages = sorted(
        path.relative_to(ROOT) for part in ("start", "guide") for path in (ROOT / "docs" / part).glob("*.md")
    )
    for name in (Path("README.md"), *pages):
        with tempfile.TemporaryDirectory() as temporary, like_checkout(Path(temporary)):
            update(ROOT / name)
