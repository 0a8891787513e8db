"""Work in threads beside the model, in bounded numbers: each unfinished call holds an image."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

THREADS = 2
AHEAD = 2  # calls that may be under way or wait to be fetched


def call_ahead(
    function: Callable[[Item], Any], items: Iterable[Item]
) -> Iterator[tuple[Item, Future]]:
    """Each item with the future of `function(item)`, in order; the next ones are under way."""
    calls: deque[tuple[Item, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for item in items:
            calls.append((item, pool.submit(function, item)))
            if len(calls) > AHEAD:
                yield calls.popleft()
        yield from calls
