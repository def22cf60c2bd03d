from tools.findings import Finding, first_line, guarded, show


def test_a_report():
    found = [
        Finding("ok", "python", "3.12.1"),
        Finding("problem", "numpy", "not installed", "pip install numpy==2.4.6"),
        Finding("warning", "tqdm", "is old", "pip install tqdm==4.70.1"),
    ]
    assert show(found) == (
        "ok       python  3.12.1\n"
        "problem  numpy   not installed\n"
        "                 -> pip install numpy==2.4.6\n"
        "warning  tqdm    is old\n"
        "                 -> pip install tqdm==4.70.1\n"
        "all packages at once: pip install -r requirements.txt\n"
        "1 problem, 1 warning"
    )
    torch = Finding("problem", "torch", "not installed", "pip install torch==2 --index-url x")
    assert "\nall packages at once: torch's line, then pip install -r " in show([*found, torch])
    assert show(found[:1]) == "ok       python  3.12.1\nnothing is amiss"


def test_what_was_found_before_a_probe_failed_is_kept():
    def probe():
        yield Finding("ok", "a", "b")
        raise OSError("disk gone\nand more")

    assert list(guarded("disks", probe)) == [
        Finding("ok", "a", "b"),
        Finding("warning", "disks", "can't be examined: disk gone"),
    ]
    assert first_line(KeyError()) == "KeyError"
