"""Queries that cannot be compared with all files: in a space joined from those of several models, a picture and a sound
may have no dimension in common (onepeace/hub/towers)."""

import numpy as np

from onepeace.errors import UserError
from onepeace.hub.towers.config import names_towers
from onepeace.index.matrix import Matrix
from onepeace.index.store import Store

LOOKED_AT = 16
"""Vectors of a modality that are looked at: all are zero in the same blocks, and few are zero altogether."""


def without_other_spaces(
    store: Store, matrix: Matrix, allowed: np.ndarray | None, vector: np.ndarray
) -> np.ndarray | None:
    """(n,) bool: the allowed rows of modalities that have dimensions in common with a query; None = all.

    Args:
        allowed: (n,) bool, the rows that may be hits; None = all.
        vector: (E,) unit vector of the query.

    Raises:
        UserError: there are allowed rows, and none of them can be compared with the query.
    """
    if vector.all() or not names_towers(store.meta["model"]):  # there is one space
        return allowed
    codes_of_other_spaces = []
    for code in range(len(store.modalities)):
        rows = np.flatnonzero(matrix.modality == code)
        some_vectors = matrix.vectors[rows[:: len(rows) // LOOKED_AT + 1]]
        if some_vectors.any() and not some_vectors[:, vector != 0].any():
            codes_of_other_spaces.append(code)
    if not codes_of_other_spaces:
        return allowed
    comparable = ~np.isin(matrix.modality, codes_of_other_spaces)
    if allowed is not None:
        comparable &= allowed
    if not comparable.any() and (allowed is None or allowed.any()):
        modalities = " or ".join(store.modalities[code] for code in codes_of_other_spaces)
        raise UserError(
            f"this query has no space in common with {modalities} in the model {store.meta['model']}; search by words, "
            "which all its parts read"
        )
    return comparable
