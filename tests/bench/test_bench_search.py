"""`onepeace bench search`: what is compared, and that only searches that find the right things are timed."""

import json
from itertools import islice

import numpy as np
import pytest

from onepeace.bench import search
from onepeace.bench.search import QUERIES, bench_search, clustered
from onepeace.cli import main


def test_bench_search_end_to_end(tmp_path, capsys):
    pytest.importorskip("faiss")
    pytest.importorskip("usearch")
    out = tmp_path / "report.json"
    some = ["exact", "faiss-ivf", "faiss-flat-alone", "faiss-hnsw-alone", "usearch-alone"]
    options = ["--rows", "300", "--dim", "16", "--allowed", "1,0.2", "--seconds", "0", "--threads", "1"]
    assert main(["bench", "search", *options, "--structures", ",".join(some), "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    every = ["numpy", *some]
    assert [(row["allowed"], row["structure"]) for row in rows] == [
        *((1, name) for name in every),
        *((0.2, name) for name in every if name != "usearch-alone"),
    ]
    for row in rows:
        assert (row["vectors"], row["dim"]) == (300, 16)
        assert 0 < row["p50"] <= row["p99"]
        assert row["time_over_numpy"] > 0
        assert row["time_over_unfiltered"] > 0
        assert 0.5 < row["recall_at_10"] <= 1
        if row["structure"] in ("numpy", "exact", "faiss-ivf"):
            assert row["recall_at_10"] > 0.98
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows)
    assert "| 20%" in lines[-1]


def test_made_up_vectors_cluster():
    vectors, queries, samples = islice(clustered(20_000, 64), 3)
    assert (vectors.shape, queries.shape, samples.shape) == ((20_000, 64), (QUERIES, 64), (QUERIES, 64))
    for rows in (vectors, queries):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert not np.array_equal(queries, samples)
    products = queries @ vectors.T
    assert np.median(np.sort(products, axis=1)[:, -10]) > 0.6
    assert abs(products.mean()) < 0.1
    np.testing.assert_array_equal(vectors, next(clustered(20_000, 64)))


@pytest.mark.parametrize(
    ("spoil", "allowed", "message"),
    [
        (lambda rows: rows[:, ::-1] * 0, 1.0, "exact found 0"),
        (lambda rows: np.where(rows < 0, rows, (rows + 1) % 300), 0.5, "exact found vectors that are not allowed"),
    ],
    ids=["not the nearest", "not allowed"],
)
def test_searches_that_find_something_else_are_not_timed(monkeypatch, spoil, allowed, message):
    ours = search._ours

    def spoilt(*arguments):
        right = ours(*arguments)
        return lambda queries, mask: spoil(right(queries, mask))

    monkeypatch.setattr(search, "_ours", spoilt)
    with pytest.raises(RuntimeError, match=message):
        list(bench_search([300], 8, ["exact"], [allowed], 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "99"], "--rows: '99' is not a whole number from 100 up"),
        (["--structures", "exact,annoy"], "--structures: 'annoy' is none of exact, usearch,"),
        (["--allowed", "1.5"], "--allowed: '1.5' is not a number above 0 and up to 1"),
        (["--allowed", "half"], "--allowed: 'half' is not a number"),
        (["recipe.yaml"], "bench search takes no recipe"),
    ],
)
def test_wrong_options_are_one_line(capsys, arguments, message):
    assert main(["bench", "search", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
