"""What the source of the package may say: who imports whom, and what is written nowhere."""

import ast
import configparser
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from onepeace.commands.doctor import MODULES as IMPORTED

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "onepeace"
FILES = sorted(PACKAGE.rglob("*.py"))
MODALITIES = {"text", "image", "audio", "video"}

ROWS = [
    {"errors", "progress", "special_ids"},
    {"extensions", "files"},
    {"cards", "config", "device", "threads"},
    {"layers"},
    {"heads"},
    {"model", "processors", "losses"},
    {"compiling"},
    {"hub"},
    {"data", "embed"},
    {"datasets", "export"},
    {"index"},
    {"evaluate"},
    {"train"},
    {"serve", "plan", "plugins"},
    {"finetune"},
    {"commands"},
    {"generative"},
    {"cli"},
]
"""Modules and folders of the package, lowest first. A file imports from rows below its own, and from its own folder."""

ONLY_TORCH = {"layers", "heads", "model", "losses"}
"""Parts that someone can copy into another project: to import them takes torch, `errors` and `config`."""

COSTLY = {
    *("torchvision", "torchaudio", "timm", "webdataset", "transformers", "open_clip", "matplotlib", "soundfile"),
    *("PIL", "sklearn", "pyarrow", "huggingface_hub", "mteb", "sentence_transformers", "peft"),
    *("pathspec", "filelock", "faiss"),
}
"""Imported inside the function that uses them, never at the top of a module."""

SINCE_3_11 = {
    *("typing.Self", "typing.Never", "typing.LiteralString", "typing.Required", "typing.NotRequired", "typing.Unpack"),
    *("typing.assert_never", "typing.override", "enum.StrEnum", "datetime.UTC", "itertools.batched"),
    *("contextlib.chdir", "hashlib.file_digest", "asyncio.TaskGroup", "asyncio.timeout", "tomllib"),
}
"""Not in Python 3.10, on which the package is to run as well."""


