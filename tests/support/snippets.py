"""The python blocks of README.md and docs/ as files, for type checkers: `python -m support.snippets FOLDER`.

The blocks of a page share their names, as when they are run, so they are one file; line N of it is line N of the page.
"""

import sys
from pathlib import Path

from support.readme import ROOT, blocks_of


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def source_of(page: Path) -> str:
    """The python blocks of a page, at their lines; "" if it has none."""
    source = ""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.language == "python":
            missing_lines = block.line - 1 - source.count("\n")
            source += "\n" * missing_lines + block.code
    return source


def write(folder: Path) -> list[Path]:
    """Write a file for each page that has python blocks."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for page in pages():
        source = source_of(page)
        if source:
            name = "_".join(page.relative_to(ROOT).with_suffix(".py").parts)
            (folder / name).write_text(source, encoding="utf-8")
            files.append(folder / name)
    return files


if __name__ == "__main__":
    for file in write(Path(sys.argv[1])):
        print(file)
