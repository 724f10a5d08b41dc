"""A protocol of one's own, defined here alone, is read and measured like the others."""

from dataclasses import dataclass

import pytest
from support.evaluation import KnownEmbedder

from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols import PROTOCOLS, EvaluationProtocol
from onepeace.evaluate.protocols.protocol import encode

RECIPE = """
sets:
  photos: {protocol: alignment, modality: image, shards: "val/photos/*.tar.gz", above: 0.5}
"""


@dataclass(frozen=True, kw_only=True)
class Alignment(EvaluationProtocol):
    """Share of items whose first caption is more similar to them than a bound."""

    above: float

    def run(self, embedder, root):
        samples = self.read(root, "text")
        items = self.encode(embedder, samples)
        texts = encode(embedder, "text", [sample.captions[0] for sample in samples])
        hits = (items * texts).sum(axis=1) > self.above
        return [Figure.mean_of(f"aligned above {self.above}", hits, chance=(1 - self.above) / 2)]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "alignment", Alignment)


@pytest.mark.parametrize(
    ("shift", "value"),
    [
        (0, 1.0),
        (1, 0.0),
    ],
)
def test_runner_measures_it(measured, shift, value):
    (row,) = measured(embedder=KnownEmbedder(shift))
    assert row[:5] == ("photos", "aligned above 0.5", value, 0.25, 2)
    assert row.about["protocol"] == "alignment"
    assert row.about["options"]["above"] == 0.5
