"""Make the picture of a report in the README: ``python scripts/make_report_picture.py``.

Runs the quickstart in a folder of its own, adds fine-tunes of other layers, writes a report, and
takes a picture of it with a headless Chromium: ``apt-get install chromium chromium-driver``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mlstate import LocalStateStore, StateKey, report  # noqa: E402
from tests.support.browser import Browser, open_browser  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1400, 1180
BASE = StateKey.parse("pytorch.bert-l6-h384.all-MiniLM-L6-v2")
FINE_TUNES = {
    "2026-01-12-top-two": (("layer.4.", "layer.5."), 0.01),
    "2026-01-13-attention": (("attention",), 0.0003),
    "2026-01-14-embeddings": (("embeddings.word",), 0.03),
    "2026-01-15-norms": (("LayerNorm",), 0.2),
}
"""Training id -> the parts of names that are changed, and by how much, relative to their norm."""
CHOSEN = "2026-01-12-top-two"


def main() -> None:
    """Make the picture."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {**os.environ, "MLSTATE_CACHE": str(folder / "cache")}
        script = str(ROOT / "scripts" / "quickstart.py")
        quiet = subprocess.DEVNULL
        subprocess.run(
            [sys.executable, script], cwd=folder, env=environment, stdout=quiet, check=True
        )
        os.environ["MLSTATE_CACHE"] = environment["MLSTATE_CACHE"]
        os.chdir(folder)  # the page names the store as one gives it
        store = LocalStateStore("quickstart-store")
        fine_tune(store)
        page = folder / "report.html"
        report(store).write(page)
        with open_browser() as browser:
            PICTURE.write_bytes(picture(browser, page))


def fine_tune(store: LocalStateStore) -> None:
    """Save a state for each of `FINE_TUNES`: some tensors with noise of a size."""
    torch.manual_seed(0)
    base: Mapping[str, torch.Tensor] = store.load_state_dict(BASE)
    for training_id, (parts, size) in FINE_TUNES.items():
        tuned = {
            name: noisy(tensor, size) if any(part in name for part in parts) else tensor
            for name, tensor in base.items()
        }
        store.save_state_dict(tuned, StateKey(BASE.state_type, training_id))


def noisy(tensor: torch.Tensor, size: float) -> torch.Tensor:
    """A tensor with noise of a relative size, which varies from tensor to tensor."""
    noise = torch.randn_like(tensor)
    scale = size * 10 ** float(torch.randn(()) / 3)
    tuned: torch.Tensor = tensor + noise * (scale * tensor.norm() / noise.norm())
    return tuned


def picture(browser: Browser, page: Path) -> bytes:
    """The upper part of the page with a state selected, as PNG."""
    browser.theme("light")
    browser.devtools("Emulation.setScrollbarsHidden", hidden=True)
    browser.resize(WIDTH, HEIGHT)
    browser.open(page)
    browser.run(
        "[...document.querySelectorAll('#lines .row')]"
        ".find((row) => row.textContent.includes(arguments[0])).click();"
        "document.activeElement.blur();"
        "return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))",
        CHOSEN,
    )
    return browser.picture()


if __name__ == "__main__":
    main()
