"""Items in lists of about equal weight, for work that is cheaper by the dozen."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def in_chunks(items: Iterable[Item], weight: Callable[[Item], int], enough: int) -> Iterator[list[Item]]:
    """Consecutive items, each list ending with the one that brings its weight to `enough`; the last may be lighter."""
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += weight(item)
        if total >= enough:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
