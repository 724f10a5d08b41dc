"""The model once more: slow, plain loops, one item at a time, nothing imported from the package.

Weights go by the original's names, sizes are read off their shapes. An item alone has no padding, so there is nothing
to mask: this is what the package must give for any batch. With ``defects`` an item may be given padded as in the
original's batch, and padding then acts as it does there: convolutions see it, and the decoder attends to it.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Item(NamedTuple):
    """Tokens (K, D) of one modality; the place of each among all tokens of the item, CLS = 0; which are no padding."""

    key: str
    tokens: Tensor
    places: list[int]
    real: list[bool]


class Reference:
    """Weights; heads of encoder and decoder; strides and groups of the audio convolutions, which no shape tells."""

    def __init__(self, weights: dict[str, Tensor], heads: int, decoder_heads=0, strides=(), groups=1, defects=False):
        self.w, self.heads, self.decoder_heads = weights, heads, decoder_heads
        self.strides, self.groups, self.defects = strides, groups, defects

    # Adapters: raw item -> tokens without CLS -> Item.

    def stem(self, key: str, raw: Tensor) -> Tensor:
        """Ids (L,), pixels (3, H, W) or samples (N,) -> (L, D)."""
        name = f"encoder_wrapper.{key}_adapter"
        if key == "text":
            return torch.stack([self.w[f"{name}.embed_tokens.weight"][int(token)] for token in raw])
        if key == "image":
            x = raw.permute(1, 2, 0)
            for layer, norm in ((0, 1), (3, 4), (6, None)):
                x = self.patches(x, f"{name}.embed_images.{layer}")
                x = x if norm is None else gelu(self.norm(x, f"{name}.embed_images.{norm}.layer_norm"))
            return x.flatten(0, 1)
        x = raw[:, None]
        for layer, stride in enumerate(self.strides):
            conv = f"{name}.embed_audios.0.conv_layers.{layer}"
            x = gelu(self.norm(convolve(x, self.w[f"{conv}.0.weight"], None, stride, 1), f"{conv}.2.1"))
        return self.linear(self.norm(x, f"{name}.embed_audios.2"), f"{name}.embed_audios.3")

    def patches(self, x: Tensor, name: str) -> Tensor:
        """Convolution with stride = kernel of (H, W, C)."""
        weight, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        side = weight.shape[2]
        rows = []
        for top in range(0, x.shape[0], side):
            row = []
            for left in range(0, x.shape[1], side):
                patch = x[top : top + side, left : left + side].permute(2, 0, 1)
                row.append(weight.flatten(1) @ patch.flatten() + bias)
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def place(self, key: str, stem: Tensor, keep: list[int] | None = None, real: int | None = None) -> Item:
        """Add CLS and positions; ``keep`` the places in it (CLS = 0; -1 = padding), ``real`` tokens are no padding."""
        name = f"encoder_wrapper.{key}_adapter"
        places = list(range(len(stem) + 1)) if keep is None else list(keep)
        if keep is None:
            visible = [place <= (len(stem) if real is None else real) for place in places]
        else:
            visible = [place >= 0 for place in places]
        places = [place if place >= 0 else len(places) - 1 for place in places]  # the original's filler
        tokens = torch.cat([self.w[f"{name}.cls_embedding"][0], stem])[places]
        if key == "audio":
            x = tokens[1:]
            for layer in range(1, 99):
                conv = f"{name}.embed_positions.{layer}.0"
                if f"{conv}.weight" not in self.w:
                    break
                weight, bias = self.w[f"{conv}.weight"], self.w[f"{conv}.bias"]
                x = gelu(layer_norm(convolve(x, weight, bias, 1, self.groups, weight.shape[2] // 2)[: len(x)]))
            positions = torch.cat([self.w[f"{name}.cls_pos_embed"][0], x])
        else:
            table = "embed_positions.weight" if key == "text" else "pos_embed"
            positions = self.w[f"{name}.{table}"][places]
        return Item(key, tokens + positions, places, visible)

    # Blocks.

    def encode(self, items: list[Item], stack: str = "encoder_wrapper") -> dict[str, Tensor]:
        """One joint pass: features (K, D) of each item."""
        encoder = stack == "encoder_wrapper"
        heads = self.heads if encoder else self.decoder_heads
        real = torch.tensor([flag for item in items for flag in item.real])
        sizes = [len(item.places) for item in items]
        x = torch.cat([item.tokens for item in items]) * real[:, None]
        layer = 0
        while f"{stack}.fusion_model.layers.{layer}.self_attn.ln.weight" in self.w:
            name = f"{stack}.fusion_model.layers.{layer}"
            bias = torch.zeros(heads, len(x), len(x), dtype=x.dtype)
            if encoder:
                bias = torch.stack(
                    [torch.block_diag(*maps) for maps in zip(*(self.bias(i, layer) for i in items), strict=True)]
                )
            if encoder or not self.defects:
                bias[:, :, ~real] = -math.inf
            h = self.attention(self.norm(x, f"{name}.self_attn_layer_norm"), f"{name}.self_attn", heads, bias)
            x = x + self.w.get(f"{name}.gamma_1", 1.0) * h
            z, out = self.norm(x, f"{name}.final_layer_norm"), []
            for item, part in zip(items, z.split(sizes), strict=True):
                ffn = f"{name}.{item.key}_ffn"
                gated = gelu(self.linear(part, f"{ffn}.0.wi_0")) * self.linear(part, f"{ffn}.0.wi_1")
                out.append(self.linear(self.norm(gated, f"{ffn}.2"), f"{ffn}.3"))
            x = x + self.w.get(f"{name}.gamma_2", 1.0) * torch.cat(out)
            layer += 1
        parts = zip(items, x.split(sizes), strict=True)
        return {i.key: self.norm(part, f"{stack}.fusion_model.{i.key}_layer_norm") for i, part in parts}

    def bias(self, item: Item, layer: int) -> Tensor:
        """(H, K, K), from the table of this layer, or the one of all layers."""
        name = f"encoder_wrapper.{item.key}_adapter.rel_pos_table_list"
        table = self.w.get(f"{name}.{layer}.weight", self.w[f"{name}.0.weight"])
        index = grid_index if item.key == "image" else sequence_index
        rows = [torch.stack([table[index(len(table), i, j)] for j in item.places]) for i in item.places]
        return torch.stack(rows).permute(2, 0, 1)

    def attention(self, x: Tensor, name: str, heads: int, bias: Tensor) -> Tensor:
        size = x.shape[1] // heads
        q, k, v = (self.linear(x, f"{name}.{part}_proj") for part in "qkv")
        out = []
        for i in range(len(x)):
            row = []
            for head in range(heads):
                cut = slice(head * size, (head + 1) * size)
                logits = k[:, cut] @ (q[i, cut] * size**-0.5) + bias[head, i]
                weights = torch.exp(logits - logits.max())
                row.append(weights @ v[:, cut] / weights.sum())
            out.append(torch.cat(row))
        return self.linear(self.norm(torch.stack(out), f"{name}.ln"), f"{name}.out_proj")

    def decode(self, items: list[Item], features: dict[str, Tensor], lengths: dict[str, int], real: dict[str, int]):
        """Predictions (L, D) for all ``lengths`` places of each item, the first ``real`` of them no padding."""
        full = []
        for item in items:
            into = self.linear(features[item.key], f"decoder_{item.key}_embed")
            tokens = [self.w[f"{item.key}_mask_token"][0]] * lengths[item.key]
            for slot, place in enumerate(item.places):
                if item.real[slot]:
                    tokens[place] = into[slot]
            table = "pos_embed" if item.key == "image" else "embed_positions.weight"
            positions = self.w[f"decoder_wrapper.{item.key}_adapter.{table}"][: lengths[item.key]]
            places = list(range(lengths[item.key]))
            visible = [place < real[item.key] for place in places]
            full.append(Item(item.key, torch.stack(tokens) + positions, places, visible))
        decoded = self.encode(full, "decoder_wrapper")
        return {key: self.linear(x, f"{key}_mask_head") for key, x in decoded.items()}

    def embed(self, key: str, features: Tensor) -> Tensor:
        """Features of one modality -> unit vector (E,)."""
        x = self.linear(features[:1], f"{key}_proj")[0]
        return x / x.square().sum().sqrt()

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int, pad: int = 0) -> Tensor:
    """1-D convolution of (N, C) with a weight (O, C / groups, k)."""
    kernel, size, out = weight.shape[2], x.shape[1] // groups, weight.shape[0] // groups
    zeros = x.new_zeros(pad, x.shape[1])
    x = torch.cat([zeros, x, zeros])
    rows = []
    for start in range(0, len(x) - kernel + 1, stride):
        window = x[start : start + kernel].T
        parts = []
        for g in range(groups):
            block = weight[g * out : (g + 1) * out].flatten(1)
            parts.append(block @ window[g * size : (g + 1) * size].flatten())
        rows.append(torch.cat(parts) + (0.0 if bias is None else bias))
    return torch.stack(rows)


@cache
def bucket(distance: int, buckets: int) -> int:
    """Signed bucket of a distance: one each up to buckets // 2, then logarithmic (in float32, as released)."""
    middle = buckets // 2
    if abs(distance) <= middle:
        return distance
    steps = torch.log(torch.tensor(abs(distance)) / middle) / math.log(1023 / middle) * (middle - 1)
    return int(math.copysign(middle + torch.ceil(steps).item(), distance))


