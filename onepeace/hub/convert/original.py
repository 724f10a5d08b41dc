"""Checkpoints of the original code: described by our names of their tensors, and written as model folders."""

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from onepeace import __version__
from onepeace.config import Base, Config
from onepeace.errors import UserError
from onepeace.hub.architectures import ARCHITECTURES, Conversion, architecture, keep_modalities
from onepeace.hub.convert.unpickle import InertObject, plain, read_checkpoint
from onepeace.hub.download import from_hub
from onepeace.hub.folder import CARD, MODEL_FOLDER, TASKS, TERMS_FILE, TOKENIZER, new_folder
from onepeace.hub.tensors import LazyTensor, ModelDescription, cast, compare, expected, write_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer


_ROW = re.compile(r"(.*)\[(\d+)\]")
Tensors = dict[str, LazyTensor]
WHOLE = -1
"""Row number of a tensor that is not a row of one of ours."""


class Original(NamedTuple):
    """Content of a checkpoint file: unread tensors by their original names."""

    cfg: dict[str, Any] | None
    """The trainer's configuration; None if the file has none."""
    tensors: dict[str, Tensor]
    average: dict[str, Tensor]
    """Moving average of the weights (fairseq's EMA); {} if the file has none."""


def describe_original(path: Path) -> ModelDescription:
    """Describe a checkpoint file. UserError if it is not a checkpoint, or contains unknown tensors."""
    original = read_original(path)
    conversion = _conversion(original.tensors)
    layout = "original layout"
    if not original.cfg:
        layout += " without cfg"
    stored = original.tensors
    if conversion.has_average and original.average:
        layout += ", moving average of the weights"
        stored = original.average
    tensors = place(path, stored, conversion)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = conversion.infer_config(path, shapes, original.cfg or {})
    return ModelDescription(path, layout, config, tensors)


def read_original(path: Path) -> Original:
    """Read a checkpoint file. UserError if it is not a checkpoint."""
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}, not the dictionary of a checkpoint", where=path)
    state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, dict) or not _tensors_in(state):
        entries = ", ".join(map(str, list(content)[:8])) or "none"
        raise UserError(f"holds no weights; its entries are {entries}", where=path)
    non_tensors = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in non_tensors.items():
        type_name = value.name if isinstance(value, InertObject) else type(value).__name__
        raise UserError(f"{len(non_tensors)} of its weights are not tensors ({name} is {type_name})", where=path)
    around = content if state is not content else {}
    return Original(cfg=_cfg_in(around), tensors=_tensors_in(state), average=_average_in(around))


def _tensors_in(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}


