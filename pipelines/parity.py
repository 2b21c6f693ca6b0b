"""The parity gate: an engine judges parts only after it has reproduced the bundle's reference frames.

Expected scores and maps come from torch in float32. What an engine may differ by depends on its precision, and is
measured in what matters to a verdict, not in digits:

- score: difference as a share of the way from floor (0 %) to limit (100 %) of the region, so 0.01 moves a part by one
  percent of limit;
- map: largest difference of a patch as a share of the range of the region's expected maps;
- verdict: the same as expected, unless the expected score is within the score tolerance of the limit.

Every number must be finite. A map with (nearly) one value where the expected one has structure fails by its own check,
since that is how wrong half-precision engines have been seen to fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipelines.bundle import Reference
from pipelines.errors import ParityError
from pipelines.manifest import Limit

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.engines.base import Engine

FLAT = 0.2
"""A map whose standard deviation is below this share of the expected one has lost its structure."""


@dataclass(frozen=True)
class Tolerance:
    """What an engine may differ by: see the module's text."""

    score: float
    map: float


TOLERANCES = {
    "fp32": Tolerance(score=0.01, map=0.01),
    "fp16": Tolerance(score=0.03, map=0.03),
    "fp8": Tolerance(score=0.06, map=0.06),
    "int8": Tolerance(score=0.06, map=0.06),
    "bf16": Tolerance(score=0.06, map=0.06),
}


@dataclass(frozen=True)
class ParityRow:
    """One region of one reference frame. Errors are shares, see the module's text."""

    frame: int
    region: str
    expected: float
    got: float
    score_error: float
    map_error: float
    expected_reject: bool
    got_reject: bool
    fault: str | None

    @property
    def text(self) -> str:
        """The row in one line: which frame, expected and got."""
        return (
            f"reference frame {self.frame}, region {self.region!r}: expected score {self.expected:.6g} "
            f"({_verdict(self.expected_reject)}), got {self.got:.6g} ({_verdict(self.got_reject)}): "
            f"{self.fault or 'ok'}"
        )


@dataclass(frozen=True)
class ParityReport:
    """What the gate found, of every region of every reference frame."""

    engine: str
    precision: str
    tolerance: Tolerance
    rows: tuple[ParityRow, ...]

    @property
    def passed(self) -> bool:
        """Whether the engine may judge."""
        return all(row.fault is None for row in self.rows)

    def require(self) -> None:
        """Raises `ParityError` with the first fault where the gate did not pass."""
        faults = [row for row in self.rows if row.fault is not None]
        if faults:
            more = f" (and {len(faults) - 1} more of {len(self.rows)})" if len(faults) > 1 else ""
            raise ParityError(
                f"{self.engine} does not reproduce the bundle's reference scores, so it may not judge parts: "
                f"{faults[0].text}{more}"
            )

    def table(self) -> Table:
        """The report as a rich table."""
        from rich.table import Table

        table = Table(
            title=f"Parity of {self.engine} ({self.precision}: score within {self.tolerance.score:.1%} of "
            f"limit - floor, map within {self.tolerance.map:.1%} of its range)"
        )
        table.add_column("frame", justify="right")
        table.add_column("region")
        for heading in ("expected", "got", "score error", "map error", "verdict"):
            table.add_column(heading, justify="right")
        table.add_column("parity")
        for row in self.rows:
            verdicts = {_verdict(row.expected_reject), _verdict(row.got_reject)}
            table.add_row(
                str(row.frame),
                row.region,
                f"{row.expected:.6g}",
                f"{row.got:.6g}",
                f"{row.score_error:.3%}",
                f"{row.map_error:.3%}",
                " / ".join(sorted(verdicts)),
                "[green]ok[/green]" if row.fault is None else f"[red]{row.fault}[/red]",
            )
        return table


def check(engine: Engine, reference: Reference, limit: Limit, precision: str | None = None) -> ParityReport:
    """Runs the reference frames through `engine` and compares.

    `precision` (a key of TOLERANCES) stands in for the engine's own. Raises `EngineError` where the engine cannot run.
    """
    scored = engine.score(reference.frames)
    return compare(
        engine.name,
        precision or engine.key.precision,
        reference.scores,
        reference.maps,
        scored.scores,
        scored.maps,
        limit,
    )


def compare(
    engine: str,
    precision: str,
    expected_scores: NDArray[np.float32],
    expected_maps: NDArray[np.float32],
    scores: NDArray[np.float32],
    maps: NDArray[np.float32],
    limit: Limit,
) -> ParityReport:
    """Compares scores [N, R] and maps [N, R, h, w] with what is expected. Raises `ParityError` for other shapes."""
    if scores.shape != expected_scores.shape or maps.shape != expected_maps.shape:
        raise ParityError(
            f"{engine}: scores and maps have shapes {scores.shape} and {maps.shape}, expected {expected_scores.shape} "
            f"and {expected_maps.shape}; build the engine again"
        )
    tolerance = TOLERANCES[precision]
    ranges = np.maximum(np.ptp(expected_maps, axis=(0, 2, 3)), np.finfo(np.float32).tiny)
    rows = []
    for n in range(scores.shape[0]):
        for r, region in enumerate(limit.regions):
            rows.append(
                _row(
                    n,
                    region.name,
                    (region.limit, region.floor),
                    float(ranges[r]),
                    (float(expected_scores[n, r]), expected_maps[n, r]),
                    (float(scores[n, r]), maps[n, r]),
                    tolerance,
                )
            )
    return ParityReport(engine, precision, tolerance, tuple(rows))


def _row(
    frame: int,
    region: str,
    limit_floor: tuple[float, float],
    map_range: float,
    expected: tuple[float, NDArray[np.float32]],
    got: tuple[float, NDArray[np.float32]],
    tolerance: Tolerance,
) -> ParityRow:
    limit, floor = limit_floor
    score_error = abs(got[0] - expected[0]) / (limit - floor)
    map_error = float(np.abs(got[1] - expected[1]).max()) / map_range
    rejects = expected[0] > limit, got[0] > limit
    near_limit = abs(expected[0] - limit) <= tolerance.score * (limit - floor)
    fault = None
    if not np.isfinite(got[0]) or not np.isfinite(got[1]).all():
        fault = "score or map is NaN or infinite"
    elif got[1].std() < FLAT * expected[1].std():
        fault = "the map is nearly constant where the expected one is not"
    elif not score_error <= tolerance.score:
        fault = f"score off by {score_error:.2%} of limit - floor, allowed {tolerance.score:.2%}"
    elif not map_error <= tolerance.map:
        fault = f"map off by {map_error:.2%} of its range, allowed {tolerance.map:.2%}"
    elif rejects[0] != rejects[1] and not near_limit:
        fault = "another verdict than expected"
    return ParityRow(frame, region, expected[0], got[0], score_error, map_error, rejects[0], rejects[1], fault)


def _verdict(reject: bool) -> str:
    return "reject" if reject else "pass"
