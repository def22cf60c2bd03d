"""Token merging: it merges in training, not in sampling, and gradients are right."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from modules.config import load
from modules.token_merging import merge_tokens, whole_tokens
from modules.trainer import Trainer

LORA = {"lora": {"module": "networks.lora.LoRA", "args": {"rank": 2}}}


class Lengths:
    """Counts the tokens that reach the self-attention."""

    def __init__(self, unet: nn.Module):
        self.seen: list[int] = []
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.register_forward_pre_hook(self._note)

    def _note(self, _module, args) -> None:
        self.seen.append(args[0].shape[1])


def run(unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 16, 32, generator=generator)
    return unet(sample, torch.tensor([500, 500]), states).sample


def test_tokens_are_merged_and_for_a_while_not():
    unet = tiny.make_sd().denoiser
    lengths = Lengths(unet)
    plain = run(unet)
    merge_tokens(unet, 0.5)
    merged = run(unet)
    with whole_tokens(unet):
        whole = run(unet)
    assert torch.equal(whole, plain)
    assert not torch.equal(merged, plain)
    third = len(lengths.seen) // 3
    level = max(lengths.seen)
    assert lengths.seen[:third] == lengths.seen[2 * third :]
    merged_lengths = lengths.seen[third : 2 * third]
    assert merged_lengths == [n // 2 if n == level else n for n in lengths.seen[:third]]


def test_a_unet_that_merges_nothing_stays_as_it_is():
    unet = tiny.make_sd().denoiser
    with whole_tokens(unet):
        assert torch.equal(run(unet), run(tiny.make_sd().denoiser))


def test_names_of_weights_stay():
    unet = tiny.make_sd().denoiser
    before = list(unet.state_dict())
    merge_tokens(unet, 0.5)
    assert list(unet.state_dict()) == before


def test_gradients_are_the_same_with_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        unet = tiny.make_sd().denoiser.train()
        merge_tokens(unet, 0.5)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(5)
        run(unet).square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-7), name


def test_a_unet_without_attention_is_refused():
    unet = tiny.make_sd().denoiser
    unet.register_to_config(down_block_types=("DownBlock2D", "DownBlock2D"))
    with pytest.raises(ValueError, match="no attention"):
        merge_tokens(unet, 0.5)


@pytest.mark.parametrize("tome", [False, True])
def test_a_run_merges_in_training_and_in_sampling_if_asked(write_config, tome):
    sample = {
        "prompts": ["a cat"],
        "width": 32,
        "height": 32,
        "num_inference_steps": 1,
        "at_start": False,
        "tome": tome,
    }
    path = write_config(networks=LORA, sample=sample)
    trainer = Trainer.from_config(load(path, "train.tome_ratio=0.5", "train.max_train_steps=1"))
    lengths = Lengths(trainer.model.denoiser)
    trainer.train()
    largest = sorted({64, 96} & set(lengths.seen))
    attentions = len(lengths.seen) // 2
    trained, sampled = lengths.seen[:attentions], lengths.seen[attentions:]
    assert {32, 48} & set(trained)
    assert not {64, 96} & set(trained)
    assert bool(largest) == (not tome)
    assert (64 in sampled) == (not tome)


def test_two_draws_with_merged_tokens_are_equal():
    from modules.drawing import draw_images

    model = tiny.make_sd()
    merge_tokens(model.denoiser, 0.5)
    options = {"prompts": ["a cat", "a dog"], "seeds": [1, 2], "size": (32, 32), "tome": True}
    first, second = (draw_images(model, [], num_inference_steps=2, **options) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
