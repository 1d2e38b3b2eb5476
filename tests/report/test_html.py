from __future__ import annotations

import html
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hlap_export.report.html import html_report, tiles
from hlap_export.report.pictures import latency_figures
from hlap_export.report.sources import sources
from hlap_export.report.summary import Origin, Summary
from tests.report.browser import open_page
from tests.report.sample import built_summary, full_summary, sample_summary

WIDTHS = {"phone": 390, "desktop": 1200}
SAMPLES = {
    "with everything": full_summary(),
    "without a search": sample_summary(),
    "built but never run": built_summary(),
}


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("summary", SAMPLES.values(), ids=SAMPLES)
def test_a_browser_draws_every_picture_within_the_page_and_complains_of_nothing(
    summary: Summary, width: int, tmp_path: Path
) -> None:
    page = html_report(summary)
    seen = open_page(page, tmp_path, width=width)
    assert seen.complaints == []
    assert seen.scroll_width <= width
    assert len(seen.pictures) == page.count("<svg")
    for picture in seen.pictures:
        assert picture["width"] > 20, picture["label"]
        assert picture["height"] > 20, picture["label"]
        assert picture["left"] >= 0, picture["label"]
        assert picture["right"] <= width, picture["label"]
        assert picture["overlapping"] == [], picture["label"]
        assert picture["outside"] == [], picture["label"]
        assert picture["invisible"] == 0, picture["label"]


def test_the_page_is_dark_where_the_reader_prefers_that(tmp_path: Path) -> None:
    light = open_page(html_report(sample_summary()), tmp_path, width=1200)
    dark = open_page(html_report(sample_summary()), tmp_path, width=1200, dark=True)
    assert brightness(light.background) > 0.9
    assert brightness(dark.background) < 0.2


def test_the_browsers_complaints_are_heard(tmp_path: Path) -> None:
    page = html_report(sample_summary()).replace("</main>", "</main><script>missing()</script>")
    assert any("missing is not defined" in line for line in open_page(page, tmp_path, width=1200).complaints)


def test_the_file_needs_nothing_but_itself() -> None:
    page = html_report(full_summary())
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)
    assert not re.search(r"@import|url\(|<script|<iframe|http", page)


def test_what_the_user_named_is_shown_as_text() -> None:
    page = html_report(sample_summary().model_copy(update={"model": "<b>&model"}))
    assert "<b>&model" not in page
    assert "&lt;b&gt;&amp;model" in page


def test_every_picture_is_well_formed_and_says_what_it_shows() -> None:
    pictures = re.findall(r"<svg.*?</svg>", html_report(full_summary()), re.DOTALL)
    # Twelve layers, search and removals, decode at batch 1 (the others have one length), speedups and sizes.
    assert len(pictures) == 12 + 2 + 1 + 1 + 1
    for picture in pictures:
        assert ElementTree.fromstring(picture).get("aria-label")


def test_a_caption_tells_of_the_lines_that_are_drawn_and_of_no_other() -> None:
    def captions(summary: Summary) -> str:
        return " ".join(figure.caption for figure in latency_figures(summary))

    summary = full_summary()
    assert "dashed" in captions(summary)
    unlimited = {"limit_ms": None}
    rows = tuple(
        row.model_copy(
            update={"dense": row.dense.model_copy(update=unlimited), "pruned": row.pruned.model_copy(update=unlimited)}
        )
        for row in summary.latency
    )
    said = captions(summary.model_copy(update={"latency": rows}))
    assert "dotted" in said
    assert "dashed" not in said


def test_the_page_holds_every_number_of_the_summary() -> None:
    text = words(html_report(full_summary()))
    for row in (
        "prefill of 256 tokens 32.10 ms 35.00 ms 36.00 ms 27.90 ms 29.00 ms 29.50 ms ×1.15 1.13 to 1.18 ×1.21",
        "4 × decode after 512 1.31 ms 1.40 ms 1.90 ms 1.09 ms 1.20 ms 1.70 ms ×1.20 1.16 to 1.25 * ×1.16",
        "decode after 4096 tokens, extrapolated 2.90 ms 2.10 ms ×1.4 1.30 to 1.47",
        "clock 2450 MHz",
        "float32 matrix products 61.0 GFLOP/s",
        "taken by other processes 2.0 % of the processors' time",
        "held-out: evaluation.txt, 48 windows of 256 tokens 13.60 14.11 +3.8 % +2.0 to +5.5 %",
        "every alpha 1 14.20 +15.4 %",
        "prefill logits 2.1e-07 at most 1.0e-04 0.21 % ✓ passed",
        "greedy agreement 1 at least 0.99 ✓ passed",
        "cached decode logits 128 1.1e-08 2.5e-12 6.1e-12 100.0 % 99.8 %",
        "layer 9: 4 query heads in 1 KV groups",
        "layer 10: value only, alpha 0.3, no KV cache",
        "layer 11: no attention, no KV cache",
        "hlap-export 0.1.0, torch 2.13.0",
    ):
        assert row in text


def test_engines_that_cant_run_here_are_shown_as_built_with_the_reason() -> None:
    text = words(html_report(built_summary()))
    assert "What the compiler made dense pruned TensorRT-RTX 1.7.1 builds it in 4.1 s 3.2 s" in text
    assert "KV cache inputs 24 18" in text
    assert "No GPU here: the graphs were verified on ONNX Runtime." in text
    assert "How fast it is" not in text


def test_gain_and_cost_stand_side_by_side() -> None:
    assert [(tile.name, tile.value, tile.detail) for tile in tiles(full_summary())] == [
        ("decode speed, after 2048 tokens", "×1.30", "1.27 to 1.33"),
        ("prefill speed, 256 tokens", "×1.15", "1.13 to 1.18"),
        ("KV cache per token", "−25.0 %", "3.00 KiB → 2.25 KiB"),
        ("perplexity", "+3.8 %", "held-out, 13.60 → 14.11"),
    ]


def test_a_failed_check_is_never_called_verified() -> None:
    text = words(html_report(sample_summary(logit_error=3e-2)))
    assert "✗ Not verified: prefill logits 0.03 (at most 1.0e-04)" in text
    assert "✗ failed" in text


def test_an_origin_names_what_the_run_made_and_shortens_what_it_didnt() -> None:
    found = sources(
        (
            Origin(name="checkpoint", digest="c" * 64, made_from={"model": "a" * 64}),
            Origin(name="onnx/pruned", digest="d" * 64, made_from={"checkpoint": "c" * 64}),
        )
    )
    assert [source.made_from for source in found] == [("model aaaaaaaaaaaa",), ("checkpoint",)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_and_lines_be_told_from_the_paper(scheme: str) -> None:
    css = (Path(html_report.__code__.co_filename).parent / "templates/page.css").read_text()
    palettes = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w+);", palettes[{"light": 0, "dark": 1}[scheme]]))
    for name in ("ink", "quiet", "good", "bad", "warn"):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours[name], colours["card"]) >= 4.5, name
    for name in ("pruned", "linear", "alpha", "from", "to"):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def words(page: str) -> str:
    """A page's text, each tag a gap."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def brightness(colour: str) -> float:
    return max(int(part) for part in re.findall(r"\d+", colour)) / 255


def contrast(first: str, second: str) -> float:
    """Contrast ratio as WCAG 2 defines it, 1 to 21."""
    low, high = sorted(luminance(colour) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
