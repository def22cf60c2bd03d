"""Files of LyCORIS, written and computed by its own code, resumed here."""

from __future__ import annotations

import pytest
import tiny
import torch
from foreign_adapters import layers_of, twin, write_lycoris
from probes import outputs
from safetensors.torch import load_file, save_file
from torch import nn

from networks.base import Adapter
from networks.layer import AdapterLayer
from networks.loha import LoHa
from networks.lokr import LoKr
from networks.lora import LoRA

NETWORKS = {"locon": LoRA, "loha": LoHa, "lokr": LoKr}
TUCKER, DORA = {"use_tucker": True}, {"weight_decompose": True}
FILES = {
    "locon": ("locon", {}),
    "locon-tucker": ("locon", TUCKER),
    "locon-rs": ("locon", {"rs_lora": True}),
    "locon-scalar": ("locon", {"use_scalar": True}),
    "locon-dora": ("locon", DORA),
    "locon-dora-input": ("locon", {**DORA, "wd_on_out": False}),
    "locon-tucker-dora": ("locon", {**TUCKER, **DORA}),
    "loha": ("loha", {}),
    "loha-tucker": ("loha", TUCKER),
    "loha-dora": ("loha", DORA),
    "lokr": ("lokr", {}),
    "lokr-tucker": ("lokr", TUCKER),
    "lokr-both": ("lokr", {"decompose_both": True, "factor": -1}),
    "lokr-whole": ("lokr", {"full_matrix": True}),
    "lokr-dora": ("lokr", DORA),
    "flat": ("locon", {"flat": True}),
    "original names": ("locon", {"original": True}),
    "lycoris names": ("locon", {"prefixes": {"unet": "lycoris", "text_encoders.0": "lycoris"}}),
    "te1": ("locon", {"prefixes": {"unet": "lora_unet", "text_encoders.0": "lora_te1"}}),
}


def assert_resumes(network, model, path, expected, plain) -> None:
    """The outputs are those of the file's own program, whatever the settings here."""
    network.attach(model)
    network.load(path)
    for ours, theirs, base in zip(outputs(model), expected, plain, strict=True):
        assert (theirs - base).abs().max() > 1e-2
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_lycoris_files(name, tmp_path, caplog):
    algorithm, options = FILES[name]
    model = tiny.make_sd()
    theirs, plain = twin(model), outputs(model)
    path = write_lycoris(theirs, tmp_path / "adapter.safetensors", algorithm, **options)
    network = NETWORKS[algorithm](rank=7, targets=("unet", "text_encoders"))
    with caplog.at_level("WARNING"):
        assert_resumes(network, model, path, outputs(theirs), plain)
    if name == "locon":
        assert "has rank 2 and 3 and 4, which is taken" in caplog.text
    if name == "locon-rs":
        assert "has alpha 1.41421 to 4, which is taken" in caplog.text
    assert len(network.layers) == len([*layers_of(model)])


TEXT_ENCODERS = {"text_encoders.0": "lora_te1", "text_encoders.1": "lora_te2"}


@pytest.mark.parametrize("original", [False, True], ids=["diffusers", "sgm"])
def test_sdxl(original, tmp_path):
    model = tiny.make_sdxl()
    theirs, plain = twin(model), outputs(model)
    options = {"original": original, "prefixes": {"unet": "lora_unet", **TEXT_ENCODERS}}
    path = write_lycoris(theirs, tmp_path / "adapter.safetensors", "locon", **options)
    assert_resumes(LoRA(), model, path, outputs(theirs), plain)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_in_half_precision_and_without_alpha(suffix, tmp_path):
    model = tiny.make_sd(sd2=True)
    path = write_lycoris(twin(model), tmp_path / "whole.safetensors", "locon")
    half = {k: v.half() for k, v in load_file(path).items() if not k.endswith(".alpha")}
    short = tmp_path / f"half{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(half, short)
    network = LoRA()
    network.attach(model)
    network.load(short)
    assert {layer.scale for layer in network.layers.values()} == {1.0}
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    name, layer = next(iter(network.layers.items()))
    assert torch.equal(layer.lora_up.weight, half[f"{name}.lora_up.weight"].float())


def test_a_1x1_convolution_is_read_as_a_linear_layer_and_the_other_way(tmp_path):
    model = tiny.make_sd()
    path = write_lycoris(twin(model), tmp_path / "whole.safetensors", "locon")
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if "proj_in.lora" in key:
            tensors[key] = tensor.flatten(1)
        elif "attn1_to_q.lora" in key:
            tensors[key] = tensor[..., None, None]
    save_file(tensors, tmp_path / "other.safetensors")
    found = []
    for name in ("whole", "other"):
        network, own = LoRA(), twin(model)
        network.attach(own)
        network.load(tmp_path / f"{name}.safetensors")
        found.append(outputs(own))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


