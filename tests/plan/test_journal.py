"""A journal gives back what was recorded, forgets a line that was cut short, and refuses one that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.errors import OutputError
from hlap_export.plan.journal import JOURNAL, Journal


def recorded(folder: Path) -> Path:
    journal = Journal(folder, "a request")
    journal.record("first", 1)
    journal.record("second", 2)
    return folder / JOURNAL


def test_a_last_line_that_was_cut_short_is_as_if_never_begun(tmp_path: Path) -> None:
    path = recorded(tmp_path / "work")
    path.write_text(path.read_text()[:-4])
    again = Journal(tmp_path / "work", "a request")
    assert again.get("first") == 1
    assert "second" not in again


@pytest.mark.parametrize("damage", ['["first", 1', "[1, 2, 3]", "7"])
def test_a_damaged_line_before_the_last_is_refused_with_what_to_do(damage: str, tmp_path: Path) -> None:
    path = recorded(tmp_path / "work")
    path.write_text(path.read_text().replace('["first", 1]', damage))
    with pytest.raises(OutputError, match=r"found a damaged file. Fix: remove the folder"):
        Journal(tmp_path / "work", "a request")
