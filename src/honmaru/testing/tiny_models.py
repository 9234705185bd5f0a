"""A tiny, random, complete Llama model for tests: built in about a second, served in milliseconds."""

from __future__ import annotations

from pathlib import Path

_TEXT = (
    "The inner keep holds what matters. A label says who may read; a ledger says who did.\n\n"
    "The quick brown fox jumps over the lazy dog, 0123456789 times, and nobody counts: naïve café, 本丸.\n\n"
) * 20


def tiny_llama(directory: Path, *, architecture: str = "LlamaForCausalLM", context: int = 64, heads: int = 4) -> Path:
    """Write a Hugging Face model directory with random weights (seeded), and return it."""
    import torch
    import transformers

    from honmaru.workloads.language_model.tokenizer import END, PAD, save_tokenizer, train_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([_TEXT], 400, 1)
    kind = architecture.removesuffix("ForCausalLM")
    torch.manual_seed(7)
    configuration = getattr(transformers, f"{kind}Config")(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.4,
        bos_token_id=tokenizer.token_to_id(END),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = getattr(transformers, architecture)(configuration)
    model.save_pretrained(str(directory))
    save_tokenizer(tokenizer, directory, context)
    return directory


def tiny_bert(directory: Path, *, context: int = 128) -> Path:
    """Write a tiny encoder with random weights (seeded), as sentence embeddings come, and return its directory."""
    import torch
    import transformers

    from honmaru.workloads.language_model.tokenizer import PAD, save_tokenizer, train_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer([_TEXT], 400, 1)
    torch.manual_seed(7)
    configuration = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=context, pad_token_id=tokenizer.token_to_id(PAD),
        initializer_range=0.4,
    )  # fmt: skip
    transformers.BertModel(configuration, add_pooling_layer=False).save_pretrained(str(directory))
    save_tokenizer(tokenizer, directory, context)
    return directory
