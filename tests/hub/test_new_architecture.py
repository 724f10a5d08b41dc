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
from onepeace.index.loading import COMPILE_FROM, Settings, load_model
from onepeace.layers.features import Features
from onepeace.model import Encoder, StemOutput
from onepeace.processors import TextProcessor, TextReader
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


class Awkward(Toy):
    """A module as others write them: with a table that is computed, a counter, and a number read from a tensor."""

    def __init__(self, config):
        super().__init__(config)
        steps = torch.linspace(1, 2, config.width)
        self.last_step = steps[-1].item()  # cannot be read on the meta device
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("places", torch.arange(config.width).flip(0))

    def embed(self, key, features):
        rows = features.cls[:, self.places] * self.steps * self.last_step
        return F.normalize(self.heads[key](rows), dim=-1)


class Shout(TextReader):
    """Ids of the letters, whatever the tokenizer of other models."""

    def __init__(self, seed):
        self.seed = seed

    def decode(self, item):
        return torch.tensor([4 + self.seed + ord(letter) % 64 for letter in self.load(item).upper()])

    def collate(self, samples):
        return {"ids": torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=1)}


@pytest.fixture
def awkward(tmp_path, monkeypatch):
    """The folder of a model with an awkward module and a processor of its own, and the module."""
    shout = {"text": lambda settings, folder: Shout(**settings)}
    monkeypatch.setitem(ARCHITECTURES, "toy", replace(TOY, module=Awkward, processors=shout))
    module = Awkward(ToyConfig(**SMALL)).eval()
    processors = {"text": {"seed": 2}, "image": {"size": SIDE}}
    return weights.save(tmp_path / "awkward", module, Config(module.config, processors, "toy")), module


def test_computed_buffers_and_whole_numbers_are_loaded(awkward):
    folder, module = awkward
    model = onepeace.load(folder, device="cpu", dtype="bfloat16")
    assert torch.equal(model.module.places, module.places)  # not as floats
    assert torch.equal(model.module.steps, module.steps)
    model = onepeace.load(folder, device="cpu")
    ids = torch.tensor([[4 + 2 + ord(letter) % 64 for letter in "A DOG"]])
    torch.testing.assert_close(model.encode_text(["a dog"]), module({"text": {"ids": ids}})["text"])


def test_processors_are_those_of_the_model(awkward, tiny):
    model = onepeace.load(awkward[0], device="cpu")
    assert isinstance(model.processors["text"], Shout)
    assert isinstance(onepeace.load("tiny", device="cpu", modalities=["text"]).processors["text"], TextProcessor)


def test_an_index_of_many_files_asks_for_no_width(awkward, monkeypatch):
    monkeypatch.setattr("onepeace.compiling.compile_blocks", None)
    assert load_model(awkward[0], Settings(device="cpu"), num_new=COMPILE_FROM).modalities == ("text", "image")
