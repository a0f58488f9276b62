"""Whose signature a store needs, as the user's config file says: nothing else can take it away."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlstate import LocalStateStore, Manifest, ManifestStore, Store
from mlstate.errors import FormatError, SignatureError
from mlstate.manifests.required import places_of, required_policy, state_signatures
from mlstate.stores import open_store

DIGEST = "1" * 64


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the table [signatures] of a config file."""
    path = tmp_path / "config" / "config.toml"
    path.parent.mkdir()
    monkeypatch.setenv("MLSTATE_CONFIG", str(path))
    return lambda text: path.write_text("[signatures]\n" + text) and path


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "repo" / "weights.toml"
    path.parent.mkdir()
    path.write_text(f'version = 1\n[states."p.net.a"]\nblake3 = "{DIGEST}"\n')
    return path


def said(*places):
    policy = required_policy(None, *places)
    return policy and (Path(policy.allowed_signers).name, policy.signer)


def test_without_a_word_none_is_needed(config, manifest, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delenv("MLSTATE_CONFIG")
        assert said("s3://lab/x") is None
    config("")
    assert said("s3://lab/x") is None
    assert ManifestStore(manifest).get_state_keys()


def test_the_config_file_says_it_for_all(config, manifest, tmp_path):
    path = config('allowed_signers = "signers"')
    policy = required_policy(None, "s3://lab/x")
    assert policy.allowed_signers == path.parent / "signers"  # relative to the config file
    (path.parent / "signers").write_text("")
    for opened in (
        lambda: ManifestStore(manifest),
        lambda: open_store(manifest),
        lambda: ManifestStore(manifest.parent),
    ):
        with pytest.raises(SignatureError):
            opened()
    assert ManifestStore(manifest, require_signature=False).get_state_keys()
    assert Store().get_state_keys()
    assert LocalStateStore(tmp_path / "store").catalog.requires_signature


def test_the_variable_counts_before_the_general_word(config, monkeypatch):
    config('allowed_signers = "signers"\n[signatures.stores]\n"s3://other" = "others"')
    monkeypatch.setenv("MLSTATE_REQUIRE_SIGNATURE", "/etc/signers-of-the-job")
    assert said("s3://lab/x") == ("signers-of-the-job", None)
    assert said("s3://other") == ("others", None)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("s3://lab/weights", ("signers", "alice")),
        ("s3://lab/weights/deeper", ("signers", "alice")),
        ("s3://lab/weights-of-others", ("signers", None)),
        ("s3://scratch/x/y", None),
        ("s3://scratch", None),
        ("s3://scratchpad", ("signers", None)),
        ("github:lab/models", ("others", None)),
        ("github:LAB/Models", ("others", None)),
        ("github:lab2/models", ("signers", None)),
        ("/data/shared/weights.toml", ("others", None)),
        ("/data/sharedx", ("signers", None)),
    ],
)
def test_the_first_pattern_that_fits_counts(config, place, found):
    config(
        'allowed_signers = "signers"\n'
        "[signatures.stores]\n"
        '"s3://lab/weights" = { signer = "alice" }\n'
        '"s3://scratch" = false\n'
        '"s3://scratch/x" = "others"\n'
        '"github:Lab/*" = { allowed_signers = "others" }\n'
        '"/data/shared/" = "others"\n'
    )
    assert said(place) == found


