"""Bytes alive and FLOPs of what runs, of real code on fake tensors too, which have a shape and dtype but no values; and
inputs of a stated size for it.

Nothing of torch is replaced: its own modes see every operation. FLOPs are counted by the functions of its
FlopCounterMode, but not in it: that follows modules, and fails where they run both with and without gradient.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.data.masking import draw_masks, draw_token_dropout
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.special_ids import EOS
from onepeace.train.recipe import Recipe
from onepeace.train.teachers import TeacherOptions, TeacherTable
from onepeace.train.terms.heads import Supervised, SupervisedOptions
from onepeace.train.terms.known import TERMS
from onepeace.train.training_data import TrainingData

aten = torch.ops.aten
SAMPLE_RATE = 16000
FIRST_WORD_ID = 4
UNITS = {"text": "tokens", "image": "px", "audio": "s", "video": "px"}
"""Units of the size of an item: text tokens with eos, the side of a picture or of a clip's frames, seconds of sound."""
EXAMPLES: dict[str, Callable[[Sequence[str]], Any]] = {
    "label": lambda labels: labels[0],
    "labels": lambda labels: [],
    "answers": lambda labels: {},
    "events": lambda labels: [],
    "box": lambda labels: [0.0, 0.0, 1.0, 1.0],
    "choice": lambda labels: 0,
}
"""A value of each target, of the head's labels."""


class Cost(NamedTuple):
    """Cost of a training step."""

    flops: int
    """FLOPs of matrix products and convolutions, a multiplication and an addition counting as two."""
    peak_bytes: int
    """Alive at the peak beside weights, gradients and inputs. Kernels need work space that is not seen here."""


class PlannedData(TrainingData):
    """Stand-in for the training data where there is none: it gives terms sizes only."""

    def __init__(self, recipe: Recipe, keys: Sequence[str]) -> None:
        super().__init__(recipe, (), {})
        self.keys = [*keys, "another"]  # a single one has no standard deviation

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"ids": torch.full((len(texts), 8), 4, device="cpu")}

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        width = 1024 if output == "features" else 1000
        rows = {key: row for row, key in enumerate(self.keys)}
        return TeacherTable(rows, torch.zeros(len(rows), width, device="cpu"))


def item_batch(config: Config, key: str, size: int, count: int = 1) -> dict[str, Tensor]:
    """`count` random items of modality `key`, all of one `size` (see `UNITS`), as the model takes them."""
    generator = torch.Generator().manual_seed(0)
    if key == "text":
        words = int(config.model.adapters[key].get("vocab_size", 256))
        ids = torch.randint(FIRST_WORD_ID, words, (count, size), generator=generator)
        ids[:, -1] = EOS
        return {"ids": ids}
    if key in ("image", "video"):
        frames = [int(config.model.adapters[key].get("frames", 16))] if key == "video" else []
        return {"pixels": torch.randn(count, *frames, 3, size, size, generator=generator)}
    return {"waveform": torch.randn(count, size * SAMPLE_RATE, generator=generator)}


def picture_size(config: Config, key: str = "image") -> int:
    """Side of the pictures a model is fed, in pixels; of oblong ones the longer."""
    size = config.processors.get(key, {}).get("size")
    if size is None:
        options = config.model.adapters[key]
        return int(options.get("patch_size", 16)) * int(options.get("bias_grid", 16))
    return max(size) if isinstance(size, list) else int(size)


def largest_items(config: Config, pair: Sequence[str], count: int) -> dict[str, dict[str, Tensor]]:
    """`count` items of a pair, each as large as the processors let it be."""
    if unknown := [key for key in pair if key not in UNITS]:
        raise UserError(f"how large an item of {unknown[0]} is, is not known; a plan knows {', '.join(UNITS)}")
    found = {}
    for key in pair:
        options = config.processors.get(key, {})
        limits = {"text": (options.get("max_tokens") or 70) + 1, "audio": options.get("max_seconds") or 15}
        found[key] = item_batch(config, key, ceil(limits.get(key) or picture_size(config, key)), count)
    return found


