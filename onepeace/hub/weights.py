"""Model folders (config.yaml, model.safetensors, tokenizer.json, MODEL_CARD.md): written atomically, read strictly,
described, and converted (`onepeace convert`).
"""

import os
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from onepeace.config import Base, Config
from onepeace.device import choose_dtype, count_parameters, named_dtype
from onepeace.errors import UsageError, UserError, expect
from onepeace.hub.architectures import build_module, check_encodes, check_own_weights, keep_modalities
from onepeace.hub.convert.original import describe_original, write_converted
from onepeace.hub.folder import MODEL_FOLDER, TASKS, TOKENIZER, check_free, new_folder
from onepeace.hub.resolve import OpenModel, fetch_model, open_model
from onepeace.hub.tensors import (
    LazyTensor,
    ModelDescription,
    build_without_values,
    cast,
    compare,
    expected,
    open_weights,
    shapes_of,
    write_folder,
)
from onepeace.model import Encoder, Trained


def save(
    folder: str | Path,
    weights: nn.Module | Mapping[str, Tensor],
    config: Config,
    *,
    tokenizer: str | Path | None = None,
    tasks: str | Path | None = None,
    card: str = "",
    dtype: str | torch.dtype = "float32",
) -> Path:
    """Write a model folder atomically, replacing an older one: readers find either the old or the new one.

    Args:
        weights: the module or its state dictionary; it must have exactly the tensors of `config`.
        tokenizer: the tokenizer.json to copy; needed by models that read text.
        tasks: the tasks.yaml to copy, for generative models: the tasks that it was trained for.
        card: text of MODEL_CARD.md.
        dtype: "float32", "bfloat16" or "float16".
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    target = named_dtype(dtype)
    compare(f"{folder}", {name: tuple(tensor.shape) for name, tensor in state.items()}, expected(config))
    entries = {}
    for name, tensor in state.items():
        stored = target if tensor.is_floating_point() else tensor.dtype
        read = partial(cast, tensor, stored, f"{folder}: {name}")
        entries[name] = LazyTensor(tuple(tensor.shape), stored, read)
    folder = Path(folder)
    with new_folder(folder, replace=True) as temporary:
        if tokenizer is not None:
            shutil.copyfile(tokenizer, temporary / TOKENIZER)
        if tasks is not None:
            shutil.copyfile(tasks, temporary / TASKS)
        write_folder(temporary, entries, config, card)
    return folder


def load(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    modalities: Collection[str] | None = None,
) -> Trained:
    """Load the model of a folder, in evaluation mode.

    The module is built on the meta device, if it can be, and uses the tensors of the memory-mapped file, so nothing is
    in memory twice; tensors that change dtype or device are converted one by one.

    Args:
        dtype: of the floating-point numbers, as for `onepeace.load`; None = that of the file.
        modalities: read only these (`keep_modalities`).

    Raises:
        UserError: missing, unexpected or misshapen tensors, all named in one line; a damaged or cut-off file.
    """
    opened = open_model(folder)
    config = opened.config
    check_own_weights(config, str(folder))
    model = build_without_values(config, str(folder))
    # By the size of the whole model, so that "auto" and the vectors do not depend on the modalities that are kept.
    chosen = None if dtype is None else choose_dtype(dtype, torch.device(device), count_parameters(model))
    wanted = shapes_of(model)
    tensors = _fetch_tensors(opened, wanted)
    compare(str(folder), {name: tensor.shape for name, tensor in tensors.items()}, wanted)
    if modalities is not None:
        config = keep_modalities(config, modalities, str(folder))
        model = build_without_values(config)
    state = {}
    for name, tensor in model.state_dict().items():
        target_dtype = chosen if tensor.is_floating_point() else tensor.dtype
        state[name] = tensors[name].read().to(device=device, dtype=target_dtype)
    model.load_state_dict(state, strict=True, assign=True)
    _compute_other_buffers(model, config, device)
    return model.eval()


def _compute_other_buffers(model: Trained, config: Config, device: str | torch.device) -> None:
    """Give the buffers that are not among the weights, as they follow from the configuration, their values."""
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if not left:
        return
    built = dict(build_module(config).named_buffers())
    for name in left:
        parent, _, own_name = name.rpartition(".")
        model.get_submodule(parent).register_buffer(own_name, built[name].to(device), persistent=False)


def load_encoder(
    folder: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    modalities: Collection[str] | None = None,
) -> Encoder:
    """`load` for an architecture that encodes; UserError for one that generates."""
    opened = open_model(folder)
    check_encodes(opened.config, str(folder))
    return expect(load(opened, device, dtype, modalities), Encoder)


def read_state(folder: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a folder by name, memory-mapped and unchecked."""
    return {name: tensor.read() for name, tensor in describe(folder).tensors.items()}


