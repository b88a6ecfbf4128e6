"""If these failed, the page would be broken, unreadable, or would say what was not measured."""

from __future__ import annotations

import base64
import copy
import html.parser
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.report import synthetic
from vidgen.report import figures, page


def made_up(**given: Any) -> list[Any]:
    """Results in the order in which the page takes them, some of them given."""
    made = (
        ("bench", synthetic.bench),
        ("demo", synthetic.demo),
        ("motion", synthetic.motion),
        ("classes", synthetic.classes),
        ("streams", synthetic.streams),
    )
    return [given[name] if name in given else make() for name, make in made]


def render(**more: Any) -> str:
    arguments = {"version": "0.0.0", "banner": synthetic.BANNER} | more
    results = made_up(**arguments)
    return page.render(
        *results, **{name: arguments[name] for name in ("version", "banner", "gpu") if name in arguments}
    )


def markdown(**given: Any) -> str:
    return page.markdown(*made_up(**given))


def text_of(source: str) -> str:
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", source, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


# the figures on the page


def test_ratios_on_the_page_are_those_of_the_samples() -> None:
    bench = synthetic.bench()
    eager, ours = (
        float(np.median(next(e["samples_ms"] for e in bench["rows"][0]["contenders"] if e["name"] == name)))
        for name in ("eager channels_last", "vidgen NHWC")
    )
    tile = re.search(r"<dt>the speed of eager PyTorch</dt>\s*<dd>(.*?)</dd>", render(bench=bench))
    assert tile is not None
    assert tile[1] == f"{eager / ours:.2f}×"


def test_a_failure_is_shown_in_place_of_its_numbers() -> None:
    source = render()
    (line,) = re.findall(r'<tr class="ours"><th scope="row">vidgen NHWC</th><td class="failed".*?</tr>', source)
    assert "FAILED: wrong answer: y is off by 3.1e-02" in line
    assert "×" not in re.sub(r"limit.*", "", line)
    assert "1 failed the check" in text_of(source)


def test_a_failed_headline_gives_no_number() -> None:
    bench = synthetic.bench()
    bench["rows"] = bench["rows"][1:2]
    assert '<dd class="failed">failed</dd>' in render(bench=bench)


def test_a_failed_demonstration_leaves_the_benchmarks() -> None:
    source = render(demo="ModuleNotFoundError: sklearn is not installed")
    assert "The demo failed: ModuleNotFoundError: sklearn is not installed" in text_of(source)
    assert "bits per dimension on held-out digits" not in text_of(source)
    assert "the PixelCNN above" not in text_of(source)
    assert "Every measurement" in source
    reason = "ModuleNotFoundError: x"
    tables = page.markdown(synthetic.bench(), reason, synthetic.motion(), synthetic.classes(), synthetic.streams())
    assert "FAILED: ModuleNotFoundError" in tables


def test_each_demonstration_fails_for_itself() -> None:
    text = text_of(render(motion="RuntimeError: training has diverged"))
    assert "The demo failed: RuntimeError: training has diverged" in text
    assert "bits per dimension on held-out digits" in text
    assert "goes round once or twice" not in text
    text = text_of(render(streams="RuntimeError: no flow"))
    assert "The demo failed: RuntimeError: no flow" in text
    assert "goes round once or twice" in text
    assert "spatial stream" not in text
    text = text_of(render(classes="RuntimeError: no digits"))
    assert "The demo failed: RuntimeError: no digits" in text
    assert "clips of unseen digits" in text
    tables = markdown(motion="RuntimeError: x", classes="RuntimeError: y", streams="RuntimeError: z")
    assert "digits by class: FAILED: RuntimeError: y" in tables
    assert "C3D on moving digits: FAILED: RuntimeError: x" in tables
    assert "two streams on moving digits: FAILED: RuntimeError: z" in tables
    assert "histogram" in tables


def test_accuracies_stand_beside_their_counts_and_chance() -> None:
    motion = synthetic.motion()
    text = text_of(render(motion=motion))
    assert "98.7% of 1000 clips of unseen digits right (987)" in text
    assert "names 24.3% (243). Guessing gives 22.4–27.7% in 95 of 100 cases." in text
    # a control that is not at chance puts the whole comparison in doubt, and says so
    motion["right"]["single-frame"] = 300
    assert "this is outside" in text_of(render(motion=motion))
    tables = markdown()
    assert "| C3D | 98.7% |" in tables
    assert "| chance, in 95 of 100 cases | 22.4–27.7% |" in tables


