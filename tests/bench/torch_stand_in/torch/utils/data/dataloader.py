from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


class DataLoader(Generic[Row]):
    """Hands out the rows of a dataset, one at a time, in its order."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Row], **_: Any) -> None:
        self.dataset, self._collate = dataset, collate_fn

    def __iter__(self) -> Iterator[Row]:
        return (self._collate([row]) for row in self.dataset)
