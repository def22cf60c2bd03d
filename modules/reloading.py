"""Loading what a run has saved, as another run or program would."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from modules.parts import build_network
from modules.run_kinds import kind_of
from modules.savers import BASE_ENDINGS, is_trained, network_stem, suffixes_of
from modules.sections import Config

if TYPE_CHECKING:
    from modules.trainer import Trainer


def load_again(run: Trainer, config: Config) -> None:
    """Load the last save in `run.directory` beside the run, without the base's weights.

    Raises:
        ValueError: a file is not what its class can load.
    """
    load, section = kind_of(config).load, config.model
    trained = [name for name, network in run.networks.items() if is_trained(network)]
    if run.trained_base:
        path = run.directory / (run.name + BASE_ENDINGS[config.save.format])
        load(replace(section, path=str(path), vae=None), weights=False)
    if not trained:
        return
    model = load(section, weights=False)
    if model.prediction_source is None:
        model.use_scheduler(run.model.scheduler)  # as it was measured
    for name in trained:
        alone = len(trained) == 1 and not run.trained_base
        stem = network_stem(run.name, name, alone=alone)
        path = run.directory / (stem + suffixes_of(run.networks[name])[0])
        build_network(replace(config.networks[name], resume=str(path)), {}, model)
