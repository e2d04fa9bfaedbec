"""Exercises on minivl2/conversation.py, of lessons 00 and 07. Graded by tests/test_conversation.py."""

from minivl2 import conversation
from minivl2.grading.exercise import Exercise, Mistake

USER, ANSWER = "user", "assistant"


def some_lines():
    """As (text, learned) of every piece: with a system text, with images, open, begun, and to learn from."""
    talks = (
        [("system", "S"), (USER, "a<image>b"), (ANSWER, "c"), (USER, "<image><image>d")],
        [(USER, "q"), (ANSWER, "be")],
        [(USER, "q"), (ANSWER, "")],
    )
    lines = [conversation.line_of(turns) for turns in talks]
    lines.append(conversation.line_of([(USER, "a<image>"), (ANSWER, "b"), (USER, "c"), (ANSWER, "d")], training=True))
    return [[tuple(piece) for piece in line] for line in lines]


def some_questions():
    return [conversation.about(question, images) for question, images in (
        ("q", 0), ("q", 1), ("q", 3), ("a <image> b", 1), ("<image> a <image>", 3), ("a <image> b", 3))]


EXERCISES = (
    Exercise("conversation.about", "question_about_images", some_questions, (
        Mistake("images after the question", {"* max(0, images - question.count(IMAGE)) + question":
                                              "* 0 + question + f\"\\n{IMAGE}\" * max(0, images - question.count(IMAGE))"},
                "the images come after the question. The model has learned to be shown a picture first, and then asked."),
        Mistake("no line end", {'f"{IMAGE}\\n"': 'f"{IMAGE}"'},
                "there is no line end after an image. The model never saw a question glued to a picture."),
        Mistake("a space for a line end", {'f"{IMAGE}\\n"': 'f"{IMAGE} "'},
                "after an image comes a line end, \"\\n\", not a space: that is another token."),
        Mistake("placed ones again", {"max(0, images - question.count(IMAGE))": "images"},
                "images that the question places itself are shown once more before it: there are more <image> than "
                "images. Count those that are there."),
        Mistake("one is enough", {"max(0, images - question.count(IMAGE))": "(images > question.count(IMAGE))"},
                "you put one <image>, however many images there are. Each image needs its own."),
        Mistake("none if one is placed", {"max(0, images - question.count(IMAGE))": "images * (IMAGE not in question)"},
                "as soon as the question places one image, the others are shown nowhere."),
        Mistake("the assistant asks", {'"role": "user"': '"role": "assistant"'},
                "the role is \"assistant\": so the model would have said this itself, and nobody asked it anything."),
        Mistake("a message, no list", {"return [{": "return {", "question}]": "question}"},
                "that is one message. A conversation is a list of messages, here a list of one."),
        Mistake("one line end for all", {'f"{IMAGE}\\n" * max(0, images - question.count(IMAGE)) + question':
                                         'IMAGE * max(0, images - question.count(IMAGE)) + "\\n" + question'}),
    )),
    Exercise("conversation.line_of", "not refused", some_lines, (
        Mistake("a space before the answer", {"{ASSISTANT}:": "{ASSISTANT}: "},
                "a space stands between <|Assistant|>: and the answer. Tokenised, \"yes\" and \" yes\" are two "
                "different "
                "tokens: the published models have never seen a prompt that ends with the space."),
        Mistake("no end between turns", {"if training or i < len(turns) - 1": "if training"},
                "earlier answers of the conversation do not end with END. Only the last one may be open, where the "
                "assistant "
                "is to go on."),
        Mistake("always an end", {"if training or i < len(turns) - 1": "if True"},
                "the last answer is closed with END also when it is not for training. What the assistant has begun to "
                "say "
                "stays open, so that it goes on."),
        Mistake("the end is not learned", {"Piece(END, True)": "Piece(END, False)"},
                "END is not learned. It is the only way to say \"I have finished\": a model that never learned it "
                "talks on."),
        Mistake("questions are learned", {"Piece(part, False)": "Piece(part, True)"},
                "the questions are marked as learned: the model would be trained to talk like the user."),
        Mistake("images are learned", {"Piece(IMAGE, False)": "Piece(IMAGE, True)"},
                "the image is marked as learned. Its tokens are never written by the model: there is nothing to "
                "predict."),
        Mistake("answers are not learned", {"Piece(text, True)": "Piece(text, False)"},
                "the answers are not marked as learned, and they are what there is to learn."),
        Mistake("images inside the text", {".split(IMAGE)": ".split(chr(0))"},
                "<image> stays inside the text of the question. It must be a piece of its own, with the text cut "
                "there."),
        Mistake("one line end", {"\\n\\n": "\\n"},
                "between the question and <|Assistant|>: stand two line ends, \"\\n\\n\"; yours has one."),
        Mistake("no begin", {"[Piece(BEGIN, False)]": "[]"}, "the line does not begin with BEGIN."),
        Mistake("begin is learned", {"Piece(BEGIN, False)": "Piece(BEGIN, True)"}),
        Mistake("empty pieces", {"if piece.text": ""},
                "there are pieces with no text, where two images stand side by side or an answer is empty. Leave them "
                "out."),
        Mistake("the image after the text", {"[Piece(IMAGE, False)] * (k > 0) + [Piece(part, False)]":
                                             "[Piece(part, False)] + [Piece(IMAGE, False)] * (k > 0)"}),
        Mistake("an image before every part", {"* (k > 0)": ""},
                "there is an image too many: n images cut a text into n + 1 parts."),
        Mistake("the system speaks as user", {"Piece(text, False)": 'Piece(f"{USER}: {text}", False)'}),
    )),
)
