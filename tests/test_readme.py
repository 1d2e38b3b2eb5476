"""The README's first screen is what the commands print and write."""

from __future__ import annotations

from hlap_export.report.summary import Summary
from tests.report.redraw import BLOCK, PICTURES, README, ROOT, STORED, on_screen

TEXT = README.read_text(encoding="utf-8")
PNG = b"\x89PNG\r\n"


def test_the_readmes_table_is_what_the_stored_demo_run_prints() -> None:
    found, shown = STORED.search(TEXT), BLOCK.search(TEXT)
    assert found, "the README must link the demo's stored result"
    assert shown, "the README must show it between <!-- demo --> and <!-- /demo -->"
    summary = Summary.model_validate_json((ROOT / found[0]).read_text(encoding="utf-8"))
    assert lines(shown[0]) == lines(on_screen(summary))


def test_the_readmes_pictures_are_there_and_small() -> None:
    for picture in PICTURES.values():
        assert picture.relative_to(ROOT).as_posix() in TEXT
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size < 200_000


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines() if line.strip()]
