"""Examine this machine: Python, packages, torch, cards, attention kernels, disks, fonts.

    python tools/doctor.py
    python tools/doctor.py --json > report.json

Each line is ok, a warning or a problem, with the command that mends it. Nothing is downloaded or
changed. The exit status is 1 if there is a problem; works without torch, or with a broken one.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tools.command import make_parser, run_command
from tools.findings import Finding, guarded, show
from tools.package_findings import find_packages
from tools.place_findings import find_disks, find_fonts, find_settings
from tools.torch_findings import find_attention, find_driver, find_torch, find_xformers

_OLDEST_PYTHON = (3, 11)


def doctor(*, output: Path = Path("output")) -> list[Finding]:
    """Examine everything; a probe that fails is a finding, too.

    `output` is where runs write.
    """
    warnings.simplefilter("ignore")  # torch warns of what is reported here
    findings = [_find_python(), *guarded("driver", find_driver)]
    packages = list(guarded("packages", find_packages))
    findings += packages
    blocked = [one for one in packages if one.name == "torch" and one.state == "problem"]
    # One that can't be imported in a process of its own is not let into this one.
    if not any("not installed" in one.text or "broken" in one.text for one in blocked):
        findings += guarded("torch", find_torch)
        findings += guarded("attention", find_attention)
        findings += guarded("xformers", find_xformers)
    findings += guarded("fonts", find_fonts)
    findings += guarded("disks", lambda: find_disks(output))
    findings += guarded("network", find_settings)
    return findings


def _find_python() -> Finding:
    text = f"{platform.python_version()}, {platform.platform()}, {sys.executable}"
    if sys.version_info < _OLDEST_PYTHON:
        wanted = ".".join(map(str, _OLDEST_PYTHON))
        return Finding("problem", "python", f"{text}; Python {wanted} or newer is needed")
    return Finding("ok", "python", text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.add_argument(
        "--output", type=Path, default=Path("output"), help="where runs write (default: output)"
    )
    options = parser.parse_args(argv)
    findings: list[Finding] = []

    def job() -> str:
        findings.extend(doctor(output=options.output))
        if options.json:
            return json.dumps([asdict(one) for one in findings], ensure_ascii=False, indent=1)
        return show(findings)

    status = run_command(job)
    return status or int(any(one.state == "problem" for one in findings))


if __name__ == "__main__":
    sys.exit(main())
