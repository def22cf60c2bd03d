"""The quality table's page."""

from __future__ import annotations

from dataclasses import replace

from bench.quality_grades import Goal, Measure, grade_mark
from bench.quality_table import Grade, Result, describe, read_results, write_results, write_table


def make_result(title: str = "LoRA", after: float = 0.9) -> Result:
    share = Measure(title="new", grade=grade_mark, goal=Goal(before_under=0.1, after_over=0.7))
    overlap = Measure(title="IoU", grade=grade_mark, goal=Goal(before_under=0.6), is_share=False)
    free = Measure(title="seen", grade=grade_mark)
    return Result(
        title=title,
        steps=40,
        settings="rank 4",
        grades=[
            Grade.of(share, 0.0, after),
            Grade.of(overlap, 0.612, 0.9),
            Grade.of(free, 0.2, 0.3),
        ],
        seconds=12,
        count=10,
        seed=5,
        date="2030-01-02",
        versions="torch 2.0",
    )


def test_results_are_read_back_and_shown(tmp_path):
    kept, page = tmp_path / "results.json", tmp_path / "docs" / "quality.md"
    assert read_results(kept) == {}
    results = {"lora": make_result(), "loha": make_result("LoHa", after=0.4)}
    write_results(kept, results)
    assert read_results(kept) == results
    write_table(page, read_results(kept), introduction="By `python bench/quality.py`.")
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert rows[2:6] == [
        "| LoRA | 40 | new | 0 % | **90 %** | before under 10 %, after over 70 % | yes |",
        "|  |  | IoU | 0.61 | **0.90** | before under 0.60 | **no** |",
        "|  |  | seen | 20 % | **30 %** | - | - |",
        "| LoHa | 40 | new | 0 % | **40 %** | before under 10 %, after over 70 % | **no** |",
    ]
    assert {row.count("|") for row in rows} == {8}
    text = page.read_text(encoding="utf-8")
    assert "By `python bench/quality.py`." in text
    assert (
        "- `loha`, LoHa: rank 4. 10 pictures of each kind drawn, seed 5, 2030-01-02, torch 2.0."
        in text
    )


def test_a_goal_in_words():
    lost = Measure(title="old", grade=grade_mark, goal=Goal(loses_under=0.1))
    assert describe(lost) == "loses less than 10 points"
    assert describe(replace(lost, goal=Goal())) == ""
