"""What the quality table asks for."""

from __future__ import annotations

from functools import partial

import pytest
from PIL import Image

from bench.quality_exams import (
    Exam,
    concept_exams,
    dark_exams,
    feature_exams,
    guide_exams,
    mark_exams,
    second_concept_exams,
    subject_exams,
)
from bench.quality_grades import Measure
from bench.quality_pictures import SIZE
from bench.quality_side_inputs import FEATURE_COUNT
from preprocess.scenes import draw_scene


def test_exams_ask_for_what_their_answers_say():
    new, old = concept_exams(5, 0)
    assert all(caption.endswith(", polaroid") for caption in new.prompts)
    assert not any("polaroid" in caption for caption in old.prompts)
    (features,) = feature_exams(5, 0)
    assert set(features.prompts) == {""}
    assert features.extras["pfg"].shape == (5, FEATURE_COUNT)
    assert features.means(features.guides["features' picture"]) == [1.0, 1.0, 1.0]
    (guides,) = guide_exams(5, 0)
    assert guides.extras["control"].shape == (5, 3, 64, 64)
    assert guides.means([draw_scene(scene) for scene in guides.answers]) == [1.0, 1.0]
    (marks,) = mark_exams(30, 0, is_masked=True)
    assert not any("blue" in caption for caption in marks.prompts)
    assert concept_exams(5, 1)[0].prompts != new.prompts


def test_means_need_a_picture_for_each_answer():
    exam = Exam(
        measures=[Measure(title="seen", grade=lambda image, answer: answer)],
        prompts=["a", "b"],
        answers=[1.0, 0.0],
    )
    assert exam.means([Image.new("RGB", SIZE)] * 2) == [0.5]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        exam.means([Image.new("RGB", SIZE)])


def test_a_subject_is_asked_for_by_its_name_and_graded_by_its_look():
    exams = partial(subject_exams, 30, 0, name="sks square", shape="heart", foreground="orange")
    subject, others, old = exams(class_shape="square")
    for prompt, answer in zip(subject.prompts, subject.answers, strict=True):
        background = answer.partition(" on ")[2]
        assert prompt == f"a sks square on {background}"
        assert answer == f"an orange heart on {background}"
        assert "orange" not in background
    assert all(" square on " in prompt and "sks" not in prompt for prompt in others.prompts)
    assert not any(" square on " in prompt for prompt in old.prompts)
    assert [len(exam.prompts) for exam in exams()] == [30, 30]
    assert any(" square on " in prompt for prompt in exams()[1].prompts)


def test_a_second_concept_is_asked_for_with_and_without_the_first():
    new, first, both, old = second_concept_exams(10, 0, shape="heart")
    for exam, is_new, is_first in (
        (new, True, False),
        (first, False, True),
        (both, True, True),
        (old, False, False),
    ):
        assert all((" heart on " in prompt) == is_new for prompt in exam.prompts)
        assert all(prompt.endswith(", polaroid") == is_first for prompt in exam.prompts)
        assert exam.prompts == exam.answers


def test_dark_pictures_are_asked_for_without_their_colors():
    dark, old = dark_exams(10, 0)
    assert all(prompt.endswith(", dark") and " on " not in prompt for prompt in dark.prompts)
    assert dark.means([Image.new("RGB", SIZE, "white")] * 10) == [1.0]
    assert not any("dark" in prompt for prompt in old.prompts)
