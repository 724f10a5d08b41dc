"""`onepeace calibrate`: the file goes into the model's folder, and is not replaced unasked."""

import pytest
from support.small_shards import write_shards

from onepeace.cli import main
from onepeace.hub.fingerprint import fingerprint
from onepeace.index.calibrate import FILE, read_calibration


@pytest.fixture
def without_file(random_folder):
    yield random_folder
    (random_folder / FILE).unlink(missing_ok=True)


def test_the_file_goes_into_the_model_folder_and_what_cannot_be_read_is_listed(without_file, tmp_path, capsys):
    folder = write_shards(tmp_path)
    sources = [str(folder / "*.tar"), "--device", "cpu"]
    assert main(["calibrate", str(without_file), *sources]) == 0
    content = read_calibration(without_file, fingerprint(without_file))
    assert content is not None
    assert main(["calibrate", str(without_file), *sources]) == 2
    assert FILE in capsys.readouterr().err
    assert read_calibration(without_file, fingerprint(without_file)) == content
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(["calibrate", str(without_file), str(tmp_path / "broken.png"), *sources, "--force"]) == 1
    assert "broken.png" in capsys.readouterr().err
