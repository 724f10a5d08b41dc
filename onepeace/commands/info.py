"""`onepeace info`: the contents and memory needs of a model folder or checkpoint file."""

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.config import to_plain
from onepeace.errors import UserError, printable
from onepeace.hub.towers.config import TowersConfig, names_towers
from onepeace.processors.tokenizer import preparation

if TYPE_CHECKING:
    from onepeace.hub.resolve import OpenModel
    from onepeace.hub.tensors import ModelDescription

EPILOG = """example:
  onepeace info tiny
  onepeace info one-peace.pt

No code in the file is executed. The files of a model folder are compared with their checksums. The memory is that of
the weights only.
"""

PARTS = {
    r".*\.lora_[AB]\.": "LoRA adapters",
    r"adapters\.(\w+)\.": "adapter {}",
    r"encoder\.stem\.": "stem of pictures",
    r"decoder\.token_embed\.": "vocabulary",
    r"blocks\.\d+\.attn\.": "attention",
    r"blocks\.\d+\.ffn\.(\w+)\.": "FFN {}",
    r"blocks\.\d+\.clips\.": "adapters between frames",
    r"blocks\.\d+\.(?:norm|ls)|norms\.": "norms and gains",
    r"heads\.\w+\.(?:weight|bias)$|logit_scale": "projections",
    r"heads\.(\w+)\.": "head {}",
}
"""Part by pattern of parameter names; for other names, the part is the name up to the first dot."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from onepeace.hub.download import RELEASED

    released = "\n".join(f"  {name:<26}{file.about}" for name, file in RELEASED.items())
    parser.epilog = f"{EPILOG}\nbundled models: tiny, tiny-fast, tiny-captions; released ones:\n{released}"
    parser.add_argument("model", metavar="MODEL|FILE", help="tiny, a model folder, or a .pt, .pth or .pkl file of the "
                        "original code")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from onepeace.hub.folder import check_content
    from onepeace.hub.resolve import OpenModel
    from onepeace.hub.weights import describe

    model = _model(args.model)
    if isinstance(model, OpenModel):
        towers: object = model.config.model
        if isinstance(towers, TowersConfig):
            print(json.dumps(to_plain(towers), indent=1) if args.json else text_of_towers(model.folder, towers))
            return 0
        check_content(model.folder, again=True)
    report = report_on(describe(model))
    print(json.dumps(report, indent=1) if args.json else text_of(report))
    return 0


def text_of_towers(path: Path, config: TowersConfig) -> str:
    """The report on models of other libraries as text; one with several has their spaces side by side."""
    lines = [("path", os.fspath(path)), ("one space for", ", ".join(config.projections))]
    for tower in config.towers:
        lines.append((tower.name, f"{', '.join(tower.modalities)}; {tower.embed_dim} dimensions"))
        lines.append(("", f"{tower.num_parameters:>15,} parameters"))
    lines.append(("memory, float32", f"{4 * config.num_parameters / 1e9:>11.2f} GB"))
    return _aligned(lines)


def _model(name: str) -> "Path | OpenModel":
    """The file or model of that name; released models and towers are not downloaded."""
    from onepeace.files.atomic import cache_folder
    from onepeace.hub.download import RELEASED
    from onepeace.hub.resolve import fetch_model, folder_of, open_model

    path = Path(name).expanduser()
    if path.exists():
        return open_model(path) if path.is_dir() else path
    if names_towers(name) and not folder_of(name, cache_folder()).is_dir():
        raise UserError(f"{name} has not been loaded yet; onepeace.load({name!r}) does so, and downloads it")
    released = RELEASED.get(name)
    if released is not None and not (cache_folder() / name).is_dir():
        load = "load_generator" if released.generates else "load"
        raise UserError(f"{name} ({released.about}) is not on this machine; onepeace.{load}({name!r}) downloads it")
    return fetch_model(name)


def report_on(description: "ModelDescription") -> dict[str, Any]:
    """The report as JSON-serialisable values."""
    from onepeace.hub.architectures import architecture

    parts = parameters_by_part(description.shapes)
    total = sum(parts.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in description.tensors.values()})
    model: Any = description.config.model
    generates = architecture(description.config.architecture).generates
    return {
        "path": os.fspath(description.path),
        "layout": description.layout,
        "file_bytes": description.file_bytes,
        "dtype": ", ".join(dtypes),
        "modalities": list(model.adapters),
        "projections": list(model.projections),
        "writes": list(model.writes) if generates else [],
        "sizes": {name: value for name, value in vars(model).items() if type(value) is int},
        "adapters": model.adapters,
        "processors": description.config.processors,
        "heads": model.heads,
        "parameters": {**parts, "total": total},
        "memory_bytes": {"float32": 4 * total, "bfloat16": 2 * total},
    }


def parameters_by_part(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Number of parameters of each part of a model, by the names of its tensors."""
    parts: dict[str, int] = {}
    for name, shape in shapes.items():
        if name.endswith((".running_mean", ".running_var")):
            continue  # statistics are not parameters
        part = part_of(name)
        parts[part] = parts.get(part, 0) + prod(shape)
    return parts


def part_of(name: str) -> str:
    """The part of the model that the parameter of this name belongs to."""
    for pattern, part in PARTS.items():
        if match := re.match(pattern, name):
            return part.format(*match.groups())
    return name.partition(".")[0]


def text_of(report: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = [
        ("path", report["path"]),
        ("layout", report["layout"]),
        ("weights", f"{report['file_bytes'] / 1e6:.1f} MB on disk, {report['dtype']}"),
        ("modalities", ", ".join(report["modalities"])),
        ("writes", ", ".join(report["writes"]))
        if report["writes"]
        else ("one space for", ", ".join(report["projections"]) or "none (no projections)"),
        ("size", _options(report["sizes"])),
    ]  # fmt: skip
    lines += [(f"adapter {key}", _options(options)) for key, options in report["adapters"].items()]
    if "text" in report["processors"]:
        lines.append(("text preparation", preparation(report["processors"]["text"])))
    lines += [(f"head {name}", _options(options)) for name, options in report["heads"].items()]
    lines.append(("", ""))
    lines += [(name, f"{count:>15,} parameters") for name, count in report["parameters"].items()]
    lines.append(("", ""))
    lines += [(f"memory, {name}", f"{count / 1e9:>11.2f} GB") for name, count in report["memory_bytes"].items()]
    return _aligned(lines)


def _aligned(lines: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(printable(f"{name:<{width}}{value}").rstrip() for name, value in lines)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
