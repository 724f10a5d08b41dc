"""torch.compile of a model's blocks, if they are wide enough to gain from it."""

import logging

import torch
from torch import nn

from onepeace.model.interface import Trained

MIN_WIDTH = 512
"""Minimum token width at which blocks are compiled; at 256 they are not faster, and compiling takes a minute."""
GRAPHS = 64
"""Maximum graphs that torch keeps per block: for each modality, with and without padding, one item or several."""

log = logging.getLogger(__name__)


def compile_blocks(model: Trained) -> None:
    """Compile each block on its first use, if `pays_off` on the model's device."""
    if pays_off(model, next(model.parameters()).device):
        compile_always(model)


def pays_off(model: Trained, device: torch.device) -> bool:
    """Whether compiled blocks are faster on a device, where the model is or will be.

    Logs a warning if not: blocks are below `MIN_WIDTH`, or a CPU has no C++ compiler.
    """
    if width(model) < MIN_WIDTH:
        log.warning("not compiled: it pays from a width of %d on, this model has %d", MIN_WIDTH, width(model))
        return False
    if device.type == "cpu" and not has_cpp_compiler():
        log.warning("not compiled: there is no C++ compiler ($CXX, g++ or clang++)")
        return False
    return True


def width(module: object) -> int:
    """Width of the blocks of a module; 0 if it has none, or does not say it."""
    if not isinstance(module, Trained) or not len(module.blocks):
        return 0
    return getattr(module.config, "dim", 0)


def compile_always(model: Trained) -> None:
    """Compile each block on its first use: one graph for all lengths and batch sizes."""
    _allow_graphs()
    for block in model.blocks:
        block.compile(dynamic=True)


def compile_sharded(model: Trained) -> None:
    """Compile the parts of each block between the points where fsdp gathers weights: its units, and what holds none.

    A graph over the whole block would break at each of its units. The forward pass is compiled without the hooks of the
    module, which gather the weights. To be called before the model is sharded.
    """
    _allow_graphs()
    units = set(model.sharding_units())
    for block in model.blocks:
        for part in _parts_without_units(block, units):
            part.forward = torch.compile(part.forward, dynamic=True, fullgraph=True)


def _parts_without_units(module: nn.Module, units: set[nn.Module]) -> list[nn.Module]:
    """The module itself if no unit lies inside of it; else these parts of its children that multiply matrices."""
    if not units.intersection(module.modules()) - {module}:
        return [module] if any(parameter.ndim > 1 for parameter in module.parameters()) else []
    parts = []
    for child in module.children():
        parts += _parts_without_units(child, units)
    return parts


def _allow_graphs() -> None:
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds the compiler that it needs on a CPU."""
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False