def with_cls(rows: int, i: int, j: int) -> int | None:
    """The three last rows of a table: CLS as query, as key, with itself."""
    if i == 0 or j == 0:
        return rows - 1 if i == j else rows - 3 if i == 0 else rows - 2
    return None


def sequence_index(rows: int, i: int, j: int) -> int:
    special, buckets = with_cls(rows, i, j), (rows - 2) // 2
    return bucket(i - j, buckets) + buckets - 1 if special is None else special


def grid_index(rows: int, i: int, j: int) -> int:
    special, wide = with_cls(rows, i, j), math.isqrt(rows - 3)
    side = (wide + 1) // 2
    down, right = (i - 1) // side - (j - 1) // side, (i - 1) % side - (j - 1) % side
    return (down + side - 1) * wide + right + side - 1 if special is None else special


# Losses.


def info_nce(a: list[Tensor], b: list[Tensor], scale: Tensor) -> Tensor:
    """Released code: the searched side gets no gradient."""
    total = torch.zeros(())
    for mine, theirs in ((a, b), (b, a)):
        for i, query in enumerate(mine):
            logits = torch.stack([scale * (query @ key.detach()) for key in theirs])
            total = total - logits.log_softmax(0)[i] / len(a) / 2
    return total


def denoising(students: list[Tensor], teachers: list[Tensor], masked: list[list[bool]]) -> Tensor:
    """Of items without padding, CLS first (and not used); scale 2.5, smoothing 0.1; the teacher gets no gradient."""
    keys = [key.detach() / key.detach().norm() for teacher in teachers for key in teacher[1:]]
    hidden = [flag for flags in masked for flag in flags[1:]]
    queries = [query for student in students for query in student[1:]]
    losses = []
    for i, query in enumerate(queries):
        if hidden[i]:
            logp = torch.stack([2.5 * (query / query.norm()) @ key for key in keys]).log_softmax(0)
            each = 0.1 / (len(keys) - 1)
            losses.append(-(1 - 0.1 - each) * logp[i] - each * logp.sum())
    return torch.stack(losses).mean()
