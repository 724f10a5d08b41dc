"""Runs of a small model over shards on a server that fails: python docs/results/servers.py.

Prints the table of docs/results/data.md: of 64 shards of 12 pictures, one or each second is answered wrongly. Waiting
times are shortened to a tenth of a second.
"""

import io
import logging
import os
import re
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from onepeace.cli import main
from onepeace.config.yaml_files import write_config
from onepeace.data import shard
from onepeace.files.table import markdown_table

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from support.server import Requests, serving
from support.small_shards import COLOURS, square, write_classes
from support.training import make_recipe

SHARDS = 64
CASES: dict[str, tuple[str, int]] = {
    "500 once": ("500-once", 1),
    "half the file once": ("half-once", 1),
    "a login page once": ("login-once", 1),
    "500, always": ("500", 1),
    "403": ("403", 1),
    "promises more than it sends": ("cut", 1),
    "half the file, with its length": ("half", 1),
    "half the file, without a length": ("unsized", 1),
    "a login page with status 200": ("login", 1),
    "stops before the last byte": ("stall", 1),
    "one byte at a time": ("slow", 1),
    "half the file, with its length, each second shard": ("half", SHARDS // 2),
}
"""What the server does, its name in `Requests`, and the number of shards that are answered so."""


class Messages(logging.Handler):
    """The messages of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def run(folder: Path, number: int, kind: str, failing: int) -> list[str]:
    """Share of the shards that are lost, exit code, and what is said about the first of them, or at the end."""
    requests = Requests()
    messages = Messages()
    logging.getLogger("onepeace").addHandler(messages)
    os.environ["ONEPEACE_CACHE"] = str(folder / f"cache-{number}")
    with serving(requests.handler(folder)) as address:
        bad = {2 * i + 1 for i in range(failing)}
        names = [f"{kind}/{i:02}" if i in bad else f"{i:02}" for i in range(SHARDS)]
        train = [{"shards": f"{{{','.join(names)}}}.tar", "pair": ["image", "text"]}]
        recipe = make_recipe(address, folder / f"out-{number}", steps=24, data={"train": train})
        write_config(recipe, folder / "recipe.yaml")
        errors = io.StringIO()
        try:
            with redirect_stderr(errors):
                code = main(["train", str(folder / "recipe.yaml")])
        finally:
            requests.over.set()
            logging.getLogger("onepeace").removeHandler(messages)
    lost = set()
    for line in messages.lines:
        lost |= set(re.findall(rf"{kind}/\d\d\.tar: .*", line))
    names_lost = {line.partition(":")[0] for line in lost}
    example = next((line.partition(": ")[2] for line in sorted(lost)), "none")
    if code:
        return ["", str(code), errors.getvalue().splitlines()[-1]]
    return [f"{len(names_lost) / SHARDS:.1%}", str(code), example]


def measure(folder: Path) -> None:
    shard.FETCH_PAUSES = (0.1, 0.1, 0.1)
    shard.STALLED = 2.0
    shard.REQUEST_SECONDS = 4.0
    for number in range(SHARDS):
        colours = dict(list(COLOURS.items())[:4])
        write_classes(folder / f"{number:02}.tar", colours, square, "a {} square", each=3, seed=number)
    rows = []
    for number, (name, (kind, failing)) in enumerate(CASES.items()):
        rows.append([name, str(failing), *run(folder, number, kind, failing)])
    print(markdown_table(["the server", "shards", "samples lost", "exit code", "the line"], rows))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.environ["no_proxy"] = "127.0.0.1"
        measure(Path(name))
