"""OFA's golden model and its inputs, and a small generator of the bundled model's vocabulary with random weights."""

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from support import golden_ofa
from tokenizers import Tokenizer

from onepeace.config import Config
from onepeace.config.ofa import OFAConfig
from onepeace.generative.generator import Generator
from onepeace.generative.reader import PromptReader
from onepeace.generative.tasks import read_tasks
from onepeace.generative.vocabulary import Vocabulary
from onepeace.hub import weights
from onepeace.hub.resolve import BUNDLED
from onepeace.ofa.model import OFA
from onepeace.processors.tokenizer import read_tokenizer, train_bpe

FOLDER = golden_ofa.FOLDER
SAMPLES = FOLDER.parents[2] / "data" / "samples"
PICTURES = {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@cache
@torch.inference_mode(False)
def golden_model() -> OFA:
    """The model that made the golden numbers, for tests that leave it as it is."""
    return golden_ofa.golden_ofa()


@cache
def golden_json(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def golden_inputs() -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Sources (3, 11), pictures (3, 3, 64, 64), and the decoder prompt of each source."""
    found = load_file(FOLDER / "generate.safetensors")
    prompts = [[one for one in row if one != 1] for row in found["prefix_tokens"].tolist()]
    return found["src_tokens"], found["patch_images"], prompts


@cache
def small_tokenizer() -> Tokenizer:
    return read_tokenizer(BUNDLED / "tiny" / "tokenizer.json")


@cache
@torch.inference_mode(False)
def small_ofa() -> OFA:
    """A model of that vocabulary with 16 codes and 50 bins; its weights are large enough that answers differ."""
    sizes = {"num_words": small_tokenizer().get_vocab_size(), "num_codes": 16, "num_bins": 50, "num_positions": 96}
    module = OFA(OFAConfig(**{**golden_ofa.SIZES, **sizes}))
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
    module, tasks = small_ofa(), read_tasks(FOLDER.parents[1] / "support" / "small_tasks.yaml")
    config = module.config
    vocabulary = Vocabulary(small_tokenizer(), config.num_words, mask=True, num_codes=config.num_codes, num_bins=50)
    return Generator(PromptReader(module, PICTURES), vocabulary, tasks)


def save_small_ofa(folder: Path) -> Path:
    """The folder of that model, with the built-in tasks."""
    config = Config(small_ofa().config, {"image": PICTURES}, architecture="ofa")  # type: ignore[arg-type]
    tokenizer = BUNDLED / "tiny" / "tokenizer.json"
    return weights.save(folder, small_ofa(), config, tokenizer=tokenizer, card="random weights, for tests\n")


def save_trainable_ofa(folder: Path) -> Path:
    """A model folder of a few hundred words, to train: fresh weights."""
    captions = (SAMPLES / "captions.csv").read_text(encoding="utf-8").splitlines()
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.with_suffix(".tokenizer.json")
    train_bpe(captions, 400).save(str(tokenizer))
    sizes = {"num_words": 400, "num_codes": 16, "num_bins": 50, "num_positions": 300}
    torch.manual_seed(0)
    module = OFA(OFAConfig(**{**golden_ofa.SIZES, "stem_depths": (1, 1, 1), **sizes}))
    config = Config(module.config, {"image": PICTURES}, architecture="ofa")  # type: ignore[arg-type]
    return weights.save(folder, module, config, tokenizer=tokenizer, card="fresh weights, for tests\n")
