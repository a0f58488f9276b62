"""What can be done with stores: one public function a module, exported by `mlstate`.

This package exports the types of what they return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.operations.adopt_report import AdoptReport
    from mlstate.operations.check import CheckReport
    from mlstate.operations.compact.report import CompactReport
    from mlstate.operations.copy import CopyReport
    from mlstate.operations.describe import Description
    from mlstate.operations.diff import StateDiff
    from mlstate.operations.diff_manifests import ManifestDiff
    from mlstate.operations.doctor.doctor import Diagnosis
    from mlstate.operations.git.setup import GitSetup
    from mlstate.operations.history import Event
    from mlstate.operations.report.page import Report
    from mlstate.operations.usage_report import DiskUsage, StateUsage, Usage
    from mlstate.operations.verify.report import Finding, MirrorCheck, VerifyReport

__all__ = [
    "AdoptReport",
    "CheckReport",
    "CompactReport",
    "CopyReport",
    "Description",
    "Diagnosis",
    "DiskUsage",
    "Event",
    "Finding",
    "GitSetup",
    "ManifestDiff",
    "MirrorCheck",
    "Report",
    "StateDiff",
    "StateUsage",
    "Usage",
    "VerifyReport",
]

_HOMES = {
    "AdoptReport": "mlstate.operations.adopt_report",
    "CheckReport": "mlstate.operations.check",
    "CompactReport": "mlstate.operations.compact.report",
    "CopyReport": "mlstate.operations.copy",
    "Description": "mlstate.operations.describe",
    "Diagnosis": "mlstate.operations.doctor.doctor",
    "DiskUsage": "mlstate.operations.usage_report",
    "Event": "mlstate.operations.history",
    "Finding": "mlstate.operations.verify.report",
    "GitSetup": "mlstate.operations.git.setup",
    "ManifestDiff": "mlstate.operations.diff_manifests",
    "MirrorCheck": "mlstate.operations.verify.report",
    "Report": "mlstate.operations.report.page",
    "StateDiff": "mlstate.operations.diff",
    "StateUsage": "mlstate.operations.usage_report",
    "Usage": "mlstate.operations.usage_report",
    "VerifyReport": "mlstate.operations.verify.report",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
