"""The evaluation protocols: with the options of a recipe, their checks and the measurement.

A set of a recipe has ``protocol: KEY``; its other fields are the options of that class. To add a protocol, register a
subclass of `EvaluationProtocol` under a new key: ``PROTOCOLS["mine"] = Mine``.
"""

from onepeace.evaluate.protocols.classes import MultiLabel, ZeroShot
from onepeace.evaluate.protocols.probe import Probe
from onepeace.evaluate.protocols.protocol import EvaluationProtocol
from onepeace.evaluate.protocols.retrieval import Retrieval
from onepeace.evaluate.protocols.same_class import SameClass
from onepeace.evaluate.protocols.task_head import TaskHead
from onepeace.extensions import Table

PROTOCOLS: Table[type[EvaluationProtocol]] = Table(
    {
        "zero_shot": ZeroShot,
        "retrieval": Retrieval,
        "same_class": SameClass,
        "multi_label": MultiLabel,
        "probe": Probe,
        "head": TaskHead,
        "captions": "onepeace.generative.captions.Captions",
    }
)
