"""The data sets that the published numbers belong to, by their size and, where it is declared, their content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedData:
    """A data set as the papers used it.

    Attributes:
        classes: number of classes.
        images: number of images of each split, before a part of it is chosen.
        pictures: digest of the labelled images of each split, whatever their order, where it is declared; see
            :class:`hsakd_pl.data.fingerprint.SplitFacts`.
    """

    classes: int
    images: Mapping[str, int]
    pictures: Mapping[str, str] = field(default_factory=dict)

    def difference(self, splits: Mapping[str, Mapping[str, Any]]) -> str:
        """Return in what the data of a run differ from these; empty if in nothing.

        Args:
            splits: the facts of each split as the protocol of a run holds them.
        """
        for split in self.images:
            if split not in splits:
                return f"the {split} split is not recorded"
            difference = self.difference_of(split, splits[split])
            if difference:
                return difference
        return ""

    def difference_of(self, split: str, facts: Mapping[str, Any]) -> str:
        """Return in what one split of a run differs from that of this data set; empty if in nothing."""
        if facts.get("classes") != self.classes:
            return f"{facts.get('classes')} instead of {self.classes} classes"
        if facts.get("images") != self.images[split]:
            return f"the {split} split has {facts.get('images')} instead of {self.images[split]} images"
        if split in self.pictures and facts.get("pictures") != self.pictures[split]:
            return f"the {split} split has other labels or pictures"
        return ""


# By the name of the data module, without ``DataModule``. The digests are those of all labelled images, in any order.
PUBLISHED_DATA = {
    # Krizhevsky 2009
    "CIFAR100": PublishedData(
        classes=100,
        images={"train": 50_000, "test": 10_000},
        pictures={"train": "cc20301d9657", "test": "ed74199fb63a"},
    ),
    # The labelled images of Coates et al. 2011
    "STL10": PublishedData(classes=10, images={"train": 5_000, "test": 8_000}),
    # The labelled images of Stanford CS231n's data set; its validation images are tested on
    "TinyImageNet": PublishedData(classes=200, images={"train": 100_000, "test": 10_000}),
    # ILSVRC2012; its validation images are tested on
    "ImageNet": PublishedData(classes=1000, images={"train": 1_281_167, "test": 50_000}),
}
