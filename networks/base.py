"""Adapters: small trainable layers beside those of the base model.

An adapter is a side-car: its parameters live in the network, a forward hook adds their part to a
layer's output, and the base model's own weights and state dict stay as they are.
"""

# Annotations are evaluated here: a subclass in another file has them in its signature.
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modules.batch import Batch, DenoiserInputs
from modules.verification import Verified
from networks.alphas import common_alphas, with_common_alphas, with_own_alpha
from networks.description import describe, warn_of_differences
from networks.dora import AXES, Axis, decompose, take_over, weight_change
from networks.dropout import Dropout
from networks.files import read_layers, write_layers
from networks.hooks import make_hook
from networks.key_rules import check_layers
from networks.keys import kohya_name
from networks.layer import AdapterLayer, dynamic_rank, is_spatial
from networks.ranks import Rank, Ranks, check_blocks, check_patterns, ranks_at
from networks.verification import verify_layers


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
    file_module: ClassVar[str] = "lycoris.kohya"  # by which readers tell what a file is
    algorithm: ClassVar[str | None] = None
    dynamic_factor: ClassVar[int] = 1
    requires: ClassVar[Sequence[str]] = ()
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
        self._base: dict[str, Any] = {}
        self._hooks: list[Any] = []
        self._check()

    def attach(self, model: Any) -> None:
        """Put a layer beside each target of `model`.

        Raises:
            ValueError: a target, or a pattern of `blocks`, matches no layer, or one that no reader
                of files knows.
        """
        targets = model.adapter_layers(self.targets, conv=self.conv_rank is not None)
        check_patterns(self._blocks, targets)
        self._base_version = model.base_version().get("ss_base_model_version")
        names = {path: kohya_name(model, path) for path in targets}
        check_layers(names, self._base_version)
        for path, name in names.items():
            base = targets[path]
            self._paths[name], self._base[name] = path, base
            if name not in self.layers:
                with base.weight.device:
                    self.layers[name] = self._make_layer(path, base)
        self._alphas = common_alphas(self._named_layers(), self._paths)  # of files, as configured
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

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter by the path of the base's layer and its own name behind that."""
        return {
            f"{self._paths[name]}.{own}": [parameter]
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
        layers = {name: (layer, self._base[name]) for name, layer in self._named_layers()}
        version = self._base_version
        return verify_layers(path, layers, self._as_written(), version=version, dtype=dtype)

    def load(self, path: Path) -> None:
        """Take over the layers of a file; rank, alpha and magnitudes of each are read from it.

        Raises:
            ValueError: the file is no such adapter, or is for other layers than the targets.
        """
        configured = dict(self._named_layers())
        for name, tensors in read_layers(path, list(self.layers)).items():
            try:
                layer = self._read_layer(name, tensors)
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{path}: {name} is no {type(self).__name__} of this layer: {error}"
                ) from error
            self.layers[name] = layer
        warn_of_differences(path, configured, dict(self._named_layers()))
        for name, layer in self._named_layers():
            layer.to(self._base[name].weight.device)  # last: without weights it is `meta`
        self.detach()
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
        return with_common_alphas(self._named_layers(), self._paths)

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

    def _read_layer(self, name: str, tensors: Mapping[str, Tensor]) -> AdapterLayer:
        base = self._base[name]
        if "alpha" not in tensors:  # readers take a scale of 1
            rank = self.layer_class.rank_of(tensors)
            tensors = {**tensors, "alpha": torch.tensor(float(rank))}
        floats = {key: tensor.float() for key, tensor in tensors.items()}
        floats = with_own_alpha(self.layers[name], floats, self._alphas[name])
        layer = self.layer_class.from_shapes(base, floats)
        layer.dropouts = self._dropouts()
        if "dora_scale" in floats:
            take_over(layer, floats["dora_scale"], base.weight)
        layer.load_state_dict(floats)
        return layer

    def _named_layers(self) -> list[tuple[str, AdapterLayer]]:
        return [(n, layer) for n, layer in self.layers.items() if isinstance(layer, AdapterLayer)]

    def _hook_up(self) -> None:
        for name, layer in self._named_layers():
            hook = make_hook(self, layer)
            self._hooks.append(self._base[name].register_forward_hook(hook))

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
