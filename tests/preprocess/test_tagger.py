import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tagger import SIDE, TAGS, TinyTagger, as_seen, draw, write_tags

from preprocess.tagger import main, tagger
from preprocess.wd14 import WD14

ROOT = Path(__file__).parents[2]
NAMES = ("a", "sub/b.1", "c", "d")
ALL = {"threshold": 0.0, "character_threshold": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return TinyTagger().save(tmp_path_factory.mktemp("taggers") / "tiny")


@pytest.fixture
def dataset(tmp_path):
    for i, name in enumerate(NAMES):
        draw(tmp_path / "data" / "images" / f"{name}.png", (SIDE, SIDE - i), seed=i)
    write_buckets(tmp_path / "data", NAMES)
    return tmp_path / "data"


def write_buckets(directory, names):
    content = json.dumps({"(8, 8)": list(names)})
    (directory / "buckets.json").write_text(content, encoding="utf-8")


def expected_caption(path, *, least, tiny=None):
    probabilities = (tiny or TinyTagger()).probabilities(as_seen(path))
    ranked = sorted(zip(-probabilities, TAGS, strict=True), key=lambda pair: pair[0])
    spelt = [
        name if name in ("^_^", "(o)_(o)") else name.replace("_", " ")
        for negative, (name, category) in ranked
        if -negative >= least.get(category, 2)
    ]
    return ", ".join(spelt) + "\n"


def counts(result):
    return result.done, result.skipped, result.kept, len(result.failed)


def read(dataset, name, suffix=".caption"):
    return (dataset / "captions" / f"{name}{suffix}").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tail", "batch", "batch_size"),
    [("MatMul", "batch", 3), ("Gemm", 1, 8), ("Cast", 3, 2), ("MatMul", None, 1)],
)
def test_captions_hold_the_tags_by_probability(dataset, tmp_path, tail, batch, batch_size):
    model = TinyTagger().save(tmp_path / "tagger", tail=tail, batch=batch)
    given = {"directory": dataset, "model": str(model), "batch_size": batch_size, **ALL}
    assert counts(tagger(**given)) == (4, 0, 0, 0)
    captions = {read(dataset, name) for name in NAMES}
    assert len(captions) == 4  # images differ, so that a wrong order of them is seen
    for name in NAMES:
        path = dataset / "images" / f"{name}.png"
        assert read(dataset, name) == expected_caption(path, least={0: 0, 4: 0})


def test_thresholds_are_by_category(dataset, model):
    tagger(directory=dataset, model=str(model), threshold=0.4, character_threshold=0.6)
    texts = {name: read(dataset, name) for name in NAMES}
    for name in NAMES:
        path = dataset / "images" / f"{name}.png"
        assert texts[name] == expected_caption(path, least={0: 0.4, 4: 0.6})


def test_transparency_is_white(dataset, model):
    rgba = np.full((SIDE, SIDE, 4), 255, dtype=np.uint8)
    rgba[:4] = (200, 100, 0, 0)  # a colour that can't be seen
    rgba[4:] = (200, 100, 0, 255)
    Image.fromarray(rgba).save(dataset / "images" / "a.png")
    tagger(directory=dataset, model=str(model), **ALL)
    rgba[:4] = 255
    Image.fromarray(rgba[..., :3]).save(dataset / "a.png")
    assert read(dataset, "a") == expected_caption(dataset / "a.png", least={0: 0, 4: 0})


def test_second_run_tags_what_changed(dataset, model):
    given = {"directory": dataset, "model": str(model), **ALL}
    tagger(**given)
    assert counts(tagger(**given)) == (0, 4, 0, 0)
    old = read(dataset, "a")
    draw(dataset / "images" / "a.png", (SIDE, SIDE), seed=99)
    os.utime(dataset / "images" / "c.png", ns=(1, 1))  # another date, the same content
    (dataset / "captions" / "d.caption").unlink()
    assert counts(tagger(**given)) == (2, 2, 0, 0)
    assert read(dataset, "a") != old
    assert read(dataset, "a") == expected_caption(dataset / "images" / "a.png", least={0: 0, 4: 0})
    assert counts(tagger(**given)) == (0, 4, 0, 0)


