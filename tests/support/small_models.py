"""Small models whose every weight is random, and inputs of many lengths for them."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.config import MaskedDecoderConfig, ModelConfig
from onepeace.data.batch import Batch, make_mask
from onepeace.model import OnePeace

WAVE = {"stem": "wave", "convs": [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 2, 2]], "num_buckets": 6}
CONVS = {"pos_depth": 3, "pos_kernel": 5, "pos_groups": 4}
VARIANTS = {
    "text": ("text", {"vocab_size": 90, "num_positions": 40, "num_buckets": 4}),
    "text with mean CLS": ("text", {"vocab_size": 90, "num_positions": 40, "num_buckets": 4, "mean_cls": True}),
    "audio with pooled CLS": ("audio", {**WAVE, **CONVS, "mean_cls": True, "max_cls": True}),
    "image": ("image", {"grid": 3, "bias_grid": 3}),
    "image with conv stem": ("image", {"grid": 3, "bias_grid": 3, "patch_size": 8, "stem": "conv"}),
    "audio": ("audio", {**WAVE, **CONVS}),
    "audio with even kernel": ("audio", {**WAVE, **CONVS, "pos_kernel": 4}),
    "audio with mel stem": ("audio", {"stem": "mel", "num_mels": 16, "width": 4, "num_buckets": 6, **CONVS}),
    "video": ("video", {"grid": 3, "bias_grid": 3, "frames": 2}),
}
ALL = ("text", "image", "audio")
LENGTHS = {"text": [3, 12, 1, 30, 7, 12], "audio": [1700, 3300, 500, 6000, 2111, 2100]}


DECODER = MaskedDecoderConfig(16, 2, 2, 24)


def small_model(*variants: str, decoder: MaskedDecoderConfig | None = DECODER, **config) -> OnePeace:
    """A model of width 32 and two blocks of some VARIANTS, in eval mode."""
    adapters = dict(VARIANTS[variant] for variant in variants)
    fields = {"dim": 32, "embed_dim": 24, "depth": 2, "num_heads": 4, "ffn_dim": 48, "projections": tuple(adapters)}
    fields |= {"adapters": adapters, "decoder": decoder, **config}
    model = OnePeace(ModelConfig(**fields))
    return randomise(model).eval()


def network_of_pictures(heads) -> OnePeace:
    """A model of pictures of 64 pixels with task heads, as a training begins with it."""
    config = ModelConfig(
        dim=32,
        embed_dim=16,
        depth=2,
        num_heads=4,
        ffn_dim=48,
        layer_scale=0.1,
        adapters={"image": {"patch_size": 16, "grid": 4, "bias_grid": 4, "stem": "conv"}},
        projections=("image",),
        heads=heads,
    )
    return OnePeace(config)


@torch.no_grad()
def randomise(model: OnePeace) -> OnePeace:
    """Give every parameter numbers of ordinary size: a missing or misplaced term then shows."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 0:
            continue
        if parameter.ndim >= 2 and not name.endswith(("cls_token", "cls_pos")) and "embed" not in name:
            parameter.copy_(noise * (1.0 if "bias_tables" in name else parameter[0].numel() ** -0.5))
        else:
            gain = ".norm" in name and name.endswith("weight")
            parameter.copy_(noise * 0.3 + (1.0 if gain else 0.0))
    return model


def item(key: str, index: int) -> dict[str, Tensor]:
    """A batch of one; its length varies with ``index``."""
    generator = torch.Generator().manual_seed(index)
    if key == "text":
        ids = torch.randint(4, 90, (1, LENGTHS[key][index]), generator=generator)
        return {"ids": torch.cat([ids, torch.tensor([[2]])], dim=1)}
    if key == "audio":
        return {"waveform": torch.randn(1, LENGTHS[key][index], generator=generator)}
    frames = (2,) if key == "video" else ()
    return {"pixels": torch.randn(1, *frames, 3, 48, 48, generator=generator)}


def together(items: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Items of one modality as a batch, padded to the longest."""
    items = list(items)
    batch = {}
    for name in items[0]:
        tensors = [one[name] for one in items]
        if name in ("ids", "waveform"):
            lengths = [tensor.shape[1] for tensor in tensors]
            fill = 1 if name == "ids" else 0
            tensors = [F.pad(tensor, (0, max(lengths) - tensor.shape[1]), value=fill) for tensor in tensors]
            if len(set(lengths)) > 1:
                batch["lengths"] = torch.tensor(lengths)
        batch[name] = torch.cat(tensors)
    return batch


def batch_of(model: OnePeace, indices: Iterable[int]) -> dict[str, dict[str, Tensor]]:
    """A batch of these items in every modality of the model."""
    indices = list(indices)
    return {key: together(item(key, index) for index in indices) for key in model.adapters}


def every_other(model: OnePeace, batch: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """By modality (B, K): CLS and every other token of each item."""
    keep = {}
    for key, adapter in model.adapters.items():
        rows = [[0, *range(1 + i % 2, int(n) + 1, 2)] for i, n in enumerate(adapter.token_lengths(batch[key]))]
        longest = max(map(len, rows))
        keep[key] = torch.tensor([row + [-1] * (longest - len(row)) for row in rows])
    return keep


def training_batch(model: OnePeace, inputs: dict[str, dict[str, Tensor]]) -> Batch:
    """These inputs, with every other token hidden in every pass."""
    masks = {}
    for key, kept in every_other(model, inputs).items():
        lengths = model.adapters[key].token_lengths(inputs[key])
        positions = torch.arange(1, int(lengths.max()) + 1)
        hidden = ~(positions == kept[:, :, None]).any(1)
        masks[key] = dict.fromkeys(("unimodal", "joint"), make_mask(hidden, lengths.numpy()))
    return Batch(inputs, masks=masks)
