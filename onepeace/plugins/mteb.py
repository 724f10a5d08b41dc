"""Model for mteb (pip install "onepeace[eval]"): benchmarks of texts, images (MIEB) and audio (MAEB).

    import mteb
    from onepeace.plugins.mteb import MtebEncoder

    model = MtebEncoder("tiny")                      # as for onepeace.load
    mteb.evaluate(model, mteb.get_tasks(tasks=["BeijingOpera"]))
    mteb.mock_run(model)                             # mock tasks of every kind; downloads nothing

An item of several modalities gets one vector, the renormalised sum. Sounds are truncated at the model's length.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.device import count_parameters
from onepeace.embed.embedder import load
from onepeace.errors import need


class MtebEncoder:
    """Implementation of mteb's `EncoderProtocol`; it computes in float32 unless told otherwise."""

    def __init__(
        self,
        model_name: str = "tiny",
        revision: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "float32",
        **_: Any,
    ):
        self.model_name = model_name
        self.revision = revision
        self.model = load(model_name, device=device, dtype=dtype)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Metadata that mteb writes with the results; a model folder does not record its training data."""
        name = self.model_name
        if name.count("/") != 1:
            name = f"onepeace/{Path(name).name}"
        return need("mteb.models.model_meta", "eval").ModelMeta.create_empty(
            {
                "loader": type(self),
                "name": name,
                "revision": self.revision or "local",
                "n_parameters": count_parameters(self.model.encoder),
                "embed_dim": self.model.embed_dim,
                "framework": ["PyTorch"],
                "similarity_fn_name": "cosine",
                "modalities": list(self.model.modalities),
            }
        )

    def encode(
        self, inputs: Any, *, batch_size: int = 32, show_progress_bar: bool = False, **_: Any
    ) -> NDArray[np.float32]:
        """Unit vectors (n, E) of the rows of a DataLoader, whose batches map modalities to lists."""
        return np.asarray(self.model.encode(self._items(inputs), batch_size=batch_size, progress=show_progress_bar))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n, m) of all pairs."""
        return need("mteb.similarity_functions", "eval").cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n,) of corresponding rows."""
        return need("mteb.similarity_functions", "eval").pairwise_cos_sim(embeddings1, embeddings2)

    def _items(self, inputs: Any) -> Iterator[Mapping[str, object]]:
        for batch in inputs:
            columns = {modality: batch[modality] for modality in self.model.modalities if modality in batch}
            for row in zip(*columns.values(), strict=True):
                item = {}
                for modality, value in zip(columns, row, strict=True):
                    if value is not None:  # in a mixed dataset a row may lack a column
                        item[modality] = _value(value)
                yield item


def _value(value: Any) -> object:
    """The value of a text or an image; the samples and rate of a sound, which may be a torchcodec decoder."""
    if isinstance(value, str) or not hasattr(value, "__getitem__"):
        return value
    return {"array": np.asarray(value["array"]), "sampling_rate": int(value["sampling_rate"])}