def name_of(file: Path) -> str:
    """Dotted name inside the package; "" for its __init__."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" else parts[:-1])


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def that_run(tree: ast.Module, *, top: bool) -> Iterator[ast.AST]:
    """The nodes that run at some time, `if TYPE_CHECKING` left out; `top`: when the module is imported, functions'
    bodies left out."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
        elif not (top and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


@cache
def imports(file: Path, *, top: bool = False) -> frozenset[str]:
    """Full names of what a file imports, not for types alone; `top`: only what its own import causes."""
    names = set()
    for node in that_run(tree_of(file), top=top):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = absolute_name(file, node)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def absolute_name(file: Path, node: ast.ImportFrom) -> str:
    """The module of a "from" statement, which may be relative."""
    if node.level == 0:
        return node.module
    package = ["onepeace", *file.relative_to(PACKAGE).parts[:-1]]
    parts = package[: len(package) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


MODULES = {name_of(file): file for file in FILES}


def own_imports(file: Path, *, top: bool = False) -> set[str]:
    """Modules of the package that a file imports, by their name inside it."""
    names = set()
    for full in imports(file, top=top) - {"onepeace.__version__"}:  # that is a text, whoever uses it
        if full.partition(".")[0] == "onepeace":
            name = full.removeprefix("onepeace").removeprefix(".")
            names.add(name if name in MODULES else name.rpartition(".")[0])
    return names


def row_of(part: str) -> int:
    for row, parts in enumerate(ROWS):
        if part in parts:
            return row
    raise AssertionError(f"onepeace.{part} stands in no row; give it one in ROWS")


def part_of(name: str) -> str:
    """The folder or top-level module of a module."""
    return name.partition(".")[0]


def docstrings(tree: ast.Module) -> set[ast.Constant]:
    """Strings that are statements of their own: docstrings, and those that describe a constant or a field."""
    return {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def strings(file: Path, *, keys: bool = True) -> Iterator[tuple[str, int]]:
    """String constants of a file with their lines, no docstrings; `keys`: also those that are keys of a dictionary."""
    tree = tree_of(file)
    skip: set[ast.AST | None] = {*docstrings(tree)}
    if not keys:
        for node in ast.walk(tree):
            skip |= set(node.keys) if isinstance(node, ast.Dict) else set()
            skip |= {node.slice} if isinstance(node, ast.Subscript) else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skip:
            yield node.value, node.lineno


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno}"


def test_imports_go_down():
    upward = []
    for name, file in MODULES.items():
        if name in ("", "__main__"):
            continue  # the front doors: they name what is above
        part = part_of(name)
        for imported in own_imports(file):
            if imported == "":  # `import onepeace` for onepeace.load
                is_allowed = part in ("commands", "cli")
            else:
                is_allowed = part_of(imported) == part or row_of(part_of(imported)) < row_of(part)
            if not is_allowed:
                upward.append(f"{name} imports {imported or 'onepeace'}")
    assert not upward, upward


def test_imports_make_no_circle():
    """Neither at the top of modules nor inside functions."""
    imported = {name: own_imports(file) - {"", name} for name, file in MODULES.items() if name}
    list(graphlib.TopologicalSorter(imported).static_order())


@pytest.mark.parametrize("part", sorted(ONLY_TORCH))
def test_part_needs_only_torch(part):
    allowed = {"errors", "extensions", "special_ids", "config", *ONLY_TORCH}
    for name, file in MODULES.items():
        if part_of(name) != part:
            continue
        packages = {full.partition(".")[0] for full in imports(file, top=True)} - set(sys.stdlib_module_names)
        assert packages <= {"torch", "onepeace"}, name
        assert {part_of(imported) for imported in own_imports(file)} <= allowed, name


def packages_at_top(file: Path) -> set[str]:
    return {full.partition(".")[0] for full in imports(file, top=True)}


def test_nothing_is_imported_that_the_oldest_python_lacks():
    wrong = {name_of(file): sorted(imports(file) & SINCE_3_11) for file in FILES}
    assert not {file: names for file, names in wrong.items() if names}


def test_costly_packages_are_imported_where_they_are_used():
    early = []
    for name, file in MODULES.items():
        for package in packages_at_top(file) & COSTLY:
            # A plug-in has subclasses of its package's classes.
            if not name.startswith(f"plugins.{package}"):
                early.append(f"{name}: {package}")
    assert not early, early


def test_modality_names_stay_out_of_the_model():
    named = []
    for name, file in MODULES.items():
        if part_of(name) != "model" or name == "model.adapters":
            continue
        for value, line in strings(file):
            if " " not in value and MODALITIES & set(re.split(r"\W", value)):
                named.append(f"{name}:{line}: {value!r}")
    assert not named, named


UNSAFE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "joblib.load"}
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
OFF_UNLESS_NAMED = {"allow_pickle", "trust_remote_code", "shell"}


def is_unsafe(call: ast.Call) -> bool:
    """Whether a call may run what it reads."""
    function = ast.unparse(call.func)
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    if function == "torch.load":
        return options.get("weights_only") != "True"
    return function in UNSAFE or any(options.get(name, "False") != "False" for name in OFF_UNLESS_NAMED)


def test_nothing_runs_or_unpickles_data():
    unsafe = []
    for file in FILES:
        packages = {full.partition(".")[0] for full in imports(file)}
        if file.name == "unpickle.py":  # knows no names but inert ones: tests/hub/test_hub_unpickle.py
            packages -= {"pickle"}
        unsafe += [f"{file.relative_to(ROOT)}: {package}" for package in packages & PICKLES]
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and is_unsafe(node):
                unsafe.append(place(file, node))
    assert unsafe == []


def test_no_device_is_written_into_the_code():
    chooses = {"device", "commands.doctor"}  # which device there is, is asked and told here
    written = []
    for name, file in MODULES.items():
        if name in chooses:
            continue
        for value, line in strings(file, keys=False):
            if re.match(r"cuda\b", value):
                written.append(f"{name}:{line}: {value!r}")
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                written.append(place(file, node))
    assert not written, written


def test_need_names_an_extra_that_brings_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    core = modules_of(config["options"]["install_requires"])
    wrong = []
    for file in FILES:
        for node in ast.walk(tree_of(file)):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("need", "errors.need"):
                continue
            module = ast.literal_eval(node.args[0])
            extra = ast.literal_eval(node.args[1])
            # Some come with the core whatever the extra, and then the extra must still exist for its other half.
            if extra not in extras or module.partition(".")[0] not in core | modules_of(extras[extra]):
                wrong.append(f"{place(file, node)}: need({module!r}, {extra!r})")
    assert not wrong, wrong


def modules_of(requirements: str) -> set[str]:
    """Modules that lines of requirements bring."""
    names = re.findall(r"^[\w.-]+", requirements, re.MULTILINE)
    return {IMPORTED.get(name, name.replace("-", "_")).partition(".")[0] for name in names}


def tracked_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_path_of_a_machine_is_written_anywhere():
    machine = re.compile(rb"(?<![\w.~-])/(work|farm|root|home/[a-z]+|Users/[a-z]+)/")
    written = []
    for file in tracked_files():
        content = file.read_bytes()
        if b"\0" not in content[:4096] and file != Path(__file__).resolve():
            written += [f"{file.relative_to(ROOT)}: {match[0].decode()}" for match in machine.finditer(content)]
    assert not written, written


def test_every_folder_of_code_is_a_package():
    """Else an installation leaves it out."""
    assert not [file for file in FILES if not (file.parent / "__init__.py").exists()]


def test_an_editable_installation_is_seen_by_type_checkers():
    """setuptools writes the folder of the package into a .pth file only if it knows where the packages lie."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["options"]["package_dir"].split() == ["=", "."]
    assert (PACKAGE / "py.typed").exists()
