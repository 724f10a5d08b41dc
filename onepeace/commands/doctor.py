"""`onepeace doctor`: which dependencies are installed and work, and how to fix those that do not."""

import argparse
import importlib.metadata
import platform
import re
from importlib import import_module
from pathlib import Path

import onepeace
from onepeace.errors import UserError, one_line

MODULES = {
    "open_clip_torch": "open_clip", "pillow": "PIL.Image", "pyyaml": "yaml", "pillow-heif": "pillow_heif",
    "scikit-learn": "sklearn", "pycocotools": "pycocotools.coco", "pycocoevalcap": "pycocoevalcap.cider.cider_scorer",
    "faiss-cpu": "faiss",
}  # fmt: skip
"""Module to import by distribution, where the name differs or only a submodule loads the native code."""
DEVELOPERS = ("test", "docs")
"""Extras for developers of the package."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example:\n  onepeace doctor\n\nexit code: 0, or 1 when a requirement is missing or broken"


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 when a requirement is missing or broken, else 0."""
    _row("onepeace", onepeace.__version__, str(Path(onepeace.__file__).parent))
    _row("python", platform.python_version(), platform.platform())
    by_extra = requirements()
    print("\nneeded")
    broken = [package for package, requirement in by_extra.pop("").items() if not _print_needed(package, requirement)]
    print("\noptional")
    for extra, packages in by_extra.items():
        _print_extra(extra, list(packages))
    if "torch" not in broken:
        _print_devices()
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nall requirements work")
    return 1 if broken else 0


def _print_needed(package: str, requirement: str) -> bool:
    """Print the state of a requirement, and a remedy; returns whether it works."""
    version, fault = _state(package)
    _row(package, version or "missing", fault)
    if fault:
        options = "--force-reinstall --no-deps " if version else ""
        _row("", "", f'to fix: pip install {options}"{requirement}"')
    return not fault


def _print_extra(extra: str, packages: list[str]) -> None:
    """Print whether an extra is installed and works, and how to install it."""
    states = {package: _state(package) for package in packages}
    faults = [fault for _, fault in states.values() if fault]
    if not faults:
        _row(extra, "yes", ", ".join(f"{package} {version}" for package, (version, _) in states.items()))
    elif any(version is None for version, _ in states.values()):
        _row(extra, "no", f'to install: pip install "onepeace[{extra}]"')
    else:
        _row(extra, "broken", "; ".join(faults))


def requirements() -> dict[str, dict[str, str]]:
    """Requirements by extra and distribution; those that are needed have the extra ""."""
    by_extra: dict[str, dict[str, str]] = {"": {}}
    try:
        lines = importlib.metadata.requires("onepeace") or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError("onepeace is not installed here, so its requirements are unknown: pip install .") from None
    for line in lines:
        requirement, _, condition = line.partition(";")
        extra = re.search(r"extra == [\"'](\w+)", condition)
        package = re.match(r"[\w.-]+", requirement)
        if package is None or package[0] == "onepeace":  # a bundle of extras
            continue
        if extra is None or extra[1] not in DEVELOPERS:
            by_extra.setdefault(extra[1] if extra else "", {})[package[0]] = requirement.strip()
    return by_extra


def _row(name: str, value: str, note: str) -> None:
    print(f"{name:<20}{value:<16}{note}".rstrip())


def _state(package: str) -> tuple[str | None, str]:
    """The version of a package, None if it is not installed, and the error of importing it, "" if it imports."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = None
    try:
        import_module(MODULES.get(package, package.replace("-", "_")))
    except Exception as error:  # a broken package may raise anything, which is reported
        return version, f"{type(error).__name__}: {one_line(error)}"
    return version, ""


def _print_devices() -> None:
    import torch

    from onepeace import threads
    from onepeace.device import available_devices, bfloat16_is_fast

    print("\ndevices")
    for name in reversed(available_devices()):
        has_bfloat16 = bfloat16_is_fast(torch.device(name))
        details = torch.cuda.get_device_name(name) if name.startswith("cuda") else ""
        _row(name, "native bf16" if has_bfloat16 else "no native bf16", details)
    _row("threads", str(torch.get_num_threads()), threads.describe_threads())
