"""What can be done with stores: one public function a module, exported by `mlstate`.

This package exports the types of what they return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlstate.lazy import exports

if TYPE_CHECKING:
    from mlstate.operations.adopt_report import AdoptReport
    from mlstate.operations.copy import CopyReport
    from mlstate.operations.describe import Description
    from mlstate.operations.diff import StateDiff
    from mlstate.operations.doctor.doctor import Diagnosis
    from mlstate.operations.report.page import Report
    from mlstate.operations.usage_report import StateUsage, Usage
    from mlstate.operations.verify.report import Finding, VerifyReport

__all__ = [
    "AdoptReport",
    "CopyReport",
    "Description",
    "Diagnosis",
    "Finding",
    "Report",
    "StateDiff",
    "StateUsage",
    "Usage",
    "VerifyReport",
]

_HOMES = {
    "AdoptReport": "mlstate.operations.adopt_report",
    "CopyReport": "mlstate.operations.copy",
    "Description": "mlstate.operations.describe",
    "Diagnosis": "mlstate.operations.doctor.doctor",
    "Finding": "mlstate.operations.verify.report",
    "Report": "mlstate.operations.report.page",
    "StateDiff": "mlstate.operations.diff",
    "StateUsage": "mlstate.operations.usage_report",
    "Usage": "mlstate.operations.usage_report",
    "VerifyReport": "mlstate.operations.verify.report",
}

__getattr__, __dir__ = exports(__name__, _HOMES)
