import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modules.batch import collate
from modules.buckets import BucketBatchSampler
from modules.dataset import LatentDataset

BUCKETS = {"(16, 24)": ["a", "sub/b"], "(24, 16)": ["c"], "(8, 8)": []}
NAMES = ["a", "sub/b", "c"]
SHAPES = {"a": (4, 6, 4), "sub/b": (4, 6, 4), "c": (4, 4, 6)}  # latents at a quarter


@pytest.fixture
def directory(tmp_path):
    write(tmp_path, "buckets.json", json.dumps(BUCKETS))
    for i, name in enumerate(NAMES):
        save_array(tmp_path, f"latents/{name}.npy", np.full(SHAPES[name], i, dtype=np.float32))
        write(tmp_path, f"captions/{name}.{'caption' if i else 'txt'}", f"picture, of, {name}\n")
    return tmp_path


def write(directory, name, text):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def save_array(directory, name, array, **arrays):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez(path, **({"arr_0": array} if array is not None else {}), **arrays)


def save_image(directory, name, size, color=(255, 0, 51)):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_samples(directory):
    dataset = LatentDataset(str(directory), prefix="x, ")
    assert dataset.names == NAMES
    assert [list(bucket) for bucket in dataset.buckets] == [[0, 1], [2]]
    assert dataset.bucket_sizes == [(16, 24), (24, 16)]
    assert len(dataset) == 3
    assert dataset.provides == frozenset()
    sample = dataset[1]
    assert (sample.name, sample.caption) == ("sub/b", "x, picture, of, sub/b")
    torch.testing.assert_close(sample.latents, torch.ones(4, 6, 4))
    assert sample.mask is sample.original_size is sample.crop_top_left is None
    dataset.check_latent_shapes(4, 4)


def test_side_inputs(directory):
    for name in NAMES:
        _, height, width = SHAPES[name]
        save_array(directory, f"pfg/{name}.npz", None, controll=np.arange(5.0))
        save_array(directory, f"mask/{name}.npz", np.full((height, width), 0.25))
        save_image(directory, f"control/{name}.png", (4 * width, 4 * height))
    extras = {"control": "image", "pfg": "npz"}
    dataset = LatentDataset(str(directory), mask=True, extras=extras)
    assert dataset.provides == {"control", "pfg", "mask"}
    dataset.check_latent_shapes(4, 4)
    batch = collate([dataset[0], dataset[1]])
    assert batch.mask.shape == (2, 1, 6, 4)
    assert batch.mask.dtype == batch.extras["pfg"].dtype == torch.float32
    assert batch.extras["control"].shape == (2, 3, 24, 16)
    torch.testing.assert_close(batch.extras["control"][0, :, 3, 3], torch.tensor([1.0, 0, 0.2]))
    torch.testing.assert_close(batch.extras["pfg"][1], torch.arange(5.0))


