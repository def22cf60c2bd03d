import numpy as np
import pytest

from modules.captions import CaptionProcessor, find_caption, read_caption


def rng(seed=0):
    return np.random.default_rng(seed)


def test_caption_file_in_captions_goes_before_one_beside(tmp_path):
    (tmp_path / "captions" / "a").mkdir(parents=True)
    assert find_caption(tmp_path, "a/b.1") is None
    for path in ("a/b.1.txt", "captions/a/b.1.txt", "captions/a/b.1.caption"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
        assert find_caption(tmp_path, "a/b.1") == tmp_path / path


def test_reads_utf8_with_and_without_mark(tmp_path):
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(" 猫, cat\r\n".encode(encoding))
        assert read_caption(path) == "猫, cat"


@pytest.mark.parametrize("encoding", ["shift-jis", "utf-16"])
def test_other_encodings_are_an_error(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("猫".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt: is not UTF-8 .*; save it as UTF-8"):
        read_caption(path)


def test_prefix_and_nothing_else_by_default():
    assert CaptionProcessor(prefix="anime, ")("b,a , c", rng()) == "anime, b,a , c"


def test_shuffle_keeps_the_first_tags_and_loses_none():
    process = CaptionProcessor(prefix="x, ", shuffle=True, keep_tokens=2)
    tags = list("abcdefgh")
    results = {process(", ".join(tags), rng(seed)) for seed in range(20)}
    assert len(results) > 10
    for result in results:
        assert result.startswith("x, a, b, ")
        assert sorted(result.removeprefix("x, ").split(", ")) == tags


def test_dropout_empties_the_whole_caption_as_often_as_said():
    process = CaptionProcessor(prefix="x, ", caption_dropout=0.3)
    generator = rng()
    results = [process("cat", generator) for _ in range(2000)]
    assert set(results) == {"", "x, cat"}
    assert results.count("") / 2000 == pytest.approx(0.3, abs=0.03)
    assert CaptionProcessor(caption_dropout=1.0)("cat", rng()) == ""


@pytest.mark.parametrize("options", [{"caption_dropout": 1.1}, {"keep_tokens": -1}])
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CaptionProcessor(**options)
