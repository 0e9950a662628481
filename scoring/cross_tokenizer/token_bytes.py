"""What each token of a vocabulary stands for, in bytes, and a text in its tokens.

Three ways in which tokenizers write bytes as text are read; any other is refused.

    byte-level     GPT-2's map of the 256 bytes to printable characters ("Ġthe" is b" the")
    sentencepiece  "▁" is a space, "<0xE2>" a byte; a text may begin with a space that nobody wrote
    plain          a token is its own text

Special tokens stand for no bytes. An added token that is not special stands for its content.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tutelage.chat import end_of_answer
from tutelage.settings import ConfigError, Refusal

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNREADABLE = {"WordPiece", "BPEDecoder", "CTC"}  # decoders that add or drop white space by rules of their own
_PROBE = 'Ein Tag, 12 345 naïve “words”;\n\tx = {"a": [1, 2]}  # 你好 🙂 …\r\n'


@dataclass(frozen=True)
class Encoded:
    """A text in tokens; their bytes joined are the text's."""

    ids: tuple[int, ...]
    bytes: tuple[bytes, ...]  # of each; empty where a token only scores that a text begins
    unknown: tuple[bool, ...]  # tokens that stand for whatever the vocabulary does not have
    begins_with_space: bool  # the first token that has bytes has, in the vocabulary, a space before them


class TokenBytes:
    """A tokenizer's vocabulary by the bytes of its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str) -> None:
        """
        Args:
            key: full name of the setting that chose the tokenizer, for messages.

        Raises:
            ValueError: the tokens' bytes cannot be told.
        """
        written = end_of_answer(tokenizer)
        self.end_id = tokenizer.eos_token_id if written is None else written  # by which it ends an answer
        self.end_ids = frozenset({self.end_id, tokenizer.eos_token_id} - {None})  # by any of which one may end
        self._unknown_id: int | None = tokenizer.unk_token_id
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            fix = "no tokenizer.json; save it as a fast tokenizer"
            raise ConfigError(Refusal(key, tokenizer.name_or_path, fix))
        described = json.loads(backend.to_str())
        self.by_id = _bytes_by_id(described, tokenizer, key)
        # A copy: what a model wrote in ordinary tokens is not read as a special one.
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        if self.encode(_PROBE) is None:
            fix = (
                "its tokens, joined, do not give back the text that they stand for, so they cannot be aligned byte by "
                "byte; choose a model with a byte-level or sentencepiece tokenizer"
            )
            raise ConfigError(Refusal(key, tokenizer.name_or_path, fix))

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id that stands for these bytes: where several do, a whole piece before a single byte's own."""
        id_of: dict[bytes, int] = {}
        for token, content in sorted(self.by_id.items(), key=lambda item: (item[0] in self._byte_ids, item[0])):
            id_of.setdefault(content, token)
        return id_of

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        pieces = self._backend.get_vocab(with_added_tokens=False)
        return frozenset(token for piece, token in pieces.items() if _BYTE.fullmatch(piece))

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether a text begins without the space of its first token, as sentencepiece writes the first word."""
        spaced = (token for token, content in self.by_id.items() if content[:1] == b" " and content.strip().isalpha())
        first = next(spaced, None)
        return first is not None and not self._backend.decode([first]).startswith(" ")

    def join(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.by_id.get(int(token), b"") for token in ids)

    def encode(self, text: str) -> Encoded | None:
        """The text in tokens, without any that a tokenizer puts around it; None if they do not give it back."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        unknown = tuple(token == self._unknown_id for token in encoding.ids)
        contents = [
            text[slice(*offsets)].encode() if lost else self.by_id.get(token, b"")
            for token, offsets, lost in zip(encoding.ids, encoding.offsets, unknown, strict=True)
        ]
        expected, begins_with_space = text.encode(), False
        if contents and b"".join(contents) == b" " + expected:
            contents[0], begins_with_space = contents[0][1:], contents[0] != b" "
        if b"".join(contents) != expected:
            return None
        return Encoded(tuple(encoding.ids), tuple(contents), unknown, begins_with_space)


def _bytes_by_id(described: dict[str, Any], tokenizer: PreTrainedTokenizerBase, key: str) -> dict[int, bytes]:
    """Map the id of every token that has bytes to them."""
    decoders = set(_types(described["decoder"])) | set(_types(described["pre_tokenizer"]))
    if decoders & _UNREADABLE or described["model"]["type"] == "WordPiece":
        fix = (
            "its tokens do not say where spaces are, so they cannot be aligned byte by byte; choose a model with a "
            "byte-level or sentencepiece tokenizer"
        )
        raise ConfigError(Refusal(key, tokenizer.name_or_path, fix))
    vocabulary = described["model"]["vocab"]
    pieces = vocabulary.items() if isinstance(vocabulary, dict) else [(p, i) for i, (p, _) in enumerate(vocabulary)]
    special = {*tokenizer.all_special_ids, *(entry["id"] for entry in described["added_tokens"] if entry["special"])}
    writes_spaces = _SPACE in json.dumps([described["decoder"], described["pre_tokenizer"]], ensure_ascii=False)
    read = _byte_level if "ByteLevel" in decoders else _sentencepiece if writes_spaces else str.encode
    bytes_of = {token: read(piece) for piece, token in pieces}
    bytes_of |= {entry["id"]: entry["content"].encode() for entry in described["added_tokens"]}
    return {token: content for token, content in bytes_of.items() if token not in special}


def _types(node: object) -> Iterator[str]:
    """Names of all parts of a decoder or pre-tokenizer."""
    if isinstance(node, dict):
        yield node.get("type", "")
        for child in node.values():
            yield from _types(child)
    elif isinstance(node, list):
        for child in node:
            yield from _types(child)


_BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}


def _byte_level(piece: str) -> bytes:
    """Pieces with other characters are placeholders that no text becomes."""
    return bytes(_BYTE_OF[c] for c in piece) if all(c in _BYTE_OF for c in piece) else piece.encode()


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
