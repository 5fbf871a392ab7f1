"""The report: one file, offline, escaped, with a section per objective."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image

from tests.trainer.measure.panels import conversation_panel, panel
from trainer.measure.drawing import COLOURS, marked
from trainer.measure.report import write_report

CAPTION = "<script>alert(1)</script>\x00\ud800é"


class Tags(HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def records() -> list[dict]:
    steps = [
        {"step": i, "loss": 3 / i, "bce": 1 / i, "lr": 1e-3, "data_wait": 0.1, "samples_per_second": 2.0}
        for i in (1, 2)
    ]
    return [{"step": 0, "held_out/mask_loss": 1.5, "held_out/iou": 0.1, "held_out/dice": 0.2}, *steps]


def test_the_report_is_one_file_that_loads_nothing(tmp_path: Path):
    write_report(
        tmp_path / "report.html",
        "dual: demo",
        {"time": "3 s"},
        records(),
        {"dual": {0: [panel("a dog")], 40: [panel("a cat")]}},
        "lr: 1\n",
    )
    html = (tmp_path / "report.html").read_text("utf-8")
    tags = Tags()
    tags.feed(html)
    names = [tag for tag, _ in tags.found]
    assert names.count("img") == 8 and names.count("svg") == 6
    assert not {"script", "link", "iframe"} & set(names)
    for _, attributes in tags.found:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#")), value
    assert not re.search(r"url\((?!#)|@import", html)
    assert tags.text.index("after step 40") < tags.text.index("a cat") < tags.text.index("after step 0")
    for shown in ("a dog", "a cat", "pair_1", "IoU 0.250", "3 s", "lr: 1", "Learning rate", "Held-out mask loss"):
        assert shown in tags.text, shown
    assert "swap_gap" not in tags.text  # not a number: there was no other caption


def test_captions_are_text_not_html(tmp_path: Path):
    write_report(
        tmp_path / "r.html",
        "<b>t",
        {},
        records(),
        {"dual": {1: [panel(CAPTION)]}},
        "<i>",
    )
    html = (tmp_path / "r.html").read_text("utf-8")
    assert "<script>" not in html and "<b>t" not in html and "<pre><i>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "é" in html


def test_the_report_shows_the_pictures_of_the_samples(tmp_path: Path):
    """Compared after JPEG, which hardly changes a smooth picture."""
    shown = dataclasses.replace(panel("x", prompt=False), image=np.full((32, 32, 3), (40, 90, 160), np.uint8))
    write_report(tmp_path / "r.html", "t", {}, records(), {"segment": {1: [shown]}}, "")
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', (tmp_path / "r.html").read_text("utf-8"))
    pictures = [np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources]
    expected = [shown.image, marked(shown.image, [shown.truth]), marked(shown.image, [shown.prediction])]
    for picture, of_sample in zip(pictures, expected, strict=True):
        assert np.abs(picture.astype(int) - of_sample).mean() < 5


def test_an_objective_without_masks_has_no_prediction(tmp_path: Path):
    """The region that was described is the truth: it is shown once."""
    described = dataclasses.replace(panel("x"), prediction=None, values={"caption": 1.5})
    write_report(tmp_path / "r.html", "t", {}, records(), {"describe": {1: [described]}}, "")
    html = (tmp_path / "r.html").read_text("utf-8")
    assert html.count("<img") == 1 and "region to describe" in html and "caption loss 1.500" in html


def test_each_objective_of_a_mix_has_a_section_with_its_charts_and_samples(tmp_path: Path):
    """Records of a mix name their objective; a record need not hold every value."""
    mixed = [
        {"step": 1, "loss": 4.0, "dual/bce": 1.0, "dual/dice": 0.5, "lr": 1.0},
        {"step": 2, "loss": 3.0, "describe/caption": 3.0, "lr": 1.0},
        {"step": 2, "held_out/dual/iou": 0.5},
    ]
    sheets = {"dual": {2: [panel("of dual")]}, "describe": {2: [panel("of describe")]}}
    write_report(tmp_path / "r.html", "t", {}, mixed, sheets, "")
    html = (tmp_path / "r.html").read_text("utf-8")
    run, rest = html.split('<h2 id="objective-dual">')
    dual, rest = rest.split('<h2 id="objective-describe">')
    describe, _ = rest.split('<h2 id="configuration">')
    assert run.count("<svg") == 2 and "Loss: weighted sum" in run and "Learning rate" in run
    assert dual.count("<svg") == 2 and "BCE" in dual and "Held-out IoU" in dual and "of dual" in dual
    assert describe.count("<svg") == 1 and "of describe" in describe and "BCE" not in describe
    assert "Speed and memory" not in html  # nothing is recorded of it


def test_legends_are_outside_the_axes(tmp_path: Path):
    """Legends are in the page, where they wrap; a chart of one line has none."""
    write_report(tmp_path / "r.html", "t", {}, [{"step": 1, "bce": 0.4, "dice": 0.2, "lr": 1.0}], {"segment": {}}, "")
    tags = Tags()
    tags.feed((tmp_path / "r.html").read_text("utf-8"))
    assert [attributes.get("class") for tag, attributes in tags.found if tag == "ul"] == ["legend"]
    colours = [attributes["style"] for tag, attributes in tags.found if tag == "i"]
    assert len(set(colours)) == 2 and tags.text.index("BCE") < tags.text.index("Dice")


def test_names_inside_drawings_are_unique_on_the_page(tmp_path: Path):
    records = [{"step": 1, "dual/bce": 1.0, "segment/bce": 1.0, "lr": 1.0}]
    write_report(tmp_path / "r.html", "t", {}, records, {"dual": {}, "segment": {}}, "")
    clips = re.findall(r'<clipPath id="([^"]+)"', (tmp_path / "r.html").read_text("utf-8"))
    assert len(clips) == len(set(clips)) == 3


def test_a_long_run_has_a_small_file(tmp_path: Path):
    """Each point of a curve is a mean of several records."""
    records = [{"step": step, "bce": 1 / step, "lr": 1.0} for step in range(1, 20_001)]
    write_report(tmp_path / "r.html", "t", {}, records, {"segment": {}}, "")
    assert (tmp_path / "r.html").stat().st_size < 100_000


def test_training_losses_that_do_not_compare_have_a_note_and_those_that_do_share_a_chart(tmp_path: Path):
    short = [{"step": 1, "bce": 0.4, "bce_uniform": 0.2}, {"step": 1, "held_out/bce": 0.25, "held_out/dice_loss": 0.5}]
    write_report(tmp_path / "r.html", "t", {}, short, {"segment": {}}, "")
    tags = Tags()
    tags.feed((tmp_path / "r.html").read_text("utf-8"))
    assert "2 to 3 times that of held-out samples; bce_uniform and dice_uniform" in tags.text
    assert tags.text.count("Mask losses at evenly spread points") == 1
    for name in ("BCE, training", "BCE, held out", "Dice, held out"):
        assert name in tags.text
    write_report(tmp_path / "r.html", "t", {}, [{"step": 1, "caption": 0.4, "loss": 0.4}], {"describe": {}}, "")
    assert "bce_uniform" not in (tmp_path / "r.html").read_text("utf-8")


def test_phrases_have_the_colours_of_their_masks(tmp_path: Path):
    """Frames in strips, three of them; what was said in order, escaped."""
    write_report(tmp_path / "r.html", "t", {}, records(), {"converse": {1: [conversation_panel(frames=3)]}}, "")
    tags = Tags()
    tags.feed((tmp_path / "r.html").read_text("utf-8"))
    assert [name for name, _ in tags.found].count("img") == 9 and "b" in {name for name, _ in tags.found}
    assert [attributes["class"] for name, attributes in tags.found if name == "mark"] == [
        *("mask0", "mask0", "mask1", "mask1")
    ]
    said = ["Segment the <b>man</b>.", "It is [SEG] 1.", "Sure, [SEG].", "And the dog?", "[SEG] 2", "0.500", "clip_1"]
    places = [tags.text.index(text) for text in said]
    assert places == sorted(places) and "predicted empty" not in tags.text
    for number, colour in enumerate(COLOURS):
        assert f".mask{number} {{ background: rgb{colour};" in tags.text


def test_held_out_numbers_of_kinds_are_drawn(tmp_path: Path):
    numbers = {"referring/iou": 0.5, "grounded_caption/iou": 0.2, "seg_asked": 0.9, "seg_unasked": 0.1, "lang": 1.0}
    for objectives in (("converse",), ("converse", "dual")):
        prefix = "held_out/converse/" if len(objectives) > 1 else "held_out/"
        mixed = [{"step": 2, "loss": 1.0} | {prefix + name: value for name, value in numbers.items()}]
        write_report(tmp_path / "r.html", "t", {}, mixed, {name: {} for name in objectives}, "")
        tags = Tags()
        tags.feed((tmp_path / "r.html").read_text("utf-8"))
        for shown in ("IoU by kind", "grounded_caption", "not asked for one", "Held-out language loss"):
            assert tags.text.count(shown) == 1, shown


def test_a_run_without_held_out_samples_has_a_report_too(tmp_path: Path):
    write_report(tmp_path / "r.html", "t", {}, records()[1:], {"dual": {}}, "")
    assert "Held-out samples" not in (tmp_path / "r.html").read_text("utf-8")
