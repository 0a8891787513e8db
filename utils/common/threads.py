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


class Background:
    """Runs calls in threads; use as a context manager, which waits for the last of them.

    Attributes:
        results: what the finished calls returned, in order.
    """

    def __init__(self) -> None:
        self.results: list[Any] = []
        self._pending: deque[Future] = deque()
        self._pool = ThreadPoolExecutor(THREADS)

    def submit(self, function: Callable[..., Any], *args: Any) -> None:
        """Run `function(*args)` soon; waits while too many are under way.

        Raises:
            Exception: whatever an earlier call raised.
        """
        self._pending.append(self._pool.submit(function, *args))
        self._fetch(AHEAD)

    def _fetch(self, keep: int) -> None:
        while len(self._pending) > keep:
            self.results.append(self._pending.popleft().result())

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self._fetch(0)
        finally:
            self._pool.shutdown(cancel_futures=True)
