from pathlib import Path

import pytest

from tools import package_findings
from tools.findings import Finding
from tools.package_findings import conflicts, judge, pip_line
from tools.requirements import Requirement, as_numbers, installed_version, read_requirements

TORCH = Requirement("torch", "2.13.0")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs what pip writes of packages, before all others."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, version: str, *needs: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {need}" for need in needs]
        (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return install


@pytest.mark.parametrize(
    ("requirement", "version", "state", "words"),
    [
        (TORCH, None, "problem", "not installed"),
        (TORCH, "2.13.0+cu130", None, ""),
        (TORCH, "2.13.1", None, ""),
        (TORCH, "2.10.0", "warning", "2.10.0 is older than the tested 2.13.0"),
        (TORCH, "2.9.1", "problem", "2.9.1 is too old; tested with 2.13.0"),
        (Requirement("transformers", "5.23.0"), "4.57.3", "problem", "4.57.3 is too old"),
        (Requirement("transformers", "5.23.0"), "6.0.0", "warning", "6.0.0 is newer than"),
        (Requirement("diffusers", "0.42.1"), "0.41.0", "problem", "0.41.0 is too old"),
        (Requirement("diffusers", "0.42.1"), "0.42.0", "warning", "0.42.0 is older than"),
        (Requirement("diffusers", "0.42.1"), "0.43.0.dev0", "warning", "0.43.0.dev0 is newer"),
        (Requirement("wandb", "0.31.0"), None, "warning", "not installed; for loggers.wandb"),
        (Requirement("xformers", "0.0.35"), "0.0.35", None, ""),
    ],
)
def test_versions_are_judged_by_what_they_break(requirement, version, state, words):
    found = judge(requirement, version)
    if state is None:
        assert found is None
        return
    assert found is not None
    assert (found.state, found.name) == (state, requirement.name)
    assert found.text.startswith(words)
    assert found.mend == f"pip install {requirement.name}=={requirement.version}"


def test_torch_for_windows_comes_from_its_own_index(monkeypatch):
    monkeypatch.setattr(package_findings.platform, "system", lambda: "Windows")
    monkeypatch.setattr(package_findings.shutil, "which", lambda name: "C:\\nvidia-smi.exe")
    line = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
    assert pip_line(TORCH) == line
    assert pip_line(Requirement("tqdm", "4.70.1")) == "pip install tqdm==4.70.1"


def test_what_packages_ask_of_each_other(installed):
    installed("picky", "1.0", "torchy<2.12", "lost>=3", 'windows-only; sys_platform == "none"')
    installed("also_picky", "1.0", "torchy<2.12", "torchy==2.13.0", 'more; extra == "all"')
    installed("torchy", "2.13.0+cu130")
    assert list(conflicts(["picky", "also_picky", "torchy"])) == [
        Finding(
            "warning",
            "picky",
            "needs torchy<2.12; installed: 2.13.0+cu130",
            'pip install "torchy<2.12"',
        ),
        Finding("problem", "picky", "needs lost>=3; installed: none", 'pip install "lost>=3"'),
    ]


def test_the_requirements_are_read(tmp_path: Path):
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# why\ntorch==2.13.0\n-r other.txt\n\n"
        'here==1.0; python_version >= "3"\nthere==1.0; sys_platform == "none"\n'
    )
    assert read_requirements(file) == [TORCH, Requirement("here", "1.0")]
    ours = {requirement.name for requirement in read_requirements()}
    assert {"torch", "diffusers", "transformers", "Pillow"} <= ours
    assert set(package_findings._NEEDED_FOR) - ours <= {"xformers"}  # not for every platform
    assert installed_version("no-such-package") is None
    assert as_numbers("2.13.0+cu130") == (2, 13, 0) == as_numbers("2.13")[:3]
