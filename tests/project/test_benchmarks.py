"""The benchmarks' own machinery: what is drawn, and what a regression check lets pass."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from itertools import cycle
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import encoded, encoded_peers, growth, regression, training
from benchmarks.peers import PEERS, Dvc
from benchmarks.svg import Series, line_chart

# What the tools that mlstate is compared with do, where they are installed.


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_a_tool_restores_what_was_added(tmp_path, peer):
    if shutil.which(peer.program) is None:
        pytest.skip(f"{peer.package} is not installed: python -m benchmarks.checkpoints does it")
    tool = peer(tmp_path / "tool")
    file = tool.repository / "model.safetensors" if peer is Dvc else tmp_path / "model.safetensors"
    random = Random(0)
    versions = [random.randbytes(300_000) for _ in range(2)]
    versions.append(versions[1][:200_000] + random.randbytes(100_000))
    for number, content in enumerate(versions):
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        tool.add(file, number)
    for number in (2, 1):
        tool.clear()
        tool.restore(number)
        [restored] = [file] if peer is Dvc else tool.out.rglob("model.safetensors")
        assert restored.read_bytes() == versions[number]
    assert tool.disk() > 500_000
    assert tool.version()[0].isdigit()


# Charts.

SVG = "{http://www.w3.org/2000/svg}"

values = st.floats(min_value=1e-4, max_value=1e7)
lines = st.lists(
    st.builds(
        Series, st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        st.lists(st.tuples(values, values), min_size=1, max_size=5).map(tuple),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


def test_the_committed_charts_are_those_of_the_committed_results():
    drawn = growth.drawn(growth.RESULTS)
    committed = {path.name: path.read_text() for path in growth.IMAGES.glob("growth-*.svg")}
    assert committed == drawn


@given(lines, st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_a_chart_is_well_formed_and_has_every_point_within_it(series, title):
    text = line_chart(title, "x & more", "y < z", series)
    assert text == line_chart(title, "x & more", "y < z", series)
    root = ET.fromstring(text)
    assert (root.find(f"{SVG}title").text or "") == title
    _, _, wide, high = map(float, root.get("viewBox").split())
    drawn = [line.get("points") for line in root.iter(f"{SVG}polyline")]
    assert len(drawn) == 2 * len(series)  # the legend has one of each, too
    for points in drawn:
        for point in points.split():
            x, y = map(float, point.split(","))
            assert 0 < x < wide
            assert 0 < y < high


def test_what_grows_evenly_is_a_straight_line():
    series = [Series("even", tuple((x, 3.0 * x) for x in (1.0, 10.0, 100.0)))]
    root = ET.fromstring(line_chart("t", "x", "y", series))
    line = list(root.iter(f"{SVG}polyline"))[-1].get("points")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in line.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)


@pytest.mark.parametrize(
    "series",
    [[], [Series("none", ())], [Series("zero", ((1.0, 0.0),))], [Series("many", ((1, 1),))] * 7],
    ids=["no line", "no point", "zero", "too many"],
)
def test_what_cannot_be_drawn_is_refused(series):
    with pytest.raises(ValueError, match="one to six lines"):
        line_chart("t", "x", "y", series)


# Trainings whose checkpoints are encoded.


def test_a_training_is_done_once_and_as_far_as_it_is_asked_for(tmp_path, monkeypatch):
    asked = []

    def states(steps):
        asked.append(steps)
        return ({"weight": torch.full((3,), float(step))} for step in steps)

    monkeypatch.setitem(training.RUNS, "tiny", training.Run((10, 20, 30), states))
    assert training.done("tiny", tmp_path) == []
    for most in (20, 25, None, None, 10):
        training.do("tiny", tmp_path, most)
    assert asked == [(10, 20), (10, 20, 30)]
    assert training.done("tiny", tmp_path) == [10, 20, 30]
    assert training.checkpoint("tiny", 20, tmp_path)["weight"].tolist() == [20.0] * 3


def test_a_training_is_the_same_each_time_and_changes_every_weight(monkeypatch):
    monkeypatch.setattr(training, "SEQUENCES", 2)
    monkeypatch.setattr(training, "BYTES", 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first, again = ([*training.RUNS["conv"].states((1, 2))] for _ in range(2))
    torch.set_num_threads(threads)
    for name, value in first[1].items():
        assert torch.equal(value, again[1][name])
        assert not torch.equal(value, first[0][name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_way_to_keep_a_tensor_is_measured(dtype):
    weights = torch.randn(300_000, generator=torch.Generator().manual_seed(1))
    near = (weights * 1.001).to(dtype)
    size, encoding, decoding = encoded_peers.peers("title", near, weights.to(dtype), 1)
    shares = {row.name: row.value for row in size.rows}
    assert shares["mlstate, 1 thread"] == shares["mlstate, 2 threads"]
    assert shares["mlstate, 1 thread"] < shares["zstd -3 --patch-from"] < 1
    assert all(row.value > 0 for row in (*encoding.rows, *decoding.rows))
    case = encoded.Case("case", {"layer": near, "embedding": near}, {"layer": weights.to(dtype)})
    assert encoded.encoded_size(case.layers) == pytest.approx(shares["mlstate, 1 thread"], abs=0.01)


# The regression check.

RECORDED = {"load": 1.1, "save": 0.8}


@pytest.mark.parametrize(
    ("factor", "slower"), [(0.3, []), (1.0, []), (1.4, []), (2.0, ["load"]), (9.0, ["load"])]
)
def test_a_factor_of_two_is_too_slow_and_noise_is_not(factor, slower):
    ratios = {"load": RECORDED["load"] * factor, "save": 0.8, "never recorded": 50.0}
    assert regression.too_slow(ratios, RECORDED) == slower


def job(name: str, *times: float, calls: list[str] | None = None) -> regression.Job:
    """A job that takes these times in turn, beside plain work that takes a second."""
    turns = cycle(times)

    def run() -> float:
        if calls is not None:
            calls.append(name)
        return next(turns)

    return regression.Job(name, run, lambda: 1.0)


def test_the_least_times_are_compared_so_that_a_busy_moment_does_not_count():
    assert regression.measure([job("load", 7.0, 9.0, 1.1, 40.0)], rounds=3) == {"load": 1.1}


def test_what_seems_too_slow_is_measured_once_more_and_nothing_else_is():
    calls: list[str] = []
    jobs = [job("load", 1.2, calls=calls), job("save", 0.7, calls=calls)]
    again = regression.second_look({"load": 5.0, "save": 0.9}, RECORDED, jobs, 3)
    assert again == {"load": 1.2, "save": 0.9}
    assert set(calls) == {"load"}


def test_what_is_slow_again_stays_too_slow():
    jobs = [job("load", 2.3)]
    again = regression.second_look({"load": 2.4, "save": 0.8}, RECORDED, jobs, 3)
    assert regression.too_slow(again, RECORDED) == ["load"]


def test_ratios_are_recorded_of_all_that_is_measured():
    names = set(regression.recorded())
    assert {"load, mapped", "load, copied", "save", "save, nothing changed", "fetch"} <= names
    assert json.loads(regression.RECORDED.read_text())["machine"]["cores"]
    assert 1 < regression.MARGIN < 2


def test_the_page_about_performance_has_the_committed_results():
    from benchmarks.page import PAGE, page

    assert page(PAGE.read_text()) == PAGE.read_text()


def test_what_the_phases_are_measured_by_is_there():
    from benchmarks.phases import PHASES

    for functions in PHASES.values():
        for owner, name in functions:
            assert callable(getattr(owner, name))


@pytest.mark.parametrize(
    ("frame", "kind"),
    [
        ("Hasher.update (mlstate/digests.py:63)", "hash"),
        ("_copy_bytes.<locals>.copy (mlstate/tensors/put.py:92)", "copy into the model"),
        ("_write_block (mlstate/objects/writing.py:130)", "write"),
        ("_sync (mlstate/objects/newfile.py:180)", "flush"),
        ("SocketIO.readinto (socket.py:706)", "receive"),
        ("Module.__setattr__ (torch/nn/modules/module.py:1971)", "torch"),
        ("parse (mlstate/format/state_object.py:190)", "mlstate's own Python"),
        ("decode (json/decoder.py:337)", "other Python"),
    ],
)
def test_a_profile_names_the_kind_of_work_by_the_innermost_function(frame, kind):
    from benchmarks.profiles import _shares

    assert _shares(f"main (x.py:1);{frame} 3\n") == {kind: 1}


def test_a_profile_leaves_out_what_is_done_between_two_runs():
    from benchmarks.profiles import _shares

    seen = "main (x.py:1);Bench.clear (benchmarks/fetch.py:9);unlink (a.py:2) 7\nmain (x.py:1) 1\n"
    assert _shares(seen) == {"other Python": 1}
