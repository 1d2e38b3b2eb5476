"""Where a report's numbers come from: the chain from the model to each document, digest by digest."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.report.summary import Origin

SHORT_DIGEST = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One link of the chain that a number can be followed back along."""

    name: str
    digest: str
    made_from: tuple[str, ...]


def sources(origins: tuple[Origin, ...]) -> list[Source]:
    """The chain in words: an input that another stage of the run made is called by that stage's name."""
    names = {origin.digest: origin.name for origin in origins}
    return [
        Source(
            name=origin.name,
            digest=origin.digest,
            made_from=tuple(
                names.get(digest) or f"{name} {digest[:SHORT_DIGEST]}" for name, digest in origin.made_from.items()
            ),
        )
        for origin in origins
    ]
