"""Device and precision of a model: names of devices and dtypes, and the meaning of "auto"."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from onepeace.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

SAMPLES = 1024
"""Numbers of a tensor that a digest reads."""
SMALL = 100_000_000
"""Number of parameters below which a CPU uses float32: bfloat16 saves little, and its rounding depends on the batch."""


def available_devices() -> list[str]:
    """Names of the devices of this machine, the preferred one first."""
    names = []
    if torch.cuda.is_available():
        names += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device called `name`; None or "auto" is the first of `available_devices`.

    Raises `UserError`, with the available names, for any other name.
    """
    names = available_devices()
    if name is None or name == "auto":
        return torch.device(names[0])
    if str(name) not in names:
        raise UserError(f"device {str(name)!r} is not available here; available: {', '.join(names)}")
    return torch.device(name)


def card_name(device: torch.device) -> str:
    """Name of a CUDA device as its driver tells it; empty for others."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def may_be_gpu(name: str | None) -> bool:
    """Whether a name selects a GPU, if there is one."""
    return name in (None, "auto", "cuda")


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether `device` multiplies matrices in bfloat16 natively (AVX512_BF16 or AMX on a CPU)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def named_dtype(name: str | torch.dtype, *others: str) -> torch.dtype:
    """The dtype called `name`; `UserError` lists the known names, with `others`."""
    dtype = name if isinstance(name, torch.dtype) else DTYPES.get(str(name))
    if dtype is None or dtype not in DTYPES.values():
        raise UserError(f"dtype {str(name)!r} is not known; known: {', '.join([*others, *DTYPES])}")
    return dtype


def choose_dtype(name: str | torch.dtype, device: torch.device, num_parameters: int) -> torch.dtype:
    """The dtype called `name` (a name of `DTYPES`, "auto", or a torch dtype) for a model on `device`.

    "auto" is bfloat16 where the device is fast at it and the model is not `SMALL` on a CPU, else float32.

    Raises `UserError` for an unknown name, and for float16 on a CPU, which is several times slower there than float32.
    """
    if name == "auto":
        small = device.type == "cpu" and num_parameters < SMALL
        return torch.bfloat16 if bfloat16_is_fast(device) and not small else torch.float32
    dtype = named_dtype(name, "auto")
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("dtype float16 is not computed on a CPU; use bfloat16 or float32")
    return dtype


def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters, also of a module on the meta device."""
    return sum(parameter.numel() for parameter in module.parameters())


def remedy_for_nan(dtype: torch.dtype) -> str:
    """Remedy for numbers of a model, computed in `dtype`, that are not finite."""
    if dtype == torch.float32:
        return "its weights may be damaged; onepeace info compares them with their checksums"
    return "try dtype float32"


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the CPU to `device` without waiting for what the device still computes.

    Only copies from page-locked memory do not wait. A tensor that is not there yet is copied to it first, which takes
    microseconds for the small tensors that a training step makes.
    """
    if device.type == "cuda" and torch.cuda.is_available() and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def join_device(device: torch.device, number: int) -> tuple[torch.device, str]:
    """Device number ``number`` of the kind of `device`, for one of several processes, and their distributed backend."""
    if device.type == "cuda":
        torch.cuda.set_device(number)
        return torch.device("cuda", number), "cpu:gloo,cuda:nccl"  # numbers on the CPU are exchanged there
    return device, "gloo"


@contextmanager
def memory_remedy(remedy: str) -> Iterator[None]:
    """Context in which a GPU or CPU without memory is a `UserError` with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(remedy) from error


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory of `device`; None for one that does not say so, such as a CPU, whose memory is shared."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return None


def peak_memory(device: torch.device) -> int:
    """Peak number of bytes allocated on `device`; for a CPU, the peak resident memory of this process.

    0 if the system does not report it (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def digest_of(module: torch.nn.Module, settings: str = "") -> str:
    """Hash (16 hexadecimal digits) of the names and shapes of the weights, and of samples of their numbers.

    It takes milliseconds where hashing all numbers takes seconds. Those of another training differ in the samples.
    """
    digest = hashlib.blake2b(settings.encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        numbers = tensor.detach().flatten()
        some_numbers = numbers[:: len(numbers) // SAMPLES + 1].contiguous()
        digest.update(some_numbers.view(torch.uint8).cpu().numpy())
    return digest.hexdigest()
