"""What may enter as a model: core/model_files.py, workloads/archive.py and workloads/model_import.py."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from honmaru.core.errors import ValidationFault
from honmaru.core.model_files import is_plain_name, read_architecture, strict_json, wanted_files
from honmaru.testing.tiny_models import tiny_llama
from honmaru.workloads.archive import unpack
from honmaru.workloads.layout import Layout
from honmaru.workloads.model_import import check, main, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "x.pkl", "a.PICKLE", "modeling_x.py", "w.ckpt", "l.so"])
def test_code_and_pickles_are_refused_by_name_and_not_passed_over(name: str) -> None:
    with pytest.raises(ValidationFault, match="pickle"):
        wanted_files({"config.json", "tokenizer.json", "model.safetensors", name})


def test_only_what_a_model_consists_of_is_taken() -> None:
    names = {"config.json", "tokenizer.json", "model.safetensors", "README.md", "training_metrics.json", ".hidden"}
    assert wanted_files(names) == ["config.json", "model.safetensors", "tokenizer.json"]
    for missing in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(ValidationFault, match="model directory"):
            wanted_files(names - {missing})


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "", "a" * 200, "x\n", "a..b", "-rf", "x y"])
def test_a_name_is_one_plain_name(name: str) -> None:
    assert not is_plain_name(name)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["EvilForCausalLM"]}, {"architectures": []}, {"model_type": "other"}, {"vocab_size": -1},
        {"hidden_size": 1 << 40}, {"num_hidden_layers": True}, {"auto_map": {"AutoModel": "x.y"}},
        {"quantization_config": {}},
    ],
)  # fmt: skip
def test_configuration_is_checked_before_anything_is_allocated_from_it(change: dict[str, object]) -> None:
    assert read_architecture(json.dumps(CONFIG).encode()).context_length == 64
    with pytest.raises(ValidationFault):
        read_architecture(json.dumps(CONFIG | change).encode())


@pytest.mark.parametrize("data", [b'{"a":1,"a":2}', b"\xff", b"{", b"[" * 100_000, b"NaN", pickle.dumps(1)])
def test_json_is_strict(data: bytes) -> None:
    with pytest.raises(ValidationFault):
        strict_json(data, "x.json")


def tar(*members: tuple[str, bytes | Callable[[tarfile.TarInfo], None]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if callable(content):
                content(info)
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def kind(type_: bytes, target: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = type_, target

    return change


def claims(size: int) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.size = size

    return change


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar(("../evil.json", b"{}")), "leads out"),
        (tar(("/etc/evil.json", b"{}")), "leads out"),
        (tar(("a/../../evil.json", b"{}")), "leads out"),
        (tar(("config.json", kind(tarfile.SYMTYPE, "/etc/passwd"))), "link"),
        (tar(("config.json", kind(tarfile.LNKTYPE, "x"))), "link"),
        (tar(("config.json", kind(tarfile.CHRTYPE))), "neither"),
        (tar(("config.json", kind(tarfile.FIFOTYPE))), "neither"),
        (tar(("config.json", b"{}"), ("./config.json", b"{}")), "twice"),
        (tar(("model.safetensors", claims(1 << 40))), "more than"),
        (tar(("config.json", b"{}" * 5000))[:-40], "not a readable"),
        (b"not an archive", "not a readable"),
        (gzip.compress(b"x" * 5000), "not a readable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_archive_that_nobody_vouches_for(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "model.tar.gz").write_bytes(content)
    with pytest.raises(ValidationFault, match=reason):
        unpack(tmp_path / "model.tar.gz", tmp_path / "in" / "target")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "model.tar.gz"]


def layout(tmp_path: Path) -> Layout:
    for name in ("input/data/source", "output"):
        (tmp_path / name).mkdir(parents=True)
    return Layout(tmp_path)


def test_a_training_output_archive_becomes_a_served_model(model: Path, tmp_path: Path) -> None:
    place = layout(tmp_path)
    with tarfile.open(place.channel("source") / "model.tar.gz", "w:gz") as archive:
        archive.add(model, arcname=".")
    report = run(place)
    assert report["engine"] == "openvino"
    assert report["instruct"] is True
    assert report["context_length"] == 64
    names = {path.name for path in place.model.iterdir()}
    assert {"model.gguf", "config.json", "tokenizer.json", "report.json"} <= names
    assert not any(name.endswith(".safetensors") for name in names)
    assert list(place.output.iterdir()) == []


def damaged(model: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes]) -> Path:
    target = tmp_path / "damaged"
    shutil.copytree(model, target)
    (target / name).write_bytes(change((target / name).read_bytes()))
    return target


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.safetensors", lambda data: data[:-8], "truncated"),
        ("model.safetensors", lambda data: data + b"x", "after the last"),
        ("model.safetensors", lambda _: pickle.dumps({"a": 1}), "pickle"),
        ("model.safetensors", lambda _: b"PK\x03\x04" + bytes(64), "zip"),
        ("config.json", lambda data: json.dumps(json.loads(data) | {"vocab_size": 9}).encode(), "embeddings"),
        ("tokenizer.json", lambda data: data[:-9], "JSON"),
    ],
)
def test_damaged_models_are_refused(
    model: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    with pytest.raises(ValidationFault, match=reason):
        check(damaged(model, tmp_path, name, change))


def test_the_reason_is_left_for_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = layout(tmp_path)
    (place.channel("source") / "pytorch_model.bin").write_bytes(pickle.dumps(1))
    monkeypatch.setenv("HONMARU_ML_ROOT", str(tmp_path))
    assert main() == 1
    assert "safetensors" in (place.output / "failure").read_text()
