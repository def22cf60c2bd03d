import json
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_tagger import FEATURES, SIDE, TinyTagger, as_seen, draw

from modules.dataset_files import SideInput
from preprocess import create_pfg_feature
from preprocess.sources import stamp
from preprocess.tagger_control import DEFAULT_TAGGER, main, tagger_control
from preprocess.wd14 import WD14, load_tagger
from preprocess.wd14_features import load_features
from preprocess.wd14_files import find_tagger

NAMES = ("a", "sub/b.1", "c", "d")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return TinyTagger().save(tmp_path_factory.mktemp("taggers") / "tiny")


@pytest.fixture
def dataset(tmp_path):
    for i, name in enumerate(NAMES):
        draw(tmp_path / "data" / "images" / f"{name}.png", seed=i)
    content = json.dumps({"(8, 8)": NAMES[:2], "(16, 8)": NAMES[2:]})
    (tmp_path / "data" / "buckets.json").write_text(content, encoding="utf-8")
    return tmp_path / "data"


def counts(result):
    return result.done, result.skipped, len(result.failed)


def load(dataset, name, folder="pfg"):
    with np.load(dataset / folder / f"{name}.npz") as arrays:
        assert list(arrays) == ["controll"]
        return arrays["controll"]


def check_features(dataset, tiny):
    for name in NAMES:
        features = load(dataset, name)
        assert features.dtype == np.float32
        assert features.shape == (tiny.first.shape[1],)
        wanted = tiny.features(as_seen(dataset / "images" / f"{name}.png"))
        np.testing.assert_allclose(features, wanted, atol=1e-4)


def test_the_readmes_command(dataset, model, capsys):
    arguments = ["-d", str(dataset), "-o", str(dataset / "pfg"), "-m", str(model)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{dataset}: features: 4 done, 0 kept, 0 failed\n"
    check_features(dataset, TinyTagger())
    tagger = json.loads((dataset / "pfg" / "tagger.json").read_text(encoding="utf-8"))
    sha256 = find_tagger(str(model)).sha256
    assert tagger == {"tagger": "tiny", "sha256": sha256, "features": FEATURES}
    side_input = SideInput(dataset, "pfg", "npz")
    assert all(side_input.shape(name) == (FEATURES,) for name in NAMES)
    assert DEFAULT_TAGGER == "SmilingWolf/wd-v1-4-vit-tagger-v2"


def test_the_other_name_is_the_same_command(dataset, model):
    arguments = ["--input_dir", str(dataset), "--output_path", str(dataset / "pfg")]
    assert create_pfg_feature.main([*arguments, "-m", str(model)]) == 0
    check_features(dataset, TinyTagger())
    result = create_pfg_feature.create_pfg_feature(directory=dataset, model=str(model))
    assert counts(result) == (0, 4, 0)


@pytest.mark.parametrize("tail", ["MatMul", "Gemm", "Cast"])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_features_are_what_the_last_layer_is_given(tmp_path, tail, batch):
    tiny = TinyTagger(features=5)
    files = find_tagger(str(tiny.save(tmp_path / "tagger", tail=tail, batch=batch)))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(3)]
    features = load_features(files).run(images)
    assert features.shape == (3, 5)
    probabilities = 1 / (1 + np.exp(-(features @ tiny.last + tiny.bias)))
    np.testing.assert_allclose(probabilities, load_tagger(files).run(images), atol=1e-5)
    for image, feature in zip(images, features, strict=True):
        np.testing.assert_allclose(feature, tiny.features(image), atol=1e-4)


@pytest.mark.parametrize(
    ("outputs", "tags"),
    [
        (("probabilities", "embedding"), "tags_info.csv"),
        (("probabilities", "logits", "embedding"), "selected_tags.csv"),
        (("embedding",), None),
    ],
)
def test_models_with_features_as_an_output(dataset, tmp_path, outputs, tags):
    tiny = TinyTagger(seed=3)
    folder = tiny.save(tmp_path / "ready", outputs=outputs, tags=tags, file="pooling-layer.onnx")
    for model in (folder, folder / "pooling-layer.onnx"):
        result = tagger_control(directory=dataset, model=str(model), batch_size=3)
        assert sum(counts(result)[:2]) == 4
        check_features(dataset, tiny)


