"""The code in README.md and docs/ runs and prints what is shown (support/readme.py; `make readme` writes it), and that
in the notebook of examples/ runs.

Links lead somewhere, and README.md stays short.

The python blocks of a file run in one namespace, bash and console blocks in a shell, in file order, in a folder that
looks like the checkout and takes what they write. Blocks that are left out say why.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.readme import ROOT, blocks_of, demonstration, like_checkout, run_blocks, update

from onepeace import __version__

FILES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    + [path for folder in ("data", "onepeace", "recipes", "tests") for path in (ROOT / folder).rglob("README.md")]
)
BLOCKS = {path.relative_to(ROOT).as_posix(): blocks_of(path.read_text(encoding="utf-8")) for path in FILES}
RUN = {name: [block for block in blocks if block.left_out is None] for name, blocks in BLOCKS.items()}
DECIMAL = re.compile(r"\d+\.\d+")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Path]:
    """One folder for all files, so that an index that several of them build is built once."""
    with like_checkout(tmp_path_factory.mktemp("checkout")) as folder:
        yield folder


def assert_shown(shown: str, printed: str) -> None:
    """Equal but for spaces, times, shares of few items, and 0.011 of a decimal: machines round differently."""
    shown, printed = (_without_times(text) for text in (shown, printed))
    assert DECIMAL.sub("#", " ".join(shown.split())) == DECIMAL.sub("#", " ".join(printed.split()))
    there, here = ([float(number) for number in DECIMAL.findall(text)] for text in (shown, printed))
    assert there == pytest.approx(here, rel=0, abs=0.011)


def _without_times(text: str) -> str:
    """Without what stands in a last column of seconds, and in rows with an interval: training goes its own way."""
    head, seconds, rows = text.partition(" seconds\n")
    text = head + seconds + re.sub(r" \S+$", "", rows, flags=re.MULTILINE)
    return re.sub(r"[\d.]+% +[\d.]+%\.\.[\d.]+%.*", "", text)


@pytest.mark.usefixtures("quick_finetuning")
@pytest.mark.parametrize("name", [name for name, blocks in RUN.items() if blocks])
def test_readme_code_runs_and_prints_what_is_shown(name, checkout):
    for block, printed in zip(RUN[name], run_blocks(name, RUN[name]), strict=True):
        if block.shown is not None:
            assert_shown(block.shown, printed)


@pytest.mark.usefixtures("quick_finetuning", "checkout")
def test_notebook_lists_the_errors_of_a_finetuning(capsys):
    """Of the one in README.md, which is finished if its test ran before."""
    notebook = json.loads((ROOT / "examples" / "finetune_and_errors.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), namespace)  # noqa: S102

    out = capsys.readouterr().out
    assert out.split()[:5] == ["set", "metric", "before", "after", "gain"]
    assert out.count("nearest other:") == len(namespace["files"]) > 0


def test_top_readme_shows_the_library_and_the_command_line():
    assert {block.language for block in RUN["README.md"]} >= {"python", "bash", "console"}
    left_out = {None, "sets up the environment this test runs in", "downloads models"}
    assert {block.left_out for block in BLOCKS["README.md"]} == left_out


def test_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    assert len((ROOT / "recipes" / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("file", [*FILES, ROOT / "CONTRIBUTING.md"], ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(file):
    """Links of docs/ stay inside it, so that the site that is built of it has them; `make docs` looks at those too."""
    text = re.sub(r"^ *```.*?^ *```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if path.startswith(("http:", "https:")):
            continue
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        assert target.is_relative_to(ROOT / "docs") or not file.is_relative_to(ROOT / "docs"), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_demonstration_is_what_make_demo_runs():
    block = demonstration(RUN["README.md"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    recipe = re.sub(r"^\t@.*\n", "", recipe, flags=re.MULTILINE)  # what it says at the end
    assert block.code == recipe.replace("\t$(BIN)/", "").replace("$(SAMPLES)", "data/samples")


# --- the running of blocks above ---


def test_what_a_block_prints_replaces_what_the_file_says(checkout):
    console = "```console\n$ echo a \\\n>   b\n{}$ onepeace --version\n{}```\n"
    text = f"{console}\n```python\nprint(1)\n```\n\n```text\n{{}}```\nend\n"
    (checkout / "X.md").write_text(text.format("old\n", "", "old\nold\n"))
    update(checkout / "X.md")
    assert (checkout / "X.md").read_text() == text.format("a b\n", f"onepeace {__version__}\n", "1\n")


@pytest.mark.parametrize("text", ["```bash\nfalse | cat\necho\n```", "```python\n1 / 0\n```"])
def test_failing_block_fails(text, checkout):
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run_blocks("X.md", blocks_of(text))
