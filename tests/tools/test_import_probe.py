from tools import import_probe
from tools.import_probe import import_faults


def test_faults_of_imports_are_told_apart(monkeypatch):
    monkeypatch.setattr(import_probe, "_SECONDS", 5)
    faults = import_faults(
        {
            "good": "import json",
            "absent": "import no_such_package",
            "chatty": "print('9 fails of its own')\nprint('hello')",
            "crashing": "import os; os.abort()",
            "leaving": "raise SystemExit(3)",
            "hanging": "import time; time.sleep(60)",
            "last": "import csv",
        }
    )
    assert faults.pop("crashing").startswith("ends Python with status ")
    assert faults == {
        "absent": "ModuleNotFoundError: No module named 'no_such_package'",
        "leaving": "SystemExit: 3",
        "hanging": "does not end within 5 s",
    }
    assert import_faults({}) == {}
