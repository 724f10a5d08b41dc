"""What a user or a new contributor looks for is documented: commands, options, recipes, names, fields, folders.

Other tests ask for options of terms (train/test_recipes.py), layouts (recipes/test_layouts.py) and released
checkpoints (hub/test_hub_resolve.py).
"""

import ast
import configparser
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_type_hints
from xml.etree import ElementTree

import pytest
from support import command_reference, endings_reference
from support.readme import ROOT
from support.recipe_files import recipe_file
from test_layers import ROWS

from onepeace.cli import COMMANDS, command_parser
from onepeace.evaluate.protocols import PROTOCOLS
from onepeace.evaluate.protocols.task_metrics import METRICS
from onepeace.index.filters import FIELDS
from onepeace.train.recipe import Recipe
from onepeace.train.schedule import SCHEDULES
from onepeace.train.terms import TERMS

PACKAGE = ROOT / "onepeace"
DOCS = ROOT / "docs"
RECIPES = ROOT / "recipes"
FOLDERS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
PUBLIC = [
    "onepeace",
    "onepeace.config",
    "onepeace.heads",
    "onepeace.index",
    "onepeace.losses",
    "onepeace.model",
    "onepeace.model.stems",
    "onepeace.processors",
]
"""Packages from whose `__init__` users import."""
ONLY_FOR_DEVELOPERS = {"test", "docs"}
"""Extras."""


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def guides() -> str:
    """README.md, all first hours and all guides."""
    pages = [*(DOCS / "start").glob("*.md"), *(DOCS / "guide").glob("*.md")]
    return "\n".join(map(read, [ROOT / "README.md", *sorted(pages)]))


# --- commands ---


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_shown_in_a_guide(command):
    assert re.search(rf'onepeace {command}\b|"args": \["{command}"', guides())


def test_reference_of_commands_is_that_of_the_parsers():
    assert read(command_reference.PAGE) == command_reference.page(), "run make readme"


def test_page_of_endings_is_that_of_the_tables():
    assert read(endings_reference.PAGE) == endings_reference.page(), "run make readme"


@pytest.mark.parametrize("command", COMMANDS)
def test_argument_of_command_has_a_help_text(command):
    parser = command_parser(command)
    for one_parser in (parser, *command_reference.verbs_of(parser).values()):
        for _, action in command_reference.arguments_of(one_parser):
            assert action.help, f"{one_parser.prog} {action.option_strings or action.dest}"


# --- recipes, fields, extras ---


def expanded(pattern: str) -> list[str]:
    """The names that a pattern such as "{small,large}.yaml" stands for."""
    brace = re.search(r"\{([^{}]+)\}", pattern)
    if brace is None:
        return [pattern]
    names = []
    for choice in brace[1].split(","):
        names += expanded(pattern[: brace.start()] + choice + pattern[brace.end() :])
    return names


def test_recipe_is_in_the_list():
    listed = []
    for pattern in re.findall(r"`([^`* ]+/[^`* ]+\.yaml)`", read(RECIPES / "README.md")):
        listed += expanded(pattern)
    recipes = [path.relative_to(RECIPES).as_posix() for path in sorted(RECIPES.rglob("*.yaml"))]
    assert [name for name in recipes if name not in listed] == []
    assert [name for name in listed if name not in recipes] == []


