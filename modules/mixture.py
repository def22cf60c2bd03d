"""Several datasets in one run: their images share batches."""

from __future__ import annotations

import logging
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from modules.batch import Sample
from modules.buckets import Size
from modules.content_hashes import content_hashes
from modules.guides import whole_sample
from modules.mixture_entries import Entry, entry_faults, read_entries
from modules.mixture_parts import Part, check_side_inputs, name_parts
from modules.parts import build_dataset
from modules.sections import DatasetConfig

if TYPE_CHECKING:
    from modules.models.base import DiffusionModel

logger = logging.getLogger(__name__)


class Mixture(Dataset[Sample]):
    """Datasets one behind the other; buckets of one size are united, so that batches mix them.

    An entry of `datasets` holds the arguments of its dataset, which is a
    `modules.dataset.LatentDataset` or of the class that `module` names: path, repeats, prefix.
    `loss_weight` multiplies the loss of its images. `common` are arguments of all, where an entry
    doesn't give its own.

    Images' names begin with that of their dataset, the last part of its path. Images of equal size
    stay apart whose samples hold other things: latents or pixels, cached text or none.

    Raises:
        ValueError: an entry is wrong, or lacks side inputs that another has; lists all that is.
    """

    find_faults = staticmethod(entry_faults)  # asked before anything is built

    def __init__(
        self,
        datasets: Sequence[Mapping[str, Any]],
        *,
        common: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        entries = read_entries(datasets, common)
        built = _try_each(
            # Seeds of their own, so that the n-th images of two draw different things.
            (f"datasets.{number}", partial(_build, entry, seed + number))
            for number, entry in enumerate(entries)
        )
        self.names: list[str] = []
        self.parts: list[Part] = []
        for name, dataset, entry in zip(name_parts(entries), built, entries, strict=True):
            self.parts.append(Part(name, dataset, entry.loss_weight, start=len(self.names)))
            own = getattr(dataset, "names", None) or map(str, range(len(dataset)))
            self.names += [f"{name}/{each}" for each in own]
        self._starts = [part.start for part in self.parts]
        self.path = ", ".join(str(entry.args.get("path", entry.module)) for entry in entries)
        check_side_inputs(self.parts)
        self._unite()

    def _unite(self) -> None:
        """Unite the datasets' buckets of equal size whose samples hold the same fields."""
        united: dict[tuple[Size, tuple[str, ...]], list[np.ndarray]] = {}
        for part in self.parts:
            fields = part.fields()
            for size, indices in part.buckets():
                times, numbers = np.divmod(indices, len(part.dataset))
                ours = times * len(self.names) + part.start + numbers
                united.setdefault((size, fields), []).append(ours)
        keys = sorted(united)
        self.bucket_sizes = [size for size, _ in keys]
        self.buckets = [array("q", np.concatenate(united[key]).tobytes()) for key in keys]

    @property
    def provides(self) -> frozenset[str]:
        """Name what the samples of all datasets hold beside latents and caption."""
        return frozenset.intersection(*(part.provides for part in self.parts))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Sample]:
        """Yield every image once; greater indices are those of repeats, so they don't end it."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        part, own = self.find_part(index)
        return part.mark(part.dataset[own])

    def whole_sample(self, index: int) -> Sample:
        """Return an image with nothing left to chance, as far as its dataset can."""
        part, own = self.find_part(index)
        return part.mark(whole_sample(part.dataset, own))

    def first_samples(self) -> list[Sample]:
        """Return one sample of each dataset."""
        return [self[part.start] for part in self.parts]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose random captions and changes of images are drawn."""
        for part in self._with("set_epoch"):
            part.dataset.set_epoch(epoch)

    def caption(self, index: int) -> str:
        """Return the final caption of an image in the current epoch."""
        part, own = self.find_part(index)
        return (
            part.dataset.caption(own) if hasattr(part.dataset, "caption") else self[index].caption
        )

    def whole_caption(self, index: int) -> str:
        """Return an image's caption with nothing left to chance."""
        part, own = self.find_part(index)
        whole = getattr(part.dataset, "whole_caption", None)
        return whole(own) if whole else self[index].caption

    def read_geometry(self) -> bool:
        """Let samples tell the sizes and crops of images; say if any dataset knows them.

        Images of those that don't know them have batches of their own.
        """
        known = [part for part in self._with("read_geometry") if part.dataset.read_geometry()]
        without = [part.name for part in self.parts if part not in known]
        if known and without:
            logger.warning(
                "%s: sizes and crops of the images are not known, and each counts as neither "
                "scaled nor cropped, in batches of their own; preprocess/bucketing.py writes them",
                ", ".join(without),
            )
        self._unite()
        return bool(known)

    def content_hashes(self) -> list[str]:
        """Return a hash of each image's content."""
        return [each for part in self.parts for each in content_hashes(part.dataset)]

    def summary(self) -> list[str]:
        """Describe the datasets: images times repeats, buckets, and what each says of itself."""
        described = ", ".join(part.describe() for part in self.parts)
        total = sum(map(len, self.buckets))
        sizes: Counter[Size] = Counter()
        for size, bucket in zip(self.bucket_sizes, self.buckets, strict=True):
            sizes[size] += int(np.count_nonzero(np.asarray(bucket) < len(self)))
        counts = ", ".join(f"{width}x{height}: {count}" for (width, height), count in sizes.items())
        lines = [
            f"{len(self)} images, {len(self.parts)} datasets: {described} = {total} an epoch",
            f"images per bucket: {counts}",
        ]
        if len({part.fields() for part in self.parts}) > 1:
            holding = [f"{part.name} ({', '.join(part.fields())})" for part in self.parts]
            lines.append(
                f"not mixed in a batch, since they hold other things: {'; '.join(holding)}"
            )
        for part in self._with("summary"):
            summary = part.dataset.summary()
            own = summary.splitlines() if isinstance(summary, str) else summary
            lines += [f"{part.name}: {line}" for line in own]
        return lines

    def origin(self, key: str) -> dict[str, Any]:
        """Return what made the side input `key`.

        Raises:
            ValueError: it was made by different things.
        """
        origins = {part.name: part.dataset.origin(key) for part in self._with("origin")}
        if not origins:
            return {}
        (first, origin), *others = origins.items()
        for name, other in others:
            if other != origin:
                raise ValueError(
                    f"{key}: that of {name} was made by {other}, that of {first} by {origin}; make "
                    "both with one"
                )
        return origin

    def check_latent_shapes(self, vae_scale_factor: int, latent_channels: int) -> None:
        """Compare the files of all datasets with their buckets.

        Raises:
            ValueError: lists those that differ.
        """
        self._check("check_latent_shapes", vae_scale_factor, latent_channels)

    def check_every_shape(self, vae_scale_factor: int, latent_channels: int) -> None:
        """Do as `check_latent_shapes` with every file, however many there are."""
        self._check("check_every_shape", vae_scale_factor, latent_channels)

    def check_text_cache(self, model: DiffusionModel, networks: Mapping[str, Any]) -> None:
        """Check that cached text is what `model` with `networks` would make of the captions.

        Raises:
            ValueError: it isn't, in one of the datasets.
        """
        self._check("check_text_cache", model, networks)

    def find_part(self, index: int) -> tuple[Part, int]:
        """The dataset of an image, and the image's index there."""
        time, number = divmod(index, len(self.names))
        part = self.parts[bisect_right(self._starts, number) - 1]
        return part, time * len(part.dataset) + number - part.start

    def _check(self, method: str, *arguments: Any) -> None:
        _try_each(
            (part.name, partial(getattr(part.dataset, method), *arguments))
            for part in self._with(method)
        )

    def _with(self, method: str) -> list[Part]:
        return [part for part in self.parts if hasattr(part.dataset, method)]


def _build(entry: Entry, seed: int) -> Any:
    return build_dataset(DatasetConfig(module=entry.module, args=dict(entry.args)), seed=seed)


def _try_each(actions: Iterable[tuple[str, Callable[[], Any]]]) -> list[Any]:
    """Call actions, which have a name each.

    Raises:
        ValueError: some failed; lists what each said.
    """
    results, faults = [], []
    for name, action in actions:
        try:
            results.append(action())
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError("\n".join(faults))
    return results
