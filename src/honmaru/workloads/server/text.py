"""Between text and token ids: chat template, prompts, and incremental detokenising with stop sequences.

Invariants:
- What a user wrote never becomes a special token: in messages, special tokens come from the template only. (A raw
  prompt is taken as written, special tokens included: that is what a raw prompt is for.)
- Text is emitted at character borders only, never past or partly into a stop sequence, and the pieces of a stream
  joined equal the unstreamed answer.
- The template, which came with the model, runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from honmaru.core.errors import ValidationFault
from honmaru.workloads.server.tools import told


class Vocabulary:
    """The tokenizer, template and defaults of a model directory."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        # The same vocabulary, reading special tokens as the plain text that they are.
        self._literal = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._literal.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token.content for token in added.values() if token.special}
        config = _json(directory / "config.json")
        settings = _json(directory / "tokenizer_config.json")
        generation = _json(directory / "generation_config.json")
        self.context = int(config["max_position_embeddings"])
        self.temperature = float(generation.get("temperature", 1.0)) if generation.get("do_sample") else 0.0
        self.top_p = float(generation.get("top_p", 1.0))
        self.end_tokens = self._ends(generation, config, settings)
        self._names = {
            name: value.get("content") if isinstance(value, dict) else value
            for name, value in settings.items()
            if name in ("bos_token", "eos_token", "pad_token")
        }
        template = directory / "chat_template.jinja"
        source = template.read_text("utf-8") if template.exists() else settings.get("chat_template")
        self._template = _compile(source) if isinstance(source, str) and source.strip() else None
        self._knows_tools = isinstance(source, str) and "tools" in source

    def _ends(self, *sources: Mapping[str, Any]) -> frozenset[int]:
        ends: set[int] = set()
        for source in sources:
            value = source.get("eos_token_id")
            ends.update(number for number in (value if isinstance(value, list) else [value]) if type(number) is int)
            text = source.get("eos_token")
            number = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
            if number is not None:
                ends.add(number)
        return frozenset(ends)

    def encode_prompt(self, prompt: str) -> list[int]:
        return list(self._tokenizer.encode(prompt).ids)

    @property
    def converses(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text: what looks like a special token stays text."""
        return list(self._literal.encode(text, add_special_tokens=False).ids)

    def token(self, number: int) -> dict[str, Any]:
        """A token as log probabilities name it."""
        text = self._tokenizer.decode([number], skip_special_tokens=False)
        return {"token": text, "bytes": list(text.encode())}

    def encode_messages(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Token ids of a conversation that waits for the assistant. Raises ValidationFault if it has no form."""
        if self._template is None:
            raise ValidationFault("this model has no chat template; use a raw prompt")
        if not self._knows_tools and (tools or any(one["role"] == "tool" or "tool_calls" in one for one in messages)):
            messages, tools = told(messages, tools), ()
        border = secrets.token_hex(16)
        hidden: list[str] = []

        def hide(match: re.Match[str]) -> str:
            hidden.append(match.group())
            return f"{border}{len(hidden) - 1:06d}"

        # Longest first, so that no special token is found inside another.
        names = sorted(self._special, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, names))) if names else None

        def plain(value: Any) -> Any:
            """The value with every special token in its texts hidden."""
            if isinstance(value, str):
                return pattern.sub(hide, value) if pattern else value
            if isinstance(value, Mapping):
                return {plain(name): plain(item) for name, item in value.items()}
            return [plain(item) for item in value] if isinstance(value, list | tuple) else value

        safe = [{**plain(message), "role": message["role"]} for message in messages]
        rendered = self._render(safe, plain(list(tools)))
        if not hidden:
            return list(self._tokenizer.encode(rendered, add_special_tokens=False).ids)
        ids: list[int] = []
        for index, piece in enumerate(re.split(f"{border}([0-9]{{6}})", rendered)):
            if index % 2:
                ids += self._literal.encode(hidden[int(piece)], add_special_tokens=False).ids
            elif piece:
                ids += self._tokenizer.encode(piece, add_special_tokens=False).ids
        return ids

    def _render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> str:
        import jinja2

        assert self._template is not None  # noqa: S101 - encode_messages has checked it
        more = {"tools": tools} if tools else {}
        try:
            return str(self._template.render(messages=messages, add_generation_prompt=True, **self._names, **more))
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as fault:
            raise ValidationFault(f"the model's chat template refuses these messages: {str(fault)[:200]}") from None

    def stream(self, stop: Sequence[str]) -> TextStream:
        return TextStream(self._tokenizer, self.end_tokens, stop)


class TextStream:
    """Turns the token ids of one answer into text, piece by piece."""

    def __init__(self, tokenizer: Any, end_tokens: frozenset[int], stop: Sequence[str]) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._end_tokens = tokenizer, end_tokens
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = [text for text in stop if text]
        self._pending = ""
        self.tokens = 0
        self.stopped_by: str | None = None

    def push(self, ids: Sequence[int]) -> str:
        """Text that is certain after these tokens. Once `stopped_by` is set, further tokens change nothing."""
        for number in ids:
            if self.stopped_by is not None:
                break
            self.tokens += 1
            if number in self._end_tokens:
                continue
            piece = self._decoder.step(self._tokenizer, number)
            if piece:
                self._pending += piece
                self._find_stop()
        if self.stopped_by is not None:
            text, self._pending = self._pending, ""
            return text
        keep = self._possible_start()
        text = self._pending[: len(self._pending) - keep]
        self._pending = self._pending[len(text) :]
        return text

    def finish(self) -> str:
        """What was held back in case it began a stop sequence."""
        text, self._pending = self._pending, ""
        return text

    def _find_stop(self) -> None:
        found = [(self._pending.find(stop), stop) for stop in self._stop if stop in self._pending]
        if found:
            position, self.stopped_by = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            self._pending = self._pending[:position]

    def _possible_start(self) -> int:
        """Length of the longest end of the pending text that is the start of a stop sequence."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = json.loads(path.read_text("utf-8"))
    return value if isinstance(value, dict) else {}


def _compile(source: str) -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise jinja2.TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as fault:
        raise ValidationFault(f"the model's chat template is not valid: {str(fault)[:200]}") from None
