"""What an item takes, in one pass or in a step of training, told from the sizes of a model alone."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from onepeace.bench.live import Live
from onepeace.config import Config
from onepeace.hub.architectures import build_module
from onepeace.model import OnePeace, Stem


class Cost(NamedTuple):
    """Of one pass over a batch, as far as its unit vectors (of a model without projections: its features)."""

    tokens: int
    """Tokens of an item in the blocks, CLS included."""
    flops: int
    """Of matrix products and convolutions, a multiplication and an addition counting as two."""
    numbers: int
    """Numbers alive at the peak, weights not counted. An estimate: kernels need room that is not seen here, or less
    than their plain form."""


def pass_cost(config: Config, key: str, batch: Mapping[str, Tensor]) -> Cost:
    """Cost of encoding `batch` of modality `key`; its values do not matter, only their sizes.

    The blocks run on the meta device. A stem looks at its input's values (lengths, padding), so it runs for real, on
    weights of zero; it is a small part of any model.
    """
    with torch.device("meta"):
        model = build_module(config).eval().requires_grad_(False)
    adapter = copy.deepcopy(model.adapters[key]).to_empty(device="cpu")
    for parameter in adapter.parameters():
        parameter.zero_()
    weights = [*adapter.parameters(), *model.parameters()]
    with FlopCounterMode(display=False) as counter, Live(weights, numbers=True) as live:
        stem = adapter.stem_tokens(dict(batch))
        features = model.encode({key: stem._replace(tokens=stem.tokens.to("meta"))})[key]
        if key in model.config.projections:
            model.embed(key, features)
    return Cost(features.tokens.shape[1], counter.get_total_flops(), live.peak)


def module_flops(module: nn.Module, *inputs: Tensor) -> int:
    """FLOPs of one call of any module whose computation does not look at values; it is left as it is."""
    dry = copy.deepcopy(module).to("meta").requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        dry(*(tensor.to("meta") for tensor in inputs))
    return counter.get_total_flops()


class Pass(NamedTuple):
    """One run of the encoder in a step of training, and of the decoder if tokens are hidden."""

    tokens: dict[str, int]
    """Tokens of an item in the blocks by modality, CLS included; several modalities go through them together."""
    decodes: bool = False
    """Whether the decoder predicts what is hidden."""
    learns: bool = True
    """Whether a backward pass follows: not after a pass that is a teacher only."""


class TrainingCost(NamedTuple):
    """FLOPs of one item, as `Cost` counts them."""

    stems: int
    """Forward through the stems, which all passes share."""
    forward: tuple[int, ...]
    """Of each pass."""
    backward: int

    @property
    def total(self) -> int:
        return self.stems + sum(self.forward) + self.backward


def training_cost(model: OnePeace, item: Mapping[str, Mapping[str, Tensor]], passes: Sequence[Pass]) -> TrainingCost:
    """FLOPs of all passes over one item and of the backward pass; losses and optimizer are not in it.

    Args:
        model: on the meta device, so that nothing is allocated. What needs no gradient is not counted backward.
        item: a batch of one by modality; its values do not matter, only their sizes.
        passes: what the objective asks for.
    """
    counts, ends = [0], []
    with DryRun() as run:
        stems = model.stems({key: on_meta(batch) for key, batch in item.items()})
        counts.append(run.flops)
        for one in passes:
            shown = {key: stems[key] for key in one.tokens}
            keep = kept_ids(one, shown)
            with torch.set_grad_enabled(one.learns):
                if one.decodes:
                    found = list(model.reconstruct(shown, keep).values())
                else:
                    features = model.encode(shown, keep)
                    alone = len(features) == 1
                    found = [
                        model.embed(k, f) if alone and k in model.config.projections else f.tokens
                        for k, f in features.items()
                    ]
            ends += [tensor for tensor in found if tensor.requires_grad]
            counts.append(run.flops)
        if ends:
            torch.autograd.backward(ends, [torch.empty_like(end) for end in ends])
        counts.append(run.flops)
    parts = [after - before for before, after in pairwise(counts)]
    return TrainingCost(parts[0], tuple(parts[1:-1]), parts[-1])


def kept_ids(one: Pass, stems: Mapping[str, Stem]) -> dict[str, Tensor]:
    """Of the modalities that a pass does not see whole: places (1, K) of as many tokens as it sees, on meta."""
    whole = () if one.decodes else [k for k, count in one.tokens.items() if stems[k].tokens.shape[1] + 1 == count]
    shapes = {key: (1, count) for key, count in one.tokens.items() if key not in whole}
    return {key: torch.empty(shape, dtype=torch.long, device="meta") for key, shape in shapes.items()}


def on_meta(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's input on the meta device; lengths and such, whose values are looked at, stay where they are."""
    return {name: tensor.to("meta") if tensor.numel() > 1 else tensor for name, tensor in batch.items()}


class DryRun(TorchDispatchMode):
    """Lets a model run on the meta device as over full items, backward too, and counts its FLOPs.

    Any question about meta values ("is something padded?") is answered "no". Unlike torch's FlopCounterMode it does
    not follow modules, which fails where they run with and without gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            if func is torch.ops.aten._local_scalar_dense.default:
                return False
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result
