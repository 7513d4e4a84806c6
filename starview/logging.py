"""One log line per event, on stderr: for people, or JSON for machines.

structlog renders its own events and those of the standard library (Django, boto3)
alike. What is printed for people becomes JSON in `starview.output`.
"""

from __future__ import annotations

import logging

import structlog

# Without the local variables, which may hold a password.
_traceback_as_dict = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure_logging(log_format: str) -> None:
    """Send structlog and standard-library records to stderr in `log_format`.

    It is `console` or `json`; anything else is treated as `console`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    renderers: list[structlog.typing.Processor] = (
        [_traceback_as_dict, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, pad_level=False)
        ]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("starview").setLevel(logging.INFO)
    logging.getLogger("starview_app").setLevel(logging.INFO)
