"""The server: what it answers is what the model says, whatever is sent is answered by one line, and it ends cleanly."""

import asyncio
import base64
import contextlib
import functools
import io
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from test_matrix import model_of, variables_of
from train_tools import tiny_config

import slimvit_jax as slim
from slimvit_jax import convert
from slimvit_jax.__main__ import main, parser_of
from slimvit_jax.cli import serve as command
from slimvit_jax.cli.common import open_target
from slimvit_jax.inference.evaluate import probabilities
from slimvit_jax.methods import METHODS
from slimvit_jax.serve.app import Served, create_app
from slimvit_jax.serve.batcher import Batcher, Full
from slimvit_jax.serve.engine import Budget, Engine
from slimvit_jax.serve.server import around, listen
from slimvit_jax.serve.uploads import Limits
from slimvit_jax.training import build

LIMITS = Limits(upload_bytes=20_000, pixels=10_000, places=6, wait=0.05)
NAMES = ("<b>ant</b>", "bee", "café", "dog", "eel")


def image_file(seed=0, size=(40, 30), kind="png"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@functools.cache
def served_by(method, rates, sizes):
    """A tiny model of the method with random weights, at these keep rates; compiled once for all tests of a process."""
    budgets = [Budget(f"{rate:g}", rate, model_of(method, keep_rate=rate)) for rate in rates]
    engine = Engine(budgets, variables_of(method, keep_rate=rates[-1]), sizes)
    prepare = slim.transform_for(budgets[0].model)
    return Served(engine, prepare, f"a tiny {method}", NAMES, budgets[-1].name)


@contextlib.contextmanager
def client_of(served, limits=LIMITS):
    with TestClient(create_app(served, limits)) as client:
        client.early = [client.get("/health"), client.post("/classify", content=image_file()), client.get("/model")]
        until = time.monotonic() + 60
        while client.get("/health").status_code == 503:
            assert time.monotonic() < until
            time.sleep(0.02)
        yield client


@pytest.fixture(scope="module")
def served():
    return served_by("life_regression", (1.0, 0.5), (1, 2))


@pytest.fixture(scope="module")
def client(served):
    with client_of(served) as client:
        yield client


@functools.cache
def function_of(model):
    return jax.jit(functools.partial(model.apply, return_aux=True))


def directly(served, name, data):
    """(probabilities, aux) of the model without a server."""
    run = function_of(served.engine.budgets[name].model)
    logits, aux = run(served.engine.variables, served.preprocess(data)[None])
    return probabilities(logits)[0], aux


def check_answer(served, name, data, found):
    share, aux = directly(served, name, data)
    order = np.argsort(-share)[: len(found["classes"])]
    assert [guess["class"] for guess in found["classes"]] == order.tolist()
    np.testing.assert_allclose([guess["probability"] for guess in found["classes"]], share[order], atol=1e-5)
    assert [guess["name"] for guess in found["classes"]] == [NAMES[c] for c in order]
    assert found["kept"] == [index[0].tolist() for index in aux.kept]
    np.testing.assert_allclose(found["lives"], aux.scores[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["1", "0.5"])
def test_an_answer_is_what_the_model_says(served, client, name):
    data = image_file()
    answer = client.post(f"/classify?keep_rate={name}&top=3", content=data)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    check_answer(served, name, data, found)
    assert len(found["classes"]) == 3 and found["keep_rate"] == float(name)
    assert found["token_counts"] == list(served.engine.budgets[name].model.slim.plan.token_counts)
    assert 0 < found["milliseconds"]["model"] < found["milliseconds"]["total"]
    default = client.post("/classify", content=data).json()
    assert default["keep_rate"] == 0.5, "the run's own where none is asked for"


def test_every_keep_rate_of_one_upload(served, client):
    data = image_file(1, kind="webp")
    found = client.post("/compare", content=data).json()
    assert [result["keep_rate"] for result in found["results"]] == [1.0, 0.5]
    for name, result in zip(served.engine.budgets, found["results"], strict=True):
        check_answer(served, name, data, result)
    kind, _, shown = found["picture"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(shown))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), served.preprocess.pixels(data))


def test_many_clients_at_once(served, client):
    files = [image_file(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda data: client.post("/classify", content=data).json(), files))
    for data, found in zip(files, answers, strict=True):
        check_answer(served, "0.5", data, found)


