"""The page of a report in a real Chromium: `make browser`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from mlstate import LocalStateStore, MemoryStateStore, describe, report, usage, verify
from mlstate.format import layout
from mlstate.operations.reports import to_json
from tests.support.browser import is_there, open_browser
from tests.support.commands import Shell
from tests.support.reports import hostile_store, key, large_report, save

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not is_there(), reason="needs chromium (apt-get install chromium chromium-driver)"
    ),
]

SETTLED = (
    "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame("
    "() => done(true))))"
)
ARROW_DOWN, ARROW_RIGHT, ENTER, ESCAPE, TAB = "\ue015", "\ue014", "\ue007", "\ue00c", "\ue004"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def family(store):
    torch.manual_seed(0)
    base = {f"layer.{n}.weight": torch.randn(64, 64) for n in range(12)}
    save(store, "net.base", base, 1, meta={"license": "MIT"})
    save(store, "net.tuned", {**base, "layer.10.weight": base["layer.10.weight"] * 1.5}, 2)
    save(store, "net.full", {name: tensor + 1 for name, tensor in base.items()}, 3)
    head = {f"encoder.{name}": tensor for name, tensor in base.items()}
    save(store, "classifier.head", {**head, "head.weight": torch.ones(2, 2)}, 4)
    return store


@pytest.fixture
def show(browser, tmp_path):
    """Write a report, open it, and check at the end that the page was quiet."""
    opened = []

    def show(found, width=1400, theme="light"):
        path = tmp_path / "report.html"
        found.write(path)
        browser.theme(theme)
        browser.resize(width, 1000)
        browser.complaints(), browser.requests()
        browser.open(path)
        opened.append(path.as_uri())
        browser.run(SETTLED)
        return browser

    yield show
    assert browser.complaints() == []
    assert browser.requests()[-1:] == opened[-1:]


def texts(browser, selector):
    return browser.run(
        "return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)",
        selector,
    )


def values(browser, selector, name):
    return browser.run(
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(node => node.dataset[arguments[1]])",
        selector,
        name,
    )


def focus(browser, selector):
    """Focus an element as the keyboard does."""
    browser.press(TAB)
    browser.run("document.querySelector(arguments[0]).focus({focusVisible: true})", selector)


def damaged(store):
    """Damage a tensor and a state object of a store."""
    digests = [t.digest for t in describe(store, key("net.tuned")).tensors]
    for digest in (digests[2], store.digest(key("net.full"))):  # the tensor that it changed
        path = store.folder / layout.object_path(digest)
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    return report(store, findings=verify(store).findings)


def hostile(store):
    other = LocalStateStore(store.folder.with_name("hostile"))
    hostile_store(other)
    return report(other)


def one(store):
    del store
    memory = MemoryStateStore()
    memory.save_state_dict({"w": torch.ones(3)}, key("net.one"))
    return report(memory)


KINDS = {
    "a family": report,
    "no values": lambda store: report(store, values=False),
    "some states": lambda store: report(store, [key("net.tuned"), key("classifier.head")]),
    "damaged": damaged,
    "hostile": hostile,
    "one state": one,
    "empty": lambda store: report(MemoryStateStore()),
    "thousands of layers": lambda store: large_report(3, 4000),
}


def axe() -> str:
    """The text of axe-core, out of a package that carries it."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core, which `make browser` installs")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_from_disk_without_a_request_or_complaint(browser, show, family, kind):
    for theme, width in (("light", 1400), ("dark", 400)):
        show(KINDS[kind](family), width, theme)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), width
        assert all(texts(browser, "h1, h2, #foot"))
        asked = browser.requests()
        assert len(asked) == 1
        assert asked[0].startswith("file://")
    show(KINDS[kind](family))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_readers_of_screens_find_their_way(browser, show, family, kind, theme):
    script = axe()
    for width in (1400, 400):
        show(KINDS[kind](family), width, theme)
        browser.run("document.querySelectorAll('#lines .row')[1]?.click()")
        browser.run(script)
        found = browser.run(
            "return axe.run().then(result => result.violations.map(one => "
            "[one.id, ...one.nodes.map(node => node.html.slice(0, 200))]))"
        )
        assert found == []


