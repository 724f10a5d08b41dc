"""Models of transformers as teachers of pictures, sounds and texts, with their own preprocessing."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.device import choose_device
from onepeace.errors import UserError, one_line
from onepeace.processors import AudioProcessor
from onepeace.train.teachers.items import SAMPLE_RATE, Teacher, autocast

Inputs = dict[str, Tensor]
"""Inputs of a model by its names; the first axis of each is the items."""
Prepare = Callable[[list[Any]], list[tuple[list[int], Inputs]]]
"""Items -> groups of them: their indices, and their inputs as one batch."""

MODALITIES = ("text", "image", "audio")
DEFAULT_TOKENS = 512
"""Length of texts where neither the tokenizer nor the model has a limit (T5)."""


def transformers_teacher(name: str, modality: str, output: str = "features") -> Teacher:
    """A model of transformers: items of one modality -> vectors (n, F) in the model's own space.

    Models that compare modalities (CLIP, SigLIP, CLAP) give their projected vectors. Others give their pooled output,
    or the mean of the last hidden states over the real tokens where no pooler was trained.

    Args:
        name: a folder, or a repository on the Hub. Code that comes with weights is never run.
        modality: text, image or audio.
        output: features; there are no scores.

    Raises:
        UserError: the model cannot be had, or does not read the modality.
    """
    import transformers as library

    try:
        # Checkpoints in half precision too: autocast chooses the precision.
        model, loading = library.AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # a wrong name, no network and a damaged file are of many types
        raise UserError(
            f"transformers:{name}: the teacher cannot be had ({one_line(error):.200}); check its name and the network, "
            "or give a folder with its files"
        ) from error
    projected = [key for key in MODALITIES if hasattr(model, f"get_{key}_features")]
    if projected and modality not in projected:
        raise UserError(f"the teacher transformers:{name} reads {', '.join(projected)}, not {modality}")
    if not projected and model.config.is_encoder_decoder:
        model = model.get_encoder()
    try:
        prepare = PREPARES[modality](library, name, model)
    except Exception as error:
        raise UserError(
            f"transformers:{name}: no preprocessing of {modality} ({one_line(error):.200}); give a teacher of "
            f"{modality}, or a folder with all its files"
        ) from error
    features = getattr(model, f"get_{modality}_features", None)
    untrained = any(key.startswith("pooler.") for key in loading["missing_keys"])
    # That of text models was trained, if at all, to tell whether two sentences follow each other.
    use_pooler = not untrained and not (modality == "text" and hasattr(model, "pooler"))
    device = choose_device()
    model = model.eval().to(device)

    def vectors(inputs: Inputs) -> Tensor:
        if features is not None:
            found = features(**inputs)
            return found if isinstance(found, Tensor) else found.pooler_output  # a tensor before transformers 5
        found = model(**inputs)
        pooled = getattr(found, "pooler_output", None) if use_pooler else None
        if pooled is None:
            return mean_of_real(found.last_hidden_state.float(), inputs.get("attention_mask"))
        return pooled.flatten(1)  # (n, C, 1, 1) of convolutional networks

    def encode(items: list[Any]) -> Tensor:
        rows: dict[int, Tensor] = {}
        for indices, inputs in prepare(items):  # in full precision, resampling above all
            with torch.inference_mode(), autocast(device):
                found = vectors({key: tensor.to(device) for key, tensor in inputs.items()})
            rows.update(zip(indices, found.float().cpu(), strict=True))
        return torch.stack([rows[i] for i in range(len(items))])

    return encode


def mean_of_real(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the positions that are no padding.

    Args:
        hidden: (n, L, C), or (n, C, H, W) of convolutional networks.
        mask: (n, T), nonzero = real, of the model's input. Where the model shortens it (samples to frames), so is the
            share that is real, from the left.

    Returns:
        (n, C).
    """
    if hidden.ndim == 4:
        return hidden.mean((2, 3))
    if mask is None:
        return hidden.mean(1)
    length, total = hidden.shape[1], mask.shape[1]
    if length == total:
        real = mask.bool()
    else:
        counts = torch.ceil(mask.sum(1) * (length / total))
        real = torch.arange(length, device=mask.device) < counts[:, None]
    real = real.unsqueeze(-1)
    return (hidden * real).sum(1) / real.sum(1)


def _prepare_images(library: Any, name: str, model: nn.Module) -> Prepare:
    processor = library.AutoImageProcessor.from_pretrained(name)

    def prepare(pictures: list[Any]) -> list[tuple[list[int], Inputs]]:
        return _by_shape([processor(images=[one.convert("RGB")], return_tensors="pt") for one in pictures])

    return prepare


def _prepare_sounds(library: Any, name: str, model: nn.Module) -> Prepare:
    extractor = library.AutoFeatureExtractor.from_pretrained(name)
    rate = extractor.sampling_rate
    resample = AudioProcessor(sample_rate=rate).load
    # CLAP would take a random part of a longer sound: the first one, so that a vector is the same every time.
    longest = extractor.nb_max_samples if hasattr(extractor, "nb_max_samples") else sys.maxsize

    def one(samples: Tensor) -> Inputs:
        resampled = resample((samples, SAMPLE_RATE))[:longest].numpy()
        # Whisper's fills every sound up to 30 seconds, and says which are real only when asked.
        return extractor([resampled], sampling_rate=rate, return_tensors="pt", return_attention_mask=True)

    return lambda sounds: _by_shape([one(samples) for samples in sounds])


def _prepare_texts(library: Any, name: str, model: Any) -> Prepare:
    tokenizer = library.AutoTokenizer.from_pretrained(name)
    options: dict[str, Any] = {"padding": True}
    if model.config.model_type.startswith("siglip"):  # it was trained to read its padding
        options = {"padding": "max_length", "return_attention_mask": False}
    limit = max_tokens(tokenizer, model)

    def prepare(texts: list[str]) -> list[tuple[list[int], Inputs]]:
        inputs = tokenizer(texts, truncation=True, max_length=limit, return_tensors="pt", **options)
        return [(list(range(len(texts))), dict(inputs))]

    return prepare


def max_tokens(tokenizer: Any, model: Any) -> int:
    """The longest text that tokenizer and model read, in tokens."""
    rows = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if rows is None:
        return tokenizer.model_max_length if tokenizer.model_max_length < 1e9 else DEFAULT_TOKENS
    # RoBERTa counts positions from the one after its padding's.
    tables = [module for key, module in model.named_modules() if key.endswith("position_embeddings")]
    skipped = [table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None]
    return min(tokenizer.model_max_length, rows - max(skipped, default=0))


def _by_shape(prepared: list[Any]) -> list[tuple[list[int], Inputs]]:
    """Items that were prepared each alone, in batches of those of one shape: none is padded for another's sake."""
    groups: dict[Any, list[int]] = {}
    for i, inputs in enumerate(prepared):
        groups.setdefault(tuple((key, tensor.shape) for key, tensor in inputs.items()), []).append(i)
    return [
        (indices, {key: torch.cat([prepared[i][key] for i in indices]) for key in prepared[indices[0]]})
        for indices in groups.values()
    ]


PREPARES: dict[str, Callable[[Any, str, Any], Prepare]] = {
    "text": _prepare_texts,
    "image": _prepare_images,
    "audio": _prepare_sounds,
}
