"""Work in threads beside the model, in bounded numbers: each unfinished call holds an image."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

THREADS = 2
AHEAD = 2  # calls that may be under way or wait to be fetched


class CallsAhead(Generic[Item]):
    """Calls of one function, in order; the next ones are under way while one is fetched."""

    def __init__(self, function: Callable[[Item], Any]) -> None:
        self._function = function
        self._pool = ThreadPoolExecutor(THREADS)
        self._calls: deque[tuple[Item, Future]] = deque()

    def add(self, item: Item) -> list[tuple[Item, Future]]:
        """Begin a call; gives the oldest item with its future, if it is time to fetch one."""
        self._calls.append((item, self._pool.submit(self._function, item)))
        return [self._calls.popleft()] if len(self._calls) > AHEAD else []

    def rest(self) -> list[tuple[Item, Future]]:
        """Those that were not given yet, when no more will be added."""
        self._pool.shutdown()
        return list(self._calls)


def call_ahead(
    function: Callable[[Item], Any], items: Iterable[Item]
) -> Iterator[tuple[Item, Future]]:
    """Each item with the future of `function(item)`, in order; the next ones are under way."""
    calls = CallsAhead(function)
    for item in items:
        yield from calls.add(item)
    yield from calls.rest()
