"""What a job found, told to people: in words (`words`), in numbers with units (`quantities`), as one file (`page`).

This package itself imports nothing, so that the command line can use the words without a plotting library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.report.page import render_report

__all__ = ["render_report"]


def __getattr__(name: str) -> Any:
    """``render_report`` needs templates and figures; they are loaded when it is asked for."""
    if name == "render_report":
        from app.report.page import render_report  # noqa: PLC0415 - see above

        return render_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
