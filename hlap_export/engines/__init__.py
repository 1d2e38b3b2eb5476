"""Engines: compile an exported ONNX folder into something that runs fast, and run it."""

from hlap_export.engines.base import Backend, KVCache, KVLayer, Session, Unavailable, kv_bytes_per_token, usable_cores
from hlap_export.engines.build import backends, build, open_session, require_intact
from hlap_export.engines.tracing import GraphValue, TracedSession, tracer_of

__all__ = [
    "Backend",
    "GraphValue",
    "KVCache",
    "KVLayer",
    "Session",
    "TracedSession",
    "Unavailable",
    "backends",
    "build",
    "kv_bytes_per_token",
    "open_session",
    "require_intact",
    "tracer_of",
    "usable_cores",
]