def test_its_figures_are_those_of_the_json(browser, family, tmp_path):
    shell = Shell(tmp_path, {})
    told = shell.json("report", family.folder, "-o", "report.html")
    browser.resize(1400, 1000)
    browser.open(tmp_path / "report.html")
    browser.run(SETTLED)
    states = {state["key"]: state for state in told["usage"]["states"]}
    keys = values(browser, "#table tbody tr", "key")
    assert sorted(keys) == sorted(states)
    for name in ("bytes", "own", "shared"):
        found = values(browser, f"#table td[data-{name}]", name)
        assert list(map(int, found)) == [states[k][name] for k in keys]
    marks = {s["key"]: s["marks"] for part in told["architectures"] for s in part["states"]}
    changed = values(browser, "#table td[data-changed]", "changed")
    assert list(map(int, changed)) == [marks[k].count("~") for k in keys]
    parts = sum(map(int, values(browser, ".tile", "bytes")))
    assert parts == told["usage"]["bytes"] + told["usage"]["unnamed"] + told["usage"]["trash"]
    assert int(values(browser, "#figures dd", "bytes")[0]) == told["usage"]["bytes"]
    links = sorted(int(n) for n in values(browser, "#lines path", "bytes"))
    assert links == sorted(link["bytes"] for link in told["links"])
    tuned = next(
        s for part in told["architectures"] for s in part["states"] if s["key"].endswith("tuned")
    )
    browser.run("document.querySelector('tr[data-key=\"pytorch.net.tuned\"]').click()")
    shown = values(browser, "#changes [data-relative]", "relative")
    assert list(map(float, shown)) == [change["relative"] for change in tuned["changes"]] == [0.5]
    assert to_json(usage(family)) == told["usage"]


def highlighted(browser):
    """What each view says is selected."""
    return (
        texts(browser, "#details .title"),
        values(browser, "#table tr.chosen", "key"),
        [text.split("\n")[0] for text in texts(browser, "#lines .row.chosen .name")],
        len(texts(browser, ".tile.chosen")),
    )


def test_a_click_highlights_a_state_in_all_views(browser, show, family):
    show(report(family))
    assert highlighted(browser) == ([], [], [], 0)
    name = "pytorch.net.tuned"
    clicks = (
        f"document.querySelector('tr[data-key=\"{name}\"] .key').click()",
        "[...document.querySelectorAll('.tile')].find(t => /tuned/.test(t.textContent)).click()",
        "[...document.querySelectorAll('.row')].find(t => /tuned/.test(t.textContent)).click()",
    )
    for click in clicks:
        browser.run(click)
        assert highlighted(browser) == ([name], [name], [name], 1), click
        browser.press(ESCAPE)
        assert highlighted(browser) == ([], [], [], 0)


def test_the_heat_map_is_used_by_keyboard(browser, show, family):
    show(report(family))
    focus(browser, "#heat")
    said = browser.run("return document.getElementById('heat-said').textContent")
    assert said.startswith("layer.0.weight. F32 64 x 64, 16.4 kB. pytorch.net.base: first state")
    browser.press(ARROW_RIGHT, *[ARROW_DOWN] * 10)
    said = browser.run("return document.getElementById('heat-said').textContent")
    assert "layer.10.weight" in said
    assert "pytorch.net.tuned: relative change 0.5" in said
    assert "4,096 elements differ" in said
    browser.press(ENTER)
    assert texts(browser, "#details .title") == ["pytorch.net.tuned"]


def test_cells_have_the_colour_of_what_changed(browser, show, family):
    """Grey where the base has the same, and other colours for a little and for much."""
    show(report(family))
    look = """
        const heat = document.getElementById("heat");
        const canvas = document.getElementById("canvas");
        const { width, height } = canvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
        const { left, top } = heat.getBoundingClientRect();
        const found = {};
        const lookAt = (x, y) => {
          const where = { clientX: left + x, clientY: top + y };
          heat.dispatchEvent(new PointerEvent("pointermove", where));
          const tip = document.getElementById("tip");  // it says which cell is there
          if (tip.hidden) return;
          const state = tip.textContent.includes("net.tuned:") ? "tuned" : "full";
          if (!tip.textContent.includes(`net.${state}:`)) return;
          const at = 4 * (y * width + x);
          const name = `${tip.firstChild.textContent} ${state}`;
          (found[name] ??= []).push([...data.slice(at, at + 3)]);
        };
        for (let x = 0; x < width; x += 16) for (let y = 2; y < height; y += 5) lookAt(x, y);
        // The one in the middle: not the gap between cells.
        return arguments[0].map((name) => found[name][Math.floor(found[name].length / 2)]);
    """
    cells = ["layer.3.weight tuned", "layer.10.weight tuned", "layer.10.weight full"]
    equal, changed, much = browser.run(look, cells)
    assert max(equal) - min(equal) < 8  # grey
    assert max(changed) - min(changed) > 40
    assert much != changed
    assert sum(much) < sum(changed)  # darker in the light theme


