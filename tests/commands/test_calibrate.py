"""`onepeace calibrate`: the file goes into the model's folder, and is not replaced unasked."""

import pytest

from onepeace.cli import main
from onepeace.hub.fingerprint import fingerprint
from onepeace.index.calibrate import FILE, read_calibration


@pytest.fixture
def without_file(random_folder):
    yield random_folder
    (random_folder / FILE).unlink(missing_ok=True)


def test_the_file_goes_into_the_model_folder_and_is_not_replaced_unasked(without_file, samples, tmp_path, capsys):
    index = str(tmp_path / "i")
    assert (
        main(["index", "build", index, str(samples / "images"), "--model", str(without_file), "--device", "cpu"]) == 0
    )
    assert main(["calibrate", index]) == 0
    content = read_calibration(without_file, fingerprint(without_file))
    assert content is not None
    assert main(["calibrate", index]) == 2
    assert FILE in capsys.readouterr().err
    assert read_calibration(without_file, fingerprint(without_file)) == content
    assert main(["calibrate", index, "--force"]) == 0
