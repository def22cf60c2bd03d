import json
import time
from collections import Counter
from itertools import pairwise

import pytest

from modules.buckets import BucketBatchSampler, BucketIndex, assign, make_buckets

DEFAULTS = {"resolution": 768, "min_length": 512, "max_length": 1024, "max_ratio": 2.0}
BY_HAND = [
    *[(512, 1024), (576, 960), (576, 1024), (640, 896), (704, 832), (768, 768)],
    *[(832, 704), (896, 640), (960, 576), (1024, 512), (1024, 576)],
]


def test_default_buckets_by_hand():
    assert make_buckets(**DEFAULTS) == BY_HAND


def test_small_buckets_by_hand():
    buckets = make_buckets(resolution=64, min_length=48, max_length=80, max_ratio=2, step=16)
    assert buckets == [(48, 80), (64, 64), (80, 48)]


def test_square_is_always_there_and_ratio_1_leaves_nothing_else():
    assert make_buckets(resolution=500, min_length=512, max_length=640, max_ratio=1) == [(448, 448)]


@pytest.mark.parametrize("resolution", [512, 640, 1024])
def test_buckets_keep_their_limits(resolution):
    limits = {"min_length": 250, "max_length": 1300, "max_ratio": 3.0}
    buckets = make_buckets(resolution=resolution, **limits)
    assert len(buckets) > 5
    for width, height in buckets:
        assert width % 64 == height % 64 == 0
        assert 250 <= min(width, height) <= max(width, height) <= 1300
        assert width * height <= resolution**2
        assert max(width / height, height / width) <= 3
        assert (height, width) in buckets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_length": 2000}, "min_length"),
        ({"resolution": 32}, "resolution"),
        ({"max_ratio": 0.5}, "max_ratio"),
        ({"step": 0}, "step"),
    ],
)
def test_impossible_buckets(change, message):
    with pytest.raises(ValueError, match=message):
        make_buckets(**{**DEFAULTS, **change})


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((100, 100), (768, 768)),
        ((3000, 4000), (640, 896)),
        ((4000, 3000), (896, 640)),
        ((10, 9999), (512, 1024)),
        ((1920, 1080), (1024, 576)),
    ],
)
def test_assign_by_aspect_ratio(size, bucket):
    assert assign(*size, BY_HAND) == bucket


def test_assign_mirrors_and_prefers_the_larger():
    for width in range(300, 1300, 7):
        assert assign(width, 640, BY_HAND) == assign(640, width, BY_HAND)[::-1]
    assert assign(10, 20, [(256, 512), (512, 1024)]) == (512, 1024)


