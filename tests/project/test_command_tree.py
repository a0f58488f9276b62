"""A command line is parsed by one command alone, which is the same as among all."""

from __future__ import annotations

import pytest

from mlstate.cli.app import _tree_for, command_tree

NAMES = sorted(command_tree().commands)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_alone_is_as_among_all(name):
    tree = _tree_for([name, "--json"])
    assert list(tree.commands) == [name]
    one, other = tree.commands[name], command_tree().commands[name]
    assert [vars(p).keys() for p in one.params] == [vars(p).keys() for p in other.params]
    assert [(p.name, p.opts, p.nargs, p.multiple, p.envvar) for p in one.params] == [
        (p.name, p.opts, p.nargs, p.multiple, p.envvar) for p in other.params
    ]
    assert (one.help, one.short_help, one.epilog) == (other.help, other.short_help, other.epilog)
    assert [p.opts for p in tree.params] == [p.opts for p in command_tree().params if p.opts]


@pytest.mark.parametrize("words", [[], ["lst"], ["--help"], ["--version"]])
def test_anything_else_is_parsed_by_all(words):
    assert sorted(_tree_for(words).commands) == NAMES


def test_completion_knows_all(monkeypatch):
    monkeypatch.setenv("_MLSTATE_COMPLETE", "complete_bash")
    assert sorted(_tree_for(["ls"]).commands) == NAMES
