"""Films as one picture, with the words that stand for them."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image

from flowbook.plots import (
    BETWEEN,
    DENSITY,
    NOISE,
    STYLE,
    film,
    keep_colors,
    scatter,
    sprite_sheet,
    use_style,
)


def test_many_curves_of_one_colour_are_solid():
    """Catches dashes in the colour cycle: a dashed line is a wrong formula."""
    assert STYLE["axes.prop_cycle"].keys == {"color"}


def test_a_density_is_shaded_in_its_own_purple():
    """Catches the shades turned round, or another colour than a density's line."""
    with plt.rc_context():
        use_style()
    shades = plt.get_cmap("density")
    assert to_hex(shades(0.0)) == "#ffffff" and to_hex(shades(1.0)) == DENSITY.lower()
    assert (np.diff(shades(np.linspace(0, 1, 9))[:, 1]) < 0).all()


def test_a_figure_of_pictures_has_no_ground_and_grey_letters():
    """Catches a white box on a dark page, and letters that one of the pages hides."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
    left.imshow(torch.zeros(8, 8).numpy(), cmap="gray", vmin=-1, vmax=1)
    left.set(title="digits", xlabel="t")
    right.axis("off")
    keep_colors(fig)
    file = io.BytesIO()
    fig.savefig(file)
    plt.close(fig)
    shown = torch.tensor(np.array(Image.open(file).convert("RGBA"))).view(-1, 4)
    seen = shown[shown[:, 3] == 255, :3]
    assert shown[0, 3] == 0 and len(seen) < 0.6 * len(shown)
    assert (seen[:, 0] == seen[:, 2]).all() and seen.min() > 110 and seen.max() < 140
    assert left.title.get_color() == left.xaxis.label.get_color() == BETWEEN


def three_frames() -> torch.Tensor:
    frames = torch.zeros(3, 3, 16, 32)
    frames[0, 0] = 7.0  # red, far too bright
    frames[1, 1] = 0.5  # half green
    frames[2, 2, :, 16:] = 1.0  # blue, at the right
    frames[2, 0] = -0.5
    return frames


def test_frames_lie_in_rows_and_the_last_fills_up():
    """Catches rows and columns exchanged, and a last row that ends in black."""
    frames = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 4)
    sheet = sprite_sheet(frames, 3)
    assert sheet.shape == (3, 4, 12)
    assert sheet[0, ::2, ::4].tolist() == [[0, 1, 2], [3, 3, 3]]


@pytest.mark.parametrize("size", [(3, 8, 8), (0, 3, 8, 8), (2, 1, 8, 8)])
def test_what_is_no_film_is_refused(size):
    """Catches a film without frames, and grey frames that would be misread."""
    with pytest.raises(ValueError, match=r"frames \(T, 3, H, W\).* got"):
        sprite_sheet(torch.zeros(size), 2)


def pictures(page: str) -> list[Image.Image]:
    found = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(f))).convert("RGB") for f in found]


def test_a_film_shows_its_frames_in_order_and_its_last_as_a_still():
    """Catches swapped axes or colours, values that wrap round, a still of noise."""
    page = film(three_frames(), 'A "film" & more.', quality=100).data
    still, sheet = pictures(page)
    assert (still.size, sheet.size) == ((32, 16), (64, 32))
    places = [(8, 8), (48, 8), (8, 24), (24, 24), (60, 24)]
    expected = [(255, 0, 0), (0, 128, 0), (0, 0, 0), (0, 0, 255), (0, 0, 255)]
    for place, wanted in zip(places, expected, strict=True):
        colour = sheet.getpixel(place)
        assert max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= 8
    assert still.getpixel((24, 8))[2] > 240
    assert page.count("A &quot;film&quot; &amp; more.") == 2  # for both pictures
    assert 'data-frames="3" data-columns="2"' in page and 'data-rows="2"' in page
    assert "film-x 1.5s steps(2," in page and "film-y 3s steps(2," in page


def test_a_film_of_two_frames_moves():
    """Catches one row's steps(1, jump-none), for which CSS drops the animation."""
    page = film(three_frames()[:2], "A film.").data
    assert 'data-rows="1"' in page and "film-x 3s steps(2," in page
    assert "steps(1," not in page


def test_a_film_is_as_wide_as_its_frames_or_as_asked():
    """Catches small frames that stay small, and a stretched film."""
    for given, shown in ((None, 32), (100, 100)):
        page = film(three_frames(), "A film.", width=given).data
        assert f"aspect-ratio: 32 / 16; max-width: {shown}px;" in page


def test_a_film_stands_still_for_those_who_ask():
    """Catches motion without a way out in a notebook."""
    page = film(three_frames(), "A film.").data
    calm = page.partition("prefers-reduced-motion: reduce")[2]
    assert re.match(r"\)\s*{\s*\.film-still { display: block }", calm)


def test_scattered_points_are_half_transparent_and_undistorted():
    """Catches a cloud that hides its own density, and one squeezed by its axes."""
    figure, ax = plt.subplots()
    scatter(ax, torch.randn(7, 2, requires_grad=True), NOISE, "noise")
    (cloud,) = ax.collections
    assert cloud.get_alpha() == 0.5 and ax.get_aspect() == 1
    assert cloud.get_offsets().shape == (7, 2)
    plt.close(figure)
