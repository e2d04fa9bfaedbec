"""The X-ray page in a real browser: opened from disk, looked at, moved about in."""

import json
import re

import browser
import parrot
import pytest

from minivl2 import toyworld
from minivl2.places import KINDS, places
from minivl2.xray import XRay

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
ANSWER = f"<|ref|>the star<|/ref|><|det|>[[100, 200, 500, 600]]<|/det|> {HOSTILE}"


@pytest.fixture(scope="module")
def window():
    with browser.browser() as window:
        yield window


@pytest.fixture(scope="module")
def seen():
    model, processor = parrot.toy()
    parrot.teach(model, processor, ANSWER)
    picture = toyworld.draw("x-ray", "scenes", (3, 3)).images[0]
    seen = XRay(model, processor, f"where is it? {HOSTILE}", [picture], [f"{HOSTILE}.png"])
    list(seen.stream())
    return seen


@pytest.fixture(scope="module")
def file(seen, tmp_path_factory):
    target = tmp_path_factory.mktemp("page") / "xray.html"
    target.write_text(seen.page(), encoding="utf-8")
    return target.as_uri()


@pytest.fixture
def tab(window, file):
    tab = browser.Tab(window)
    tab.open(file).wait_for_selector("main[data-ready]")
    yield tab
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith(("data:", "blob:"))] == [file]    # itself, and nothing else
    tab.page.context.close()


def attribute(page, selector, name):
    return page.locator(selector).get_attribute(name)


def drawn(page, selector):
    """A canvas' pixels, as one string to compare."""
    return page.eval_on_selector(selector, "canvas => canvas.toDataURL()")


def outline(page):
    """The outlined part of the picture, as fractions of its width and height: left, top, right, lower."""
    return page.eval_on_selector(".image .source", """source => {
        const whole = source.getBoundingClientRect(), part = source.querySelector(".outline").getBoundingClientRect();
        return [(part.left - whole.left) / whole.width, (part.top - whole.top) / whole.height,
                (part.right - whole.left) / whole.width, (part.bottom - whole.top) / whole.height]; }""")


def point(page, selector, x, y):
    """Put the pointer at this fraction of an element."""
    element = page.locator(selector)
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])


def test_every_panel_has_content(tab):
    page = tab.page
    assert page.locator("section.panel").count() == 7
    for panel in ("tiles", "vision", "tokens", "reading", "experts", "memory", "answer"):
        assert len(page.locator(f"#{panel}").inner_text()) > 150, panel
    assert page.locator("#tiles .grids li").count() == 23 and page.locator("#tiles .grids .chosen").count() == 1
    for canvas in page.locator("canvas").all():
        assert canvas.evaluate("""canvas => {
            const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
            const pen = copy.getContext("2d", { willReadFrequently: true });
            pen.drawImage(canvas, 0, 0);
            return new Set(pen.getImageData(0, 0, copy.width, copy.height).data).size > 2; }""")
        assert canvas.get_attribute("aria-label")
    for image in page.locator("main img").all():
        assert image.evaluate("image => image.naturalWidth") > 0 and image.get_attribute("alt")
    assert page.locator("#experts svg").count() == 3 and page.locator("#memory svg").count() == 1
    assert page.locator("#memory tbody tr").count() == 4


@pytest.mark.parametrize("kind, x, y", [(1, 0.5, 0.4), (1, 0.05, 0.9), (0, 0.3, 0.6)])
def test_pointing_at_a_visual_token_outlines_its_pixels(tab, seen, kind, x, y):
    """The canvases hold rows of tokens and a newline; which token that is, and its pixels, places.py says."""
    picture, grid = seen.pictures[0], seen.sizes[0]
    found = places(picture.size, grid, 56, 8)
    columns, lines = (13, 12) if kind else (5, 4)
    n = next(i for i, p in enumerate(found)
             if p.view == kind and (p.row, p.column) == (int(y * lines), int(x * columns)))
    point(tab.page, f".layout canvas >> nth={2 * kind}", x, y)
    first = seen.batch.input_ids[0].tolist().index(seen.processor.special_ids["<image>"])
    assert attribute(tab.page, ".image", "data-token") == str(first + n)
    left, top, right, lower = found[n].in_picture
    wanted = [left / picture.width, top / picture.height, right / picture.width, lower / picture.height]
    assert outline(tab.page) == pytest.approx(wanted, abs=0.005)
    said = tab.page.inner_text("#tokens-readout")
    assert f"Token {first + n + 1}" in said and KINDS[kind] in said
    assert f"row {found[n].row + 1}, column {found[n].column + 1}" in said


