"""Events in sounds: a head with logits for every frame, its term, its results and their F1.

A recipe has `imports: [frame_events.py]`; commands that load such a model take
`--import recipes/finetune/frame_events.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count
from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.embed.predict import TASKS, Context, Task
from onepeace.errors import UserError, need
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.task_metrics import METRICS, Metric, Predictions
from onepeace.heads import HEADS, Head
from onepeace.layers.features import Features
from onepeace.model import Trained
from onepeace.train.passes import Passes
from onepeace.train.term import TermContext
from onepeace.train.terms import TERMS
from onepeace.train.terms.heads import Supervised, SupervisedOptions

THRESHOLD = 0.5
"""Minimum probability of an event."""
SHORTEST_GAP = 0.2
"""Pause in seconds below which two events of a class are merged."""
COLLAR = 0.2
"""Tolerance of onset and offset in seconds (DESED; sed_eval)."""
SHARE = 0.2
"""Tolerance of the offset as a share of the event's length, if that is more than `COLLAR`."""

Event = tuple[float, float, str]
"""Onset and offset in seconds, class name."""


@dataclass(frozen=True)
class FramesOptions:
    """Options of ``frames`` in ``ModelConfig.heads``."""

    num_classes: Count


class Frames(Head):
    """A norm and a linear layer on each token."""

    Options = FramesOptions

    def __init__(self, dim: int, options: FramesOptions):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, options.num_classes)

    def forward(self, *passes: Features) -> Tensor:
        """Features of one pass -> logits (B, L, num_classes) of its tokens without CLS."""
        (features,) = passes
        return self.out(self.norm(features.tokens[:, 1:]))


class Events(Supervised[SupervisedOptions]):
    """Events in a sound (DESED): binary cross entropy for each frame and class. The target "events" is a list of
    [onset, offset, class name], in seconds. The loss is averaged over the real frames of an item, then over items."""

    target = "events"
    task = "events"

    @classmethod
    def check(cls, options: SupervisedOptions, context: TermContext) -> None:
        super().check(options, context)
        modalities = {key for source in context.sources for key in options.on or source.modalities}
        for modality in sorted(modalities):
            augment = context.data.augment.get(modality, {})
            for option in ("shift", "mix"):
                if augment.get(option):
                    raise UserError(
                        f"data.augment.{modality}.{option} would move events in time; leave it out", where=options.where
                    )

    def outputs(self, passes: Passes) -> Tensor:
        """Logits (N, C) of all frames of all items, without padding."""
        key = passes.model.config.heads[self.options.head]["on"]
        padded = super().outputs(passes)
        return padded.flatten(0, 1)[passes.batch.real[key]]

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        key = model.config.heads[self.options.head]["on"]
        adapter: Any = model.adapters[key]
        lengths = batch.lengths[key] - 1
        frames = []
        events_of_items = batch.targets[self.target]
        for events, name, length in zip(events_of_items, batch.keys, lengths.tolist(), strict=True):
            frames.append(self._frames(events, name, length, adapter.seconds_per_token))
        target = upload(torch.cat(frames), outputs.device)
        loss = F.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none").sum(1)
        share = torch.from_numpy(np.repeat(1 / lengths, lengths).astype(np.float32))
        return {self.options.name: (loss * upload(share, outputs.device)).sum() / len(lengths)}

    def _frames(self, events: Sequence[tuple[float, float, str]], key: str, count: int, seconds: float) -> Tensor:
        """Targets (L, C): 1 if a class sounds in the middle of a frame of ``seconds``."""
        target = np.zeros((count, len(self.labels)), dtype=np.float32)
        middles = (np.arange(count) + 0.5) * seconds
        for onset, offset, label in events:
            if onset >= count * seconds:  # after the part that was decoded
                continue
            inside = (middles >= onset) & (middles < offset)
            if not inside.any():  # shorter than a frame: the nearest one
                inside = np.arange(count) == np.abs(middles - (onset + offset) / 2).argmin()
            target[inside, self.number_of(label, key)] = 1.0
        return torch.from_numpy(target)


