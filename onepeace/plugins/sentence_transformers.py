"""Module for sentence-transformers (pip install "onepeace[sbert]"): encoding, losses, trainer and quantisation.

    from onepeace.plugins.sentence_transformers import load

    model = load("tiny")                             # as for onepeace.load, or a folder written by model.save
    model.encode(["a dog", "dog.jpg", {"image": "sea.jpg", "text": "a bird"}], precision="int8")
    SentenceTransformerTrainer(model, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)).train()

The modality of an item follows from its type or file ending, as in `Embedder.encode`, or is given as in {"text":
"dog.jpg"}. An item of several modalities gets one vector, the renormalised sum. A saved folder is a model folder too.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.embed.embedder import load as load_embedder
from onepeace.embed.items import parts_of
from onepeace.errors import UserError, need
from onepeace.hub import weights
from onepeace.hub.folder import INDEX, TOKENIZER
from onepeace.hub.resolve import fetch_model
from onepeace.processors import TextProcessor

_modules: Any = need("sentence_transformers.base.modules", "sbert")

PRESENT = "input_features"
"""Feature (B, M), bool: the modalities of each item. The trainer recognises a column by one of a few feature names,
including this one."""
SETTINGS = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
"""Arguments of SentenceTransformer that a saved folder stores besides the modules."""


class OnePeaceModule(_modules.InputModule):
    """Input module: maps items to unit vectors.

    Args:
        name: see `onepeace.load`.
        device, dtype: see `onepeace.load`. Training needs "float32".
    """

    save_in_root = True

    def __init__(self, name: str | os.PathLike[str] = "tiny", device: str | None = None, dtype: str = "auto") -> None:
        super().__init__()
        opened = fetch_model(name)
        embedder = load_embedder(opened, device=device, dtype=dtype)
        self.model = embedder.encoder
        self.processors = embedder.processors
        self.config = opened.config

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> "OnePeaceModule":
        """Load the module from a folder written by `save`."""
        return cls(Path(model_name_or_path) / subfolder)

    @property
    def modalities(self) -> list[Any]:
        """Modalities with a projection, and "message", the library's name for mixed batches and composed items."""
        return [*self.model.config.projections, "message"]

    @property
    def max_seq_length(self) -> int | None:
        """Maximum number of tokens of a text, including the end token."""
        processor = self.processors.get("text")
        if not isinstance(processor, TextProcessor) or processor.max_tokens is None:
            return None
        return processor.max_tokens + 1

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        processor = self.processors.get("text")
        if not isinstance(processor, TextProcessor):
            raise UserError("max_seq_length: this model reads no texts")
        processor.max_tokens = None if value is None else value - 1
        settings = {**self.config.processors, "text": processor.settings}
        self.config = replace(self.config, processors=settings)

    def get_embedding_dimension(self) -> int:
        """Width E of the shared space."""
        return self.model.config.embed_dim

    def preprocess(self, inputs: Sequence[object], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Decode items into the features of `forward`: a row per item, zeros where it lacks the modality.

        Args:
            prompt: prefix of every text.

        Raises:
            UserError: an item that cannot be read.
        """
        modalities = list(self.model.config.projections)
        present = torch.zeros(len(inputs), len(modalities), dtype=torch.bool)
        samples: dict[str, list[Tensor]] = {modality: [] for modality in modalities}
        for row, item in enumerate(inputs):
            for modality, value in parts_of(item, modalities):
                processor = self.processors[modality]
                if prompt and isinstance(processor, TextProcessor):
                    value = prompt + processor.load(value)
                samples[modality].append(processor.decode(value))
                present[row, modalities.index(modality)] = True
        features = {PRESENT: present}
        for column, modality in enumerate(modalities):
            if samples[modality]:
                rows = present[:, column].nonzero()[:, 0]
                for name, value in self.processors[modality].collate(samples[modality]).items():
                    zeros = value.new_zeros(len(inputs), *value.shape[1:])
                    features[f"{modality}_{name}"] = zeros.index_copy(0, rows, value)
        return features

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add "sentence_embedding": float32 unit vectors (B, E)."""
        device = next(self.model.parameters()).device
        present = features[PRESENT].to(device)
        vectors = torch.zeros(len(present), self.get_embedding_dimension(), device=device)
        for column, modality in enumerate(self.model.config.projections):
            rows = present[:, column].nonzero()[:, 0]
            if len(rows):
                inputs = self._inputs(modality, features, rows)
                vectors = vectors.index_add(0, rows, self.model({modality: inputs})[modality].float())
        return {**features, "sentence_embedding": F.normalize(vectors, dim=1)}

    def _inputs(self, modality: str, features: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """The model's inputs of one modality, for the items that have it."""
        dtype = next(self.model.parameters()).dtype
        inputs = {}
        for feature, value in features.items():
            if feature.startswith(f"{modality}_"):
                name = feature.removeprefix(f"{modality}_")
                value = value.to(rows.device)[rows]
                inputs[name] = value.to(dtype) if name in self.processors[modality].cast_inputs else value
        return inputs

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the files of a model folder next to the library's; the weights are always safetensors."""
        folder = Path(output_path)
        processor = self.processors.get("text")
        with TemporaryDirectory(dir=folder) as temporary:
            tokenizer = None
            if isinstance(processor, TextProcessor):
                tokenizer = Path(temporary) / TOKENIZER
                processor.tokenizer.save(str(tokenizer))
            model_folder = Path(temporary) / "model"
            weights.save(
                model_folder,
                self.model,
                self.config,
                tokenizer=tokenizer,
                dtype=next(self.model.parameters()).dtype,
            )
            (folder / INDEX).unlink(missing_ok=True)
            for file in model_folder.iterdir():
                os.replace(file, folder / file.name)


def load(name: str | os.PathLike[str] = "tiny", *, device: str | None = None, dtype: str = "auto") -> Any:
    """Load a model as a SentenceTransformer; no code in its folder is executed, so trust_remote_code is not needed.

    Args:
        name: see `onepeace.load`; or a folder written by `SentenceTransformer.save`.
        device, dtype: see `onepeace.load`. Training needs "float32".

    Raises:
        UserError: see `onepeace.load`; or a saved model with further modules after this one.
    """
    opened = fetch_model(name)
    module = OnePeaceModule(opened, device, dtype)
    modules_file = opened.folder / "modules.json"
    if len(_read_json(modules_file)) > 1:
        raise UserError(
            "has further modules; load it with SentenceTransformer(..., trust_remote_code=True)", where=modules_file
        )
    saved = _read_json(opened.folder / "config_sentence_transformers.json")
    return need("sentence_transformers", "sbert").SentenceTransformer(
        modules=[module],
        device=str(next(module.parameters()).device),
        **{key: saved[key] for key in SETTINGS if key in saved},
    )


def _read_json(path: Path) -> Any:
    """Content of a JSON file; {} if there is no such file."""
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))
