"""examples/depth.yaml trains depth with one channel, which starts as pictures do."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.golden_cases import assert_near
from support.small_shards import png, write_shards, write_tar
from support.training import make_recipe

from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.model import ADAPTERS
from onepeace.processors import PROCESSORS
from onepeace.train import trainer
from onepeace.train.initial_weights import make_model
from onepeace.train.model_config import make_config
from onepeace.train.recipe import read_recipe

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "depth.yaml"
SIDE = 24


@pytest.fixture(autouse=True)
def modality(monkeypatch):
    """The entries of the example, taken out again."""
    for entries in (ADAPTERS, PROCESSORS, sys.modules):
        monkeypatch.setitem(entries, "depth", None)
        del entries["depth"]


@pytest.fixture
def recipe(tmp_path):
    stage_one = trainer.train(make_recipe(write_shards(tmp_path / "pairs"), tmp_path / "one", steps=1))
    rng = np.random.default_rng(0)
    members = {}
    for key in range(4):
        members[f"{key}.png"] = png(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8))
        members[f"{key}.depth.png"] = png(rng.integers(0, 5000, (SIDE, SIDE), np.uint16))
        members[f"{key}.json"] = b"{}"
    write_tar(tmp_path / "depth-0.tar", members)
    overrides = {
        "model.from": stage_one,
        "processors.depth.size": [SIDE, SIDE],
        "data.root": tmp_path,
        "schedule": "{steps: 1, warmup_steps: 1}",
        "run": f"{{batch_size: 4, workers: 0, precision: float32, out: {tmp_path / 'depth'}}}",
    }
    return read_recipe(EXAMPLE, [f"{name}={value}" for name, value in overrides.items()])


def test_depth_starts_as_a_grey_picture_and_is_trained(recipe, tmp_path):
    model = make_model(recipe, make_config(recipe)).eval()
    grey = torch.randn(1, 1, SIDE, SIDE)
    with torch.no_grad():
        vectors = model({"depth": {"pixels": grey}, "image": {"pixels": grey.expand(1, 3, -1, -1)}})
    assert_near(vectors["depth"], vectors["image"], 1e-5)

    folder = trainer.train(recipe)
    before = load_file(tmp_path / "one" / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert torch.equal(after["blocks.0.ffn.image.up.weight"], before["blocks.0.ffn.image.up.weight"])
    assert not torch.equal(after["blocks.0.ffn.depth.up.weight"], before["blocks.0.ffn.image.up.weight"])

    path = tmp_path / "room.depth.png"
    path.write_bytes(png(np.full((30, 40), 3000, np.uint16)))
    assert PROCESSORS["depth"](size=[2, 2]).decode(path).flatten().tolist() == [-0.5] * 4  # 1 / (1 + 3 m)
    embedder = load(folder, device="cpu")
    as_depth, as_picture = embedder.encode([{"depth": path}, path])
    assert not torch.allclose(as_depth, as_picture)


def test_picture_is_no_map_of_depth(recipe, tmp_path):
    path = tmp_path / "photo.depth.png"
    path.write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(UserError, match=r"photo\.depth\.png.*RGB"):
        PROCESSORS["depth"]().decode(path)
