"""Lets `import torchaudio` succeed where its native library cannot be loaded.

torchaudio's wheels are built for one CUDA; beside any other torch the library does not load, `torchaudio/__init__.py`
lets that exception escape, and with it goes everything that imports torchaudio when it is installed (transformers among
them). Its Python part (resample, spectrograms, filters, masks) needs no native code. `install` puts a finder in front
of the import system that knows one name, `torchaudio._extension`: the real module is run, and only if that fails does
it get the values by which torchaudio itself marks a missing native part.

This module imports no torch.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import NoReturn

GUARDED = "torchaudio._extension"

_failure: Exception | None = None


def install() -> None:
    """Installs the guard, once per process; does nothing when torchaudio's native part is already imported."""
    if GUARDED not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def failure() -> Exception | None:
    """What torchaudio's native part raised; None if it loaded, or if torchaudio is not imported yet."""
    return _failure


class _Finder:  # importlib.abc, whose class it could inherit, takes 15 ms to import
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != GUARDED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """The usual loader, with a net under the execution of the module."""

    def exec_module(self, module: ModuleType) -> None:
        global _failure
        try:
            super().exec_module(module)
        except ModuleNotFoundError:  # something else is missing: not ours to hide
            raise
        except (OSError, RuntimeError, ImportError, AttributeError) as error:
            _failure = error
            _fill(module, error)


def _fill(module: ModuleType, reason: Exception) -> None:
    """Gives `module` what the rest of torchaudio asks of `_extension`, in the state "no native part"."""

    def fail_if_no_align(function: Callable[..., object]) -> Callable[..., NoReturn]:
        def fail(*args: object, **kwargs: object) -> NoReturn:
            raise RuntimeError(f"{function.__name__} needs torchaudio's native library, which does not load: {reason}")

        return fail

    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=fail_if_no_align,
    )
