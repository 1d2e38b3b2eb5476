"""Prune and fold: a dense checkpoint and a plan in, a pruned Hugging Face checkpoint out."""

from hlap_export.prune.streaming import prune

__all__ = ["prune"]
