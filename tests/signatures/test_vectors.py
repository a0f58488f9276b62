"""The golden vectors of signatures: of these bytes, for every version to come."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mlstate import LocalStateStore, ManifestStore, StateKey
from mlstate.signatures.inline import join_signature, split_signature
from tests.support.signing import needs_ssh_keygen, ssh_accepts

FILE = Path(__file__).parents[1] / "golden" / "signatures.toml"
GOLDEN = tomllib.loads(FILE.read_text())
VECTORS = {vector["name"]: vector for vector in GOLDEN["vector"]}
ALICE = "alice@lab.example"
LINE = f'{ALICE} namespaces="mlstate" {GOLDEN["key"]}\n'


def parts(vector):
    """What is signed, and the signature file: put together as docs/format.md says, and no more."""
    if "beside" in vector:
        return vector["file"].encode(), vector["beside"].encode()
    signed, begin, rest = vector["file"].partition("# -----BEGIN SSH SIGNATURE-----\n")
    lines = (begin + rest).splitlines(keepends=True)
    return signed.encode(), "".join(line.removeprefix("# ") for line in lines).encode()


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_made_as_the_format_says(name):
    vector = VECTORS[name]
    signed, signature = parts(vector)
    assert signed == vector["signed"].encode()
    if "beside" not in vector:
        assert split_signature(vector["file"].encode(), "it") == (signed, signature)
        assert join_signature(signed, signature) == vector["file"].encode()


@needs_ssh_keygen
@pytest.mark.parametrize("name", VECTORS)
def test_ssh_keygen_takes_a_vector(name, tmp_path):
    signed, signature = parts(VECTORS[name])
    assert ssh_accepts(signed, signature, LINE, ALICE, tmp_path)
    assert not ssh_accepts(signed + b"\n", signature, LINE, ALICE, tmp_path)


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_read_where_signatures_are_required(name, tmp_path):
    vector = VECTORS[name]
    (tmp_path / "allowed").write_text(LINE)
    path = tmp_path / "store" / vector["path"]
    path.parent.mkdir(parents=True)
    path.write_text(vector["file"])
    if "beside" in vector:
        path.with_name(f"{path.name}.sig").write_text(vector["beside"])
        store = ManifestStore(path, require_signature=tmp_path / "allowed")
    else:
        (tmp_path / "store" / "objects").mkdir()
        (tmp_path / "store" / "mlstate.toml").write_text("version = 1\nrequires = []\n")
        store = LocalStateStore(tmp_path / "store", require_signature=tmp_path / "allowed")
    key = StateKey.parse("pytorch.net.empty")
    assert store.get_state_keys() == [key]
    assert store.digest(key) == tomllib.loads(vector["signed"])["states"][str(key)]["blake3"]
