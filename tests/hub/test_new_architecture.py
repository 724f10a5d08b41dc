"""A network made here becomes an architecture by one entry of ARCHITECTURES: no file of the package knows it.

It is a bag of words and a bag of patches: each modality's tokens are embedded and averaged.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from support.embedding import assert_same
from support.small_shards import COLOURS, square, write_shard
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import onepeace
from onepeace.config import Config, Options
from onepeace.hub import weights
from onepeace.hub.architectures import ARCHITECTURES, Architecture
from onepeace.hub.folder import read_config
from onepeace.layers.features import Features
from onepeace.model import Encoder, StemOutput
from onepeace.processors import TextProcessor, TextReader
from onepeace.train import trainer
from onepeace.train.logging import read_log
from onepeace.train.recipe import read_recipe

PROCESSORS = {"text": {"max_tokens": 12}, "image": {"size": 32}}


@dataclass(frozen=True)
class ToyConfig:
    width: int
    adapters: dict[str, Options]
    embed_dim: int = 8
    projections: tuple[str, ...] = ("text", "image")
    heads: dict[str, Options] = field(default_factory=dict)


class Words(nn.Module):
    stem_by_length = False

    def __init__(self, width, *, vocab_size):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)

    def take(self, inputs, rows):
        return {name: tensor[rows] for name, tensor in inputs.items()}

    def stem_tokens(self, inputs):
        ids = inputs["ids"]
        return StemOutput(self.embed(ids), ids == 1, (ids.shape[1],))

    def token_lengths(self, inputs):
        return (inputs["ids"] != 1).sum(1)


class Patches(Words):
    def __init__(self, width, *, patch_size):
        nn.Module.__init__(self)
        self.embed = nn.Conv2d(3, width, patch_size, patch_size)

    def stem_tokens(self, inputs):
        tokens = self.embed(inputs["pixels"])
        return StemOutput(tokens.flatten(2).mT, None, tuple(tokens.shape[2:]))

    def token_lengths(self, inputs):
        pixels = inputs["pixels"]
        side = pixels.shape[-1] // self.embed.stride[0]
        return torch.full((len(pixels),), side**2)


ADAPTERS = {"text": Words, "image": Patches}


class Toy(Encoder):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleDict()
        for modality, options in config.adapters.items():
            self.adapters[modality] = ADAPTERS[modality](config.width, **options)
        self.heads = nn.ModuleDict()
        for modality in config.projections:
            self.heads[modality] = nn.Linear(config.width, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.blocks = []

    def stems(self, inputs):
        return {
            modality: adapter.stem_tokens(inputs[modality])
            for modality, adapter in self.adapters.items()
            if modality in inputs
        }

    def encode(self, stems, keep=None):
        return {modality: with_mean(stem) for modality, stem in stems.items()}

    def embed(self, modality, features):
        return F.normalize(self.heads[modality](features.cls), dim=-1)


def with_mean(stem):
    """The tokens of a stem after their mean, which is the CLS."""
    if stem.padding_mask is None:
        cls = stem.tokens.mean(1, keepdim=True)
        return Features(torch.cat([cls, stem.tokens], 1), None, stem.grid)
    is_token = (~stem.padding_mask).float()
    shares = F.normalize(is_token, p=1, dim=1).unsqueeze(2)
    cls = (stem.tokens * shares).sum(1, keepdim=True)
    mask = F.pad(stem.padding_mask, (1, 0))
    return Features(torch.cat([cls, stem.tokens], 1), mask, stem.grid)


SMALL = {
    "width": 16,
    "projections": ("text", "image"),
    "adapters": {"text": {"vocab_size": 400}, "image": {"patch_size": 16}},
}
TOY = Architecture(ToyConfig, Toy, {"small": SMALL})


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)


RECIPE = """
model: {architecture: toy, size: small}
processors: {text: {max_tokens: 12}, image: {size: 32}}
tokenizer: {vocab_size: 260}
data:
  train: [{shards: "pairs.tar", pair: [image, text]}]
objective: [{term: contrastive}]
optim: {lr: 1.0e-2}
schedule: {steps: 2, warmup_steps: 1}
run: {batch_size: 4, workers: 0, log_every: 1, precision: float32}
"""


def test_training_loop_lowers_its_loss(tmp_path):
    generator = np.random.default_rng(0)
    samples = {}
    for name in ("red", "green", "blue", "white"):
        samples[name] = (square(COLOURS[name], generator), {"captions": [f"all {name}"]})
    write_shard(tmp_path / "pairs.tar", samples)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    recipe = read_recipe(tmp_path / "recipe.yaml", [f"data.root={tmp_path}", f"run.out={tmp_path / 'run'}"])
    folder = trainer.train(recipe)

    assert read_config(folder).architecture == "toy"
    log = read_log(tmp_path / "run" / "log.jsonl")
    first, last = [entry["loss"] for entry in log if "loss" in entry]
    assert last < first
    model = onepeace.load(folder)
    assert model.modalities == ("text", "image")
    assert model.encode_text(["all red"]).shape == (1, 8)


class Tabled(Toy):
    """A module with a table that is computed, and one of whole numbers."""

    scale = 1.0

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("steps", torch.linspace(1, 2, config.width), persistent=False)
        self.register_buffer("order", torch.arange(config.width).flip(0))

    def embed(self, modality, features):
        rows = features.cls[:, self.order] * self.steps * self.scale
        return F.normalize(self.heads[modality](rows), dim=-1)


class Awkward(Tabled):
    """A module that reads a number from a tensor, so that it cannot be built on the meta device."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = self.steps[-1].item()


class Shout(TextReader):
    """Ids of the letters, whatever the tokenizer of other models."""

    def __init__(self, seed):
        self.seed = seed

    def decode(self, item):
        text = self.load(item).upper()
        return torch.tensor([4 + self.seed + ord(letter) % 64 for letter in text])

    def collate(self, samples):
        return {"ids": pad_sequence(samples, batch_first=True, padding_value=1)}


@pytest.fixture(params=[Tabled, Awkward])
def awkward(request, monkeypatch):
    """A module of another form, which has a processor of its own."""
    shout = {"text": lambda settings, folder: Shout(**settings)}
    monkeypatch.setitem(ARCHITECTURES, "toy", replace(TOY, module=request.param, processors=shout))
    return request.param(ToyConfig(**SMALL)).eval()


@pytest.fixture
def awkward_folder(awkward, tmp_path):
    processors = {"text": {"seed": 2}, "image": {"size": 32}}
    return weights.save(tmp_path / "awkward", awkward, Config(awkward.config, processors, "toy"))


def test_computed_buffers_and_whole_numbers_are_loaded(awkward, awkward_folder):
    module = onepeace.load(awkward_folder, device="cpu", dtype="bfloat16").module
    assert torch.equal(module.order, awkward.order)  # not as floats
    assert torch.equal(module.steps, awkward.steps)


@torch.no_grad()
def test_processors_are_those_of_the_model(awkward, awkward_folder):
    model = onepeace.load(awkward_folder, device="cpu")

    assert isinstance(model.processors["text"], Shout)
    ids = Shout(seed=2).decode("a dog").unsqueeze(0)
    expected = awkward({"text": {"ids": ids}})["text"]
    assert_same(model.encode_text(["a dog"]), expected)
    bundled = onepeace.load("tiny", device="cpu", modalities=["text"])
    assert isinstance(bundled.processors["text"], TextProcessor)
