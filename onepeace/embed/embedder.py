"""Embedder: `load` a model, embed pictures, sounds and texts in one vector space, compare and classify.

Every result comes from `Embedder.stream`; stream.py has the steps from an item to its vector.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.compiling import compile_blocks
from onepeace.device import SMALL, choose_device, choose_dtype
from onepeace.embed.digest import digest
from onepeace.embed.explain import Explanation, explain
from onepeace.embed.items import check_many, name_of, parts_of
from onepeace.embed.options import Keywords, Options, read_options
from onepeace.embed.parts import CompositeItem, Part
from onepeace.embed.predict import Predictor
from onepeace.embed.stream import Assembly, Batcher, Embedded, Waiting, decode_ahead
from onepeace.embed.zero_shot import TEMPLATE, prototypes
from onepeace.errors import UserError
from onepeace.hub import weights as weight_files
from onepeace.hub.architectures import build_encoder
from onepeace.hub.folder import read_config
from onepeace.hub.identity import Identity, identify
from onepeace.hub.resolve import resolve
from onepeace.model import INITIAL_SCALE, Encoder
from onepeace.processors.known import processor_class
from onepeace.processors.processor import Processor
from onepeace.threads import Batch, Computing, Result, num_workers

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

WINDOW = 64
"""Maximum number of decoded samples waiting for others of similar size."""
ITEMS_AHEAD, WINDOWS_AHEAD = 8, 16
"""Items decoded ahead when long sounds are cut into windows, and windows decoded ahead per sound; both bound memory."""

Encoded: TypeAlias = Tensor | tuple[Tensor, list[Embedded]]
"""float32 vectors on the CPU; with on_error="skip", also the results of the failed items."""


class Tokens(NamedTuple):
    """Token features of one modality from a joint pass of all given modalities."""

    cls: Tensor
    """(D,) float32: the CLS token."""
    features: Tensor
    """(L, D) float32, without the CLS token."""
    positions: Tensor
    """(L, 2): the extent that each token covers, in `unit`."""
    unit: str
    """"patch": row and column; "second": start and end; "character": start and end in the text after
    `onepeace.processors.TextProcessor.prepare`; "token" (custom modalities): its index and the next."""


def load(
    name: str | os.PathLike = "tiny",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    modalities: Iterable[str] | None = None,
    compile: bool = False,
) -> "Embedder":
    """Load a model by name, ready to encode.

    Args:
        name: "tiny" (bundled), a model folder, a Hugging Face repo id, or a released model ("one-peace", ...).
        device: "cpu", "cuda", "cuda:1", "mps"; None = the best available.
        dtype: "float32", "bfloat16" or "float16" (not on a CPU). "auto" is bfloat16 on devices that are fast at it,
            except for models below 100 million parameters on a CPU; else float32. Vectors are always float32; in
            float32 a vector is the same in every batch to within 1e-5, in bfloat16 rounding varies with the batch.
        modalities: keep only these, to save memory.
        compile: torch.compile the blocks, where it pays (`onepeace.compiling`); the first batches take longer.

    Raises:
        UserError: no model of that name, unreadable or mismatching files, an unknown device, dtype or modality.
    """
    chosen = choose_device(device)
    folder = resolve(str(name))
    config = read_config(folder)
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in build_encoder(config, str(name)).parameters())
    precision = choose_dtype(dtype, chosen, num_parameters)
    wanted = [modalities] if isinstance(modalities, str) else None if modalities is None else list(modalities)
    module = weight_files.load_encoder(folder, chosen, precision, wanted)
    if compile:
        compile_blocks(module)
    processors = {}
    for key in module.config.adapters:
        processors[key] = processor_class(key).from_config(config.processors.get(key, {}), folder)
    return Embedder(module, processors, identify(name))


class Embedder:
    """A model with the processors of its modalities.

    `stream` yields results one by one; the `encode` methods collect them. All accept any iterable, keep the order and
    share the keyword arguments of `onepeace.embed.options.Options`. On a CPU, each core computes its own batches.

    Args:
        module: has ``config.embed_dim`` and ``config.projections``, the modalities with vectors; called with {modality:
            inputs}, it returns {modality: (B, E)}. A module of your own needs no more for vectors.
        processors: of each modality.
        identity: name and hash by which an index knows the model; None = see `identity`.
    """

    def __init__(self, module: Encoder, processors: Mapping[str, Processor], identity: Identity | None = None) -> None:
        self.module = module.eval()
        self.processors = dict(processors)
        self._identity = identity

    def __repr__(self) -> str:
        return (
            f"Embedder({', '.join(self.modalities)}; embed_dim={self.embed_dim}, device={self.device}, "
            f"dtype={str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities of the model: a subset of "text", "image", "audio"."""
        return tuple(self.processors)

    @property
    def embed_dim(self) -> int:
        """Dimension E of the embeddings."""
        return self.module.config.embed_dim

    @property
    def identity(self) -> Identity:
        """Name and hash by which an index knows this model: those of `load` or of whoever made the object, else a
        digest of its weights and processors (onepeace/embed/digest.py), which is computed once."""
        if self._identity is None:
            self._identity = Identity(type(self.module).__name__, digest(self.module, self.processors))
        return self._identity

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def logit_scale(self) -> float:
        """Scale from cosines to logits; CLIP's initial value if the model has not learned one."""
        return INITIAL_SCALE if self.module.logit_scale is None else self.module.logit_scale.float().exp().item()

    def stream(
        self, items: Iterable[object], *, modality: str | None = None, **options: "Unpack[Keywords]"
    ) -> Generator[Embedded, None, None]:
        """Yield the result of every item in order, as soon as it is available; failures are results too.

        Memory is bounded for any number of items: `items` is read ahead of the results by about 16 batches or 256 items
        at most, whichever is more, and only the vectors of a long sound are kept. Close or exhaust the generator to end
        its threads.

        Args:
            items: see `encode`.
            modality: modality of all items; by default detected per item, as in `encode`.

        Raises:
            UserError: invalid options, or not enough memory for a batch. Errors of items are in their results.
        """
        return self._stream(items, read_options(options, modality))

    def encode_text(self, texts: Iterable[str | os.PathLike], **options: "Unpack[Keywords]") -> Encoded:
        """(n, E) unit vectors of texts: strings, or `pathlib.Path`s of text files."""
        return self._encode(texts, read_options(options, "text"))

    def encode_image(self, images: Iterable[object], **options: "Unpack[Keywords]") -> Encoded:
        """(n, E) unit vectors of pictures: paths, http(s) URLs, bytes, PIL images, uint8 arrays (H, W, 3), tensors
        (3, H, W)."""
        return self._encode(images, read_options(options, "image"))

    def encode_audio(self, sounds: Iterable[object], **options: "Unpack[Keywords]") -> Encoded:
        """(n, E) unit vectors of sounds: paths, http(s) URLs, bytes, (samples, rate), {"array": ..., "sampling_rate":
        ...}."""
        return self._encode(sounds, read_options(options, "audio"))

    def encode(self, items: Iterable[object], **options: "Unpack[Keywords]") -> Encoded:
        """(n, E) unit vectors of any mix of items.

        The modality of an item is detected from its type, its file ending or its first bytes; a string that is neither
        the path of a picture or sound nor a URL is a text. A dictionary by modality, {"audio": "dog.ogg", "text": "at
        night"}, is one composed item: its vector is the sum of the vectors of its parts, renormalised. With one part,
        the dictionary states the modality: {"text": "dog.ogg"}.
        """
        return self._encode(items, read_options(options))

    def similarity(self, a: "ArrayLike | Tensor", b: "ArrayLike | Tensor") -> Tensor:
        """Cosine similarities (n, m) of vectors `a` (n, E) and `b` (m, E)."""
        left = _unit_rows(a, "the first argument of similarity")
        return left @ _unit_rows(b, "the second argument of similarity", left.shape[1]).T

    def classify(
        self,
        items: Iterable[object],
        labels: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        **options: "Unpack[Keywords]",
    ) -> Encoded:
        """Zero-shot probabilities (n, number of labels) for items of any modality; rows sum to 1.

        Args:
            labels: names to choose from. For a model's own classes see `predict`.
            template: sentence with "{}" for the label, or "{a}" for the label with its article; several are averaged.
                None = by the modality of the item or its first part: "a photo of a {}", "the sound of a {}" or "{}".
        """
        chosen = read_options(options)
        encode_text = partial(self.encode_text, batch_size=chosen.batch_size, progress=False)
        names = list(check_many(labels, "labels"))
        templates = TEMPLATE if template is None else {"text": template}
        classes = {kind: prototypes(encode_text, names, one) for kind, one in templates.items()}
        vectors, modalities, failures = self._collect(items, chosen)
        cosines = torch.empty(len(vectors), len(names))
        for modality in set(modalities):
            rows = [row for row, one in enumerate(modalities) if one == modality]
            cosines[rows] = vectors[rows] @ classes.get(modality, classes["text"]).T
        shares = (self.logit_scale * cosines).softmax(dim=1)
        return (shares, failures) if chosen.on_error == "skip" else shares

    def features(self, item: Mapping[str, object]) -> dict[str, Tokens]:
        """Token features of one item, whose modalities are encoded in one joint pass.

        Args:
            item: {"image": ..., "text": ..., "audio": ...}, one or more of these; values as in `encode_image` etc.
        """
        if not isinstance(item, Mapping) or not item:
            raise UserError(f'features takes a dictionary by modality: {{"{self.modalities[0]}": ...}}')
        inputs = {key: self.inputs(key, [self.processor(key).decode(value)]) for key, value in item.items()}
        with torch.no_grad():
            features = {key: tokens[0].float().cpu() for key, tokens in self.module.features(inputs).items()}
        tokens_by_key = {}
        for key, value in item.items():
            covered = self.processors[key].token_positions(value)
            covered = covered or self.module.adapters[key].token_positions(inputs[key])
            tokens_by_key[key] = Tokens(features[key][0], features[key][1:], *covered)
        return tokens_by_key

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
            return explain(self, item, vector)
        return explain(self, item, torch.as_tensor(self.encode([query], progress=False))[0])

    def predict(
        self, items: Iterable[object], *, head: str | None = None, top: int = 5, batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """Results of a task head of the model; onepeace/embed/tasks.py documents the results of each task.

        Args:
            items: as in `onepeace.embed.predict.Predictor.predict`, which returns failures instead of raising them.
            head: name of a head; None if the model has only one.
            top: number of classes in a result.
        """
        results = []
        for found in Predictor(self, head).predict(items, batch_size=batch_size, top=top):
            if found.result is None:
                raise UserError(f"{found.name}: {found.reason}")
            results.append(found.result)
        return results

    def inputs(self, modality: str, samples: list[Tensor]) -> dict[str, Tensor]:
        """Collate decoded samples of one modality into model input, on the model's device."""
        processor = self.processors[modality]
        return {
            name: value.to(self.device, self.dtype if name in processor.cast_inputs else None)
            for name, value in processor.collate(samples).items()
        }

    def computing(self, compute: Callable[[Batch], Result]) -> Computing[Batch, Result]:
        """Encode batches with this model; on a CPU, several at a time."""
        small = sum(parameter.numel() for parameter in self.module.parameters()) < SMALL
        return Computing(compute, num_workers(self.device), alone=small)

    def _encode(self, items: Iterable[object], options: Options) -> Encoded:
        vectors, _, failures = self._collect(items, options)
        return (vectors, failures) if options.on_error == "skip" else vectors

    def _collect(self, items: Iterable[object], options: Options) -> tuple[Tensor, list[str], list[Embedded]]:
        """The vectors (n, E) and modalities of the items that succeed, and the failures unless they are raised."""
        from tqdm.auto import tqdm

        vectors: list[Tensor] = []
        modalities: list[str] = []
        failures: list[Embedded] = []
        total = len(items) if isinstance(items, Sized) else None
        off, delay = (None, 1) if options.progress is None else (not options.progress, 0)
        with closing(self._stream(items, options)) as results:
            name = f"encoding {options.modality or 'items'}"
            for result in tqdm(results, desc=name, total=total, disable=off, delay=delay, unit="item"):
                if result.vector is not None:
                    if result.is_silent:
                        log.warning("%s: digital silence; its vector says nothing about a sound", result.name)
                    vectors.append(result.vector)
                    modalities.append(str(result.modality))
                elif options.on_error == "raise":
                    raise UserError(f"{result.name}: {result.reason}") from result.error
                else:
                    failures.append(result)
        return torch.stack(vectors) if vectors else torch.empty(0, self.embed_dim), modalities, failures

    def _stream(self, items: Iterable[object], options: Options) -> Generator[Embedded, None, None]:
        if options.modality is not None:
            self.processor(options.modality, projected=True)
        check_many(items)
        ahead = 2 * options.batch_size if options.long == "truncate" else ITEMS_AHEAD
        computing = self.computing(self._compute)
        batcher = Batcher(computing.share(options.batch_size), max(WINDOW, 4 * options.batch_size))
        line: deque[Assembly] = deque()
        """The items whose results have not been yielded yet, in order."""

        def finished() -> Iterator[Embedded]:
            while line and line[0].done:
                yield line.popleft().result(windows=options.long == "windows")

        def filled(computed: Iterable[tuple[list[Waiting], Tensor]]) -> Iterator[Embedded]:
            for batch, vectors in computed:
                for entry, vector in zip(batch, vectors, strict=True):
                    entry.assembly.fill(entry.row, vector)
                yield from finished()

        with closing(decode_ahead(items, partial(self._read, options=options), ahead=ahead)) as decoded, computing:
            for index, item, parts in decoded:
                assembly = Assembly(index, name_of(index, item), self.dtype)
                line.append(assembly)
                if isinstance(parts, Exception):
                    assembly.error, parts = parts, []
                for modality, sample, row in assembly.samples(parts):
                    size = self.processors[modality].size(sample)
                    if batch := batcher.add(Waiting(modality, size, sample, assembly, row)):
                        yield from filled(computing.start(batch))
                # The first item in line has a sample of a rare size, which still waits for others of that size.
                while len(line) > 4 * batcher.window and not line[0].done:
                    yield from filled(computing.rest() if computing.busy else computing.start(batcher.around_oldest()))
                yield from finished()
            yield from filled(computing.finish(list(batcher.rest(computing.workers))))
            yield from finished()

    def _read(self, item: object, options: Options) -> list[Part]:
        """The decoded parts of one item."""

        def cut(modality: str, value: object) -> Iterator[tuple[float, float, Tensor]]:
            processor = self.processor(modality, projected=True)
            if options.long == "truncate":
                yield 0.0, 0.0, processor.decode(value)
            else:
                yield from processor.windows(value, options.window, options.hop)

        if isinstance(item, list):
            raise UserError("it is a list inside the list of items; give one flat list")
        if isinstance(item, CompositeItem):
            return item.parts(cut)
        if options.modality and isinstance(item, Mapping) and item.keys() & self.processors.keys():
            raise UserError(f"it is a dictionary by modality; give it to `encode`, or its {options.modality} alone")
        values = parts_of(item, self.processors) if options.modality is None else [(options.modality, item)]
        parts = [(key, cut(key, value)) for key, value in values]
        # The rest of a long sound is decoded when its turn comes, so that hours of it are never in memory.
        return [Part(key, chain(list(islice(pieces, WINDOWS_AHEAD)), pieces)) for key, pieces in parts]

    def _compute(self, batch: list[Waiting]) -> Tensor:
        """The vectors (B, E) of a batch."""
        modality = batch[0].modality
        try:
            with torch.inference_mode():
                inputs = {modality: self.inputs(modality, [entry.sample for entry in batch])}
                vectors = F.normalize(self.module(inputs)[modality].float().cpu(), dim=1)
        except torch.OutOfMemoryError as error:
            raise UserError(f"no memory for {len(batch)} {modality} items at once; lower batch_size") from error
        return vectors.clone()  # outside inference mode, so that the vectors can be used in training

    def processor(self, modality: str, projected: bool = False) -> Processor:
        """The processor of a modality; `projected` requires that the model has a projection for it."""
        if modality not in self.processors:
            raise UserError(f"this model has no {modality}; it has {', '.join(self.processors)}")
        if projected and modality not in self.module.config.projections:
            raise UserError(f"this model has no projection for vectors of {modality}; use predict or features")
        return self.processors[modality]


def _unit_rows(vectors: object, what: str, width: int | None = None) -> Tensor:
    """Given vectors as unit rows (n, E) on the CPU; UserError, with `what` as their name, if they are not valid."""
    try:
        rows = torch.atleast_2d(torch.as_tensor(vectors).detach().float().cpu())
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} holds no numbers; encode it first: model.encode([...])") from error
    if rows.ndim != 2 or rows.shape[1] != (width or rows.shape[1]):
        raise UserError(f"{what} is {tuple(rows.shape)}; give vectors (n, {width or 'E'})")
    if wrong := (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist():
        raise UserError(f"vector {wrong[0]} of {what} has numbers that are not finite")
    return F.normalize(rows, dim=1)
