"""How much a timestep counts in the loss, by its signal-to-noise ratio."""

from __future__ import annotations

from torch import Tensor

MAX_SNR = 1000.0  # debiased weights of hardly noised timesteps don't fall below this one's


def min_snr_weight(snr: Tensor, gamma: float, *, velocity: bool) -> Tensor:
    """min(SNR, gamma) / SNR, for v-prediction min(SNR, gamma) / (SNR + 1).

    Hardly noised timesteps count less (Hang et al. 2023, arXiv:2303.09556).
    """
    return snr.clamp(max=gamma) / (snr + 1 if velocity else snr)


def debiased_weight(snr: Tensor, *, velocity: bool) -> Tensor:
    """1 / sqrt(SNR), for v-prediction 1 / (SNR + 1), SNR at most 1000.

    Strongly noised timesteps count more, as the error of the image that the prediction stands for
    does (Yu et al. 2023, arXiv:2310.08442); the form for v-prediction is sd-scripts'.
    """
    snr = snr.clamp(max=MAX_SNR)
    return 1 / (snr + 1) if velocity else snr.rsqrt()
