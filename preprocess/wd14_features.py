"""A tagger's features: what its last layer turns into probabilities, or a ready-made output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from preprocess.wd14 import WD14, import_package, open_session
from preprocess.wd14_files import TaggerFiles

_ELEMENTWISE = {"Sigmoid", "Add", "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}


def load_features(files: TaggerFiles, *, device: str | None = None) -> WD14:
    """Load a tagger so that its output is the features, not the probabilities.

    Of a model with several outputs it's the one called `embedding`, or the second of two; of one
    that ends in a sigmoid, the input of the last layer; any other model gives features itself.

    Raises:
        ValueError: the features can't be told, or as `load_tagger`.
    """
    onnx = import_package("onnx")
    try:
        model = onnx.load(files.model)
    except Exception as error:  # protobuf's own errors, the system's
        raise ValueError(
            f"{files.model}: is not an ONNX model ({type(error).__name__}); fetch it again"
        ) from error
    content: Path | bytes = files.model
    names = [output.name for output in model.graph.output]
    embeddings = [name for name in names if "embedding" in name.lower()]
    if len(embeddings) == 1:
        output = embeddings[0]
    elif len(names) == 2:
        output = names[1]
    elif len(names) > 2:
        raise ValueError(f"{files.id}: none of the outputs {', '.join(names)} is the embedding")
    elif not _ends_in_sigmoid(model.graph):
        output = names[0]
    else:
        output = _find_last_layer_input(model.graph, name=files.id)
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
        content = model.SerializeToString()
    session = open_session(content, device=device, name=files.id)
    return WD14(session, output=output, name=files.id)


def _ends_in_sigmoid(graph: Any) -> bool:
    producers = _find_producers(graph)
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "Sigmoid"


def _find_last_layer_input(graph: Any, *, name: str) -> str:
    """Walk from the output back to the last linear layer; return the name of what it's given."""
    producers, constants = _find_producers(graph), _find_constants(graph)
    node = producers.get(graph.output[0].name)
    while node is not None:
        inputs = [i for i in node.input if i not in constants]
        is_linear = node.op_type in ("MatMul", "Gemm")
        if len(inputs) != 1 or not (is_linear or node.op_type in _ELEMENTWISE):
            break
        if is_linear:
            return inputs[0]
        node = producers.get(inputs[0])
    found = f"{node.op_type} {node.name!r}" if node is not None else "the input"
    raise ValueError(
        f"{name}: its features can't be told, {found} stands where the last linear layer should; "
        "use a tagger with an embedding as its second output"
    )


def _find_producers(graph: Any) -> dict[str, Any]:
    return {output: node for node in graph.node for output in node.output}


def _find_constants(graph: Any) -> set[str]:
    """Return the tensors that don't depend on the model's input, weights that are cast too."""
    constants = {""} | {weight.name for weight in graph.initializer}
    for node in graph.node:  # sorted, as the format wants it
        if all(i in constants for i in node.input):
            constants.update(node.output)
    return constants
