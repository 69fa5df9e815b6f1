from typing import Generic, TypeVar

Row = TypeVar("Row")


class IterableDataset(Generic[Row]):
    """A base without behaviour."""
