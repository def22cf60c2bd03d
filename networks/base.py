"""Adapters: small trainable layers beside those of the base model.

An adapter is a side-car: its parameters live in the network, a forward hook adds their part to a
layer's output, and the base model's own weights and state dict stay as they are.
"""

# Annotations are evaluated here: a subclass in another file has them in its signature.
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.verification import Verified
from networks.alphas import with_common_alphas, with_own_alphas
from networks.description import describe
from networks.dora import AXES, Axis, decompose, weight_change
from networks.dropout import Dropout
from networks.files import write_layers
from networks.hooks import join_all
from networks.keys import file_names
from networks.layer import AdapterLayer, dynamic_rank, is_spatial
from networks.matching import layers_for, module_at
from networks.ranks import Rank, Ranks, check_blocks, check_patterns, ranks_at
from networks.resuming import note_differences, restore
from networks.verification import verify_adapter


@dataclass(kw_only=True, eq=False, repr=False)
class Adapter(nn.Module):
    """A family of layers, one for each targeted layer of the base model.

    Args:
        rank: of Linear layers and 1x1 convolutions; "dynamic" takes one for each layer by its size.
        alpha: the change is scaled by alpha / rank; null means alpha = rank (1 with "dynamic").
        conv_rank: also adapt the convolution blocks, with this rank for k x k kernels.
        conv_alpha: alpha of k x k convolutions; null means alpha, or conv_rank if that is null.
        blocks: other ranks and alphas for parts of the model, by module path; the longest wins.
        targets: module paths as `unet`, `unet.up_blocks`, `text_encoders`; `*` is anything.
        multiplier: strength at which it is applied; files hold the weights at strength 1.
        rank_stabilized: scale by alpha / sqrt(rank) (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732).
        dora: learn magnitudes apart, of "input" or "output" channels (`networks/dora.py`).
        rank_dropout: probability of dropping a rank of a LoRA, a row of the change of others.
        module_dropout: probability of dropping a layer, in a step or a batch of it.
        max_norm: a layer's change is scaled down to this norm after each optimizer step.
    """

    layer_class: ClassVar[type[AdapterLayer]]
    file_kind: ClassVar[str] = "lora"  # as ModelSpec calls adapters of every algorithm
    file_module: ClassVar[str] = "lycoris.kohya"  # by which readers tell what a file is
    algorithm: ClassVar[str | None] = None
    dynamic_factor: ClassVar[int] = 1
    requires: ClassVar[Sequence[str]] = ()
    follows_dtype: ClassVar[bool] = True
    undecayed: ClassVar[Sequence[str]] = ("*.dora_scale",)  # no weight decay: they are not near 0

    rank: Rank = 16
    alpha: float | None = None
    conv_rank: Rank | None = None
    conv_alpha: float | None = None
    blocks: Mapping[str, Ranks] | None = None
    targets: Sequence[str] = ("unet",)
    multiplier: float = 1.0
    rank_stabilized: bool = False
    dora: Axis | None = None
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    max_norm: float | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()  # by their name in files
        self._ranks = Ranks(
            rank=self.rank, alpha=self.alpha, conv_rank=self.conv_rank, conv_alpha=self.conv_alpha
        )
        self._blocks = {
            pattern: Ranks(**block) if isinstance(block, Mapping) else block
            for pattern, block in (self.blocks or {}).items()
        }
        self._paths: dict[str, str] = {}  # name in files -> module path in the base
        self._beside: dict[str, str] = {}  # the same of layers that a file has beside the targets
        self._base: dict[str, Any] = {}
        self._hooks: list[Any] = []
        self._check()

    def attach(self, model: Any) -> None:
        """Put a layer beside each target of `model`.

        Raises:
            ValueError: a target or pattern of `blocks` matches no layer, or one unknown in files.
        """
        targets = model.adapter_layers(self.targets, conv=self.conv_rank is not None)
        check_patterns(self._blocks, targets)
        for path, name in file_names(model, targets).items():
            base = targets[path]
            self._paths[name], self._base[name] = path, base
            if name not in self.layers:
                with base.weight.device:
                    self.layers[name] = self._make_layer(path, base)
        self._base |= {name: module_at(model, path) for name, path in self._beside.items()}
        self._model = model
        self._hook_up()

    def detach(self) -> None:
        """Take the layers off again; the base computes as before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @torch.no_grad()
    def merge(self) -> None:
        """Add every layer's change to the base's weights, and detach."""
        for name, layer in self._named_layers():
            weight = self._base[name].weight
            change = self.multiplier * weight_change(layer, weight)
            weight.copy_((weight.float() + change).to(weight.dtype))
        self.detach()

    def condition(self, inputs: DenoiserInputs, batch: Batch) -> DenoiserInputs:
        """Return the inputs as they are: an adapter works inside of the layers."""
        return inputs

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train the targets, or nothing; what a file has beside them is only applied."""
        super().requires_grad_(requires_grad)
        for name in self._beside:
            self.layers[name].requires_grad_(False)
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter by the path of the base's layer and its own name behind that."""
        paths = {**self._paths, **self._beside}
        return {
            f"{paths[name]}.{own}": [parameter]
            for name, layer in self._named_layers()
            for own, parameter in layer.named_parameters()
        }

    @property
    def rate_factors(self) -> Mapping[str, float]:
        """What the learning rate of some parameters is multiplied by, by pattern."""
        return {}

    def after_step(self) -> None:
        """Keep trained layers within `max_norm`; called after each optimizer step."""
        if self.max_norm is None:
            return
        for _, layer in self._named_layers():
            if any(factor.requires_grad for factor in layer.factors()):
                layer.limit_norm(self.max_norm)

    def save(self, path: Path, *, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Write every layer to a .safetensors file under the field's key names."""
        write_layers(path, self._as_written(), dtype=dtype, metadata=metadata)

    def verify(self, path: Path, *, dtype: torch.dtype) -> Verified:
        """Check that a written file is what readers know, and makes the change that is live."""
        return verify_adapter(self, path, dtype=dtype)

    def load(self, path: Path) -> None:
        """Take over an adapter of whatever program; the file decides.

        Rank, alpha and magnitudes of each layer are read from it. Layers beside the targets are
        applied and saved again, but not trained; targets without a layer in it begin as new ones.

        Raises:
            ValueError: the file is no such adapter, or is for another model.
        """
        targets = {n: layer for n, layer in self._named_layers() if n in self._paths}
        found = layers_for(self._model, path)
        tensors = {name: layer.tensors for name, layer in found.items()}
        read = {
            name: restore(self, found[name].base, own, where=f"{path}: {name}")
            for name, own in with_own_alphas(tensors, targets, self._paths).items()
        }
        note_differences(path, targets, read)
        self.detach()
        self.layers = nn.ModuleDict({**targets, **read}).train(self.training)
        self._beside = {name: found[name].path for name in read if name not in targets}
        self._base = {name: self._base[name] for name in targets}
        self._base |= {name: each.base for name, each in found.items()}
        for name, layer in self._named_layers():
            layer.dropouts = Dropout() if name in self._beside else self._dropouts()
            layer.requires_grad_(name not in self._beside)
            layer.to(self._base[name].weight.device)  # last: without weights it is `meta`
        self._hook_up()

    def describe(self, model: Any) -> dict[str, str]:
        """Metadata of a file: algorithm, rank, alpha, targets."""
        return describe(
            model,
            [layer for _, layer in self._named_layers()],
            module=self.file_module,
            algorithm=self.algorithm,
            args={"targets": " ".join(self.targets), **self._arguments()},
        )

    # What a subclass may say otherwise:

    def _new_layer(self, base: nn.Module, *, rank: int, alpha: float) -> AdapterLayer:
        return self.layer_class(base, rank=rank, alpha=alpha)

    def _dropouts(self) -> Dropout:
        return Dropout(rank_dropout=self.rank_dropout, module_dropout=self.module_dropout)

    def _arguments(self) -> dict[str, str]:
        """Arguments for the metadata, under LyCORIS' names."""
        return {"rs_lora": "True"} if self.rank_stabilized else {}

    def _as_written(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a file by layer, all of a component with one alpha."""
        return with_common_alphas(self._named_layers(), {**self._paths, **self._beside})

    def _make_layer(self, path: str, base: nn.Module) -> AdapterLayer:
        dynamic = self.dynamic_factor * dynamic_rank(base)
        ranks = ranks_at(path, self._ranks, self._blocks)
        rank, alpha = ranks.of(spatial=is_spatial(base), dynamic=dynamic)
        rank = self.layer_class.usable_rank(base, rank)
        if self.rank_stabilized:
            alpha *= math.sqrt(rank)  # files know alpha / rank only
        layer = self._new_layer(base, rank=rank, alpha=alpha)
        layer.dropouts = self._dropouts()
        if self.dora is not None:
            assert isinstance(base.weight, Tensor)
            decompose(layer, base.weight, self.dora)
        return layer

    def _named_layers(self) -> list[tuple[str, AdapterLayer]]:
        return [(n, layer) for n, layer in self.layers.items() if isinstance(layer, AdapterLayer)]

    def _hook_up(self) -> None:
        pairs = [(layer, self._base[name]) for name, layer in self._named_layers()]
        self._hooks += join_all(pairs, lambda: self.multiplier)

    def _check(self) -> None:
        """Check the arguments, as far as that can be done without a model."""
        for fault in self._ranks.faults():
            raise ValueError(fault)
        if not self.targets:
            raise ValueError("targets: is empty; name parts of the model, such as [unet]")
        if self.dora not in (None, *AXES):
            raise ValueError(f"dora: {self.dora!r} is not one of {', '.join(AXES)}")
        if self.max_norm is not None and self.max_norm <= 0:
            raise ValueError(f"max_norm: {self.max_norm} is not above 0; usual is 1")
        check_blocks(self._blocks, self._ranks)
        self._dropouts().check()
