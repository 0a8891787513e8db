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
    with ThreadPoolExecutor(THREADS) as pool:
        pending: deque[tuple[Item, Future]] = deque()
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > AHEAD:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
