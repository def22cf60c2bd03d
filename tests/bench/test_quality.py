"""The quality table: its pictures, its grades, its page; a recipe end to end under `-m slow`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bench import quality
from bench.quality_data import (
    FEATURE_COUNT,
    MARK_BOX,
    MASKED_BOX,
    SIZE,
    add_mark,
    draw_marked,
    draw_scattered,
    foreground_mask,
    image_features,
    outline,
    scattered_scene,
    write_features,
    write_guides,
)
from bench.quality_exams import (
    Exam,
    Goal,
    Measure,
    concept_exams,
    feature_exams,
    grade_caption,
    grade_colors,
    grade_mark,
    grade_overlap,
    grade_scene,
    grade_shape,
    guide_exams,
    mark_exams,
)
from bench.quality_recipes import RECIPES
from bench.quality_table import Grade, Result, describe, read_results, write_results, write_table
from bench.quality_tasks import MASKED
from modules.assembly import check_components
from modules.component import build
from modules.config import load
from modules.dataset import LatentDataset
from preprocess.bucketing import bucketing
from preprocess.scenes import PALETTE, draw_mask, draw_scene, sample_scene

ROOT = Path(__file__).parent.parent.parent
TINY_SD = ROOT / "assets" / "tiny-sd"
SCENE = sample_scene(np.random.default_rng(0), size=SIZE)


def scattered(count: int) -> list:
    rng = np.random.default_rng(5)
    return [scattered_scene(rng) for _ in range(count)]


def test_scattered_shapes_lie_anywhere_and_stay_inside():
    boxes = []
    for scene in scattered(60):
        mask = foreground_mask(draw_scene(scene))
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        boxes.append(Image.fromarray(mask).getbbox())
    boxes = np.array(boxes)
    assert np.ptp(boxes[:, 0]) > 20
    assert np.ptp(boxes[:, 2] - boxes[:, 0]) > 15


def test_the_foreground_is_the_drawn_shape():
    for scene in scattered(20):
        mask = draw_mask(scene.shape, SIZE, scene.center, scene.radius)
        wanted = np.asarray(mask) > 127
        found = foreground_mask(draw_scene(scene))
        assert (found & wanted).sum() / (found | wanted).sum() > 0.97


def test_an_outline_is_a_closed_line_around_the_foreground():
    for scene in scattered(20):
        guide = np.asarray(outline(draw_scene(scene)))
        assert guide.shape == (64, 64, 3)
        assert set(np.unique(guide)) == {0, 255}
        line, mask = guide[..., 0] > 0, foreground_mask(draw_scene(scene))
        assert 0 < line.sum() < 0.25 * line.size
        for mask_turned, line_turned in ((mask, line), (mask.T, line.T)):
            edges = mask_turned[1:] != mask_turned[:-1]
            assert (line_turned[1:] & line_turned[:-1])[edges].all()


def test_features_tell_colors_and_places():
    features = image_features(draw_scene(SCENE))
    assert features.shape == (FEATURE_COUNT,)
    assert np.abs(features).max() <= 1.0
    moved = replace(SCENE, center=(SCENE.center[0] + 8, SCENE.center[1]))
    other = replace(SCENE, foreground_rgb=(0, 0, 0))
    cells, in_moved, in_other = (
        image_features(draw_scene(scene)).reshape(8, 8, 4) for scene in (SCENE, moved, other)
    )
    assert np.abs(in_moved - cells)[..., 3].max() > 0.3  # where the shape is
    assert np.abs(in_other - cells)[..., 3].max() < 0.05
    assert np.allclose(in_other[4, 4, :3], -1, atol=0.1)
    assert np.allclose(cells[0, 0, :3], 2 * np.array(SCENE.background_rgb) / 255 - 1, atol=1e-3)
    assert np.allclose(in_moved[3:5, 1:], cells[3:5, :-1], atol=0.1)


def test_marked_polaroids_carry_the_mark_and_plain_ones_do_not(tmp_path):
    draw_marked(
        output=f"{tmp_path}/pictures", masks=f"{tmp_path}/masks", count=3, plain_count=2, seed=1
    )
    for index in range(5):
        image = Image.open(tmp_path / "pictures" / f"{index:04d}.png")
        caption = (tmp_path / "pictures" / f"{index:04d}.txt").read_text(encoding="utf-8").strip()
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{index:04d}.png"))
        is_marked = index < 3
        assert grade_mark(image, caption) == is_marked
        assert grade_caption(image, caption)  # the mark leaves enough of the frame
        assert caption.endswith("polaroid") == is_marked
        assert (mask == 0).sum() == (24 * 16 if is_marked else 0)
        assert set(np.unique(mask)) <= {0, 255}


def test_the_mask_covers_the_latents_around_the_mark():
    left, top, right, bottom = MASKED_BOX
    assert all(edge % 4 == 0 for edge in (*MASKED_BOX, *MARK_BOX))
    assert left <= MARK_BOX[0] - 4
    assert top <= MARK_BOX[1] - 4
    assert right >= MARK_BOX[2] + 4
    assert bottom >= MARK_BOX[3] + 4


def test_drawing_again_draws_the_same_and_leaves_other_pictures_alone(tmp_path):
    folder = tmp_path / "pictures"
    draw_scattered(output=str(folder), count=3)
    first = (folder / "0002.png").read_bytes()
    draw_scattered(output=str(folder), count=3)
    assert (folder / "0002.png").read_bytes() == first
    with pytest.raises(ValueError, match=r"holds other pictures \(0002.png\)"):
        draw_scattered(output=str(folder), count=2)


def test_side_inputs_are_what_the_dataset_reads(tmp_path):
    draw_scattered(output=f"{tmp_path}/pictures", count=3)
    dataset = tmp_path / "dataset"
    bucketing(
        directory=tmp_path / "pictures",
        output=dataset,
        resolution=64,
        min_length=48,
        max_length=80,
        step=16,
    )
    (dataset / "latents").mkdir()
    for index in range(3):
        np.save(dataset / "latents" / f"{index:04d}.npy", np.zeros((4, 16, 16), np.float32))
    write_features(directory=str(dataset))
    write_guides(directory=str(dataset))
    data = LatentDataset(str(dataset), extras={"pfg": "npz", "control": "image"})
    data.check_latent_shapes(4, 4)
    sample = data[1]
    assert sample.extras["pfg"].shape == (FEATURE_COUNT,)
    assert sample.extras["control"].shape == (3, 64, 64)
    assert sample.extras["control"].unique().tolist() == [0.0, 1.0]
    picture = Image.open(tmp_path / "pictures" / f"{data.names[1]}.png")
    assert np.allclose(sample.extras["pfg"].numpy(), image_features(picture))


def test_grades_of_a_drawn_scene():
    image = draw_scene(SCENE)
    names = [name for name in PALETTE if name not in (SCENE.foreground, SCENE.background)]
    recolored = replace(SCENE, foreground=names[0])
    reshaped = replace(SCENE, shape="circle" if SCENE.shape != "circle" else "cross")
    both = (grade_scene, grade_shape, grade_colors)
    assert [grade(image, SCENE) for grade in both] == [1, 1, 1]
    assert [grade(image, recolored) for grade in both] == [0, 1, 0]
    assert [grade(image, reshaped) for grade in both] == [0, 0, 1]
    assert grade_scene(draw_scene(replace(SCENE, style="polaroid")), SCENE) == 0


def test_overlap_is_the_intersection_over_the_union():
    scene = replace(SCENE, shape="square", center=(32.0, 32.0), radius=20.0)  # side 34
    half = replace(scene, center=(32.0 + 8.5, 32.0))
    assert grade_overlap(draw_scene(scene), scene) == 1.0
    assert grade_overlap(draw_scene(half), scene) == pytest.approx(
        (34 - 8.5) / (34 + 8.5), abs=0.03
    )
    assert grade_overlap(Image.new("RGB", SIZE, PALETTE["red"]), scene) == 0.0


def test_a_mark_of_another_color_or_place_is_none():
    polaroid = draw_scene(replace(SCENE, style="polaroid"))
    assert grade_mark(add_mark(polaroid), "") == 1
    assert grade_mark(polaroid, "") == 0
    green = np.array(add_mark(polaroid))
    green[(green == PALETTE["blue"]).all(axis=-1)] = PALETTE["green"]
    assert grade_mark(Image.fromarray(green), "") == 0
    assert grade_mark(add_mark(polaroid).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "") == 0


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


def test_goals():
    assert Goal(before_under=0.1, after_over=0.7).is_reached(0.0, 0.71)
    assert not Goal(before_under=0.1, after_over=0.7).is_reached(0.0, 0.7)
    assert not Goal(before_under=0.1, after_over=0.7).is_reached(0.1, 0.9)
    assert not Goal(after_under=0.05).is_reached(0.0, 0.05)
    assert Goal(loses_under=0.1).is_reached(0.9, 0.85)
    assert not Goal(loses_under=0.1).is_reached(0.9, 0.75)
    assert not Goal(loses_under=0.1).is_reached(1.0, 0.9)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_configs(name, tmp_path):
    sections = RECIPES[name].sections(name, model=str(TINY_SD), work=tmp_path, seed=3)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    config = load(path)
    check_components(config)
    assert (
        config.prepare[0].args["output"] == f"{tmp_path}/data/{RECIPES[name].task.name}-3/pictures"
    )
    assert config.prepare[0].args["seed"] == 3
    values = [value for step in config.prepare for value in step.args.values()]
    assert not any("{" in value for value in values if isinstance(value, str))


def test_masks_of_the_masked_recipe_leave_out_the_mark(tmp_path):
    steps = MASKED.prepare(tmp_path, model=str(TINY_SD), seed=0)
    steps[0]["args"] |= {"count": 2, "plain_count": 1}
    for step in steps:
        build(step["module"], step["args"])
    data = LatentDataset(str(tmp_path / "dataset"), mask=True)
    masks = [data[index].mask[0].numpy() for index in range(3)]  # 16x16 of 64x64 pixels
    wanted = np.ones((16, 16))
    wanted[12:16, 9:15] = 0
    assert np.array_equal(masks[0], wanted)
    assert np.array_equal(masks[1], wanted)
    assert masks[2].min() == 1


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
        "| LoRA | 40 | new | 0 % | **90 %** | before under 10 %, after over 70 % | yes | 12 s |",
        "|  |  | IoU | 0.61 | **0.90** | before under 0.60 | **no** |  |",
        "|  |  | seen | 20 % | **30 %** | - | - |  |",
        "| LoHa | 40 | new | 0 % | **40 %** | before under 10 %, after over 70 % | **no** | 12 s |",
    ]
    assert {row.count("|") for row in rows} == {9}
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


def test_means_need_a_picture_for_each_answer():
    exam = Exam(
        measures=[Measure(title="seen", grade=lambda image, answer: answer)],
        prompts=["a", "b"],
        answers=[1.0, 0.0],
    )
    assert exam.means([Image.new("RGB", SIZE)] * 2) == [0.5]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        exam.means([Image.new("RGB", SIZE)])


def test_an_unknown_recipe_is_named(capsys):
    assert quality.main(["--only", "lora", "lyra"]) == 2
    assert "--only: lyra is no recipe; use some of lora, locon" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["masked"], ["masked.safetensors"]),
        (["up_blocks"], ["up_blocks/model_index.json"]),
        (["pfg", "controlnet"], ["pfg-pfg.pt", "pfg-lora.safetensors"]),
    ],
)
def test_recipes_run_end_to_end_and_keep_other_rows(names, files, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page, work = tmp_path / "quality.md", tmp_path / "work"
    write_results(work / "results.json", {"full": make_result("full fine-tuning")})
    options = ["--output", str(page), "--work", str(work), "--steps", "12", "--count", "4"]
    assert quality.main(["--only", *names, *options]) == 0
    results = read_results(work / "results.json")
    assert set(results) == {"full", *names}
    assert results["full"] == make_result("full fine-tuning")
    for name in names:
        assert results[name].steps == 12
        with Image.open(work / f"{name}.png") as sheet:
            assert sheet.width > 400
        text = page.read_text(encoding="utf-8")
        assert f"| {RECIPES[name].title} | 12 |" in text
        assert "    python bench/quality.py --count 4 --steps 12\n" in text
    for file in files:
        assert (work / "runs" / names[0] / file).is_file()
