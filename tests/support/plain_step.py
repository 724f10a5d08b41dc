"""A step of pretraining as one writes it first, with the weights of our model: the reference for losses and gradients.

Each pass runs its own stem, also where another has run it before; every item is as long as the batch's longest; the
bias of a pass is a matrix per item, (B, H, L, L), from which masked tokens are taken out; losses have all their logits
at once; attention is a product, a softmax in float32 and a product. So the released code computes them. What that code
gets wrong (padding that is attended to, gradients that the searched side does not get) is as in our model: both steps
have the same losses and the same gradients. Released stems, one bias table, no drop path.

`python tests/support/plain_step.py --stage 2 --batch 4` times it beside our step, as `onepeace bench train` does with
its own baseline.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from onepeace.bench.loss import SCALE, SMOOTHING, full_contrastive, full_denoising
from onepeace.bench.train import Settings, bench_train, table
from onepeace.config import SIZES, build
from onepeace.data.batch import Batch
from onepeace.layers.position import grid_buckets, sequence_buckets
from onepeace.model import OnePeace
from onepeace.model.adapters.text import PAD_ID
from onepeace.train.recipe import Recipe

DENOISING = {"scale": SCALE, "label_smoothing": SMOOTHING}
STAGES: dict[int, dict[str, Any]] = {
    1: {
        "data": {"train": [{"shards": "none.tar", "pair": ["image", "text"]}]},
        "mask": {"text": {"unimodal": 0.15, "joint": 0.4, "unit": "word"},
                 "image": {"unimodal": 0.75, "joint": 0.6875, "unit": "patch"}},
        "objective": {"contrastive": {"weight": 1.0}, "denoising/text": {"weight": 0.5, **DENOISING},
                      "denoising/image": {"weight": 1.0, **DENOISING},
                      "denoising/text+image": {"weight": 0.5, **DENOISING}},
    },
    2: {
        "data": {"train": [{"shards": "none.tar", "pair": ["audio", "text"]}]},
        "mask": {"text": {"joint": 0.4, "unit": "word"},
                 "audio": {"unimodal": 0.55, "joint": 0.45, "unit": "span"}},
        "freeze": {"except": ["adapters.audio.*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*",
                              "logit_scale", "decoder.*"]},
        "objective": {"contrastive": {"weight": 1.0},
                      "denoising/audio": {"weight": 1.0, "teacher": "joint", **DENOISING},
                      "denoising/text+audio": {"weight": 0.5, **DENOISING}},
    },
}  # fmt: skip
"""As in the recipes base_image_text.yaml and base_audio_text.yaml."""
SMALL_STEMS: dict[str, Any] = {
    "image": {"stem": "hmlp"},
    "audio": {"stem": "wave", "convs": [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]},
}
"""The released stems, where the named size has others or would take longer in them than in its blocks."""


class Tokens(NamedTuple):
    """Of one modality, with positions: (B, L, D), (B, L) True where it is no padding, (B, H, L, L)."""

    x: Tensor
    real: Tensor
    bias: Tensor


class PlainStep:
    """
    Args:
        model: whose weights to use.
        batch: as `Objective` takes it.
        checkpointed: keep of each block of the encoder its input only.
    """

    def __init__(self, model: OnePeace, batch: Batch, checkpointed: bool = False):
        self.model, self.batch, self.checkpointed = model, batch, checkpointed

    def losses(self, other: str) -> dict[str, Tensor]:
        """Losses by the names of the objective, and their weighted sum as "loss"; `other` as the pair of text."""
        return self.image_text() if other == "image" else self.audio_text()

    def image_text(self) -> dict[str, Tensor]:
        """Stage 1: six passes."""
        text = self.encode(["text"])["text"]
        image = self.encode(["image"])["image"]
        with torch.no_grad():
            teachers = self.encode(["text", "image"])
        found = {"contrastive/text+image": self.contrastive(self.embed("text", text), self.embed("image", image))}
        for key, teacher in (("text", text), ("image", image)):
            found[f"denoising/{key}"] = self.denoising(key, "unimodal", self.predict([key], "unimodal")[key], teacher)
        students = self.predict(["text", "image"], "joint")
        for key in students:
            found[f"denoising/text+image:{key}"] = self.denoising(key, "joint", students[key], teachers[key])
        weights = {"denoising/text": 0.5, "denoising/text+image:text": 0.5, "denoising/text+image:image": 0.5}
        return {"loss": sum_of(found, weights), **found}

    def audio_text(self) -> dict[str, Tensor]:
        """Stage 2: five passes; text is frozen, and sound alone is compared with what is heard beside the text."""
        with torch.no_grad():
            text = self.encode(["text"])["text"]
        audio = self.encode(["audio"])["audio"]
        with torch.no_grad():
            teachers = self.encode(["text", "audio"])
        found = {"contrastive/text+audio": self.contrastive(self.embed("text", text), self.embed("audio", audio))}
        student = self.predict(["audio"], "unimodal")["audio"]
        found["denoising/audio"] = self.denoising("audio", "unimodal", student, teachers["audio"])
        students = self.predict(["text", "audio"], "joint")
        for key in students:
            found[f"denoising/text+audio:{key}"] = self.denoising(key, "joint", students[key], teachers[key])
        return {
            "loss": sum_of(found, {"denoising/text+audio:text": 0.5, "denoising/text+audio:audio": 0.5}),
            **found,
        }

    def encode(self, keys: Sequence[str], keep: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One pass: features (B, L_m, D)."""
        placed = {key: self.embed_positions(key, None if keep is None else keep[key]) for key in keys}
        return self.stack(self.model, placed)

    def embed_positions(self, key: str, keep: Tensor | None) -> Tokens:
        """Stem, CLS, positions, bias; what is masked taken out."""
        adapter: Any = self.model.adapters[key]
        stem, real, grid = STEMS[key](adapter, self.batch.inputs[key])
        count = len(stem)
        real = torch.cat([real.new_ones(count, 1), real], dim=1)
        if key == "image":
            buckets = grid_buckets(*grid, stem.device)
        else:
            buckets = sequence_buckets(stem.shape[1] + 1, adapter.num_buckets, stem.device)
        bias = F.embedding(buckets[0], adapter.bias_tables[0]).permute(2, 0, 1).repeat(count, 1, 1, 1)
        x = torch.cat([adapter.cls_token.to(stem.dtype).expand(count, -1, -1), stem], dim=1)
        if key != "audio":
            x = x + adapter.pos_embed.weight[: x.shape[1]]
        if keep is not None:
            rows, heads = keep.clamp_min(0), bias.shape[1]
            x = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[2]))
            bias = bias.gather(2, rows[:, None, :, None].expand(-1, heads, -1, bias.shape[3]))
            bias = bias.gather(3, rows[:, None, None, :].expand(-1, heads, rows.shape[1], -1))
            real = keep >= 0
        if key == "audio":  # positions from the neighbours that are left
            x = x + sound_positions(adapter, x[:, 1:], real[:, 1:])
        return Tokens(x * real[:, :, None], real, bias)

    def stack(self, part: Any, placed: Mapping[str, Tokens]) -> dict[str, Tensor]:
        """Blocks and norms of the encoder, or of the decoder, over all tokens together."""
        x = torch.cat([tokens.x for tokens in placed.values()], dim=1)
        real = torch.cat([tokens.real for tokens in placed.values()], dim=1)
        sizes = {key: tokens.x.shape[1] for key, tokens in placed.items()}
        bias = block_diagonal([tokens.bias for tokens in placed.values()])
        bias = bias.masked_fill(~real[:, None, None, :], -torch.inf)
        for module in part.blocks:
            if self.checkpointed and part is self.model:
                x = checkpoint(block, module, x, sizes, bias, use_reentrant=False)
            else:
                x = block(module, x, sizes, bias)
        parts = x.split(list(sizes.values()), dim=1)
        return {key: layer_norm(part.norms[key], x) for key, x in zip(sizes, parts, strict=True)}

    def embed(self, key: str, features: Tensor) -> Tensor:
        """(B, E) unit vectors."""
        return F.normalize(linear(self.model.heads[key], features[:, 0]).float(), dim=-1)

    def predict(self, keys: Sequence[str], name: str) -> dict[str, Tensor]:
        """Predictions (B, L_m, D) of a pass that masks tokens."""
        decoder: Any = self.model.decoder
        keep = {key: self.batch.masks[key][name][0] for key in keys}
        visible = self.encode(keys, keep)
        full = {}
        for key, x in visible.items():
            x = linear(decoder.into[key], x)
            real = self.real(key)
            count, length = real.shape
            slots = keep[key].masked_fill(keep[key] < 0, length)[:, :, None].expand(-1, -1, x.shape[2])
            tokens = decoder.mask_token[key].to(x.dtype).expand(count, length + 1, -1)
            tokens = tokens.scatter(1, slots, x)[:, :length]
            tokens = tokens + decoder.pos_embed[key].weight[:length]
            full[key] = Tokens(tokens, real, tokens.new_zeros(count, 1, length, length))
        return {key: linear(decoder.out[key], x) for key, x in self.stack(decoder, full).items()}

    def real(self, key: str) -> Tensor:
        """(B, L) True for CLS and what is no padding."""
        counts = self.model.adapters[key].token_lengths(self.batch.inputs[key])
        counts = counts.to(self.batch.masks[key]["joint"].keep.device)
        return torch.arange(int(counts.max()) + 1, device=counts.device) <= counts[:, None]

    def contrastive(self, a: Tensor, b: Tensor) -> Tensor:
        scale = self.model.logit_scale
        assert scale is not None
        return full_contrastive(a, b, scale.exp())

    def denoising(self, key: str, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        real = self.real(key)[:, 1:]
        masked = self.batch.masks[key][name][1][:, 1:]
        keys, targets = teacher[:, 1:].detach()[real], masked[real].nonzero()[:, 0]
        queries = F.normalize(student[:, 1:][masked & real].float(), dim=-1)
        return full_denoising(queries, F.normalize(keys.float(), dim=-1), targets, SCALE, SMOOTHING)


def sum_of(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()


def linear(module: Any, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias)


def layer_norm(module: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias)


def block(module: Any, x: Tensor, sizes: Mapping[str, int], bias: Tensor) -> Tensor:
    """One block: attention of all tokens, then the FFN of each modality."""
    batch, length, dim = x.shape
    attn = module.attn
    h = layer_norm(module.norm1, x)
    q, k, v = linear(attn.q, h) * attn.scale, linear(attn.k, h), linear(attn.v, h)
    q, k, v = (t.view(batch, length, attn.num_heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) + bias).softmax(dim=-1, dtype=torch.float32)
    out = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, length, dim)
    x = x + gain(module.ls1, linear(attn.proj, layer_norm(attn.norm, out)))
    parts = []
    for key, h in zip(sizes, layer_norm(module.norm2, x).split(list(sizes.values()), dim=1), strict=True):
        ffn = module.ffn[key]
        h = F.gelu(linear(ffn.gate, h)) * linear(ffn.up, h)
        parts.append(linear(ffn.down, layer_norm(ffn.norm, h)))
    return x + gain(module.ls2, torch.cat(parts, dim=1))


def gain(module: Any, x: Tensor) -> Tensor:
    return x * module.gain if hasattr(module, "gain") else x


def block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    length = sum(part.shape[2] for part in parts)
    bias = parts[0].new_zeros(*parts[0].shape[:2], length, length)
    start = 0
    for part in parts:
        stop = start + part.shape[2]
        bias[:, :, start:stop, start:stop] = part
        start = stop
    return bias


def text_stem(adapter: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    ids = inputs["ids"]
    return F.embedding(ids, adapter.token_embed.weight, PAD_ID), ids != PAD_ID, (ids.shape[1],)


def image_stem(adapter: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    x = inputs["pixels"]
    for conv, norm in zip(adapter.stem.convs, adapter.stem.norms, strict=False):
        x = F.conv2d(x, conv.weight, conv.bias, conv.stride)
        x = F.gelu(layer_norm(norm, x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    last = adapter.stem.convs[-1]
    x = F.conv2d(x, last.weight, last.bias, last.stride)
    tokens = x.flatten(2).transpose(1, 2)
    return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device), (x.shape[2], x.shape[3])


def audio_stem(adapter: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    stem = adapter.stem
    x = inputs["waveform"][:, None]
    for conv, norm in zip(stem.convs, stem.norms, strict=True):
        x = F.conv1d(x, conv.weight, None, conv.stride)
        x = F.gelu(layer_norm(norm, x.transpose(1, 2))).transpose(1, 2)
    x = linear(stem.proj, layer_norm(stem.norm, x.transpose(1, 2)))
    real = torch.arange(x.shape[1], device=x.device) < stem.token_lengths(inputs["lengths"])[:, None]
    return x, real, (x.shape[1],)


STEMS = {"text": text_stem, "image": image_stem, "audio": audio_stem}


def sound_positions(adapter: Any, x: Tensor, real: Tensor) -> Tensor:
    """(B, L + 1, D) from frames (B, L, D)."""
    for conv in adapter.pos_conv:
        x = (x * real[:, :, None]).transpose(1, 2)
        x = F.conv1d(x, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups).transpose(1, 2)
        x = F.gelu(F.layer_norm(x[:, : real.shape[1]], x.shape[-1:]))
    return torch.cat([adapter.cls_pos.to(x.dtype).expand(len(x), -1, -1), x], dim=1)


def make_recipe(stage: int, size: str, batch: int, fields: Mapping[str, Any] | None = None, **run: Any) -> Recipe:
    """The stage's recipe, without drop path, which the two ways would draw differently."""
    other = STAGES[stage]["data"]["train"][0]["pair"][0]
    small = size == "tiny"
    grid = SIZES[size]["adapters"]["image"]["grid"]
    content = {
        "model": {"size": size, "modalities": ["text", other], "drop_path": 0.0,
                  "adapters": {other: SMALL_STEMS[other]} if small else {},
                  "decoder": {"options": {"image": {"grid": grid}} if other == "image" else {}}, **(fields or {})},
        "processors": {"text": {"max_tokens": 70}, "image": {"size": 16 * grid}, "audio": {"max_seconds": 15}},
        "schedule": {"steps": 1},
        "run": {"out": "none", "batch_size": batch, **run},
        **STAGES[stage],
    }  # fmt: skip
    return build(Recipe, content, "recipe")


def make_plain_step(model: OnePeace, batch: Batch, checkpointed: bool) -> Callable[[], Mapping[str, Tensor]]:
    """The baseline as `bench_train` wants it."""
    step = PlainStep(model, batch, checkpointed)
    return lambda: step.losses(next(key for key in batch.inputs if key != "text"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", default="base")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--checkpoint", action="store_true")
    args = parser.parse_args()
    recipe = make_recipe(args.stage, args.size, args.batch, checkpoint_activations=args.checkpoint)
    settings = Settings(recipe, None, [torch.bfloat16], torch.device("cpu"), args.seconds)
    print(table(bench_train(settings, lambda text: print(text, file=sys.stderr), make_plain_step)))


if __name__ == "__main__":
    main()
