"""The scales of charts, and what is drawn on them."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from job.reporting.figures import Axis, Chart

SVG = "{http://www.w3.org/2000/svg}"


def chart(x=(0, 10), y=(0, 10), **options):
    """A chart whose plot is as wide as high as its values."""
    return Chart((200, 200), Axis(*x, {}), Axis(*y, {}), **options)


def drawn(chart):
    return ElementTree.fromstring(chart.svg())


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.71, 0.9], ["0.75", "0.80", "0.85", "0.90"]),
        ([0, 7000], ["0", "2000", "4000", "6000"]),
        ([-1.2, 1.2], ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ([0.5, 0.5], ["0.48", "0.49", "0.50", "0.51", "0.52"]),
        ([0, 0], ["-0.04", "-0.02", "0.00", "0.02", "0.04"]),
        ([], ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
    ],
)
def test_linear_axis_has_round_ticks_inside_of_it(values, ticks):
    axis = Axis.linear(values)
    assert list(axis.ticks.values()) == ticks
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(0 < share < 1 for share in axis.share(values))


@pytest.mark.parametrize(("last", "ticks"), [(2, ["0", "1", "2"]), (12, ["0", "5", "10"]), (0, ["0"])])
def test_axis_of_whole_numbers_has_no_ticks_between_them(last, ticks):
    assert list(Axis.linear([0, last], whole=True).ticks.values()) == ticks


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3e-4, 1], ["0.001", "0.01", "0.1", "1"]),
        ([40, 600], ["50", "100", "200", "500"]),
        ([100], ["100"]),
    ],
)
def test_logarithmic_axis_has_powers_of_ten_or_more_where_those_are_few(values, ticks):
    assert list(Axis.logarithmic(values).ticks.values()) == ticks


def test_values_are_where_they_belong_on_the_scale():
    assert Axis(2, 4, {}).share([2, 3, 4]).tolist() == [0, 0.5, 1]
    assert Axis(4, 2, {}).share([2, 3, 4]).tolist() == [1, 0.5, 0]
    assert np.allclose(Axis(1, 100, {}, is_log=True).share([1, 10, 100]), [0, 0.5, 1])


def test_larger_values_are_further_right_and_further_up():
    one = chart()
    one.dots([0, 10], [0, 10], "#000")
    first, last = drawn(one).iter(f"{SVG}circle")
    assert float(first.get("cx")) < float(last.get("cx")) and float(first.get("cy")) > float(last.get("cy"))


def test_bars_stand_on_the_foot_of_the_plot_and_are_as_high_as_their_counts():
    one = chart()
    one.bars(np.array([0, 5, 10]), np.array([10, 5]), "#123456")
    (path,) = (path for path in drawn(one).iter(f"{SVG}path") if path.get("fill") == "#123456")
    feet, tops = zip(*re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)H", path.get("d")), strict=True)
    assert len(set(feet)) == 1
    high, low = (float(feet[0]) - float(top) for top in tops)
    assert high == pytest.approx(2 * low, abs=0.2)


def test_dots_on_one_pixel_are_one_dot_that_is_less_transparent():
    one = chart()
    one.cloud(np.array([5, 5, 5, 9]), np.array([5, 5, 5, 1]), "#123456")
    clouds = [path for path in drawn(one).iter(f"{SVG}path") if path.get("stroke-linecap") == "round"]
    assert [(path.get("d").count("M"), path.get("stroke-opacity")) for path in clouds] == [(1, "0.25"), (1, "0.58")]


def test_pixels_of_an_image_are_not_blurred():
    one = chart()
    one.image(np.zeros((3, 3, 4), np.uint8))
    (image,) = drawn(one).iter(f"{SVG}image")
    assert image.get("href").startswith("data:image/png;base64,") and "pixelated" in image.get("style")


def test_text_is_escaped():
    one = chart(title="<b>&", labels=("a < b", ""), legend={"x > y": "#000"})
    one.note(1, 1, "</svg>", (0, 0))
    assert {text.text for text in drawn(one).iter(f"{SVG}text")} == {"<b>&", "a < b", "x > y", "</svg>"}


def test_ink_is_dark_on_light_pages_and_light_on_dark_ones():
    (style,) = drawn(chart()).iter(f"{SVG}style")
    light, dark = style.text.split("@media(prefers-color-scheme:dark)")
    assert "text{font:13px sans-serif;fill:#24292f}" in light and "text{fill:#e6edf3}" in dark
