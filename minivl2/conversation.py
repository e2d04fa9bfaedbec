"""The conversation format: turns of user and assistant as one line of text, with a place for every image.

Source   the published processor ("deepseek" format).
Lesson   lessons/07_the_whole_model.ipynb           Tests   tests/test_conversation.py

    <begin>[system text]<|User|>: {question}\\n\\n<|Assistant|>:{answer}<end><|User|>: {next question} ...

Nothing stands between `<|Assistant|>:` and the answer: a space there is another token, and a prompt the model never saw.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"     # full-width bars and U+2581, not | and _
PAD = "<｜▁pad▁｜>"
IMAGE = "<image>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
REF, END_REF, DET, END_DET, GROUNDING = "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"

# What a tokenizer must know by name, in the order in which missing ones are added. Ids differ between the models.
SPECIAL_TOKENS = (PAD, IMAGE, REF, END_REF, DET, END_DET, GROUNDING, USER, ASSISTANT)

_ROLES = {"user": "user", USER: "user", "assistant": "assistant", ASSISTANT: "assistant", "system": "system"}


class ConversationError(ValueError):
    """Messages that are not a conversation."""


class Piece(NamedTuple):
    """A stretch of the conversation that is tokenised by itself, or one special token."""

    text: str
    learned: bool       # is the model to learn to write this?


def pieces(messages: Sequence[Mapping], training: bool = False) -> list[Piece]:
    """Messages, dicts with `role` and `content`, as the pieces of one line, in order.

    A piece whose text is BEGIN, END or IMAGE stands for that one token. Text around an image is cut there: a merge of
    characters across the cut would give other tokens than the model was trained with.

    The line ends where the assistant is to speak: after the last question, or, if an assistant's turn is last, at the
    end of what it has said so far. In training that last answer is complete and ends with END.
    """
    turns = [_turn(i, message) for i, message in enumerate(messages)]
    _check_order(turns)
    if training and (not turns or turns[-1] != ("assistant", turns[-1][1]) or not turns[-1][1]):
        raise ConversationError("a conversation to learn from ends with the assistant's answer")
    return line_of(turns, training)


def line_of(turns: Sequence[tuple[str, str]], training: bool = False) -> list[Piece]:
    """Turns, (role, text), in their right order, as the pieces of one line."""
    line = [Piece(BEGIN, False)]
    for i, (role, text) in enumerate(turns):
        if role == "system":
            line.append(Piece(text, False))
        elif role == "user":
            between_images = f"{USER}: {text}\n\n{ASSISTANT}:".split(IMAGE)
            for k, part in enumerate(between_images):
                line += [Piece(IMAGE, False)] * (k > 0) + [Piece(part, False)]
        else:
            line.append(Piece(text, True))
            if training or i < len(turns) - 1:
                line.append(Piece(END, True))
    return [piece for piece in line if piece.text]


def about(question: str, images: int) -> list[dict]:
    """One question about so many images. Those that have no `<image>` in it are shown before it."""
    return [{"role": "user", "content": f"{IMAGE}\n" * max(0, images - question.count(IMAGE)) + question}]


def count_images(messages: Sequence[Mapping]) -> int:
    return sum(piece.text == IMAGE for piece in pieces(messages))


def _turn(i: int, message: Mapping) -> tuple[str, str]:
    try:
        role, text = message["role"], message["content"]
    except (KeyError, TypeError, IndexError):
        raise ConversationError(f"message {i} needs a 'role' and a 'content', got {message!r}") from None
    if role not in _ROLES:
        raise ConversationError(f"message {i} has role {role!r}; a role is user, assistant or system")
    if not isinstance(text, str):
        raise ConversationError(f"the content of message {i} is a {type(text).__name__}; it must be text")
    if IMAGE in text and _ROLES[role] != "user":
        raise ConversationError(f"message {i} ({_ROLES[role]}) contains {IMAGE}, but only the user shows images")
    return _ROLES[role], text.strip()


def _check_order(turns: Sequence[tuple[str, str]]) -> None:
    speakers = [role for role, _ in turns]
    talk = speakers[1:] if speakers[:1] == ["system"] else speakers
    if not talk:
        raise ConversationError("there is no question: a conversation needs a message of the user")
    for i, role in enumerate(talk):
        wanted = "assistant" if i % 2 else "user"
        if role != wanted:
            where = i + len(speakers) - len(talk)
            raise ConversationError(
                f"message {where} is the {role}'s, but it is the {wanted}'s turn: user and assistant alternate, "
                "the user speaks first, and a system message can only come before them")
