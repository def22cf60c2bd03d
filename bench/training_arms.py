"""The two sides of bench/training.py, each in a process of its own: steps are asked for by line.

Both train the same layers of the same UNet on the same cached latents and text, with AdamW at the
same settings and gradient clipping, or none where ours steps within its backward pass.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

Step = Callable[[], None]


def ours(settings: Mapping[str, Any]) -> Step:
    """Return a step of this trainer's own loop, by its YAML."""
    import yaml

    from modules.config import load
    from modules.lean_imports import import_diffusers

    import_diffusers()
    from modules.trainer import Trainer

    path = Path(settings["folder"]) / f"{settings['kind']}.yaml"
    path.write_text(yaml.safe_dump(settings["config"]), encoding="utf-8")
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    groups = trainer.step_groups()
    trainer.optimizer.train()

    def step() -> None:
        metrics = trainer.train_step(next(groups))
        trainer.step += 1
        trainer.log(metrics, last=False)

    return step


def peft(settings: Mapping[str, Any]) -> Step:
    """Return a step of a plain loop with PEFT and diffusers, as their documentation has it."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, UNet2DConditionModel

    config = settings["config"]
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = UNet2DConditionModel.from_pretrained(config["model"]["path"], subfolder="unet")
    schedule = DDPMScheduler.from_pretrained(config["model"]["path"], subfolder="scheduler")
    precision = {"no": torch.float32, "bf16": torch.bfloat16}[config["train"]["mixed_precision"]]
    if settings["kind"].startswith("full"):
        unet.to(device).requires_grad_(True).train()
    else:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        unet.to(device, precision).requires_grad_(False)
        unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=settings["layers"]))
        assert sum(isinstance(m, BaseTunerLayer) for m in unet.modules()) == len(settings["layers"])
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    rates = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    batches = _batches(settings)
    clips = config["train"].get("max_grad_norm", 1.0) > 0

    def step() -> None:
        latents, conditions = next(batches)
        latents = latents.to(device) * settings["scaling_factor"]
        noise = torch.randn_like(latents)
        count = schedule.config.num_train_timesteps
        times = torch.randint(0, count, (len(latents),), device=device)
        noisy = schedule.add_noise(latents, noise, times)
        with torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
            predicted = unet(noisy, times, **_on_device(conditions, device)).sample
            loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        if clips:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        loss.detach().item()

    return step


def bare(settings: Mapping[str, Any]) -> Step:
    """Return forward, backward and optimizer of our own model and adapter, without our loop."""
    import torch
    import yaml

    from modules.config import load
    from modules.trainer import Trainer

    path = Path(settings["folder"]) / f"bare-{settings['kind']}.yaml"
    config = {**settings["config"], "optimizer": {}}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    trainer = Trainer.from_config(load(path))
    assert trainer is not None
    trained = [p for group in trainer.groups for p in group.parameters]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    batches = _batches(settings)
    unet, device = trainer.model.denoiser, trainer.accelerator.device

    def step() -> None:
        latents, conditions = next(batches)
        latents = latents.to(device)
        times = torch.randint(0, 1000, (len(latents),), device=device)
        noise = torch.randn_like(latents)
        with trainer.autocast():
            predicted = unet(latents, times, **_on_device(conditions, device)).sample
            (predicted - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batches(settings: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Cached latents and what the UNet is conditioned on, in shuffled batches of a DataLoader."""
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    data = Path(settings["config"]["dataset"]["args"]["path"])
    names = sorted(path.stem for path in (data / "latents").glob("*.npy"))
    side = settings["pixels"]

    class Cached(Dataset):
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, number: int) -> tuple[Any, dict[str, Any]]:
            latents = torch.from_numpy(np.load(data / "latents" / f"{names[number]}.npy"))
            with np.load(data / "text" / f"{names[number]}.npz") as text:
                conditions = {key: torch.from_numpy(text[key]) for key in text.files}
            if "pooled_prompt_embeds" in conditions:
                conditions["added_cond_kwargs"] = {
                    "text_embeds": conditions.pop("pooled_prompt_embeds"),
                    "time_ids": torch.tensor([side, side, 0.0, 0.0, side, side]),
                }
            return latents, conditions

    size = settings["config"]["train"]["batch_size"]
    loader = DataLoader(Cached(), batch_size=size, shuffle=True, drop_last=True)
    while True:
        yield from loader


def _on_device(conditions: Any, device: Any) -> Any:
    if isinstance(conditions, Mapping):
        return {key: _on_device(value, device) for key, value in conditions.items()}
    return conditions.to(device)


def count_operations(step: Step) -> int:
    """Make a step; return the floating-point operations of its matrix products and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def serve() -> None:
    """Make steps as asked; the first line read holds the settings, each other a number of steps."""
    settings = json.loads(sys.stdin.readline())
    import torch

    from bench.processes import peak_memory

    torch.set_num_threads(settings["threads"])
    step = {"ours": ours, "peft": peft, "bare": bare}[settings["arm"]](settings)
    step()
    print(json.dumps({"first_step": time.process_time()}), flush=True)
    if settings["counts_operations"]:
        print(json.dumps({"operations": count_operations(step)}), flush=True)
    for line in sys.stdin:
        began, wall = time.process_time(), time.perf_counter()
        for _ in range(int(line)):
            step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = {"cpu": time.process_time() - began, "wall": time.perf_counter() - wall}
        on_device = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
        print(json.dumps({**took, "MiB": on_device or peak_memory()}), flush=True)


if __name__ == "__main__":
    serve()
