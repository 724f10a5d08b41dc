"""What starting costs (imports, counted in fresh processes), and optional packages."""

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


def loaded_by(code: str, *path: Path) -> set[str]:
    """Top-level names of the modules that are loaded after `code`; `path` as for `python`."""
    out = python(f"{code}\nprint('\\nLOADED', *{{name.partition('.')[0] for name in sys.modules}})", *path)
    return set(out.rpartition("LOADED ")[2].split())


# --- imports ---


def test_index_is_opened_without_torch():
    """A query of words may be answered without it."""
    modules = [f"onepeace.index.{file.stem}" for file in (ROOT / "onepeace" / "index").glob("[!_]*.py")]
    assert {"onepeace.index.index", "onepeace.index.search", "onepeace.index.database"} <= {*modules}
    assert "torch" not in loaded_by(f"import {', '.join(modules)}")


def test_start_loads_no_heavy_package():
    """Neither do the help of any command and a mistyped one."""
    heavy = {"torch", "numpy", "torchaudio", "torchvision", "transformers", "open_clip", "timm", "webdataset", "PIL"}
    code = """
import onepeace, onepeace.plugins, onepeace.cli, onepeace.config
dir(onepeace), onepeace.UserError, onepeace.__version__
for arguments in (["--help"], ["--version"], ["serach"], *([name, "--help"] for name in onepeace.cli.COMMANDS)):
    assert onepeace.cli.main(arguments) == 2 * (arguments == ["serach"]), arguments
"""
    assert not loaded_by(code) & heavy


def test_embedding_and_searching_load_no_training_package(samples, random_folder, tmp_path):
    """Nor torchaudio, whose one build wants CUDA's libraries and cannot be imported without them."""
    (tmp_path / "torchaudio.py").write_text("raise OSError('libcudart.so: no such file')")
    (tmp_path / "torchaudio-2.11.0.dist-info").mkdir()
    (tmp_path / "torchaudio-2.11.0.dist-info" / "METADATA").write_text("Name: torchaudio\nVersion: 2.11.0\n")
    dog, bark = str(samples / "images" / "dog.jpg"), str(samples / "sounds" / "dog.ogg")
    code = f"""
import onepeace, onepeace.cli
model = onepeace.load({str(random_folder)!r})
model.encode_text(["a dog"]), model.encode_image([{dog!r}]), model.encode_audio([{bark!r}])
for options in (["--no-index"], ["--top", "1"]):
    command = ["search", {str(samples / "images")!r}, "--text", "a", *options, "--model", {str(random_folder)!r}]
    assert onepeace.cli.main(command) == 0
"""
    loaded = loaded_by(code, tmp_path)
    assert "torch" in loaded
    assert not loaded & {"transformers", "timm", "open_clip", "webdataset", "torchvision", "matplotlib", "sklearn"}
    assert "faiss" not in loaded
    # torch's compiler, which takes longer to import than torch, and what it needs.
    assert "sympy" not in loaded


def test_lazy_names_resolve_and_are_listed():
    for name in onepeace.__all__:
        assert name in dir(onepeace)
        assert getattr(onepeace, name) is getattr(onepeace, name)
    with pytest.raises(AttributeError, match="'onepeace' has no attribute 'Embeder'"):
        _ = onepeace.Embeder


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
