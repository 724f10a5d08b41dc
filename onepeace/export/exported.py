"""Branches of a model that onnxruntime computes, as the module of an `Embedder`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.embed.embedder import Embedder
from onepeace.export.graph import VECTORS
from onepeace.export.text_branch import TextBranch, keep_text_branch
from onepeace.model import Embeds
from onepeace.model.interface import Inputs


class ExportedBranches(nn.Module):
    """A model of which onnxruntime computes some modalities.

    Args:
        sessions: by modality.
        model: the same model, for the other modalities.
    """

    def __init__(self, sessions: Mapping[str, Any], model: Embeds) -> None:
        super().__init__()
        self.sessions = dict(sessions)
        self.model = model
        self.config = getattr(model, "config", None)

    @property
    def embed_dim(self) -> int:
        return self.model.embed_dim

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each given modality."""
        vectors: dict[str, Tensor] = {}
        for key, batch in inputs.items():
            session = self.sessions.get(key)
            if session is None:
                vectors |= self.model({key: batch})
                continue
            arrays = {name: tensor.numpy() for name, tensor in _with_lengths(batch).items()}
            vectors[key] = torch.from_numpy(session.run([VECTORS], arrays)[0])
        return vectors

    def logit_scale_of(self, modality: str) -> float:
        return self.model.logit_scale_of(modality)  # type: ignore[attr-defined]


def _with_lengths(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of texts, also with the lengths if all are equal."""
    count, length = batch["ids"].shape
    return {"lengths": torch.full((count,), length), **batch}


def with_text_branch(embedder: Embedder) -> Embedder:
    """The same model with texts computed by onnxruntime, in half the time; or the model itself: without that package,
    on a GPU, or if it is large, as it then divides each operator among the cores.

    The branch is written to the user's cache the first time, in some 20 seconds (`keep_text_branch`).
    """
    is_float32_on_cpu = embedder.device.type == "cpu" and embedder.dtype == torch.float32
    has_texts = "text" in embedder.modalities_with_vectors
    if embedder.is_large or not (embedder.identity.is_loadable and is_float32_on_cpu and has_texts):
        return embedder
    keep_text_branch(embedder.identity.name, embedder.identity.hash)
    branch = TextBranch.open(embedder.identity.hash, optimize=True)
    if branch is None:
        return embedder
    module = ExportedBranches({"text": branch.session}, embedder.module)
    return Embedder(module, embedder.processors, embedder.identity)
