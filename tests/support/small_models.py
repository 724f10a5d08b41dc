"""Small models whose every weight is random, and inputs of many lengths for them."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import MaskedDecoderConfig, ModelConfig
from onepeace.data.batch import Batch, make_mask
from onepeace.model import OnePeace

Inputs = dict[str, Tensor]
"""The tensors of one modality."""

WAVE = {
    "stem": "wave",
    "convs": [[16, 10, 5], [16, 3, 2], [16, 3, 2], [16, 2, 2]],
    "num_buckets": 6,
}
MEL = {"stem": "mel", "num_mels": 16, "width": 4, "num_buckets": 6}
CONVS = {"pos_depth": 3, "pos_kernel": 5, "pos_groups": 4}
TEXT = {"vocab_size": 90, "num_positions": 40, "num_buckets": 4}
IMAGE = {"grid": 3, "bias_grid": 3}
VARIANTS = {
    "text": ("text", TEXT),
    "text with mean CLS": ("text", {**TEXT, "mean_cls": True}),
    "audio with pooled CLS": ("audio", {**WAVE, **CONVS, "mean_cls": True, "max_cls": True}),
    "image": ("image", IMAGE),
    "image with conv stem": ("image", {**IMAGE, "patch_size": 8, "stem": "conv"}),
    "audio": ("audio", {**WAVE, **CONVS}),
    "audio with even kernel": ("audio", {**WAVE, **CONVS, "pos_kernel": 4}),
    "audio with mel stem": ("audio", {**MEL, **CONVS}),
    "video": ("video", {**IMAGE, "frames": 2}),
}
ALL = ("text", "image", "audio")
LENGTHS = {
    "text": [3, 12, 1, 30, 7, 12],
    "audio": [1700, 3300, 500, 6000, 2111, 2100],
}


DECODER = MaskedDecoderConfig(16, 2, 2, 24)


def small_model(*variants: str, decoder: MaskedDecoderConfig | None = DECODER, **config) -> OnePeace:
    """A model of width 32 and two blocks of some VARIANTS, in eval mode."""
    adapters = dict(VARIANTS[variant] for variant in variants)
    fields = {
        "dim": 32,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 4,
        "ffn_dim": 48,
        "adapters": adapters,
        "projections": tuple(adapters),
        "decoder": decoder,
        **config,
    }
    return randomise(OnePeace(ModelConfig(**fields))).eval()


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
        is_vector = name.endswith(("cls_token", "cls_pos")) or "embed" in name or parameter.ndim == 1
        if "bias_tables" in name and not is_vector:
            parameter.copy_(noise)
        elif not is_vector:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        elif ".norm" in name and name.endswith("weight"):
            parameter.copy_(1.0 + noise * 0.3)
        else:
            parameter.copy_(noise * 0.3)
    return model


def assert_gradients_everywhere(model: torch.nn.Module) -> None:
    """Every parameter has a finite gradient that is not zero."""
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert bool(parameter.grad.any()), name


def item(key: str, index: int) -> Inputs:
    """A batch of one; its length varies with ``index``."""
    generator = torch.Generator().manual_seed(index)
    if key == "text":
        ids = torch.randint(4, 90, (1, LENGTHS[key][index]), generator=generator)
        return {"ids": F.pad(ids, (0, 1), value=2)}
    if key == "audio":
        return {"waveform": torch.randn(1, LENGTHS[key][index], generator=generator)}
    frames = (2,) if key == "video" else ()
    return {"pixels": torch.randn(1, *frames, 3, 48, 48, generator=generator)}


FILL = {"ids": 1, "waveform": 0}


def pad_to(length: int, tensor: Tensor, fill: int) -> Tensor:
    return F.pad(tensor, (0, length - tensor.shape[1]), value=fill)


def together(items: Iterable[Inputs]) -> Inputs:
    """Items of one modality as a batch, padded to the longest."""
    items = list(items)
    batch = {}
    for name in items[0]:
        tensors = [single[name] for single in items]
        if name in FILL:
            lengths = [tensor.shape[1] for tensor in tensors]
            longest = max(lengths)
            tensors = [pad_to(longest, tensor, FILL[name]) for tensor in tensors]
            if min(lengths) < longest:
                batch["lengths"] = torch.tensor(lengths)
        batch[name] = torch.cat(tensors)
    return batch


def batch_of(model: OnePeace, indices: Iterable[int]) -> dict[str, Inputs]:
    """By modality: the items of these indices together."""
    indices = list(indices)
    return {key: together(item(key, index) for index in indices) for key in model.adapters}


def every_other(model: OnePeace, batch: dict[str, Inputs]) -> dict[str, Tensor]:
    """By modality (B, K): CLS and every other token of each item."""
    keep = {}
    for key, adapter in model.adapters.items():
        rows = []
        for index, length in enumerate(adapter.token_lengths(batch[key]).tolist()):
            first = 1 + index % 2
            rows.append(torch.tensor([0, *range(first, length + 1, 2)]))
        keep[key] = pad_sequence(rows, batch_first=True, padding_value=-1)
    return keep


def training_batch(model: OnePeace, inputs: dict[str, Inputs]) -> Batch:
    """These inputs, with every other token hidden in every pass."""
    masks = {}
    for key, kept in every_other(model, inputs).items():
        lengths = model.adapters[key].token_lengths(inputs[key])
        positions = torch.arange(1, int(lengths.max()) + 1)
        hidden = ~(positions == kept[:, :, None]).any(1)
        mask = make_mask(hidden, lengths.numpy())
        masks[key] = {"unimodal": mask, "joint": mask}
    return Batch(inputs, masks=masks)
