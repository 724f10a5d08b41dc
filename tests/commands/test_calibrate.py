"""`onepeace calibrate`: the file goes into the model's folder, and is not replaced unasked."""

import pytest

from onepeace.hub.fingerprint import fingerprint
from onepeace.index.calibrate import CALIBRATION, read_calibration


@pytest.fixture
def uncalibrated(random_folder):
    yield random_folder
    (random_folder / CALIBRATION).unlink(missing_ok=True)


def test_calibration_is_replaced_only_by_force(uncalibrated, samples, tmp_path, run, run_model):
    index = tmp_path / "i"
    run_model("index", "build", index, samples / "images")

    run("calibrate", index)
    assert read_calibration(uncalibrated, fingerprint(uncalibrated)) is not None

    (uncalibrated / CALIBRATION).write_text("older")
    assert CALIBRATION in run("calibrate", index, code=2).err
    assert (uncalibrated / CALIBRATION).read_text() == "older"
    run("calibrate", index, "--force")
    assert read_calibration(uncalibrated, fingerprint(uncalibrated)) is not None
