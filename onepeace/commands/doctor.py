"""`onepeace doctor`: which dependencies are installed and work, and how to fix those that do not."""

import argparse
import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import onepeace
from onepeace.errors import UserError

MODULES = {
    "open_clip_torch": "open_clip", "pillow": "PIL.Image", "pyyaml": "yaml", "pillow-heif": "pillow_heif",
    "scikit-learn": "sklearn", "pycocotools": "pycocotools.coco", "pycocoevalcap": "pycocoevalcap.cider.cider_scorer",
    "faiss-cpu": "faiss", "pyspellchecker": "spellchecker",
}  # fmt: skip
"""Module to import by distribution, where the name differs or only a submodule loads the native code."""
CPU_BUILDS = "https://download.pytorch.org/whl/cpu"
"""Index of PyTorch's builds without CUDA."""
DEVELOPERS = ("test", "docs")
"""Extras for developers of the package."""
WEIGHTS = Path(onepeace.__file__).parent / "weights"
BUNDLED = ("tiny", "tiny-fast", "tiny-captions")
"""Folder and names of the bundled models, repeated here since `hub` needs torch."""
CPU_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16", "sve")
"""Capabilities of a CPU that are shown, by torch's names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "exit code: 0, or 1 when a requirement is missing or broken"


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when a requirement is missing or broken, else 0."""
    _row("onepeace", onepeace.__version__, str(Path(onepeace.__file__).parent))
    _row("python", platform.python_version(), platform.platform())
    core, *extras = requirements().items()
    print("\nneeded")
    broken = _print_core(core[1])
    print("\noptional")
    for extra, packages in extras:
        _print_extra(extra, list(packages))
    if "torch" not in broken:
        print("\ndevices")
        _print_devices()
    print("\nweights")
    broken += _print_weights()
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nall requirements work")
    return 1 if broken else 0


def _print_core(requirement_by_package: Mapping[str, str]) -> list[str]:
    """Print the packages that are always needed; returns those that are missing or broken."""
    broken = []
    for package, requirement in requirement_by_package.items():
        version = _version(package)
        fault = _fault(package)
        if fault is None:
            _row(package, version or "-")
            continue
        broken.append(package)
        options = "" if version is None else "--force-reinstall --no-deps "
        _row(package, version or "missing", fault, f'to fix: pip install {options}"{requirement}"')
    return broken


def _print_extra(extra: str, packages: Sequence[str]) -> None:
    """Print whether the packages of an extra are installed."""
    fault_by_package = {package: _fault(package) for package in packages}
    faults = [fault for fault in fault_by_package.values() if fault is not None]
    is_missing = any(fault is not None and _version(package) is None for package, fault in fault_by_package.items())
    if not faults:
        _row(extra, "yes", ", ".join(f"{package} {_version(package)}" for package in packages))
    elif is_missing:
        _row(extra, "no", f'to install: pip install "onepeace[{extra}]"')
    else:
        _row(extra, "broken", "; ".join(faults))


def _print_weights() -> list[str]:
    """Print the bundled models; returns those that are missing."""
    missing = []
    for name in BUNDLED:
        size = sum(path.stat().st_size for path in (WEIGHTS / name).glob("*") if path.is_file())
        _row(name, f"{size / 1e6:.1f} MB" if size else "missing", str(WEIGHTS / name))
        if not size:
            missing.append(f"the bundled weights {name}")
    return missing


def requirements() -> dict[str, dict[str, str]]:
    """Requirements by extra and distribution; the core is the extra "", which comes first."""
    by_extra: dict[str, dict[str, str]] = {"": {}}
    try:
        lines = importlib.metadata.requires("onepeace") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("onepeace is not installed here, so its requirements are unknown: pip install .") from None
    for line in lines:
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra == [\"'](\w+)", condition)
        package = re.match(r"[\w.-]+", requirement)
        if package and (extra is None or extra[1] not in DEVELOPERS):
            of_extra = by_extra.setdefault(extra[1] if extra else "", {})
            of_extra[package[0]] = requirement.strip()
    return by_extra


def _row(name: str, value: str, *notes: str) -> None:
    """Print one row, with further notes on separate lines."""
    first, *rest = notes or ("",)
    print(f"{name:<20}{value:<16}{first}".rstrip())
    for note in rest:
        print(" " * 36 + note)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fault(package: str) -> str | None:
    """The error of importing a package, in one line; None if it imports."""
    try:
        import_module(MODULES.get(package, package.replace("-", "_")))
    except Exception as error:  # a broken package may raise anything, which is reported
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _print_devices() -> None:
    import torch

    from onepeace import threads
    from onepeace.device import available_devices, bfloat16_is_fast

    for name in reversed(available_devices()):
        device = torch.device(name)
        if device.type == "cpu":
            capabilities = torch.cpu.get_capabilities()
            features = [name for name in CPU_FEATURES if capabilities.get(name) is True]
            details = f"{torch.get_num_threads()} threads, {', '.join(features) or 'no wide vectors'}"
        elif device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            details = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        else:
            details = ""
        _row(name, "native bf16" if bfloat16_is_fast(device) else "no native bf16", details)
    _row("threads", str(torch.get_num_threads()), threads.describe_threads())
    if torch.version.cuda is not None and not torch.cuda.is_available():
        remedy = f"pip install --force-reinstall torch torchvision --index-url {CPU_BUILDS}"
        _row("torch build", f"CUDA {torch.version.cuda}", "no CUDA device; the CPU build saves 4 GB:", remedy)
