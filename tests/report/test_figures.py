from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from saerl_core.report import canvas
from saerl_core.report.figures import batches, clusters, scores
from saerl_core.report.palette import LIGHT, PALETTE

DOTS = [(i / 20, (i % 9) / 8) for i in range(20)]


def test_ids_of_two_drawings_never_clash() -> None:
    first = canvas.to_svg(scores.held_out_difficulty(DOTS))
    second = canvas.to_svg(scores.held_out_difficulty(DOTS[:-1]))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert all(ids)
    assert not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) == own


def test_a_drawing_takes_its_colours_from_the_page_and_names_no_place() -> None:
    svg = canvas.to_svg(scores.held_out_difficulty(DOTS), label='a "label" & more')
    assert "var(--blue, " in svg
    assert "var(--ink, " in svg
    assert not [name for name, colour in LIGHT.items() if re.search(rf"(?<!{name}, ){colour}", svg)]
    assert "http" not in svg
    assert "<metadata" not in svg
    assert 'aria-label="a &quot;label&quot; &amp; more"' in svg


def test_the_same_arrays_give_the_same_drawing() -> None:
    assert len({canvas.to_svg(scores.held_out_difficulty(DOTS)) for _ in range(3)}) == 1
    assert len({canvas.to_png(scores.held_out_difficulty(DOTS)) for _ in range(2)}) == 1


def test_a_png_has_the_size_of_its_resolution() -> None:
    picture = Image.open(io.BytesIO(canvas.to_png(scores.held_out_difficulty(DOTS), dpi=144)))
    assert picture.size == (2 * canvas.HALF, 640)


@pytest.mark.parametrize("k", [1, 7, 8, 32, 300])
def test_clusters_have_colours_of_their_own(k: int) -> None:
    colours = clusters.cluster_colours(k)
    assert len(colours) == k
    assert len(set(colours)) >= min(k, 200)
    assert not set(colours) & set(LIGHT.values())


def test_a_large_schedule_stays_a_small_drawing() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.permutation(40_000).reshape(-1, 20)
    cluster = rng.integers(0, 100, 40_000)
    difficulty = rng.random(40_000)
    epoch = np.repeat([0, 1], 1000)
    svg = canvas.to_svg(batches.batch_sequence(drawn, cluster, difficulty, epoch, clusters.cluster_colours(100)))
    assert len(svg) < 600_000
    assert len(canvas.to_svg(batches.cluster_roll(drawn, cluster, difficulty))) < 800_000
    assert len(canvas.to_svg(scores.held_out_difficulty(DOTS * 2000))) < 400_000


def test_text_is_readable_on_its_paper_in_both_modes() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for mode in (0, 1):
        for background in ("paper", "wash"):
            for name in ("ink", "soft"):
                light, dark = sorted((luminance(PALETTE[name][mode]), luminance(PALETTE[background][mode])),
                                     reverse=True)
                assert (light + 0.05) / (dark + 0.05) > 4.5
