"""The toy's tokenizer: byte-pair merges learned from the toy world's own sentences.

Words become one token each. Digits and capitals stay single, as in DeepSeek's tokenizer (digits): a model that writes
"42" as two tokens can read numbers it has never seen.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from minivl2 import conversation as talk
from minivl2 import toyworld

# one digit | one capital | a word with the space before it | punctuation with the space after it | space
_PIECES = r"[0-9]|[A-Z]| ?[a-z]+|[^\sA-Za-z0-9]+ ?|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens, special tokens included. Same texts, same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[talk.BEGIN, talk.END, *talk.SPECIAL_TOKENS])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentences(pictures: int = 3000) -> Iterator[str]:
    """What is asked and answered in the toy world, with the empty line that follows in a conversation."""
    for seed in range(pictures):
        for turn in toyworld.draw(seed).conversation():
            yield turn["content"] + "\n\n"


@lru_cache(maxsize=100_000)
def spans(tokenizer: Tokenizer, text: str) -> tuple[tuple[int, tuple[int, int]], ...]:
    """The tokens of a text, and the characters that each stands for."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return tuple(zip(encoded.ids, encoded.offsets, strict=True))


def spellings(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens of a word: inside a sentence, and at its beginning."""
    return [spans(tokenizer, before + word)[0][0] for before in (" ", "")]
