"""Embedder: `load` a model, embed pictures, sounds and texts in one vector space, compare and classify.

encode.py has the steps from items to their vectors.
"""

import logging
import os
from collections.abc import Generator, Iterable, Mapping, Sequence, Sized
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.compiling import compile_blocks
from onepeace.config import Config
from onepeace.device import choose_device
from onepeace.embed.base import LoadedModel
from onepeace.embed.classify import TEMPLATE, check_choice, prototypes
from onepeace.embed.encode import Embedded, Encoding
from onepeace.embed.explain import Explanation, Tokens, explain, token_features
from onepeace.embed.items import check_many
from onepeace.embed.predict import Predictor
from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import architecture, check_encodes, keep_modalities
from onepeace.hub.resolve import fetch_model
from onepeace.processors.processor import Processor
from onepeace.processors.registry import processor_class

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

Skipped: TypeAlias = tuple[Tensor, list[Embedded]]
"""With on_error="skip": rows for the items that succeeded, and the results of those that failed."""


def load(
    name: str | os.PathLike[str] = "tiny",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    modalities: Iterable[str] | None = None,
    compile: bool = False,
) -> "Embedder":
    """Load a model by name, ready to encode.

    Args:
        name: "tiny" (bundled), a model folder, a Hugging Face repo id, a released model ("one-peace", ...), or models
            of other libraries ("open_clip:ViT-B-16/openai + clap:laion/clap-htsat-unfused", docs/guide/encoders.md).
        device: "cpu", "cuda", "cuda:1", "mps"; None = the best available.
        dtype: "float32", "bfloat16" or "float16" (not on a CPU). "auto" is bfloat16 on devices that are fast at it,
            except for models below 100 million parameters on a CPU; else float32. Vectors are always float32; in
            float32 a vector is the same in every batch to within 1e-5, in bfloat16 rounding varies with the batch.
        modalities: keep only these, to save memory.
        compile: torch.compile the blocks, where it pays (`onepeace.compiling`); the first batches take longer.

    Raises:
        UserError: no model of that name, unreadable or mismatching files, an unknown device, dtype or modality.
    """
    chosen_device = choose_device(device)
    opened = fetch_model(name)
    check_encodes(opened.config, str(name))
    config = opened.config
    if modalities is not None:
        kept = [modalities] if isinstance(modalities, str) else list(modalities)
        config = keep_modalities(config, kept, str(opened))

    load_by_library = architecture(config.architecture).load
    if load_by_library is not None:
        if compile:
            log.warning("not compiled: %s is computed by its own library", name)
        module_and_processors = load_by_library(config.model, opened.folder, chosen_device, dtype)
        return Embedder(*module_and_processors, opened.identity)

    kept_modalities = None if modalities is None else list(config.model.adapters)
    module = weight_files.load_encoder(opened, device=chosen_device, dtype=dtype, modalities=kept_modalities)
    if compile:
        compile_blocks(module)
    return Embedder(module, _processors(config, opened.folder), opened.identity)


def _processors(config: Config, folder: Path) -> dict[str, Processor]:
    """The processor of each modality of a configuration, with the files of its folder."""
    makers = architecture(config.architecture).processors
    processors = {}
    for modality in config.model.adapters:
        make = makers.get(modality) or processor_class(modality).from_config
        processors[modality] = make(config.processors.get(modality, {}), folder)
    return processors


class Options(TypedDict, total=False):
    """Options of `Embedder.encode` and of the other functions that encode."""

    long: Literal["truncate", "windows"]
    """Treatment of audio longer than the model's limit. "truncate" (the default): only the beginning is encoded, and a
    warning is logged once. "windows": it is split into windows, and its vector is the normalised mean of theirs;
    results of `stream` also contain these."""
    window: float | None
    """Length of a window in seconds, by default the model's; every window is normalised on its own."""
    hop: float | None
    """Seconds between the starts of two windows; by default, windows do not overlap."""
    batch_size: int
    """Items that the model computes at once, on a CPU divided among its cores (32); affects speed and memory, not the
    vectors."""
    progress: bool | None
    """Whether to show a progress bar on stderr; by default if that is a terminal and the work takes over a second."""