def events(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, L, C) of every frame: events with onset and offset in seconds, by onset."""
    probabilities = output[0, : context.num_tokens].sigmoid()
    gap = round(SHORTEST_GAP / context.seconds_per_token)
    events_of_sound = []
    for number in range(probabilities.shape[1]):
        heard = probabilities[:, number] >= THRESHOLD
        for first, last in _runs(heard, gap):
            events_of_sound.append(
                {
                    "label": context.labels[number],
                    "onset": first * context.seconds_per_token,
                    "offset": (last + 1) * context.seconds_per_token,
                    "score": probabilities[first : last + 1, number].mean().item(),
                }
            )
    return {"events": sorted(events_of_sound, key=lambda event: (event["onset"], event["label"]))}


def _runs(heard: Tensor, gap: int) -> list[tuple[int, int]]:
    """First and last frame of each run of True; runs less than ``gap`` frames apart are merged."""
    runs: list[tuple[int, int]] = []
    for frame in heard.nonzero().flatten().tolist():
        if runs and frame - runs[-1][1] - 1 < max(gap, 1):
            runs[-1] = (runs[-1][0], frame)
        else:
            runs.append((frame, frame))
    return runs


def cell(result: Mapping[str, Any]) -> str:
    """The events of a sound as a cell of a table."""
    events_of_sound = result["events"]
    shown = [f"{event['label']} {event['onset']:.2f}-{event['offset']:.2f} s" for event in events_of_sound]
    return ", ".join(shown) or "nothing"


def event_f1(predicted: Sequence[Sequence[Event]], targets: Sequence[Sequence[Event]]) -> float:
    """Event-based F1, the mean over the classes of the targets (Mesaros, Heittola, Virtanen, 2016; as in DESED).

    A predicted event is right if a target of its class begins within `COLLAR` of it and ends within the larger of
    `COLLAR` and `SHARE` of the target's length. Each event is matched at most once, by a maximum matching.

    Args:
        predicted, targets: the events of each sound.

    Raises:
        UserError: the targets have no event.
    """
    classes: set[str] = set()
    for events in targets:
        for _, _, label in events:
            classes.add(label)
    if not classes:
        raise UserError(f"not one of {len(targets)} sounds has an event")
    f1_by_class = [_class_f1(label, predicted, targets) for label in sorted(classes)]
    return float(np.mean(f1_by_class))


def _class_f1(label: str, predicted: Sequence[Sequence[Event]], targets: Sequence[Sequence[Event]]) -> float:
    num_right = 0
    num_events = 0
    for predicted_in_sound, targets_in_sound in zip(predicted, targets, strict=True):
        predicted_events = [event for event in predicted_in_sound if event[2] == label]
        target_events = [event for event in targets_in_sound if event[2] == label]
        num_right += _num_matched(predicted_events, target_events)
        num_events += len(predicted_events) + len(target_events)
    return 2 * num_right / num_events


def _num_matched(predicted: Sequence[Event], targets: Sequence[Event]) -> int:
    """Number of pairs in a maximum matching of the events that fit each other."""
    sparse = need("scipy.sparse", "eval")
    csgraph = need("scipy.sparse.csgraph", "eval")
    fits_of_events = []
    for event in predicted:
        fits_of_events.append([_fits(event, target) for target in targets])
    fits = np.array(fits_of_events, dtype=np.int8)
    if not fits.any():
        return 0
    matches = csgraph.maximum_bipartite_matching(sparse.csr_array(fits), perm_type="column")
    return int((matches >= 0).sum())


def _fits(predicted: Event, target: Event) -> bool:
    onset, offset, _ = target
    offset_tolerance = max(COLLAR, SHARE * (offset - onset))
    return abs(predicted[0] - onset) <= COLLAR and abs(predicted[1] - offset) <= offset_tolerance


def figures(predictions: Predictions) -> list[Figure]:
    predicted_events = []
    for result in predictions.results:
        events = []
        for event in result["events"]:
            events.append((event["onset"], event["offset"], event["label"]))
        predicted_events.append(events)
    target_events = [list(map(tuple, target)) for target in predictions.targets]
    f1 = event_f1(predicted_events, target_events)
    return [Figure("event F1", f1, chance=0.0, n=len(predicted_events))]


HEADS["frames"] = Frames
TERMS["events"] = Events
TASKS["events"] = Task(events, cell, column="events")
METRICS["events"] = Metric("events", figures)
