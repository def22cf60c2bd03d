import pytest

from bench.report import PAGE, ratio, table, write_section

BEGUN = "# Page\n\nHead.\n\n## A\n\nold\n\n## Not yet run on CUDA\n\n- all\n"


@pytest.fixture
def page(tmp_path):
    page = tmp_path / "benchmarks.md"
    page.write_text(BEGUN, encoding="utf-8")
    return page


def test_a_section_takes_the_place_of_the_one_before(page):
    write_section("A", ["new", "", "lines"], page=page)
    assert page.read_text(encoding="utf-8") == BEGUN.replace("old", "new\n\nlines")


def test_what_was_not_yet_run_stays_last(page):
    write_section("B", ["text"], page=page)
    expected = BEGUN.replace("## Not yet", "## B\n\ntext\n\n## Not yet")
    assert page.read_text(encoding="utf-8") == expected
    write_section("B", ["text"], page=page)
    assert page.read_text(encoding="utf-8") == expected


def test_the_page_itself_is_in_that_form(tmp_path):
    copy = tmp_path / "page.md"
    text = PAGE.read_text(encoding="utf-8")
    copy.write_text(text, encoding="utf-8")
    write_section("A", ["text"], page=copy)
    assert copy.read_text(encoding="utf-8").replace("## A\n\ntext\n\n", "") == text


def test_a_table_and_a_ratio():
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]
    assert ratio([1, 1, 3], [2, 1, 2]) == "**1.00** (0.50 to 1.50)"
