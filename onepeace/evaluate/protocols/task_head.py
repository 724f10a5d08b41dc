"""Evaluation of a task head on samples with targets; the metric depends on the task (task_metrics.py)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, results_of
from onepeace.evaluate.protocols.task_metrics import METRICS, Predictions, Results
from onepeace.evaluate.ranking import Ranking, figures_of


@dataclass(frozen=True, kw_only=True)
class TaskHead(EvaluationProtocol):
    """Metrics of a model's own head: accuracy, mAP, VQA accuracy, IoU of a box, AP of boxes, event F1 or mean IoU."""

    head: str | None = None
    """Name of one of the model's heads; None if it has only one."""
    others: tuple[str, ...] = ()
    """Modalities that are read together with this one, e.g. [text]."""
    group: str | None = None
    """A target that groups samples, to measure also the share of groups whose samples are all right (NLVR2)."""

    @property
    def sides(self) -> tuple[Items, ...]:
        return (self, *map(self.of, self.others))

    def run(self, embedder: Any, root: Path) -> list[Ranking | Figure]:
        from onepeace.embed.predict import Predictor

        predictor = Predictor(embedder, self.head)
        metric = METRICS[predictor.task]
        labels = predictor.config.get("labels", ())
        if metric.named and not labels:
            raise UserError(
                f"the head {predictor.name} has no labels, so its output cannot be compared with {metric.target}"
            )
        samples = self._read_with_target(root, metric.target)
        predictions = Predictions(
            results=self._predict(predictor, samples, top=len(labels) or 1),
            targets=[sample.targets[metric.target] for sample in samples],
            labels=labels,
            samples=samples,
        )
        results = [*metric.figures(predictions)]
        right = figures_of(results)[0].per_query
        if self.group is not None and right:
            groups = [sample.targets.get(self.group) for sample in samples]
            results.append(_consistency(right, groups))
        return results

    def _read_with_target(self, root: Path, target: str) -> list[Sample]:
        samples = self.read(root, *self.others)
        for sample in samples:
            if target not in sample.targets:
                raise UserError(f"{sample.key} has no {target} among its targets", where=sample.source)
        return samples

    def _predict(self, predictor: Any, samples: Sequence[Sample], top: int) -> Results:
        """Outputs of the head, with the best ``top`` labels; UserError for a sample that cannot be read."""

        def predict(items: Sequence[Any]) -> list[Any]:
            return list(predictor.predict(items, top=top))

        predictions = results_of(predict, [self._item(sample) for sample in samples])
        results = []
        for sample, prediction in zip(samples, predictions, strict=True):
            if prediction.result is None:
                raise UserError(f"{sample.key}: {prediction.reason}", where=sample.source)
            results.append(prediction.result)
        return results

    def _item(self, sample: Sample) -> dict[str, Any]:
        """The input of the head."""
        item: dict[str, Any] = {}
        for modality in (self.modality, *self.others):
            if modality == "text":
                item["text"] = sample.captions[0]
            else:
                item[modality] = sample.inputs[modality]
        if "candidates" in sample.targets:
            item["candidates"] = sample.targets["candidates"]
        return item


def _consistency(right: Sequence[float], groups: Sequence[Any]) -> Figure:
    """The share of groups whose samples are all right; ``right`` is 1 for each sample that is."""
    all_right: dict[Any, bool] = {}
    for value, group in zip(right, groups, strict=True):
        all_right[group] = all_right.get(group, True) and value == 1
    # A guess is right with probability 1/2 for each sample of a group.
    guessed = [0.5**size for size in Counter(groups).values()]
    values = list(map(float, all_right.values()))
    return Figure.mean_of("consistency", values, float(np.mean(guessed)))