def test_newlines_and_the_separator_outline_nothing(tab):
    point(tab.page, ".layout canvas >> nth=2", 0.98, 0.5)
    assert "newline" in tab.page.inner_text("#tokens-readout") and tab.page.locator(".outline:visible").count() == 0
    point(tab.page, ".layout canvas >> nth=1", 0.5, 0.5)
    assert "separator" in tab.page.inner_text("#tokens-readout")


def test_pointing_at_the_picture_finds_the_tokens_that_see_it(tab, seen):
    picture = seen.pictures[0]
    before = drawn(tab.page, ".layout canvas >> nth=2")
    point(tab.page, ".image .source", 0.62, 0.31)
    x, y = 0.62 * picture.width, 0.31 * picture.height
    first = seen.batch.input_ids[0].tolist().index(seen.processor.special_ids["<image>"])
    wanted = [first + i for i, p in enumerate(places(picture.size, seen.sizes[0], 56, 8))
              if p.in_picture and p.in_picture[0] <= x < p.in_picture[2] and p.in_picture[1] <= y < p.in_picture[3]]
    assert len(wanted) == 2                             # one token of each view
    assert sorted(map(int, attribute(tab.page, ".image", "data-token").split())) == wanted
    assert drawn(tab.page, ".layout canvas >> nth=2") != before


def test_the_slider_moves_heat_and_probabilities(tab, seen):
    page = tab.page

    def state():
        return drawn(page, "#reading-maps canvas >> nth=0"), page.inner_text("#reading-top"), page.inner_text("#reading-key")
    page.focus("#step")
    states = [state()]
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        states.append(state())
    assert attribute(page, "#reading", "data-step") == "3"
    for several in zip(*states, strict=True):
        assert len(set(several)) == 4
    token = seen.processor.tokenizer.decode([seen.answer[3]], skip_special_tokens=False)
    assert f"token 4 of {len(seen.answer)}: “{token.replace(' ', '·')}”" == page.inner_text("#step-says")
    probability = float(seen.record.steps[3].logits.softmax(-1)[seen.answer[3]])
    assert f"{100 * probability:.0f} %" in page.inner_text("#reading-top .taken")
    page.keyboard.press("End")
    assert attribute(page, "#reading", "data-step") == str(len(seen.answer) - 1)
    page.locator("#reading-answer button").nth(1).click()
    assert attribute(page, "#reading", "data-step") == "1"


def test_shares_of_attention_are_those_recorded(tab, seen):
    tab.page.select_option("#reading-layer", "2")
    tab.page.select_option("#reading-head", "1")
    weights = seen.record.steps[0].attention[2][1]
    first = seen.batch.input_ids[0].tolist().index(seen.processor.special_ids["<image>"])
    local = [first + i for i, p in enumerate(places(seen.pictures[0].size, seen.sizes[0], 56, 8)) if p.kind == 1]
    shown = re.search(r"local view ([\d.]+) %", tab.page.inner_text("#reading-key"))[1]
    assert float(shown) == pytest.approx(100 * float(weights[local].sum()), abs=1)


def test_layer_and_head_can_be_chosen(tab):
    page = tab.page
    for layer, head, canvas in (("#reading-layer", "#reading-head", "#reading-maps canvas >> nth=0"),
                                ("#vision-layer", "#vision-head", "#vision-attention")):
        before = drawn(page, canvas)
        page.select_option(layer, "1")
        assert page.input_value(head) == "-1"
        mean = drawn(page, canvas)
        page.select_option(head, "2")
        assert len({before, mean, drawn(page, canvas)}) == 3


