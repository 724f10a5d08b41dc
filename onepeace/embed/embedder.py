"""What users call: `load` a model, turn pictures, sounds and words into vectors of one space, compare and classify.

Every `encode` goes: items -> decoded in threads (media/, stream.py) -> batches of like size -> model -> rows -> items
again (assembly.py). Next: model/model.py, for what a vector is made of.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.device import choose_device, choose_dtype
from onepeace.embed.assembly import Assembly, Failure, Part
from onepeace.embed.stream import Batcher, Waiting, decode_ahead
from onepeace.embed.zero_shot import TEMPLATE, prototypes
from onepeace.errors import UserError
from onepeace.files.source import describe, read_bytes, suffix
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import build_module
from onepeace.hub.folder import read_config
from onepeace.hub.resolve import resolve
from onepeace.model import OnePeace
from onepeace.model.adapters.audio import AudioAdapter
from onepeace.model.adapters.image import ImageAdapter
from onepeace.processors import PROCESSORS, AudioProcessor, TextProcessor, guess
from onepeace.processors.processor import Processor

WINDOW = 256
"""Decoded samples that may wait for others of their length."""
WINDOWS_AHEAD = 64
"""Windows of one sound that are decoded before they are asked for."""
TEXT_SUFFIXES = frozenset({".txt"})
"""Endings of files that are read as one text."""
TEXT_FILE_LIMIT = 1 << 20
"""Bytes; a model reads some dozens of words."""

Vectors: TypeAlias = Tensor | np.ndarray
Output: TypeAlias = Literal["torch", "numpy"]
OnError: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True)
class _Options:
    """The options that every `encode` has; see `Embedder`."""

    batch_size: int
    output: str
    progress: bool | None
    on_error: str

    def __post_init__(self) -> None:
        _choice("output", self.output, ("torch", "numpy"))
        _choice("on_error", self.on_error, ("raise", "skip"))
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size!r}; it must be a whole number from 1")


class Windows(NamedTuple):
    """The vectors of one sound, window by window."""

    vectors: Vectors
    """(W, E) float32, unit rows."""
    starts: list[float]
    ends: list[float]
    """Seconds from the beginning of the sound at which each window starts and ends."""


class Tokens(NamedTuple):
    """Token features of one modality, as a joint pass of all given modalities made them."""

    cls: Tensor
    """(D,) float32: the token that stands for the whole input."""
    features: Tensor
    """(L, D) float32, without the CLS token."""
    positions: Tensor
    """(L, 2): what each token covers, in `unit`."""
    unit: str
    """"patch": row and column; "second": start and end; "character": start and end in the text as given;
    "token", of a modality of your own: its number and the next."""


def load(
    name: str | os.PathLike = "tiny",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    modalities: Iterable[str] | None = None,
) -> "Embedder":
    """Model by name, ready to encode.

    Args:
        name: "tiny" (bundled), a model folder, a Hugging Face repo id, or a released model ("one-peace", ...).
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best one there is.
        dtype: "float32", "bfloat16" or "float16" (not on a CPU). "auto" is bfloat16 on devices that are fast at it,
            except for models below 100 million parameters on a CPU; else float32. Vectors are float32 always; in
            float32 a vector depends on its own item alone to 1e-5, in bfloat16 rounding varies with the batch.
        modalities: keep only these, to save memory.

    Raises:
        UserError: nothing of that name, unreadable or mismatching files, an unknown device, dtype or modality.
    """
    place = choose_device(device)
    folder = resolve(str(name))
    config = read_config(folder)
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in build_module(config).parameters())
    precision = choose_dtype(dtype, place, num_parameters)
    if isinstance(modalities, str):
        modalities = [modalities]
    module = weight_files.load(folder, place, precision, modalities=None if modalities is None else list(modalities))
    processors = {
        key: PROCESSORS[key].from_config(config.processors.get(key, {}), folder) for key in module.config.adapters
    }
    return Embedder(module, processors)


class Embedder:
    """A model with the processors of its modalities.

    Every `encode` takes any iterable (a generator is read as it is needed, and memory stays bounded but for the
    result), keeps the order, and shares these options:

        batch_size: items in one pass; changes speed and memory, not the vectors.
        output: "torch" for a CPU tensor, "numpy" for an array; both float32 with unit rows, (0, E) of no items.
        progress: True or False; None draws a bar on stderr if that is a terminal and the work takes over a second.
        on_error: "raise" stops at the first item that fails, with a `UserError` that names it. "skip" leaves such
            items out and returns (vectors, failures): `vectors` has rows only for the items that succeeded, in order,
            and `failures` says index, name and reason of the others.
    """

    def __init__(self, module: OnePeace, processors: Mapping[str, Processor]) -> None:
        self.module = module.eval()
        self.processors = dict(processors)

    def __repr__(self) -> str:
        return (
            f"Embedder({', '.join(self.modalities)}; embed_dim={self.embed_dim}, device={self.device}, "
            f"dtype={str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """What this model reads: some of "text", "image", "audio"."""
        return tuple(self.processors)

    @property
    def embed_dim(self) -> int:
        """Width E of the shared space."""
        return self.module.config.embed_dim

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def encode_text(
        self,
        texts: Iterable[str | os.PathLike],
        *,
        batch_size: int = 32,
        output: Output = "torch",
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | tuple[Vectors, list[Failure]]:
        """(n, E) unit vectors of texts: strings, or `pathlib.Path`s of text files. Options: see `Embedder`."""
        options = _Options(batch_size, output, progress, on_error)
        assembly = self._encode(texts, "text", options)
        return _result(assembly.sums(), assembly, options)

    def encode_image(
        self,
        images: Iterable[object],
        *,
        batch_size: int = 32,
        output: Output = "torch",
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | tuple[Vectors, list[Failure]]:
        """(n, E) unit vectors of pictures: paths, http(s) URLs, bytes, PIL images, uint8 arrays (H, W, 3), tensors
        (3, H, W). Options: see `Embedder`."""
        options = _Options(batch_size, output, progress, on_error)
        assembly = self._encode(images, "image", options)
        return _result(assembly.sums(), assembly, options)

    def encode_audio(
        self,
        sounds: Iterable[object],
        *,
        long: Literal["truncate", "mean", "windows"] = "truncate",
        window: float | None = None,
        hop: float | None = None,
        batch_size: int = 32,
        output: Output = "torch",
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | list[Windows] | tuple[Vectors | list[Windows], list[Failure]]:
        """Unit vectors of sounds: paths, http(s) URLs, bytes, (samples, rate), {"array": ..., "sampling_rate": ...}.

        Args:
            long: what becomes of sound beyond the model's length. "truncate": only the beginning is heard. "mean": the
                renormalised mean of the vectors of its windows. "windows": a `Windows` for each sound.
            window, hop: length of a window and distance between the starts of two, in seconds; by default the model's
                length, one behind the other. Every window is normalised on its own.
            batch_size, output, progress, on_error: see `Embedder`.

        Returns:
            (n, E) vectors, or a list of `Windows` for long="windows".
        """
        options = _Options(batch_size, output, progress, on_error)
        cut = _cut(long, ("truncate", "mean", "windows"), window, hop)
        assembly = self._encode(sounds, "audio", options, cut=cut)
        if long != "windows":
            return _result(assembly.sums(), assembly, options)
        windows = [Windows(_output(rows, output), starts, ends) for rows, starts, ends in assembly.rows()]
        return (windows, assembly.failures) if on_error == "skip" else windows

    def encode(
        self,
        items: Iterable[object],
        *,
        weights: Mapping[str, float] | None = None,
        long: Literal["truncate", "mean"] = "truncate",
        window: float | None = None,
        hop: float | None = None,
        batch_size: int = 32,
        output: Output = "torch",
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | tuple[Vectors, list[Failure]]:
        """(n, E) unit vectors of any mix of items.

        What an item is follows from its type, its file ending or its first bytes; a string that is neither a path of
        a picture or sound nor a URL is a text. A dictionary by modality, {"audio": "dog.ogg", "text": "at night"}, is
        one composed vector: the weighted sum of the vectors of its parts, renormalised. With one part it says what an
        item is: {"text": "dog.ogg"}.

        Args:
            weights: factor of each modality in composed items, 1 where it is not named; negative takes away.
            long, window, hop: see `encode_audio`; its "windows" are not offered here.
            batch_size, output, progress, on_error: see `Embedder`.
        """
        options = _Options(batch_size, output, progress, on_error)
        cut = _cut(long, ("truncate", "mean"), window, hop)
        assembly = self._encode(items, None, options, cut=cut, weights=_weights(weights))
        return _result(assembly.sums(), assembly, options)

    def similarity(self, a: Vectors, b: Vectors) -> Vectors:
        """(n, m) cosines of vectors `a` (n, E) and `b` (m, E); an array if both are arrays, else a tensor."""
        both = [torch.as_tensor(value).detach().float().cpu() for value in (a, b)]
        if any(value.ndim not in (1, 2) for value in both) or both[0].shape[-1] != both[1].shape[-1]:
            shapes = " and ".join(str(tuple(value.shape)) for value in both)
            raise UserError(f"similarity needs vectors (n, E) and (m, E) of one width, got {shapes}")
        left, right = (F.normalize(torch.atleast_2d(value), dim=-1) for value in both)
        cosines = left @ right.T
        return cosines.numpy() if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else cosines

    def classify(
        self,
        items: Iterable[object],
        labels: Sequence[str] | None = None,
        *,
        template: str | Sequence[str] = TEMPLATE["image"],
        batch_size: int = 32,
        output: Output = "torch",
        progress: bool | None = None,
        on_error: OnError = "raise",
    ) -> Vectors | tuple[Vectors, list[Failure]]:
        """(n, number of labels) probabilities of labels for items of any kind; rows sum to 1.

        Args:
            labels: names to choose from. None asks the model's own classifier, if it was trained with one.
            template: sentence with "{}" for the label, or "{a}" for the label with its article; of several sentences
                the mean vector is taken. "{}" alone takes the labels as they are.
            batch_size, output, progress, on_error: see `Embedder`.
        """
        options = _Options(batch_size, output, progress, on_error)
        if labels is None:
            assembly = self._encode(items, None, options, head=True)
            return _result(assembly.sums().softmax(dim=1), assembly, options)
        encode_text = partial(self.encode_text, batch_size=batch_size, progress=False)
        classes = prototypes(encode_text, _many(labels, "labels"), template)
        assembly = self._encode(items, None, options)
        logits = self._temperature() * assembly.sums() @ classes.T
        return _result(logits.softmax(dim=1), assembly, options)

    def features(self, item: Mapping[str, object]) -> dict[str, Tokens]:
        """Token features of one item, its modalities seen together in one pass.

        Args:
            item: {"image": ..., "text": ..., "audio": ...}, any one or more; values as in `encode_image` and so on.
        """
        if not isinstance(item, Mapping) or not item:
            raise UserError(f'features takes a dictionary by modality: {{"{self.modalities[0]}": ...}}')
        samples = {key: self._processor(key).decode(_value(key, value)) for key, value in item.items()}
        inputs = {key: self._batch(key, [sample]) for key, sample in samples.items()}
        with torch.no_grad():
            features = {key: value[0].float().cpu() for key, value in self.module.features(inputs).items()}
        return {
            key: Tokens(features[key][0], features[key][1:], *self._positions(key, value, inputs[key]))
            for key, value in item.items()
        }

    def _encode(
        self,
        items: Iterable[object],
        modality: str | None,
        options: _Options,
        *,
        cut: "_Cut | None" = None,
        weights: Mapping[str, float] | None = None,
        head: bool = False,
    ) -> Assembly:
        """Rows of all items; those of `modality` None are guessed, sounds are cut into windows by `cut`. With `head`
        rows are logits of the model's own classifier."""
        from tqdm.auto import tqdm

        if modality is not None:
            self._processor(modality, projected=not head)
        items = _many(items)

        def read(item: object) -> list[Part] | Exception:
            try:
                return self._read(item, modality, cut, weights, projected=not head)
            except Exception as error:  # whatever a processor trips over, the item is to be named
                return error

        assembly = Assembly(self._num_classes() if head else self.embed_dim, skip=options.on_error == "skip")
        batcher = Batcher(options.batch_size, max(WINDOW, 4 * options.batch_size))

        def compute(key: str, entries: list[Waiting]) -> None:
            try:
                inputs = {key: self._batch(key, [entry.sample for entry in entries])}
                vectors = self.module.predict(inputs) if head else self.module(inputs)[key]
            except torch.OutOfMemoryError as error:
                raise UserError(f"no memory for {len(entries)} {key} items at once; lower batch_size") from error
            vectors = vectors.float().cpu()
            for entry, vector in zip(entries, vectors if head else F.normalize(vectors, dim=1), strict=True):
                assembly.fill(entry.row, entry.name, vector)

        # A sound that is cut holds up to WINDOWS_AHEAD windows, so only few of them wait.
        ahead = 2 * options.batch_size if cut is None else 2
        total = len(items) if isinstance(items, Sized) else None
        off, delay = (None, 1) if options.progress is None else (not options.progress, 0)
        bar = tqdm(total=total, disable=off, delay=delay, unit="item")
        with torch.inference_mode(), bar, closing(decode_ahead(items, read, ahead=ahead)) as decoded:
            for index, item, parts in decoded:
                bar.update()
                name = _name(index, item)
                if isinstance(parts, Exception):
                    assembly.fail(index, name, parts)
                    continue
                for row, key, sample in assembly.add(index, name, parts):
                    batch = batcher.add(key, Waiting(row, self.processors[key].size(sample), sample, name))
                    if batch:
                        compute(*batch)
            for batch in batcher.rest():
                compute(*batch)
        return assembly

    def _read(
        self,
        item: object,
        modality: str | None,
        cut: "_Cut | None",
        weights: Mapping[str, float] | None,
        projected: bool,
    ) -> list[Part]:
        """The decoded parts of one item."""
        values = self._split(item, weights or {}) if modality is None else [(modality, item, 1.0)]
        parts = []
        for key, value, weight in values:
            processor = self._processor(key, projected)
            pieces: Iterable[tuple[float, float, Tensor]]
            if cut is not None and isinstance(processor, AudioProcessor):
                windows = processor.windows(value, *cut.seconds(processor))
                # The rest of a long sound is decoded when its turn comes, so that hours of it are never in memory.
                pieces = chain(list(islice(windows, WINDOWS_AHEAD)), windows)
            else:
                pieces = [(0.0, 0.0, processor.decode(_value(key, value)))]
            parts.append(Part(key, weight, pieces))
        return parts

    def _split(self, item: object, weights: Mapping[str, float]) -> list[tuple[str, object, float]]:
        """(modality, value, weight) of everything an item is made of."""
        values = _values(item)
        if values is None:
            text_file = isinstance(item, os.PathLike) and suffix(item) in TEXT_SUFFIXES
            return [("text" if text_file else guess(item, self.processors), item, 1.0)]
        unknown = [key for key in values if key not in PROCESSORS]
        if unknown:
            raise UserError(f"a composed item has the keys {', '.join(PROCESSORS)}; not {unknown[0]!r}")
        return [(key, value, float(weights.get(key, 1.0))) for key, value in values.items()]

    def _processor(self, modality: str, projected: bool = False) -> Processor:
        """The processor of a modality; with `projected` the model has to have vectors of it, not only features."""
        if modality not in self.processors:
            raise UserError(f"this model has no {modality}; it has {', '.join(self.processors)}")
        if projected and modality not in self.module.config.projections:
            raise UserError(f"this model has no projection for vectors of {modality}; use classify or features")
        return self.processors[modality]

    def _batch(self, modality: str, samples: list[Tensor]) -> dict[str, Tensor]:
        """Samples as the model's input on its device."""
        batch = self.processors[modality].collate(samples)
        # Ids and lengths stay whole in every precision, and a waveform stays float32 up to its spectrogram.
        return {name: value.to(self.device, self.dtype if name == "pixels" else None) for name, value in batch.items()}

    def _temperature(self) -> float:
        """Factor on cosines that makes them logits; CLIP's start value where the model learned none."""
        return 1 / 0.07 if self.module.logit_scale is None else float(self.module.logit_scale.detach().float().exp())

    def _num_classes(self) -> int:
        """Outputs of the model's own classifier, which has to be about single items."""
        classifier = self.module.config.heads.get("classifier")
        if classifier is None:
            raise UserError("this model has no classifier of its own; give labels to choose from")
        if len(self.processors) > 1 or classifier.get("inputs", 1) > 1:
            raise UserError("this model's classifier reads several inputs together; call model.module.predict")
        return classifier["num_classes"]

    def _positions(self, modality: str, value: object, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """What each token of an item covers, and in which unit; see `Tokens`."""
        adapter, processor = self.module.adapters[modality], self.processors[modality]
        if isinstance(adapter, ImageAdapter):
            rows, columns = (side // adapter.patch_size for side in batch["pixels"].shape[-2:])
            return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)), "patch"
        if isinstance(adapter, AudioAdapter):
            seconds = adapter.seconds_per_token * torch.arange(int(adapter.token_lengths(batch)[0]) + 1)
            return torch.stack([seconds[:-1], seconds[1:]], dim=1), "second"
        if isinstance(processor, TextProcessor):
            return torch.tensor(processor.encode(str(_value(modality, value))).offsets), "character"
        first = torch.arange(int(adapter.token_lengths(batch)[0]))
        return torch.stack([first, first + 1], dim=1), "token"


