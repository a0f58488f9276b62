"""How fast the page of a report is: ``python -m benchmarks.browser``.

A made-up report of 200 states with 500 tensors each, all of which changed, in a headless Chromium.
Opening it: until all is shown. What a user does: until the next picture is drawn. Medians.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Figure, Figures, arguments_parser, report, show
from tests.support.browser import Browser, open_browser
from tests.support.reports import large_report

STATES, TENSORS = 200, 500
GOAL = 1000.0
DOES = {
    "select a state": "document.querySelectorAll('#lines .row')[100 + turn % 2].click()",
    "find states": "const box = document.getElementById('search');"
    "box.value = turn % 2 ? 'run01' : ''; box.oninput()",
    "sort the table": "document.querySelectorAll('#table th button')[1].click()",
    "rows by tensor, or by block": "const box = document.getElementById('level');"
    "box.value = turn % 2 ? 'tensor' : 'block'; box.onchange()",
    "scroll the heat map": "document.getElementById('heat').scrollTop = 100 * (turn % 2)",
}
"""What a user does: what runs then, in the turn with a number."""
_DRAWN = """
    const turn = arguments[0];
    const began = performance.now();
    {WORK};
    return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
        () => done(performance.now() - began))));
"""
_OPENED = "return performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    """Open the page, use it, measure."""
    parser = arguments_parser(__doc__ or "")
    parser.set_defaults(rounds=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, open_browser() as browser:
        page = Path(name) / "report.html"
        large_report(STATES, TENSORS).write(page)
        browser.resize(1400, 1000)
        figures = Figures(
            f"a report of {STATES} states with {TENSORS} tensors each in Chromium",
            "ms",
            tuple(_figures(browser, page, arguments.rounds)),
        )
        report([show(figures)], arguments.json)


def _figures(browser: Browser, page: Path, rounds: int) -> Iterator[Figure]:
    opened = []
    for _ in range(rounds):
        browser.open(page)
        opened.append(float(browser.run(_OPENED)))
    yield Figure("open it", statistics.median(opened), GOAL)
    for what, work in DOES.items():
        script = _DRAWN.replace("{WORK}", work)
        times = [float(browser.run(script, turn)) for turn in range(rounds)]
        yield Figure(what, statistics.median(times), GOAL)


if __name__ == "__main__":
    main()
