"""A small cache of what was used last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class RecentlyUsed(Generic[T]):
    """A small cache that forgets what was not used for longest. Safe among threads; values are made one at a time.

    Args:
        capacity: Number of values kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not there; a failure to make it is not remembered."""
        with self._lock:
            if key not in self._values:
                while len(self._values) >= self._capacity:
                    self._values.popitem(last=False)  # before making: both might not fit into memory
                self._values[key] = make()
            self._values.move_to_end(key)
            return self._values[key]

    def take(self, key: Hashable) -> T | None:
        """Remove and return the value of a key: for values that only one may use at a time."""
        with self._lock:
            return self._values.pop(key, None)

    def put(self, key: Hashable, value: T) -> None:
        """Keep a value."""
        with self._lock:
            self._values.pop(key, None)
            self.get(key, lambda: value)

    def keep_while(self, fits: Callable[[T], bool]) -> None:
        """From what was used last on, keep values as long as they fit; forget the first that does not, and all before."""
        with self._lock:
            kept: OrderedDict[Hashable, T] = OrderedDict()
            for key, value in reversed(self._values.items()):
                if not fits(value):
                    break
                kept[key] = value
            self._values = OrderedDict(reversed(kept.items()))

    def values(self) -> list[T]:
        """What is kept; what was used last comes last."""
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
