"""Interfaces of networks: `Trained` of every one, `Encoder` of those with vectors.

Those that write are `onepeace.generative.model.Writer`. An architecture of your own inherits from one of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onepeace.config import Options
from onepeace.layers.checkpoint import Recomputed
from onepeace.layers.features import Features

from .adapters import Adapter
from .sequence import Stem

Inputs = Mapping[str, dict[str, Tensor]]


class RawInput(Protocol):
    """Interface of a modality's adapter, as training uses it."""

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        """Number of tokens of each item (B,), without CLS and padding."""

    def take(self, batch: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The raw input of these rows."""


class Trained(nn.Module):
    """A network that a recipe can train. Building it on the meta device allocates nothing."""

    config: Any
    """Has ``adapters``, options by modality."""
    adapters: Mapping[str, Any]
    """`RawInput` by modality."""
    blocks: Sequence[nn.Module]
    """Transformer blocks: they are compiled, recomputed and shared out by FSDP one at a time."""
    logit_scale: nn.Parameter | None
    """Logarithm of the learned factor of cosines."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are not decayed."""
        return set()

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep logit_scale within [0, ln 100], as the released code does; training calls it after each step."""
        if self.logit_scale is not None:
            self.logit_scale.clamp_(0, math.log(100))

    def set_grad_checkpointing(self, enabled: bool = True, every: int = 1) -> None:
        """Keep only the input of every so many blocks, and compute the rest again in the backward pass (timm's name).

        ``run.checkpoint_activations`` of a recipe and the methods of transformers and open_clip call it.
        """
        for i, block in enumerate(self.blocks):
            if isinstance(block, Recomputed):
                block.gradient_checkpointing = enabled and i % every == 0


class Encoder(Trained):
    """A network with features and unit vectors for each modality, as `onepeace.model.OnePeace`.

    ``config`` also has ``projections``, the modalities with a vector, ``heads`` and ``embed_dim``. What a network lacks
    it does not override, and a recipe or a call that asks for it gets an error.
    """

    # Both are an nn.ModuleDict, typed by what it holds.
    adapters: Mapping[str, Adapter]
    heads: Mapping[str, nn.Module]
    """Projections by modality, and task heads by name."""
    decoder: nn.Module | None
    """What fills hidden positions for the denoising loss, if there is something."""

    def stems(self, inputs: Inputs) -> dict[str, Stem]:
        """The part of each modality's tokens that does not depend on what is masked."""
        raise NotImplementedError

    def encode(
        self,
        stems: Mapping[str, Stem],
        keep: Mapping[str, Tensor] | None = None,
        out_indices: Sequence[int] = (),
        num_blocks: int | None = None,
    ) -> dict[str, Features]:
        """Token features by modality of one joint pass over all of them; see `onepeace.model.OnePeace.encode`."""
        raise NotImplementedError

    def embed(self, key: str, features: Features) -> Tensor:
        """Features of one modality -> unit vectors (B, E)."""
        raise NotImplementedError

    def reconstruct(self, stems: Mapping[str, Stem], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features of all tokens, (B, L_m, D), from those in ``keep``."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each given modality, each encoded on its own.

        Args:
            inputs: any of {"text": {"ids"}, "image": {"pixels"}, "audio": {"waveform", "lengths"}, "video":
                {"pixels"}}; see the adapters.
        """
        stems = self.stems(inputs)
        return {key: self.embed(key, self.encode({key: stem})[key]) for key, stem in stems.items()}

    def features(self, inputs: Inputs, keep: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Token features (B, L_m, D), CLS first, of one joint pass of all given modalities; padding is undefined."""
        return {key: features.tokens for key, features in self.encode(self.stems(inputs), keep).items()}

    def predict(self, *inputs: Inputs, head: str = "classifier") -> Tensor:
        """What a named head makes of one joint pass, or of several: logits (B, num_classes) of a classifier."""
        blocks = self.head_blocks(head)
        key = self.head_config(head)["on"]
        passes = [self.encode(self.stems(one), out_indices=blocks) for one in inputs]
        return self.heads[head](*(features[key] for features in passes))

    def apply_head(self, name: str, features: Mapping[str, Features]) -> Tensor:
        """What a named head makes of the features of one pass, by modality.

        A head of several inputs (NLVR2: two pictures) takes so many rows of the pass for one item, one after another.
        """
        config = self.head_config(name)
        found, inputs = features[config["on"]], config.get("inputs", 1)
        return self.heads[name](*(found.rows(slice(i, None, inputs)) for i in range(inputs)))

    def head_blocks(self, name: str) -> tuple[int, ...]:
        """Blocks whose outputs a head reads beside the last one's (``out_indices`` of `encode`)."""
        return tuple(self.head_config(name).get("blocks", ()))

    def head_config(self, name: str) -> Options:
        """The options of a task head; ValueError if there is none of that name."""
        if name not in self.config.heads:
            known = ", ".join(self.config.heads) or "none"
            raise ValueError(f"this model has no head {name!r}; its heads: {known}")
        return self.config.heads[name]