def rows_of_an_item(config: Any) -> int:
    """Rows of the inputs that an item of a model takes: 2 where a head compares two pictures."""
    return max((head.get("inputs", 1) for head in config.heads.values()), default=1)


def pair_batch(
    recipe: Recipe, model: Trained, source: str, inputs: Mapping[str, dict[str, Tensor]], generator: torch.Generator
) -> Batch:
    """A batch of these inputs; what is masked or dropped is drawn as the recipe says, each text token as a word."""
    rows = rows_of_an_item(model.config)
    count = len(next(iter(next(iter(inputs.values())).values()))) // rows
    names, masks, dropout = [str(i) for i in range(count)], {}, {}
    for key, item in inputs.items():
        lengths = model.adapters[key].token_lengths(item)
        if (rates := recipe.mask.get(key)) is not None:
            words = torch.ones(len(lengths), int(lengths.max()), dtype=torch.bool)
            masks[key] = draw_masks(rates, lengths, generator, words)
        if share := recipe.data.token_dropout.get(key):
            dropout[key] = draw_token_dropout(share, lengths, generator, has_end=key == "text")
    targets = {}
    for options in recipe.terms:
        term = TERMS[options.term]
        if isinstance(options, SupervisedOptions) and issubclass(term, Supervised) and options.reads(source, [*inputs]):
            labels = model.config.heads[options.head].get("labels", ())
            if term.target not in EXAMPLES:
                raise UserError(f"{options.where}: a plan knows no {term.target} to learn from")
            targets[term.target] = [EXAMPLES[term.target](labels)] * count
    return Batch(inputs, names, names, [[name] for name in names], targets, rows, dropout, masks, source=source)


def step_cost(objective: nn.Module, batch: Batch, bfloat16: bool) -> Cost:
    """One step, forward and backward, of an objective on the meta device."""
    fakes = without_values(objective)
    with fakes:
        for parameter in objective.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in objective.parameters()]
    batch = replace(batch, inputs={key: fake_inputs(inputs, fakes) for key, inputs in batch.inputs.items()})
    # Attention in the fused kernel, whatever its length.
    with Live([*objective.parameters(), gradients, batch.inputs]) as live, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective(batch)["loss"]
        loss.backward()
    return Cost(live.flops, live.peak)


def without_values(module: nn.Module) -> FakeTensorMode:
    """Give a module from the meta device fake parameters that pass for the CPU's, so that autocast knows them."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with fakes:
        module.to_empty(device="cpu")
    return fakes


def fake_inputs(batch: Mapping[str, Tensor], fakes: FakeTensorMode) -> dict[str, Tensor]:
    """A modality's input with fake numbers. Ids, lengths and masks stay real: code may look at their values."""
    return {name: fakes.from_tensor(t) if t.is_floating_point() else t for name, t in batch.items()}


class Live(TorchDispatchMode):
    """Follows the storages that operations make until they are freed, and counts FLOPs.

    ``peak`` is the most bytes alive at once; work space inside a kernel is not seen. Of fake tensors, whether a number
    is true ("is something padded?") is answered "no".

    Args:
        known: tensors that do not count, such as weights and inputs. Nor do their views.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        super().__init__()
        self.peak = self.flops = self._now = 0
        tensors = (leaf for leaf in tree_leaves(list(known)) if isinstance(leaf, Tensor))
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _positions(args[1]), *args[2:])
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return False
        result = func(*args, **kwargs)
        if (count := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self._now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _forget(self, size: int) -> None:
        self._now -= size


def _positions(index: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Masks as positions: how many are True could not be told of a fake."""
    found: list[Tensor | None] = []
    for one in index:
        mask = one is not None and one.dtype == torch.bool and not isinstance(one, FakeTensor)
        found += one.nonzero().unbind(1) if mask and one is not None else [one]
    return found


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Two products of all queries with all keys, (B, H, L, head_dim)."""
    return 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]


def _attention_backward(grad: Tensor, *inputs: Any, **_: Any) -> int:
    """Four products; the scores, which the kernel computes again, are not counted."""
    return 2 * _attention(*inputs)


FLOPS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Counts of FLOPs by operation."""
