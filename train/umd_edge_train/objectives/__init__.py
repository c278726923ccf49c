"""Objectives: each takes features and targets and returns named losses."""

from .base import ObjectiveOutput, PairBatch
from .reconstruction import MultiLevelReconstruction, ReconstructionConfig
from .retrieval import contrastive_loss, match_loss, similarity, wrong_texts
from .supervised import SupervisedObjective

__all__ = [
    "MultiLevelReconstruction",
    "ObjectiveOutput",
    "PairBatch",
    "ReconstructionConfig",
    "SupervisedObjective",
    "contrastive_loss",
    "match_loss",
    "similarity",
    "wrong_texts",
]
