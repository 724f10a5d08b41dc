"""Files of one's own that a recipe imports: where they are looked for, and what is said of those that do not work."""

import sys

import pytest
import yaml

from onepeace.config import to_plain
from onepeace.errors import UserError
from onepeace.extensions import import_extension
from onepeace.train.recipe import read_recipe
from onepeace.train.terms import TERMS

TERM = """
from onepeace.train.term import Term, TermOptions
from onepeace.train.terms import TERMS

class Length(Term[TermOptions]):
    Options = TermOptions

    def outputs(self, passes):
        return passes.unimodal("image").cls

    def loss(self, outputs, batch, model):
        return {self.options.name: outputs.square().mean()}

TERMS["length"] = Length
"""


@pytest.fixture
def forget(monkeypatch):
    """Entries and modules that a test imports are gone after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    terms = dict(TERMS)
    yield
    sys.modules.pop("length_term", None)
    TERMS.clear()
    TERMS.update(terms)


@pytest.fixture
def folder(small_recipe, tmp_path):
    """Holds a recipe file whose only term is in terms/length_term.py."""
    folder = tmp_path / "mine"
    (folder / "terms").mkdir(parents=True)
    (folder / "terms" / "length_term.py").write_text(TERM)
    content = to_plain(small_recipe("mine/run"))
    content["imports"] = ["terms/length_term.py"]
    content["objective"] = [{"term": "length", "on": ["image"]}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.mark.usefixtures("forget")
def test_imports_are_relative_to_recipe_that_names_them(folder, tmp_path, monkeypatch):
    child = tmp_path / "child.yaml"
    child.write_text("base: mine/recipe.yaml\n")
    file = str(folder / "terms" / "length_term.py")

    assert read_recipe(folder / "recipe.yaml").imports == (file,)
    assert read_recipe(child).imports == (file,)

    monkeypatch.chdir(folder / "terms")
    assert read_recipe(child, ["imports=[length_term.py, json]"]).imports == (file, "json")


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.py", None, r"gone\.py: no such file"),
        ("broken.py", "import nowhere_at_all", r"broken\.py: .*ModuleNotFoundError: .*nowhere"),
        ("json.py", "", r"json\.py: .* another module json"),
        ("no.such.module", None, r"no\.such\.module: .*ModuleNotFoundError"),
    ],
)
def test_file_that_cannot_be_imported_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name if name.endswith(".py") else name
    if content is not None:
        path.write_text(content)

    with pytest.raises(UserError, match=message) as caught:
        import_extension(str(path))

    assert "\n" not in str(caught.value)