def test_streams_stand_beside_each_other_and_chance() -> None:
    source = render()
    text = text_of(source)
    assert (
        "Of 1000 clips of unseen digits the spatial stream alone names 24.1% right and the temporal stream 11.2%"
        in text
    )
    assert "both together 91.2% when their probabilities are averaged, and 92.3% by a linear SVM" in text
    assert "spatial stream alone 24.1% 95.1% 24.7%" in text
    assert "temporal stream alone 11.2% 11.8% 97.8%" in text
    assert "both, averaged 91.2% – –" in text
    assert "guesses, in 95 of 100 cases 1.6–3.5% 8.2–11.9% 22.4–27.7%" in text
    assert "off by 0.41 pixels in the mean, by 0.62 on the digits; no flow at all would be by 1.23 and 3.21" in text
    # colours of the wheel mean directions, and are not turned round where the page is dark
    assert source.count('class="sheet colors"') == 3
    assert "| temporal stream alone | 11.2% | 11.8% | 97.8% |" in markdown()


def test_strips_of_photographs_are_the_pictures() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    strip = figures.photo_strip(images, gap=1)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(strip["uri"].partition(",")[2]))))
    assert picture.shape == (4, 17, 4) == (strip["height"], strip["width"], 4)
    for i in range(3):
        assert np.array_equal(picture[:, 6 * i : 6 * i + 5, :3], images[i])
    assert (picture[..., 3] == 0).all(axis=0).tolist() == [x % 6 == 5 for x in range(17)]
    grey = figures.photo_strip(images[..., 0])
    assert Image.open(io.BytesIO(base64.b64decode(grey["uri"].partition(",")[2]))).size == (19, 4)


def test_drawings_of_a_class_stand_beside_what_the_judge_said_of_real_digits() -> None:
    text = text_of(render())
    assert "takes 94.2% of 500 drawings of Gated PixelCNN (471) and 93.6% of 500 drawings of PixelCNN++ (468)" in text
    assert "names 98.3% of real held-out digits right" in text
    assert (
        "PixelCNN++ 1.622 bits per dimension, given the class; the PixelCNN above, which is not told it, 1.712" in text
    )
    tables = markdown()
    assert "| Gated PixelCNN | 1.611 | 94.2% |" in tables
    assert "| real held-out digits | | 98.3% |" in tables


def test_what_was_said_of_each_clip_stands_at_it() -> None:
    motion = synthetic.motion()
    items = re.findall(r"<li>.*?</li>", render(motion=motion), flags=re.DOTALL)
    items = [text_of(item) for item in items if "<picture>" in item]
    assert len(items) == 12
    names = motion["motions"]
    for item, truth, c3d, single in zip(
        items, motion["motion"], motion["predicted"]["c3d"], motion["predicted"]["single-frame"], strict=True
    ):
        marks = ["✓" if answer == truth else "✗" for answer in (c3d, single)]
        expected = f"motion {names[truth]} C3D {names[c3d]} {marks[0]} single frames {names[single]} {marks[1]}"
        assert item.split() == expected.split()


def test_without_gpu_results_one_sentence_about_gpus_and_no_more() -> None:
    text = text_of(render())
    assert "No GPU has been measured." in text
    rest = text.replace("No GPU has been measured.", "").replace("GPUs", "", 1)
    assert not re.search(r"GPU|CUDA|Triton", rest)


def test_with_gpu_results_they_are_shown() -> None:
    gpu = synthetic.bench()
    gpu["machine"] |= {"device": "cuda", "gpu": "Imaginary Accelerator", "cuda": "0.0"}
    text = text_of(render(gpu=[gpu]))
    assert "Measured on Imaginary Accelerator, CUDA 0.0" in text
    assert "No GPU has been measured" not in text


def test_a_busy_machine_is_told() -> None:
    bench = synthetic.bench()
    assert "not to be trusted" not in render(bench=bench)
    bench["rows"][0]["others_busy"] = 0.3
    source = render(bench=bench)
    assert "Other programs used up to 30%" in source
    # a reader of the headline alone is told too
    assert source[: source.index("<h2>")].count("measured on a busy machine") == 2


def test_every_op_has_charts_of_its_own() -> None:
    bench = synthetic.bench()
    bench["rows"] += [row | {"op": "another_op"} for row in bench["rows"][:1]]
    captions = [chart["caption"] for chart in page.speed(bench)["charts"]]
    assert captions == [
        "another_op, forward pass",
        "masked_conv2d, forward pass",
        "masked_conv2d, forward and backward pass",
    ]
    # where nobody is measured beside ours there is no ratio, and no empty bar for it
    alone = bench["rows"][0] | {"contenders": [e for e in bench["rows"][0]["contenders"] if e["ours"]]}
    assert "another_op, forward pass" not in str(page.speed(bench | {"rows": [alone | {"op": "another_op"}]})["charts"])
    # the tile says whose ratio it shows
    assert f"masked_conv2d, {bench['rows'][0]['title']}, fp32" in text_of(render(bench=bench))


