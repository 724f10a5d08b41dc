"""What starting costs (imports, counted in fresh processes), the guard around torchaudio, and optional packages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import onepeace
from onepeace.errors import UserError, need

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *path: Path) -> str:
    """Runs `code` in a fresh interpreter with the folders `path` in front of the others; returns its output."""
    front = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n"
    done = subprocess.run([sys.executable, "-c", front + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that are loaded after `code`."""
    out = python(f"{code}\nprint('\\nLOADED', *{{name.partition('.')[0] for name in sys.modules}})")
    return set(out.rpartition("LOADED ")[2].split())


# --- imports ---


def test_index_is_opened_without_torch():
    """A query of words may be answered without it."""
    modules = [f"onepeace.index.{file.stem}" for file in (ROOT / "onepeace" / "index").glob("[!_]*.py")]
    assert {"onepeace.index.index", "onepeace.index.search", "onepeace.index.store"} <= {*modules}
    assert "torch" not in loaded_by(f"import {', '.join(modules)}")


@pytest.mark.parametrize(
    "code",
    [
        "import onepeace, onepeace.plugins",
        "import onepeace; dir(onepeace); onepeace.UserError; onepeace.__version__",
        "import onepeace.cli; onepeace.cli.main(['--help'])",
        "import onepeace.cli; onepeace.cli.main(['--version'])",
        "import onepeace.cli; onepeace.cli.main(['serach'])",
    ],
)
def test_start_loads_no_heavy_package(code):
    heavy = {"torch", "numpy", "torchaudio", "torchvision", "transformers", "open_clip", "timm", "webdataset", "PIL"}
    assert not loaded_by(code) & heavy


def test_embedding_calls_load_no_training_package(samples):
    calls = ["encode_text(['a dog'])", f"encode_image([r'{samples}/images/cat.jpg'])"]
    calls.append(f"encode_audio([r'{samples}/sounds/dog.ogg'])")
    loaded = loaded_by("\n".join(["import onepeace; model = onepeace.load('tiny')", *(f"model.{c}" for c in calls)]))
    assert "torch" in loaded
    assert not loaded & {"transformers", "timm", "open_clip", "webdataset", "matplotlib", "sklearn"}
    # torch's compiler, which takes longer to import than torch, and what it needs.
    assert "sympy" not in loaded


def test_lazy_names_resolve_and_are_listed():
    for name in onepeace.__all__:
        assert name in dir(onepeace)
        assert getattr(onepeace, name) is getattr(onepeace, name)
    with pytest.raises(AttributeError, match="'onepeace' has no attribute 'Embeder'"):
        _ = onepeace.Embeder


# --- the guard around torchaudio ---

REPORT = """
import onepeace, torchaudio
from onepeace import torchaudio_guard
from torchaudio import _extension
print(_extension._IS_TORCHAUDIO_EXT_AVAILABLE, torchaudio_guard.failure())
"""


def fake_torchaudio(folder: Path, extension: str) -> Path:
    """A package of that name whose import needs its `_extension`, as the real one does."""
    package = folder / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("from . import _extension\nfrom ._extension import fail_if_no_align\n")
    (package / "_extension.py").write_text(extension)
    return folder


def test_guard_leaves_a_working_native_part_alone(tmp_path):
    extension = "_IS_TORCHAUDIO_EXT_AVAILABLE = True\nfail_if_no_align = print\n"
    fake = fake_torchaudio(tmp_path, extension)
    assert python(REPORT, fake) == "True None"
    assert python(REPORT + "print(_extension.fail_if_no_align is print)", fake).endswith("True")


@pytest.mark.parametrize(
    "error",
    ["OSError('no lib')", "RuntimeError('other CUDA')", "ImportError('no symbol')", "AttributeError('no operator')"],
)
def test_guard_fills_in_for_a_broken_native_part_and_keeps_the_reason(tmp_path, error):
    # The flag is set before the failure, as when the library loads but is of another CUDA.
    fake = fake_torchaudio(tmp_path, f"_IS_TORCHAUDIO_EXT_AVAILABLE = True\nraise {error}\n")
    reason = error.partition("'")[2].rstrip("')")
    assert python(REPORT, fake) == f"False {reason}"
    align = """
@torchaudio.fail_if_no_align
def forced_align(): pass
try: forced_align()
except RuntimeError as error: print(error)
"""
    out = python(REPORT + align, fake)
    assert out.endswith(f"forced_align needs torchaudio's native library, which does not load: {reason}")


def test_broken_native_part_fails_without_the_guard(tmp_path):
    fake = fake_torchaudio(tmp_path, "raise OSError('no lib')")
    out = python("try: import torchaudio\nexcept OSError as error: print(error)", fake)
    assert out == "no lib"


@pytest.mark.parametrize("error", ["SyntaxError('x')", "ModuleNotFoundError('x')", "KeyError('x')"])
def test_guard_hides_no_other_error_of_the_native_part(tmp_path, error):
    fake = fake_torchaudio(tmp_path, f"raise {error}")
    name = error.partition("(")[0]
    assert python(f"import onepeace\ntry: import torchaudio\nexcept {name}: print('seen')", fake) == "seen"


def test_guard_hides_no_error_of_another_module(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("from . import _extension")
    (tmp_path / "other" / "_extension.py").write_text("raise OSError('mine')")
    fake = fake_torchaudio(tmp_path, "raise OSError('no lib')")
    code = "import onepeace, torchaudio\ntry: import other\nexcept OSError as error: print(error)"
    assert python(code, fake) == "mine"
    (tmp_path / "torchaudio" / "rest.py").write_text("raise OSError('rest')")
    assert python(code.replace("import other", "import torchaudio.rest"), fake) == "rest"


def test_guard_is_installed_once(tmp_path):
    fake = fake_torchaudio(tmp_path, "raise OSError('no lib')")
    code = """
import importlib, onepeace
from onepeace import torchaudio_guard
torchaudio_guard.install(); importlib.reload(onepeace)
print(sum(type(finder).__module__ == "onepeace.torchaudio_guard" for finder in sys.meta_path))
"""
    assert python(code, fake) == "1"


def test_guard_is_not_installed_after_torchaudio(tmp_path):
    fake = fake_torchaudio(tmp_path, "fail_if_no_align = print")
    code = "import torchaudio, onepeace\nprint([type(finder).__module__ for finder in sys.meta_path])"
    assert "onepeace" not in python(code, fake)


@pytest.mark.slow
def test_real_torchaudio_resamples_behind_the_guard():
    pytest.importorskip("torchaudio")
    code = """
import onepeace, torch, torchaudio
print(torchaudio.functional.resample(torch.ones(1, 480), 48000, 16000).shape)
"""
    assert python(code) == "torch.Size([1, 160])"


# --- optional packages ---


def test_need_names_the_extra_of_a_missing_package():
    with pytest.raises(UserError, match=re.escape('needs no_such_package: pip install "onepeace[index]"')):
        need("no_such_package.part", "index")


@pytest.mark.parametrize("error", ["import no_such_library", "raise OSError('libfoo.so: cannot open')"])
def test_need_tells_a_broken_package_from_a_missing_one(tmp_path, monkeypatch, error):
    name = f"broken_{len(error)}"
    (tmp_path / f"{name}.py").write_text(error)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"^{name} is installed but does not import .*see: onepeace doctor"):
        need(name, "index")
