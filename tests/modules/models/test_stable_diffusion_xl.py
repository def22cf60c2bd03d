"""Stable Diffusion XL on disk and in use, against diffusers' own pipeline and LoRA reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from probes import outputs, perturb
from torch import nn

from modules import models
from modules.batch import Batch, DenoiserInputs
from modules.dataset import LatentDataset
from modules.models.compvis import unet_module_name
from networks.lora import LoRA

CAPTIONS = ["a red cat", "a blue dog on the mat"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tiny.save_sd(tmp_path_factory.mktemp("xl") / "model", make=tiny.make_sdxl)


@pytest.fixture(scope="module")
def pipeline(directory):
    return StableDiffusionXLPipeline.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32
    )


def batch_of(**fields) -> Batch:
    return Batch(captions=CAPTIONS, latents=torch.randn(2, 4, 8, 12), **fields)


def test_prompts_and_predictions_are_the_pipelines(directory, pipeline):
    model = models.load(str(directory))
    batch = batch_of(
        original_size=torch.tensor([[40, 60], [640, 480]]),
        crop_top_left=torch.tensor([[0, 6], [4, 0]]),
    )
    with torch.no_grad():
        conditions = model.encode_prompts(batch)
        states, _, pooled, _ = pipeline.encode_prompt(
            CAPTIONS, device="cpu", do_classifier_free_guidance=False
        )
        assert torch.equal(conditions["encoder_hidden_states"], states)
        added = conditions["added_cond_kwargs"]
        assert torch.equal(added["text_embeds"], pooled)
        expected = [
            pipeline._get_add_time_ids(
                *(original, corner, (32, 48)),
                dtype=torch.float32,
                text_encoder_projection_dim=pooled.shape[1],
            )
            for original, corner in (((40, 60), (0, 6)), ((640, 480), (4, 0)))
        ]
        assert torch.equal(added["time_ids"], torch.cat(expected))
        timestep = torch.tensor([10, 700])
        inputs = DenoiserInputs(sample=batch.latents, timestep=timestep, **conditions)
        theirs = pipeline.unet(
            batch.latents,
            timestep,
            states,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.cat(expected)},
        ).sample
        assert torch.allclose(model.denoise(inputs), theirs, atol=1e-5)


def test_images_of_unknown_origin_count_as_neither_scaled_nor_cropped(directory):
    model = models.load(str(directory), weights=False)
    assert model.size_conditions(batch_of()).tolist() == [[32, 48, 0, 0, 32, 48]] * 2
    pixels = Batch(captions=["a"], pixel_values=torch.zeros(1, 3, 32, 16))
    assert model.size_conditions(pixels).tolist() == [[32, 16, 0, 0, 32, 16]]
    drawn = Batch(captions=["a"], original_size=torch.tensor([[64, 32]]))
    assert model.size_conditions(drawn).tolist() == [[64, 32, 0, 0, 64, 32]]


def test_sizes_come_from_bucketing(directory, tmp_path, caplog):
    path = tiny.save_dataset(tmp_path / "data", {(32, 32): 2})
    model = models.load(str(directory), weights=False)
    model.check_dataset(LatentDataset(str(path)))
    assert "has no images.jsonl, so sizes and crops" in caplog.text
    caplog.clear()
    entries = [
        {"name": f"image00{n}", "original_size": [64, 40], "crop_top_left": [0, 9]}
        for n in range(2)
    ]
    (path / "images.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    dataset = LatentDataset(str(path))
    model.check_dataset(dataset)
    assert not caplog.text
    assert dataset[0].original_size == (40, 64)  # height, width
    assert dataset[0].crop_top_left == (0, 9)


def test_a_saved_model_keeps_its_switches(directory, tmp_path):
    index = json.loads((directory / "model_index.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for piece in directory.iterdir():
        (copy / piece.name).symlink_to(piece)
    (copy / "model_index.json").unlink()
    changed = {**index, "force_zeros_for_empty_prompt": False}
    (copy / "model_index.json").write_text(json.dumps(changed))
    models.load(str(copy)).save_pretrained(tmp_path / "saved", dtype=torch.float16)
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert again.config.force_zeros_for_empty_prompt is False
    assert again.text_encoder_2.dtype == torch.float16


def test_layers_without_effect_are_not_trained(directory):
    model = models.load(str(directory), weights=False)
    trained = model.parameters_matching(["text_encoders"])
    layers = model.adapter_layers(["text_encoders"], conv=False)
    for paths in (trained, layers):
        assert not any("text_encoders.0.encoder.layers.1" in path for path in paths)
        assert any("text_encoders.1.text_model.encoder.layers.1" in path for path in paths)
    assert not any("text_encoders.0.final_layer_norm" in path for path in trained)
    for pattern in ("text_encoders.0.encoder.layers.1", "text_encoders.0.final_layer_norm"):
        with pytest.raises(ValueError, match="names only parts without effect on the images"):
            model.parameters_matching([pattern])
    with pytest.raises(ValueError, match="names only parts without effect on the images"):
        model.adapter_layers(["text_encoders.0.encoder.layers.1"], conv=False)


def test_diffusers_computes_the_same_from_our_lora(directory, pipeline, tmp_path):
    model = models.load(str(directory))
    plain = outputs(model)
    network = LoRA(rank=4, alpha=2, conv_rank=3, targets=["unet", "text_encoders"])
    network.attach(model)
    perturb(network)
    path = tmp_path / "lora.safetensors"
    metadata = network.describe(model)
    network.save(path, dtype=torch.float32, metadata=metadata)
    ours = outputs(model)
    network.detach()
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert "lora_unet_input_blocks_3_1_proj_in" in network.layers
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj" in network.layers
    assert "lora_te2_text_model_encoder_layers_1_mlp_fc2" in network.layers
    pipeline.load_lora_weights(path)
    try:
        model.denoiser = pipeline.unet
        for encoder, theirs in zip(
            model.text_encoders, (pipeline.text_encoder, pipeline.text_encoder_2), strict=True
        ):
            encoder.module = theirs
        for mine, theirs, base in zip(ours, outputs(model), plain, strict=True):
            assert (mine - base).abs().max() > 1e-2
            assert torch.allclose(mine, theirs, atol=1e-5)
    finally:
        pipeline.unload_lora_weights()


def test_names_of_the_real_unet_lead_back_to_its_modules():
    """All 794 layers of SDXL, read by diffusers' own table."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    paths = [name for name, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(paths) == 794
    names = {path: unet_module_name(path, unet.config).replace(".", "_") for path in paths}
    assert len(set(names.values())) == 794
    in_blocks = [path for path in paths if "_blocks." in path or path.startswith("mid_block")]
    carried = {f"lora_unet_{names[path]}.lora_down.weight": path for path in in_blocks}
    found = _maybe_map_sgm_blocks_to_diffusers(dict(carried), unet.config)
    assert len(found) == len(in_blocks)
    for key, path in found.items():
        expected = f"lora_unet_{path.replace('.', '_')}.lora_down.weight"
        assert sgm_inner(key) == expected, path


def sgm_inner(key: str) -> str:
    """A key with the names as diffusers has them that its reader maps later."""
    for theirs, ours in (
        ("input_blocks", "down_blocks"),
        ("middle_block", "mid_block"),
        ("output_blocks", "up_blocks"),
        ("in_layers_2", "conv1"),
        ("out_layers_3", "conv2"),
        ("emb_layers_1", "time_emb_proj"),
        ("skip_connection", "conv_shortcut"),
        ("downsamplers_0_op", "downsamplers_0_conv"),
    ):
        key = key.replace(theirs, ours)
    return key