T = torch.zeros
BLOCK = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{BLOCK}.oft_blocks": T(2, 2, 2), f"{BLOCK}.alpha": T(())}, "is an OFT or BOFT, which"),
        ({f"{BLOCK}.diff": T(2, 2)}, "is made of whole changes of weights"),
        ({f"{BLOCK}.diff_b": T(2), f"{BLOCK}.lora_up.weight": T(2, 2)}, "is made of whole changes"),
        ({f"{BLOCK}.w_norm": T(2)}, "is one with changes of normalisations"),
        ({f"{BLOCK}.weight": T(2), f"{BLOCK}.on_input": T(())}, r"is an \(IA\)\^3"),
        ({f"{BLOCK}.a1.weight": T(2, 2)}, "is a GLoRA"),
        ({"base_model.model.mid_block.to_q.ia3_l": T(2)}, r"is an \(IA\)\^3"),
        ({"base_model.model.mid_block.to_q.oft_r.weight": T(2)}, "is an OFT or BOFT"),
        ({"unet.mid_block.to_q.lora_B.bias": T(2)}, "is one with trained biases"),
        ({"lllite_unet_input_blocks.conditioning1.0.weight": T(2)}, "is a ControlNet-LLLite"),
        (
            {"controlnet_cond_embedding.conv_in.weight": T(2)},
            "is a ControlNet; networks.controlnet",
        ),
        ({"control_model.input_blocks.0.0.weight": T(2)}, "is a ControlNet"),
        ({"model.diffusion_model.out.2.weight": T(2)}, "is a whole base model, which belongs"),
        ({"first_stage_model.x": T(2)}, "is a VAE"),
        ({"emb_params": T(2, 2)}, "is a textual inversion's embedding"),
        ({"pfg_linear.weight": T(2, 2)}, "is a PFG; write `module: networks.pfg.PFG`"),
        ({"ip_adapter.1.to_k_ip.weight": T(2, 2)}, "is an IP-Adapter"),
        ({"transformer.x.lora_A.weight": T(2, 2)}, "is for a transformer, as SD3 or Flux"),
        ({"lora_unet_double_blocks_0_img.lora_up.weight": T(2, 2)}, "is for Flux"),
        ({"something.else": T(2)}, "something.else is no tensor of an adapter that is known"),
        ({f"{BLOCK}.lora_up.weight": T(2, 2)}, f"{BLOCK} is incomplete"),
        ({}, "has no layers of an adapter"),
    ],
)
def test_what_is_no_adapter_is_named(tensors, words, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    network = LoRA()
    network.attach(tiny.make_sd())
    with pytest.raises(ValueError, match=words):
        network.load(path)


def test_a_file_for_another_family_is_refused(tmp_path):
    up, down = "lora_up.weight", "lora_down.weight"
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    wide = {f"{layer}.{up}": T(640, 4), f"{layer}.{down}": T(4, 2048)}
    text = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    second = {f"{text}.{up}": T(8, 4), f"{text}.{down}": T(4, 8)}
    other = {f"lora_unet_other.{up}": T(8, 4), f"lora_unet_other.{down}": T(4, 8)}
    for tensors, words in (
        (wide, "is for SDXL, whose text embeddings have 2048 numbers; this is one with 32"),
        (second, "is for SDXL; this is a StableDiffusion"),
        (other, r"lora_unet_other is no layer of this model \(StableDiffusion\); it is for"),
    ):
        save_file(tensors, tmp_path / "file.safetensors")
        network = LoRA()
        network.attach(tiny.make_sd())
        with pytest.raises(ValueError, match=words):
            network.load(tmp_path / "file.safetensors")


def test_embeddings_in_a_lora_are_left_out(tmp_path, caplog):
    model = tiny.make_sd()
    path = write_lycoris(twin(model), tmp_path / "lora.safetensors", "locon")
    save_file({**load_file(path), "bundle_emb.cat.string_to_param.*": T(2, 32)}, path)
    network = LoRA()
    network.attach(model)
    with caplog.at_level("WARNING"):
        network.load(path)
    assert "the embeddings in it are left out: cat" in caplog.text


def test_each_kind_names_the_network_that_it_is_for(tmp_path):
    for algorithm, network in NETWORKS.items():
        path = write_lycoris(tiny.make_sd(), tmp_path / f"{algorithm}.safetensors", algorithm)
        for other in NETWORKS.values():
            if other is network:
                continue
            wrong = other()
            wrong.attach(tiny.make_sd())
            module = f"{network.__module__}.{network.__name__}"
            with pytest.raises(ValueError, match=f"write `module: {module}`"):
                wrong.load(path)


class GainLayer(AdapterLayer):
    """A kind of a person's own: the output times a number."""

    def __init__(self, base, *, rank, alpha):
        super().__init__(base, rank=rank, alpha=alpha)
        self.gain = nn.Parameter(T(rank))

    def forward(self, x):
        return x[..., :1] * self.gain.sum()

    @staticmethod
    def rank_of(tensors):
        return len(tensors["gain"])


class Gain(Adapter):
    layer_class = GainLayer


def test_a_kind_of_ones_own_goes_through_as_it_is(tmp_path):
    model = tiny.make_sd()
    first = Gain(rank=3, alpha=1)
    first.attach(model)
    with torch.no_grad():
        for layer in first.layers.values():
            layer.gain.fill_(0.5)
    first.save(tmp_path / "gain.safetensors", dtype=torch.float32, metadata={})
    first.detach()
    second = Gain()
    second.attach(model)
    second.load(tmp_path / "gain.safetensors")
    assert all(torch.equal(layer.gain, torch.full((3,), 0.5)) for layer in second.layers.values())
    second.detach()
    other = LoRA()
    other.attach(model)
    with pytest.raises(ValueError, match="is no LoRA of this layer: it has no 'lora_down"):
        other.load(tmp_path / "gain.safetensors")
