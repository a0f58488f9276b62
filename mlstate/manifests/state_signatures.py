"""Signed state files: how those of a store are checked when they are read, and signed when written.

A state file is a manifest of one state. Its signature is at its end, or beside it as that of any
manifest. The key is in what is signed, so a signature is good for no other key; a serial number
tells a newer version from an older one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlstate.errors import MlstateError, SignatureError
from mlstate.manifests import Manifest, StateEntry
from mlstate.manifests.edit import edit_manifest
from mlstate.manifests.entries import ManifestContent
from mlstate.manifests.keygen import sign_bytes
from mlstate.manifests.parse import parse_state_content
from mlstate.manifests.serials import MAX_SERIAL
from mlstate.manifests.signed import ManifestSignature, serial_of
from mlstate.manifests.state_serials import highest_serial, see_serial
from mlstate.manifests.write import format_manifest
from mlstate.phrases import Phrase
from mlstate.signatures.check import Signers
from mlstate.signatures.inline import is_signed, join_signature, split_signature
from mlstate.signatures.keys import PublicKey
from mlstate.states import StateKey

__all__ = [
    "StateSignatures",
    "StateText",
    "signed_again",
    "with_signature",
]


def _nothing_beside() -> bytes | None:
    return None


@dataclass(frozen=True)
class StateText:
    """A state file that was read.

    Attributes:
        data: Its bytes.
        key: The state that it is to have.
        path: Where it is, for people.
        place: Where it is, whatever way led there: under this its serial number is kept.
        beside: Returns the signature file beside it, or None; it is called if it is needed.
    """

    data: bytes
    key: StateKey
    path: str
    place: str
    beside: Callable[[], bytes | None] = _nothing_beside


@dataclass(frozen=True)
class StateSignatures:
    """How the state files of a store are signed.

    Attributes:
        signers: Whose signature each needs that is read; None: none is needed.
        key: The key that signs what is written; None: nothing is signed.
    """

    signers: Signers | None = None
    key: Path | None = None

    def entry(self, text: StateText) -> StateEntry:
        """The entry of a state file; nothing is parsed but what a signature was found good for.

        Raises:
            SignatureError: A signature is needed, and it has no good one, or a newer version of
                this state was seen.
            ManifestError: It does not have exactly this state.
        """
        if self.signers is None:
            return parse_state_content(text.data, text.key, text.path).states[text.key]
        content, report = self.checked(text)
        see_serial(text.place, report.serial, str(report.signer))
        return content.states[text.key]

    def checked(self, text: StateText) -> tuple[ManifestContent, ManifestSignature]:
        """A state file whose signature is good, and who signed it; rollback is not looked at.

        Raises:
            SignatureError: It has no good one.
            ManifestError: It does not have exactly this state.
        """
        assert self.signers is not None
        signed, signature = split_signature(text.data, text.path)
        if signature is None:
            signature = text.beside()
        if signature is None:
            raise unsigned(text.path, text.key)
        signer, public = self.signers.check(signed, signature, text.path)
        content = parse_state_content(signed, text.key, text.path)
        return content, _report(text, content, signer, public)

    def written(self, entry: StateEntry, place: str, before: bytes | None) -> bytes:
        """The content of a new state file, signed if there is a key.

        Args:
            entry: The state.
            place: As in `StateText`.
            before: What is there now, or None.

        Raises:
            SignatureError: It cannot be signed.
        """
        if self.key is None:
            return format_manifest(ManifestContent({entry.key: entry}, entry.objects)).encode()
        unknown = {"serial": next_serial(before, place)}
        new = ManifestContent({entry.key: entry}, entry.objects, unknown)
        content = format_manifest(new).encode()
        return join_signature(content, sign_bytes(content, self.key, place)[0])


def signed_again(text: StateText, key: Path) -> tuple[bytes, ManifestSignature]:
    """A state file with a new signature and a higher serial number; else it says what it said.

    Raises:
        ManifestError: It does not have exactly this state.
        SignatureError: It cannot be signed.
    """
    old = without_signature(text.data)
    content = parse_state_content(old, text.key, text.path)
    unknown = {**content.unknown, "serial": next_serial(old, text.place)}
    wanted = ManifestContent(content.states, content.objects, unknown)
    new = edit_manifest(old, text.path, wanted)
    if not new.endswith(b"\n"):
        new += b"\n"
    armoured, parsed = sign_bytes(new, key, text.path)
    return join_signature(new, armoured), _report(text, wanted, None, parsed.key)


def _report(
    text: StateText, content: ManifestContent, signer: str | None, public: PublicKey
) -> ManifestSignature:
    return ManifestSignature(
        text.path,
        signer,
        public.fingerprint,
        public.kind,
        states=1,
        serial=serial_of(content, text.path),
        key=text.key,
        digest=content.states[text.key].digest,
    )


def with_signature(text: StateText) -> bytes | None:
    """A state file with its signature at its end, wherever that is now; None if it has none."""
    if is_signed(text.data):
        return text.data
    try:
        beside = text.beside()
    except SignatureError:  # something else lies there, which is no signature
        return None
    if beside is None or not text.data.endswith(b"\n"):
        return None
    return join_signature(text.data, beside)


def without_signature(data: bytes) -> bytes:
    """A state file without the signature at its end, if there is one."""
    try:
        return split_signature(data, "")[0]
    except SignatureError:  # damaged, and comments all the same
        return data


def next_serial(before: bytes | None, place: str) -> int:
    """The serial number of the next version of a state.

    It is the time in seconds, so that a state which was deleted and is saved again, by a machine
    that has never seen it, has a higher one; and higher than the last, whatever clocks say.
    """
    last = [-1]
    if before is not None:
        with_serial = _serial_said(before)
        last.append(-1 if with_serial is None else with_serial)
    seen = highest_serial(place)
    last.append(-1 if seen is None else seen)
    return min(max(int(time.time()), max(last) + 1), MAX_SERIAL)


def _serial_said(data: bytes) -> int | None:
    """The serial number of a state file, whatever else is in it."""
    try:
        return serial_of(Manifest.parse(data, "before"), "before")
    except MlstateError:
        return None


def unsigned(path: str, key: StateKey) -> SignatureError:
    """The error that a state is not signed."""
    return SignatureError(
        "this state is not signed, and a signature is required",
        key=key,
        path=path,
        expected="a signature at the end of its state file",
        remedy="ask who saved it to sign it; if that is you: "
        + Phrase("mlstate.sign(store, key)", "mlstate sign STORE KEY --key FILE"),
    )
