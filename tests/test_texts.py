"""Texts become disjoint windows spread over the whole text; unusable texts are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hlap_export import reference_model
from hlap_export.errors import TextError
from hlap_export.texts import TokenText, read_tokens, spread_windows

VOCABULARY = 2048


def tokens(count: int) -> TokenText:
    return TokenText(path=Path("text.txt"), sha256="0" * 64, ids=np.arange(count))


def test_windows_are_disjoint_and_reach_over_the_whole_text() -> None:
    windows = spread_windows(tokens(1000), windows=4, window_length=50)
    assert windows.shape == (4, 50)
    assert len(np.unique(windows)) == 200
    assert windows[:, 0].tolist() == [0, 250, 500, 750]
    assert (np.diff(windows, axis=1) == 1).all()


def test_a_text_that_just_suffices_is_used_whole() -> None:
    assert spread_windows(tokens(200), windows=4, window_length=50).ravel().tolist() == list(range(200))


def test_a_text_too_short_says_how_many_windows_it_would_give() -> None:
    with pytest.raises(TextError, match="199 tokens, enough for 3"):
        spread_windows(tokens(199), windows=4, window_length=50)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no tokens in it"), (b"\xff\xfe\x00", "UTF-8"), (None, "No such file")],
)
def test_unusable_texts_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_tokens(reference_model.path(), text, vocab_size=VOCABULARY)


def test_the_shipped_texts_are_disjoint_and_long_enough_for_the_defaults() -> None:
    texts = [
        read_tokens(reference_model.path(), path, vocab_size=VOCABULARY)
        for path in (reference_model.calibration_text(), reference_model.evaluation_text())
    ]
    assert texts[0].sha256 != texts[1].sha256
    lines = [{line for line in text.path.read_text(encoding="utf-8").splitlines() if len(line) > 60} for text in texts]
    assert not lines[0] & lines[1]
    for text in texts:
        assert spread_windows(text, windows=64, window_length=256).shape == (64, 256)
