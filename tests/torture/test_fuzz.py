"""Fuzzing: a few inputs for each reader, the same each time, and the rules themselves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.fuzz import check
from tests.torture.fuzz.mutate import corpus_of
from tests.torture.fuzz.targets import TARGETS

HERE = Path(__file__).parents[2]
INPUTS = 60


def child(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        timeout=300,
    )


def test_every_reader_refuses_what_it_cannot_read_by_a_typed_error(tmp_path):
    done = child(
        *("-m", "tests.torture.fuzz.mutate", "--seed", "1", "--inputs", str(INPUTS)),
        *("--failures", str(tmp_path / "failures")),
    )
    assert done.returncode == 0, done.stderr[:4000]
    said = json.loads(done.stdout)
    assert {name: one["inputs"] for name, one in said["targets"].items()} == dict.fromkeys(
        TARGETS, INPUTS
    )
    assert sum(one["refused"] for one in said["targets"].values()) > INPUTS * len(TARGETS) / 2


def test_every_target_has_a_corpus_and_takes_some_of_it(monkeypatch, tmp_path):
    class NoRules:
        def check(self):
            pass

    monkeypatch.setattr("tests.torture.fuzz.targets._FOLDER", tmp_path)
    for name in ("MLSTATE_CONFIG", "NETRC", "XDG_CONFIG_HOME", "MLSTATE_FUZZED"):
        monkeypatch.setenv(name, "")  # so that what targets set is taken back
    for target in TARGETS:
        assert corpus_of(target), target
        if target in ("address", "name"):
            continue  # several readers, none of which takes what the others do
        taken = [not check.try_input(target, data, NoRules()) for data in corpus_of(target)]
        assert any(taken), target


MISBEHAVE = """
import sys, time
from tests.torture.fuzz import check, mutate, targets
def fail(data): raise ValueError("no type of ours")
def wait(data): time.sleep(60)
def hoard(data): b"x" * (700 << 20)
check.SECONDS = 0.2 if sys.argv[1] == 'wait' else 60
targets.TARGETS["manifest"] = {"fail": fail, "wait": wait, "hoard": hoard}[sys.argv[1]]
rules = check.Rules()
try:
    check.try_input("manifest", b"", rules)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("fail", "ValueError no type of ours"),
        ("wait", "AssertionError more than 0.2 s"),
        ("hoard", "AssertionError more than 512 MiB of memory"),
    ],
)
def test_what_breaks_the_rules_is_found_out(way, said):
    done = child("-c", MISBEHAVE, way)
    assert done.stdout.strip() == said, done.stderr
