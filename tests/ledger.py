"""Write down which images count in which epoch, in every process of a launch; its own main.

`python ledger.py <dataset> <output> <epochs>`: one line of JSON for each batch that counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from modules.buckets import BucketBatchSampler
from modules.dataset import LatentDataset
from modules.engine import create_accelerator
from modules.loading import make_source, step_groups


def main(directory: str, output: str, epochs: str) -> None:
    accelerator = create_accelerator("no")
    rank, world_size = accelerator.process_index, accelerator.num_processes
    dataset = LatentDataset(path=directory)
    sampler = BucketBatchSampler(dataset.buckets, batch_size=2, rank=rank, world_size=world_size)
    source = make_source(dataset, sampler)
    groups = step_groups(source, gradient_accumulation_steps=2)
    lines = []
    for epoch in range(int(epochs)):
        for _ in range(-(-len(sampler) // 2)):
            for part in next(groups):
                shape = list(part.batch.latents.shape[1:])
                counted = part.batch.captions if part.weight else []
                lines.append({"epoch": epoch, "shape": shape, "images": counted})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (Path(output) / f"{rank}.jsonl").write_text(text, encoding="utf-8")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
