"""Were cached latents made by the VAE that a run decodes with?"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from modules.cache_notes import CacheNotes
from modules.dataset_facts import prepared_parts
from modules.dataset_files import list_names, raise_faults
from modules.dataset_folder import LATENTS
from modules.models.fingerprint import hash_encoder
from modules.models.pieces import load_vae
from modules.prepared_dataset import PreparedDataset

logger = logging.getLogger(__name__)


def check_latent_origins(dataset: Any, model: Any, vae: str) -> None:
    """Check that all latents are of the model's VAE, as far as their scripts noted it.

    `vae` is where its weights are, for a model without. Of a model on pixels nothing is asked. What
    made latents of older datasets is not known; that is said.

    Raises:
        ValueError: some are of another VAE; names their images.
    """
    parts = [part for _, part in prepared_parts(dataset)]
    latents = [(part, each) for part in parts for each in part.notes if each.folder in LATENTS]
    for part, notes in latents:
        _warn_of_unknown(part, notes)
    noted = [(part, notes) for part, notes in latents if any(notes.which("vae"))]
    if not noted or getattr(model, "vae", None) is None:
        return
    own = model.vae
    if any(parameter.is_meta for parameter in own.parameters()):
        own = load_vae(vae)
    fingerprint = hash_encoder(own)
    faults: dict[PreparedDataset, list[str]] = {}
    for part, notes in noted:
        strange = [v is not None and v != fingerprint for v in notes.which("vae")]
        others = np.array([*strange, False])[notes.made_by]  # the last stands for nothing noted
        if others.any():
            names = [part.names[number] for number in np.flatnonzero(others).tolist()]
            flip = "" if notes.folder == LATENTS[0] else " --flip"
            faults.setdefault(part, []).append(
                f"{notes.folder}: {len(names)} of {len(part)} are of another VAE than that of "
                f"{vae}: {list_names(names)}; run preprocess/latent.py{flip} -d {part.store} "
                f"-m {vae}, or train with the VAE that made them (model.vae)"
            )
    for part, lines in faults.items():
        raise_faults(part.store, lines)


def _warn_of_unknown(part: PreparedDataset, notes: CacheNotes) -> None:
    if unknown := int((~notes.known).sum()):
        logger.warning(
            "%s/%s: of %d of %d it isn't known which image and which VAE made them, so they can't "
            "be checked; preprocess/latent.py would make and note them",
            *(part.store, notes.folder, unknown, len(part)),
        )
