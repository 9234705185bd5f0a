"""The READMEs say what is there: same headings, same commands, every verb."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from honmaru import cli
from honmaru.__main__ import build_parser
from honmaru.core.partitions import PARTITIONS

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text()
JAPANESE = (ROOT / "README.ja.md").read_text()
VERBS = sorted(module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_"))


def _blocks(text: str) -> list[str]:
    return re.findall(r"```\n(.*?)```", text, re.DOTALL)


def test_both_have_the_same_headings_and_commands() -> None:
    headings = re.compile(r"^#+ .*$", re.MULTILINE)
    assert headings.findall(ENGLISH) == headings.findall(JAPANESE)
    assert _blocks(ENGLISH) == _blocks(JAPANESE)


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE], ids=["en", "ja"])
def test_the_table_of_commands_is_the_command_line(text: str) -> None:
    assert sorted(set(re.findall(r"^\| `honmaru ([a-z]+)` \|", text, re.MULTILINE))) == VERBS


@pytest.mark.parametrize("text", [ENGLISH, JAPANESE], ids=["en", "ja"])
def test_ceilings_are_those_of_the_code(text: str) -> None:
    rows = dict(re.findall(r"^\| `us-[a-z0-9-]+` \| (\S+) \| ([A-Z ]+) \|$", text, re.MULTILINE))
    assert rows == {partition.name: partition.ceiling for partition in PARTITIONS}


def test_every_make_target_that_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in (ENGLISH, (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "SECURITY.md").read_text()):
        assert set(re.findall(r"`?make ([a-z]+(?:-[a-z]+)*)", "\n".join(_blocks(document)))) <= targets


def test_every_link_to_a_file_leads_somewhere() -> None:
    for name in ("README.md", "README.ja.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name} links to {target}"


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 100


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, honmaru.__main__ as m; m.build_parser();print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"torch", "boto3", "botocore", "sqlalchemy", "uvicorn", "rich", "cryptography", "numpy", "obstore"}
    assert heavy & set(done.stdout.split()) == set()


def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([verb, "--help"])
        assert ended.value.code == 0
        assert "usage: honmaru" in capsys.readouterr().out
