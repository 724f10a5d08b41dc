"""Identity of a model: by it, the vectors of one model are told from those of another."""

import os
from typing import NamedTuple

from onepeace.hub.fingerprint import fingerprint
from onepeace.hub.resolve import full_name, resolve


class Identity(NamedTuple):
    """Name and hash of a model."""

    name: str
    """Name for people; for a model folder its absolute path."""
    hash: str
    """Two models with the same hash are taken to give the same vectors."""
    is_loadable: bool = False
    """Whether `onepeace.load` gives the model by its name."""


def identify(name: str | os.PathLike[str]) -> Identity:
    """Identity of a model that `onepeace.load` gives by its name, without loading it.

    Raises:
        UserError: there is no model of that name.
    """
    return Identity(full_name(name), fingerprint(resolve(name)), is_loadable=True)