def test_sizes_from_image_index(directory, caplog):
    entries = [{"name": n, "original_size": [300, 200], "crop_top_left": [0, 7]} for n in NAMES]
    write(directory, "images.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    dataset = LatentDataset(str(directory))
    assert dataset[2].original_size is None  # until a model asks for it
    assert dataset.read_geometry()
    sample = dataset[2]
    assert (sample.original_size, sample.crop_top_left) == ((200, 300), (0, 7))
    write(directory, "images.jsonl", json.dumps(entries[0]) + "\n")
    dataset = LatentDataset(str(directory))
    assert not dataset.read_geometry()
    assert dataset[0].original_size is None
    assert "has no sizes of sub/b" in caplog.text


def test_captions_beside_older_images_and_prompt(directory):
    (directory / "captions" / "a.txt").unlink()
    write(directory, "a.caption", "beside")
    assert LatentDataset(str(directory)).caption(0) == "beside"
    dataset = LatentDataset(str(directory), prompt="same", prefix="x, ")
    assert {dataset.caption(i) for i in range(3)} == {"x, same"}


def test_random_captions_depend_on_seed_epoch_and_index_alone(directory):
    options = {"shuffle_caption": True, "caption_dropout": 0.3}

    def draw(dataset, epochs):
        captions = []
        for epoch in epochs:
            dataset.set_epoch(epoch)
            captions.append([dataset.caption(i) for i in range(3)])
        return captions

    dataset = LatentDataset(str(directory), **options)
    whole = draw(dataset, range(30))
    assert draw(dataset, range(30)) == whole
    assert draw(LatentDataset(str(directory), **options), range(20, 30)) == whole[20:]
    assert draw(LatentDataset(str(directory), seed=1, **options), range(30)) != whole
    for column in zip(*whole, strict=True):
        assert 3 <= column.count("") <= 18
        assert len(set(column)) > 3


def test_workers_that_live_on_see_the_epoch_change(directory):
    dataset = LatentDataset(str(directory), shuffle_caption=True)
    sampler = BucketBatchSampler(dataset.buckets, batch_size=2, shuffle=False)
    options = {"batch_sampler": sampler, "collate_fn": collate}
    loader = DataLoader(dataset, num_workers=1, persistent_workers=True, **options)
    in_process = DataLoader(dataset, **options)
    epochs = []
    for epoch in range(6):
        dataset.set_epoch(epoch)
        epochs.append([batch.captions for batch in loader])
        assert epochs[-1] == [batch.captions for batch in in_process]
    assert any(captions != epochs[0] for captions in epochs)


def test_summary(directory):
    (directory / "captions" / "c.caption").unlink()
    lines = LatentDataset(str(directory), allow_missing_captions=True, prefix="x, ").summary()
    assert lines == [
        "images per bucket: 16x24: 2, 24x16: 1",
        "captions: 2 of 3; missing: c",
        "caption of a: 'x, picture, of, a'",
        "caption of sub/b: 'x, picture, of, sub/b'",
        "caption of c: 'x, '",
    ]


def test_all_missing_files_are_listed_at_once(directory):
    (directory / "latents" / "a.npy").unlink()
    (directory / "captions" / "sub" / "b.caption").unlink()
    with pytest.raises(ValueError, match="is not ready for training") as error:
        LatentDataset(str(directory), mask=True, extras={"control": "image"})
    assert str(error.value).splitlines()[1:] == [
        "  latents: 1 of 3 missing: a; run preprocess/latent.py",
        "  control: 3 of 3 missing: a, sub/b, c; add them to control/ or take control out of "
        "extras",
        "  mask: 3 of 3 missing: a, sub/b, c; run preprocess/create_mask.py",
        "  captions: 1 of 3 missing: sub/b; add captions/<name>.txt or .caption, or set "
        "allow_missing_captions: true",
    ]


def test_long_lists_are_cut(tmp_path):
    names = [f"cat_{i:02d}" for i in range(30)]
    write(tmp_path, "buckets.json", json.dumps({"(8, 8)": names}))
    with pytest.raises(ValueError, match=r"30 of 30 missing: cat_00, .*, cat_09 and 20 more; run"):
        LatentDataset(str(tmp_path), prompt="cat")


def test_images_without_mask_count_fully(directory, caplog):
    save_array(directory, "mask/a.npz", np.zeros((6, 4)))
    dataset = LatentDataset(str(directory), mask=True)
    assert "mask: 2 of 3 missing: sub/b, c; these images count fully" in caplog.text
    assert collate([dataset[0], dataset[1]]).mask.flatten(1).mean(1).tolist() == [0, 1]


def test_shapes_that_do_not_fit_are_listed(directory):
    save_array(directory, "latents/a.npy", np.zeros((4, 6, 5), dtype=np.float32))
    save_array(directory, "mask/c.npz", np.zeros((6, 4)))
    for name in NAMES:
        save_image(directory, f"control/{name}.png", (24, 16))
    dataset = LatentDataset(str(directory), mask=True, extras={"control": "image"})
    with pytest.raises(ValueError, match="is not ready for training") as error:
        dataset.check_latent_shapes(4, 4)
    again = "again after bucketing"
    latent = "run preprocess/latent.py"
    assert str(error.value).splitlines()[1:] == [
        f"  latents/a.npy: shape (4, 6, 5) is not bucket (16, 24); {latent} {again}",
        f"  control/a.png: size (24, 16) is not bucket (16, 24); run its script {again}",
        f"  control/sub/b.png: size (24, 16) is not bucket (16, 24); run its script {again}",
        f"  mask/c.npz: shape (6, 4) is not bucket (24, 16); run preprocess/create_mask.py "
        f"--scale_factor 4 {again}",
    ]
    with pytest.raises(ValueError, match=r"latents/c\.npy: shape \(4, 4, 6\)"):
        dataset.check_latent_shapes(8, 4)
    with pytest.raises(ValueError, match=r"latents/c\.npy: has 4 channels, the model's latents"):
        dataset.check_latent_shapes(4, 16)


def test_damaged_and_pickled_arrays_are_named(directory):
    dataset = LatentDataset(str(directory))
    (directory / "latents" / "a.npy").write_bytes(b"\x93NUMPY")
    np.save(directory / "latents" / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    for index, name in ((0, "a.npy"), (2, "c.npy")):
        with pytest.raises(ValueError, match=f"{name}: can't be read"):
            dataset[index]
    with pytest.raises(ValueError, match=r"a\.npy: can't be read"):
        dataset.check_latent_shapes(4, 4)


def test_wrong_arguments(directory, tmp_path):
    with pytest.raises(ValueError, match="absent: no such directory"):
        LatentDataset(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"meta\.json: no such file; run preprocess/bucketing\.py"):
        LatentDataset(str(directory), metadata="meta.json")
    with pytest.raises(ValueError, match=r"extras\.control: 'png' is not a kind of file"):
        LatentDataset(str(directory), extras={"control": "png"})
    with pytest.raises(ValueError, match="is not a name for a folder"):
        LatentDataset(str(directory), extras={"../x": "npz"})
    with pytest.raises(ValueError, match="caption_dropout"):
        LatentDataset(str(directory), caption_dropout=2.0)


def test_what_made_a_side_input_is_read_from_its_folder(directory):
    dataset = LatentDataset(str(directory))
    assert dataset.origin("pfg") == {}
    (directory / "pfg").mkdir(exist_ok=True)
    note = '{"tagger": "a/b", "sha256": "12", "features": 768}'
    (directory / "pfg" / "tagger.json").write_text(note, encoding="utf-8")
    assert dataset.origin("pfg")["tagger"] == "a/b"


def test_a_dataset_ends_when_it_is_gone_through(directory):
    dataset = LatentDataset(str(directory), repeats=3)
    assert [sample.name for sample in dataset] == NAMES
    assert sum(map(len, dataset.buckets)) == 9
