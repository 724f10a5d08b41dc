"""`onepeace doctor`: says of each requirement what is wrong and what to do."""

import configparser
from pathlib import Path

import pytest

from onepeace.cli import main
from onepeace.commands import doctor
from onepeace.hub.resolve import BUNDLED_NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def lines(monkeypatch, tmp_path):
    """What onepeace requires, for a doctor of packages that are cheap to import, who finds the bundled weights."""
    for name in doctor.BUNDLED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(2_500_000))
    monkeypatch.setattr(doctor, "WEIGHTS", tmp_path)
    wanted = ["numpy>=2", "tqdm<9,>=4", 'pyarrow>=20; extra == "parquet"', 'pytest>=8; extra == "test"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    return wanted


def test_requirements_are_sorted_by_extra_and_those_of_tests_left_out(lines):
    core = {"numpy": "numpy>=2", "tqdm": "tqdm<9,>=4"}
    assert doctor.requirements() == {"": core, "parquet": {"pyarrow": "pyarrow>=20"}}


def test_modules_are_those_of_requirements():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = config["options"]["install_requires"] + "".join(config["options.extras_require"].values())
    assert all(f"\n{package}" in named for package in doctor.MODULES)


@pytest.mark.slow  # it imports all that is installed
def test_doctor_finds_this_installation_sound(capsys):
    code, (out, err) = main(["doctor"]), capsys.readouterr()
    assert code == 0, out + err
    assert out.endswith("all requirements work\n")
    rows = {line[:20].strip(): line[20:] for line in out.splitlines()}
    assert "threads" in rows["cpu"]
    for package in doctor.requirements()[""]:
        assert rows[package].strip()[0].isdigit()


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("broken-one==1", 1, ("RuntimeError: wrong build", 'pip install "broken-one==1"', "broken: broken-one")),
        ("no-such-package>=2", 1, ('pip install "no-such-package>=2"', "broken: no-such-package")),
        ("tqdm<9,>=4", 1, ('pip install --force-reinstall --no-deps "tqdm<9,>=4"',)),
        ('no-such-package; extra == "own"', 0, ('pip install "onepeace[own]"',)),
    ],
)
def test_what_is_broken_or_missing_is_named_with_a_remedy(lines, monkeypatch, capsys, tmp_path, line, code, says):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('wrong\\n  build')")
    monkeypatch.syspath_prepend(tmp_path)
    lines.append(line)
    if line.startswith("tqdm"):
        monkeypatch.setitem(doctor.MODULES, "tqdm", "broken_one")  # it is installed, and does not import
    assert doctor.run(None) == code
    out = capsys.readouterr().out
    assert all(part in out for part in says)


def test_a_build_for_cuda_without_a_device_is_told_from_the_cpu_build(lines, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for build, told in ((None, False), ("13.0", True)):
        monkeypatch.setattr("torch.version.cuda", build)
        assert doctor.run(None) == 0
        assert ("whl/cpu" in capsys.readouterr().out) == told


def test_doctor_knows_the_bundled_models():
    assert {*doctor.BUNDLED} == {*BUNDLED_NAMES}


def test_doctor_names_missing_weights(lines, monkeypatch, capsys, tmp_path):
    assert doctor.run(None) == 0
    assert capsys.readouterr().out.count("2.5 MB") == 3
    (tmp_path / "tiny-fast" / "model.safetensors").unlink()
    assert doctor.run(None) == 1
    assert capsys.readouterr().out.endswith("broken: the bundled weights tiny-fast\n")
