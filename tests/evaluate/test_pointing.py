"""The pointing game: an embedder that sees colours and hears tones, mosaics of them, and what does not fit."""

import numpy as np
import pytest
import torch
from support.evaluation import measure, recipe_of
from support.small_shards import COLOURS, TONES, write_shard, write_shards

from onepeace.embed.explain import Explanation
from onepeace.errors import UserError
from onepeace.evaluate.protocols.pointing import points_at
from onepeace.processors import AudioProcessor, ImageProcessor

NAMES = (*COLOURS, *TONES)
RECIPE = """
sets:
  squares: {protocol: pointing, modality: image, shards: squares.tar, count: 12}
  tones: {protocol: pointing, modality: audio, shards: tones.tar, count: 8}
"""


class SeeingEmbedder:
    """A text means the names in it; a map says how near each part comes to that colour or tone, times ``sign``."""

    modalities = ("text", "image", "audio")

    def __init__(self, sign=1.0):
        self.processors = {"image": ImageProcessor(size=16), "audio": AudioProcessor()}
        self.sign, self.explained = sign, []

    def encode_text(self, items):
        vectors = torch.tensor([[float(name in item.split()) for name in NAMES] for item in items])
        return torch.nn.functional.normalize(vectors, dim=1)

    def explain(self, item, query):
        name = NAMES[int(query.argmax())]
        self.explained.append((item, name))
        if "image" in item:
            pixels = self.processors["image"].load(item["image"])
            grid = torch.from_numpy(np.array(pixels.resize((8, 8), 4), dtype=np.float32))
            values = -(grid - torch.tensor(COLOURS[name])).abs().sum(-1)
            positions = torch.cartesian_prod(torch.arange(8), torch.arange(8))
            return Explanation("image", self.sign * values, positions, "patch", 0.0)
        samples, rate = item["audio"]
        frames = samples[: len(samples) // 1600 * 1600].view(-1, 1600).numpy()
        heard = np.abs(np.fft.rfft(frames)).argmax(axis=1) * rate / 1600
        values = -torch.from_numpy(np.abs(np.log(heard + 1) - np.log(TONES[name]))).float()
        starts = 0.1 * torch.arange(len(frames))
        return Explanation("audio", self.sign * values, torch.stack([starts, starts + 0.1], 1), "second", 0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("pointing"))


@pytest.mark.parametrize(("sign", "value"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_who_sees_is_always_right_and_who_sees_nothing_never(root, sign, value):
    rows = measure(SeeingEmbedder(sign), recipe_of(root, RECIPE))
    assert [row[:5] for row in rows] == [
        ("squares", "pointing", value, 0.25, 12),
        ("tones", "pointing", value, 1 / 3, 8),
    ]
    assert rows[0].per_query == (value,) * 12


def test_mosaics_are_the_same_each_time_and_of_many_classes(root):
    first, second = SeeingEmbedder(), SeeingEmbedder()
    for embedder in (first, second):
        measure(embedder, recipe_of(root, RECIPE))
    for (one, name), (other, other_name) in zip(first.explained, second.explained, strict=True):
        assert name == other_name
        same = torch.equal(one["audio"][0], other["audio"][0]) if "audio" in one else one["image"] == other["image"]
        assert same
    assert len({name for _, name in first.explained}) > 6
    pictures = [item["image"] for item, _ in first.explained if "image" in item]
    assert pictures[0].size == (32, 32)
    assert pictures[0] != pictures[1]
    clips = next(item["audio"][0] for item, _ in first.explained if "audio" in item).view(3, -1)
    assert clips.shape == (3, 80000)  # of half a second, repeated
    assert torch.allclose(clips.square().mean(1).sqrt(), torch.full((3,), 0.1), atol=1e-4)


def test_a_maximum_that_lies_on_both_sides_is_a_miss():
    positions = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])

    def hit(values, region):
        return points_at(Explanation("audio", torch.tensor(values), positions, "second", 0.0), region)

    assert hit([1.0, 3.0, 2.0], (1.0, 2.0))
    assert not hit([1.0, 3.0, 2.0], (2.0, 3.0))
    assert not hit([3.0, 3.0, 2.0], (1.0, 2.0))
    assert hit([3.0, 3.0, 2.0], (0.0, 2.0))
    assert not hit([1.0, float("nan"), 2.0], (1.0, 2.0))
    assert hit([1.0, 1.0, 1.0], (0.0, 3.0))
    assert not hit([1.0, 2.0, 1.0], (1.6, 1.9))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("squares.modality=text", "modality is 'text'; maps are of image and audio"),
        ("squares.count=0", "count is 0; it should be at least 1"),
        ("squares.keys='red*'", "classes are too few for mosaics of 4"),
    ],
)
def test_mistakes_are_named(root, override, message):
    with pytest.raises(UserError, match=message):
        measure(SeeingEmbedder(), recipe_of(root, RECIPE, f"sets.{override}"))


def test_a_file_that_cannot_be_decoded_is_named(tmp_path):
    samples = {name: (b"no picture", {"captions": ["x"], "label": name}) for name in ("red", "green", "blue", "white")}
    write_shard(tmp_path / "squares.tar", samples)
    recipe = "sets: {squares: {protocol: pointing, modality: image, shards: squares.tar}}"
    with pytest.raises(UserError, match=r"squares.tar: \w+: .*not a picture"):
        measure(SeeingEmbedder(), recipe_of(tmp_path, recipe))