def test_ways_of_drawing_have_a_chart_of_their_own() -> None:
    bench = synthetic.bench()
    (chart,) = page.drawing(bench)
    assert chart["caption"] == "PixelCNN, 15 blocks of 64, 28×28, 1 at once"
    medians = {e["name"]: float(np.median(e["samples_ms"])) for e in bench["rows"][-1]["contenders"]}
    gain = medians["full passes, channels_last"] / medians["vidgen, cpu"]
    assert f"{gain:.0f}×" in chart["svg"]
    assert "a pass for each pixel (full passes, channels_last)" in chart["svg"]
    # a comparison with full passes is none with eager convolutions
    assert page.headline(bench)["high"] < 10
    bench["rows"] = bench["rows"][:-1]
    assert page.drawing(bench) == []
    assert "How sampling got fast" not in text_of(render(bench=bench))


def test_the_range_of_ratios_is_of_those_to_eager_pytorch() -> None:
    bench = synthetic.bench()
    before = page.headline(bench)["count"]
    contenders = bench["rows"][0]["contenders"]
    compared = {entry["against"] for entry in contenders if entry["ours"]}
    for entry in contenders:
        if entry["name"] in compared:
            entry["peer"] = "otherlib"
    assert page.headline(bench)["count"] == before - sum(bool(entry["against"]) for entry in contenders)


def test_a_library_that_was_not_measured_is_told_with_the_reason() -> None:
    bench = synthetic.bench()
    bench["rows"][1]["left_out"] = {"A Peer": "peerlib is not installed"}
    bench["machine"]["peers"] = {"otherlib": "1.2.3"}
    text = text_of(render(bench=bench))
    assert text.count("A Peer was not measured: peerlib is not installed.") == 1
    assert "otherlib 1.2.3" in text


def test_text_from_outside_is_escaped() -> None:
    bench = synthetic.bench()
    bench["machine"]["cpu"] = "<script>alert(1)</script>"
    assert "<script" not in render(bench=bench)


# what the page is made of


class Outline(html.parser.HTMLParser):
    VOID = frozenset(("meta", "link", "img", "br", "hr", "input", "source"))

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def outline() -> Outline:
    parser = Outline()
    parser.feed(render())
    assert parser.open == []
    return parser


def test_nothing_is_loaded_from_anywhere_and_nothing_is_executed(outline: Outline) -> None:
    for tag, attributes in outline.tags:
        assert tag != "script"
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "data", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"url\((?!#)", render())
    assert "@import" not in render()


def test_pictures_have_words_and_ids_are_unique(outline: Outline) -> None:
    pictures = [attributes for tag, attributes in outline.tags if tag in ("img", "svg")]
    # two sheets of digits, two of classes, two strips of halves, seven film strips, twelve clips; curves and bars
    assert len(pictures) == 2 + 2 + 2 + 7 + 12 + 9
    for attributes in pictures:
        assert len(attributes.get("alt") or attributes.get("aria-label") or "") > 20
    identifiers = Counter(attributes["id"] for _, attributes in outline.tags if attributes.get("id"))
    assert {name for name, count in identifiers.items() if count > 1} == set()


def test_headings_descend_one_step_at_a_time(outline: Outline) -> None:
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))


def test_figures_take_their_colours_from_the_page() -> None:
    demo = synthetic.demo()
    for svg in (
        figures.learning_curve(demo["curve"]),
        figures.model_bars(demo["bits_per_dim"]),
        figures.accuracy_curves(synthetic.motion()["curve"], (0.224, 0.277)),
        figures.ratio_bars([("a", 2.0, "2.00×", True), ("b", None, "FAILED", False)]),
    ):
        # any other colour would be one that the dark scheme cannot change
        assert not re.search(r"#[0-9a-fA-F]{6}", svg)
        assert "var(--ink)" in svg
        assert "font-family" not in svg


def test_digit_grid_places_each_image_with_its_grey_levels() -> None:
    images = np.zeros((5, 1, 2, 3), dtype=np.uint8)
    images[1] = 16
    images[4, 0, 1, 2] = 8
    grid = figures.digit_grid(images, 2, gap=1)
    with Image.open(io.BytesIO(base64.b64decode(grid["uri"].partition(",")[2]))) as picture:
        ink = np.asarray(picture)[..., 1]
    assert ink.shape == (3 * 3 - 1, 2 * 4 - 1) == (grid["height"], grid["width"])
    expected = np.zeros_like(ink)
    expected[0:2, 4:7] = 255
    expected[7, 2] = 128
    np.testing.assert_array_equal(ink, expected)


