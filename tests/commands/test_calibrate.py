"""`onepeace calibrate`: the file goes into the model's folder, and is not replaced unasked."""

import pytest

from onepeace.hub.fingerprint import fingerprint
from onepeace.index.calibrate import FILE, read_calibration


@pytest.fixture
def uncalibrated(random_folder):
    yield random_folder
    (random_folder / FILE).unlink(missing_ok=True)


def test_calibration_is_replaced_only_by_force(uncalibrated, samples, tmp_path, run, run_model):
    index = tmp_path / "i"
    run_model("index", "build", index, samples / "images")

    run("calibrate", index)
    assert read_calibration(uncalibrated, fingerprint(uncalibrated)) is not None

    (uncalibrated / FILE).write_text("older")
    assert FILE in run("calibrate", index, code=2).err
    assert (uncalibrated / FILE).read_text() == "older"
    run("calibrate", index, "--force")
    assert read_calibration(uncalibrated, fingerprint(uncalibrated)) is not None
