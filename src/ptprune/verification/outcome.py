"""What a verification found: one row a check, in plain types."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Result = Literal["ok", "FAIL", "not supported", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was compared.
        result: "inconclusive" where the oracle would not notice if nothing were dropped.
        deviation: the largest difference of two logits, where logits are compared.
        bound: the largest one that passes.
        reason: why it is not "ok", or what else is worth knowing.
    """

    name: str
    result: Result
    deviation: float | None = None
    bound: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Verification:
    """All checks of a model.

    Attributes:
        model: its class.
        versions: of python, torch, transformers and this package.
        noise: differences between logits of the stock model itself, by what was varied; see ``noise``.
    """

    model: str
    versions: dict[str, str]
    device: str
    dtype: str
    attention: str
    noise: dict[str, float]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed or was inconclusive, and at least one was ok."""
        results = {check.result for check in self.checks}
        return "ok" in results and not results & {"FAIL", "inconclusive"}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "passed": self.passed}