class Embedder(LoadedModel):
    """A model on its device, with the processors of its modalities.

    `stream` yields results one by one; the `encode` methods collect them, with the failures if on_error="skip". All
    accept any iterable, keep the order and share the keyword arguments of `onepeace.embed.embedder.Options`. On a CPU,
    each core computes its own batches. Vectors are float32, on the CPU.

    on_error="raise" (the default) stops at the first item that fails, with a `UserError` that names it. "skip" returns
    (vectors, failures): rows for the items that succeeded, in order, and index, name and reason of the others.

    Args:
        module: a model of this package, or any `torch.nn.Module` of the form of `onepeace.model.Embeds`.
        processors: processor of each modality, whose batches the module takes.
        identity: name and hash by which an index knows the model; None = see `identity`.
    """

    def stream(
        self,
        items: Iterable[object],
        *,
        modality: str | None = None,
        long: Literal["truncate", "windows"] = "truncate",
        window: float | None = None,
        hop: float | None = None,
        batch_size: int = 32,
    ) -> Generator[Embedded, None, None]:
        """Yield the result of every item in order, as soon as it is available; failures are results too.

        Memory is bounded for any number of items: at most 40 times `batch_size` items are read ahead of the results, in
        blocks of up to 64 MB of decoded values, and of a long sound only the vectors are kept. Close or exhaust the
        generator to end its threads.

        Args:
            items: see `encode`.
            modality: modality of all items; by default detected per item, as in `encode`.
            long, window, hop, batch_size: see `Options`.

        Raises:
            UserError: invalid options, or not enough memory for a batch. Errors of items are in their results.
        """
        encoding = Encoding(self, modality, long=long, window=window, hop=hop, batch_size=batch_size)
        return encoding.results(check_many(items))

    @overload
    def encode_text(
        self,
        texts: Iterable[str | os.PathLike[str]],
        *,
        on_error: Literal["raise"] = "raise",
        **options: "Unpack[Options]",
    ) -> Tensor: ...

    @overload
    def encode_text(
        self, texts: Iterable[str | os.PathLike[str]], *, on_error: Literal["skip"], **options: "Unpack[Options]"
    ) -> Skipped: ...

    def encode_text(self, texts: Iterable[str | os.PathLike[str]], **options: Any) -> Tensor | Skipped:
        """(n, E) unit vectors of texts: strings, or `pathlib.Path`s of text files."""
        return self._encode(texts, "text", **options)

    @overload
    def encode_image(
        self, images: Iterable[object], *, on_error: Literal["raise"] = "raise", **options: "Unpack[Options]"
    ) -> Tensor: ...

    @overload
    def encode_image(
        self, images: Iterable[object], *, on_error: Literal["skip"], **options: "Unpack[Options]"
    ) -> Skipped: ...

    def encode_image(self, images: Iterable[object], **options: Any) -> Tensor | Skipped:
        """(n, E) unit vectors of pictures: paths, http(s) URLs, bytes, files opened for reading bytes, PIL images,
        uint8 arrays (H, W, 3), tensors (3, H, W)."""
        return self._encode(images, "image", **options)

    @overload
    def encode_audio(
        self, sounds: Iterable[object], *, on_error: Literal["raise"] = "raise", **options: "Unpack[Options]"
    ) -> Tensor: ...

    @overload
    def encode_audio(
        self, sounds: Iterable[object], *, on_error: Literal["skip"], **options: "Unpack[Options]"
    ) -> Skipped: ...

    def encode_audio(self, sounds: Iterable[object], **options: Any) -> Tensor | Skipped:
        """(n, E) unit vectors of sounds: paths, http(s) URLs, bytes, files opened for reading bytes, (samples, rate),
        {"array": ..., "sampling_rate": ...}."""
        return self._encode(sounds, "audio", **options)

    @overload
    def encode(
        self, items: Iterable[object], *, on_error: Literal["raise"] = "raise", **options: "Unpack[Options]"
    ) -> Tensor: ...

    @overload
    def encode(
        self, items: Iterable[object], *, on_error: Literal["skip"], **options: "Unpack[Options]"
    ) -> Skipped: ...

    def encode(self, items: Iterable[object], **options: Any) -> Tensor | Skipped:
        """(n, E) unit vectors of any mix of items.

        The modality of an item is detected from its type, its file ending or its first bytes; a string that is neither
        the path of a picture or sound nor a URL is a text. A dictionary by modality, {"audio": "dog.ogg", "text": "at
        night"}, is one composed item: its vector is the sum of the vectors of its parts, renormalised. With one part,
        the dictionary states the modality: {"text": "dog.ogg"}.
        """
        return self._encode(items, **options)

    def _encode(self, items: Iterable[object], modality: str | None = None, **options: Any) -> Tensor | Skipped:
        vectors, _, failures = self._collect(items, modality, **options)
        return (vectors, failures) if options.get("on_error") == "skip" else vectors

    def _collect(
        self,
        items: Iterable[object],
        modality: str | None = None,
        *,
        progress: bool | None = None,
        on_error: str = "raise",
        **options: Any,
    ) -> tuple[Tensor, list[str], list[Embedded]]:
        """The vectors (n, E) and modalities of the items that succeed, and the results of the others."""
        from tqdm.auto import tqdm

        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error is {on_error!r}; known: 'raise', 'skip'")
        encoding = Encoding(self, modality, stops=on_error == "raise", **options)
        vectors: list[Tensor] = []
        modalities: list[str] = []
        failures: list[Embedded] = []
        with closing(encoding.results(check_many(items))) as results:
            for result in tqdm(
                results,
                desc=f"encoding {modality or 'items'}",
                total=len(items) if isinstance(items, Sized) else None,
                disable=None if progress is None else not progress,  # None: unless stderr is a terminal
                delay=1 if progress is None else 0,
                unit="item",
            ):
                if result.vector is None:
                    if on_error == "raise":
                        raise UserError(str(result.reason), where=result.name) from result.error
                    failures.append(result)
                    continue
                if result.is_silent:
                    log.warning("%s: digital silence; its vector says nothing about a sound", result.name)
                vectors.append(result.vector)
                modalities.append(str(result.modality))
        rows = torch.stack(vectors) if vectors else torch.empty(0, self.embed_dim)
        return rows, modalities, failures

    def similarity(self, a: "ArrayLike | Tensor", b: "ArrayLike | Tensor") -> Tensor:
        """Cosine similarities (n, m) of vectors `a` (n, E) and `b` (m, E)."""
        left = _unit_rows(a, "the first argument of similarity")
        right = _unit_rows(b, "the second argument of similarity", left.shape[1])
        return left @ right.T

    @overload
    def classify(
        self,
        items: Iterable[object],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        on_error: Literal["raise"] = "raise",
        **options: "Unpack[Options]",
    ) -> Tensor: ...

    @overload
    def classify(
        self,
        items: Iterable[object],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        on_error: Literal["skip"],
        **options: "Unpack[Options]",
    ) -> Skipped: ...

    def classify(
        self,
        items: Iterable[object],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Tensor | Skipped:
        """Zero-shot probabilities (n, number of labels) for items of any modality; rows sum to 1.

        Args:
            labels: names to choose from. For a model's own classes see `predict`.
            template: sentence with "{}" for the label, or "{a}" for the label with its article, such as "a photo of
                {a}", which becomes "a photo of an owl"; several are averaged.
                None = by the modality of the item or its first part: "a photo of a {}", "the sound of a {}" or "{}".
        """
        names = list(check_many(labels, "labels"))
        check_choice(names, template)
        vectors, modalities, failures = self._collect(items, **options)
        encode_text = partial(self.encode_text, batch_size=options.get("batch_size", 32), progress=False)
        logits = torch.empty(len(vectors), len(names))
        for modality in set(modalities):
            classes = prototypes(encode_text, names, template or TEMPLATE.get(modality, "{}"))
            rows = [row for row, modality_of_row in enumerate(modalities) if modality_of_row == modality]
            logits[rows] = self.logit_scale_of(modality) * (vectors[rows] @ classes.T)
        probabilities = logits.softmax(dim=1)
        return (probabilities, failures) if options.get("on_error") == "skip" else probabilities

    def features(self, item: Mapping[str, object]) -> dict[str, Tokens]:
        """Token features of one item, whose modalities are encoded in one joint pass.

        Args:
            item: {"image": ..., "text": ..., "audio": ...}, one or more of these; values as in `encode_image` etc.
        """
        return token_features(self, item)

    def explain(self, item: object, query: object) -> Explanation:
        """Heat map of how well each part of a picture or sound matches a query.

        Args:
            item: one picture, sound of any length or text, as in `encode`; not a composed item.
            query: any item that `encode` accepts, or a vector (E,) of this model.
        """
        if isinstance(query, Tensor | np.ndarray) and query.ndim == 1:
            vector = _unit_rows(query, "the query", self.embed_dim)[0]
            if not vector.any():
                raise UserError("the query is a vector of zeros, which has no direction")
        else:
            vector = self.encode([query], progress=False)[0]
        return explain(self, item, vector)

    def predict(
        self, items: Iterable[object], *, head: str | None = None, top: int = 5, batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """Results of a task head of the model; `onepeace.embed.predict.TASKS` documents the results of each task.

        Args:
            items: as in `onepeace.embed.predict.Predictor.predict`, which returns failures instead of raising them.
            head: name of a head; None if the model has only one.
            top: number of classes in a result.
        """
        results = []
        for prediction in Predictor(self, head).predict(items, batch_size=batch_size, top=top):
            if prediction.result is None:
                raise UserError(f"{prediction.reason}", where=prediction.name)
            results.append(prediction.result)
        return results


def _unit_rows(vectors: object, what: str, width: int | None = None) -> Tensor:
    """Vectors as unit rows (n, E), float32, on the CPU.

    Args:
        vectors: numbers (n, E) or (E,), as a tensor, an array or lists.
        what: their name in messages.
        width: the E that they must have; None = any.

    Raises:
        UserError: not numbers, another shape, or numbers that are not finite.
    """
    try:
        rows = torch.atleast_2d(torch.as_tensor(vectors).detach().float().cpu())
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} holds no numbers; encode it first: model.encode([...])") from error
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        raise UserError(f"{what} is {tuple(rows.shape)}; give vectors (n, {width or 'E'})")
    is_wrong = ~rows.isfinite().all(dim=1)
    if is_wrong.any():
        raise UserError(f"vector {int(is_wrong.int().argmax())} of {what} has numbers that are not finite")
    return F.normalize(rows, dim=1)