def test_other_settings_or_another_tagger_write_again_but_not_over_a_persons_edit(
    dataset, model, tmp_path
):
    tagger(directory=dataset, model=str(model), **ALL)
    (dataset / "captions" / "a.caption").write_text("my own\n", encoding="utf-8")
    given = {"directory": dataset, "model": str(model), "threshold": 0.5}
    assert counts(tagger(**given)) == (3, 0, 1, 0)
    other = TinyTagger(seed=1).save(tmp_path / "other")
    assert counts(tagger(**{**given, "model": str(other)})) == (3, 0, 1, 0)
    assert read(dataset, "a") == "my own\n"
    assert counts(tagger(**given, overwrite=True)) == (4, 0, 0, 0)
    assert read(dataset, "a") != "my own\n"
    assert counts(tagger(**given, overwrite=True)) == (0, 4, 0, 0)
    assert counts(tagger(**given)) == (0, 4, 0, 0)


def test_captions_of_a_person_are_kept_wherever_they_are(dataset, model):
    mine = [dataset / "captions/a.txt", dataset / "sub/b.1.caption", dataset / "images/c.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine", encoding="utf-8")
    given = {"directory": dataset, "model": str(model)}
    assert counts(tagger(**given, output=dataset / "captions")) == (1, 0, 3, 0)
    assert [p.name for p in (dataset / "captions").rglob("*.caption")] == ["d.caption"]
    assert counts(tagger(**given, output=dataset.parent / "elsewhere")) == (4, 0, 0, 0)
    assert counts(tagger(**given, overwrite=True)) == (3, 1, 0, 0)
    assert all(path.read_text(encoding="utf-8") == "mine" for path in mine)
    assert read(dataset, "a") != "mine"


def test_txt_captions(dataset, model):
    (dataset / "captions").mkdir()
    (dataset / "captions" / "a.caption").write_text("mine", encoding="utf-8")
    given = {"directory": dataset, "model": str(model), "caption_extension": "txt", **ALL}
    assert counts(tagger(**given)) == (3, 0, 1, 0)
    assert not (dataset / "captions" / "a.txt").exists()
    assert counts(tagger(**given, overwrite=True)) == (1, 3, 0, 0)
    assert not (dataset / "captions" / "a.caption").exists()  # it would win over the new one
    assert read(dataset, "a", ".txt") == read_expected(dataset, "a")
    (dataset / "captions" / "a.caption").write_text("mine again", encoding="utf-8")
    draw(dataset / "images" / "a.png", (SIDE, SIDE), seed=99)
    tagger(**given)
    assert read(dataset, "a") == "mine again"


def read_expected(dataset, name):
    return expected_caption(dataset / "images" / f"{name}.png", least={0: 0, 4: 0})


