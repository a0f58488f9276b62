"""Keys and signatures made by a real ssh-keygen."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed: openssh-client"
)

KINDS = {
    "ed25519": ["-t", "ed25519"],
    "ecdsa256": ["-t", "ecdsa", "-b", "256"],
    "ecdsa384": ["-t", "ecdsa", "-b", "384"],
    "ecdsa521": ["-t", "ecdsa", "-b", "521"],
    "rsa2048": ["-t", "rsa", "-b", "2048"],
    "rsa3072": ["-t", "rsa", "-b", "3072"],
}
"""The kinds of keys that ssh-keygen can make without a device."""


def run_keygen(*arguments: object, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ssh-keygen."""
    command = ["ssh-keygen", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=False)


@dataclass(frozen=True)
class Key:
    """A key of somebody, in a file without a passphrase."""

    path: Path
    name: str

    @classmethod
    def make(cls, folder: Path, name: str, kind: str = "ed25519") -> Key:
        """Let ssh-keygen make one."""
        path = folder / f"id_{kind}_{name.partition('@')[0]}"
        done = run_keygen("-q", *KINDS[kind], "-N", "", "-C", "a comment", "-f", path)
        assert done.returncode == 0, done.stderr
        return cls(path, name)

    @property
    def public(self) -> str:
        """The public key: type, base64, comment."""
        return self.path.with_name(f"{self.path.name}.pub").read_text().strip()

    def line(self, options: str = "") -> str:
        """A line of an allowed-signers file."""
        return " ".join(filter(None, [self.name, options, self.public])) + "\n"

    def sign(self, data: bytes, namespace: str = "mlstate", *options: str) -> bytes:
        """The signature of some bytes, made by ssh-keygen."""
        done = run_keygen("-q", "-Y", "sign", *options, "-n", namespace, "-f", self.path, data=data)
        assert done.returncode == 0, done.stderr
        return done.stdout


def ssh_accepts(
    data: bytes, signature: bytes, allowed: str, name: str, folder: Path, *options: object
) -> bool:
    """Whether ``ssh-keygen -Y verify`` takes a signature."""
    signers, file = folder / "ssh-allowed", folder / "ssh-signature"
    signers.write_text(allowed)
    file.write_bytes(signature)
    command = ("-Y", "verify", "-f", signers, "-I", name, "-n", "mlstate", "-s", file, *options)
    return run_keygen(*command, data=data).returncode == 0
