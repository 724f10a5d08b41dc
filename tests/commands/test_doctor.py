"""`onepeace doctor`: knows the requirements of setup.cfg, and says of each what is wrong and what to do."""

import configparser
from pathlib import Path

import pytest

from onepeace.cli import main
from onepeace.commands import doctor

ROOT = Path(__file__).resolve().parents[2]


def requirements(section: str, option: str) -> set[str]:
    """Names of the distributions that a list of setup.cfg asks for."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config[section][option].split("\n")
    return {line.split(">")[0].split("[")[0].strip() for line in lines if line}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A doctor of two packages that are cheap to import, who finds the bundled weights."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(bytes(2_500_000))
    monkeypatch.setattr(doctor, "TINY", tmp_path / "tiny")
    monkeypatch.setattr(doctor, "CORE", {"numpy": "numpy", "tqdm": "tqdm"})
    monkeypatch.setattr(doctor, "EXTRAS", {"parquet": {"pyarrow": "pyarrow"}})


def test_doctor_knows_the_requirements_of_setup_cfg():
    assert set(doctor.CORE) == requirements("options", "install_requires")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(doctor.EXTRAS) == set(config["options.extras_require"]) - {"test"}
    for extra, modules in doctor.EXTRAS.items():
        assert set(modules) == requirements("options.extras_require", extra)


def test_doctor_finds_this_installation_sound(capsys):
    code, (out, err) = main(["doctor"]), capsys.readouterr()
    assert code == 0, out + err
    assert out.endswith("all that is needed works\n")
    rows = {line[:20].strip(): line[20:] for line in out.splitlines()}
    assert rows["torchaudio native"].startswith(("loaded", "does not load"))
    assert "threads" in rows["cpu"]
    for package in doctor.CORE:
        assert rows[package].strip()[0].isdigit()


@pytest.mark.parametrize(
    ("table", "entry", "code", "says"),
    [
        ("CORE", {"tqdm": "broken_one"}, 1,
         ("RuntimeError: wrong build\n", 'remedy: pip install --force-reinstall --no-deps "tqdm', "broken: tqdm\n")),
        ("CORE", {"no-such-package": "no_such_package"}, 1,
         ('remedy: pip install "no-such-package"\n', "broken: no-such-package\n")),
        ("EXTRAS", {"parquet": {"no-such-package": "no_such_package"}}, 0,
         ('for it: pip install "onepeace[parquet]"\n',)),
        ("EXTRAS", {"parquet": {"tqdm": "broken_two"}}, 0,
         ("ModuleNotFoundError: No module named 'no_such_library'",)),
    ],
)  # fmt: skip
def test_doctor_names_what_is_broken_or_missing(small, monkeypatch, capsys, tmp_path, table, entry, code, says):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('wrong\\n  build')")
    (tmp_path / "broken_two.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, table, {**getattr(doctor, table), **entry})
    assert doctor.run(None) == code
    out = capsys.readouterr().out
    assert all(part in out for part in says)
    assert not code or out.endswith(says[-1])


def test_remedy_asks_for_the_versions_of_setup_cfg(monkeypatch):
    lines = ["torch<2.15,>=2.11", "torchaudio<2.12,>=2.11", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    assert doctor._requirement("torch") == lines[0]
    assert doctor._requirement("torchaudio") == lines[1]
    assert doctor._requirement("numpy") == "numpy"


def test_doctor_gives_the_reason_and_two_remedies_for_torchaudio(small, monkeypatch, capsys):
    failure = OSError("Could not load this library")
    failure.__cause__ = OSError("libc10_cuda.so: cannot open shared object file")
    monkeypatch.setattr("onepeace.torchaudio_guard._failure", failure)
    assert doctor.run(None) == 0
    out = capsys.readouterr().out
    assert "OSError: libc10_cuda.so: cannot open shared object file\n" in out
    assert "remedy 1: " in out
    assert "remedy 2: " in out
    monkeypatch.setattr("onepeace.torchaudio_guard._failure", None)
    assert doctor.run(None) == 0
    assert "torchaudio native   loaded" in capsys.readouterr().out


def test_doctor_names_missing_weights(small, monkeypatch, capsys, tmp_path):
    assert doctor.run(None) == 0
    assert "2.5 MB" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "TINY", tmp_path / "nowhere")
    assert doctor.run(None) == 1
    assert capsys.readouterr().out.endswith("broken: bundled weights\n")
