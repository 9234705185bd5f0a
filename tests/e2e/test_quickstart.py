"""The main job from nothing, twice: the second run finds what the first made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = "The keeper of the keep keeps the keys of the keep. Access to the keep is granted by the keeper alone.\n"


@pytest.mark.timeout(420)
def test_quickstart_from_nothing_and_again(tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("".join(f"{i}. {CORPUS}" for i in range(2500)))
    data = tmp_path / "data"
    command = [sys.executable, "-m", "honmaru", "quickstart", "--data", str(data), "--port", "0"]
    command += ["--corpus", str(text), "--seconds", "8"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    try:
        for attempt in range(2):
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            for expected in ("its author approves it: refused", "the bucket: refused", "the model: refused", "Done in"):
                if not (attempt and "author" in expected):
                    assert expected in done.stdout
    finally:
        subprocess.run([sys.executable, "-m", "honmaru", "down", "--data", str(data)], check=False, capture_output=True)
