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
    """Tokens of one modality."""

    key: str
    tokens: Tensor
    """(K, D)"""
    positions: list[int]
    """The place of each token among all tokens of the item, CLS = 0."""
    real: list[bool]
    """Which tokens are no padding."""


class Reference:
    """Weights; heads of encoder and decoder; strides and groups of the audio convolutions, which no shape tells."""

    def __init__(self, weights: dict[str, Tensor], heads: int, decoder_heads=0, strides=(), groups=1, defects=False):
        self.w = weights
        self.heads = heads
        self.decoder_heads = decoder_heads
        self.strides = strides
        self.groups = groups
        self.defects = defects

    # Adapters: raw item -> tokens without CLS -> Item.

    def stem(self, key: str, raw: Tensor) -> Tensor:
        """Ids (L,), pixels (3, H, W) or samples (N,) -> (L, D)."""
        if key == "text":
            table = self.w["encoder_wrapper.text_adapter.embed_tokens.weight"]
            return torch.stack([table[int(token)] for token in raw])
        if key == "image":
            return self._image_stem(raw)
        return self._audio_stem(raw)

    def _image_stem(self, pixels: Tensor) -> Tensor:
        name = "encoder_wrapper.image_adapter.embed_images"
        x = pixels.permute(1, 2, 0)
        x = self._patches(x, f"{name}.0")
        x = gelu(self._norm(x, f"{name}.1.layer_norm"))
        x = self._patches(x, f"{name}.3")
        x = gelu(self._norm(x, f"{name}.4.layer_norm"))
        x = self._patches(x, f"{name}.6")
        return x.flatten(0, 1)

    def _audio_stem(self, samples: Tensor) -> Tensor:
        name = "encoder_wrapper.audio_adapter.embed_audios"
        x = samples[:, None]
        for layer, stride in enumerate(self.strides):
            layer_name = f"{name}.0.conv_layers.{layer}"
            x = convolve(x, self.w[f"{layer_name}.0.weight"], stride=stride)
            x = gelu(self._norm(x, f"{layer_name}.2.1"))
        return self._linear(self._norm(x, f"{name}.2"), f"{name}.3")

    def _patches(self, x: Tensor, name: str) -> Tensor:
        """Convolution with stride = kernel of (H, W, C)."""
        weight = self.w[f"{name}.weight"]
        side = weight.shape[2]
        rows = []
        for top in range(0, x.shape[0], side):
            row = []
            for left in range(0, x.shape[1], side):
                patch = x[top : top + side, left : left + side].permute(2, 0, 1)
                row.append(weight.flatten(1) @ patch.flatten() + self.w[f"{name}.bias"])
            rows.append(torch.stack(row))
        return torch.stack(rows)

    def place(self, key: str, stem: Tensor, keep: list[int] | None = None, real: int | None = None) -> Item:
        """Add CLS and positions.

        ``keep``: the positions that are left in (CLS = 0; -1 = padding). ``real``: number of tokens that are no
        padding.
        """
        positions, visible = _positions(len(stem), keep, real)
        cls = self.w[f"encoder_wrapper.{key}_adapter.cls_embedding"][0]
        tokens = torch.cat([cls, stem])[positions]
        if key == "audio":
            embeddings = self._audio_positions(tokens[1:])
        else:
            table = "embed_positions.weight" if key == "text" else "pos_embed"
            embeddings = self.w[f"encoder_wrapper.{key}_adapter.{table}"][positions]
        return Item(key, tokens + embeddings, positions, visible)

    def _audio_positions(self, x: Tensor) -> Tensor:
        """CLS has a vector of its own, the others what convolutions see around them."""
        name = "encoder_wrapper.audio_adapter"
        layer = 1
        while f"{name}.embed_positions.{layer}.0.weight" in self.w:
            weight = self.w[f"{name}.embed_positions.{layer}.0.weight"]
            bias = self.w[f"{name}.embed_positions.{layer}.0.bias"]
            convolved = convolve(x, weight, bias, groups=self.groups, pad=weight.shape[2] // 2)
            x = gelu(layer_norm(convolved[: len(x)]))
            layer += 1
        return torch.cat([self.w[f"{name}.cls_pos_embed"][0], x])

    # Blocks.

    def encode(self, items: list[Item], stack: str = "encoder_wrapper") -> dict[str, Tensor]:
        """One joint pass: features (K, D) of each item."""
        sizes = [len(item.positions) for item in items]
        real = []
        for item in items:
            real += item.real
        x = torch.cat([item.tokens for item in items])
        x = x * torch.tensor(real)[:, None]
        layer = 0
        while f"{stack}.fusion_model.layers.{layer}.self_attn.ln.weight" in self.w:
            x = self._block(x, items, stack, layer)
            layer += 1
        features = {}
        for item, part in zip(items, x.split(sizes), strict=True):
            features[item.key] = self._norm(part, f"{stack}.fusion_model.{item.key}_layer_norm")
        return features

    def _block(self, x: Tensor, items: list[Item], stack: str, layer: int) -> Tensor:
        name = f"{stack}.fusion_model.layers.{layer}"
        heads = self.heads if stack == "encoder_wrapper" else self.decoder_heads
        bias = self._bias(items, stack, layer)
        attended = self._attention(self._norm(x, f"{name}.self_attn_layer_norm"), f"{name}.self_attn", heads, bias)
        x = x + self.w.get(f"{name}.gamma_1", 1.0) * attended

        normed = self._norm(x, f"{name}.final_layer_norm")
        outputs = []
        for item, part in zip(items, normed.split([len(item.positions) for item in items]), strict=True):
            ffn = f"{name}.{item.key}_ffn"
            gated = gelu(self._linear(part, f"{ffn}.0.wi_0")) * self._linear(part, f"{ffn}.0.wi_1")
            outputs.append(self._linear(self._norm(gated, f"{ffn}.2"), f"{ffn}.3"))
        return x + self.w.get(f"{name}.gamma_2", 1.0) * torch.cat(outputs)

    def _bias(self, items: list[Item], stack: str, layer: int) -> Tensor:
        """(H, L, L) of all items together: by distance within an item, -inf at padding."""
        is_encoder = stack == "encoder_wrapper"
        heads = self.heads if is_encoder else self.decoder_heads
        length = sum(len(item.positions) for item in items)
        bias = torch.zeros(heads, length, length, dtype=items[0].tokens.dtype)
        start = 0
        for item in items:
            stop = start + len(item.positions)
            if is_encoder:
                bias[:, start:stop, start:stop] = self._item_bias(item, layer)
            for slot, is_real in enumerate(item.real):
                if not is_real and (is_encoder or not self.defects):
                    bias[:, :, start + slot] = -math.inf
            start = stop
        return bias

    def _item_bias(self, item: Item, layer: int) -> Tensor:
        """(H, K, K), from the table of this layer, or the one of all layers."""
        name = f"encoder_wrapper.{item.key}_adapter.rel_pos_table_list"
        table = self.w.get(f"{name}.{layer}.weight", self.w[f"{name}.0.weight"])
        index = grid_index if item.key == "image" else sequence_index
        rows = []
        for query in item.positions:
            rows.append(torch.stack([table[index(len(table), query, key)] for key in item.positions]))
        return torch.stack(rows).permute(2, 0, 1)

    def _attention(self, x: Tensor, name: str, heads: int, bias: Tensor) -> Tensor:
        size = x.shape[1] // heads
        queries = self._linear(x, f"{name}.q_proj") * size**-0.5
        keys = self._linear(x, f"{name}.k_proj")
        values = self._linear(x, f"{name}.v_proj")
        rows = []
        for i in range(len(x)):
            row = []
            for head in range(heads):
                channels = slice(head * size, (head + 1) * size)
                logits = keys[:, channels] @ queries[i, channels] + bias[head, i]
                weights = torch.exp(logits - logits.max())
                row.append(weights @ values[:, channels] / weights.sum())
            rows.append(torch.cat(row))
        return self._linear(self._norm(torch.stack(rows), f"{name}.ln"), f"{name}.out_proj")

    def decode(self, items: list[Item], features: dict[str, Tensor], lengths: dict[str, int], real: dict[str, int]):
        """Predictions (L, D) for all ``lengths`` positions of each item, the first ``real`` of them no padding."""
        full_items = []
        for item in items:
            key = item.key
            length = lengths[key]
            tokens = [self.w[f"{key}_mask_token"][0]] * length
            embedded = self._linear(features[key], f"decoder_{key}_embed")
            for slot, position in enumerate(item.positions):
                if item.real[slot]:
                    tokens[position] = embedded[slot]
            table = "pos_embed" if key == "image" else "embed_positions.weight"
            embeddings = self.w[f"decoder_wrapper.{key}_adapter.{table}"][:length]
            visible = [position < real[key] for position in range(length)]
            full_items.append(Item(key, torch.stack(tokens) + embeddings, list(range(length)), visible))
        predictions = {}
        for key, x in self.encode(full_items, "decoder_wrapper").items():
            predictions[key] = self._linear(x, f"{key}_mask_head")
        return predictions

    def embed(self, key: str, features: Tensor) -> Tensor:
        """Features of one modality -> unit vector (E,)."""
        x = self._linear(features[:1], f"{key}_proj")[0]
        return x / x.square().sum().sqrt()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def _positions(length: int, keep: list[int] | None, real: int | None) -> tuple[list[int], list[bool]]:
    """Positions of the tokens of an item and CLS, and which are no padding."""
    if keep is None:
        num_real = length if real is None else real
        positions = list(range(length + 1))
        return positions, [position <= num_real for position in positions]
    filler = len(keep) - 1  # the original's
    positions = [position if position >= 0 else filler for position in keep]
    return positions, [position >= 0 for position in keep]


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, groups=1, pad=0) -> Tensor:
    """1-D convolution of (N, C) with a weight (O, C / groups, k)."""
    kernel = weight.shape[2]
    weights = weight.flatten(1).chunk(groups)
    zeros = x.new_zeros(pad, x.shape[1])
    x = torch.cat([zeros, x, zeros])
    rows = []
    for start in range(0, len(x) - kernel + 1, stride):
        windows = x[start : start + kernel].T.chunk(groups)
        outputs = []
        for group in range(groups):
            outputs.append(weights[group] @ windows[group].flatten())
        rows.append(torch.cat(outputs))
    convolved = torch.stack(rows)
    return convolved if bias is None else convolved + bias


