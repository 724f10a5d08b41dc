"""Two results side by side: paired where they can be, and which differences are significant."""

import numpy as np
import pytest
from support.evaluation import KnownEmbedder, json_lines, table_lines

from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.evaluate.compare import compare, read_results

RIGHT_500 = [1] * 500 + [0] * 500
RIGHT_530 = [1] * 530 + [0] * 470
"""The same queries right, and thirty more."""


def row(per_query, **fields):
    return {
        "set": "s",
        "metric": "R@1",
        "value": float(np.mean(per_query)),
        "data_hash": "x",
        "per_query": per_query,
        **fields,
    }


def test_pairs_of_queries_show_a_small_difference():
    (difference,) = compare([row(RIGHT_500)], [row(RIGHT_530)])
    (reverse,) = compare([row(RIGHT_530)], [row(RIGHT_500)])

    assert difference.better == "B"
    assert 0 < difference.interval[0] < 0.03 < difference.interval[1] < 0.05
    assert reverse.better == "A"


@pytest.mark.parametrize(
    "second",
    [
        row(RIGHT_530, data_hash="y"),
        row(RIGHT_530[1:]),
        row(RIGHT_530) | {"per_query": []},
    ],
    ids=["other data", "other number", "no queries"],
)
def test_unpaired_results_have_no_interval(second):
    (difference,) = compare([row(RIGHT_500)], [second])

    assert difference.interval is None
    assert difference.better == ""


def test_no_common_figure_is_an_error():
    with pytest.raises(UserError, match=r"R@1.*R@5"):
        compare([row(RIGHT_500)], [row(RIGHT_530, metric="R@5")])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "no results"),
        ("{", ":1: .*JSON"),
        ("3", ":1: .*JSON"),
        ('{"set": "s"}', ":1: .*metric"),
    ],
)
def test_file_without_results_is_refused(content, word, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(content)

    with pytest.raises(UserError, match=rf"x\.jsonl.*{word}"):
        read_results(path)


@pytest.fixture
def saved(root, evaluate):
    """Results of an embedder that is always right and of one that never is, written by the command."""
    paths = [root / "a.jsonl", root / "b.jsonl"]
    for shift, path in enumerate(paths):
        code, _, _ = evaluate("-o", path, embedder=KnownEmbedder(shift))
        assert code == 0
    return paths


@pytest.fixture
def compare_saved(saved, capsys):
    """Runs the command on the two files: (exit code, stdout, stderr)."""

    def run(*options):
        code = main(["evaluate", "--compare", *map(str, saved), *options])
        return code, *capsys.readouterr()

    return run


def test_command_prints_a_table_of_differences(saved, compare_saved):
    code, out, _ = compare_saved()
    first, second, columns, *rows, summary = table_lines(out)

    assert code == 0
    assert first == f"A: {saved[0]}"
    assert second == f"B: {saved[1]}"
    assert columns == "set metric A B B - A 95% better"
    assert rows[0] == "photos text to image R@1 100.0% 0.0% -100.0% -100.0%..-100.0% A"
    # only with ten candidates of four a wrong order is as good
    assert summary.startswith("6 of 8 differences")


def test_command_prints_differences_as_json(compare_saved):
    _, out, _ = compare_saved("--json")
    first, *_ = json_lines(out)

    assert first["metric"] == "text to image R@1"
    assert first["first"] == 1
    assert first["second"] == 0
    assert first["better"] == "A"


@pytest.mark.parametrize(
    "option",
    [
        ["--model", "tiny"],
        ["--device", "cpu"],
        ["--force"],
    ],
)
def test_compare_excludes_other_options(compare_saved, option):
    code, _, err = compare_saved(*option)

    assert code == 2
    assert "--compare" in err