def test_a_patch_can_be_pointed_at_and_moved_by_keys(tab, seen):
    page = tab.page
    point(page, "#vision-attention", 0.5, 0.5)
    assert attribute(page, "#vision-attention", "data-patch") == str(3 * 7 + 3)
    page.focus("#vision-attention")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert attribute(page, "#vision-attention", "data-patch") == str(2 * 7 + 4)
    row = seen.record.seeing[2][0].mean(0)[2 * 7 + 4]
    best = int(row.argmax())
    assert f"looks most at row {best // 7 + 1}, column {best % 7 + 1}" in page.inner_text("#vision-readout")
    page.select_option("#vision-view", "5")
    assert "Patch in row 3" in page.inner_text("#vision-readout")


def test_experts_of_a_token_are_those_of_the_gate(tab, seen):
    page = tab.page
    page.focus("#gates canvas >> nth=0")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    said = page.inner_text("#experts-readout")
    assert said.startswith("Token 5, ")
    for layer in (1, 2, 3):
        routing = seen.record.routing(layer)
        order = routing.weights[4].argsort(descending=True)
        wanted = ", ".join(str(int(routing.experts[4][k])) for k in order)
        assert re.sub(r" \([\d.]+\)", "", said.split(f"layer {layer + 1}: expert ")[1].split(";")[0]) == wanted


def test_boxes_lie_where_the_answer_says(tab):
    whole, part = (tab.page.locator(s).bounding_box() for s in ("#boxes", "#boxes .box"))
    corners = [(part["x"] - whole["x"]) / whole["width"], (part["y"] - whole["y"]) / whole["height"],
               part["width"] / whole["width"], part["height"] / whole["height"]]
    assert corners == pytest.approx([100 / 999, 200 / 999, 400 / 999, 400 / 999], abs=0.01)
    assert tab.page.inner_text("#boxes .box") == "the star"


def test_markup_is_shown_as_text_and_does_nothing(tab):
    assert tab.page.evaluate("window.hacked") is None
    assert HOSTILE in tab.page.inner_text("#said") and HOSTILE in tab.page.inner_text("h1")
    assert f"{HOSTILE}.png" in tab.page.inner_text("#tiles figcaption >> nth=0")
    assert tab.page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_screen_scrolls_sideways(window, file, width):
    page = browser.Tab(window, viewport={"width": width, "height": 800}).open(file)
    page.wait_for_selector("main[data-ready]")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_it_is_legible_in_dark_and_in_light(window, file):
    """Contrast of text to its background, by the formula of the accessibility guidelines (WCAG 2): at least 4.5."""
    for scheme in ("dark", "light"):
        page = browser.Tab(window, color_scheme=scheme).open(file)
        page.wait_for_selector("main[data-ready]")
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 50
        low = {text: round(ratio, 2) for text, ratio in contrasts if ratio < 4.5}
        assert not low, (scheme, json.dumps(low))
        page.context.close()


CONTRASTS = """() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {         // painted one over the other, as the browser would
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!words || !element.checkVisibility() || element.closest("svg, script, style, .box, option")) continue;
    const behind = [];
    for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
    const back = light(over(behind)), ink = light(over([...behind, getComputedStyle(element).color]));
    found.push([words.slice(0, 30), (Math.max(back, ink) + 0.05) / (Math.min(back, ink) + 0.05)]);
  }
  return found;
}"""


def test_the_theme_can_be_switched(tab):
    def paper():
        return tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    before = paper()
    tab.page.click("#theme")
    other = paper()
    tab.page.click("#theme")
    assert other != before == paper()


def test_moving_the_slider_does_not_lag(tab):
    """All of a redraw, of every step, in this browser without a graphics card: well under the 100 ms one would notice."""
    median = tab.page.evaluate("""() => {
        const slider = document.getElementById("step"), times = [];
        for (let step = 0; step <= Number(slider.max); step++) {
            slider.value = step;
            const start = performance.now();
            slider.dispatchEvent(new Event("input"));
            document.body.offsetHeight;
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[times.length >> 1]; }""")
    assert median < 100
