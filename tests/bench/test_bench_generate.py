"""`onepeace bench generate`: what takes turns computes the same, and a row says what was measured."""

import json

import pytest
import torch

from onepeace.bench import generate
from onepeace.bench.__main__ import main
from onepeace.bench.comparison import MIN_ROUNDS
from onepeace.bench.generate import bench_generate, columns
from onepeace.errors import UserError

CPU = torch.device("cpu")
SMALL = {"dim": 32, "encoder_depth": 1, "decoder_depth": 2, "num_heads": 4, "ffn_dim": 64, "num_words": 40,
         "num_codes": 4, "num_bins": 4, "stem_depths": (1, 1, 1), "stem_width": 8}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(generate, "OFA_SIZES", {"tiny": SMALL})
    monkeypatch.setattr(generate, "SOURCE_TOKENS", 6)
    monkeypatch.setattr("onepeace.bench.comparison.SHORTEST", 1e-9)


def test_bench_generate_end_to_end(tmp_path, capsys):
    out = tmp_path / "report.json"
    options = ["--size", "tiny", "--beams", "1,3", "--batch", "2", "--length", "4", "--dtypes", "float32"]
    assert main(["generate", *options, "--seconds", "0", "--threads", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["beam"], row["batch"], row["length"]) for row in rows] == [(1, 2, 4), (3, 2, 4)]
    for row in rows:
        assert row["rounds"] == MIN_ROUNDS
        assert set(row["tokens_per_second"]) == {"ours", "uncached", "transformers"}
        for name in ("ours_over_uncached", "ours_over_transformers"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
        assert "OFA-tiny" in columns(row)["model"]
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]) == 2 + len(rows)


def test_all_write_answers_of_the_same_length(monkeypatch):
    written = {}

    def once(ways, seconds, device):
        written["tokens"] = ways["transformers"]().shape[1]
        return {name: [1.0] * MIN_ROUNDS for name in ways}

    monkeypatch.setattr(generate, "take_turns", once)
    (row,) = bench_generate(["tiny"], [2], 3, 5, [torch.float32], CPU, 0)
    assert written["tokens"] == 1 + 5 + 1  # bos, the answer, eos
    assert row["tokens_per_second"]["ours"]["median"] == 15


def test_difference_with_the_cache_is_an_error(monkeypatch):
    step = generate.TextDecoder.step
    monkeypatch.setattr(generate.TextDecoder, "step", lambda self, ids, cache: step(self, ids, cache) * 2)
    with pytest.raises(RuntimeError, match="the two ways differ: the scores"):
        list(bench_generate(["tiny"], [1], 1, 3, [torch.float32], CPU, 0))


def test_unknown_size_is_named():
    with pytest.raises(UserError, match="'vast' is no size of OFA"):
        list(bench_generate(["vast"], [1], 1, 3, [torch.float32], CPU, 0))