def section(page: str, title: str) -> str:
    """A section of a guide."""
    return read(DOCS / "guide" / page).partition(f"## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str, header: str) -> list[str]:
    """The names in the first column of the table with this header."""
    rows = text.partition(f"| {header} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)


def test_protocols_and_metrics_are_those_of_the_guide():
    for name in ("detection", "frame_events", "segmentation"):
        recipe_file(name)
    text = section("train.md", "Evaluation")
    assert first_cells(text, "`protocol`") == [*PROTOCOLS]
    assert set(first_cells(text, "task of the head")) == {*METRICS}


@pytest.mark.parametrize("protocol", PROTOCOLS.values())
def test_choices_of_a_protocol_are_in_the_guide(protocol):
    text = section("train.md", "Evaluation")
    for name, kind in get_type_hints(protocol).items():
        if get_origin(kind) is Literal:
            assert [choice for choice in get_args(kind) if f"`{choice}`" not in text] == [], name


def test_schedules_are_those_of_the_guide():
    text = section("train.md", "Optimizer and schedule")
    assert first_cells(text, "`schedule.name`") == [*SCHEDULES]


def literals(kind: Any, path: str = "", seen: frozenset[Any] = frozenset()) -> Iterator[tuple[str, str]]:
    """The fields with a fixed choice of words, of a class and those in its fields, and the words."""
    if get_origin(kind) is Literal:
        yield from ((path, word) for word in get_args(kind) if isinstance(word, str))
    elif is_dataclass(kind) and kind not in seen:
        for name, type_of_field in get_type_hints(kind).items():
            yield from literals(type_of_field, f"{path}.{name}".strip("."), seen | {kind})
    else:
        for inner in get_args(kind):
            yield from literals(inner, path, seen)


@pytest.mark.parametrize("options", [Recipe, *(term.Options for term in TERMS.values())])
def test_choices_of_recipes_are_in_the_guide(options):
    code = " ".join(re.findall(r"`[^`\n]+`", read(DOCS / "guide" / "train.md")))
    assert [choice for choice in literals(options) if not re.search(rf"\b{choice[1]}\b", code)] == []


def test_filter_field_is_in_the_guide():
    table = section("search.md", "Filters")
    assert [field for field in FIELDS if f"`{field}`" not in table] == []


def test_filter_field_is_in_the_description_of_the_search_tool():
    pytest.importorskip("mcp")
    from onepeace.serve.mcp import Tools, describe_tool

    description = describe_tool(Tools.search)
    where = re.search(r"where: (.*)\n +after:", description, re.DOTALL)[1]
    assert [field for field in FIELDS if not re.search(rf"\b{field}\b", where)] == []


def test_routes_of_the_api_are_those_of_the_guide():
    api = pytest.importorskip("support.api")
    paths = api.create_app(api.Service(SimpleNamespace())).openapi()["paths"]
    routes = {f"{method.upper()} {path.replace('{id_}', 'ID')}" for path in paths for method in paths[path]}
    documented_routes = set()
    for row in re.findall(r"^\| (`(?:GET|POST) /.*?) \|", read(DOCS / "guide" / "serve.md"), re.MULTILINE):
        (method,) = re.findall(r"GET|POST", row)
        documented_routes |= {f"{method} {path}" for path in re.findall(r"[` ](/[\w/]+)", row)}
    assert documented_routes == routes


def test_tools_for_language_models_are_in_the_guide():
    pytest.importorskip("mcp")
    from onepeace.generative.serving import WritingTools

    tools = {name for name in dir(WritingTools) if not name.startswith("_")}
    assert [tool for tool in sorted(tools) if f"`{tool}`" not in read(DOCS / "guide" / "mcp.md")] == []


def test_extra_is_in_the_table_of_extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = {*config["options.extras_require"]} - ONLY_FOR_DEVELOPERS
    cells = " ".join(re.findall(r"^\|.*\|$", read(DOCS / "guide" / "install.md"), re.MULTILINE))
    assert [extra for extra in sorted(extras) if f"`{extra}`" not in cells] == []


# --- names of Python ---


@cache
def directives() -> list[str]:
    """What mkdocstrings is asked to document."""
    pages = "\n".join(map(read, (DOCS / "reference").glob("*.md")))
    return re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)


def named(path: str) -> object:
    """The module, class or function with a dotted name."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        parent, _, name = path.rpartition(".")
        return getattr(named(parent), name)


@cache
def documented() -> list[object]:
    """Classes and functions that the reference shows, those of modules included."""
    shown = []
    for path in directives():
        if path.startswith("onepeace.plugins."):
            continue  # needs the other library
        thing = named(path)
        if not isinstance(thing, ModuleType):
            shown.append(thing)
            continue
        for name in getattr(thing, "__all__", vars(thing)):
            value = getattr(thing, name)
            is_hidden_by_a_module = find_spec(f"{path}.{name}") if hasattr(thing, "__path__") else None
            is_own = hasattr(thing, "__all__") or getattr(value, "__module__", None) == path
            if is_own and not is_hidden_by_a_module:
                shown.append(value)
    return shown


def is_shown(thing: object) -> bool:
    return any(thing is other for other in documented())


@pytest.mark.parametrize("package", PUBLIC)
def test_public_name_is_in_the_reference(package):
    module = import_module(package)
    things = {name: getattr(module, name) for name in module.__all__}
    for name, thing in things.items():
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), f"{package}.{name} has no docstring"
            assert is_shown(thing), f"{package}.{name} is on no page of docs/reference"


@pytest.mark.parametrize("key", PROTOCOLS)
def test_protocol_is_in_the_reference(key):
    assert is_shown(PROTOCOLS[key])


def test_plugin_is_in_the_reference():
    modules = {path.stem for path in (PACKAGE / "plugins").iterdir() if not path.name.startswith("__")}
    assert {f"onepeace.plugins.{name}" for name in modules} <= {*directives()}


# --- the code, for contributors ---


def row_of(part: str) -> int:
    return next(number for number, parts in enumerate(ROWS) if part in parts)


def test_contributing_lists_folders_in_the_order_of_the_layers():
    block = read(ROOT / "CONTRIBUTING.md").partition("## The folders")[2].partition("```text\n")[2].partition("```")[0]
    folders = re.findall(r"^  (\w+)/ ", block, re.MULTILINE)
    rows = [row_of(folder) for folder in folders]
    assert rows == sorted(rows)
    assert {*folders} == FOLDERS - {"weights"}


def test_drawing_has_the_rows_of_the_layers():
    drawing = ElementTree.fromstring(read(DOCS / "pictures" / "layers.svg"))  # noqa: S314
    names = [{*text.text.split()} for text in drawing.iter() if text.get("class") == "names"]
    assert names == ROWS[::-1]


def functions_of(file: Path) -> set[str]:
    """Functions, classes and methods (Class.method) of a module."""
    names = set()
    for node in ast.parse(read(file)).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


def test_functions_of_a_day_in_the_life_exist():
    steps = re.findall(r"^\d+\. `([\w/]+\.py)`: (.+)$", read(DOCS / "how" / "life.md"), re.MULTILINE)
    assert len(steps) >= 15
    for path, cell in steps:
        functions = functions_of(PACKAGE / path)
        owner = ""
        for name in re.findall(r"`([\w.]+)`", cell):
            if name.startswith("."):  # a further method of the class before
                name = owner + name
            owner = name.rpartition(".")[0]
            assert name in functions, f"{path}: {name}"


PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (*DOCS.glob("how/*.md"), *DOCS.glob("guide/*.md")))
PLACES = {
    "CONTRIBUTING.md": ["", "onepeace"],
    "docs/how/index.md": ["", "onepeace", "onepeace/serve"],
    "docs/how/index_files.md": ["", "onepeace", "onepeace/index"],
    "docs/how": ["", "onepeace"],
    "docs/guide": ["", "recipes"],
}
"""Folders below which the paths of a page, or of the pages of a folder, lie."""


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    folder = page.rpartition("/")[0]
    places = PLACES.get(page) or PLACES.get(folder, [""])
    # Elsewhere a bare name may be that of a user's file.
    names_our_files = page in PLACES or folder == "docs/how"
    path = r"[\w./]+\.(?:py|md|cfg|html|yaml)|[\w./]+/" if names_our_files else r"[\w.]+/[\w./]+\.(?:py|md|yaml)"
    named = re.findall(rf"`({path})`", read(ROOT / page))
    missing = [name for name in named if not any((ROOT / place / name).exists() for place in places)]
    assert missing == []


def test_every_file_of_the_index_is_described():
    names = {path.name for path in (PACKAGE / "index").glob("[!_]*.py")}
    page = read(DOCS / "how" / "index_files.md")
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
