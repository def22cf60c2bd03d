"""Draw images of a class with a model, until a folder has enough of them.

For Dreambooth (Ruiz et al. 2022, arXiv:2208.12242): trained beside the images of one dog, images of
any dog keep the model from forgetting what dogs are. An image gets its prompt as its caption.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from modules.files import replacing, write_atomically
from preprocess.job import Counts, make_parser, run_command, track

logger = logging.getLogger(__name__)


def class_images(
    *,
    output: str | Path,
    model: str,
    prompt: str,
    count: int = 200,
    negative_prompt: str = "",
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    seed: int = 0,
    batch_size: int = 4,
    dtype: str = "fp32",
    device: str | None = None,
) -> Counts:
    """Draw as many images as the folder `output` lacks to have `count`.

    All images in it count, whoever put them there. Image `00007.png` is drawn with the seed
    `seed + 7`, whatever the batch; new ones go on behind the greatest number, so that one which was
    deleted because it is bad does not come back. The model is not loaded if there are enough.

    Raises:
        ValueError: an argument is wrong, the model can't be loaded, or memory is too small.
    """
    least = {"count": 1, "num_inference_steps": 1, "batch_size": 1, "seed": 0, "guidance_scale": 0}
    for name, low in least.items():
        if locals()[name] < low:
            raise ValueError(f"{name}: {locals()[name]} is less than {low}")
    folder = Path(output)
    numbers = _missing(folder, count, prompt)
    if numbers:
        draw = _load_painter(
            model,
            prompt=prompt,
            negative_prompt=negative_prompt,
            size=(width, height),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            dtype=dtype,
            device=device,
        )
        batches = [numbers[n : n + batch_size] for n in range(0, len(numbers), batch_size)]
        outcomes = _draw_batches(draw, batches, seed, folder, prompt)
        for _ in track(outcomes, total=len(numbers), description="class images"):
            pass
    return Counts(done=len(numbers), skipped=max(0, count - len(numbers)), failed=[])


def _missing(folder: Path, count: int, prompt: str) -> list[int]:
    """The numbers of the images that are to be drawn."""
    from modules.captions import find_caption, read_captions
    from modules.images import image_files

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for _, path in image_files(folder)]
    captions = [find_caption(path.parent, path.stem, folders=(".",)) for path in files]
    others = sum(each is not None and read_captions(each) != [prompt.strip()] for each in captions)
    if others:
        logger.warning(
            "%s: %d of %d images there have another caption than this prompt; use one folder for "
            "each prompt",
            *(folder, others, len(files)),
        )
    drawn = [int(p.stem) for p in files if p.parent == folder and p.stem.isdecimal()]
    first = max(drawn, default=-1) + 1
    return list(range(first, first + count - len(files)))


def _load_painter(
    path: str,
    *,
    dtype: str,
    device: str | None,
    size: tuple[int | None, int | None],
    **settings: Any,
) -> Any:
    """A function that draws one image for each of its `seeds`."""
    import torch

    from modules.drawing import draw_images
    from modules.models import load
    from modules.prediction_probe import grey_batches, settle_prediction
    from preprocess.device import choose_device, choose_dtype

    place, precision = choose_device(device), choose_dtype(dtype)
    model = load(path)
    size = model.image_size(*size)
    settle_prediction(model, partial(grey_batches, model, settings["prompt"]))
    for piece in (*model.components().values(), model.vae):
        if piece is not None:
            torch.nn.Module.to(piece, place, precision).eval()
    prompt = settings.pop("prompt")
    autocast = partial(
        torch.autocast, place.type, dtype=precision, enabled=precision != torch.float32
    )

    def draw(seeds: Sequence[int]) -> list[Any]:
        prompts = [prompt] * len(seeds)
        try:
            return draw_images(
                model, [], prompts=prompts, seeds=seeds, size=size, autocast=autocast, **settings
            )
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():  # not every backend has a class
                raise
            raise ValueError(
                f"{len(seeds)} images at once don't fit into the memory of {place}; use a smaller "
                "batch_size, or dtype: bf16"
            ) from error

    return draw


def _draw_batches(
    draw: Any, batches: Sequence[Sequence[int]], seed: int, folder: Path, prompt: str
) -> Iterator[Path]:
    """Draw and write; the caption first, so that no image is without one."""
    for numbers in batches:
        images = draw([seed + number for number in numbers])
        for number, image in zip(numbers, images, strict=True):
            path = folder / f"{number:05d}.png"
            write_atomically(path.with_suffix(".txt"), prompt + "\n")
            with replacing(path) as temporary:
                image.save(temporary)
            yield path


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        __doc__, directory=None, output="folder of the images", output_required=True, batch_size=4
    )
    parser.add_argument(
        *("-m", "--model"), required=True, help="base model: directory, single file or hub id"
    )
    parser.add_argument("--prompt", required=True, help="what all images show: 'a photo of a dog'")
    parser.add_argument(
        "--negative_prompt", default=argparse.SUPPRESS, help="what they should not show"
    )
    parser.add_argument("--count", type=int, default=200, help="images that the folder is to have")
    parser.add_argument("--width", type=int, help="in pixels; the model's own without it")
    parser.add_argument("--height", type=int, help="in pixels; the model's own without it")
    parser.add_argument(
        *("--num_inference_steps", "--steps"), type=int, default=25, help="denoising steps"
    )
    parser.add_argument("--guidance_scale", type=float, default=7.5, help="1 switches it off")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first image; the next has 1 more"
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="precision")
    parser.add_argument("--device", help="default: the accelerator if there is one, else cpu")
    arguments = vars(parser.parse_args(argv))

    def job() -> tuple[str, list[str]]:
        counts = class_images(**arguments)
        return f"{arguments['output']}: {counts.done} drawn, {counts.skipped} were there", []

    return run_command(job)


if __name__ == "__main__":
    sys.exit(main())
