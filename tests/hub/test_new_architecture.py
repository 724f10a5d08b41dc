"""A network made here becomes an architecture by one entry of ARCHITECTURES: no file of the package knows it.

It is a bag of words and a bag of patches: each modality's tokens are embedded and averaged.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from support.hub_layouts import small_vocabulary
from support.small_shards import COLOURS, square, write_shard
from torch import nn
from torch.nn import functional as F

import onepeace
from onepeace.config import Config, Options
from onepeace.hub import weights
from onepeace.hub.architectures import ARCHITECTURES, Architecture, Conversion
from onepeace.hub.convert.convert import convert
from onepeace.hub.folder import read_config
from onepeace.layers.features import Features
from onepeace.model import Encoder, StemOutput
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.recipe import read_recipe

SIDE, PATCH = 32, 16
PROCESSORS = {"text": {"max_tokens": 12}, "image": {"size": SIDE}}


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
        return torch.full((len(pixels),), (pixels.shape[-1] // self.embed.stride[0]) ** 2)


class Toy(Encoder):
    def __init__(self, config):
        super().__init__()
        self.config = config
        kinds = {"text": Words, "image": Patches}
        self.adapters = nn.ModuleDict({k: kinds[k](config.width, **options) for k, options in config.adapters.items()})
        self.heads = nn.ModuleDict({key: nn.Linear(config.width, config.embed_dim) for key in config.projections})
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.blocks = []

    def stems(self, inputs):
        return {key: self.adapters[key].stem_tokens(inputs[key]) for key in self.adapters if key in inputs}

    def encode(self, stems, keep=None):
        features = {}
        for key, stem in stems.items():
            mask = stem.tokens.new_zeros(stem.tokens.shape[:2]) if stem.padding_mask is None else stem.padding_mask
            shares = F.normalize(1 - mask.float(), p=1, dim=1)[..., None]
            cls = (stem.tokens * shares).sum(1, keepdim=True)
            mask = None if stem.padding_mask is None else F.pad(stem.padding_mask, (1, 0))
            features[key] = Features(torch.cat([cls, stem.tokens], 1), mask, stem.grid)
        return features

    def embed(self, key, features):
        return F.normalize(self.heads[key](features.cls), dim=-1)


# As another code would write them.
ORIGINAL_NAMES = {
    "word_table": "adapters.text.embed.weight",
    "patches.weight": "adapters.image.embed.weight",
    "patches.bias": "adapters.image.embed.bias",
    "temperature": "logit_scale",
    "text_out.weight": "heads.text.weight",
    "text_out.bias": "heads.text.bias",
    # Rows of one matrix, stored one by one.
    **{f"image_out.{row}": f"heads.image.weight[{row}]" for row in range(8)},
    "image_out.bias": "heads.image.bias",
    "step": None,
}


def infer_config(path, shapes, cfg):
    vocab_size, width = shapes["adapters.text.embed.weight"]
    adapters = {"text": {"vocab_size": vocab_size}, "image": {"patch_size": cfg.get("patch", PATCH)}}
    return Config(ToyConfig(width, adapters), PROCESSORS, "toy")


SMALL = {
    "width": 16,
    "projections": ("text", "image"),
    "adapters": {"text": {"vocab_size": 260}, "image": {"patch_size": PATCH}},
}
TOY = Architecture(
    ToyConfig, Toy, {"small": SMALL}, conversion=Conversion(ORIGINAL_NAMES.__getitem__, infer_config, credit="Ours.")
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "toy", TOY)


@pytest.fixture
def bpe(tmp_path):
    return small_vocabulary(tmp_path / "bpe", size=260)


@pytest.fixture
def original(tmp_path):
    """A checkpoint of the other code, and the module that it holds."""
    module = Toy(ToyConfig(**SMALL))
    tensors = module.state_dict()
    content = {"step": torch.tensor(7)}
    for theirs, ours in ORIGINAL_NAMES.items():
        name, _, row = (ours or "").rstrip("]").partition("[")
        if ours is not None:
            content[theirs] = tensors[name][int(row)] if row else tensors[name]
    path = tmp_path / "toy.pt"
    torch.save({"model": content, "cfg": {"patch": PATCH}}, path)
    return path, module.eval()


@pytest.fixture
def folder(original, tmp_path, bpe):
    return convert(original[0], tmp_path / "toy", bpe=bpe)


def test_checkpoint_is_converted_through_its_key_map(original, folder):
    config = read_config(folder)
    assert (config.architecture, config.model, config.processors) == ("toy", ToyConfig(**SMALL), PROCESSORS)
    loaded, wanted = weights.read_state(folder), original[1].state_dict()
    assert set(loaded) == set(wanted)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in wanted.items())
    assert (folder / "MODEL_CARD.md").read_text().endswith("Ours.\n")


def test_saved_model_embeds_as_before(folder, original, tmp_path, samples):
    config = replace(read_config(folder), model=replace(read_config(folder).model, embed_dim=8))
    module = original[1]
    again = weights.save(tmp_path / "again", module, config, tokenizer=folder / "tokenizer.json")

    model = onepeace.load(again)

    assert isinstance(model.module, Toy)
    assert (model.modalities, model.embed_dim) == (("text", "image"), 8)
    processor = model.processors["text"]
    texts = ["a dog", "two cats on a mat"]
    with torch.no_grad():
        wanted = module({"text": processor.collate([processor.decode(text) for text in texts])})["text"]
    torch.testing.assert_close(model.encode_text(texts), wanted)
    assert model.encode_image([samples / "images" / "cat.jpg"]).shape == (1, 8)


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


def test_training_loop_trains_it(tmp_path):
    colours, rng = ("red", "green", "blue", "white"), np.random.default_rng(0)
    write_shard(tmp_path / "pairs.tar", {c: (square(COLOURS[c], rng), {"captions": [f"all {c}"]}) for c in colours})
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    recipe = read_recipe(tmp_path / "recipe.yaml", [f"data.root={tmp_path}", f"run.out={tmp_path / 'run'}"])
    folder = loop.train(recipe)

    assert read_config(folder).architecture == "toy"
    first, last = [line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert last < first
    assert onepeace.load(folder).encode_text(["all red"]).shape == (1, 8)
