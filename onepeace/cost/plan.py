"""What a run will take: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Bytes of one process, P parameters of which T train, N processes, everything float32 but for bfloat16 autocast:

    parameters 4 P, gradients 4 T, AdamW 8 T, average of the weights 4 T     (each / N under fsdp)
    ddp       4 T more: the buckets in which gradients travel
    fsdp      4 (root + 2 blocks) parameters gathered, and their gradients: what is no block stays gathered, of the
              blocks one computes while the next one arrives
    bfloat16  2 per trained weight of a matrix, cast once a step, and per frozen one in each pass that saves it
    file      4 (P + 2 T), and 4 T with an average

Activations of a block in a pass over B items of L tokens, width D, FFN F, H heads, all that backward needs and does not
make again (onepeace/model/layers.py, `keeping_inputs`). c is the size of a computed number (bfloat16 2, float32 4):

    B L D x (  4 + 3 c           input of the norm, q k v
             + c                 input of q k v                              if attention trains
             + 4 + c             input of the FFN's norm; of its two matrices if they train
             + 2 c )             branches before their gain                  if it trains
    + B L F x 2 c                gate, and what it gates
    + c B L D                    result of attention
    + 4 B H L or c B H L^2       sums or weights of it       of a fused kernel, of the plain form
    + 3 c B L F or 2 c B H L^2   of one block, made again    the larger one; the second of the plain form: gradients

Of the bias (c H + 4) b L^2 in each pass of the encoder, itself and its buckets (b: 1 or B). The decoder's blocks
likewise, over all tokens. With ``run.checkpoint_activations`` 4 B L D of each block of the encoder and pass stay, and
one block's activations come on top. Stems and what places tokens run on the meta device, and what they save is counted.
A denoising term keeps of M hidden and N real tokens D x (c M + 8 M + 4 N). With
``run.grad_cache_chunks`` only one part's activations are held at a time, but every part's share of the losses.

Not counted: work space of kernels and what the allocator cannot use; leave a tenth or more. Every text is as long as
``processors.text.max_tokens``, every sound as ``processors.audio.max_seconds``. Outside teachers are not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace.bench.items import item_batch, picture_size
from onepeace.config import Config
from onepeace.cost.flops import DryRun, Pass, TrainingCost, kept_ids, on_meta, training_cost
from onepeace.data.masking import TEXT_UNITS
from onepeace.errors import UserError
from onepeace.hub.architectures import build_module
from onepeace.layers.attention import use_math_attention
from onepeace.model import OnePeace
from onepeace.train.optim import freeze
from onepeace.train.recipe import Recipe
from onepeace.train.start import make_config, model_folder
from onepeace.train.terms import TermName

WAYS = ("ddp", "fsdp")


class Form(NamedTuple):
    """How numbers are computed and kept."""

    device: str
    dtype: torch.dtype

    @property
    def compute(self) -> int:
        """Bytes of a computed number."""
        return self.dtype.itemsize

    @property
    def norm(self) -> int:
        """Bytes of a number in a norm: autocast takes norms to float32 on a GPU, and leaves them on a CPU."""
        return 4 if self.device == "cuda" else self.compute

    @property
    def casts(self) -> bool:
        """Whether each product makes its own copy of its input."""
        return self.compute < 4


class Trains(NamedTuple):
    """What of a block gets a gradient."""

    attention: bool
    gain: bool
    ffn: frozenset[str]


class Memory(NamedTuple):
    """Bytes of one process."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    exchange: int
    """Buckets of ddp; what fsdp gathers."""
    copies: int
    """Weights in bfloat16."""
    activations: int
    losses: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class Plan:
    """See the module's docstring."""

    parameters: dict[str, tuple[int, int]]
    """By part of the model: all, and those that train."""
    items: dict[str, int]
    """Items in a step of each pair, over all processes."""
    parts: int
    """In how many parts a process computes its items."""
    processes: int
    dtype: torch.dtype
    memory: dict[tuple[str, bool], Memory]
    """By way ("ddp", "fsdp") and whether activations are checkpointed."""
    chosen: tuple[str, bool]
    """What the recipe says."""
    file: int
    """Bytes of a checkpoint."""
    flops_per_item: dict[str, int]
    """By pair, losses and what is computed twice included."""
    steps: int
    in_turn: bool
    """Whether a step has items of one pair only."""

    @property
    def flops_per_step(self) -> int:
        total = sum(self.items[pair] * flops for pair, flops in self.flops_per_item.items())
        return total // len(self.items) if self.in_turn else total

    @property
    def flops(self) -> int:
        """Of the whole run."""
        return self.steps * self.flops_per_step


