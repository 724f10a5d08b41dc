"""A protocol of one's own, defined here alone, is read, measured and printed like the others."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from support.evaluation import KnownEmbedder, measure, recipe_of, write_recipe

import onepeace
from onepeace.cli import main
from onepeace.errors import UserError
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

    def __post_init__(self) -> None:
        if not -1 <= self.above < 1:
            raise UserError(f"above is {self.above}; a similarity lies between -1 and 1")

    def run(self, embedder, root):
        samples = self.read(root, "text")
        items = self.encode(embedder, samples)
        texts = encode(embedder, "text", [sample.captions[0] for sample in samples])
        hits = (items * texts).sum(axis=1) > self.above
        return [Figure(f"aligned above {self.above}", float(np.mean(hits)), (1 - self.above) / 2, len(hits))]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "alignment", Alignment)


def test_the_runner_measures_it(root):
    for shift, value in ((0, 1.0), (1, 0.0)):
        (row,) = measure(KnownEmbedder(shift), recipe_of(root, RECIPE))
        assert row[:5] == ("photos", "aligned above 0.5", value, 0.25, 2)


def test_the_command_prints_it(root, monkeypatch, capsys):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: KnownEmbedder())
    arguments = ["evaluate", str(write_recipe(root, RECIPE)), "sets.photos.above=0", "--data", str(root), "--json"]
    assert main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["metric"], row["value"], row["ratio"], row["n"]) == ("aligned above 0.0", 1.0, 2.0, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("abov=1", "sets.photos: abov is not a field; did you mean above"),
        ("above=1", "sets.photos: above is 1.0; a similarity lies between -1 and 1"),
    ],
)
def test_its_mistakes_are_named(root, override, message):
    with pytest.raises(UserError, match=message):
        measure(KnownEmbedder(), recipe_of(root, RECIPE, f"sets.photos.{override}"))