def test_animations_play_every_frame_and_rest_for_those_who_ask() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    frames[3] = frames[1]
    picture = figures.animation(frames, milliseconds=70)
    assert (picture["width"], picture["height"]) == (3, 4)
    with Image.open(io.BytesIO(base64.b64decode(picture["uri"].partition(",")[2]))) as moving:
        assert moving.n_frames == 5
        assert moving.info["loop"] == 0
        for number, frame in enumerate(frames):
            moving.seek(number)
            np.testing.assert_array_equal(np.asarray(moving.convert("LA"))[..., 1], frame)
            assert moving.info["duration"] == 70
    with Image.open(io.BytesIO(base64.b64decode(picture["still"].partition(",")[2]))) as still:
        assert not getattr(still, "is_animated", False)
        np.testing.assert_array_equal(np.asarray(still)[..., 1], frames[0])
    source = render()
    assert source.count("prefers-reduced-motion") == source.count("<picture>") == 12


def test_markdown_and_page_show_the_same_figures() -> None:
    bench, demo = synthetic.bench(), synthetic.demo()
    tables = page.markdown(bench, demo, synthetic.motion(), synthetic.classes(), synthetic.streams())
    source = render(bench=bench, demo=demo)
    cells = re.findall(r"\| (\d+\.\d+×)", tables)
    assert len(cells) > 20
    assert set(cells) <= set(re.findall(r"<td>(\d+\.\d+×)", source))


# in a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "index.html"
    bench = synthetic.bench()
    # the longest things that can happen to a line
    bench["machine"]["cpu"] = "An Imaginary Processor With A Very Long Name 9000 @ 3.00GHz (Rev. 12, unstable)"
    bench["rows"][0]["contenders"][0] = copy.deepcopy(bench["rows"][1]["contenders"][3]) | {"name": "eager contiguous"}
    path.write_text(render(bench=bench, version="0.1.dev0+g0123456789abcdef"), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(params=[(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], ids=lambda p: f"{p[0]}-{p[1]}")
def view(request: pytest.FixtureRequest, chromium: Any, address: str) -> Iterator[Any]:
    """The page at a width and in a colour scheme, with everything that it complained about in `.complaints`."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme, offline=True)
    tab = context.new_page()
    tab.complaints = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("requestfailed", lambda failed: tab.complaints.append(failed.url))
    tab.goto(address)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield tab
    context.close()


def test_browser_is_content(view: Any) -> None:
    assert view.complaints == []
    images = view.evaluate(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert len(images) == 25
    for complete, natural, shown in images:
        assert complete
        assert natural > 0
        # a whole number of screen pixels per pixel, or digits would be distorted
        assert shown / natural in (1, 2, 3)


def test_no_horizontal_scroll_and_nothing_cut_off(view: Any) -> None:
    width = view.viewport_size["width"]
    assert view.evaluate("document.documentElement.scrollWidth") == width
    beyond = view.evaluate(
        """width => [...document.querySelectorAll('body *')]
            .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > width + 0.5)
            .map(e => e.tagName + ' ' + e.textContent.slice(0, 40))""",
        width,
    )
    assert beyond == []
    # wide tables scroll inside their own container
    assert view.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => getComputedStyle(e).overflowX == 'auto')"
    )


_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] == 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].filter(n => n.nodeType == 3 && n.textContent.trim()).length;
    if (!own) continue;
    const style = getComputedStyle(e);
    const ink = light(rgba(e.closest('svg') ? style.fill : style.color)), paper = light(ground(e));
    const size = e.closest('svg') ? e.getBoundingClientRect().height : parseFloat(style.fontSize);
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    found.push([contrast, size, e.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


def test_every_text_can_be_read_in_either_scheme(view: Any) -> None:
    found = view.evaluate(_CONTRAST)
    assert len(found) > 100
    # WCAG AA for body text, and nothing so small that a phone's reader has to pinch
    assert [one for one in found if one[0] < 4.5] == []
    assert [one for one in found if one[1] < 10] == []


def test_the_schemes_differ(chromium: Any, address: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        context = chromium.new_context(color_scheme=scheme)
        tab = context.new_page()
        tab.goto(address)
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    light, dark = ([int(value) for value in re.findall(r"\d+", ground)] for ground in grounds)
    assert min(light) > 200
    assert max(dark) < 60


def test_synthetic_pages_say_so() -> None:
    # made-up figures must never be taken for measured ones
    assert synthetic.BANNER in render()
    for path in (Path(page.__file__).parent).glob("*.py"):
        assert "synthetic" not in path.read_text(encoding="utf-8")