def test_states_are_found_and_sorted(browser, show, family):
    show(report(family))
    browser.run("const s = document.getElementById('search'); s.value = 'NET tun'; s.oninput()")
    assert texts(browser, "#table tbody tr:not([hidden]) .key") == ["pytorch.net.tuned"]
    assert texts(browser, "#matching") == ["1 of 4 states"]
    assert len(texts(browser, ".row.dim")) == 3
    browser.run("const s = document.getElementById('search'); s.value = ''; s.oninput()")
    own = {str(state.key): state.own for state in usage(family).states}
    for descending in (True, False):
        browser.run("document.querySelectorAll('#table th button')[2].click()")
        keys = values(browser, "#table tbody tr", "key")
        assert [own[k] for k in keys] == sorted(own.values(), reverse=descending)
        word = "descending" if descending else "ascending"
        assert len(texts(browser, f'#table th[aria-sort="{word}"]')) == 1


def test_layers_are_found_and_those_that_changed_alone(browser, show, family):
    show(report(family, [key("net.base"), key("net.tuned")]))
    rows = "return document.getElementById('heat').getAttribute('aria-label')"
    assert "12 rows of layers against 2 states" in browser.run(rows)
    browser.click("#touched")
    assert "1 row of layers against 2 states" in browser.run(rows)
    browser.click("#touched")
    browser.run("const s = document.getElementById('layer-search'); s.value='layer.1'; s.oninput()")
    assert "3 rows" in browser.run(rows)


def test_hostile_texts_are_shown_and_do_nothing(browser, show, family):
    show(hostile(family))
    browser.run("document.querySelectorAll('#lines .row')[1].click()")
    assert browser.run("return document.title") != "taken"
    assert (
        browser.run("return document.querySelectorAll('img, #details b, #details i i').length") == 0
    )
    assert any("</script><img" in text for text in texts(browser, "#details .name"))
    assert "<i>" in "".join(texts(browser, "#details dt"))
    assert all(text.isprintable() for text in texts(browser, "#details dd, #details .name"))


def test_findings_and_damage_are_told(browser, show, family):
    show(damaged(family))
    told = " ".join(texts(browser, ".finding"))
    assert re.search(r"cannot be read: pytorch\.net\.full", told)
    assert "damaged: tensor 'layer.10.weight' of pytorch.net.tuned" in told
    assert "found while tensors were compared: layer.10.weight" in told


def test_the_theme_can_be_chosen(browser, show, family):
    show(report(family), theme="light")
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    browser.click("#theme")
    dark = browser.run(colour)
    browser.click("#theme")
    assert browser.run(colour) == light != dark
    assert show(report(family), theme="dark").run(colour) == dark


def test_paper_is_light(browser, show, family):
    show(report(family), theme="light")
    browser.run("document.querySelectorAll('#lines .row')[1].click()")
    colours = """return [getComputedStyle(document.body).color,
        getComputedStyle(document.querySelector("#changes i")).backgroundColor]"""
    light = browser.run(colours)
    browser.click("#theme")
    assert all(one != other for one, other in zip(browser.run(colours), light, strict=True))
    browser.devtools("Emulation.setEmulatedMedia", media="print")
    browser.run(SETTLED)
    assert browser.run(colours) == light
    browser.devtools("Emulation.setEmulatedMedia", media="")


def test_two_hundred_states_of_five_hundred_tensors_are_shown(browser, show):
    show(large_report(200, 500))
    assert len(texts(browser, "#lines .row")) == 200
    assert "50 rows of layers against 200 states" in browser.run(
        "return document.getElementById('heat').getAttribute('aria-label')"
    )
    browser.run("document.querySelectorAll('#lines .row')[150].click()")
    assert texts(browser, "#details .title") == ["pytorch.large.run0150"]
    assert "500 of 500 tensors changed" in " ".join(texts(browser, "#details h3"))


def test_in_a_notebooks_frame_it_works_as_well(browser, family, tmp_path):
    page = tmp_path / "notebook.html"
    page.write_text(f"<!doctype html><title>x</title>{family.report()._repr_html_()}")
    browser.resize(1200, 900)
    browser.complaints(), browser.requests()
    browser.open(page)
    browser.run(SETTLED)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith(("file://", "about:"))] == []
