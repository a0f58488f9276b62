"""Publish what is missing: ``python scripts/update_public_store.py TARGET SOURCE [SOURCE ...]``.

TARGET is the folder of a store, ``s3://bucket/prefix`` or ``github:owner/repository``. A SOURCE is
one of these, a manifest, a folder of manifests, or ``module:name``: a store that somebody wrote,
such as an `AbstractListStateStore` of a provider's weights. Its states are loaded into the models
that ``--models module:name`` makes, a function of a state type. Credentials come from the
environment. What is there already is left alone. The exit status is 1 if something could not be
published.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from mlstate import (
    AbstractListStateStore,
    GitHubReleaseStore,
    LocalStateStore,
    ManifestStore,
    MlstateError,
    S3StateStore,
    StateKey,
    copy,
    manifest_of,
    with_state_type,
)
from mlstate.errors import AccessError, TransportError
from mlstate.format import layout


def main(arguments: list[str] | None = None) -> int:
    """Publish all sources, and print what was done."""
    options = _parser().parse_args(arguments)
    target = open_store(options.target, options.endpoint)
    models = named(options.models) if options.models else None
    there: list[StateKey] = []
    failures = 0
    for text in options.sources:
        source = open_store(text, options.endpoint)
        listed = isinstance(source, AbstractListStateStore)
        for key in source.available_state_keys if listed else source.get_state_keys():
            try:
                new = publish(source, target, key, models)
            except (AccessError, TransportError) as error:
                sys.exit(str(error))  # the next state would meet the same
            except MlstateError as error:
                failures += 1
                print(f"! {key}: {error}")
            else:
                there.append(key)
                print(f"{'+' if new else '='} {key}")
    if options.manifest and there:
        manifest_of(target, there, objects=options.objects).write(options.manifest)
    print(f"{len(there)} states are published; {failures} could not be")
    return 1 if failures else 0


def publish(source: Any, target: Any, key: StateKey, models: Any) -> bool:
    """Bring a state into the target; whether it is new there."""
    if not isinstance(source, AbstractListStateStore):
        return bool(copy(source, target, [key]).copied)
    if target.exists(key):
        return False
    if models is None:
        raise MlstateError("the states of this store need a model", remedy="give --models")
    model = models(key.state_type)
    if getattr(model, "state_type", None) != key.state_type:
        with_state_type(model, key.state_type)
    source.load(model, key)
    target.save(model, key.training_id)
    return True


def open_store(text: str, endpoint: str | None) -> Any:
    """The store that a text of the command line means."""
    path = Path(text)
    if text.startswith("s3://"):
        bucket, _, prefix = text.removeprefix("s3://").partition("/")
        return S3StateStore(bucket, s3_endpoint_url=endpoint, base_path=prefix)
    if text.startswith("github:"):
        return GitHubReleaseStore(*text.removeprefix("github:").split("/", 1))
    if path.is_file() or (path.is_dir() and _has_manifests(path)):
        return ManifestStore(path)
    if ":" in text and not path.exists():
        found = named(text)
        return found() if isinstance(found, type) else found
    return LocalStateStore(path)


def named(text: str) -> Any:
    """What ``module:name`` means; modules of the working folder are found."""
    sys.path.insert(0, "")
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def _has_manifests(folder: Path) -> bool:
    return not (folder / layout.SETTINGS).exists() and any(folder.rglob("*.toml"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Publish the states that a store lacks.")
    parser.add_argument("target", metavar="TARGET", help="folder, s3://..., github:owner/name")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="store or manifest")
    parser.add_argument("--models", metavar="MODULE:NAME", help="makes a model of a state type")
    parser.add_argument("--endpoint", metavar="URL", help="a service other than AWS, for s3://")
    parser.add_argument("--manifest", metavar="FILE", help="write what is published there")
    parser.add_argument(
        "--objects", nargs="+", default=(), metavar="URL", help="addresses for the manifest"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