class _Cut(NamedTuple):
    """How sounds are cut: window and hop in seconds, None for the model's length."""

    window: float | None
    hop: float | None

    def seconds(self, processor: AudioProcessor) -> tuple[float, float]:
        window = self.window or processor.max_seconds
        if window is None:
            raise UserError("this model has no length of its own for sounds; give window= in seconds")
        return window, self.hop or window


def _cut(long: str, known: Sequence[str], window: float | None, hop: float | None) -> _Cut | None:
    _choice("long", long, known)
    if long == "truncate" and (window, hop) != (None, None):
        raise UserError(f'window and hop need long={" or ".join(map(repr, known[1:]))}; long is "truncate"')
    for name, value in {"window": window, "hop": hop}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be a number of seconds above 0")
    return None if long == "truncate" else _Cut(window, hop)


def _weights(weights: Mapping[str, float] | None) -> dict[str, float]:
    """Checked factors of the parts of composed items."""
    for key, value in (weights or {}).items():
        if key not in PROCESSORS:
            raise UserError(f"weights has the keys {', '.join(PROCESSORS)}; not {key!r}")
        if not math.isfinite(value):
            raise UserError(f"the weight of {key} is {value}; it must be a finite number")
    return dict(weights or {})


def _choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{name} is {value!r}; it can be {', '.join(map(repr, known))}")


