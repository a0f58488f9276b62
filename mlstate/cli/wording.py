"""What the API says in terms of Python, in terms of the command line."""

from __future__ import annotations

import re

__all__ = ["in_shell_words"]

_PHRASES = (
    (r"\b(?:Local|Manifest|S3)\w*Store\('([^']*)'\)", r"\1"),
    (r"\bGitHubReleaseStore\(([^)]*)\)", r"\1"),
    (r"\bStore\(\)", "the default store"),
    (
        r"a LocalStateStore, MemoryStateStore, S3StateStore or GitHubReleaseStore",
        "a folder, s3://... or github:owner/repo",
    ),
    (r"save into a LocalStateStore or an S3StateStore", "save into a folder or a bucket"),
    (r"save into a LocalStateStore", "save into a folder"),
    (
        r"mlstate\.lock\(manifest, \[key\]\)( pins what it lists)?",
        "mlstate lock FILE.toml KEY",
    ),
    (r"bring its states over with mlstate\.copy", "bring its states over with mlstate copy"),
    (r"\bget_state_keys\(\w*\)", "mlstate ls"),
    (r"\bbundle\(\)", "mlstate bundle"),
    (r"\bformat='torch'", "--torch"),
    (r"leave format out", "leave it out"),
    (r", or offline=True", ""),
    (r"\bs3_endpoint_url\b", "AWS_ENDPOINT_URL"),
    (r"\b(overwrite|mirror|repair|verify)=True\b", r"--\1"),
    (
        r"give a folder that can be written as cache= \(or MLSTATE_CACHE\)",
        "set MLSTATE_CACHE to a folder that can be written",
    ),
    (
        r"give cache= \(or MLSTATE_CACHE,\s+MLSTATE_READONLY_CACHES\) a folder that has it",
        "set MLSTATE_CACHE or MLSTATE_READONLY_CACHES to a folder that has it",
    ),
    (r"\b(max_size|max_shard_size|select)=", lambda found: f"--{found[1].replace('_', '-')} "),
)


def in_shell_words(text: str) -> str:
    """A message of the API as the command line says it.

    Example:
        >>> in_shell_words("choose another name, or overwrite=True")
        'choose another name, or --overwrite'
    """
    for pattern, words in _PHRASES:
        text = re.sub(pattern, words, text)
    return text
