"""Who may sign: the allowed-signers file of ssh-keygen and git.

Each line has principals, options and a public key::

    alice@lab.example namespaces="mlstate",valid-before="20270101Z" ssh-ed25519 AAAA...

ssh-keygen passes over a line that it does not understand. Here such a file is refused: whoever
wrote the line meant something by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from mlstate.errors import FormatError
from mlstate.signatures.keys import PublicKey, parse_public_key
from mlstate.signatures.lines import lines_of
from mlstate.signatures.patterns import matches

__all__ = ["AllowedSigner", "parse_allowed_signers"]

_BLANK = re.compile(r" +")
_OPTION = re.compile(
    r'(?i:(cert-authority)|(namespaces|valid-after|valid-before)="((?:\\"|[^"])*+)")'
)
_MOMENT = re.compile(r"(?i:(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?(Z|UTC)?)", re.ASCII)


@dataclass(frozen=True)
class AllowedSigner:
    """A line of an allowed-signers file.

    Attributes:
        principals: Whose key it is: names or patterns, with commas in between.
        key: The key.
        namespaces: The patterns of the namespaces that it may sign for; None: for all.
        valid_after: The moment from which on it is good, in seconds since the epoch; or None.
        valid_before: The moment until which it is good; or None.
        line: The number of the line.
    """

    principals: str
    key: PublicKey
    namespaces: str | None = None
    valid_after: float | None = None
    valid_before: float | None = None
    line: int = 0

    def objection(self, namespace: str, signer: str | None, moment: float) -> str | None:
        """Why this line does not allow a signature of its key; None where it does.

        Args:
            namespace: What the signature was made for.
            signer: The principal that is to have signed; None: any.
            moment: The time at which the key has to be good.
        """
        if signer is not None and not matches(signer, self.principals):
            return f"its key is that of {self.principals}"
        if self.namespaces is not None and not matches(namespace, self.namespaces):
            return f"its key may sign for {self.namespaces} only, not for {namespace}"
        if self.valid_after is not None and moment < self.valid_after:
            return f"its key is good from {_said(self.valid_after)} on"
        if self.valid_before is not None and moment > self.valid_before:
            return f"its key was good until {_said(self.valid_before)}"
        return None


def _said(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def parse_allowed_signers(data: bytes, origin: str) -> tuple[AllowedSigner, ...]:
    """Read an allowed-signers file.

    Args:
        data: Its content.
        origin: Where it is from, for errors.

    Raises:
        FormatError: It cannot be read; the error names the line.
    """
    return tuple(_signer(text, number, origin) for number, text in lines_of(data, origin))


def _signer(text: str, number: int, origin: str) -> AllowedSigner:
    with _in_line(number, origin):
        principals, _, rest = text.replace("\t", " ").partition(" ")
        rest = rest.lstrip(" ")
        if not rest or principals.startswith('"'):
            raise FormatError(
                "a line of an allowed-signers file has principals and a key",
                expected="NAME[,NAME...] [OPTIONS] TYPE KEY",
                found=text[:100],
            )
        key = parse_public_key(_BLANK.split(rest))
        options: dict[str, str] = {}
        if key is None:
            options, rest = _options(rest)
            key = parse_public_key(_BLANK.split(rest))
        if key is None:
            raise FormatError(
                "a line of an allowed-signers file has no valid key",
                expected="TYPE KEY, as in id_ed25519.pub",
                found=rest[:100],
            )
        after, before = _moment(options, "valid-after"), _moment(options, "valid-before")
        if after is not None and before is not None and before <= after:
            raise FormatError("a key is never good: valid-before is not later than valid-after")
        return AllowedSigner(principals, key, options.get("namespaces"), after, before, number)


@contextmanager
def _in_line(number: int, origin: str) -> Iterator[None]:
    """A context that tells errors which line of which file they are about."""
    try:
        yield
    except FormatError as error:
        error.path, error.line = origin, number
        raise


def _options(text: str) -> tuple[dict[str, str], str]:
    """The options at the beginning of a text, and what follows them."""
    options: dict[str, str] = {}
    end = 0
    while True:
        option = _OPTION.match(text, end)
        if option is None:
            raise FormatError(
                "a line of an allowed-signers file has a key, or an option, that is not known",
                expected='the options namespaces="...", valid-after="..." and valid-before="..."',
                found=text[end : end + 100],
            )
        name = (option[1] or option[2]).lower()
        if name in options:
            raise FormatError("an option is given twice", found=name)
        options[name] = (option[3] or "").replace('\\"', '"')
        end = option.end()
        if text[end : end + 1] != ",":
            break
        end += 1
    if "cert-authority" in options:
        raise FormatError(
            "certificates are not supported, so no authority for them can be allowed",
            found="cert-authority",
            remedy="list the keys of the signers themselves, in a file without cert-authority",
        )
    rest = text[end:]
    return options, rest.lstrip(" ") if rest.startswith(" ") else ""


def _moment(options: dict[str, str], name: str) -> float | None:
    """The seconds since the epoch of a time; without a Z it is in the time zone of this machine."""
    if name not in options:
        return None
    found = _MOMENT.fullmatch(options[name])
    if found is not None:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
        zone = UTC if found[7] else None
        with suppress(ValueError, OverflowError, OSError):
            return datetime(year, month, day, hour, minute, second, tzinfo=zone).timestamp()
    raise FormatError(
        f"the time of {name} cannot be read",
        expected="YYYYMMDD[HHMM[SS]][Z]",
        found=options[name][:40],
    )
