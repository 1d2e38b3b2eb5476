"""Bundles: an engine in the form that a serving stack loads."""

from hlap_export.bundles.bundle import TARGETS, bundle

__all__ = ["TARGETS", "bundle"]
