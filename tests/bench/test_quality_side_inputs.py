"""The side inputs of the quality table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from bench.quality_pictures import SIZE, draw_scattered, scattered_scene
from bench.quality_side_inputs import (
    FEATURE_COUNT,
    foreground_mask,
    image_features,
    outline,
    write_features,
    write_guides,
)
from modules.dataset import LatentDataset
from preprocess.bucketing import bucketing
from preprocess.scenes import draw_mask, draw_scene, sample_scene

SCENE = sample_scene(np.random.default_rng(0), size=SIZE)


def scattered(count: int) -> list:
    rng = np.random.default_rng(5)
    return [scattered_scene(rng) for _ in range(count)]


def test_the_foreground_is_the_drawn_shape():
    for scene in scattered(20):
        mask = draw_mask(scene.shape, SIZE, scene.center, scene.radius)
        wanted = np.asarray(mask) > 127
        found = foreground_mask(draw_scene(scene))
        assert (found & wanted).sum() / (found | wanted).sum() > 0.97


def test_an_outline_is_a_closed_line_around_the_foreground():
    for scene in scattered(20):
        guide = np.asarray(outline(draw_scene(scene)))
        assert guide.shape == (64, 64, 3)
        assert set(np.unique(guide)) == {0, 255}
        line, mask = guide[..., 0] > 0, foreground_mask(draw_scene(scene))
        assert 0 < line.sum() < 0.25 * line.size
        for mask_turned, line_turned in ((mask, line), (mask.T, line.T)):
            edges = mask_turned[1:] != mask_turned[:-1]
            assert (line_turned[1:] & line_turned[:-1])[edges].all()


def test_features_tell_colors_and_places():
    features = image_features(draw_scene(SCENE))
    assert features.shape == (FEATURE_COUNT,)
    assert np.abs(features).max() <= 1.0
    moved = replace(SCENE, center=(SCENE.center[0] + 8, SCENE.center[1]))
    other = replace(SCENE, foreground_rgb=(0, 0, 0))
    cells, in_moved, in_other = (
        image_features(draw_scene(scene)).reshape(8, 8, 4) for scene in (SCENE, moved, other)
    )
    assert np.abs(in_moved - cells)[..., 3].max() > 0.3  # where the shape is
    assert np.abs(in_other - cells)[..., 3].max() < 0.05
    assert np.allclose(in_other[4, 4, :3], -1, atol=0.1)
    assert np.allclose(cells[0, 0, :3], 2 * np.array(SCENE.background_rgb) / 255 - 1, atol=1e-3)
    assert np.allclose(in_moved[3:5, 1:], cells[3:5, :-1], atol=0.1)


def test_side_inputs_are_what_the_dataset_reads(tmp_path):
    draw_scattered(output=f"{tmp_path}/pictures", count=3)
    dataset = tmp_path / "dataset"
    bucketing(
        directory=tmp_path / "pictures",
        output=dataset,
        resolution=64,
        min_length=48,
        max_length=80,
        step=16,
    )
    (dataset / "latents").mkdir()
    for index in range(3):
        np.save(dataset / "latents" / f"{index:04d}.npy", np.zeros((4, 16, 16), np.float32))
    write_features(directory=str(dataset))
    write_guides(directory=str(dataset))
    data = LatentDataset(str(dataset), extras={"pfg": "npz", "control": "image"})
    data.check_latent_shapes(4, 4)
    sample = data[1]
    assert sample.extras["pfg"].shape == (FEATURE_COUNT,)
    assert sample.extras["control"].shape == (3, 64, 64)
    assert sample.extras["control"].unique().tolist() == [0.0, 1.0]
    picture = Image.open(tmp_path / "pictures" / f"{data.names[1]}.png")
    assert np.allclose(sample.extras["pfg"].numpy(), image_features(picture))
