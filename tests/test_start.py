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


def test_start_loads_no_heavy_package():
    """Neither do the help of any command and a mistyped one."""
    heavy = {"torch", "numpy", "torchaudio", "torchvision", "transformers", "open_clip", "timm", "webdataset", "PIL"}
    code = """
import onepeace, onepeace.plugins, onepeace.cli
dir(onepeace), onepeace.UserError, onepeace.__version__
for arguments in (["--help"], ["--version"], ["serach"], *([name, "--help"] for name in onepeace.cli.COMMANDS)):
    assert onepeace.cli.main(arguments) == 2 * (arguments == ["serach"]), arguments
"""
    assert not loaded_by(code) & heavy


def test_embedding_and_searching_load_no_training_package(samples, random_folder):
    dog, bark = str(samples / "images" / "dog.jpg"), str(samples / "sounds" / "dog.ogg")
    loaded = loaded_by(f"""
import onepeace, onepeace.cli
model = onepeace.load({str(random_folder)!r})
model.encode_text(["a dog"]), model.encode_image([{dog!r}]), model.encode_audio([{bark!r}])
onepeace.cli.main(["search", {dog!r}, "--text", "a", "--no-index", "--model", {str(random_folder)!r}])
""")
    assert "torch" in loaded
    assert not loaded & {"transformers", "timm", "open_clip", "webdataset", "torchvision", "matplotlib", "sklearn"}
    # torch's compiler, which takes longer to import than torch, and what it needs.
    assert "sympy" not in loaded


def test_lazy_names_resolve_and_are_listed():
    for name in onepeace.__all__:
        assert name in dir(onepeace)
        assert getattr(onepeace, name) is getattr(onepeace, name)
    with pytest.raises(AttributeError, match="'onepeace' has no attribute 'Embeder'"):
        _ = onepeace.Embeder


# --- the guard around torchaudio ---


@pytest.fixture
def fake(tmp_path):
    """The folder of a package torchaudio whose import needs its `_extension`, as the real one does."""
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text("from . import _extension\nfrom ._extension import fail_if_no_align\n")
    # The flag is set before the failure, as when the library loads but is of another CUDA.
    extension = "_IS_TORCHAUDIO_EXT_AVAILABLE = True\nfail_if_no_align = lambda function: lambda: None\n"
    extension += "import os\nif os.environ.get('ERROR'): raise eval(os.environ['ERROR'])\n"
    (package / "_extension.py").write_text(extension)
    (package / "rest.py").write_text("raise OSError('of another module')")
    return tmp_path


def test_guard_fills_in_for_a_broken_native_part_and_hides_nothing_else(fake):
    hidden = ["OSError('1')", "RuntimeError('2')", "ImportError('3')", "AttributeError('4')"]
    code = f"""
import importlib, os, onepeace
from onepeace import torchaudio_guard
torchaudio_guard.install(); importlib.reload(onepeace)
print(sum(type(finder).__module__ == "onepeace.torchaudio_guard" for finder in sys.meta_path))

def outcome(error):
    for name in [name for name in sys.modules if name.startswith("torchaudio")]:
        del sys.modules[name]
    os.environ["ERROR"], torchaudio_guard._failure = error, None
    try:
        import torchaudio
        def forced_align(): pass
        print(torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE, torchaudio_guard.failure())
        torchaudio.fail_if_no_align(forced_align)()
    except Exception as error:
        print(type(error).__name__, error)

for error in ("", *{hidden}, "SyntaxError('x')", "ModuleNotFoundError('x')", "KeyError('x')"):
    outcome(error)
os.environ["ERROR"] = ""
try:
    import torchaudio.rest
except OSError as error:
    print(error)
"""
    missing = "RuntimeError forced_align needs torchaudio's native library, which does not load: "
    assert python(code, fake).splitlines() == [
        *("1", "True None"),
        *(line for reason in "1234" for line in (f"False {reason}", missing + reason)),
        *("SyntaxError x", "ModuleNotFoundError x", "KeyError 'x'", "of another module"),
    ]


def test_a_broken_native_part_fails_without_the_guard_which_does_not_come_after_torchaudio(fake):
    code = """
import os
os.environ["ERROR"] = "OSError('no lib')"
try: import torchaudio
except OSError as error: print(error)
os.environ["ERROR"] = ""
import torchaudio, onepeace
print([type(finder).__module__ for finder in sys.meta_path])
"""
    error, finders = python(code, fake).splitlines()
    assert error == "no lib"
    assert "onepeace" not in finders


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