def test_a_link_takes_no_requirement_away(config, manifest, tmp_path):
    """A repository that is named by the config file has a link to where nothing is required."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights.toml").write_text(manifest.read_text())
    manifest.unlink()
    manifest.symlink_to(elsewhere / "weights.toml")
    path = config(f'[signatures.stores]\n"{manifest.parent}" = "signers"\n"{elsewhere}" = false\n')
    (path.parent / "signers").write_text("")
    with pytest.raises(SignatureError):
        ManifestStore(manifest)
    # And the other way round: the link lies where none is needed, and leads to where one is.
    config(f'[signatures.stores]\n"{manifest.parent}" = false\n"{elsewhere}" = "signers"\n')
    with pytest.raises(SignatureError):
        ManifestStore(manifest)
    config(f'[signatures.stores]\n"{manifest.parent}" = false\n"{elsewhere}" = false\n')
    assert ManifestStore(manifest).get_state_keys()


def test_what_is_said_of_a_file_holds_where_its_folder_is_opened(config, manifest, tmp_path):
    path = config(f'[signatures.stores]\n"{manifest}" = "signers"\n')
    (path.parent / "signers").write_text("")
    with pytest.raises(SignatureError):
        ManifestStore(manifest.parent)
    elsewhere = tmp_path / "elsewhere"  # has a link to it
    elsewhere.mkdir()
    (elsewhere / "more.toml").symlink_to(manifest)
    with pytest.raises(SignatureError):
        ManifestStore(elsewhere)
    manifest.rename(manifest.with_name("other.toml"))
    assert ManifestStore(manifest.parent).get_state_keys()


def test_what_was_read_already_is_refused_by_where_it_was_read(config, manifest):
    path = config(f'[signatures.stores]\n"{manifest.parent}" = "signers"\n')
    (path.parent / "signers").write_text("")
    with pytest.raises(SignatureError, match="read or made already"):
        ManifestStore(Manifest.read(manifest))
    config(f'[signatures.stores]\n"{manifest.parent}/more" = "signers"\n')
    assert ManifestStore(Manifest.read(manifest)).get_state_keys()


def test_what_a_repository_brings_along_is_not_asked(config, manifest, monkeypatch):
    path = config('allowed_signers = "signers"')
    (path.parent / "signers").write_text("")
    monkeypatch.chdir(manifest.parent)
    for name in ("config.toml", "mlstate.toml", ".mlstate.toml", "pyproject.toml"):
        Path(name).write_text("[signatures.stores]\n'*' = false\n[tool.mlstate.signatures]\n")
    manifest.write_text("require_signature = false\n" + manifest.read_text())
    with pytest.raises(SignatureError):
        ManifestStore("weights.toml")


@pytest.mark.parametrize(
    "text",
    [
        'alowed_signers = "signers"',
        "allowed_signers = 1",
        'allowed_signers = ""',
        "stores = 1",
        "[signatures.stores]\n'*' = true",
        "[signatures.stores]\n'*' = ''",
        "[signatures.stores]\n'*' = { signer = 'alice' }",
        "[signatures.stores]\n'*' = { allowed_signers = 'x', signers = 'alice' }",
        "[signatures.stores]\n'*' = { allowed_signers = 'x', signer = 1 }",
        "[signatures.stores]\n'*' = {}",
        "nonsense",
    ],
)
def test_what_makes_no_sense_is_no_permission(config, manifest, tmp_path, text):
    config(text)
    for opened in (lambda: ManifestStore(manifest), lambda: LocalStateStore(tmp_path / "store")):
        with pytest.raises(FormatError, match="config file"):
            opened()


def test_a_table_that_is_none_and_a_file_that_is_missing(config, manifest, monkeypatch, tmp_path):
    config("").write_text("signatures = 1")
    with pytest.raises(FormatError, match="config file"):
        ManifestStore(manifest)
    monkeypatch.setenv("MLSTATE_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(FormatError, match="not there"):
        ManifestStore(manifest)


@pytest.fixture
def home():
    """A folder outside of the test's own, which only its user may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_config_file_that_may_not_be_read_is_no_permission(home):
    """But a folder that may not be looked into is another user's, and says nothing to this one."""
    (home / "mlstate").mkdir(parents=True)
    (home / "mlstate" / "config.toml").write_text("")
    (home / "mlstate" / "config.toml").chmod(0o600)
    code = (
        "import os; from mlstate.manifests.required import required_policy\n"
        "required_policy(None, '/x')  # and all that it imports\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); required_policy(None, '/x')"
    )

    def run(**more):
        environment = {**os.environ, "XDG_CONFIG_HOME": str(home), **more}
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        ).stderr

    assert "the config file cannot be read" in run()
    home.chmod(0o700)
    assert run() == ""
    assert "cannot be read" in run(MLSTATE_CONFIG=str(home / "mlstate" / "config.toml"))


def test_revoked_keys_of_the_config_file(config, monkeypatch):
    path = config(
        'allowed_signers = "signers"\nrevoked_keys = "revoked"\n'
        '[signatures.stores]\n"s3://x" = "others"\n"s3://y" = { revoked_keys = "more" }\n'
    )
    for place, name in (("s3://a", "revoked"), ("s3://x", "revoked"), ("s3://y", "more")):
        assert required_policy(None, place).revoked_keys == path.parent / name
    monkeypatch.setenv("MLSTATE_REVOKED_KEYS", "/etc/revoked")
    assert required_policy(None, "s3://a").revoked_keys == Path("/etc/revoked")


def test_the_key_that_signs(config, monkeypatch):
    path = config('signing_key = "id_ed25519"')
    assert state_signatures(None, None, "/x").key == path.parent / "id_ed25519"
    monkeypatch.setenv("MLSTATE_SIGNING_KEY", "/home/me/key")
    assert state_signatures(None, None, "/x").key == Path("/home/me/key")
    assert state_signatures(None, "other", "/x").key == Path("other")
    assert state_signatures(None, False, "/x") is None


def test_the_names_of_a_path(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    real = os.path.realpath(tmp_path)
    assert places_of("link/x") == (f"{tmp_path}/link/x", f"{real}/real/x")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "short").symlink_to("deep/er")
    assert places_of("short/../x") == (f"{tmp_path}/x", f"{real}/deep/x")
