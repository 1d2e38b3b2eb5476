"""Generate text with an engine."""

from hlap_export.generate.generate import Generation, Generator, converse, generate, ignore_text
from hlap_export.generate.prompts import Message
from hlap_export.generate.sampling import Sampling

__all__ = ["Generation", "Generator", "Message", "Sampling", "converse", "generate", "ignore_text"]
