import numpy as np
import pytest

from modules.files import files_by_name, replacing, write_atomically


def test_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.npy"
    write_atomically(path, b"earlier")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_writes_text_bytes_and_what_a_callable_writes(tmp_path):
    path = tmp_path / "new" / ("n" * 250)
    write_atomically(path, "猫\n")
    assert path.read_bytes() == "猫\n".encode()
    write_atomically(path, lambda file: np.save(file, np.arange(3)))
    assert np.load(path.open("rb")).tolist() == [0, 1, 2]
    with replacing(path) as temporary:
        temporary.write_bytes(b"by path")
    assert path.read_bytes() == b"by path"


def test_files_by_name_prefers_the_first_suffix(tmp_path):
    for name in ("a.txt", "a.caption", "sub/v1.0.txt", "c.TXT", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files_by_name(tmp_path, (".caption", ".txt"))
    assert found == {"a": ".caption", "c": ".TXT", "sub/v1.0": ".txt"}
    assert files_by_name(tmp_path / "absent", (".txt",)) == {}
