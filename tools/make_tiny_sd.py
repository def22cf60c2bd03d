"""Make assets/tiny-sd: a Stable Diffusion of 3 million parameters that draws coloured shapes.

Trains the autoencoder, then the denoiser with its text encoder, all on drawn pictures, and
writes an ordinary diffusers directory. Interrupted, it goes on where it stopped (`--work`).
About an hour on two cores.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.console import quiet_libraries

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing comes from the hub
quiet_libraries()

import torch

from tools.tiny_models import build_pipeline, build_tokenizer, count_parameters, save_directory
from tools.tiny_scores import score_base, score_vae
from tools.tiny_training import (
    encode_pictures,
    sharpen_decoder,
    train_denoiser,
    train_vae,
)

logger = logging.getLogger(__name__)


def make_tiny_sd(
    *,
    output: Path,
    work: Path,
    vae_steps: int,
    decoder_steps: int,
    pictures: int,
    unet_steps: int,
    prediction_type: str = "v_prediction",
    score_count: int = 200,
) -> None:
    """Train what `work` doesn't hold yet, write the directory, and log its scores."""
    vae = train_vae(work / "vae.pt", steps=vae_steps)
    sharpen_decoder(vae, work / "decoder.pt", steps=decoder_steps)
    vae.eval()
    latent_sets = encode_pictures(vae, work / "latents.pt", count=pictures)
    unet, text_encoder = train_denoiser(
        work / "unet.pt", latent_sets, steps=unet_steps, prediction_type=prediction_type
    )
    tokenizer = build_tokenizer()
    models = (vae, unet, text_encoder)
    save_directory(output, *models, tokenizer, prediction_type=prediction_type)
    for model in models:
        logger.info("%s: %d parameters", type(model).__name__, count_parameters(model))
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    logger.info("%s: %.1f MB", output, size / 1e6)
    if score_count:
        for style in (None, "polaroid"):
            psnr, share = score_vae(vae, count=score_count, style=style)
            logger.info("vae, style %s: %.1f dB, %.1f %% hits", style, psnr, 100 * share)
        pipeline = build_pipeline(*models, tokenizer, prediction_type=prediction_type)
        for key, share in score_base(pipeline, count=score_count).items():
            logger.info("base, %s: %.1f %% hits", key, 100 * share)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("assets/tiny-sd"))
    parser.add_argument("--work", type=Path, default=Path("output/tiny-sd"), help="checkpoints")
    parser.add_argument("--vae-steps", type=int, default=6500)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--pictures", type=int, default=10000)
    parser.add_argument("--unet-steps", type=int, default=8200)
    parser.add_argument(
        "--prediction-type", default="v_prediction", choices=("v_prediction", "epsilon")
    )
    parser.add_argument("--score-count", type=int, default=200, help="pictures; 0: no scores")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    threads = arguments.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    make_tiny_sd(**arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