BAD = {
    "nothing": (b"", {}, "", 400, "the body is empty"),
    "text": (b"hello", {}, "", 400, "no image of a known kind"),
    "cut off": (image_file()[:900], {}, "", 400, "the image"),
    "many pixels": (b"P6 200 300 255\n", {}, "", 413, "200 x 300 pixels; at most 10,000"),
    "a bomb": (b"P6 40000 40000 255\n", {}, "", 413, "the image"),
    "elongated": (image_file(size=(2500, 1)), {}, "", 400, "too elongated"),
    "too long": (b"x" * 20_001, {}, "", 413, "at most 20,000 bytes"),
    "much too long, length unknown": (iter([b"x" * 15_000] * 9), {}, "", 413, "at most 20,000 bytes"),
    "a form": (b"x", {"content-type": "Multipart/form-data; boundary=y"}, "", 415, "not a form"),
    "keep rate": (image_file(), {}, "?keep_rate=0.4", 400, "unknown keep_rate '0.4'"),
    "keep rate of words": (image_file(), {}, "?keep_rate=%0Ahalf", 400, "half"),
    "top": (image_file(), {}, "?top=none", 400, "top='none' must be a whole number"),
    "a misspelt parameter": (image_file(), {}, "?keep-rate=0.5", 400, "'keep-rate'; did you mean 'keep_rate'?"),
    "a parameter twice": (image_file(), {}, "?top=1&top=2", 400, "top is given more than once"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_answered_by_one_line(client, case):
    body, headers, query, status, words = BAD[case]
    if isinstance(body, bytes) and "keep" not in query:
        answer = client.post(f"/compare{query}", content=body, headers=headers)
        assert answer.status_code == status and words in answer.json()["error"]
    answer = client.post(f"/classify{query}", content=body, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == status and words in error and "\n" not in error
    assert client.post("/classify", content=image_file()).status_code == 200, "and the server goes on"


@pytest.mark.parametrize("method, path, status", [("GET", "/classify", 405), ("GET", "/nowhere", 404)])
def test_wrong_addresses(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status and list(answer.json()) == ["error"]


def test_metrics_count_what_was_answered(client):
    def counted(path, status):
        line = rf'slimvit_requests_total{{path="{path}",status="{status}"}} (\S+)'
        found = re.search(line, client.get("/metrics").text)
        return float(found[1]) if found else 0.0

    good, bad, other = counted("/classify", 200), counted("/classify", 400), counted("other", 404)
    client.post("/classify", content=image_file())
    client.post("/classify", content=b"x")
    client.get("/some/path")
    after = counted("/classify", 200), counted("/classify", 400), counted("other", 404)
    assert after == (good + 1, bad + 1, other + 1)
    assert "some/path" not in client.get("/metrics").text
    assert "slimvit_images_inside 0.0" in client.get("/metrics").text


def test_nothing_compiles_once_it_is_ready(client):
    """Of a method that drops and, below, of one that merges, whose groups are counted outside of the program."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    data = [image_file(seed, (20 + seed, 30)) for seed in range(3)]
    with client_of(served_by("dpcknn", (0.5,), (2,))) as merging, ThreadPoolExecutor(3) as threads:
        before = len(compiled)
        for each in (client, merging):
            answers = list(threads.map(lambda body: each.post("/classify", content=body), data))  # noqa: B023
            assert [answer.status_code for answer in answers] == [200] * 3
        assert len(compiled) == before > 0, "and the listener hears what is compiled"
        found = answers[0].json()
        assert "kept" not in found and [len(set(owner)) for owner in found["groups"]] == [10, 5]


@pytest.mark.parametrize("method", ["tome", "atc", "diffrate"])
def test_groups_are_told_after_every_merge(method):
    served = served_by(method, (0.5,), (1,))
    plan = served.engine.budgets["0.5"].model.slim.plan
    left = [after for before, after in zip(plan.attention, plan.mlp, strict=True) if after < before]
    with client_of(served) as client:
        groups = client.post("/classify", content=image_file()).json()["groups"]
    assert [len({one for one in owner if one >= 0}) for owner in groups] == left and len(left) > 1
    for before, after in itertools.pairwise(groups):  # what is one token stays one
        assert len({pair for pair in zip(before, after, strict=True) if pair[1] >= 0}) <= len(set(before))


def test_starting_is_said_until_it_is_done(client):
    health, answer, model = client.early
    assert health.status_code == 503 and health.json() == {"status": "starting", "programs": 0, "of": 4}
    assert answer.status_code == 503 and "still starting: 0 of 4" in answer.json()["error"]
    assert answer.headers["retry-after"] and model.status_code == 200
    assert client.get("/health").json() == {"status": "ok", "programs": 4, "of": 4}


def test_what_keeps_it_from_starting_is_told(served):
    failures = []
    broken = Engine(list(served.engine.budgets.values()), {"params": {}}, (1,))
    app = create_app(Served(broken, served.preprocess, "broken", (), "0.5"), failed=failures.append)
    with TestClient(app) as client:
        client.get("/health")
    assert len(failures) == 1


def test_batches_and_places(served, client, monkeypatch):
    monkeypatch.setattr(served.engine, "seconds", dict.fromkeys(served.engine.seconds, 1.0))  # 2 are as fast as 1

    async def scenario():
        runs = []
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(served.engine, thread, 0.3, 5, lambda *ran: runs.append(ran[:2]))
            working = asyncio.create_task(batcher.work())
            image = served.preprocess(image_file())
            ask = functools.partial(batcher.ask, image=image)
            with batcher.places(5):
                with pytest.raises(Full), batcher.places(1):
                    pass
                await asyncio.gather(ask("1"), ask("0.5"), ask("1"), ask("1"), ask("1"))
            with batcher.places(2):  # the second is still on its way when the first is there
                first = asyncio.create_task(ask("0.5"))
                await asyncio.sleep(0.02)
                await asyncio.gather(first, ask("0.5"))
            with pytest.raises(ValueError), batcher.places(5):
                raise ValueError
            working.cancel()
            return runs, batcher.taken

    runs, taken = asyncio.run(scenario())
    assert runs == [("1", 2), ("0.5", 1), ("1", 2), ("0.5", 2)] and taken == 0


# A real socket --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def behind_a_port(served, limits=LIMITS, **options):
    """The app behind uvicorn, and its (host, port)."""
    with listen("127.0.0.1", 0) as listening:
        server = around(create_app(served, limits, **options))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            until = time.monotonic() + 60
            while not server.started:
                assert time.monotonic() < until
                time.sleep(0.02)
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def address(served, client):
    with behind_a_port(served, Limits(upload_bytes=20_000, places=2, upload_seconds=2.0)) as address:
        yield address


def request(address, body, length=None, path="/classify"):
    """A socket on which a request is sent, of which `body` is all that has come so far."""
    link = socket.create_connection(address, timeout=20)
    length = len(body) if length is None else length
    link.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + body)
    return link


def answer_on(link):
    """(status, JSON) of the next answer."""
    head, body = b"", b""
    while b"\r\n\r\n" not in head:
        head += link.recv(1)
    length = int(re.search(rb"content-length: (\d+)", head)[1])
    while len(body) < length:
        body += link.recv(length)
    return int(head.split()[1]), json.loads(body)


def test_full_is_said_at_once_and_who_waits_is_served(address):
    data = image_file()
    slow = [request(address, data[:100], len(data)) for _ in range(2)]
    time.sleep(0.2)
    status, found = answer_on(request(address, data))
    assert status == 503 and "all 2 places are taken" in found["error"]
    for link in slow:
        link.sendall(data[100:])
        assert answer_on(link)[0] == 200
    assert answer_on(request(address, data))[0] == 200


def test_answers_do_not_wait_for_company_on_the_wire():
    """Without this an answer over a kept-alive connection takes 40 ms: Nagle's algorithm against delayed ACKs."""

    async def scenario():
        accepted = asyncio.get_running_loop().create_future()
        listening = listen("127.0.0.1", 0)
        server = await asyncio.start_server(lambda reader, writer: accepted.set_result(writer), sock=listening)
        _, ours = await asyncio.open_connection(*listening.getsockname())
        theirs = await accepted
        nodelay = theirs.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for writer in (ours, theirs):
            writer.close()
        server.close()
        return nodelay

    assert asyncio.run(scenario())


def test_uploads_that_stop_or_break_off_or_never_end(address):
    status, found = answer_on(request(address, b"x", 100))
    assert status == 408 and "longer than 2 s" in found["error"]
    request(address, b"x", 100).close()
    status, found = answer_on(request(address, b"x" * 100_000))  # all of it is sent before we listen
    assert status == 413 and "at most 20,000 bytes" in found["error"]
    assert answer_on(request(address, image_file()))[0] == 200


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What training leaves behind, with random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config()
    model = build.build_model(config)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    convert.save(model, build.init_variables(model, 0), folder / "weights" / "backbone.safetensors")
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(workdir, number, capsys):
    """With a request on its way, which is answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    data, heard = image_file(), []

    def visit():
        try:
            until = time.monotonic() + 60
            while not heard and time.monotonic() < until:
                with contextlib.suppress(OSError), request(address, data) as link:
                    answer = answer_on(link)
                    heard.extend([answer] if answer[0] == 200 else [])
                time.sleep(0.05)
            link = request(address, data[:100], len(data))
            time.sleep(0.2)
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            link.sendall(data[100:])
            heard.append(answer_on(link))
        finally:
            if len(heard) < 2:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with ThreadPoolExecutor(1) as thread:
        visitor = thread.submit(visit)
        words = [f"--port={address[1]}", "--keep-rates=1", "--batch-sizes=1", "--keep-rate=0.5"]
        assert main(["serve", f"--workdir={workdir}", *words]) == 0
        visitor.result()
    assert [status for status, _ in heard] == [200, 200] and heard[1][1]["keep_rate"] == 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"life_regression: 1, 0.5; http://127.0.0.1:{address[1]}/")
    assert lines[1].startswith("ready: 2 programs") and lines[2] == "stopped" and len(lines) == 3
    assert signal.getsignal(number) is before


REFUSED = {
    "no run": (["--workdir=/nowhere"], "'/nowhere' is no training run"),
    "no classes": (["--workdir={run}", "--set=num_classes=0"], "no classifier (num_classes=0)"),
    "port in use": (["--workdir={run}", "--port={port}"], "port {port} of 127.0.0.1 is in use"),
    "no host": (["--workdir={run}", "--host=no.such.host.invalid"], "cannot listen on port 8000 of no.such.host"),
    "port": (["--workdir={run}", "--port=70000"], "'70000' is no port"),
    "batch sizes": (["--workdir={run}", "--batch-sizes=1,0"], "'0' is not a whole number"),
    "wait": (["--workdir={run}", "--wait-ms=-1"], "'-1' is no number of milliseconds"),
    "queue": (["--workdir={run}", "--queue=2"], "--queue 2 has no place for one image at 8 keep rates"),
    "keep rate": (["--workdir={run}", "--keep-rates=1,2"], "2"),
    "one budget": (["--workdir={run}", "--method=sinkhorn", "--keep-rates=1"], "weights for one budget"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_one_line(workdir, case, capsys):
    words, expected = REFUSED[case]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fill = lambda text: text.format(run=workdir, port=port)
        if case == "one budget":
            words = [*words, "--set=locations=(1, 2)"]
        assert main(["serve", *map(fill, words)]) == 2
    error = capsys.readouterr().err
    assert fill(expected) in error and error.count("\n") == 1


def test_a_missing_library_is_named(workdir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "slimvit_jax.serve.server")
    monkeypatch.delattr("slimvit_jax.serve.server")
    assert main(["serve", f"--workdir={workdir}"]) == 2
    assert "serve needs uvicorn: pip install 'slimvit-jax[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["none", *slim.list_methods()])
def test_the_slider_is_for_weights_that_serve_several_budgets(workdir, method):
    fields = METHODS[method].__dataclass_fields__ if method != "none" else {}
    words = ["serve", f"--workdir={workdir}", f"--method={method}"]
    words += ["--set=locations=(2, 3)"] if "locations" in fields else []
    words += [f"--set={name}=2" for name in ("pruning_rate", "r") if name in fields]
    args = parser_of("serve").parse_args(words)
    budgets, default = command.slider(args, open_target(args))
    rates = [budget.keep_rate for budget in budgets if budget.keep_rate is not None]
    if "keep_rate" in fields and METHODS[method].any_budget:
        assert {1.0, 0.9, 0.8, 0.7, 0.6, 0.5} <= set(rates) and rates == sorted(rates, reverse=True)
    else:
        assert rates == [] and len(budgets) == 1
    assert default in [budget.name for budget in budgets]


def test_budgets_of_a_run_are_a_stop_of_their_own(workdir):
    """And say nothing at the others."""
    args = parser_of("serve").parse_args(
        ["serve", f"--workdir={workdir}", "--keep-rates=1,0.5", "--set=budgets=(16, 9, 3)"]
    )
    budgets, default = command.slider(args, open_target(args))
    counts = {budget.name: budget.model.slim.plan.token_counts for budget in budgets}
    assert counts == {"own": (16, 9, 3), "1": (16, 16, 16), "0.5": (16, 8, 4)} and default == "own"
