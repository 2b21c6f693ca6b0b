"""Structured logs on standard error: for people, or one JSON object a line. Passwords in addresses are hidden."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")
_SECRET_KEYS = re.compile(r"secret|password|token", re.IGNORECASE)


def set_up(
    line: str,
    process: str,
    style: Literal["console", "json"] = "console",
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """Configures logging of this process, libraries' and warnings included, and returns its logger."""
    stream = stream or sys.stderr
    number = int(getattr(logging, level.upper()))
    renderer: list[Processor]
    if style == "json":
        # Without local variables: they may hold passwords, or whole frames.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain, pad_event_to=0)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hide_secrets,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(line=line, process=process)
    logger: FilteringBoundLogger = structlog.get_logger()
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward(logger))
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)
    return logger


def hide_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Blanks values of secret keys, and the user and password in any address."""
    return {key: "***" if _SECRET_KEYS.search(key) else _hidden(value) for key, value in event.items()}


def without_credentials(text: str) -> str:
    """The text with user and password blanked in every address."""
    return _CREDENTIALS.sub(r"\1***@", text)


def _hidden(value: Any) -> Any:
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, dict):
        return hide_secrets(None, "", value)
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value


class _Forward(logging.Handler):
    """Hands what libraries log to the structured log."""

    def __init__(self, logger: FilteringBoundLogger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Logs the record's text under its library's name."""
        try:
            self._logger.log(record.levelno, record.getMessage(), library=record.name)
        except Exception:
            self.handleError(record)
