"""A very small model folder with random weights, for tests of everything around the model."""

from pathlib import Path

import torch
from support.samples import rows

from onepeace.config import Config, ModelConfig
from onepeace.hub import weights
from onepeace.model import OnePeace
from onepeace.processors.tokenizer import train_bpe

ADAPTERS = {
    "text": {"vocab_size": 400, "num_positions": 40, "num_buckets": 8},
    "image": {"patch_size": 16, "grid": 2, "bias_grid": 2},
    "audio": {"stem": "mel", "num_mels": 16, "width": 4, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4},
}
MEDIA = {
    "text": {"max_tokens": 16},
    "image": {"size": 32},
    "audio": {"max_seconds": 2.0, "min_seconds": 0.5},
}


SIZES = {
    "dim": 32,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "ffn_dim": 48,
    "layer_scale": 0.5,
}


def save_random_model(
    folder: Path, modalities: tuple[str, ...] = ("text", "image", "audio"), **changes: object
) -> Path:
    """Writes a model of width 32 whose parameters are all random, none of them at a neutral value."""
    options = {
        **SIZES,
        "adapters": {key: ADAPTERS[key] for key in modalities},
        "projections": modalities,
        **changes,
    }
    config = Config(ModelConfig(**options), {key: MEDIA[key] for key in modalities})
    tokenizer = _write_tokenizer(folder) if "text" in modalities else None
    return weights.save(folder, _random_module(config), config, tokenizer=tokenizer, card="random weights\n")


def _random_module(config: Config) -> OnePeace:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = OnePeace(config.model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 0:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def _write_tokenizer(folder: Path) -> Path:
    """Beside the folder: of the captions of the samples."""
    captions = [row["caption"] for row in rows()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.tokenizer.json"
    train_bpe(captions, 400).save(str(path))
    return path
