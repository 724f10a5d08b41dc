"""`onepeace doctor`: says of each requirement what is wrong and what to do."""

import configparser
from pathlib import Path

import pytest

from onepeace.commands import doctor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def requirements(monkeypatch):
    """What onepeace requires, for a doctor of packages that are cheap to import."""
    lines = ["numpy>=2", "tqdm<9,>=4", 'pyarrow>=20; extra == "parquet"', 'pytest>=8; extra == "test"']
    lines.append('onepeace[parquet]; extra == "train"')
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    return lines


@pytest.mark.usefixtures("requirements")
def test_requirements_are_sorted_by_extra_without_those_of_tests():
    core = {"numpy": "numpy>=2", "tqdm": "tqdm<9,>=4"}
    assert doctor.requirements() == {"": core, "parquet": {"pyarrow": "pyarrow>=20"}}


def test_modules_are_those_of_requirements():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    required = config["options"]["install_requires"] + "".join(config["options.extras_require"].values())
    assert [package for package in doctor.MODULES if f"\n{package}" not in required] == []


@pytest.mark.slow  # it imports all that is installed
def test_this_installation_is_sound(run):
    out = run("doctor").out
    assert out.endswith("all requirements work\n")
    rows = {}
    for line in out.splitlines():
        rows[line[:20].strip()] = line[20:]
    assert "bf16" in rows["cpu"]
    for package in doctor.requirements()[""]:
        assert rows[package].strip()[0].isdigit()


@pytest.mark.parametrize(
    ("requirement", "code", "texts"),
    [
        ("broken-one==1", 1, ("RuntimeError: wrong build", 'pip install "broken-one==1"', "broken: broken-one")),
        ("no-such-package>=2", 1, ('pip install "no-such-package>=2"', "broken: no-such-package")),
        ("tqdm<9,>=4", 1, ('pip install --force-reinstall --no-deps "tqdm<9,>=4"',)),
        ('no-such-package; extra == "own"', 0, ('pip install "onepeace[own]"', "all requirements work")),
    ],
)
def test_fault_is_named_with_a_remedy(requirements, monkeypatch, run, tmp_path, requirement, code, texts):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('wrong\\n  build')")
    monkeypatch.syspath_prepend(tmp_path)
    requirements.append(requirement)
    if requirement.startswith("tqdm"):
        monkeypatch.setitem(doctor.MODULES, "tqdm", "broken_one")  # it is installed, and does not import
    out = run("doctor", code=code).out
    for text in texts:
        assert text in out