def test_index_round_trip(tmp_path):
    path = tmp_path / "buckets.json"
    index = BucketIndex({(768, 768): ["b", "猫/a"], (512, 1024): ["c"]})
    index.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content == {"(512, 1024)": ["c"], "(768, 768)": ["b", "猫/a"]}
    assert BucketIndex.load(path) == BucketIndex({(512, 1024): ["c"], (768, 768): ["b", "猫/a"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a JSON file"),
        ("[1]", "must be an object"),
        ("{}", "holds no images; run preprocess/bucketing.py"),
        ('{"(512, 512)": []}', "holds no images"),
        ('{"512x512": ["a"]}', '"512x512": is not a bucket'),
        ('{"(0, 512)": ["a"]}', "is not a bucket"),
        ('{"(512, 512)": "a"}', "is not a list of names"),
        ('{"(512, 512)": {"a": 1}}', "is not a list of names"),
        ('{"(512, 512)": ["a"], "(512,512)": ["b"]}', "stands there twice"),
        ('{"(512, 512)": ["a"], "(512, 640)": ["a"]}', "'a': is listed twice"),
        ('{"(512, 512)": ["../a"]}', "leads out of the dataset"),
        ('{"(512, 512)": ["a/../../b"]}', "leads out of the dataset"),
        ('{"(512, 512)": ["/a"]}', "leads out of the dataset"),
        ('{"(512, 512)": ["C:a"]}', "leads out of the dataset"),
        ('{"(512, 512)": ["a\\\\..\\\\b"]}', "leads out of the dataset"),
        ('{"(512, 512)": [""]}', "leads out of the dataset"),
    ],
)
def test_faulty_index(tmp_path, content, message):
    path = tmp_path / "buckets.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"buckets\.json") as error:
        BucketIndex.load(path)
    assert message in str(error.value)


def test_index_lists_all_faults_and_accepts_harmless_names(tmp_path):
    path = tmp_path / "buckets.json"
    with pytest.raises(ValueError, match=r"no such file; run preprocess/bucketing\.py"):
        BucketIndex.load(path)
    path.write_text(json.dumps({"(8, 8)": ["..a", "a..", "bc: d", "x/..y/z"]}), encoding="utf-8")
    assert len(BucketIndex.load(path).buckets[8, 8]) == 4
    path.write_text(json.dumps({"(8, 8)": ["a"] * 20, "x": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="and 10 more"):
        BucketIndex.load(path)


BUCKETS = [list(range(10)), list(range(10, 13)), [], [13]]


def bucket_of(index):
    return next(i for i, bucket in enumerate(BUCKETS) if index in bucket)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_image_once_an_epoch_and_shares_disjoint(world_size, shuffle):
    options = {"batch_size": 2, "shuffle": shuffle, "world_size": world_size}
    samplers = [BucketBatchSampler(BUCKETS, rank=rank, **options) for rank in range(world_size)]
    for epoch in range(3):
        plan = samplers[0].plan(epoch)
        assert Counter(index for batch in plan for index in batch) == Counter(range(14))
        seen = Counter()
        for sampler in samplers:
            assert sampler.plan(epoch) == plan
            sampler.set_epoch(epoch)
            batches = list(sampler)
            assert len(batches) == len(sampler) == len(plan)
            for batch, planned in zip(batches, plan, strict=True):
                indices, is_real = sampler.share(planned)
                assert batch == indices
                assert 1 <= len(batch) <= 2
                assert len({bucket_of(index) for index in planned}) == 1
                if is_real:
                    seen.update(batch)
                else:
                    assert batch == planned[:1]
        assert seen == Counter(range(14))


def test_last_batches_are_kept_smaller():
    sizes = sorted(len(batch) for batch in BucketBatchSampler(BUCKETS, batch_size=4).plan(0))
    assert sizes == [1, 2, 3, 4, 4]


def test_plan_depends_on_seed_and_epoch_alone():
    sampler = BucketBatchSampler(BUCKETS, batch_size=2, seed=5)
    first = sampler.plan(0)
    list(sampler)
    sampler.plan(7)
    assert sampler.plan(0) == first == BucketBatchSampler(BUCKETS, batch_size=2, seed=5).plan(0)
    assert first != sampler.plan(1)
    assert first != BucketBatchSampler(BUCKETS, batch_size=2, seed=6).plan(0)


def test_batches_of_buckets_are_mixed():
    buckets = [list(range(100)), list(range(100, 200))]
    plan = BucketBatchSampler(buckets, batch_size=2).plan(0)
    kinds = [batch[0] >= 100 for batch in plan]
    assert sum(a != b for a, b in pairwise(kinds)) > 25
    in_order = BucketBatchSampler(buckets, batch_size=2, shuffle=False).plan(0)
    assert in_order[:2] == [[0, 1], [2, 3]]


def test_resume_in_the_middle_of_an_epoch():
    sampler = BucketBatchSampler(BUCKETS, batch_size=2)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, start_batch=4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == len(whole)


def test_a_million_images_in_bounded_time():
    buckets = [range(start, start + 100_000) for start in range(0, 1_000_000, 100_000)]
    start = time.process_time()
    plan = BucketBatchSampler(buckets, batch_size=8, world_size=4).plan(0)
    assert sum(map(len, plan)) == 1_000_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"seed": -1}])
def test_sampler_arguments(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BucketBatchSampler(BUCKETS, **{"batch_size": 1, **options})
