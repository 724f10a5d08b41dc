"""What stands on top of token features. Next: losses/."""

from .classifier import Classifier
from .projection import Projection

__all__ = ["Classifier", "Projection"]