@cache
def bucket(distance: int, buckets: int) -> int:
    """Signed bucket of a distance: one each up to buckets // 2, then logarithmic (in float32, as released)."""
    middle = buckets // 2
    if abs(distance) <= middle:
        return distance
    steps = torch.log(torch.tensor(abs(distance)) / middle) / math.log(1023 / middle) * (middle - 1)
    return int(math.copysign(middle + torch.ceil(steps).item(), distance))


def cls_index(rows: int, query: int, key: int) -> int | None:
    """The three last rows of a table: CLS as query, as key, with itself."""
    if query == key == 0:
        return rows - 1
    if query == 0:
        return rows - 3
    return rows - 2 if key == 0 else None


def sequence_index(rows: int, query: int, key: int) -> int:
    index = cls_index(rows, query, key)
    if index is not None:
        return index
    buckets = (rows - 2) // 2
    return bucket(query - key, buckets) + buckets - 1


def grid_index(rows: int, query: int, key: int) -> int:
    index = cls_index(rows, query, key)
    if index is not None:
        return index
    width = math.isqrt(rows - 3)
    side = (width + 1) // 2
    down = (query - 1) // side - (key - 1) // side
    right = (query - 1) % side - (key - 1) % side
    return (down + side - 1) * width + right + side - 1