def test_second_of_two_outputs_is_the_embedding_whatever_its_name(tmp_path):
    import onnx

    folder = TinyTagger().save(tmp_path / "two", outputs=("probabilities", "embedding"))
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["pooled" if name == "embedding" else name for name in names]
    model.graph.output[1].name = "pooled"
    onnx.save(model, folder / "model.onnx")
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    (features,) = load_features(find_tagger(str(folder))).run([image])
    np.testing.assert_allclose(features, TinyTagger().features(image), atol=1e-4)


def test_features_that_cannot_be_told_are_an_error(tmp_path):
    import onnx
    from onnx import helper

    folder = TinyTagger().save(tmp_path / "tagger")
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].input[0] = "squares"  # another layer after the last linear one
    model.graph.node.insert(5, helper.make_node("Mul", ["logits"] * 2, ["squares"], name="square"))
    onnx.save(model, folder / "model.onnx")
    with pytest.raises(ValueError, match="tagger: its features can't be told, Mul 'square' stands"):
        load_features(find_tagger(str(folder)))
    several = TinyTagger().save(tmp_path / "several", outputs=("probabilities", "logits", "sums"))
    with pytest.raises(ValueError, match="none of the outputs probabilities, logits, sums is the"):
        load_features(find_tagger(str(several)))
    (several / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is not an ONNX model"):
        load_features(find_tagger(str(several)))


def test_second_run_does_what_changed(dataset, model):
    given = {"directory": dataset, "model": str(model), "batch_size": 2}
    tagger_control(**given)
    assert counts(tagger_control(**given)) == (0, 4, 0)
    draw(dataset / "images" / "a.png", seed=99)
    os.utime(dataset / "images" / "c.png", ns=(1, 1))  # another date, the same content
    (dataset / "pfg" / "d.npz").unlink()
    assert counts(tagger_control(**given)) == (2, 2, 0)
    check_features(dataset, TinyTagger())
    before = stamp(dataset / "pfg" / "a.npz")
    assert counts(tagger_control(**given)) == (0, 4, 0)
    assert stamp(dataset / "pfg" / "a.npz") == before


def test_features_of_another_tagger_are_not_mixed_nor_lost(dataset, model, tmp_path, capsys):
    tagger_control(directory=dataset, model=str(model))
    old = {name: load(dataset, name) for name in NAMES}
    (dataset / "pfg" / "c.npz").unlink()
    other = TinyTagger(seed=1, features=4).save(tmp_path / "other")
    assert main(["-d", str(dataset), "-m", str(other)]) == 2
    assert (
        f"{dataset / 'pfg'}: holds features of tiny, not of other, and they don't mix; name another"
        " --output, or add --overwrite to replace them"
    ) in capsys.readouterr().err
    assert all(np.array_equal(load(dataset, name), old[name]) for name in ("a", "sub/b.1", "d"))
    elsewhere = tagger_control(directory=dataset, model=str(other), output=dataset / "pfg4")
    assert counts(elsewhere) == (4, 0, 0)
    assert counts(tagger_control(directory=dataset, model=str(other), overwrite=True)) == (4, 0, 0)
    check_features(dataset, TinyTagger(seed=1, features=4))
    tagger = json.loads((dataset / "pfg" / "tagger.json").read_text(encoding="utf-8"))
    assert (tagger["tagger"], tagger["features"]) == ("other", 4)
    assert counts(tagger_control(directory=dataset, model=str(other))) == (0, 4, 0)


def test_features_of_unknown_origin_are_kept(dataset, model):
    (dataset / "pfg").mkdir()
    np.savez(dataset / "pfg" / "a.npz", controll=np.zeros(3))
    given = {"directory": dataset, "model": str(model)}
    with pytest.raises(ValueError, match=r"pfg: holds features of an unknown tagger, not of tiny"):
        tagger_control(**given)
    assert load(dataset, "a").shape == (3,)
    assert tagger_control(**given, overwrite=True).done == 4
    check_features(dataset, TinyTagger())


def test_overwriting_begins_only_when_the_tagger_has_been_loaded(dataset, model, tmp_path):
    tagger_control(directory=dataset, model=str(model))
    broken = TinyTagger().save(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is not an ONNX model"):
        tagger_control(directory=dataset, model=str(broken), overwrite=True)
    check_features(dataset, TinyTagger())


def test_stop_while_overwriting_leaves_no_mixture(dataset, model, tmp_path, monkeypatch):
    tagger_control(directory=dataset, model=str(model))
    other = TinyTagger(seed=1).save(tmp_path / "other")
    run, calls = WD14.run, []

    def stop(self, images):
        calls.append(images)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(self, images)

    monkeypatch.setattr(WD14, "run", stop)
    given = {"directory": dataset, "model": str(other), "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        tagger_control(**given, overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in (dataset / "pfg").rglob("*.npz")] == ["a.npz"]
    assert counts(tagger_control(**given)) == (3, 1, 0)
    check_features(dataset, TinyTagger(seed=1))


def test_the_same_model_elsewhere_is_the_same_tagger(dataset, model, tmp_path):
    tagger_control(directory=dataset, model=str(model))
    copy = TinyTagger().save(tmp_path / "copy")
    assert counts(tagger_control(directory=dataset, model=str(copy))) == (0, 4, 0)


def test_bad_images_are_named_and_lose_their_features(dataset, model, capsys):
    tagger_control(directory=dataset, model=str(model))
    (dataset / "images" / "a.png").write_bytes(b"no image")
    (dataset / "images" / "d.png").unlink()
    assert main(["-d", str(dataset), "-m", str(model)]) == 1
    output = capsys.readouterr()
    assert "features: 0 done, 2 kept, 2 failed" in output.out
    assert "a.png: is not an image that Pillow reads" in output.err
    assert f"{dataset / 'images' / 'd'}: no such image" in output.err
    assert not (dataset / "pfg" / "a.npz").exists()
    draw(dataset / "images" / "a.png", seed=0)
    assert counts(tagger_control(directory=dataset, model=str(model))) == (1, 2, 1)


def test_features_that_are_not_finite_are_named_and_not_written(dataset, tmp_path):
    tiny = TinyTagger()
    tiny.first[:3] = np.inf  # times the first pixel; 0 * inf is nan
    broken = tiny.save(tmp_path / "broken")
    result = tagger_control(directory=dataset, model=str(broken))
    assert counts(result) == (0, 0, 4)
    assert "a.png: the tagger's output isn't finite" in result.failed[0]
    assert not list((dataset / "pfg").rglob("*.npz"))


def test_images_of_older_datasets_and_of_plain_folders(dataset, model):
    for path in list((dataset / "images").rglob("*.png")):
        target = dataset / path.relative_to(dataset / "images")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert tagger_control(directory=dataset, model=str(model)).done == 4
    (dataset / "buckets.json").unlink()
    output = dataset.parent / "out"
    assert tagger_control(directory=dataset, model=str(model), output=output).done == 4
    assert (output / "sub" / "b.1.npz").is_file()


def test_wrong_arguments(dataset, model, tmp_path, capsys):
    for options, message in (
        (["-m", str(tmp_path / "absent")], "absent: no such directory"),
        (["-m", "nobody/no-such-tagger"], "nobody/no-such-tagger: there is no such directory here"),
        (["-d", str(tmp_path / "x")], "x: no such directory"),
        (["-o", str(dataset / "buckets.json")], "buckets.json: is a file; name a directory"),
        (["--device", "nonsense"], "device: 'nonsense' is not cpu, cuda or cuda:<index>"),
        (["--batch_size", "0"], "batch_size: 0 is less than 1"),
    ):
        assert main(["-d", str(dataset), "-m", str(model), *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    (dataset / "pfg").mkdir()
    (dataset / "pfg" / "tagger.json").write_text("{", encoding="utf-8")
    assert main(["-d", str(dataset), "-m", str(model)]) == 2
    assert "tagger.json: can't be read" in capsys.readouterr().err
    assert not list(Path(dataset / "pfg").glob("*.npz"))