def _cfg_in(content: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The trainer's configuration among the entries of a checkpoint."""
    stored = content.get("cfg") or content.get("args")
    cfg = plain(stored) if stored else None
    return cfg if isinstance(cfg, dict) else None


def _average_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The moving average of the weights among the entries of a checkpoint; {} if there is none."""
    extra_state = content.get("extra_state")
    if not isinstance(extra_state, dict):
        return {}
    return _tensors_in(extra_state.get("ema") or {})


def _conversion(names: Mapping[str, object]) -> Conversion:
    """Conversion of the architecture whose key map contains most of these names."""
    conversions = [entry.conversion for entry in ARCHITECTURES.values() if entry.conversion is not None]
    return max(conversions, key=lambda conversion: sum(_translate(conversion, name)[1] for name in names))


def _translate(conversion: Conversion, name: str) -> tuple[str | None, bool]:
    """Our name of a tensor, None if it is dropped, and whether the key map contains it."""
    try:
        return conversion.to_ours(name), True
    except LookupError:
        return None, False


def place(path: Path, tensors: Mapping[str, Tensor], conversion: Conversion) -> dict[str, LazyTensor]:
    """Translate the names of all tensors to ours. UserError for names that are not in the key map."""
    rows_by_name: dict[str, dict[int, Tensor]] = {}
    original_names: dict[str, str] = {}
    unknown = []
    for original_name, tensor in tensors.items():
        name, is_known = _translate(conversion, original_name)
        if not is_known:
            unknown.append(original_name)
        if name is None:
            continue
        if name in original_names:
            raise UserError(f"{original_names[name]} and {original_name} are both {name}", where=path)
        original_names[name] = original_name
        row = _ROW.fullmatch(name)
        if row is None:
            rows_by_name.setdefault(name, {})[WHOLE] = tensor
        else:
            rows_by_name.setdefault(row[1], {})[int(row[2])] = tensor
    if unknown:
        names = f"{', '.join(unknown[:4])}{', ...' if len(unknown) > 4 else ''}"
        raise UserError(f"{len(unknown)} of {len(tensors)} tensors have no place here ({names})", where=path)
    return {name: _assembled(rows, conversion.kept_axes.get(name)) for name, rows in rows_by_name.items()}


def _assembled(rows: Mapping[int, Tensor], kept_axes: int | None) -> LazyTensor:
    """One of our tensors: one stored tensor, or several whose values become its rows."""
    tensors = [rows[index] for index in sorted(rows)]
    shape = tuple(tensors[0].shape)
    if WHOLE not in rows:
        shape = (len(tensors), shape[-1])
    elif kept_axes is not None:
        shape = shape[-kept_axes:]
    return LazyTensor(shape, tensors[0].dtype, partial(_joined, tensors, shape))


def _joined(tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    whole = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
    return whole.reshape(shape)


def converted_tensors(source: ModelDescription, config: Config, dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    """The tensors of a configuration, unread, in a dtype; None = that of the file."""
    tensors = {}
    for name, shape in expected(config).items():
        tensor = source.tensors[name]
        final_dtype = tensor.dtype if dtype is None else dtype
        read = partial(_read, tensor, final_dtype, f"{source.path}: {name}")
        tensors[name] = LazyTensor(shape, final_dtype, read)
    return tensors


def write_converted(
    source: ModelDescription,
    out: Path,
    *,
    modalities: Collection[str] | None = None,
    dtype: torch.dtype | None = None,
    bpe: str | Path | None = None,
    leave_out: "Callable[[Tensors], tuple[Tensors, Base]] | None" = None,
    replace_existing: bool = False,
    progress: bool = False,
) -> None:
    """Write the model folder `out` with the tensors of `source`, and the tasks and terms beside them as they are.

    Args:
        modalities, dtype, bpe, replace_existing: see `onepeace.hub.weights.convert`.
        leave_out: takes the tensors out that a base model has, and names it.
    """
    where = str(source.path)
    config = replace(source.config, base=None)
    compare(where, source.shapes, expected(config))
    if modalities is not None:
        config = keep_modalities(config, modalities, where)
    tokenizer = fetch_tokenizer(source, bpe, config)
    tensors = converted_tensors(source, config, dtype)
    if leave_out is not None:
        tensors, base = leave_out(tensors)
        config = replace(config, base=base)
    with new_folder(out, replace=replace_existing) as temporary:
        if tokenizer is not None:
            (temporary / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        if source.layout == MODEL_FOLDER:
            for name in (TASKS, TERMS_FILE):
                if (source.path / name).is_file():
                    shutil.copyfile(source.path / name, temporary / name)
        write_folder(temporary, tensors, config, _card(source, config), progress=progress)


def fetch_vocabulary(folder: str | Path | None, size: int | None = None) -> "Tokenizer":
    """The released vocabulary from `folder`, or from the Hub; UserError if it does not have `size` pieces."""
    from onepeace.processors.tokenizer import from_released

    if folder is None:
        remedy = "run: onepeace convert CHECKPOINT -o OUT --bpe DIR, with encoder.json, vocab.bpe and dict.txt in DIR"
        folder = from_hub("facebook/bart-base", ["vocab.json", "merges.txt"], "the vocabulary of its texts", remedy)
    tokenizer = from_released(folder)
    if size not in (None, pieces := tokenizer.get_vocab_size()):
        raise UserError(f"has {pieces} pieces, the model's table {size}; another vocabulary", where=folder)
    return tokenizer


def fetch_tokenizer(source: ModelDescription, bpe: str | Path | None, config: Config) -> "Tokenizer | None":
    from onepeace.processors.tokenizer import read_tokenizer

    if "text" not in config.model.adapters:
        return None
    if source.layout == MODEL_FOLDER:
        return read_tokenizer(source.path / TOKENIZER)
    return fetch_vocabulary(bpe, config.model.adapters["text"]["vocab_size"])


def _read(tensor: LazyTensor, dtype: torch.dtype, where: str) -> Tensor:
    return cast(tensor.read(), dtype, where)


def _card(source: ModelDescription, config: Config) -> str:
    """Text of MODEL_CARD.md; a model folder keeps its own."""
    if source.layout == MODEL_FOLDER:
        card = source.path / CARD
        return card.read_text(encoding="utf-8") if card.is_file() else f"# {source.path.name}\n"
    conversion = architecture(config.architecture).conversion
    lines = [
        f"# {source.path.stem}\n",
        f"Converted by onepeace {__version__} from `{source.path.name}` "
        f"({source.file_bytes:,} bytes; {source.layout}).\n",
        f"- Modalities: {', '.join(config.model.adapters)}\n",
        conversion.credit if conversion else "",
    ]
    return "\n".join(lines).rstrip() + "\n"