def _many(items: object, what: str = "items") -> Iterable:
    """`items`, unless it is a single item, which would be taken apart into letters, bytes, rows or keys."""
    single = isinstance(items, str | bytes | bytearray | memoryview | os.PathLike | Mapping)
    if isinstance(items, tuple) and len(items) == 2:  # samples and their rate
        single = isinstance(items[1], int | float)
    if isinstance(items, Tensor) or (isinstance(items, np.ndarray) and items.dtype.kind not in "OUS"):
        single = items.ndim < 4
    if single or not isinstance(items, Iterable):
        raise UserError(f"{what} should be a list, not one {type(items).__name__}; put it in brackets: [...]")
    return items


def _values(item: object) -> Mapping[str, object] | None:
    """A composed item's values by modality; None for any other item."""
    return item if isinstance(item, Mapping) and any(key in PROCESSORS for key in item) else None


def _name(index: int, item: object) -> str:
    """What an item is called in messages; one that only says its modality is called by its value."""
    values = list((_values(item) or {"": item}).values())
    return describe(values[0]) if len(values) == 1 else f"item {index}"


def _value(modality: str, value: object) -> object:
    """What a processor takes: of a text file its text."""
    return _text_in(value) if modality == "text" and isinstance(value, os.PathLike) else value


def _text_in(path: os.PathLike) -> str:
    """What a text file says; `UserError` if it is no text, or more than anyone could mean as one."""
    try:
        text = read_bytes(path, max_bytes=TEXT_FILE_LIMIT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{describe(path)}: not UTF-8 text (byte {error.start})") from error
    if "\0" in text or not text.strip():
        raise UserError(f"{describe(path)}: {'not text (it holds NUL bytes)' if text.strip() else 'holds no text'}")
    return text


def _output(vectors: Tensor, output: str) -> Vectors:
    return vectors.numpy() if output == "numpy" else vectors


def _result(vectors: Tensor, assembly: Assembly, options: _Options) -> Vectors | tuple[Vectors, list[Failure]]:
    result = _output(vectors, options.output)
    return (result, assembly.failures) if options.on_error == "skip" else result