# Losses.


def info_nce(a: list[Tensor], b: list[Tensor], scale: Tensor) -> Tensor:
    """Released code: the searched side gets no gradient."""
    total = torch.zeros(())
    for queries, keys in ((a, b), (b, a)):
        for i, query in enumerate(queries):
            logits = torch.stack([scale * (query @ key.detach()) for key in keys])
            total = total - logits.log_softmax(0)[i] / len(a) / 2
    return total


def denoising(students: list[Tensor], teachers: list[Tensor], masked: list[list[bool]]) -> Tensor:
    """The loss of items without padding, CLS first (and not used); scale 2.5, smoothing 0.1; the teacher is fixed."""
    queries = torch.cat([student[1:] for student in students])
    keys = torch.cat([teacher[1:] for teacher in teachers]).detach()
    keys = keys / keys.norm(dim=1, keepdim=True)
    hidden = torch.tensor([flag for flags in masked for flag in flags[1:]])
    smoothing = 0.1 / (len(keys) - 1)
    losses = []
    for i, query in enumerate(queries):
        if not hidden[i]:
            continue
        logp = (2.5 * keys @ (query / query.norm())).log_softmax(0)
        losses.append(-(1 - 0.1 - smoothing) * logp[i] - smoothing * logp.sum())
    return torch.stack(losses).mean()
