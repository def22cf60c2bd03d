"""config/README.md and README.ja.md say what modules/sections.py and the components say."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from omegaconf import MISSING

from modules import sections as schema
from modules.component import argument_faults, resolve
from modules.save_section import MetadataConfig
from modules.schema import build_section
from modules.sections import Config
from modules.yaml_text import parse, parse_argument

ROOT = Path(schema.__file__).parents[1]
LANGUAGES = {"README.md": "required", "README.ja.md": "必須"}
SECTIONS = {
    "`model`": schema.ModelConfig,
    "`dataset`": schema.DatasetConfig,
    "`prepare`": schema.ComponentConfig,
    "`prior`": schema.PriorConfig,
    "`networks`": schema.NetworkConfig,
    "`objective`": schema.ObjectiveConfig,
    "`optimizer`": schema.OptimizerConfig,
    "`lr_scheduler`": schema.LrSchedulerConfig,
    "`ema`": schema.EmaConfig,
    "`train`": schema.TrainConfig,
    "`save`": schema.SaveConfig,
    "`save.metadata`": MetadataConfig,
    "`sample`": schema.SampleConfig,
    "`validation`": schema.ValidationConfig,
}
COMPONENTS = {
    "`modules.dataset.LatentDataset`, `modules.dataset.ImageDataset`": (
        "modules.dataset.ImageDataset"
    ),
    "`modules.mixture.Mixture`": "modules.mixture.Mixture",
    "`networks.lora.LoRA`, `networks.loha.LoHa`, `networks.lokr.LoKr`": "networks.loha.LoHa",
    "`networks.lora.LoRA`": "networks.lora.LoRA",
    "`networks.lokr.LoKr`": "networks.lokr.LoKr",
    "`networks.controlnet.ControlNet`": "networks.controlnet.ControlNet",
    "`networks.pfg.PFG`": "networks.pfg.PFG",
    "`networks.textual_inversion.TextualInversion`": (
        "networks.textual_inversion.TextualInversion"
    ),
    "`networks.hypernetwork.Hypernetwork`": "networks.hypernetwork.Hypernetwork",
    "`modules.objectives.Epsilon`, `modules.objectives.VPrediction`": "modules.objectives.Epsilon",
    "`modules.reconstruction.Reconstruction`": "modules.reconstruction.Reconstruction",
}
SUPPLIED = {"seed", "scheduler"}
BESIDES = {"`networks.lora.LoRA`", "`networks.lokr.LoKr`"}  # tables of what LoHa does not take


def tables(name):
    """Rows of cells by heading."""
    found, heading = {}, ""
    for line in (ROOT / "config" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found.setdefault(heading, []).append(cells)
    return found


def sentences():
    """The docstring under each field, by class and field."""
    files = sorted((ROOT / "modules").glob("*section*.py"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    found = {}
    for section in [n for tree in trees for n in tree.body if isinstance(n, ast.ClassDef)]:
        for field, text in zip(section.body, section.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(text, ast.Expr), f"{section.name}.{field.target.id}: no docstring"
                found[section.name, field.target.id] = " ".join(text.value.value.split())
    return found


def default_of(field):
    if field.default is not dataclasses.MISSING:
        return field.default
    default = field.default_factory()
    return {} if dataclasses.is_dataclass(default) else default  # it has a table of its own


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_key_stands_there_with_its_default(name):
    found = tables(name)
    for heading, section in SECTIONS.items():
        rows = found[heading]
        fields = dataclasses.fields(section)
        assert [row[0] for row in rows] == [f"`{field.name}`" for field in fields], heading
        for field, (key, _, default, sentence) in zip(fields, rows, strict=True):
            if field.default == MISSING:
                assert default == LANGUAGES[name], f"{heading} {key}"
            else:
                assert parse_argument(default.strip("`")) == default_of(field), f"{heading} {key}"
            assert sentence, f"{heading} {key}"


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_section_and_nothing_else(name):
    found = tables(name)
    names = [f"`{field.name}`" for field in dataclasses.fields(Config)]
    (overview,) = [rows for heading, rows in found.items() if heading in ("Sections", "セクション")]
    assert [row[0] for row in overview] == names
    assert set(found) == {*SECTIONS, *COMPONENTS, "Sections", "セクション"} - (
        {"セクション"} if name == "README.md" else {"Sections"}
    )
    headings = re.findall(r"^## (`.*`)$", (ROOT / "config" / name).read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(names)


def test_the_sentences_are_those_of_the_code():
    found, written = tables("README.md"), sentences()
    for heading, section in SECTIONS.items():
        for key, _, _, sentence in found[heading]:
            assert sentence == written[section.__name__, key.strip("`")]
    for key, sentence in found["Sections"]:
        assert sentence == written["Config", key.strip("`")]


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("heading", COMPONENTS)
def test_arguments_of_components(name, heading):
    parameters = inspect.signature(resolve(COMPONENTS[heading])).parameters.values()
    common = inspect.signature(resolve("networks.loha.LoHa")).parameters
    without = SUPPLIED | (set(common) if heading in BESIDES else set())
    parameters = [parameter for parameter in parameters if parameter.name not in without]
    rows = tables(name)[heading]
    assert [row[0] for row in rows] == [f"`{parameter.name}`" for parameter in parameters]
    for parameter, (key, default, sentence) in zip(parameters, rows, strict=True):
        if parameter.default is inspect.Parameter.empty:
            assert default == LANGUAGES[name], key
        else:
            value = parse_argument(default.strip("`"))
            expected = parameter.default
            assert value == (list(expected) if isinstance(expected, tuple) else expected), key
        assert sentence, key


class Faults(list):
    def fault(self, path, message):
        self.append((".".join(path), message))


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_examples_are_right(name):
    text = (ROOT / "config" / name).read_text(encoding="utf-8")
    text = text.partition("```python")[0]  # behind it, parts of one's own: test_plugging_in.py
    examples = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == len(dataclasses.fields(Config)) + 2  # Mixture's, sample's prompts
    for example in examples:
        faults = Faults()
        values = parse(example)[0]
        config = build_section(Config, values, faults)
        missing = "is missing; it has no default"
        assert [fault for fault in faults if fault != ("model.path", missing)] == []
        components = [("networks", network) for network in config.networks.values()]
        components += [("optimizer", config.optimizer), *(("prepare", c) for c in config.prepare)]
        if values.get("dataset"):
            components.append(("dataset", config.dataset))
        for where, component in components:
            supplied = SUPPLIED | {"params", "lr"}
            assert argument_faults(where, component.module, component.args, supplied) == []
            if component.module == "modules.mixture.Mixture":
                assert resolve(component.module).find_faults(where, component.args) == []


def test_both_languages_have_the_same_examples():
    blocks = [
        re.findall(r"^```.*?^```$", (ROOT / "config" / name).read_text("utf-8"), re.M | re.S)
        for name in LANGUAGES
    ]
    assert blocks[0] == blocks[1]
