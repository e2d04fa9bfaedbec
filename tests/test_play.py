"""The live page: what it serves, to whom, how much, and that it outlives its visitors."""

import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request

import browser
import parrot
import pytest

from minivl2 import cli, toyworld

play = pytest.importorskip("minivl2.play", reason="the web toolkit is an optional dependency: pip install 'minivl2[play]'")
ANSWER = "<|ref|>the star<|/ref|><|det|>[[100, 200, 500, 600]]<|/det|> <b>red</b>"


def png(kind="scenes", grid=(2, 1)):
    written = io.BytesIO()
    toyworld.draw("live", kind, grid).images[0].save(written, "PNG")
    return written.getvalue()


class House:
    """A server of its own thread, and its model, which speaks as slowly as it is told to."""

    def __init__(self, longest_answer=60):
        self.model, processor = parrot.toy()
        self.pause = 0.0
        self.tokens = 0
        parrot.teach(self.model, processor, ANSWER, self.breathe)
        self.server = play.server(self.model, processor, 0, longest_answer)         # port 0: any that is free
        self.thread = threading.Thread(target=self.server.run)

    def breathe(self):
        self.tokens += 1
        time.sleep(self.pause)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://{play.HERE}:{self.port}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def open_answer(self, question="where?", body=b"", name="picture.png", **headers):
        query = urllib.parse.urlencode({"question": question, "name": name})
        return urllib.request.urlopen(urllib.request.Request(f"{self.address}/ask?{query}", body, headers, method="POST"))

    def ask(self, *question, **more):
        with self.open_answer(*question, **more) as reply:
            return [json.loads(line) for line in reply]

    def idle(self):
        """Nobody is being answered: no hook of the recorder is left."""
        return not any(module._forward_pre_hooks for module in self.model.modules())


@pytest.fixture(scope="module")
def house():
    with House() as house:
        yield house


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------ without a browser


def test_an_answer_comes_in_pieces_and_then_the_page(house):
    events = house.ask(body=png())
    pieces = [event["piece"] for event in events if "piece" in event]
    assert "".join(pieces) == ANSWER and len(pieces) > 5
    boxes = [len(event["boxes"]) for event in events if "piece" in event]
    assert boxes[0] == 0 and boxes[-1] == 1 and boxes == sorted(boxes)
    assert 'id="reading"' in events[-1]["page"] and house.idle()


def test_a_question_needs_no_picture(house):
    assert "without a picture" in house.ask("hello?")[-1]["page"]


@pytest.mark.parametrize("question, body, words", [
    ("what?", b"just text, whatever the name says", "fake.png is not an image"),
    ("what?", png()[:200], "fake.png cannot be read"),
    ("  ", png(), "there is no question"),
    ("why? " * 500, png(), "2,500 characters; 2,000 are the most"),
    ("<image> and <image>?", png(), "more <image> than there are pictures"),
    ("é" * 1900, png(), "tokens do not fit"),
])
def test_what_cannot_be_answered_is_said_in_words(house, question, body, words):
    events = house.ask(question, body=body, name="fake.png")
    assert words in events[-1]["wrong"] and "Traceback" not in str(events)
    assert "page" in house.ask(body=png())[-1]              # and the next visitor is served


def test_too_large_a_file_is_refused_while_it_comes(house, monkeypatch):
    monkeypatch.setattr(play, "LARGEST_UPLOAD", 1_000_000)
    assert "larger than 1 MB" in house.ask(body=b"\x00" * 1_500_000)[-1]["wrong"]


def test_an_answer_has_a_longest_length():
    with House(longest_answer=3) as house:
        events = house.ask(body=png())
        assert house.tokens == 3 and "stopped before the model ended" in events[-1]["page"]


def test_a_second_visitor_waits_and_is_told(house):
    house.pause = 0.05
    try:
        first = house.open_answer(body=png())
        wait_until(lambda: not house.idle())
        second = house.ask(body=png())
        assert "Another question is being answered" in second[0]["note"]
        assert "page" in second[-1] and "page" in json.loads(first.read().splitlines()[-1])
    finally:
        house.pause = 0.0


def test_a_long_line_is_not_made_longer(house, monkeypatch):
    monkeypatch.setattr(play, "LONGEST_LINE", 0)
    house.pause = 0.05
    try:
        with house.open_answer(body=png()) as first:
            wait_until(lambda: not house.idle())
            assert "try again in a while" in house.ask(body=png())[-1]["wrong"]
            first.read()
    finally:
        house.pause = 0.0


def test_a_closed_tab_stops_the_answer(house):
    house.pause, house.tokens = 0.1, 0
    try:
        reply = house.open_answer(body=png())
        reply.readline(), reply.readline()
        wait_until(lambda: house.tokens > 0)
        reply.close()
        wait_until(house.idle)
        spoken = house.tokens
        time.sleep(0.5)
        assert house.tokens == spoken < 10              # of 30 or so
    finally:
        house.pause = 0.0
    assert "page" in house.ask(body=png())[-1]


