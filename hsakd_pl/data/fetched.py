"""Pictures that are fetched when they are needed, from a table or a data set, in place of the paths of files."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

BLOCK = 64  # pictures that are fetched at one time


class Picture(NamedTuple):
    """A picture that was fetched.

    Args:
        content: content of an image file, or an image that another library has opened.
        name: place that it came from, for errors.
    """

    content: bytes | Image.Image
    name: str

    def __str__(self) -> str:
        return self.name


Source = str | os.PathLike[str] | Picture  # what open_image opens


@dataclass(frozen=True, eq=False)
class Pictures(Sequence[Source]):
    """The pictures of a split, which stay where they are until they are needed.

    A worker process is handed the function and the positions, no pictures.

    Args:
        fetch: returns the pictures, or paths of files, at a list of positions.
        indices: positions of the split's pictures (N,).
    """

    fetch: Callable[[list[int]], list[Source]]
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Source: ...

    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        [picture] = self.fetch([int(self.indices[index])])
        return picture

    def __iter__(self) -> Iterator[Source]:
        for start in range(0, len(self), BLOCK):
            yield from self.fetch(self.indices[start : start + BLOCK].tolist())

    def take(self, indices: Any) -> "Pictures":
        """Return the pictures at ``indices``, in that order, without fetching them."""
        return Pictures(self.fetch, self.indices[np.asarray(indices, dtype=np.int64)])
