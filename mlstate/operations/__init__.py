"""What can be done with states and stores beyond `load` and `save`: one name each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.operations.adopting.adopt import adopt
    from mlstate.operations.adopting.adoption import AdoptReport
    from mlstate.operations.bundling.bundle import bundle, unbundle
    from mlstate.operations.comparing import StateDiff, diff
    from mlstate.operations.copying import CopyReport, copy
    from mlstate.operations.describing import Description, describe
    from mlstate.operations.diagnosing.diagnose import Diagnosis, diagnose
    from mlstate.operations.enlisting import enlist, unlist
    from mlstate.operations.exporting import export
    from mlstate.operations.pinning import lock
    from mlstate.operations.sizes import StateUsage, Usage, usage
    from mlstate.operations.verifying.findings import Finding, VerifyReport
    from mlstate.operations.verifying.verify import verify

__all__ = [
    "AdoptReport",
    "CopyReport",
    "Description",
    "Diagnosis",
    "Finding",
    "StateDiff",
    "StateUsage",
    "Usage",
    "VerifyReport",
    "adopt",
    "bundle",
    "copy",
    "describe",
    "diagnose",
    "diff",
    "enlist",
    "export",
    "lock",
    "unbundle",
    "unlist",
    "usage",
    "verify",
]

_HOMES = {
    "AdoptReport": "mlstate.operations.adopting.adoption",
    "CopyReport": "mlstate.operations.copying",
    "Description": "mlstate.operations.describing",
    "Diagnosis": "mlstate.operations.diagnosing.diagnose",
    "Finding": "mlstate.operations.verifying.findings",
    "StateDiff": "mlstate.operations.comparing",
    "StateUsage": "mlstate.operations.sizes",
    "Usage": "mlstate.operations.sizes",
    "VerifyReport": "mlstate.operations.verifying.findings",
    "adopt": "mlstate.operations.adopting.adopt",
    "bundle": "mlstate.operations.bundling.bundle",
    "copy": "mlstate.operations.copying",
    "describe": "mlstate.operations.describing",
    "diagnose": "mlstate.operations.diagnosing.diagnose",
    "diff": "mlstate.operations.comparing",
    "enlist": "mlstate.operations.enlisting",
    "export": "mlstate.operations.exporting",
    "lock": "mlstate.operations.pinning",
    "unbundle": "mlstate.operations.bundling.bundle",
    "unlist": "mlstate.operations.enlisting",
    "usage": "mlstate.operations.sizes",
    "verify": "mlstate.operations.verifying.verify",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
