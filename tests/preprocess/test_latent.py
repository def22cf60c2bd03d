import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from modules.dataset import LatentDataset
from modules.images import to_tensor
from modules.models.pieces import load_vae
from modules.moments import draw as draw_latents
from preprocess.bucketing import bucketing
from preprocess.latent import latent, main
from preprocess.pack import pack
from preprocess.vae_encoder import VAEEncoder

ROOT = Path(__file__).parents[2]


def make_vae(seed=0):
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    )


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost more than they give on images of 16 pixels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    make_vae().save_pretrained(directory / "vae")
    (directory / "model_index.json").write_text("{}", encoding="utf-8")
    return str(directory)


@pytest.fixture
def dataset(tmp_path):
    sizes = {"a": (16, 16), "sub/b.1": (16, 16), "c": (16, 24), "d": (16, 16)}
    buckets = {}
    for i, (name, size) in enumerate(sizes.items()):
        draw(tmp_path / "images" / f"{name}.png", size, seed=i)
        buckets.setdefault(str(size), []).append(name)
    (tmp_path / "buckets.json").write_text(json.dumps(buckets), encoding="utf-8")
    return tmp_path


def draw(path, size, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def counts(result):
    return result.done, result.skipped, len(result.failed)


def load(dataset, name):
    return np.load(dataset / "latents" / f"{name}.npy", allow_pickle=False)


def test_latents_are_posterior_samples(dataset, model):
    made = latent(directory=dataset, model=model, batch_size=2, posterior="sample")
    assert counts(made) == (4, 0, 0)
    vae = load_vae(model)
    for name in ("a", "sub/b.1", "c"):
        image = Image.open(dataset / "images" / f"{name}.png")
        pixels = torch.from_numpy(np.asarray(image) / 127.5 - 1).float().permute(2, 0, 1)
        with torch.no_grad():
            posterior = vae.encode(pixels[None]).latent_dist
        latents = load(dataset, name)
        assert latents.dtype == np.float32
        assert latents.shape == (4, image.height // 2, image.width // 2)
        noise = (latents - posterior.mean[0].numpy()) / posterior.std[0].numpy()
        assert abs(noise.mean()) < 0.3
        assert 0.8 < noise.std() < 1.2
    LatentDataset(str(dataset), prompt="").check_latent_shapes(2, 4)


def test_moments_are_those_of_the_posterior_and_draw_what_it_would(dataset, model):
    assert counts(latent(directory=dataset, model=model, batch_size=2)) == (4, 0, 0)
    vae = load_vae(model)
    for name in ("a", "sub/b.1", "c"):
        pixels = to_tensor(Image.open(dataset / "images" / f"{name}.png"))
        with torch.no_grad():
            posterior = vae.encode(pixels[None]).latent_dist
        moments = torch.from_numpy(load(dataset, name))[None]
        wanted = torch.cat([posterior.mean, posterior.logvar], dim=1)
        torch.testing.assert_close(moments, wanted, atol=1e-5, rtol=1e-5)
        torch.manual_seed(5)
        expected = posterior.sample()
        torch.manual_seed(5)
        torch.testing.assert_close(draw_latents(moments, 4), expected, atol=1e-5, rtol=1e-5)
    LatentDataset(str(dataset), prompt="").check_latent_shapes(2, 4)


def test_the_mode_is_the_mean(dataset, model):
    latent(directory=dataset, model=model, output=dataset / "moments")
    latent(directory=dataset, model=model, posterior="mode")
    moments = np.load(dataset / "moments" / "a.npy")
    np.testing.assert_array_equal(load(dataset, "a"), moments[:4])


def test_another_posterior_is_encoded_anew_and_never_mixed(dataset, model, caplog):
    caplog.set_level("INFO")
    older = {"directory": dataset, "model": model, "posterior": "sample"}
    assert counts(latent(**older)) == (4, 0, 0)
    assert "posterior" not in (dataset / "latents" / "index.jsonl").read_text(encoding="utf-8")
    assert counts(latent(directory=dataset, model=model)) == (4, 0, 0)
    assert "4 latents are of another VAE, precision or --posterior" in caplog.text
    assert load(dataset, "a").shape == (8, 8, 8)
    assert counts(latent(directory=dataset, model=model)) == (0, 4, 0)
    pack(directory=dataset, remove=True)
    assert counts(latent(directory=dataset, model=model)) == (0, 4, 0)
    assert counts(latent(**older)) == (4, 0, 0)
    assert load(dataset, "a").shape == (4, 8, 8)


def test_flipped_latents_of_another_posterior_are_named(dataset, model):
    latent(directory=dataset, model=model, posterior="sample", flip=True)
    latent(directory=dataset, model=model)
    message = "latents_flipped: 4 of 4 are of another VAE, precision, posterior or image"
    with pytest.raises(ValueError, match=message):
        LatentDataset(str(dataset), prompt="", flip=0.5)
    latent(directory=dataset, model=model, flip=True)
    LatentDataset(str(dataset), prompt="", flip=0.5).check_latent_shapes(2, 4)


def test_a_file_that_cannot_be_written_is_named(dataset, model, capsys, monkeypatch):
    save = np.save

    def full(file, arr):
        save(file, arr[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("preprocess.latent_index.np.save", full)
    arguments = ["-d", str(dataset), "-m", model, "--batch_size", "1"]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "can't be written ([Errno 28] No space left on device)" in told
    assert ".npy" in told
    assert not [file for file in (dataset / "latents").rglob("*") if ".npy" in file.name]
    monkeypatch.undo()
    assert main(arguments) == 0


def test_what_could_not_be_written_is_told_before_what_failed_behind_it(
    dataset, model, monkeypatch
):
    encode, calls = VAEEncoder.encode, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) > 1:
            time.sleep(0.2)  # the writer is through by then
            raise ValueError("the encoder failed")
        return encode(self, *args, **options)

    def full(file, arr):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("preprocess.latent_index.np.save", full)
    monkeypatch.setattr(VAEEncoder, "encode", failing)
    with pytest.raises(OSError, match="No space left") as error:
        latent(directory=dataset, model=model, batch_size=1)
    assert "the encoder failed" in str(error.value.__cause__ or error.value.__context__)


def test_an_unknown_posterior_is_refused(dataset, model, capsys):
    with pytest.raises(ValueError, match="posterior: 'mean' is not one of moments, sample, mode"):
        latent(directory=dataset, model=model, posterior="mean")
    with pytest.raises(SystemExit):
        main(["-d", str(dataset), "-m", model, "--posterior", "mean"])
    assert "invalid choice: 'mean'" in capsys.readouterr().err


def test_latents_depend_on_the_content_only(dataset, model):
    latent(directory=dataset, model=model, batch_size=3)
    first = {name: load(dataset, name) for name in ("a", "sub/b.1", "c", "d")}
    torch.manual_seed(123)
    latent(directory=dataset, model=model, output=dataset / "again", batch_size=1, num_workers=1)
    for name, latents in first.items():
        again = np.load(dataset / "again" / f"{name}.npy")
        np.testing.assert_allclose(latents, again, atol=1e-5)
    assert not np.allclose(first["a"], first["d"])


def test_second_run_encodes_what_changed(dataset, model):
    latent(directory=dataset, model=model)
    assert counts(latent(directory=dataset, model=model)) == (0, 4, 0)
    old = load(dataset, "a")
    draw(dataset / "images" / "a.png", (16, 16), seed=99)
    os.utime(dataset / "images" / "c.png", ns=(1, 1))  # another date, the same content
    (dataset / "latents" / "d.npy").unlink()
    assert counts(latent(directory=dataset, model=model)) == (2, 2, 0)
    assert not np.allclose(load(dataset, "a"), old)
    assert counts(latent(directory=dataset, model=model)) == (0, 4, 0)


def test_another_vae_or_precision_encodes_again_and_says_so(dataset, model, tmp_path, caplog):
    caplog.set_level("INFO")
    latent(directory=dataset, model=model)
    old = load(dataset, "a")
    make_vae(seed=1).save_pretrained(tmp_path / "other")
    other = {"directory": dataset, "model": model, "vae": str(tmp_path / "other")}
    assert counts(latent(**other)) == (4, 0, 0)
    assert "4 latents are of another VAE, precision or --posterior" in caplog.text
    assert not np.allclose(load(dataset, "a"), old)
    assert counts(latent(**other)) == (0, 4, 0)
    assert counts(latent(**other, dtype="bf16")) == (4, 0, 0)
    assert load(dataset, "a").dtype == np.float32


def test_decoder_is_no_part_of_the_key(tmp_path, model):
    vae = make_vae()
    torch.nn.init.zeros_(vae.decoder.conv_in.weight)
    cpu = {"device": torch.device("cpu"), "dtype": "fp32"}
    assert VAEEncoder(vae, **cpu).fingerprint == VAEEncoder(load_vae(model), **cpu).fingerprint
    other = VAEEncoder(make_vae(seed=1), **cpu).fingerprint
    assert other != VAEEncoder(load_vae(model), **cpu).fingerprint


def flipped(dataset, name):
    return np.load(dataset / "latents_flipped" / f"{name}.npy", allow_pickle=False)


def test_flipped_latents_are_those_of_mirrored_images(dataset, model):
    options = {"directory": dataset, "model": model, "flip": True, "posterior": "sample"}
    assert counts(latent(**options)) == (8, 0, 0)
    plain = {name: load(dataset, name) for name in ("a", "sub/b.1", "c", "d")}
    vae = load_vae(model)
    encoder = VAEEncoder(vae, device=torch.device("cpu"), dtype="fp32")
    for name, latents in plain.items():
        path = dataset / "images" / f"{name}.png"
        pixels = torch.from_numpy(np.asarray(Image.open(path)) / 127.5 - 1).float()
        seed = int(hashlib.sha256(path.read_bytes()).hexdigest()[:15], 16)
        for values, image in ((latents, pixels), (flipped(dataset, name), pixels.flip(1))):
            expected = encoder.encode(image.permute(2, 0, 1)[None], [seed])[0]
            np.testing.assert_allclose(values, expected, atol=1e-5)
        mirrored = latents[..., ::-1]
        assert np.abs(flipped(dataset, name) - mirrored).max() > 0.1  # a VAE is not equivariant
    assert counts(latent(**options)) == (0, 8, 0)


def test_flip_adds_to_latents_that_are_there(dataset, model):
    latent(directory=dataset, model=model)
    assert counts(latent(directory=dataset, model=model, flip=True)) == (4, 4, 0)
    (dataset / "latents_flipped" / "c.npy").unlink()
    draw(dataset / "images" / "a.png", (16, 16), seed=99)
    old = flipped(dataset, "a")
    assert counts(latent(directory=dataset, model=model, flip=True)) == (3, 5, 0)
    assert not np.allclose(flipped(dataset, "a"), old)
    shutil.copytree(dataset / "latents_flipped", dataset / "latents", dirs_exist_ok=True)
    assert counts(latent(directory=dataset, model=model, flip=True)) == (4, 4, 0)


def test_an_image_that_fails_is_named_once_with_flip(dataset, model):
    (dataset / "images" / "a.png").write_bytes(b"no image")
    assert counts(latent(directory=dataset, model=model, flip=True)) == (6, 0, 1)


def test_dataset_wants_flipped_latents_of_the_same_vae_and_image(dataset, model, tmp_path):
    latent(directory=dataset, model=model)
    with pytest.raises(ValueError, match=r"latents_flipped: 4 of 4 missing: .*latent\.py --flip"):
        LatentDataset(str(dataset), prompt="", flip=0.5)
    latent(directory=dataset, model=model, flip=True)
    LatentDataset(str(dataset), prompt="", flip=0.5).check_latent_shapes(2, 4)
    draw(dataset / "images" / "c.png", (16, 24), seed=99)
    latent(directory=dataset, model=model)
    message = r"latents_flipped: 1 of 4 are of another VAE.* in latents: c; run .* --flip"
    with pytest.raises(ValueError, match=message):
        LatentDataset(str(dataset), prompt="", flip=0.5)
    make_vae(seed=1).save_pretrained(tmp_path / "other")
    latent(directory=dataset, model=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="4 of 4 are of another VAE"):
        LatentDataset(str(dataset), prompt="", flip=0.5)
    LatentDataset(str(dataset), prompt="")  # without flip they don't matter
    latent(directory=dataset, model=str(tmp_path / "other"), flip=True)
    np.save(dataset / "latents_flipped" / "d.npy", np.zeros((4, 8, 9), dtype=np.float32))
    dataset = LatentDataset(str(dataset), prompt="", flip=0.5)
    with pytest.raises(ValueError, match=r"latents_flipped/d\.npy: shape \(4, 8, 9\) .* --flip"):
        dataset.check_latent_shapes(2, 4)


def test_bucketing_an_image_anew_takes_both_of_its_latents(model, tmp_path):
    draw(tmp_path / "photos" / "a.png", (80, 80), seed=0)
    data, sizes = tmp_path / "data", {"resolution": 64, "min_length": 64, "max_length": 64}
    bucketing(directory=tmp_path / "photos", output=data, **sizes)
    latent(directory=data, model=model, flip=True)
    draw(tmp_path / "photos" / "a.png", (80, 80), seed=1)
    bucketing(directory=tmp_path / "photos", output=data, **sizes)
    assert not list(data.rglob("a.npy"))


def test_flip_on_the_command_line(dataset, model, capsys):
    assert main(["-d", str(dataset), "-m", model, "--flip"]) == 0
    assert "latents: 8 encoded, 0 kept, 0 failed" in capsys.readouterr().out
    assert flipped(dataset, "c").shape == (8, 12, 8)


def test_latents_of_unknown_origin_are_replaced(dataset, model, caplog):
    caplog.set_level("INFO")
    (dataset / "latents").mkdir()
    np.save(dataset / "latents" / "a.npy", np.zeros(1))
    assert latent(directory=dataset, model=model).done == 4
    assert "not known which VAE made 1 latents" in caplog.text
    assert load(dataset, "a").shape == (8, 8, 8)


def test_images_of_older_datasets(dataset, model):
    for path in list((dataset / "images").rglob("*.png")):
        target = dataset / path.relative_to(dataset / "images")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert latent(directory=dataset, model=model).done == 4


def test_bad_images_are_named_and_skipped(dataset, model, capsys):
    (dataset / "images" / "a.png").write_bytes(b"no image")
    draw(dataset / "images" / "c.png", (16, 16), seed=0)
    (dataset / "images" / "d.png").unlink()
    arguments = ["-d", str(dataset), "-o", str(dataset / "latents"), "-m", model]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "latents: 1 encoded, 0 kept, 3 failed" in output.out
    assert "a.png: is not an image that Pillow reads" in output.err
    assert "c.png: size (16, 16) is not bucket (16, 24); run preprocess/bucketing.py" in output.err
    assert f"{dataset / 'images' / 'd'}: no such image" in output.err
    assert sorted(p.name for p in (dataset / "latents").iterdir()) == ["index.jsonl", "sub"]


def test_image_that_went_bad_loses_its_latents(dataset, model):
    latent(directory=dataset, model=model)
    (dataset / "images" / "a.png").write_bytes(b"no image")
    assert counts(latent(directory=dataset, model=model)) == (0, 3, 1)
    assert not (dataset / "latents" / "a.npy").exists()
    draw(dataset / "images" / "a.png", (16, 16), seed=0)
    assert counts(latent(directory=dataset, model=model)) == (1, 3, 0)


def test_latents_that_are_not_finite_are_named_and_not_written(dataset, model, monkeypatch):
    encode = VAEEncoder.encode

    def spoil(self, pixel_values, seeds):
        latents = encode(self, pixel_values, seeds)
        latents[1:, 0, 0, 0] = np.nan
        return latents

    monkeypatch.setattr(VAEEncoder, "encode", spoil)
    result = latent(directory=dataset, model=model, batch_size=2)
    assert counts(result) == (3, 0, 1)
    assert "sub/b.1: its latents are not finite" in result.failed[0]
    assert not (dataset / "latents" / "sub" / "b.1.npy").exists()
    monkeypatch.undo()
    assert counts(latent(directory=dataset, model=model)) == (1, 3, 0)


def test_out_of_memory_halves_the_batch(dataset, model, monkeypatch, caplog):
    encode, sizes = VAEEncoder._encode_part, []

    def fit_one(self, pixel_values, seeds):
        sizes.append(len(seeds))
        if len(seeds) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, pixel_values, seeds)

    monkeypatch.setattr(VAEEncoder, "_encode_part", fit_one)
    assert latent(directory=dataset, model=model, batch_size=4).done == 4
    assert sizes == [3, 1, 1, 1, 1]
    assert "out of memory: batches of 1 from here on" in caplog.text

    def fit_none(self, pixel_values, seeds):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(VAEEncoder, "_encode_part", fit_none)
    with pytest.raises(ValueError, match="one image of 16x16 doesn't fit into the memory of cpu"):
        latent(directory=dataset, model=model, output=dataset / "other")


def test_other_errors_of_the_vae_are_not_taken_for_lack_of_memory(dataset, model, monkeypatch):
    def fail(self, pixel_values, seeds):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(VAEEncoder, "_encode_part", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        latent(directory=dataset, model=model)


def test_stopped_run_is_continued(dataset, model, monkeypatch):
    encode, calls = VAEEncoder.encode, []

    def stop(self, pixel_values, seeds):
        calls.append(seeds)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, pixel_values, seeds)

    monkeypatch.setattr(VAEEncoder, "encode", stop)
    with pytest.raises(KeyboardInterrupt):
        latent(directory=dataset, model=model, batch_size=1)
    monkeypatch.undo()
    assert counts(latent(directory=dataset, model=model, batch_size=1)) == (2, 2, 0)
    names = [path.suffix for path in (dataset / "latents").rglob("*") if path.is_file()]
    assert sorted(names) == [".jsonl", *[".npy"] * 4]


def test_wrong_arguments(dataset, model, tmp_path, capsys):
    arguments = ["-d", str(dataset)]
    for options, message in (
        (["-m", str(tmp_path / "absent")], "absent: no such directory"),
        (["-m", str(dataset)], "is neither a diffusers model with a VAE nor a VAE's folder"),
        (["-m", model, "--device", "nonsense"], "device: 'nonsense' can't be used"),
        (["-m", model, "--batch_size", "0"], "batch_size: 0 is less than 1"),
        (["-m", model, "-d", str(tmp_path / "x")], "no such file; run preprocess/bucketing.py"),
    ):
        assert main([*arguments, *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "-m", model, "--dtype", "fp16"])
    assert stop.value.code == 2
    with pytest.raises(ValueError, match="dtype: 'fp16' is not one of fp32, bf16"):
        latent(directory=dataset, model=model, dtype="fp16")
    (dataset / "buckets.json").write_text('{"(15, 16)": ["a"]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"bucket \(15, 16\): the VAE wants multiples of 2"):
        latent(directory=dataset, model=model)


def test_help_is_quick_and_imports_no_torch(tmp_path):
    """From another directory, as a person would type it."""
    script = ROOT / "preprocess" / "latent.py"
    code = (
        "import runpy, sys; sys.argv = ['latent.py', '--help']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "finally: print([name for name in ('torch', 'diffusers', 'tqdm') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert "--batch_size" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def all_latents(dataset):
    data = LatentDataset(str(dataset), prompt="")
    return {name: data[number].latents for number, name in enumerate(data.names)}


def test_packed_latents_are_kept_until_images_or_vae_change(dataset, model, tmp_path):
    latent(directory=dataset, model=model)
    pack(directory=dataset, remove=True)
    assert counts(latent(directory=dataset, model=model)) == (0, 4, 0)
    old = all_latents(dataset)
    draw(dataset / "images" / "a.png", (16, 16), seed=99)
    os.utime(dataset / "images" / "c.png", ns=(1, 1))  # another date, the same content
    assert counts(latent(directory=dataset, model=model)) == (1, 3, 0)
    changed = all_latents(dataset)
    assert not torch.allclose(changed.pop("a"), old["a"])
    assert all(torch.equal(latents, old[name]) for name, latents in changed.items())
    make_vae(seed=1).save_pretrained(tmp_path / "other")
    again = latent(directory=dataset, model=model, vae=str(tmp_path / "other"))
    assert counts(again) == (4, 0, 0)
    assert not list(dataset.rglob("*.safetensors"))[1:]  # that of the VAE itself
    for name, latents in all_latents(dataset).items():
        assert not torch.allclose(latents, old[name])
