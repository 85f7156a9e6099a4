"""CLIP's byte-pair encoding, by the `tokenizers` package, from any of the files in which its vocabulary is published.

Sources: openai/CLIP clip/simple_tokenizer.py, mlfoundations/open_clip tokenizer.py, huggingface/transformers tokenization_clip.py. Text is
normalised (NFC, one blank for any white space, lower case), split at blanks, punctuation, digits and English endings, and each piece is
merged from its bytes. A row is [start, tokens, end, 0, 0, ...]. What stands behind the first end token does not matter: attention is causal
and the feature is taken at the first largest id, which is the end's; transformers pads with the end token, open_clip with 0.

Longer texts are cut: the row's last token becomes the end, as in open_clip and in transformers with `truncation=True`, which all
published scores use (openai/CLIP itself refuses).
"""

import gzip
import html
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxdrl.errors import UserError

# (prompts, length) -> ids [prompts, at most length]
Tokenize = Callable[[Sequence[str], int], Int[np.ndarray, "prompts length"]]
OPENAI_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Any of these sets of files is the vocabulary.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), (OPENAI_FILE,))
_START, _END = "<|startoftext|>", "<|endoftext|>"
_OPENAI_MERGES = 49152 - 256 - 2
_PIECES = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def clip(files: Mapping[str, Path], clean: Callable[[str], str] = lambda text: text) -> Tokenize:
    """A tokenizer; its files are read when it is first called.

    Args:
        files: One of `VOCABULARIES`: name -> path.
        clean: Applied to each text first.

    Returns:
        (prompts, length) -> int32 ids, as wide as the longest prompt needs, `length` at most. It raises a UserError if the package or a file
        is missing or wrong, and a ValueError if it is given one string for a list of them.
    """

    @lru_cache(maxsize=1)
    def read() -> tuple[Any, int, int]:
        tokenizer = _read(files)
        start, end = tokenizer.token_to_id(_START), tokenizer.token_to_id(_END)
        if start is None or end is None or end != max(tokenizer.get_vocab().values()):
            raise UserError(f"{', '.join(map(str, files.values()))}: no vocabulary of CLIP (its last token must be {_END})")
        return tokenizer, start, end

    def tokenize(prompts: Sequence[str], length: int) -> Int[np.ndarray, "prompts length"]:
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        tokenizer, start, end = read()
        texts = [clean(prompt) for prompt in prompts]
        found = [encoding.ids[: length - 2] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        ids = np.zeros((len(prompts), max(map(len, found)) + 2), np.int32)
        for row, tokens in zip(ids, found, strict=True):
            row[: len(tokens) + 2] = [start, *tokens, end]
        return ids

    return tokenize


def of_bytes(vocabulary: int) -> Tokenize:
    """A tokenizer without files, for drawn networks: a token is a byte. Rows differ where prompts do, up to the length.

    Args:
        vocabulary: How many tokens the network knows; the last one is the end's, and 0 is padding.

    Returns:
        (prompts, length) -> int32 ids, as `clip` gives them but for the start.

    Raises:
        ValueError: If there are fewer than three tokens.
    """
    if vocabulary < 3:
        raise ValueError(f"a vocabulary must have at least 3 tokens, got {vocabulary}")

    def tokenize(prompts: Sequence[str], length: int) -> Int[np.ndarray, "prompts length"]:
        found = [[1 + byte % (vocabulary - 2) for byte in prompt.encode()][: length - 1] for prompt in prompts]
        ids = np.zeros((len(prompts), max(map(len, found)) + 1), np.int32)
        for row, tokens in zip(ids, found, strict=True):
            row[: len(tokens) + 1] = [*tokens, vocabulary - 1]
        return ids

    return tokenize


def clean_html(text: str) -> str:
    """What openai/CLIP and open_clip do to a text before it is split: ftfy's repairs, and HTML's entities, also those escaped twice.

    Args:
        text: Any.

    Returns:
        The text; ftfy has nothing to do for printable ASCII, and is not needed for it.

    Raises:
        UserError: If ftfy is needed and missing.
    """
    if not (text.isascii() and text.isprintable()):
        try:
            import ftfy
        except ImportError as error:
            raise UserError(f"the prompt {text!r} is not plain ASCII, which needs ftfy (pip install -e '.[rewards]')") from error
        text = ftfy.fix_text(text)
    return html.unescape(html.unescape(text))


def _read(files: Mapping[str, Path]) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("reward models that read text need tokenizers (pip install -e '.[rewards]')") from error
    names = {frozenset(names) for names in VOCABULARIES}
    if frozenset(files) not in names:
        raise UserError(f"CLIP's vocabulary is {described(VOCABULARIES)}; got {', '.join(files) or 'no file'}")
    try:
        if "tokenizer.json" in files:
            tokenizer = tokenizers.Tokenizer.from_file(str(files["tokenizer.json"]))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        if OPENAI_FILE in files:
            merges = _merges(gzip.decompress(files[OPENAI_FILE].read_bytes()).decode())[:_OPENAI_MERGES]
            return _built(tokenizers, _openai_vocabulary(merges), merges)
        merges = _merges(files["merges.txt"].read_text(encoding="utf-8"))
        return _built(tokenizers, json.loads(files["vocab.json"].read_text(encoding="utf-8")), merges)
    except Exception as error:  # the package raises plain Exceptions
        raise UserError(f"{', '.join(map(str, files.values()))} cannot be read as CLIP's vocabulary ({error})") from error


def described(alternatives: Sequence[Sequence[str]]) -> str:
    """Sets of files in words.

    Args:
        alternatives: Names of files.

    Returns:
        "a, or b and c".
    """
    return ", or ".join(" and ".join(names) for names in alternatives)


def _merges(text: str) -> list[tuple[str, str]]:
    """Behind a line for the version, a pair a line."""
    found = []
    for line in text.split("\n")[1:]:
        if line.strip():
            left, right = line.split()
            found.append((left, right))
    return found


def _openai_vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Bytes, bytes that end a word, merged pairs, start and end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    letters = [chr(code) for code in [*printable, *range(256, 256 + others)]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    return {word: index for index, word in enumerate(words)}


def _built(package: Any, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """As in transformers' CLIPTokenizer."""
    parts = package.normalizers, package.pre_tokenizers
    model = package.models.BPE(
        vocab=dict(vocabulary), merges=list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=_END
    )
    tokenizer = package.Tokenizer(model)
    blank = parts[0].Replace(package.Regex(r"\s+"), " ")
    tokenizer.normalizer = parts[0].Sequence([parts[0].NFC(), blank, parts[0].Lowercase()])
    split = parts[1].Split(package.Regex(_PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = parts[1].Sequence([split, parts[1].ByteLevel(add_prefix_space=False)])
    return tokenizer
