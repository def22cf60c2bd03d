"""The receipt of a run: what made its files, so that they can be made again.

Config, dataset, weights that the run began with, versions of packages, each under a key
`sd_trainer.`. Files are hashed on a thread beside training, since there may be a million of them.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

from modules import manifest
from modules.dataset_contents import DatasetContents
from modules.dataset_facts import dataset_facts
from modules.file_hashes import FileHashes, find_weights, hash_weights
from modules.masking import mask_secrets
from modules.models.weight_storage import storage_packages
from modules.package_versions import package_versions
from modules.receipt_keys import (
    BASE,
    CONFIG,
    DATASET,
    DEVICES,
    FILES,
    MANIFEST,
    PACKAGES,
    UNREAD,
    WEIGHTS,
)
from modules.safetensors_header import hash_head
from modules.sections import Config
from modules.yaml_source import escape
from modules.yaml_text import dump

logger = logging.getLogger(__name__)

_SAID_AFTER = 5.0  # seconds of waiting
_PATIENCE = 600.0  # seconds that all saves wait together


class Receipt:
    """Gathers the receipt, and what else is known of the data, from `begin` on.

    Args:
        told: what is known already.
        weights: paths or hub ids of what the run begins with, by config key: model.path.
        dataset: what is trained on.
        contents: the files of it and of the prior.
    """

    def __init__(
        self,
        *,
        told: Mapping[str, str],
        weights: Mapping[str, str],
        dataset: Any,
        contents: DatasetContents,
    ) -> None:
        self._found = dict(told)
        self._weights = weights
        self._dataset = dataset
        self._contents = contents
        self._patience = _PATIENCE
        self._thread = threading.Thread(target=self._gather, name="receipt", daemon=True)

    def begin(self) -> None:
        """Start to read files."""
        self._contents.begin()
        self._thread.start()

    def metadata(self) -> dict[str, str]:
        """Return all that is known; waits for files that are still being read.

        What takes longer than ten minutes is in a later file.
        """
        if self._thread.ident is None:
            self.begin()
        began = time.monotonic()
        self._thread.join(min(_SAID_AFTER, self._patience))
        if self._thread.is_alive() and self._patience > _SAID_AFTER:
            logger.info("waiting for the hashes of the dataset, which the receipt names")
            self._thread.join(self._patience - _SAID_AFTER)
        self._patience = max(0.0, self._patience - (time.monotonic() - began))
        if self._thread.is_alive():
            logger.warning("the dataset's files are still being hashed; this save does not name it")
        self._contents.leave_manifest()
        return dict(self._found)

    def _gather(self) -> None:
        """Add to what is found, piece by piece; a fault costs its piece alone."""
        with closing(FileHashes()) as hashes:
            for gather in (self._weigh, self._describe, self._list_files):
                try:
                    self._found.update(gather(hashes))
                except Exception as error:  # nothing here is worth a run
                    logger.warning("receipt: incomplete (%s: %s)", type(error).__name__, error)

    def _weigh(self, hashes: FileHashes) -> dict[str, str]:
        found: dict[str, str] = {}
        sums: dict[str, str] = {}
        for key, path in self._weights.items():
            place = find_weights(path)
            if place is None:
                continue
            sums[key] = hash_weights(place, hashes)
            for name, of in (("sd_model", "model.path"), ("vae", "model.vae")):
                if key == of and place.is_file():  # as sd-scripts knows files
                    found |= {f"ss_{name}_hash": hash_head(place), f"ss_new_{name}_hash": sums[key]}
        if "model.path" in sums:
            found[BASE] = sums["model.path"]
        return {**found, WEIGHTS: json.dumps(sums)}

    def _describe(self, _hashes: FileHashes) -> dict[str, str]:
        return dataset_facts(self._dataset)

    def _list_files(self, _hashes: FileHashes) -> dict[str, str]:
        total = self._contents.total()
        if total is None:
            return {}
        found = {DATASET: total.sha256, FILES: str(total.files)}
        if total.unread:
            found[UNREAD] = str(total.unread)
        if total.files <= manifest.MOST_EMBEDDED:
            found[MANIFEST] = manifest.pack_manifest(self._contents.manifest())
        return found


def make_receipt(
    config: Config, dataset: Any, contents: DatasetContents, *, devices: str
) -> Receipt:
    """Return the receipt of a run of this config on `devices`: "2 x NVIDIA H100"."""
    weights = {"model.path": config.model.path, "model.vae": config.model.vae}
    for name, network in config.networks.items():
        weights[f"networks.{name}.resume"] = network.resume
    storing = storage_packages(config.model.quantize)
    told = {
        CONFIG: dump(escape(mask_secrets(asdict(config)))),
        PACKAGES: json.dumps(package_versions([config.optimizer.module, *storing])),
        DEVICES: devices,
    }
    given = {key: path for key, path in weights.items() if path is not None}
    return Receipt(told=told, weights=given, dataset=dataset, contents=contents)
