"""Objectives: each takes features and targets and returns named losses."""

from .retrieval import contrastive_loss, match_loss, wrong_texts
from .supervised import SupervisedObjective

__all__ = ["SupervisedObjective", "contrastive_loss", "match_loss", "wrong_texts"]
