"""The command line. The base install needs click, httpx and rich; what a command needs besides it imports itself."""

from app.cli.main import main

__all__ = ["main"]
