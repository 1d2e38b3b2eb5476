"""What a search has finished, one JSON line for each result, so that a killed search goes on where it stopped.

The folder also holds the residual streams that the results were computed from (`states.py`). A line is written when
what it stands for is complete; a last line that was cut short is as if it had never been begun.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hlap_export.artifacts import digest_of, require_free
from hlap_export.errors import OutputError

JOURNAL = "journal.jsonl"
REQUEST = "request"


class Journal:
    """Results by key; the last one recorded for a key counts.

    Args:
        folder: a new or empty folder, or an earlier journal's; another request's results are removed from it.
        request: JSON value that decides the results.

    Raises:
        OutputError: the folder holds something else, or a damaged journal.
    """

    def __init__(self, folder: Path, request: Any) -> None:
        self._path = folder / JOURNAL
        self._results: dict[str, Any] = {}
        self.folder = folder
        digest = digest_of(request)
        if not self._path.exists():
            require_free(folder)
        elif self._read() != digest:
            self._remove_files()
        folder.mkdir(parents=True, exist_ok=True)
        if not self._results:
            self.record(REQUEST, digest)

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def get(self, key: str) -> Any:
        """The last result recorded for the key, None if there is none."""
        return self._results.get(key)

    def record(self, key: str, value: Any) -> None:
        """Add a result; what it refers to must be on disk already."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")
        self._results[key] = value

    def _read(self) -> str | None:
        """Read all complete lines, drop an incomplete one, and return the request's digest."""
        lines = self._path.read_text(encoding="utf-8").split("\n")
        if lines.pop():
            self._path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        try:
            self._results = dict(json.loads(line) for line in lines)
        except (ValueError, TypeError) as error:
            raise OutputError(
                where=str(self._path),
                expected="a search's results, one JSON pair in each line",
                found="a damaged file",
                fix=f"remove the folder {self.folder}: the search begins anew",
            ) from error
        return self._results.get(REQUEST)

    def _remove_files(self) -> None:
        self._results = {}
        for path in self.folder.iterdir():
            if not path.is_file():
                raise OutputError(
                    where=str(self.folder),
                    expected="a search's own folder, with files alone",
                    found=f"the folder {path.name} in it",
                    fix="choose another folder for the search, or remove this one",
                )
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == JOURNAL):
            path.unlink()