def test_only_this_machine_and_this_page_may_ask(house):
    for headers, status in (({"Host": "evil.example"}, 400), ({"Origin": "http://evil.example"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            house.open_answer(body=png(), **headers)
        assert refused.value.code == status
    assert "page" in house.ask(body=png(), Origin=house.address)[-1]
    assert house.server.servers[0].sockets[0].getsockname()[0] == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in others:                              # this machine's other addresses, if it has any
        with pytest.raises(OSError):
            socket.create_connection((address, house.port), timeout=2)


def test_it_stops_cleanly_in_the_middle_of_an_answer(capsys):
    with House() as house:
        house.pause = 0.2
        reply = house.open_answer(body=png())       # kept open
        wait_until(lambda: house.tokens > 0)
    events = [json.loads(line) for line in reply]
    assert events[-1] == {"wrong": "the server was stopped"} and house.tokens < 10 and house.idle()
    assert capsys.readouterr().err == ""            # no complaint of the toolkit


def test_the_command_says_where_and_ends_with_control_c(tmp_path):
    import signal
    import subprocess
    import sys

    import minivl2
    minivl2.save(*parrot.toy(), tmp_path / "toy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = subprocess.Popen([sys.executable, "-m", "minivl2", "play", "--weights", tmp_path / "toy", "--port", str(port)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert f"http://127.0.0.1:{port}" in program.stdout.readline()

    def answers():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/").status == 200
        except OSError:
            return False
    wait_until(answers, 60)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=20)
    assert program.returncode in (0, 130) and "Traceback" not in err


def test_a_port_that_is_taken_gets_one_clear_line(house, capsys):
    assert cli.main(["play", "--port", str(house.port)]) == 1
    err = capsys.readouterr().err
    assert f"cannot listen on port {house.port}" in err and "--port" in err and len(err.strip().splitlines()) == 1


def test_without_the_toolkit_the_command_says_how_to_get_it(capsys, monkeypatch):
    import sys
    monkeypatch.delitem(sys.modules, "minivl2.play", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)       # makes its import fail
    assert cli.main(["play"]) == 1
    assert "pip install 'minivl2[play]'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def window():
    with browser.browser() as window:
        yield window


@pytest.fixture
def tab(window, house):
    tab = browser.Tab(window)
    tab.open(house.address)
    yield tab
    assert tab.complaints == []
    assert all(url.startswith((house.address, "data:", "blob:")) for url in tab.requests)
    tab.page.context.close()


def drop(page, name, content):
    """Drop a file onto the page, as a hand would."""
    page.evaluate("""([name, bytes]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name));
        for (const kind of ["dragover", "drop"]) {
          document.getElementById("drop").dispatchEvent(
              new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
        } }""", [name, list(content)])


def test_drop_a_picture_ask_and_see_the_answer_come(tab, house):
    page = tab.page
    drop(page, "street.png", png())
    wait_until(lambda: page.evaluate("document.querySelector('#preview img').naturalWidth > 0"))
    house.pause = 0.05
    try:
        page.fill("#question", "where is the star?")
        page.keyboard.press("Enter")
        wait_until(lambda: page.evaluate("document.getElementById('live').textContent.length > 3"))
        half = page.inner_text("#live")
        page.wait_for_selector("#preview .box")                 # the box is there before the answer ends
        assert page.locator("#stop").is_visible()
    finally:
        house.pause = 0.0
    page.wait_for_selector("main[data-ready]")
    assert ANSWER.startswith(half.rstrip()) and len(half) < len(ANSWER) and page.inner_text("#live") == ANSWER
    assert page.inner_text("#preview .box") == "the star" and page.inner_text("#said") == ANSWER
    assert page.inner_text("h1") == "where is the star?" and "street.png" in page.inner_text("#tiles")
    page.fill("#question", "and now?")                          # once more: the panels are those of the new answer
    page.click("#go")
    wait_until(lambda: page.evaluate("document.querySelector('h1').textContent === 'and now?'"))
    page.wait_for_selector("main[data-ready]")
    page.focus("#step")
    page.keyboard.press("ArrowRight")
    assert page.locator("#reading").get_attribute("data-step") == "1"


def test_a_text_file_called_png_gets_a_readable_message(tab):
    page = tab.page
    drop(page, "notes.png", b"this is not a picture")
    page.fill("#question", "what is it?")
    page.click("#go")
    page.wait_for_selector("#note.wrong")
    assert page.inner_text("#note") == "notes.png is not an image that Pillow can read"
    assert page.locator("#go").is_enabled()


def test_an_answer_can_be_stopped(tab, house):
    house.pause = 0.1
    try:
        tab.page.fill("#question", "where?")
        tab.page.click("#go")
        wait_until(lambda: tab.page.evaluate("document.getElementById('live').textContent.length > 0"))
        tab.page.click("#stop")
        wait_until(lambda: tab.page.evaluate("document.getElementById('note').textContent === 'Stopped.'"))
        wait_until(house.idle)
    finally:
        house.pause = 0.0


def test_play_fits_a_narrow_screen(window, house):
    page = browser.Tab(window, viewport={"width": 360, "height": 700}).open(house.address)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.context.close()
