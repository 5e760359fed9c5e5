"""A scheduler or a worker as in production, but without torch: ``engine_program.py scheduler|worker``."""

import sys

from app.dispatch import processes

if __name__ == "__main__":
    processes.preload = lambda _threads: None
    sys.exit(processes.main())
