"""What a model directory may hold, and what its configuration must say: decisions without I/O.

Invariants:
- Only files of the forms listed here are ever stored or opened; code and pickles are refused by name, and again by
  their first bytes.
- A file name is one plain name: no directory, no leading dot, nothing that a shell or a file system reads otherwise.
- The configuration's numbers are within limits before anything is allocated from them.

Source: the Hugging Face layout that Bedrock's custom model import asks for (safetensors, config.json, tokenizer files).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.core.safetensors import foreign_format

MAX_FILES = 512
MAX_CONFIG_BYTES = 1 << 20
MAX_JSON_BYTES = 64 << 20
WEIGHTS_INDEX = "model.safetensors.index.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REFUSED_ENDINGS = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".joblib",
    ".npy",
    ".npz",
    ".h5",
    ".msgpack",
    ".py",
    ".so",
)
_KEPT = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        WEIGHTS_INDEX,
    }
)
SERVED = frozenset(
    {
        "model.gguf",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the rest of the platform needs of config.json."""

    name: str
    model_type: str
    context_length: int
    vocab_size: int


def wanted_files(names: Collection[str]) -> list[str]:
    """Of the files of a model directory, those to take, in order. Raises ValidationFault when it cannot be a model.

    Files that do no harm (README, licence, metrics) are passed over; weights in a form that can run code are refused
    rather than passed over, so nobody believes that they were imported.
    """
    for name in names:
        if name.lower().endswith(_REFUSED_ENDINGS):
            raise ValidationFault(
                f"{name[:128]!r} is not accepted: weights must be safetensors, because a pickle can run programs; "
                "save the model with save_pretrained(safe_serialization=True)"
            )
    taken = sorted(name for name in names if is_plain_name(name) and (name in _KEPT or name.endswith(".safetensors")))
    if len(taken) > MAX_FILES:
        raise ValidationFault(f"{len(taken)} files in the model directory; the limit is {MAX_FILES}")
    for needed in ("config.json", "tokenizer.json"):
        if needed not in taken:
            raise ValidationFault(f"the model directory has no {needed}; expected a Hugging Face model directory")
    if not any(name.endswith(".safetensors") for name in taken):
        raise ValidationFault("the model directory has no .safetensors file")
    return taken


def is_plain_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and ".." not in name


def strict_json(data: bytes, name: str, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON from an untrusted file: size limit, UTF-8, no duplicate keys, no NaN. Raises ValidationFault."""
    if len(data) > limit:
        raise ValidationFault(f"{name} has {len(data)} bytes; the limit is {limit}")
    foreign = foreign_format(data)
    if foreign:
        raise ValidationFault(f"{name} is {foreign}, expected JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as fault:
        raise ValidationFault(f"{name} is not strict JSON: {str(fault)[:100]}") from None


_SUPPORTED = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Phi3ForCausalLM": "phi3",
    "BertModel": "bert",
    "RobertaModel": "roberta",
    "XLMRobertaModel": "xlm-roberta",
}
_ENCODERS = frozenset({"BertModel", "RobertaModel", "XLMRobertaModel"})
EMBEDDINGS = dict.fromkeys(_ENCODERS, "embeddings.word_embeddings.weight")
"""Architecture → the tensor of its token embeddings, where it is not `model.embed_tokens.weight`."""


def is_encoder_architecture(name: str) -> bool:
    """Whether models of an architecture embed texts and write none."""
    return name in _ENCODERS


def read_architecture(data: bytes) -> Architecture:
    """Check config.json. Raises ValidationFault for an architecture that no engine here serves."""
    config = strict_json(data, "config.json", limit=MAX_CONFIG_BYTES)
    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ValidationFault("config.json must name one architecture in `architectures`")
    name = names[0]
    if name not in _SUPPORTED or config.get("model_type") != _SUPPORTED[name]:
        raise ValidationFault(
            f"architecture {name[:80]!r} is not supported; supported are {', '.join(sorted(_SUPPORTED))}"
        )
    if "auto_map" in config or "quantization_config" in config:
        raise ValidationFault("config.json asks for custom code or quantised weights; neither is accepted")
    limits = {
        "hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 512, "num_attention_heads": 1024,
        "vocab_size": 1 << 20, "max_position_embeddings": 1 << 24,
    }  # fmt: skip
    for member, limit in limits.items():
        value = config.get(member)
        if type(value) is not int or not 0 < value <= limit:
            raise ValidationFault(f"config.json: {member} must be a number from 1 to {limit}")
    return Architecture(name, _SUPPORTED[name], config["max_position_embeddings"], config["vocab_size"])


def has_chat_template(files: Mapping[str, bytes]) -> bool:
    """Whether the model can hold a conversation: a template in its own file or in tokenizer_config.json."""
    if files.get("chat_template.jinja", b"").strip():
        return True
    config = files.get("tokenizer_config.json")
    return bool(config and strict_json(config, "tokenizer_config.json").get("chat_template"))
