"""Encode a dataset's images with a VAE, once, so that training reads latents.

Writes latents/<name>.npy, float32, unscaled: the moments of the VAE's posterior, (2C, h, w), mean
and log-variance, from which each training step draws other latents; or with --posterior one sample
of it, or its mode, (C, h, w). A second run encodes only images that are new or changed, or all of
them if VAE or posterior are others; latents/index.jsonl knows. With --flip mirrored images are
encoded too, into latents_flipped/, for `flip` of the dataset; with --text the captions, into text/.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.dataset_folder import flipped_folder
from modules.shard import Shard
from preprocess.dataset_images import check_multiples, find_images
from preprocess.job import Counts, make_parser, run_command
from preprocess.latent_encoding import complete
from preprocess.latent_index import LatentIndex
from preprocess.posterior import POSTERIORS, Posterior

logger = logging.getLogger(__name__)


def latent(
    *,
    directory: str | Path,
    model: str,
    output: str | Path | None = None,
    vae: str | None = None,
    batch_size: int = 4,
    num_workers: int | None = None,
    dtype: str = "fp32",
    posterior: Posterior = "moments",
    device: str | None = None,
    flip: bool = False,
    shard: str | None = None,
) -> Counts:
    """Encode the images that buckets.json of `directory` lists, with the VAE of `model` or `vae`.

    Images are images/<name>.png, or in older datasets <name>.png. `posterior` says what is kept of
    it: "moments", of which training draws; "sample", which depends on the image's content only, or
    "mode", its mean. `num_workers` threads decode while the VAE encodes; `dtype`, in which it
    computes, is fp32 or bf16, since VAEs overflow in fp16. With `flip` each image
    is encoded mirrored, too, into latents_flipped/ beside latents/; what is counted is latents.
    With `shard` "2/4" the second of four parts is done; parts may run at once, on machines that
    share the directory.

    Raises:
        ValueError: an argument is wrong, or there is no dataset or no VAE.
    """
    from preprocess.vae_encoder import load_encoder  # here, since torch takes seconds to import

    part = Shard.parse(shard)
    source = Path(directory)
    target = Path(output) if output is not None else source / "latents"
    if target.resolve() == (source / "text").resolve():
        raise ValueError(f"{target}: is for cached captions; name another folder for latents")
    if batch_size < 1:
        raise ValueError(f"batch_size: {batch_size} is less than 1")
    tasks, failed = find_images(source, part)
    encoder = load_encoder(vae or model, device=device, dtype=dtype, posterior=posterior)
    check_multiples(tasks, encoder.scale_factor)
    folders = {target: False, **({flipped_folder(target.resolve()): True} if flip else {})}
    results = []
    for folder, is_flipped in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        index = LatentIndex(
            folder,
            vae=encoder.fingerprint,
            dtype=dtype,
            posterior=posterior,
            is_flipped=is_flipped,
            shard=part,
        )
        results.append(complete(index, tasks, encoder, batch_size, num_workers))
    failed += [line for result in results for line in result.failed]
    return Counts(
        done=sum(result.done for result in results),
        skipped=sum(result.skipped for result in results),
        failed=list(dict.fromkeys(failed)),  # an image that can't be read fails twice
    )


_CAPTION_OPTIONS = (
    *("prefix", "suffix", "prompt", "trigger_word", "folder_words"),
    *("max_token_length", "clip_skip"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__,
        output="default: latents/ of the dataset",
        num_workers="threads that decode; default: one per processor, at most 8",
        batch_size=4,
        shard=True,
    )
    parser.add_argument(
        *("-m", "--model"),
        required=True,
        help="base model or VAE: directory, file or hub id",
    )
    parser.add_argument("--vae", help="another VAE than the model's: directory, file or hub id")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="precision")
    parser.add_argument(
        "--posterior",
        choices=POSTERIORS,
        default="moments",
        help="what is kept: moments to draw from in each step, one sample, or the mode",
    )
    parser.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    parser.add_argument(
        "--flip", action="store_true", help="also encode mirrored images, into latents_flipped/"
    )
    parser.add_argument("--text", action="store_true", help="also encode the captions, into text/")
    parser.add_argument("--prefix", help="with --text: stands before every caption")
    parser.add_argument("--suffix", help="with --text: stands behind every caption")
    parser.add_argument("--prompt", help="with --text: stands for every caption")
    parser.add_argument("--trigger_word", help="with --text: is put into every caption")
    parser.add_argument(
        "--folder_words",
        action="store_true",
        default=None,
        help="with --text: captions of images without one, as `repeats: folders` has them",
    )
    for option in ("--max_token_length", "--clip_skip"):
        parser.add_argument(option, type=int, help="with --text: as in the run's model section")
    arguments = vars(parser.parse_args(argv))
    captions = {key: arguments.pop(key) for key in _CAPTION_OPTIONS}
    if not arguments["text"]:
        for key, value in captions.items():
            if value is not None:
                parser.error(f"--{key}: has no effect without --text")
    with_text = arguments.pop("text")
    given = {key: value for key, value in captions.items() if value is not None}
    return run_command(lambda: _run(arguments, given if with_text else None))


def _run(arguments: Mapping[str, Any], captions: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """Encode captions, which is quick, and images; return a summary and the failures.

    Captions alone, if the model works on pixels.
    """
    from preprocess.vae_encoder import NoVAE

    results = {}
    if captions is not None:
        from preprocess.text_cache import cache_text

        keys = ("directory", "model", "batch_size", "dtype", "device", "shard")
        results["text"] = cache_text(
            **{key: arguments[key] for key in keys},
            **captions,
        )
    try:
        results["latents"] = latent(**arguments)
    except NoVAE:
        if not results or arguments["flip"]:
            raise
    lines = [
        f"{arguments['directory']}: {kind}: {r.done} encoded, {r.skipped} kept, "
        f"{len(r.failed)} failed"
        for kind, r in results.items()
    ]
    return "\n".join(lines), [line for result in results.values() for line in result.failed]


if __name__ == "__main__":
    sys.exit(main())
