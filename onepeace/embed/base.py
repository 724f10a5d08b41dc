"""Model on its device, with the processors of its modalities: what encoding, heat maps and heads compute with."""

import json
from collections.abc import Mapping
from typing import NoReturn, TypeVar, cast

from torch import Tensor, nn

from onepeace.device import SMALL, count_parameters, digest_of
from onepeace.errors import UserError
from onepeace.hub.resolve import Identity
from onepeace.model import INITIAL_SCALE, Embeds, Encoder
from onepeace.processors.processor import Processor
from onepeace.threads import num_workers

Loaded = TypeVar("Loaded", bound="LoadedModel")


class LoadedModel:
    """A model with the processors of its modalities; see `onepeace.embed.embedder.Embedder`."""

    def __init__(self, module: Embeds, processors: Mapping[str, Processor], identity: Identity | None = None) -> None:
        self.module = module.eval()
        self.processors = dict(processors)
        self._identity = identity
        self.is_large = count_parameters(cast(nn.Module, module)) >= SMALL
        self.modalities = tuple(processors)
        """Modalities of the model: a subset of "text", "image", "audio"."""
        projections = getattr(getattr(module, "config", None), "projections", self.modalities)
        self.modalities_with_vectors = tuple(key for key in self.modalities if key in projections)
        """The modalities that can be encoded as vectors: all but those that only a task head of the model reads."""
        parameter = next(module.parameters())
        self.device = parameter.device
        self.dtype = parameter.dtype

    def eval(self: Loaded) -> Loaded:
        """Set the module to evaluation mode, as it is when it is loaded."""
        self.module.eval()
        return self

    def to(self, *_: object, **__: object) -> NoReturn:
        """UserError: a loaded model stays on its device and in its precision."""
        raise UserError("a loaded model is not moved; load it where it should be: onepeace.load(NAME, device=...)")

    cpu = cuda = half = to

    def parameters(self, *_: object, **__: object) -> NoReturn:
        """UserError: what is trained is the module."""
        raise UserError(
            "a loaded model is for encoding; its torch module is trained: model.encoder.parameters(), .train() "
            "(docs/guide/pytorch.md), or use onepeace finetune"
        )

    train = parameters

    @property
    def embed_dim(self) -> int:
        """Dimension E of the embeddings."""
        return self.module.embed_dim

    @property
    def workers(self) -> int:
        """Number of batches that are computed at once: several on a CPU."""
        return num_workers(self.device)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(self.modalities)}; embed_dim={self.embed_dim}, device={self.device}, "
            f"dtype={str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def identity(self) -> Identity:
        """Name and hash by which an index knows this model: those it was made with (`load` gives them), else a digest
        of its weights and of the settings of its processors, which is computed once."""
        if self._identity is None:
            module = cast(nn.Module, self.module)
            settings = {key: [type(reader).__qualname__, reader.settings] for key, reader in self.processors.items()}
            text = json.dumps(settings, sort_keys=True, default=lambda value: type(value).__qualname__)
            self._identity = Identity(type(module).__name__, digest_of(module, text))
        return self._identity

    @property
    def logit_scale(self) -> float:
        """Scale from cosines to logits of the first modality; models of this package have one scale for all."""
        return self.logit_scale_of(self.modalities[0])

    def logit_scale_of(self, modality: str) -> float:
        """Scale from the cosines between texts and items of a modality to logits; CLIP's initial value if the model has
        not learned one."""
        learned = getattr(self.module, "logit_scale_of", None)  # optional, see `Embeds`
        return INITIAL_SCALE if learned is None else learned(modality)

    @property
    def encoder(self) -> Encoder:
        """The module, with its features of tokens and its heads; UserError if it gives vectors only."""
        if not hasattr(self.module, "stems"):
            raise UserError(
                f"{self.identity.name} gives vectors only; heat maps, features of tokens and heads need a model of "
                "this package, such as tiny"
            )
        return cast(Encoder, self.module)  # or one in a wrapper, such as peft's

    def processor(self, modality: str, projected: bool = False) -> Processor:
        """The processor of a modality; `projected` requires that the model has a projection for it."""
        if modality not in self.processors:
            raise UserError(f"this model has no {modality}; it has {', '.join(self.processors)}")
        if projected and modality not in self.modalities_with_vectors:
            raise UserError(f"this model has no projection for vectors of {modality}; use predict or features")
        return self.processors[modality]

    def inputs(self, modality: str, samples: list[Tensor], *, lengths: bool = False) -> dict[str, Tensor]:
        """Collate decoded samples of one modality into model input, on the model's device.

        Args:
            lengths: give the lengths of texts and sounds also if all are equal, as exported branches need them; without
                them the model computes such a batch a little quicker.
        """
        processor = self.processors[modality]
        collate = processor.collate_with_lengths if lengths else processor.collate
        inputs = {}
        for name, values in collate(samples).items():
            dtype = self.dtype if name in processor.cast_inputs else None
            inputs[name] = values.to(self.device, dtype)
        return inputs
