"""Scale of scores and the match (placeholder)."""

import numpy as np

from onepeace.index.calibrate import MODALITIES, Banks

RELEVANT = 0.5


def likelihood(match):
    return "likely" if match > 0.95 else "possible" if match > 0.7 else "unlikely"


class Ranking:
    def __init__(self, banks):
        self.banks = banks

    @classmethod
    def load(cls, calibration, best):
        return cls(Banks.load(calibration, best))

    def score(self, query, modality, cosines):
        code = MODALITIES.index(modality)
        own = np.array([name == "word" for name in self.banks.names], bool)
        if not own.any():
            return cosines, None
        best = np.sort(self.banks.best[own, code])
        return cosines, (np.searchsorted(best, cosines) / len(best)).astype(np.float32)
