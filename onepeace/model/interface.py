"""Interfaces of models: `Embeds` for every module that makes vectors, `Trained` for every model that a recipe trains,
and `Encoder` for those of them with embeddings.

A new architecture inherits from one of the last two, or is one that writes, as `OFA` in onepeace/generative/model.py.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from onepeace.config import Options
from onepeace.layers.features import Features
from onepeace.layers.recompute import set_recompute

from .adapters import Adapter
from .sequence import StemOutput

Inputs = Mapping[str, dict[str, Tensor]]
INITIAL_SCALE = 1 / 0.07
"""Scale of cosine similarities before training, and of models that learn none (CLIP, arXiv 2103.00020)."""


class Embeds(Protocol):
    """All that `onepeace.Embedder` needs of an `nn.Module`; any network becomes one by a forward pass of this form.

    A module may also have ``logit_scale_of(modality)``, the learned scale from the cosines between texts and items of
    a modality to logits; without it, `INITIAL_SCALE` is used.
    """

    @property
    def embed_dim(self) -> int:
        """Dimension E of the vectors."""

    def __call__(self, inputs: Inputs) -> Mapping[str, Tensor]:
        """Vectors (B, E) of each given modality, of any length above 0; the inputs are those of its processor."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> "Embeds": ...


class Trained(nn.Module):
    """A network that a recipe can train. Building it on the meta device allocates nothing."""

    config: Any
    """Configuration with ``adapters``, the adapter options by modality."""
    adapters: Mapping[str, Any]
    """By modality, an object with ``token_lengths(batch)``, the numbers (B,) of tokens without CLS and padding, and
    ``take(batch, rows, lengths)``, a selection of the items (`onepeace.model.Adapter.take`)."""
    blocks: Sequence[nn.Module]
    """Transformer blocks, the unit of compilation, activation checkpointing and FSDP sharding."""
    logit_scale: nn.Parameter | None
    """Logarithm of the learned scale of cosine similarities."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay."""
        return set()

    def sharding_units(self) -> list[nn.Module]:
        """Modules whose weights FSDP gathers and frees one at a time, inner ones first."""
        return list(self.blocks)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp logit_scale to [0, ln 100], as the released code does; training calls this after each step."""
        if self.logit_scale is not None:
            self.logit_scale.clamp_(0, math.log(100))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Store only the inputs of the blocks, and recompute the rest in the backward pass (timm's name).

        The plug-ins of timm and open_clip call it; a recipe has ``run.recompute``.
        """
        set_recompute(self, "blocks" if enable else "ffn")


class Encoder(Trained):
    """Model with token features and embeddings per modality, such as `onepeace.model.OnePeace`.

    ``config`` also has ``projections``, the modalities with an embedding, ``heads`` and ``embed_dim``. Methods
    that a model does not support are not overridden; a recipe or call that needs one raises an error.
    """

    # Each is an nn.ModuleDict, typed by its values.
    adapters: Mapping[str, Adapter]
    heads: Mapping[str, nn.Module]
    """Projections by modality, and task heads by name."""
    decoder: nn.Module | None
    """Decoder that predicts masked positions for the denoising loss, if any."""

    @property
    def embed_dim(self) -> int:
        """Dimension E of the embeddings."""
        return self.config.embed_dim

    def logit_scale_of(self, modality: str) -> float:
        """Scale from cosines to logits, the same for all modalities."""
        return INITIAL_SCALE if self.logit_scale is None else self.logit_scale.float().exp().item()

    def stems(self, inputs: Inputs) -> dict[str, StemOutput]:
        """Run the stem of each modality, the part that does not depend on the mask."""
        raise NotImplementedError

    def encode(
        self,
        stems: Mapping[str, StemOutput],
        keep: Mapping[str, Tensor] | None = None,
        out_indices: Sequence[int] = (),
    ) -> dict[str, Features]:
        """Token features by modality from one joint pass; see `onepeace.model.OnePeace.encode`."""
        raise NotImplementedError

    def embed(self, key: str, features: Features) -> Tensor:
        """Map features of one modality to unit vectors (B, E)."""
        raise NotImplementedError

    def reconstruct(self, stems: Mapping[str, StemOutput], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict the features of all tokens, (B, L_m, D), from those in ``keep``."""
        raise NotImplementedError

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each given modality, each encoded on its own.

        Args:
            inputs: any of {"text": {"ids"}, "image": {"pixels"}, "audio": {"waveform", "lengths"}, "video":
                {"pixels"}}; see the adapters.
        """
        vectors = {}
        for key, stem in self.stems(inputs).items():
            features = self.encode({key: stem})[key]
            vectors[key] = self.embed(key, features)
        return vectors

    def features(self, inputs: Inputs, keep: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Token features (B, L_m, D), CLS first, from one joint pass of all modalities; undefined at padding."""
        features_by_key = self.encode(self.stems(inputs), keep)
        return {key: features.tokens for key, features in features_by_key.items()}

    def predict(self, inputs: Inputs, head: str = "classifier") -> Tensor:
        """Output of a named head on one joint pass of all modalities, e.g. the logits (B, num_classes) of a classifier.

        A head with several inputs (NLVR2: two images) takes that many consecutive rows per item, and B is the number of
        items.
        """
        num_inputs = self.num_inputs(head)
        numbered = {key: self.adapters[key].numbered(batch, num_inputs) for key, batch in inputs.items()}
        features = self.encode(self.stems(numbered), out_indices=self.head_blocks(head))
        return self.apply_head(head, features)

    def apply_head(self, name: str, features: Mapping[str, Features]) -> Tensor:
        """Output of a named head on the features of one pass, by modality; rows as in `predict`."""
        rows = features[self.head_config(name)["on"]]
        num_inputs = self.num_inputs(name)
        inputs = [rows.rows(slice(number, None, num_inputs)) for number in range(num_inputs)]
        return self.heads[name](*inputs)

    def num_inputs(self, name: str) -> int:
        """Number of rows of an item that a head reads together."""
        return self.head_config(name).get("inputs", 1)

    def head_blocks(self, name: str) -> tuple[int, ...]:
        """Additional blocks whose outputs a head reads (``out_indices`` of `encode`)."""
        return tuple(self.head_config(name).get("blocks", ()))

    def head_config(self, name: str) -> Options:
        """The options of a task head; ValueError if there is no such head."""
        if name not in self.config.heads:
            head_names = ", ".join(self.config.heads) or "none"
            raise ValueError(f"this model has no head {name!r}; its heads: {head_names}")
        return self.config.heads[name]
