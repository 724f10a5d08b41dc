"""Two results side by side: paired where they can be, and which differences stand out."""

import json

import numpy as np
import pytest
from support.evaluation import RECIPE, KnownEmbedder, write_recipe

import onepeace
from onepeace.cli import main
from onepeace.errors import UsageError, UserError
from onepeace.evaluate.compare import compare, read_results


def row(values, *, metric="R@1", data="x"):
    return {"set": "s", "metric": metric, "value": float(np.mean(values)), "data_hash": data, "per_query": list(values)}


A = [1] * 500 + [0] * 500
B = [1] * 530 + [0] * 470
"""The same queries right, and thirty more."""


def test_what_is_little_stands_out_in_pairs():
    (paired,) = compare([row(A)], [row(B)])
    assert paired.better == "B"
    assert 0 < paired.interval[0] < 0.03 < paired.interval[1] < 0.05
    assert compare([row(B)], [row(A)])[0].better == "A"


@pytest.mark.parametrize("other", [row(B, data="y"), row(B[1:]), {**row(B), "per_query": []}])
def test_without_the_same_queries_nothing_stands_out(other):
    (apart,) = compare([row(A)], [other])
    assert (apart.interval, apart.better) == (None, "")


def test_nothing_in_common_is_an_error():
    with pytest.raises(UserError, match=r"R@1.*R@5"):
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
    with pytest.raises(UsageError, match=r"y\.jsonl"):
        read_results(tmp_path / "y.jsonl")


def test_the_command_compares_what_it_has_saved(root, monkeypatch, capsys):
    recipe = str(write_recipe(root, RECIPE))
    for name, shift in (("a", 0), ("b", 1)):
        monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None, shift=shift: KnownEmbedder(shift))
        assert main(["evaluate", recipe, "--data", str(root), "-o", str(root / name)]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(root / "a"), str(root / "b")]) == 0
    first, second, head, *lines = capsys.readouterr().out.splitlines()
    assert (first, second) == (f"A: {root / 'a'}", f"B: {root / 'b'}")
    assert head.split() == ["set", "metric", "A", "B", "B", "-", "A", "95%", "better"]
    assert lines[0].split()[5:] == ["100.0%", "0.0%", "-100.0%", "-100.0%..-100.0%", "A"]
    assert lines[-1].endswith("differences are significant; by chance alone 1 in 20 would be")

    rows = [json.loads(line) for line in (root / "b").read_text().splitlines()]
    for each in rows:
        each["per_query"] = []
    (root / "b").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    assert main(["evaluate", "--compare", str(root / "a"), str(root / "b")]) == 0
    assert f"; {len(rows)} have no interval" in capsys.readouterr().out
    for refused in (["--model", "tiny"], ["--device", "cpu"], ["--force"]):
        assert main(["evaluate", "--compare", str(root / "a"), str(root / "b"), *refused]) == 2
        assert "--compare" in capsys.readouterr().err
    assert main(["evaluate", "--compare", str(root / "a"), str(root / "b"), "--json"]) == 0
    assert [json.loads(line)["metric"] for line in capsys.readouterr().out.splitlines()] == [
        one["metric"] for one in rows
    ]
