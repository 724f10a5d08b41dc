"""The code in every README.md runs: ```python blocks of a file in one namespace, ```bash and ```console in a shell.

They run in file order, in a folder that looks like the checkout and takes what they write. `<!-- not run: reason -->`
before a block leaves it out; such blocks are listed as skipped tests.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    [path for path in [ROOT / "README.md"] if path.exists()]
    + [path for folder in ("data", "onepeace", "recipes", "tests") for path in (ROOT / folder).rglob("README.md")]
)
SHELLS = {"bash", "sh", "shell", "console"}


class Block(NamedTuple):
    """A fenced block of Markdown."""

    line: int
    """Of its first line of code, from 1."""
    language: str
    code: str
    left_out: str | None
    """Why it is not run."""


def blocks_of(text: str) -> list[Block]:
    """The python and shell blocks of a Markdown text; of a console block only what follows the prompts."""
    blocks = []
    lines = iter(enumerate(text.splitlines(), 1))
    left_out = None
    for number, line in lines:
        comment = re.fullmatch(r"\s*<!--\s*not run:\s*(.+?)\s*-->\s*", line)
        fence = re.fullmatch(r"(\s*)(`{3,}|~{3,})\s*(\w*).*", line)
        if fence:
            indent, ticks, language = fence.groups()
            code = []
            for _, inner in lines:
                if inner.strip() == ticks:
                    break
                code.append(inner.removeprefix(indent))
            else:
                raise ValueError(f"the block at line {number} does not end")
            if language == "console":
                code = commands_of(code)
            if language == "python" or language in SHELLS:
                blocks.append(Block(number + 1, language, "\n".join(code) + "\n", left_out))
        if line.strip():
            left_out = comment[1] if comment else None
    return blocks


def commands_of(lines: list[str]) -> list[str]:
    """What a user typed in a console: lines after `$ `, with those that continue them."""
    typed = []
    goes_on = False
    for line in lines:
        if goes_on or line.startswith("$ "):
            typed.append(line.removeprefix("> ") if goes_on else line.removeprefix("$ "))
            goes_on = line.endswith("\\")
    return typed


BLOCKS = {path.relative_to(ROOT).as_posix(): blocks_of(path.read_text(encoding="utf-8")) for path in FILES}
RUN = {name: [block for block in blocks if block.left_out is None] for name, blocks in BLOCKS.items()}
LEFT_OUT = [
    pytest.param(
        block, id=f"{name}:{block.line}", marks=pytest.mark.skip(reason=f"{name}:{block.line} {block.left_out}")
    )
    for name, blocks in BLOCKS.items()
    for block in blocks
    if block.left_out is not None
]


@pytest.fixture
def like_checkout(tmp_path, monkeypatch) -> Path:
    """The working folder for a README: links to the checkout's files, `onepeace` and `python` of this interpreter."""
    folder, bin_folder = tmp_path / "onepeace", tmp_path / "bin"
    folder.mkdir()
    bin_folder.mkdir()
    for entry in ROOT.iterdir():
        if not entry.name.startswith(".") and entry.suffix != ".egg-info":
            (folder / entry.name).symlink_to(entry)
    for name, arguments in {"onepeace": "-m onepeace", "python": ""}.items():
        script = bin_folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(folder)
    return folder


def run_blocks(name: str, blocks: list[Block]) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        where = f"{name}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), namespace)  # noqa: S102
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.code], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, blocks in RUN.items() if blocks])
def test_readme_code_runs(name, like_checkout):
    run_blocks(name, RUN[name])


@pytest.mark.parametrize("block", LEFT_OUT)
def test_readme_block_is_left_out(block):
    pytest.fail("a block that is left out is skipped, with its reason")


def test_top_readme_shows_the_library_and_the_command_line():
    languages = {block.language for block in RUN.get("README.md", [])}
    assert "python" in languages
    assert languages & SHELLS


# --- the reading of Markdown above ---

MARKDOWN = """
```python
x = 1
```
<!-- not run: downloads 16 GB -->

```bash
onepeace convert big.pt out
```
- a list
  ```console
  $ onepeace search data \\
  >     --text dog
  score  file
  $ ls
  ```
<!-- not run: not before a block -->
text
````sh
echo '```'
````
```yaml
a: 1
```
"""


def test_blocks_are_found_with_line_language_and_reason():
    assert blocks_of(MARKDOWN) == [
        Block(3, "python", "x = 1\n", None),
        Block(8, "bash", "onepeace convert big.pt out\n", "downloads 16 GB"),
        Block(12, "console", "onepeace search data \\\n    --text dog\nls\n", None),
        Block(20, "sh", "echo '```'\n", None),
    ]


def test_unended_block_is_an_error():
    with pytest.raises(ValueError, match="line 1 does not end"):
        blocks_of("```python\nx = 1\n")


def test_blocks_of_a_file_share_names_and_folder(like_checkout):
    python = "```python\nx = 'made'\n```\n```python\nopen(x, 'w').close()\n```\n"
    shell = "```bash\ntest -f made\npython -V\nonepeace --version\n```\n"
    run_blocks("X.md", blocks_of(python + shell))
    assert not (ROOT / "made").exists()


@pytest.mark.parametrize("text", ["```bash\nfalse | cat\necho\n```", "```python\n1 / 0\n```"])
def test_failing_block_fails(text, like_checkout):
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run_blocks("X.md", blocks_of(text))
