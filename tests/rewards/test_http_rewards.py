"""The reward client and server, and the judge, against real servers that fail, stall and answer nonsense."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from unipic_core import shapes
from unipic_core.data.pictures import to_tensor
from unipic_core.data.prompts import PromptSample
from unipic_core.rewards import HTTPReward, VLMJudge, open_reward
from unipic_core.rewards.server import make_server
from unipic_core.rewards.web import NoAnswer, Refused, ask, from_base64, to_base64
from unipic_core.rl.scoring import Scoring


@pytest.fixture
def serve():
    """serve(server) runs it until the end of the test and gives its address."""
    running = []

    def start(server) -> str:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


class Script(ThreadingHTTPServer):
    """Answers requests one after the other as told; the last answer stays.

    An answer is a status and a body, bytes as they are, or seconds of silence.
    """

    daemon_threads = True

    def __init__(self, *answers):
        script, self.requests, lock = list(answers), [], threading.Lock()
        asked = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    asked.append({"headers": dict(self.headers), **request})
                    answer = script.pop(0) if len(script) > 1 else script[0]
                if isinstance(answer, float):
                    time.sleep(answer)
                    return
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                    return
                status, body = answer
                body = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        super().__init__(("127.0.0.1", 0), Handler)


def chat(text: str):
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


GOOD = chat('Here it is: {"reasoning": "fine", "followed": 9, "preserved": 4, "natural": 9, "clean": 10}')
PICTURES = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def judge(url: str, **arguments) -> VLMJudge:
    return VLMJudge(f"{url}/v1", "some-model", **{"timeout": 5, "patience": 10, **arguments})


def test_pictures_survive_the_wire():
    exact = (PICTURES[0] * 255).round() / 255
    torch.testing.assert_close(from_base64(to_base64(exact)), exact)


def test_a_served_reward_is_the_reward(serve):
    edits = [shapes.sample_edit(seed) for seed in range(6)]
    images = to_tensor([shapes.render(e.target if i % 2 else e.source) for i, e in enumerate(edits)]) / 2 + 0.5
    sources = to_tensor([shapes.render(edit.source) for edit in edits]) / 2 + 0.5
    reward = open_reward({"kind": "shape_edit"})
    url = serve(make_server(reward))
    batch = (images, [edit.instruction for edit in edits], [edit.metadata for edit in edits], sources)
    torch.testing.assert_close(HTTPReward(f"{url}/score", batch=4).score(*batch), reward.score(*batch))


@pytest.mark.parametrize(
    "payload, message",
    [
        ({"images": ["bm9uc2Vuc2U="], "prompts": ["x"], "metadata": [{}]}, "a picture cannot be read"),
        ({"images": [to_base64(PICTURES[0])], "prompts": []}, "prompts.* must be a list of 1"),
        ({"images": [None], "prompts": ["x"], "metadata": [{}]}, "a picture cannot be read"),
        ({"pictures": []}, "must be a JSON object with .*images"),
        ({"images": [to_base64(PICTURES[0])], "prompts": ["a cat"]}, "include.* is missing"),
    ],
)
def test_the_server_refuses_bad_requests_with_the_reason(serve, payload, message):
    url = serve(make_server(open_reward({"kind": "geneval"})))
    with pytest.raises(Refused, match=message):
        ask(f"{url}/score", payload, {}, 5, 5)


def test_a_server_that_comes_back_is_waited_for(serve):
    script = Script((503, "starting"), 0.6, (200, "no JSON"), (200, {"scores": [1, None, 0.5]}))
    scores = HTTPReward(serve(script), timeout=0.3, patience=20).score(PICTURES, ["x"] * 3, [{}] * 3)
    assert scores[0] == 1 and scores[1].isnan() and scores[2] == 0.5
    assert len(script.requests) == 4


@pytest.mark.parametrize("status", ["200 OK", "503 Busy", "nonsense"])
def test_an_answer_that_breaks_off_is_asked_for_again(serve, status):
    broken = f"HTTP/1.0 {status}\r\nContent-Length: 100\r\n\r\n{{".encode()
    assert ask(serve(Script(broken, (200, {"scores": []}))), {}, {}, 5, 10) == {"scores": []}


@pytest.mark.parametrize(
    "answer, problem",
    [((200, {"scores": [1.0]}), "3 numbers"), ((200, {"scores": "high"}), "3 numbers"), ((500, "oh"), "HTTP 500: oh")],
)
def test_without_a_usable_answer_there_is_no_verdict_but_a_warning(serve, answer, problem):
    with pytest.warns(UserWarning, match=f"3 pictures get no verdict: .*{problem}"):
        scores = HTTPReward(serve(Script(answer)), patience=0.2).score(PICTURES, ["x"] * 3, [{}] * 3)
    assert scores.isnan().all()


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(NoAnswer, match="http://127.0.0.1:9/score gave no answer within 0.1 seconds.*refused"):
        ask("http://127.0.0.1:9/score", {}, {}, 1, 0.1)


def test_retry_after_is_respected(serve):
    class Busy(BaseHTTPRequestHandler):
        times = []

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.times.append(time.monotonic())
            self.send_response(429 if len(self.times) == 1 else 200)
            self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args):
            pass

    assert ask(serve(ThreadingHTTPServer(("127.0.0.1", 0), Busy)), {}, {}, 5, 10) == {}
    assert Busy.times[1] - Busy.times[0] >= 1


def test_the_judge_sees_both_pictures_and_the_instruction(serve, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    script = Script(GOOD)
    result = judge(serve(script), api_key="JUDGE_KEY", prices=(2.0, 10.0))
    scores = result.score(PICTURES[:1], ["make it red"], [{}], PICTURES[1:2])
    assert scores.item() == pytest.approx((4 * 9) ** 0.5)
    (request,) = script.requests
    assert request["headers"]["Authorization"] == "Bearer secret" and request["model"] == "some-model"
    source, image, text = request["messages"][0]["content"]
    for shown, picture in ((source, PICTURES[1]), (image, PICTURES[0])):
        data = from_base64(shown["image_url"]["url"].removeprefix("data:image/png;base64,"))
        torch.testing.assert_close(data, (picture * 255).round() / 255)
    assert "make it red" in text["text"] and '"preserved": number' in text["text"]
    assert result.usage == {"questions": 1, "cached": 0, "prompt_tokens": 1000, "completion_tokens": 100}
    assert result.cost == pytest.approx(0.003)


@pytest.mark.parametrize(
    "rubric, text, expected",
    [
        ("imgedit", '{"followed": 3, "quality": 5, "preserved": 2}', (3 + 3 + 2) / 3),
        ("text_to_image", '{"followed": "8", "quality": 2.0}', 4),
        ("gedit", '{"followed": 0, "preserved": 10, "natural": 10, "clean": 10}', 0),
    ],
)
def test_rubrics(serve, rubric, text, expected):
    result = judge(serve(Script(chat(text))), rubric=rubric)
    sources = None if rubric == "text_to_image" else PICTURES[:1]
    assert result.score(PICTURES[:1], ["x"], [{}], sources).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "nonsense",
    [
        chat("I cannot judge this."),
        chat('{"followed": 11, "preserved": 1, "natural": 1, "clean": 1}'),
        chat([{"type": "text", "text": "I cannot judge this."}]),
        (200, {"id": 1}),
    ],
)
def test_nonsense_is_asked_again_and_then_given_up(serve, nonsense):
    script = Script(nonsense, nonsense, GOOD)
    assert judge(serve(script)).score(PICTURES[:1], ["x"], [{}], PICTURES[:1]).item() == 6
    assert [request["temperature"] for request in script.requests] == [0.0, 0.7, 0.7]
    with pytest.warns(UserWarning, match="a picture gets no verdict: the judge answers"):
        assert judge(serve(Script(nonsense))).score(PICTURES[:1], ["x"], [{}], PICTURES[:1]).isnan().all()


def test_a_judge_that_stalls_or_fails_is_asked_again(serve):
    script = Script(0.6, (500, "overloaded"), GOOD)
    assert judge(serve(script), timeout=0.3).score(PICTURES[:1], ["x"], [{}], PICTURES[:1]).item() == 6


def test_a_wrong_key_ends_the_run_with_the_servers_words(serve):
    with pytest.raises(Refused, match="HTTP 401.*wrong key"):
        judge(serve(Script((401, "wrong key")))).score(PICTURES[:1], ["x"], [{}], PICTURES[:1])


def test_questions_are_asked_at_the_same_time(serve):
    class Slow(BaseHTTPRequestHandler):
        together = threading.Barrier(3, timeout=10)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.together.wait()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(GOOD[1]).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    assert (judge(serve(server)).score(PICTURES, ["x"] * 3, [{}] * 3, PICTURES) == 6).all()


def test_an_answer_is_paid_for_once(serve, tmp_path):
    script = Script(GOOD)
    url = serve(script)
    for _ in range(2):
        result = judge(url, cache=str(tmp_path))
        assert (result.score(PICTURES, ["a", "b", "b"], [{}] * 3, PICTURES) == 6).all()
    assert len(script.requests) == 3 and result.usage["cached"] == 3
    judge(url, cache=str(tmp_path), rubric="imgedit", attempts=1)
    assert not list(tmp_path.rglob(".*"))


def test_an_iterations_metrics_say_what_the_judges_cost(serve):
    spec = {"kind": "judge", "url": f"{serve(Script(GOOD))}/v1", "model": "some-model", "prices": [2.0, 10.0]}
    picture = np.zeros((16, 24, 3), np.uint8)
    samples, costs = [PromptSample("x", {}, (picture,))] * 3, []
    for held_out in ([], [spec | {"prices": [4.0, 20.0]}]):
        scoring = Scoring([spec], held_out, normalize=False)
        for _ in range(2):
            costs.append(scoring.metrics(scoring.score(PICTURES, samples, "cpu"), [0] * 3)["cost"])
    assert costs == pytest.approx([0.009, 0.009, 0.027, 0.027])
    free = Scoring([{"kind": "canary", "statistic": "saturation"}], [], normalize=False)
    assert "cost" not in free.metrics(free.score(PICTURES, samples, "cpu"), [0] * 3)


def test_an_edit_rubric_needs_sources():
    with pytest.raises(ValueError, match="for text to image use text_to_image"):
        judge("http://127.0.0.1:9").score(PICTURES, ["x"] * 3, [{}] * 3)
