"""The sample pictures and sounds under the names of what they show, as tests call them: images/cat.jpg, sounds/cat.ogg.

In data/samples they carry a camera's and a recorder's names, so that a search there finds no file by its name.
"""

import csv
import shutil
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "data" / "samples"
TABLE = FOLDER / "captions.csv"


def rows() -> list[dict[str, str]]:
    """The lines of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def named(row: dict[str, str]) -> Path:
    """The name of a row's file by its subject."""
    file = Path(row["file"])
    return file.with_stem(row["subject"])


def sample(name: str) -> Path:
    """The file of data/samples that shows this: `sample("images/cat.jpg")`."""
    return next(FOLDER / row["file"] for row in rows() if named(row) == Path(name))


def copy_samples(folder: Path) -> Path:
    """Copy all, with a table of the new names."""
    table = TABLE.read_text(encoding="utf-8")
    for row in rows():
        copy = folder / named(row)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(FOLDER / row["file"], copy)
        table = table.replace(row["file"], named(row).as_posix())
    (folder / TABLE.name).write_text(table, encoding="utf-8")
    return folder
