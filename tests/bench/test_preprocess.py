"""The benchmark of preprocessing: small, but whole."""

import pytest
from PIL import Image

from bench.preprocess import bucket_of, draw_photos, main, pillow_loop
from bench.training_models import TINY


@pytest.mark.slow
def test_it_measures_both(capsys):
    few = ["--images", "3", "--encoded", "2", "--side", "128", "--rounds", "1", "--workers", "1"]
    assert main([*few, "--resolution", "128", "--vae", str(TINY)]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "bucketing, 1 process; Pillow, PNG by default",
        "bucketing, 1 process; Pillow, PNG lightly",
        "latents; the bare VAE",
    ]
    for line in lines:
        ours, theirs = (float(cell) for cell in line.split("|")[2:4])
        assert ours > 0
        assert theirs > 0


def test_the_peer_makes_what_buckets_are(tmp_path):
    source = draw_photos(tmp_path / "photos", 2)
    pillow_loop(source, 256, tmp_path / "output", level=1)
    sizes = [Image.open(file).size for file in sorted((tmp_path / "output").iterdir())]
    assert sizes == [bucket_of((4000, 3000), 256), bucket_of((3000, 4000), 256)]
    assert sizes == [(256, 192), (192, 256)]