def describe(path: str | os.PathLike[str]) -> ModelDescription:
    """Describe a model folder or a released checkpoint file, without reading tensors."""
    if Path(path).is_file():
        return describe_original(Path(path))
    opened = open_model(path)
    check_own_weights(opened.config, str(path))
    return ModelDescription(opened.folder, MODEL_FOLDER, opened.config, _fetch_tensors(opened))


def _fetch_tensors(opened: OpenModel, names: Collection[str] | None = None) -> dict[str, LazyTensor]:
    """The tensors of a model, unread; those with these names of its base model too, which is downloaded if needed.

    Raises:
        UserError: the base has another fingerprint.
    """
    tensors = open_weights(opened.folder)
    base = opened.config.base
    if base is None:
        return tensors
    of_base = fetch_model(base.name)
    if of_base.identity.hash != base.fingerprint:
        raise UserError(
            f"was made for the model {base.name} with fingerprint {base.fingerprint}, but {of_base} has "
            f"{of_base.identity.hash}; get that model, or train this one again",
            where=opened.folder,
        )
    if names is None:
        names = expected(opened.config)
    return {**{name: tensor for name, tensor in open_weights(of_base.folder).items() if name in names}, **tensors}


def fetch_base_and_leave_out(entries: Mapping[str, LazyTensor], base: str) -> tuple[dict[str, LazyTensor], Base]:
    """The tensors of ``entries`` that differ from those of the model ``base``, and the `Base` entry for config.yaml.

    Tensors are compared in the base's dtype. UserError if none is shared, or all are.
    """
    opened = fetch_model(base)
    base_state = read_state(opened)
    changed = {}
    for name, tensor in entries.items():
        if not _equals(tensor, base_state.get(name)):
            changed[name] = tensor
    if len(changed) == len(entries):
        raise UserError("shares no tensor with this model, so it is not its base", where=base)
    if not changed:
        raise UserError("has all tensors of this model, and nothing is left to write; leave out --base", where=base)
    return changed, Base(base, opened.identity.hash)


def _equals(tensor: LazyTensor, of_base: Tensor | None) -> bool:
    """Whether a tensor is that of the base, in the base's dtype."""
    if of_base is None or of_base.shape != tensor.shape:
        return False
    return torch.equal(tensor.read().to(of_base.dtype), of_base)


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    modalities: Collection[str] | None = None,
    dtype: str | torch.dtype | None = None,
    bpe: str | Path | None = None,
    base: str | None = None,
    replace_existing: bool = False,
    progress: bool = False,
) -> Path:
    """Convert an original checkpoint (.pt, .pth, .pkl, .bin) or a model folder into the model folder `out`.

    Tensors are read, converted and written file by file, so weights of any size need the memory of one file (2 GiB).

    Args:
        modalities: modalities to keep; None = all.
        dtype: "float32", "bfloat16" or "float16"; None = that of the file.
        bpe: folder with the vocabulary (encoder.json, vocab.bpe, dict.txt; or vocab.json, merges.txt). None = that of
            facebook/bart-base on the Hugging Face Hub, if the model reads text. Model folders have their own.
        base: name of a model; tensors equal to its own are left out, and read from it when `out` is loaded.
        replace_existing: replace `out` if it is already a model folder; files of others in it are kept.

    Raises:
        UserError: unreadable or hostile file, missing, unexpected or misshapen tensors, no vocabulary.
    """
    out = Path(out)
    target = None if dtype is None else named_dtype(dtype)
    check_free(out, replace=replace_existing)
    source = describe(checkpoint)
    if bpe is not None and source.layout == MODEL_FOLDER:
        raise UsageError("a model folder has its own vocabulary; leave out --bpe", where=source.path)
    write_converted(
        source,
        out,
        modalities=modalities,
        dtype=target,
        bpe=bpe,
        leave_out=None if base is None else partial(fetch_base_and_leave_out, base=base),
        replace_existing=replace_existing,
        progress=progress,
    )
    return out