def test_plain_folder_has_its_captions_beside_the_images(tmp_path, model, capsys, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "photos"
    for i, name in enumerate(("cat.png", "cat.bmp", "in/dog.png", "in/cow.png")):
        draw(folder / name, (SIDE, SIDE), seed=i)
    (folder / "in" / "cow.txt").write_text("a cow", encoding="utf-8")
    assert main(["-d", str(folder), "-m", str(model), "--threshold", "0"]) == 0
    out = capsys.readouterr().out
    summary = f"{folder}: captions: 2 written, 0 kept, 1 have one of their own, 0 failed\n"
    assert out.endswith(summary)
    assert "1 images are left out, others have their names up to the suffix" in caplog.text
    written = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.caption"))
    assert written == ["cat.caption", str(Path("in/dog.caption"))]
    least = {0: 0, 4: 0.85}
    text = (folder / "cat.caption").read_text(encoding="utf-8")
    assert text == expected_caption(folder / "cat.png", least=least)
    assert main(["-d", str(folder), "-m", str(model), "-o", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").rglob("*.caption"))) == 3


def test_image_without_a_tag_gets_an_empty_caption(dataset, model, capsys):
    arguments = ["-d", str(dataset), "-m", str(model)]
    assert main([*arguments, "--threshold", "1", "--character_threshold", "1"]) == 0
    assert "4 written (4 without a tag), 0 kept, 0 failed" in capsys.readouterr().out
    assert read(dataset, "a") == "\n"


def test_bad_images_are_named_and_skipped(dataset, model, capsys):
    (dataset / "images" / "a.png").write_bytes(b"no image")
    (dataset / "images" / "d.png").unlink()
    for done in ("2 written, 0 kept", "0 written, 2 kept"):
        assert main(["--directory", str(dataset), "--model", str(model)]) == 1
        output = capsys.readouterr()
        assert f"captions: {done}, 2 failed" in output.out
        assert "a.png: is not an image that Pillow reads" in output.err
        assert f"{dataset / 'images' / 'd'}: no such image" in output.err
    assert not (dataset / "captions" / "a.caption").exists()


def test_stopped_run_is_continued(dataset, model, monkeypatch):
    run, calls = WD14.run, []

    def stop(self, images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, images)

    monkeypatch.setattr(WD14, "run", stop)
    given = {"directory": dataset, "model": str(model), "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        tagger(**given)
    monkeypatch.undo()
    assert counts(tagger(**given)) == (2, 2, 0, 0)
    files = [p.suffix for p in (dataset / "captions").rglob("*") if p.is_file()]
    assert sorted(files) == [*[".caption"] * 4, ".jsonl"]


def test_tagger_is_not_loaded_when_there_is_nothing_to_do(dataset, model, monkeypatch):
    tagger(directory=dataset, model=str(model))
    monkeypatch.setattr("preprocess.tagger.load_tagger", None)
    assert tagger(directory=dataset, model=str(model)).skipped == 4


def test_wrong_arguments_are_one_line_each(dataset, model, tmp_path, capsys):
    empty, broken, other = tmp_path / "empty", tmp_path / "broken", tmp_path / "other"
    empty.mkdir()
    TinyTagger().save(broken)
    (broken / "model.onnx").write_bytes(b"no model")
    TinyTagger().save(other)
    write_tags(other / "selected_tags.csv", TAGS[:5])
    two = TinyTagger().save(tmp_path / "two", file="one.onnx")
    TinyTagger().save(two, file="two.onnx")
    nameless = TinyTagger().save(tmp_path / "nameless", tags=None)
    logits = TinyTagger().save(tmp_path / "logits", outputs=("logits",))
    unlisted = TinyTagger().save(tmp_path / "unlisted")
    (unlisted / "selected_tags.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    for options, message in (
        (["-m", str(tmp_path / "absent")], "absent: no such directory"),
        (["-m", str(empty)], "empty: holds no model.onnx"),
        (["-m", str(two)], "holds no model.onnx, but one.onnx, two.onnx; name one of them"),
        (["-m", str(nameless)], "has no selected_tags.csv, without which outputs have no names"),
        (["-m", str(unlisted)], "is not a tagger's list of tags (no column 'name')"),
        (["-m", str(broken)], "broken: onnxruntime can't load the model"),
        (["-m", str(other)], "no output has a value for each of the 5 tags"),
        (["-m", str(logits)], "which are no probabilities; use a WD14 tagger"),
        (["-d", str(empty)], "empty: holds no images"),
        (["-d", str(tmp_path / "x")], "x: no such directory"),
        (["-o", str(dataset / "buckets.json")], "buckets.json: is a file; name a directory"),
        (["--device", "tpu"], "device: 'tpu' is not cpu, cuda or cuda:<index>"),
        (["--batch_size", "0"], "batch_size: 0 is less than 1"),
        (["--threshold", "1.5"], "threshold: 1.5 is not within 0 and 1"),
        (["--character_threshold", "-1"], "character_threshold: -1.0 is not within"),
        (["--caption_extension", "tags"], "caption_extension: 'tags' is not .caption or .txt"),
    ):
        assert main(["-d", str(dataset), "-m", str(model), *options]) == 2
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1]
        assert not [line for line in error[:-1] if line and "images/s" not in line]
    with pytest.raises(ValueError, match=r"exclude: '1girl' is not a list; write \[1girl\]"):
        tagger(directory=dataset, model=str(model), exclude="1girl")
    assert not (dataset / "captions").exists()


def test_cuda_is_asked_for_by_name_only_where_it_is(dataset, model):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        assert tagger(directory=dataset, model=str(model), device="cuda").done == 4
    else:
        with pytest.raises(ValueError, match="device: 'cuda' can't be used, this onnxruntime has"):
            tagger(directory=dataset, model=str(model), device="cuda")
    result = tagger(directory=dataset, model=str(model), device="cpu", output=dataset / "other")
    assert result.done == 4


def test_help_is_quick_and_imports_no_library(tmp_path):
    """From another directory, as a person would type it."""
    heavy = ("torch", "onnx", "onnxruntime", "huggingface_hub", "tqdm")
    for name in ("tagger.py", "tagger_control.py", "create_pfg_feature.py"):
        script = ROOT / "preprocess" / name
        code = (
            f"import runpy, sys; sys.argv = [{name!r}, '--help']\n"
            f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
            f"finally: print([name for name in {heavy} if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8"
        )
        assert "--batch_size" in done.stdout, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"


def test_without_a_network_the_tagger_is_named(dataset, capsys):
    assert main(["-d", str(dataset), "-m", "nobody/no-such-tagger"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nobody/no-such-tagger: there is no such directory here, and the")
