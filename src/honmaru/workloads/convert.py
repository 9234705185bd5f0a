"""From Hugging Face safetensors to GGUF with f16 weights, the form the embedded engine reads by itself.

Invariants:
- Weights are read through the strict header parser and a memory map; nothing is executed.
- Either the GGUF file computes what the safetensors compute (to f16 precision), or `Inconvertible` is raised: an
  architecture, rotary scaling, tensor or value that GGUF's reader would not honour is never dropped silently.

The rotary layout of q and k differs: Hugging Face keeps the two halves of a head apart, GGUF's llama interleaves them.

Source: llama.cpp's conversion of LlamaForCausalLM; the tensor names are the `gguf` package's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.core.model_files import WEIGHTS_INDEX, strict_json
from honmaru.core.safetensors import Tensor, read_header

_F16_MAX = 65504.0
_CONVERTIBLE = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
_PARTS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class Inconvertible(Exception):
    """The model is sound and GGUF cannot hold it; another engine must serve it. The text says why."""


class Weights:
    """All tensors of a model directory, verified, read on demand."""

    def __init__(self, directory: Path) -> None:
        self._tensors: dict[str, tuple[Path, Tensor]] = {}
        files = sorted(directory.glob("*.safetensors"))
        for file in files:
            with file.open("rb") as stream:
                header = read_header(stream, file.stat().st_size, name=file.name)
            for name, tensor in header.tensors.items():
                if name in self._tensors:
                    raise ValidationFault(
                        f"tensor {name[:200]!r} is in {self._tensors[name][0].name} and in {file.name}"
                    )
                self._tensors[name] = (file, tensor)
        if not self._tensors:
            raise ValidationFault("the model directory holds no tensors")
        index = directory / WEIGHTS_INDEX
        if index.exists():
            self._check_index(strict_json(index.read_bytes(), WEIGHTS_INDEX))

    def _check_index(self, index: Any) -> None:
        listed = index.get("weight_map") if isinstance(index, dict) else None
        actual = {name: file.name for name, (file, _) in self._tensors.items()}
        if listed != actual:
            raise ValidationFault(f"{WEIGHTS_INDEX} does not list exactly the tensors of the .safetensors files")

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1].shape

    def read(self, name: str) -> Any:
        """A tensor as float32. Raises Inconvertible for a dtype that is no real number."""
        import numpy

        file, tensor = self._tensors[name]
        kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
        if tensor.dtype not in kinds:
            raise Inconvertible(f"tensor {name} has dtype {tensor.dtype}")
        count = (tensor.end - tensor.begin) // numpy.dtype(kinds[tensor.dtype]).itemsize
        values: Any = numpy.fromfile(file, dtype=kinds[tensor.dtype], count=count, offset=tensor.begin)
        if tensor.dtype == "BF16":
            values = (values.astype(numpy.uint32) << 16).view(numpy.float32)
        return values.astype(numpy.float32).reshape(tensor.shape)


def _permuted(weights: Any, heads: int) -> Any:
    """Rows of q or k from Hugging Face's order (two halves per head) to GGUF's (pairs interleaved)."""
    head = weights.shape[0] // heads
    return weights.reshape(heads, 2, head // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def _rotary_base(config: Mapping[str, Any]) -> float:
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default" or config.get("partial_rotary_factor", 1.0) != 1.0:
        raise Inconvertible(f"rotary positions of type {kind!r} are not carried over")
    return float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))


def _target(name: str) -> tuple[str, str] | None:
    """(GGUF name, part) of a Hugging Face tensor; None for one we do not know."""
    if name in _WHOLE:
        return _WHOLE[name], name
    pieces = name.split(".", 3)
    if len(pieces) == 4 and pieces[:2] == ["model", "layers"] and pieces[2].isdigit() and pieces[3] in _PARTS:
        return f"blk.{int(pieces[2])}.{_PARTS[pieces[3]]}", pieces[3]
    return None


def convert(directory: Path, target: Path) -> None:
    """Write `target` (GGUF, f16) from the Hugging Face model in `directory`, whose config.json was checked before.

    Raises ValidationFault for broken files and Inconvertible for sound ones that GGUF cannot hold.
    """
    import gguf
    import numpy

    config = strict_json((directory / "config.json").read_bytes(), "config.json")
    kind = _CONVERTIBLE.get(config["model_type"])
    if kind is None:
        raise Inconvertible(f"no mapping for {config['model_type']}")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise Inconvertible("sliding-window attention is not carried over")
    if config.get("hidden_act", "silu") != "silu":
        raise Inconvertible(f"activation {config['hidden_act']!r}")
    weights = Weights(directory)
    base = _rotary_base(config)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or config["hidden_size"] // heads
    if heads % kv_heads or head % 2 or head * heads != config["hidden_size"]:
        raise Inconvertible(f"{heads} heads of {head} over {kv_heads} key-value heads")

    writer = gguf.GGUFWriter(str(target), kind)
    writer.add_name(str(config.get("_name_or_path") or "imported")[:64])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_rope_freq_base(base)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, directory, config["vocab_size"])

    tied = bool(config.get("tie_word_embeddings", False))
    for name in weights:
        found = _target(name)
        if found is None:
            if name.endswith("rotary_emb.inv_freq"):
                continue
            raise Inconvertible(f"tensor {name[:120]} has no place in GGUF")
        target_name, part = found
        if target_name == "output.weight" and tied:
            continue
        values = weights.read(name)
        if kind == "llama" and part in ("self_attn.q_proj.weight", "self_attn.q_proj.bias"):
            values = _permuted(values, heads)
        elif kind == "llama" and part in ("self_attn.k_proj.weight", "self_attn.k_proj.bias"):
            values = _permuted(values, kv_heads)
        if not numpy.isfinite(values).all() or (values.size and float(numpy.abs(values).max()) > _F16_MAX):
            raise Inconvertible(f"tensor {name[:120]} has values beyond f16")
        # Vectors (norms, biases) stay f32, as llama.cpp's own files have them.
        writer.add_tensor(target_name, values.astype(numpy.float16 if values.ndim > 1 else numpy.float32))
    _check_complete(weights, config["num_hidden_layers"], tied, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_complete(weights: Weights, layers: int, tied: bool, kind: str) -> None:
    needed = [name for name in _WHOLE if not (tied and name == "lm_head.weight")]
    parts = [part for part in _PARTS if part.endswith("weight") or kind == "qwen2"]
    needed += [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValidationFault(f"the weights lack {len(missing)} tensors that config.json implies, first {missing[0]}")


def _add_tokenizer(writer: Any, directory: Path, vocab_size: int) -> None:
    import gguf

    tokenizer = strict_json((directory / "tokenizer.json").read_bytes(), "tokenizer.json")
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE" or '"ByteLevel"' not in json.dumps(tokenizer.get("pre_tokenizer")):
        raise Inconvertible("the tokenizer is not byte-level BPE")
    tokens = [f"<|unused-{number}|>" for number in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    added = {entry["content"]: entry for entry in tokenizer.get("added_tokens", [])}
    for text, number in [*model["vocab"].items(), *((text, entry["id"]) for text, entry in added.items())]:
        if type(number) is not int or not 0 <= number < vocab_size:
            raise ValidationFault(f"tokenizer.json has token {number!r}; vocab_size is {vocab_size}")
        tokens[number] = text
        kinds[number] = gguf.TokenType.NORMAL
    for entry in added.values():
        kinds[entry["id"]] = gguf.TokenType.CONTROL if entry.get("special") else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    settings = _optional_json(directory / "tokenizer_config.json")
    by_text = {text: number for number, text in enumerate(tokens)}
    for member, add in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("pad_token", writer.add_pad_token_id),
    ):
        value = settings.get(member)
        text = value.get("content") if isinstance(value, dict) else value
        if text in by_text:
            add(by_text[text])
    template = settings.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = strict_json(path.read_bytes(), path.name)
    return value if isinstance(value, dict) else {}


def restore(gguf_file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a file that `convert` wrote, under Hugging Face's names and in its layout, as float32.

    Raises ValidationFault for a file that `convert` did not write.
    """
    import gguf
    import numpy

    whole = {name: own for own, name in _WHOLE.items()}
    parts = {name: own for own, name in _PARTS.items()}
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    llama = _CONVERTIBLE.get(config["model_type"]) == "llama"
    out: dict[str, Any] = {}
    for tensor in gguf.GGUFReader(str(gguf_file)).tensors:
        values = numpy.asarray(tensor.data, dtype=numpy.float32)
        if tensor.name in whole:
            out[whole[tensor.name]] = values
            continue
        pieces = tensor.name.split(".", 2)
        part = parts.get(pieces[2]) if len(pieces) == 3 and pieces[0] == "blk" else None
        if part is None:
            raise ValidationFault(f"model.gguf holds the unknown tensor {tensor.name[:100]!r}")
        if llama and part.startswith("self_attn.q_proj"):
            values = _unpermuted(values, heads)
        elif llama and part.startswith("self_attn.k_proj"):
            values = _unpermuted(values, kv_heads)
        out[f"model.layers.{int(pieces[1])}.{part}"] = values
    return out


def _unpermuted(weights: Any, heads: int) -> Any:
    """The inverse of `_permuted`."""
    head = weights.shape[0] // heads
    return weights.reshape(heads, head // 2, 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
