import pytest

from bench.large_data import STAGES, caption_of, main, make_dataset
from modules.dataset import LatentDataset


@pytest.mark.parametrize("single", [True, False])
def test_both_kinds_of_dataset_are_alike(tmp_path, single):
    make_dataset(tmp_path, 45, single=single)
    dataset = LatentDataset(str(tmp_path))
    dataset.check_every_shape(8, 4)
    assert len(dataset) == 45
    assert len(dataset.buckets) == 20
    assert dataset[44].caption == caption_of(dataset.names[44])
    assert (tmp_path / "latents").is_dir() == single


def test_the_table(capsys):
    assert main(["30"]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["images", *STAGES]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "30"
    assert 100 < float(cells[-1]) < 2000
