"""Reports that are printed, and shown in a notebook."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from mlstate import (
    LocalStateStore,
    MemoryStateStore,
    StateKey,
    adopt_all,
    copy,
    describe,
    diagnose,
    diff,
    usage,
    verify,
)

A, B = StateKey.parse("pytorch.net.a"), StateKey.parse("pytorch.net.b")
ODD = "layer<b>&\x1b[31m.weight"


@pytest.fixture
def store(tmp_path):
    store = LocalStateStore(tmp_path / "store")
    base = {"w": torch.ones(9000), ODD: torch.ones(2), "old": torch.ones(3)}
    store.save_state_dict(base, A)
    store.save_state_dict({"w": torch.ones(9000) + 1, ODD: torch.ones(2), "new": torch.ones(4)}, B)
    return store


def test_each_report_is_a_table_of_what_it_knows(store, tmp_path):
    (tmp_path / "empty").mkdir()
    reports = {
        "usage": (usage(store), [str(A), str(B), "36.0 kB", "for 2 states"]),
        "diff": (diff((store, A), (store, B)), ["w", "changed", "9000", "removed", "added"]),
        "describe": (describe(store, A), ["F32", "9000", str(store.digest(A))]),
        "verify": (verify(store), ["all is well", "2 states checked"]),
        "copy": (copy(store, MemoryStateStore()), [str(A), "copied"]),
        "diagnose": (diagnose(store, reach=False), ["cache", "problems"]),
    }
    for name, (report, words) in reports.items():
        text = str(report)
        assert all(word in text for word in words), (name, text)
        assert "\x1b" not in text
        assert repr(report).startswith(f"{type(report).__name__}(")
        document = report._repr_html_()
        parsed = ET.fromstring(f"<div>{document}</div>")
        said = "".join(parsed.itertext())
        assert all(word in said for word in words), (name, document)
        assert "\x1b" not in document
        assert "<b>" not in document


def test_findings_are_rows(store):
    largest = max((store.folder / "objects").rglob("*/*"), key=lambda path: path.stat().st_size)
    largest.unlink()
    report = verify(store)
    assert "missing" in str(report)
    assert "not all is well" in str(report)
    assert str(largest) in report._repr_html_()


def test_adopted_weights_are_rows(store, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    torch.save({"w": torch.ones(3)}, folder / "x.pt")
    text = str(adopt_all(folder, store, "pytorch.net.{stem}"))
    assert "x.pt" in text
    assert "stored" in text
