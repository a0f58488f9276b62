"""Manifests are checked before others get them: by their text, and at their mirrors."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from mlstate import LocalStateStore, StateKey, check_manifests
from mlstate.errors import ManifestNotFoundError
from mlstate.format import layout
from mlstate.manifests.folder import is_manifest_text

KEY = StateKey.parse("pytorch.net.a")
D = "1" * 64
DATA = save({"w": torch.ones(100, 100)})
SHARD = save({"v": torch.ones(10, 10)})
INDEX = b'{"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}'


@pytest.fixture
def write(tmp_path):
    def write(body: str, *, digest: str | None = D, size: int | None = 40_000, top: str = ""):
        path = tmp_path / "weights.toml"
        pinned = f'blake3 = "{digest}"\n' if digest else ""
        sized = f"size = {size}\n" if size is not None else ""
        path.write_text(f'version = 1\n{top}[states."{KEY}"]\n{pinned}{sized}{body}\n')
        return path

    return write


def found(path, **options) -> list[tuple[str, str | None]]:
    report = check_manifests([path], **options)
    assert report.ok == (not report.findings)
    return [(finding.message, finding.found) for finding in report.findings]


def test_toml_files_that_are_no_manifests_are_named(tmp_path):
    (tmp_path / "a.toml").write_text("version = 1")
    (tmp_path / "b.toml").write_text("x = [")
    report = check_manifests([tmp_path])
    assert (report.ok, report.passed_over) == (True, (str(tmp_path / "b.toml"),))
    (tmp_path / "b.toml").write_text('[states.pytorch.net.a]\nmirrors = ["a.safetensors"]')
    (finding,) = check_manifests([tmp_path]).findings
    assert (finding.key, finding.found) == (None, None)
    assert "version = 1" in finding.remedy


def test_a_manifest_that_is_well_is_well(write):
    report = check_manifests([write("")])
    assert (report.ok, report.states, report.asked) == (True, 1, None)


def test_what_is_not_pinned_is_a_finding_with_a_remedy_that_can_be_typed(write):
    path = write('mirrors = ["https://h.invalid/x"]', digest=None)
    (finding,) = check_manifests([path]).findings
    assert (finding.path, finding.key) == (str(path), str(KEY))
    assert f"mlstate lock {path} {KEY}" in finding.remedy.shell
    assert check_manifests([path], allow_unpinned=True).ok


def test_a_misspelt_name_is_a_finding(write):
    (finding,) = check_manifests([write(f'blak3 = "{D}"', digest=None)]).findings
    assert (finding.message, finding.remedy) == ("blak3 is no name of a manifest", "call it blake3")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("version = 1\n= 2\n", 2, "not valid TOML"),
        ("version = 1\n[states.x]\n", 2, "not a state key"),
        ("version = 1\n<<<<<<< ours\n=======\n>>>>>>> theirs\n", 2, "marks of a conflict"),
    ],
)
def test_what_cannot_be_read_is_a_finding_with_its_line(tmp_path, text, line, says):
    path = tmp_path / "weights.toml"
    path.write_text(text)
    (finding,) = check_manifests([path]).findings
    assert finding.line == line
    assert says in finding.message
    assert f"{path}, line {line}" in finding.text()


def test_files_of_other_tools_are_passed_over_when_that_is_asked_for(tmp_path):
    other, broken = tmp_path / "pyproject.toml", tmp_path / "weights.toml"
    other.write_text('[project]\nname = "x"\nversion = "1"\n')
    broken.write_text(f'version = 1\n[states."{KEY}"]\nblake3 = 5\n')
    report = check_manifests([other, broken], pass_over=True)
    assert report.passed_over == (str(other),)
    assert [finding.path for finding in report.findings] == [str(broken)]
    # Of a folder, what is no manifest is none of it; what is named has to be one.
    assert [finding.path for finding in check_manifests([tmp_path]).findings] == [str(broken)]
    assert len(check_manifests([other, broken]).findings) == 2
    (tmp_path / "empty").mkdir()
    for nothing in ("none.toml", "empty"):
        with pytest.raises(ManifestNotFoundError):
            check_manifests([tmp_path / nothing], pass_over=True)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("version = 1\n", True),
        ('version = 1\nobjects = ["weights"]\n', True),
        ('version = 1\n[states."a.b.c"]\n', True),
        ('[states."a.b.c"]\nbroken', True),
        ('# top\nversion = 1 # v\nstates."a.b.c".size = 1\n', True),
        ('version = 1\n\n[[annotations]]\npath = "x"\n', False),  # REUSE.toml
        ('[project]\nversion = "1"\n', False),
        ("[tool.x]\nstates = 5\n", False),
        ("", False),
    ],
)
def test_manifests_are_told_from_other_files(text, is_one):
    assert is_manifest_text(text.encode()) is is_one


# Mirrors.


def test_each_file_of_a_mirror_is_asked_for_once_and_nothing_is_fetched(write, start_recording):
    files = {"one.safetensors": DATA, "two.safetensors": SHARD, "m.safetensors.index.json": INDEX}
    server = start_recording({**files, "config.json": b"{}"})
    body = f'mirrors = ["{server.url}/m.safetensors.index.json"]\n[states."{KEY}".files."c.json"]\n'
    path = write(body + f'blake3 = "{D}"\nmirrors = ["{server.url}/config.json"]')
    report = check_manifests([path], mirrors=True)
    assert report.ok, report.findings
    assert report.asked == 3
    assert sorted(record.name for record in server.requests) == sorted([*files, "config.json"])
    assert server.bytes_sent < len(INDEX) + 100


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('mirrors = ["{}/gone.safetensors"]', "404"),
        ('mirrors = ["{}/one.safetensors", "{}/gone.safetensors"]', "404"),
        ('mirrors = ["{}/one.safetensors?x"]\n[states."pytorch.net.a".files."c"]\nblake3 = "D"\n'
         'mirrors = ["{}/c"]', "404"),
        ('mirrors = ["{}/small.safetensors"]', "bytes"),
        ('mirrors = [{{url = "{}/one.safetensors", new = 1}}]', "unknown key new"),
        ('mirrors = ["near.safetensors"]', "No such file"),
        ('mirrors = ["{}/lacking.safetensors.index.json"]', "404"),
    ],
)  # fmt: skip
def test_a_mirror_that_lacks_what_it_is_named_for_is_a_finding(write, start_recording, body, says):
    index = INDEX.replace(b"two", b"gone")
    files = {"one.safetensors": DATA, "small.safetensors": SHARD}
    server = start_recording({**files, "lacking.safetensors.index.json": index})
    path = write(body.format(*[server.url] * body.count("{}")).replace('"D"', f'"{D}"'))
    (finding,) = check_manifests([path], mirrors=True).findings
    assert says in finding.text()
    assert finding.key == str(KEY)
    assert check_manifests([path]).ok


def test_object_mirrors_have_the_state_or_another_mirror_has(write, start_recording, tmp_path):
    store = LocalStateStore(tmp_path / "store")
    store.save_state_dict({"w": torch.ones(100, 100)}, KEY)
    digest = store.digest(KEY)
    place = layout.object_path(digest)
    server = start_recording({place: (store.folder / place).read_bytes(), "one": DATA})
    top = f'objects = ["{server.url}", "store", "{server.url}/elsewhere"]\n'
    assert check_manifests([write("", digest=digest, top=top)], mirrors=True).ok
    empty = f'objects = ["{server.url}/elsewhere"]\n'
    assert found(write("", digest=digest, top=empty), mirrors=True) != []
    own = f'mirrors = ["{server.url}/one"]'
    assert check_manifests([write(own, digest=digest, top=empty)], mirrors=True).ok


def test_a_state_without_a_mirror_is_told_and_offline_nothing_counts_as_asked(write):
    assert check_manifests([write("")], mirrors=True).unmirrored == (KEY,)
    path = write('mirrors = ["https://h.invalid/x"]')
    ((message, _),) = found(path, mirrors=True, offline=True)
    assert "may not be used" in message


def test_a_mirror_on_the_hub(write, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/model.safetensors").write_bytes(DATA)
    hub.add("org/net", tmp_path / "repo")
    assert check_manifests([write('mirrors = ["hf://org/net"]')], mirrors=True).ok
    assert found(write('mirrors = ["hf://org/net/gone.safetensors"]'), mirrors=True)
    assert found(write('mirrors = ["hf://org/none"]'), mirrors=True)
