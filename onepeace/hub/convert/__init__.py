"""A released checkpoint becomes a model folder (`onepeace convert`); none of its code is run, no tensor left over.

A model folder may be converted too: to another dtype or picture size, or to fewer modalities.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onepeace import __version__
from onepeace.config import Config
from onepeace.errors import UserError
from onepeace.hub.architectures import keep_modalities
from onepeace.hub.convert.original import Original, Source, read_original
from onepeace.hub.folder import CARD, TOKENIZER, check_free, new_folder, read_config
from onepeace.hub.shards import Entry
from onepeace.hub.weights import (
    cast,
    compare,
    expected,
    stored,
    stored_dtype,
    write_folder,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["convert", "read_original", "vocabulary"]


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    image_size: int | None = None,
    modalities: Collection[str] | None = None,
    dtype: str | torch.dtype | None = None,
    bpe: str | Path | None = None,
    replace_existing: bool = False,
    progress: bool = False,
) -> Path:
    """Convert an original checkpoint (.pt, .pth, .pkl), or a model folder, into the model folder `out`.

    Tensors are read, changed and written one at a time: a file of any size takes the memory of its largest tensor.

    Args:
        image_size: side of pictures in pixels; resamples the table of relative positions (larger or smaller).
        modalities: keep only these.
        dtype: "float32", "bfloat16" or "float16"; None keeps the file's.
        bpe: folder with the vocabulary (encoder.json, vocab.bpe, dict.txt; or vocab.json, merges.txt). None fetches
            facebook/bart-base's from the Hugging Face Hub if the model reads text. A model folder has its own.
        replace_existing: replace `out` if it is a model folder already.

    Raises:
        UserError: unreadable or hostile file, tensors that are missing, left over or misshapen, no vocabulary.
    """
    out = Path(out)
    target = None if dtype is None else stored_dtype(dtype)
    check_free(out, replace=replace_existing)
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else None
    original = Original.open(checkpoint) if folder is None else _model_folder(folder)
    where = str(original.path)
    compare(where, {name: piece.shape for name, piece in original.pieces.items()}, expected(original.config))
    config = original.config
    if modalities is not None:
        config = keep_modalities(config, modalities, where)
    if image_size is not None:
        config = _with_image_size(config, image_size)
    tokenizer = _tokenizer(folder, bpe, config)
    entries = {}
    for name, shape in expected(config).items():
        piece = original.pieces[name]
        final = piece.dtype if target is None else target
        entries[name] = Entry(final, shape, partial(_read, piece, shape, final, f"{where}: {name}"))
    with new_folder(out, replace=replace_existing) as temporary:
        if tokenizer is not None:
            tokenizer.save(str(temporary / TOKENIZER))
        card = _card(original, config) if folder is None else _own_card(folder)
        write_folder(temporary, entries, config, card, progress=progress)
    return out


def _model_folder(folder: Path) -> Original:
    """A model folder as a source of tensors: their names are ours already."""
    return Original(folder, "model folder", stored(folder), read_config(folder))


def _tokenizer(folder: Path | None, bpe: str | Path | None, config: Config) -> "Tokenizer | None":
    from onepeace.processors.tokenizer import read_tokenizer

    if "text" not in config.model.adapters:
        return None
    if folder is not None:
        return read_tokenizer(folder / TOKENIZER)
    return vocabulary(bpe, config.model.adapters["text"]["vocab_size"])


def _own_card(folder: Path) -> str:
    card = folder / CARD
    return card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.name}\n"


def vocabulary(folder: str | Path | None, size: int | None = None) -> "Tokenizer":
    """The released vocabulary from `folder`, or from the Hub; UserError when it has not `size` pieces."""
    from onepeace.processors.tokenizer import from_released

    source = Path(folder) if folder is not None else _from_hub()
    tokenizer = from_released(source)
    if size is not None and tokenizer.get_vocab_size() != size:
        raise UserError(
            f"{source}: has {tokenizer.get_vocab_size()} pieces, the model's table {size}; another vocabulary"
        )
    return tokenizer


def _from_hub() -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download("facebook/bart-base", allow_patterns=["vocab.json", "merges.txt"]))
    except Exception as error:  # its errors come from several HTTP packages
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            "the model reads text and its vocabulary (facebook/bart-base of the Hugging Face Hub) could not be fetched "
            f"({reason}); give a folder with encoder.json, vocab.bpe and dict.txt: --bpe DIR"
        ) from error


def _with_image_size(config: Config, size: int) -> Config:
    if "image" not in config.model.adapters:
        raise UserError(f"image size {size}: the model has no images, only {', '.join(config.model.adapters)}")
    patch = config.model.adapters["image"]["patch_size"]
    if size < 3 * patch or size % patch:
        raise UserError(f"image size {size} must be a multiple of the patch size {patch}, at least {3 * patch}")
    image = {**config.model.adapters["image"], "bias_grid": size // patch}
    model = replace(config.model, adapters={**config.model.adapters, "image": image})
    return replace(
        config, model=model, processors={**config.processors, "image": {**config.processors["image"], "size": size}}
    )


def _read(piece: Source, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> Tensor:
    tensor = piece.read()
    if tuple(tensor.shape) != shape:  # compared before: only the tables of another image size differ
        tensor = _resized(tensor, shape[0], where)
    return cast(tensor, dtype, where)


def _resized(table: Tensor, rows: int, where: str) -> Tensor:
    from onepeace.layers.position import grid_table_rows, resize_bias_table

    side = next(side for side in range(1, rows) if grid_table_rows(side) == rows)
    try:
        return resize_bias_table(table, side)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _card(original: Original, config: Config) -> str:
    model = config.model
    size = original.path.stat().st_size
    return f"""# {original.path.stem}

Converted by onepeace {__version__} from `{original.path.name}` ({size:,} bytes; {original.layout}).

- Modalities: {", ".join(model.adapters)}
- Width {model.dim}, {model.depth} blocks, {model.num_heads} heads, FFN {model.ffn_dim}
- Projections into the shared space: {", ".join(model.projections) or "none"}
- Heads: {", ".join(f"{name} ({head['num_classes']} outputs)" for name, head in model.heads.items()) or "none"}

Weights by the authors of ONE-PEACE (Wang et al., arXiv 2305.11172; https://github.com/OFA-Sys/ONE-PEACE, Apache-2.0).
"""
