"""The benchmark of adapters, on a model that trains in no time."""

import pytest
from small_architectures import SMALL

from bench import adapters


@pytest.mark.slow
def test_rows(capsys, monkeypatch):
    monkeypatch.setitem(adapters.ARCHITECTURES, "reduced", SMALL)
    assert adapters.main(["--kinds", "LoHa", "--rounds", "2", "--steps", "1"]) == 0
    header, _, lora, loha = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
    )
    assert header == list(adapters.HEADER)
    assert (lora[0], loha[0]) == ("LoRA", "LoHa")
    assert lora[2] == "**1.00** (1.00 to 1.00)"
    assert lora[4] == "1.00"
    assert float(loha[1]) > 0
    assert loha[4] == f"{float(loha[3]) / float(lora[3]):.2f}"
