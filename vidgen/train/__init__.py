"""Training: one loop for every model."""

from vidgen.train.average import WeightAverage
from vidgen.train.classification import classification_task, predictions
from vidgen.train.likelihood import likelihood_task
from vidgen.train.loop import Settings, Summary, Trainer, train
from vidgen.train.metrics import read_metrics
from vidgen.train.task import Phase, Task

__all__ = [
    "Phase",
    "Settings",
    "Summary",
    "Task",
    "Trainer",
    "WeightAverage",
    "classification_task",
    "likelihood_task",
    "predictions",
    "read_metrics",
    "train",
]
