"""Objectives: each takes features and targets and returns named losses."""

from .base import CleanFeatures, ObjectiveOutput, PairBatch, PairFeatures
from .reconstruction import MultiLevelReconstruction, ReconstructionConfig
from .retrieval import contrastive_loss, match_loss, similarity, wrong_texts
from .supervised import SupervisedObjective

__all__ = [
    "CleanFeatures",
    "MultiLevelReconstruction",
    "ObjectiveOutput",
    "PairBatch",
    "PairFeatures",
    "ReconstructionConfig",
    "SupervisedObjective",
    "contrastive_loss",
    "match_loss",
    "similarity",
    "wrong_texts",
]
