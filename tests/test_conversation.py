"""The conversation as one line."""

import pytest
import reference
import small
from hypothesis import given
from hypothesis import strategies as st

from minivl2.conversation import ASSISTANT, BEGIN, END, IMAGE, PAD, ConversationError, about, count_images, pieces

TEXT = st.text(st.sampled_from("ab \n\t:<|>é"), max_size=8)
USER = st.lists(TEXT, min_size=1, max_size=4).map(IMAGE.join)


def talk_of(system, turns, spoken_to=("user", "assistant")):
    roles = (spoken_to * len(turns))[: len(turns)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


def line(messages, training=False):
    return "".join(piece.text for piece in pieces(messages, training))


@given(st.one_of(st.none(), TEXT), st.lists(st.tuples(USER, TEXT), min_size=1, max_size=3), st.booleans())
def test_the_line_is_the_published_format(system, turns, answered):
    said = [text for turn in turns for text in turn]
    messages = talk_of(system, said if answered else said[:-1])
    assert line(messages) == reference.conversation(messages)


@given(st.lists(st.tuples(USER, TEXT.filter(str.strip)), min_size=1, max_size=3))
def test_the_line_to_learn_from_ends_with_the_end_token(turns):
    messages = talk_of(None, [text for turn in turns for text in turn])
    assert line(messages, training=True) == reference.conversation(messages, training=True)
    assert line(messages, training=True).endswith(END)


def test_an_example_by_hand():
    messages = talk_of("Be brief. ", [" Hello ", " Hi.", "Who?"])
    assert line(messages) == (
        "<｜begin▁of▁sentence｜>Be brief.<|User|>: Hello\n\n<|Assistant|>:Hi.<｜end▁of▁sentence｜>"
        "<|User|>: Who?\n\n<|Assistant|>:")


def test_an_answer_that_has_begun_is_left_open():
    """The last assistant's turn is what it has said so far, and an empty one is "answer now"."""
    assert line(talk_of(None, ["Hello", ""])) == line(talk_of(None, ["Hello"]))
    assert line(talk_of(None, ["Hello", "I am"])).endswith("<|Assistant|>:I am")


def test_nothing_stands_between_the_colon_and_the_answer():
    assert f"{ASSISTANT}:yes{END}" in line(small.answered("q", "  yes\n"), training=True)


def test_the_bars_are_full_width_and_the_lines_are_low():
    assert (BEGIN, END, PAD) == (
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "<\uff5c\u2581pad\u2581\uff5c>")


def test_images_and_special_tokens_are_pieces_of_their_own():
    """So nothing is merged across them when the pieces are tokenised."""
    got = [piece.text for piece in pieces(small.answered("a<image>\nb<image><image>", "c"), training=True)]
    assert got == [BEGIN, "<|User|>: a", IMAGE, "\nb", IMAGE, IMAGE, "\n\n<|Assistant|>:", "c", END]


def test_only_answers_and_their_ends_are_learned():
    messages = talk_of("s", ["a<image>", "b", "c", "d"])
    assert [p.text for p in pieces(messages, training=True) if p.learned] == ["b", END, "d", END]


def test_images_are_counted():
    assert count_images(talk_of(None, ["<image><image>", "b", "<image>"])) == 3


@pytest.mark.parametrize("question, images, content", [
    ("what is it?", 0, "what is it?"),
    ("what is it?", 1, "<image>\nwhat is it?"),
    ("what differs?", 3, "<image>\n<image>\n<image>\nwhat differs?"),
    ("is <image> like <image>?", 2, "is <image> like <image>?"),
    ("is it in <image>?", 3, "<image>\n<image>\nis it in <image>?"),
    ("is it in <image>?", 0, "is it in <image>?"),          # the processor will say that an image is missing
])
def test_a_question_about_images_shows_first_those_that_it_does_not_place_itself(question, images, content):
    assert about(question, images) == [{"role": "user", "content": content}]


def test_the_published_names_of_the_roles_are_understood():
    published = talk_of(None, ["a", "b"], spoken_to=("<|User|>", "<|Assistant|>"))
    assert line(published) == line(talk_of(None, ["a", "b"]))


@pytest.mark.parametrize("messages, message", [
    ([], "there is no question"),
    ([{"role": "system", "content": "s"}], "there is no question"),
    ([{"role": "assistant", "content": "a"}], "message 0 is the assistant's, but it is the user's turn"),
    (talk_of(None, ["a", "b"], ("user", "user")), "message 1 is the user's, but it is the assistant's turn"),
    (talk_of("s", ["a", "b"], ("user", "user")), "message 2 is the user's, but it is the assistant's turn"),
    (talk_of(None, ["a", "b", "c"], ("user", "assistant", "system")),
     "message 2 is the system's, but it is the user's turn"),
    ([{"role": "user"}], "message 0 needs a 'role' and a 'content'"),
    (["hello"], "message 0 needs a 'role' and a 'content'"),
    ([{"role": "robot", "content": "a"}], "message 0 has role 'robot'"),
    ([{"role": "user", "content": ["a"]}], "content of message 0 is a list; it must be text"),
    (small.answered("a", "<image>"), r"message 1 \(assistant\) contains <image>, but only the user shows images"),
    (talk_of("<image>", ["a"]), r"message 0 \(system\) contains <image>"),
])
def test_what_is_no_conversation_is_refused_in_words(messages, message):
    with pytest.raises(ConversationError, match=message):
        pieces(messages)


@pytest.mark.parametrize("messages", [small.ask("a"), small.answered("a", " "), []])
def test_one_learns_from_answers_only(messages):
    with pytest.raises(ConversationError, match="ends with the assistant's answer|there is no question"):
        pieces(messages, training=True)
