"""Figures show what was logged, and nothing where nothing was."""

import re
from xml.etree import ElementTree

import pytest
from card_folders import certificate, save_training, training_log, write_json

from moeba.hub_card import gather_facts, write_card
from moeba.hub_card.pictures.figures import FILES, draw
from moeba.hub_card.pictures.heat_map import colour
from moeba.hub_card.pictures.svg import MAX_POINTS, Line, Panel, line_chart, nice_ticks, number, thinned


def figures(folder):
    return {figure.file: figure for figure in draw(gather_facts(folder).training)}


def polylines(svg):
    """The points of each line, in pixels."""
    return [
        [tuple(map(float, pair.split(","))) for pair in node.get("points").split()]
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}polyline")
    ]


def test_every_figure_is_drawn_and_shown(trained):
    text = write_card(trained).read_text(encoding="utf-8")
    assert re.findall(r"\]\((figures/.*?)\)", text) == list(FILES)
    for file in FILES:
        svg = (trained / file).read_text(encoding="utf-8")
        root = ElementTree.fromstring(svg)
        title, description = root[0], root[1]
        assert title.text and description.text == figures(trained)[file].alt
        assert len(svg) < 20_000
        assert "prefers-color-scheme:dark" in svg and "http" not in svg.replace(
            "http://www.w3.org/2000/svg", ""
        )


def test_the_same_files_give_the_same_bytes(trained):
    write_card(trained)
    first = {file: (trained / file).read_bytes() for file in FILES}
    write_card(trained)
    assert first == {file: (trained / file).read_bytes() for file in FILES}


def test_lines_stand_where_the_values_are(trained):
    training = gather_facts(trained).training
    curve, _ = polylines(figures(trained)[FILES[0]].svg)
    assert len(curve) == len(training.losses) == 12
    for axis, sign in ((0, 1), (1, -1)):  # y goes down
        pixels, values = [point[axis] for point in curve], [point[axis] for point in training.losses]
        scale = (pixels[-1] - pixels[0]) / (values[-1] - values[0])
        assert scale * sign > 0
        for pixel, value in zip(pixels, values, strict=True):
            assert pixel == pytest.approx(pixels[0] + scale * (value - values[0]), abs=0.02)


def test_words_and_table_say_what_the_picture_shows(trained):
    loss, balance, experts = figures(trained).values()
    first, last = training_log()[0]["loss"], [e["loss"] for e in training_log() if "loss" in e][-1]
    assert f"Training loss: {first:.3g} at step 5, {last:.3g} at step 60." in loss.alt
    assert loss.header == ("step", "training loss", "evaluation loss")
    assert loss.table[0] == ("5", f"{first:.3g}", "") and loss.table[-1][2] != ""
    mean = (1 + 0.98**5 + 1 + 2 * 0.98**5) / 2
    assert balance.table[0][1] == f"{mean:.3g}"
    assert (
        "The busiest is expert 0 of layer 2, with 2.73 times its share; 1 of 8 experts got no token."
        in experts.alt
    )
    assert experts.table[1] == ("2", "2.73", "0", "1", "0.8")


def test_a_layer_that_logs_alone_has_no_band(trained):
    save_training(trained, counts={2: [4, 2, 1, 1]})
    svg = figures(trained)[FILES[1]].svg
    assert "<polygon" not in svg and ">layer 2<" in svg and "band: all layers" not in svg


@pytest.mark.parametrize("losses", [[], [2.0], [float("nan"), 2.0]])
def test_too_little_to_draw(trained, losses):
    log = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
    write_json(trained, "trainer_state.json", {"global_step": 5, "log_history": log})
    assert figures(trained) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"step": 55},
        {"layers": [{"layer": 1, "counts": [0, 0], "entropy": 0.0}]},
        {"layers": [{"counts": [-1, 2]}]},
    ],
)
def test_expert_loads_of_another_time_or_shape_are_not_shown(trained, change):
    record = {"format_version": 1, "step": 60, "layers": [], **change}
    write_json(trained, "router_statistics.json", record)
    assert list(figures(trained)) == list(FILES[:2])


def test_figures_that_no_longer_hold_go(trained):
    write_card(trained)
    write_json(trained, "parity.json", certificate(trained))  # the log is the parent's, then
    text = write_card(trained).read_text(encoding="utf-8")
    assert "figures/" not in text and list((trained / "figures").iterdir()) == []


def test_a_persons_picture_is_not_replaced(trained):
    mine = trained / FILES[0]
    mine.parent.mkdir()
    mine.write_text("<svg>mine</svg>")
    with pytest.raises(ValueError, match="was not drawn by Moeba.*rename it"):
        write_card(trained)
    assert mine.read_text() == "<svg>mine</svg>" and not (trained / "README.md").exists()
    (trained / "trainer_state.json").unlink()
    write_card(trained)
    assert mine.read_text() == "<svg>mine</svg>"


def test_a_long_line_is_thinned_to_means():
    points = [(float(x), 3.0 * x) for x in range(10 * MAX_POINTS)]
    thin = thinned(points)
    assert len(thin) == MAX_POINTS and thin[0] == (4.5, 13.5)
    assert thinned(points[:7]) == points[:7]


def test_a_single_value_is_a_dot_in_the_middle():
    svg = line_chart("t", "d", "step", [Panel("p", [Line("l", [(3.0, 2.0)])])])
    assert svg.count("<circle") == 1


def test_text_cannot_leave_its_place():
    svg = line_chart(
        "<b>", 'a & "b"', "x<y", [Panel("</text>", [Line("<script>", [(0.0, 0.0), (1.0, 1.0)])])]
    )
    texts = [node.text for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")]
    assert "<script>" in texts and "</text>" in texts and "<script>" not in svg


def test_numbers_of_the_axes():
    assert nice_ticks(0, 60, 6) == [0, 10, 20, 30, 40, 50, 60]
    assert nice_ticks(1.9, 5.3, 5) == [2, 3, 4, 5]
    assert nice_ticks(2, 2, 5) == [2]
    assert [number(value) for value in (1.0, 0.126, -0.001, 120.0)] == ["1", "0.13", "0", "120"]


def test_colours_tell_too_few_from_too_many():
    neutral, idle, busy = colour(1.0), colour(0.0), colour(4.0)
    assert idle == colour(0.25) == colour(0.01) == (0, 114, 178) and busy == colour(100.0) == (213, 94, 0)
    assert min(neutral) > 230
    assert colour(0.5)[2] > colour(0.5)[0] and colour(2.0)[0] > colour(2.0)[2]
