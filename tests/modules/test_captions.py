"""Caption files: found, read, one caption in each line."""

import pytest

from modules.captions import find_caption, read_captions


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
        assert read_captions(path) == ["猫, cat"]


@pytest.mark.parametrize("encoding", ["shift-jis", "utf-16"])
def test_other_encodings_are_an_error(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes("猫".encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt: is not UTF-8 .*; save it as UTF-8"):
        read_captions(path)


def test_each_line_is_a_caption(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a cat\r\n\n  a black cat \n", encoding="utf-8")
    assert read_captions(path) == ["a cat", "a black cat"]
    path.write_text("\n", encoding="utf-8")
    assert read_captions(path) == [""]
