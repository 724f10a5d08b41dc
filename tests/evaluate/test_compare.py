"""Two results side by side: paired where they can be, and which differences stand out."""

import json

import numpy as np
import pytest
from support.evaluation import RECIPE, KnownEmbedder, write_recipe

import onepeace
from onepeace.cli import main
from onepeace.errors import UserError
from onepeace.evaluate.compare import Difference, compare, read_results
from onepeace.evaluate.intervals import interval


def row(values, *, metric="R@1", data="x", statistic="mean", per_query=True):
    value = float(getattr(np, statistic)(values))
    found = {"set": "s", "metric": metric, "value": value, "interval": interval(values, statistic), "n": len(values)}
    return {**found, "statistic": statistic, "data_hash": data, **({"per_query": list(values)} if per_query else {})}


A = [1] * 500 + [0] * 500
B = [1] * 530 + [0] * 470
"""The same queries right, and thirty more."""


def test_what_is_little_stands_out_in_pairs_and_not_by_intervals():
    (paired,) = compare([row(A)], [row(B)])
    assert (paired.how, paired.better) == ("paired", "B")
    for other in (row(B, data="y"), row(B, per_query=False), row(B[1:])):
        (apart,) = compare([row(A)], [other])
        assert (apart.how, apart.better) == ("intervals", "")
        width, narrow = (np.diff(difference.interval)[0] for difference in (apart, paired))
        assert width > 2 * narrow
        assert np.mean(apart.interval) == pytest.approx(0.03, abs=0.005)


def test_the_interval_of_independent_figures_adds_as_squares():
    first, second = row(A, data="1"), row(A, data="2")
    (difference,) = compare([first], [second])
    width = np.diff(first["interval"])[0]
    assert np.diff(difference.interval)[0] == pytest.approx(width * 2**0.5, rel=0.01)


def test_a_lower_rank_is_the_better_one():
    random = np.random.default_rng(0)
    ranks = random.integers(10, 100, 300).tolist()
    first, second = row(ranks, statistic="median"), row([rank - 5 for rank in ranks], statistic="median")
    (difference,) = compare([first], [second])
    assert (difference.interval, difference.better) == ((-5, -5), "B")
    assert compare([second], [first])[0].better == "A"


def test_without_intervals_nothing_stands_out():
    bare = {**row(A, per_query=False), "interval": None}
    assert compare([bare], [row(B)]) == [Difference("s", "R@1", 0.5, 0.53, None, "none", "mean")]
    assert compare([bare], [row(B)])[0].better == ""


def test_nothing_in_common_is_an_error():
    with pytest.raises(UserError, match="no figure in common: A has s, B has s"):
        compare([row(A)], [row(B, metric="R@5")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no results"),
        ("{", "x.jsonl:1: not a result in JSON"),
        ("3", "x.jsonl:1: not a result in JSON"),
        ('{"set": "s"}', "x.jsonl:1: has no metric; compare files of onepeace evaluate -o"),
    ],
)
def test_a_file_that_is_none_is_named(content, message, tmp_path):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "y.jsonl")


def test_the_command_compares_what_it_has_saved(root, monkeypatch, capsys):
    recipe = str(write_recipe(root, RECIPE.replace("at: [1]}", "at: [1], map_at: [10], median_rank: true}", 1)))
    for name, shift in (("a", 0), ("b", 1)):
        monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None, shift=shift: KnownEmbedder(shift))
        assert main(["evaluate", recipe, "--data", str(root), "-o", str(root / name)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(root / "a"), str(root / "b")]) == 0
    first, second, head, *lines = capsys.readouterr().out.splitlines()
    assert (first, second) == (f"A: {root / 'a'}", f"B: {root / 'b'}")
    assert head.split() == ["set", "metric", "A", "B", "B", "-", "A", "95%", "by", "better"]
    assert lines[0].split()[5:] == ["100.0%", "0.0%", "-100.0%", "-100.0%..-100.0%", "paired", "A"]
    assert lines[2].split()[4:] == ["median", "rank", "1", "2", "+1", "1..1", "paired", "A"]
    assert lines[-1].endswith("differences stand out; of those that are chance, 1 in 20 would")

    rows = [json.loads(line) for line in (root / "b").read_text().splitlines()]
    for each in rows:
        del each["per_query"]
    (root / "b").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    assert main(["evaluate", "--compare", str(root / "a"), str(root / "b")]) == 0
    assert f"; {len(rows)} not query by query" in capsys.readouterr().out
    assert main(["evaluate", "--compare", str(root / "a"), str(root / "b"), "--model", "tiny"]) == 2
    assert "--compare" in capsys.readouterr().err
