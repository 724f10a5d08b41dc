"""OFA's golden model and its inputs, and a small generator of the bundled model's vocabulary with random weights."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from support import golden_ofa
from support.samples import rows
from tokenizers import Tokenizer

from onepeace.config import Config
from onepeace.generative.config import OFAConfig
from onepeace.generative.generator import Generator
from onepeace.generative.model import OFA
from onepeace.generative.reader import PromptReader
from onepeace.generative.tasks import read_tasks
from onepeace.generative.vocabulary import Vocabulary
from onepeace.hub import weights
from onepeace.hub.resolve import BUNDLED
from onepeace.processors.tokenizer import read_tokenizer, train_bpe
from onepeace.special_ids import PAD

FOLDER = golden_ofa.FOLDER
PICTURES = {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
NUM_CODES = 16
NUM_BINS = 50


class GoldenInputs(NamedTuple):
    ids: torch.Tensor
    """Sources (3, 11), padded."""
    pixels: torch.Tensor
    """(3, 3, 64, 64)"""
    prompts: list[list[int]]
    """What the decoder begins with, by source."""


@cache
@torch.inference_mode(False)
def golden_model() -> OFA:
    """The model that made the golden numbers, for tests that leave it as it is."""
    return golden_ofa.golden_ofa()


@cache
def golden_json(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def golden_inputs() -> GoldenInputs:
    tensors = load_file(FOLDER / "generate.safetensors")
    prompts = []
    for prefix in tensors["prefix_tokens"]:
        prompts.append(prefix[prefix != PAD].tolist())
    return GoldenInputs(tensors["src_tokens"], tensors["patch_images"], prompts)


@cache
def small_tokenizer() -> Tokenizer:
    return read_tokenizer(BUNDLED / "tiny" / "tokenizer.json")


@cache
@torch.inference_mode(False)
def small_ofa() -> OFA:
    """A model of that vocabulary; its weights are random, and large enough that answers differ."""
    sizes = {
        **golden_ofa.SIZES,
        "num_words": small_tokenizer().get_vocab_size(),
        "num_codes": NUM_CODES,
        "num_bins": NUM_BINS,
        "num_positions": 96,
    }
    module = OFA(OFAConfig(**sizes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5)
            elif "norm" in name and name.startswith("decoder"):
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


def small_generator() -> Generator:
    """Its answers end early, and pictures are small."""
    vocabulary = Vocabulary.of(small_ofa().config, small_tokenizer())
    tasks = read_tasks(FOLDER.parents[1] / "support" / "small_tasks.yaml")
    return Generator(PromptReader(small_ofa(), PICTURES), vocabulary, tasks)


def save_small_ofa(folder: Path) -> Path:
    """The folder of that model, with the built-in tasks."""
    return _save(folder, small_ofa(), BUNDLED / "tiny" / "tokenizer.json")


def save_trainable_ofa(folder: Path) -> Path:
    """A model folder of a few hundred words, to train: fresh weights."""
    captions = [row["caption"] for row in rows()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.with_suffix(".tokenizer.json")
    train_bpe(captions, 400).save(str(tokenizer))

    sizes = {
        **golden_ofa.SIZES,
        "stem_depths": (1, 1, 1),
        "num_words": 400,
        "num_codes": NUM_CODES,
        "num_bins": NUM_BINS,
        "num_positions": 300,
    }
    torch.manual_seed(0)
    return _save(folder, OFA(OFAConfig(**sizes)), tokenizer)


def _save(folder: Path, module: OFA, tokenizer: Path) -> Path:
    config = Config(module.config, {"image": PICTURES}, architecture="ofa")  # type: ignore[arg-type]
    return weights.save(folder, module, config, tokenizer=tokenizer, card="for tests\n")
