"""PFG: tokens behind the prompt, zeros for negative prompts, files that its readers load."""

from __future__ import annotations

import pytest
import tiny
import torch
from probes import perturb
from safetensors import safe_open

from modules.batch import Batch, DenoiserInputs
from modules.models.stable_diffusion import StableDiffusion
from networks.pfg import PFG


def make(model: StableDiffusion | None = None, **options) -> PFG:
    network = PFG(**{"input_size": 12, "num_tokens": 3, **options})
    network.attach(model or tiny.make_sd())
    perturb(network)
    return network


def condition(network: PFG, features: torch.Tensor, is_negative=None) -> torch.Tensor:
    count = len(features)
    states = torch.zeros(count, 16, 32)
    inputs = DenoiserInputs(
        sample=torch.zeros(count, 4, 8, 8),
        timestep=torch.zeros(count, dtype=torch.int64),
        encoder_hidden_states=states,
    )
    batch = Batch(captions=[""] * count, extras={"pfg": features}, is_negative=is_negative)
    return network.condition(inputs, batch).encoder_hidden_states


def test_tokens_are_the_layers_output_behind_the_prompt():
    network = make()
    features = torch.randn(2, 12)
    states = condition(network, features)
    assert states.shape == (2, 16 + 3, 32)
    assert not states[:, :16].any()
    expected = network.pfg_linear(features).reshape(2, 3, 32)
    assert torch.equal(states[:, 16:], expected)


def test_features_of_the_originals_shape_are_read():
    network = make()
    features = torch.randn(2, 12)
    assert torch.equal(condition(network, features[:, None]), condition(network, features))


def test_negative_prompts_get_zeros():
    network = make()
    states = condition(network, torch.randn(2, 12), torch.tensor([True, False]))
    assert not states[0, 16:].any()
    assert states[1, 16:].all()


def test_dropout_gives_zeros_in_training_only():
    network = make(dropout=0.5)
    features = torch.randn(64, 12)
    torch.manual_seed(0)
    dropped = (condition(network, features)[:, 16:] == 0).flatten(1).all(1)
    assert 10 < dropped.sum() < 54
    network.eval()
    assert condition(network, features)[:, 16:].all()


def test_the_multiplier_scales_the_tokens():
    network = make()
    features = torch.randn(1, 12)
    whole = condition(network, features)
    network.multiplier = 0.25
    assert torch.allclose(condition(network, features), whole / 4)


@pytest.mark.parametrize("name", ["pfg.safetensors", "pfg.pt"])
def test_a_file_is_read_back_with_its_number_of_tokens(tmp_path, name):
    network = make(num_tokens=5)
    network.save(tmp_path / name, dtype=torch.float32, metadata={"ss_steps": "1"})
    other = make(num_tokens=2)
    other.load(tmp_path / name)
    features = torch.randn(1, 12)
    assert other.num_tokens == 5
    assert torch.equal(condition(other, features), condition(network, features))


def test_the_pt_file_is_the_dict_that_its_readers_take(tmp_path):
    make().save(tmp_path / "pfg.pt", dtype=torch.float16, metadata={})
    tensors = torch.load(tmp_path / "pfg.pt", weights_only=True)
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()}
    assert shapes == {
        "pfg_linear.weight": ((96, 12), torch.float16),
        "pfg_linear.bias": ((96,), torch.float16),
    }


def test_metadata_says_the_sizes(tmp_path):
    model = tiny.make_sd()
    network = make(model)
    network.save(tmp_path / "a.safetensors", dtype=torch.float32, metadata=network.describe(model))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["pfg_input_size"] == "12"
    assert metadata["pfg_num_tokens"] == "3"
    assert metadata["ss_base_model_version"] == "sd_v1"


def test_other_features_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="768 numbers, input_size is 12"):
        make().check_extras({"pfg": torch.zeros(768)})
    make(input_size=8).save(tmp_path / "a.pt", dtype=torch.float32, metadata={})
    with pytest.raises(ValueError, match="of 8 features"):
        make().load(tmp_path / "a.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="is no PFG"):
        make().load(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"c\.pt"):
        make().load(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="dropout: 2"):
        PFG(dropout=2.0)


def test_features_of_another_tagger_are_refused(tmp_path):
    class Data(list):
        def origin(self, key):
            return {"tagger": f"vit of {key}", "sha256": self.sha256, "features": 12}

    sample = type("Sample", (), {"extras": {"pfg": torch.zeros(12)}})
    data = Data([sample])
    data.sha256 = "aa"
    model = tiny.make_sd()
    network = make(model)
    network.check_dataset(data)
    metadata = network.describe(model)
    assert metadata["pfg_tagger"] == "vit of pfg"
    network.save(tmp_path / "a.safetensors", dtype=torch.float32, metadata=metadata)
    same = make()
    same.check_dataset(data)
    same.load(tmp_path / "a.safetensors")
    other = make()
    data.sha256 = "bb"
    other.check_dataset(data)
    with pytest.raises(ValueError, match="trained with features of vit of pfg"):
        other.load(tmp_path / "a.safetensors")
