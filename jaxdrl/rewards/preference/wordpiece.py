"""BERT's uncased WordPiece tokens, from its published `vocab.txt`, with BLIP's two special tokens behind them.

Source: Devlin et al., BERT, arXiv 1810.04805; salesforce/BLIP models/blip.py, init_tokenizer: bert-base-uncased, then [DEC] and [ENC]. A
row is [CLS], the prompt, [SEP], then [PAD], whose number is 0; what does not fit is cut off before [SEP].
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdrl.errors import UserError
from jaxdrl.rewards.preference.tokens import Tokenize

FILE = "vocab.txt"
_LINES = 30522
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_BLIP = ("[DEC]", "[ENC]")


def blip(files: Mapping[str, Path], lines: int = _LINES) -> Tokenize:
    """A tokenizer; its file is read when it is first called.

    Args:
        files: {"vocab.txt": path}, a token a line.
        lines: How many there must be; those of bert-base-uncased.

    Returns:
        (prompts, length) -> int32 ids [prompts, length]. It raises a UserError if the package `tokenizers` or the file is missing, or the
        file is another vocabulary, and a ValueError if it is given one string for a list of them.
    """

    @lru_cache(maxsize=1)
    def read() -> Any:
        try:
            import tokenizers
            from tokenizers.implementations import BertWordPieceTokenizer
        except ImportError as error:
            raise UserError("reward models that read text need tokenizers (pip install -e '.[rewards]')") from error
        tokenizer = BertWordPieceTokenizer(_vocabulary(files[FILE], lines), lowercase=True)
        tokenizer.add_special_tokens([tokenizers.AddedToken(token) for token in _BLIP])
        return tokenizer

    def tokenize(prompts: Sequence[str], length: int) -> Int[np.ndarray, "prompts length"]:
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        tokenizer = read()
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length)
        return np.array([found.ids for found in tokenizer.encode_batch(list(prompts))], np.int32)

    return tokenize


def _vocabulary(path: Path, lines: int) -> dict[str, int]:
    """Token -> number."""
    if not path.is_file():
        raise UserError(f"{path} is missing: prompts need the vocab.txt of bert-base-uncased")
    try:
        # Other line ends than this one are tokens.
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        tokens = []
    numbers = {token: number for number, token in enumerate(tokens)}
    if {len(numbers), len(tokens)} != {lines} or numbers.get(_BERT[0]) != 0 or not set(_BERT) <= set(numbers):
        raise UserError(
            f"{path} is another vocabulary: it must have {lines} lines, a token each, [PAD] first, {', '.join(_BERT[1:])} among them; "
            "fetch the vocab.txt of bert-base-uncased"
        )
    return numbers
