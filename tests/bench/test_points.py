from __future__ import annotations

from hlap_export.bench.points import fit_lengths, fitting_points, largest_batch, longest_prompt
from hlap_export.bench.report import AdjustedLength
from hlap_export.bench.work import Point


def test_lengths_beyond_the_models_positions_are_cut_and_the_report_says_so() -> None:
    lengths, adjusted = fit_lengths("decode", (16, 127, 500, 900), limit=127)
    assert lengths == (16, 127)
    reason = "the model has positions for 127 tokens before one more"
    assert adjusted == (
        AdjustedLength(phase="decode", asked=500, used=None, reason=reason),
        AdjustedLength(phase="decode", asked=900, used=None, reason=reason),
    )
    lengths, adjusted = fit_lengths("prefill", (500,), limit=128)
    assert lengths == (128,)
    assert (adjusted[0].asked, adjusted[0].used) == (500, 128)


def test_every_batch_meets_every_length_once_and_a_decode_step_has_room_for_its_token() -> None:
    points, adjusted = fitting_points((8, 200), (128,), (1, 4, 4), max_positions=128)
    assert [(point.batch, point.phase, point.num_tokens) for point in points] == [
        (1, "prefill", 8),
        (1, "prefill", 128),
        (1, "decode", 127),
        (4, "prefill", 8),
        (4, "prefill", 128),
        (4, "decode", 127),
    ]
    assert [(length.phase, length.asked, length.used) for length in adjusted] == [
        ("prefill", 200, 128),
        ("decode", 128, 127),
    ]


def test_memory_belongs_to_the_longest_prompt_and_the_largest_batch() -> None:
    points = (Point(phase="prefill", num_tokens=8, batch=4), Point(phase="decode", num_tokens=900))
    assert longest_prompt(points) == 8
    assert longest_prompt(points[1:]) == 1
    assert largest_batch(points) == 4