def make_plan(recipe: Recipe, processes: int = 1, device: str = "cuda") -> Plan:
    """What a recipe takes on `processes` devices of a kind."""
    config = planned_config(recipe)
    model = planned_model(recipe, config)
    form = Form(device, torch.float32 if recipe.run.precision == "float32" else torch.bfloat16)
    parts = recipe.run.grad_cache_chunks
    chosen = (recipe.run.parallel, recipe.run.checkpoint_activations)
    pairs = {source.name: source.pair for source in recipe.data.train}
    largest: dict[bool, tuple[int, int, int]] = {}
    flops = {}
    for name, pair in pairs.items():
        item = {key: on_meta(batch) for key, batch in planned_item(config, pair).items()}
        passes = planned_passes(recipe, model, item, pair)
        share = ceil(recipe.batch_size(name) / processes)
        chunk = ceil(share / parts)
        inputs = input_bytes(model, item, passes)
        for checkpointed in (False, True):
            kept = chunk * (inputs * (form.compute + 2 * form.norm) // 12)
            kept += activation_bytes(model, passes, token_counts(model, item), chunk, form, checkpointed)
            losses = share * loss_bytes(recipe, model, item, pair, form)
            copies = copied_weights(model, passes, checkpointed) if form.casts else 0
            largest[checkpointed] = max(largest.get(checkpointed, (0, 0, 0)), (kept, losses, copies), key=sum)
        cost = training_cost(model, item, passes)
        lost = loss_flops(recipe, model, item, pair, share, recipe.batch_size(name))
        flops[name] = repeated(cost, passes, parts, chosen[1]) + lost
    held = held_bytes(model, recipe.run.ema is not None, processes)
    memory = {
        (way, checkpointed): Memory(*held[way], copies, kept, losses)
        for way in WAYS
        for checkpointed, (kept, losses, copies) in largest.items()
    }
    counts = parameter_counts(model)
    total, trained = (sum(column) for column in zip(*counts.values(), strict=True))
    return Plan(
        parameters=counts,
        items={name: recipe.batch_size(name) for name in pairs},
        parts=parts,
        processes=processes,
        dtype=form.dtype,
        memory=memory,
        chosen=chosen,
        file=4 * (total + (3 if recipe.run.ema is not None else 2) * trained),
        flops_per_item=flops,
        steps=recipe.schedule.steps,
        in_turn=recipe.data.pairs == "in_turn",
    )


def planned_config(recipe: Recipe) -> Config:
    """The model's configuration; where ``model.from`` is not there yet, ``model.size`` says what it will be."""
    start = recipe.model.get("from")
    if start is None or (model_folder(start) / "config.yaml").exists():
        return make_config(recipe)
    if "size" not in recipe.model:
        raise UserError(f"model.from {start} is not there yet; add model.size=... to plan without it")
    return make_config(replace(recipe, model={key: value for key, value in recipe.model.items() if key != "from"}))


def planned_model(recipe: Recipe, config: Config) -> OnePeace:
    """The model on the meta device, frozen as the recipe says."""
    with torch.device("meta"):
        model = build_module(config)
    if recipe.freeze:
        freeze(model, recipe.freeze)
    return model


def planned_item(config: Config, pair: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """One item of a pair, of the largest size."""
    processors = config.processors
    sizes = {
        "text": lambda: (processors.get("text", {}).get("max_tokens") or 70) + 1,
        "image": lambda: picture_size(config),
        "audio": lambda: processors.get("audio", {}).get("max_seconds") or 15,
    }
    if unknown := [key for key in pair if key not in sizes]:
        raise UserError(f"how large an item of {unknown[0]} is, is not known; a plan knows {', '.join(sizes)}")
    return {key: item_batch(config, key, ceil(sizes[key]())) for key in pair}


def token_counts(model: OnePeace, item: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """Tokens of an item by modality, CLS included."""
    return {
        # The sizes alone count, and the meta device has no values to return.
        key: int(model.adapters[key].token_lengths({name: torch.empty(t.shape) for name, t in batch.items()})) + 1
        for key, batch in item.items()
    }


def planned_passes(recipe: Recipe, model: OnePeace, item: Mapping[str, Mapping], pair: Sequence[str]) -> list[Pass]:
    """The passes of onepeace/train/passes.py that the objective asks for."""
    counts = token_counts(model, item)

    def shown(key: str, hidden: float | None, has_end: bool) -> int:
        return counts[key] - int((counts[key] - 1 - has_end) * (hidden or 0.0))

    def masked(keys: Sequence[str], which: str) -> Pass:
        rates = {key: recipe.mask[key] for key in keys}
        return Pass({k: shown(k, getattr(r, which), r.unit in TEXT_UNITS) for k, r in rates.items()}, decodes=True)

    found: dict[tuple, Pass] = {}
    for name, options in recipe.objective.items():
        _, kind, _, listed = TermName.parse(name)
        keys = listed or list(pair)
        if not set(keys) <= set(pair):
            continue
        if kind != "denoising":
            for key in keys:
                found["unimodal", key] = Pass({key: shown(key, recipe.data.token_dropout.get(key), key == "text")})
            continue
        joint = len(keys) > 1
        if options.get("teacher", "joint" if joint else "unimodal") == "joint":
            found["joint",] = Pass({key: counts[key] for key in model.adapters if key in pair}, learns=False)
        else:
            for key in keys:
                found.setdefault(("unimodal", key), Pass({key: counts[key]}, learns=False))
        if joint:
            found["together masked",] = masked([key for key in model.adapters if key in pair], "joint")
        else:
            found["alone masked", keys[0]] = masked(keys, "unimodal")
    return list(found.values())


def parameter_counts(model: OnePeace) -> dict[str, tuple[int, int]]:
    """By part of the model: parameters, and those that train."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        first, *rest = name.split(".")
        part = first
        if first == "adapters":
            part = f"adapter {rest[0]}"
        elif first == "blocks":
            part = f"FFN {rest[2]}" if rest[1] == "ffn" else "attention" if rest[1] == "attn" else "norms and gains"
        elif first in ("norms", "heads"):
            part = {"norms": "norms and gains", "heads": "projections"}[first]
        total, trained = counts.get(part, (0, 0))
        counts[part] = (total + parameter.numel(), trained + parameter.numel() * parameter.requires_grad)
    return counts


def held_bytes(model: OnePeace, average: bool, processes: int) -> dict[str, tuple[int, int, int, int, int]]:
    """By way: bytes of parameters, gradients, optimizer, average, and what the processes exchange."""
    blocks = [sum(p.numel() * (1 + p.requires_grad) for p in block.parameters()) for block in model.blocks]
    everything = sum(p.numel() * (1 + p.requires_grad) for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = (4 * total, 4 * trained, 8 * trained, 4 * trained * average)
    sharded = tuple(ceil(count / processes) for count in whole)
    gathered = everything - sum(blocks) + 2 * max(blocks)
    several = processes > 1
    return {"ddp": (*whole, 4 * trained * several), "fsdp": (*sharded, 4 * gathered * several)}  # type: ignore[dict-item]


def trains(model: OnePeace, one: Pass) -> list[Trains | None]:
    """For each block of the encoder what trains in a pass; None while no gradient flows through it."""
    result: list[Trains | None] = []
    flows = any(p.requires_grad for key in one.tokens for p in model.adapters[key].parameters())
    for block in model.blocks:
        ffn = {key for key in one.tokens if any(p.requires_grad for p in block.ffn[key].parameters())}  # type: ignore
        attention = any(p.requires_grad for p in block.attn.parameters())  # type: ignore[union-attr]
        gain = any(p.requires_grad for part in (block.ls1, block.ls2) for p in part.parameters())  # type: ignore
        flows = flows or bool(ffn) or attention or gain
        result.append(Trains(attention, gain, frozenset(ffn)) if flows and one.learns else None)
    return result


def block_bytes(
    tokens: Mapping[str, int], batch: int, dim: int, ffn: int, heads: int, fused: bool, form: Form, learns: Trains
) -> int:
    """What one block saves in one pass.

    Args:
        tokens: of an item, by modality.
        fused: whether attention is a fused kernel.
    """
    c = form.compute
    length = sum(tokens.values())
    rows = batch * length
    size = rows * dim * (4 + 3 * c) + rows * dim * c * learns.attention
    size += rows * dim * (4 + 2 * c * learns.gain)
    for key, count in tokens.items():
        size += batch * count * (2 * ffn * c + dim * c * (key in learns.ffn))
    return size + rows * dim * c + batch * heads * length * (4 if fused else c * length)


def takes_plain_form(model: OnePeace | None, tokens: Mapping[str, int], form: Form) -> bool:
    """What attention chooses in a pass over the encoder, or with None over the decoder, which has no tables."""
    tables = [table for key in tokens for table in model.adapters[key].bias_tables] if model else []
    trained = any(table.requires_grad for table in tables)
    return use_math_attention(form.device, form.dtype, sum(tokens.values()), trained)


def activation_bytes(
    model: OnePeace, passes: Sequence[Pass], whole: Mapping[str, int], batch: int, form: Form, checkpointed: bool
) -> int:
    """What the blocks of encoder and decoder save in all passes.

    Args:
        whole: tokens of an item that hides nothing, by modality.
        batch: items.
        checkpointed: of each of the encoder's blocks its input is kept, and everything of one.
    """
    config, decoder = model.config, model.config.decoder
    size, largest, again = 0, 0, 0
    for one in passes:
        length = sum(one.tokens.values())
        # A picture seen whole has one bias for the batch; padding and hidden tokens make it one for each item.
        each = batch if one.decodes or set(one.tokens) != {"image"} else 1
        stacks = [(one.tokens, config.dim, config.ffn_dim, config.num_heads, config.num_heads, each)]
        learns = [[found for found in trains(model, one) if found]]
        if one.decodes and decoder is not None:
            full = {key: whole[key] for key in one.tokens}
            padded = batch if set(full) != {"image"} else 0
            stacks.append((full, decoder.dim, decoder.ffn_dim, decoder.num_heads, 1, padded))
            learns.append([Trains(True, False, frozenset(full))] * decoder.depth)
            size += batch * form.compute * (length * config.dim + sum(full.values()) * decoder.dim)
        for part, ((tokens, dim, ffn, heads, bias_heads, biases), stack) in enumerate(zip(stacks, learns, strict=True)):
            count = sum(tokens.values())
            # The encoder's from its tables, read by buckets; the decoder's only hides padding.
            bias = biases * (bias_heads * form.compute + 4) * count**2 if part == 0 else biases * count * form.compute
            fused = not takes_plain_form(model if part == 0 else None, tokens, form)
            saved = [block_bytes(tokens, batch, dim, ffn, heads, fused, form, found) for found in stack]
            if saved:
                scores = 0 if fused else 2 * form.compute * batch * heads * count**2
                again = max(again, scores, 3 * form.compute * batch * count * ffn)
            if checkpointed and part == 0:
                size += len(saved) * 4 * batch * count * dim
                largest = max([largest, *saved])
            else:
                size += sum(saved)
            if saved:
                size += 4 * batch * count * dim + bias  # the first is the input of the final norm
    return size + again + (largest if checkpointed else 0)


def input_bytes(model: OnePeace, item: Mapping[str, Mapping[str, Tensor]], passes: Sequence[Pass]) -> int:
    """What stems and the placing of tokens save for one item, all in float32."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with DryRun(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stems = model.stems({key: dict(batch) for key, batch in item.items()})
        placed = []
        for one in (one for one in passes if one.learns):
            shown = {key: stems[key] for key in one.tokens}
            keep = kept_ids(one, shown)
            placed += [model.adapters[key].embed_positions(stem, keep.get(key)) for key, stem in shown.items()]
    return sum(storage.nbytes() for storage in saved.values())


def copied_weights(model: OnePeace, passes: Sequence[Pass], checkpointed: bool) -> int:
    """Bytes of weights in bfloat16 that are alive at the end of the forward pass."""
    skip = ("token_embed", "pos_embed", "bias_tables", "cls_", "mask_token")  # looked up or added, not multiplied
    matrices = {n: p for n, p in model.named_parameters() if p.ndim > 1 and not any(part in n for part in skip)}
    size = sum(2 * p.numel() for p in matrices.values() if p.requires_grad)
    if checkpointed:
        return size
    for one in passes:
        for i, found in enumerate(trains(model, one)):
            used = (f"blocks.{i}.attn.", *(f"blocks.{i}.ffn.{key}." for key in one.tokens))
            if found:
                size += sum(2 * p.numel() for n, p in matrices.items() if n.startswith(used) and not p.requires_grad)
    return size


def hidden_counts(
    recipe: Recipe, model: OnePeace, item: Mapping[str, Mapping], pair: Sequence[str]
) -> list[tuple[int, int]]:
    """(hidden, real) tokens of an item for each denoising loss, without CLS."""
    counts = token_counts(model, item)
    found = []
    for name in recipe.objective:
        _, kind, _, listed = TermName.parse(name)
        keys = listed or list(pair)
        if kind == "denoising" and set(keys) <= set(pair):
            for key in keys:
                rate = getattr(recipe.mask[key], "joint" if len(keys) > 1 else "unimodal") or 0.0
                real = counts[key] - 1
                found.append((int((real - (recipe.mask[key].unit in TEXT_UNITS)) * rate), real))
    return found


def loss_bytes(recipe: Recipe, model: OnePeace, item: Mapping[str, Mapping], pair: Sequence[str], form: Form) -> int:
    """What the losses keep of one item."""
    counts = hidden_counts(recipe, model, item, pair)
    return sum(model.config.dim * ((form.compute + 8) * hidden + 4 * real) for hidden, real in counts)


def loss_flops(
    recipe: Recipe, model: OnePeace, item: Mapping[str, Mapping], pair: Sequence[str], share: int, items: int
) -> int:
    """FLOPs of the losses of one item: logits, and the gradient of queries and, in the contrastive loss, of keys.

    Args:
        share: items of this process; a denoising loss looks for a token among theirs.
        items: of all processes; the contrastive loss looks among those.
    """
    hidden = hidden_counts(recipe, model, item, pair)
    denoising = sum(4 * count * real * share * model.config.dim for count, real in hidden)
    contrastive = any(TermName.parse(name).kind == "contrastive" for name in recipe.objective)
    return denoising + 12 * items * model.config.embed_dim * contrastive


def repeated(cost: TrainingCost, passes: Sequence[Pass], parts: int, checkpointed: bool) -> int:
    """FLOPs of an item with what is computed again in the backward pass: of checkpointed blocks, of parts all.

    The decoder is not checkpointed but taken along here; it is a few per cent of a pass.
    """
    again = (cost.stems + sum(cost.forward)) if parts > 1 else 0
    blocks = sum(flops for flops, one in zip(cost.forward, passes, strict=True) if one.learns) if checkpointed else 0
    return cost.total + again + blocks
