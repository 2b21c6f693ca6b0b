"""Times as people write and read them."""

from __future__ import annotations

import datetime
import re
import time

import typer

TIME_HELP = "A time (2026-01-31T08:00, local unless it names a zone) or an age (90s, 15m, 8h, 7d)."
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment(text: str, now_ns: int | None = None) -> int:
    """Nanoseconds since 1970 of a time (ISO 8601, local where it names no zone) or an age such as 15m.

    Raises `ValueError` that says what is allowed.
    """
    age = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if age:
        return (time.time_ns() if now_ns is None else now_ns) - int(float(age[1]) * _UNITS[age[2]] * 1e9)
    try:
        parsed = datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
        return int(parsed.timestamp() * 1_000_000) * 1000
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is neither a time like 2026-01-31T08:00 nor an age like 15m, 8h or 7d") from error


def parse_moment(text: str) -> int:
    """`moment` for an option of a command. Raises `typer.BadParameter`."""
    try:
        return moment(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def iso(wall_ns: int) -> str:
    """Nanoseconds since 1970 as ISO 8601 in UTC, to the microsecond."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    stamp = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"{stamp:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
