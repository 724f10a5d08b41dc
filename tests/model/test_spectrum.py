"""The two ways to compute a power spectrum: torch's transform, and convolutions where a model is exported."""

import pytest
import torch

from onepeace.model.stems.mel import power_spectrum


@pytest.mark.parametrize(
    ("window", "step", "num_bins"),
    [
        (400, 160, 201),
        (400, 160, 257),
        (6, 2, 9),
    ],
)
def test_spectrum_for_export_is_that_of_the_transform(window, step, num_bins, monkeypatch):
    waveform = torch.randn(2, 4000)
    expected = power_spectrum(waveform, window, step, num_bins)

    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    exported = power_spectrum(waveform, window, step, num_bins)

    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-4)
