"""A report as compact JSON for its page: lists in the place of objects, places instead of keys.

The readers of these lists are in ``assets/``: `common.js` says what stands where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlstate.operations.report.lineage import family_of
from mlstate.operations.report.values import ArchitectureLayers, ReportData, StateLayers
from mlstate.operations.reports import iso_time, to_json
from mlstate.operations.verify.report import Finding
from mlstate.phrases import in_shell
from mlstate.shown import printable, without_queries
from mlstate.states import StateKey
from mlstate.version import __version__

__all__ = ["page_data"]

_LONGEST = 2000
"""Characters of a note that are shown."""


def page_data(report: ReportData) -> dict[str, Any]:
    """What the page shows, as JSON has it; all texts as `mlstate.shown` has them."""
    used = report.usage
    places = {state.key: place for place, state in enumerate(used.states)}
    families = {part.state_type: place for place, part in enumerate(used.architectures)}
    data = {
        "version": __version__,
        "store": report.store,
        "made": iso_time(report.made),
        "timed": report.timed,
        "compared": report.compared,
        "total": used.total,
        "unnamed": used.unnamed,
        "trash": used.trash,
        "architectures": [
            [str(part.state_type), part.states, part.nbytes, part.own, part.shared]
            for part in used.architectures
        ],
        "states": [
            [
                str(state.key),
                families[family_of(state.key)],
                state.digest,
                state.nbytes,
                state.own,
                state.shared,
                state.cached,
                iso_time(state.modified),
                "unsigned" if state.unsigned else state.error,
            ]
            for state in used.states
        ],
        "maps": [_map(part, places) for part in report.architectures],
        "links": [
            [_place(link.older, places), places[link.newer], link.nbytes] for link in report.links
        ],
        "findings": None
        if report.findings is None
        else [_finding(finding, places) for finding in report.findings],
    }
    shown: dict[str, Any] = _shown(data)
    return shown


def _map(part: ArchitectureLayers, places: Mapping[StateKey, int]) -> dict[str, Any]:
    return {
        "name": str(part.state_type),
        "layers": [
            [layer.name, layer.dtype, " x ".join(map(str, layer.shape)), layer.nbytes]
            for layer in part.layers
        ],
        "states": [_column(state, places) for state in part.states],
    }


def _column(state: StateLayers, places: Mapping[StateKey, int]) -> dict[str, Any]:
    return {
        "state": places[state.key],
        "base": None if state.base is None else _place(state.base, places),
        "marks": state.marks,
        "changes": [
            [change.layer, change.relative, change.max_abs, change.differing, change.nonfinite]
            for change in state.changes
        ],
        "removed": state.removed,
        "unread": state.unread,
        "files": state.files,
        "meta": [[name, _note(value)] for name, value in state.meta.items()],
    }


def _place(key: StateKey, places: Mapping[StateKey, int]) -> int | str:
    """The place of a state in the list; of one that is not in it, its key."""
    return places.get(key, str(key))


def _note(value: Any) -> str:
    plain = to_json(value)
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _finding(finding: Finding, places: Mapping[StateKey, int]) -> dict[str, Any]:
    return {
        "states": [_place(key, places) for key in finding.keys],
        "kind": finding.kind,
        "what": finding.what,
        "tensors": finding.tensors,
        "path": finding.path,
        "expected": finding.expected,
        "found": finding.found,
        "repaired": finding.repaired,
        "remedy": None if finding.remedy is None else in_shell(finding.remedy),
    }


def _shown(value: Any) -> Any:
    """JSON whose texts can be shown: one line, no marks of direction, no signed addresses."""
    if isinstance(value, str):
        return printable(without_queries(value))
    if isinstance(value, Mapping):
        return {name: _shown(item) for name, item in value.items()}
    return list(map(_shown, value)) if isinstance(value, list | tuple) else value
