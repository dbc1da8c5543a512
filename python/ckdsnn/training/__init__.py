"""The training step: on static tensors, run eagerly or as one CUDA graph, and what feeds, watches and saves it."""

from ckdsnn.training.feed import BatchFeed, EpochFeed
from ckdsnn.training.runner import EagerRunner, GraphRunner, why_not_captured
from ckdsnn.training.step import TrainStep
from ckdsnn.training.telemetry import Telemetry

__all__ = ["BatchFeed", "EagerRunner", "EpochFeed", "GraphRunner", "Telemetry", "TrainStep", "why_not_captured"]
