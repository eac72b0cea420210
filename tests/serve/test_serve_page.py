"""The page in a real browser: what it shows is what the server answers."""

import contextlib
import threading
import time

import pytest
from browser import chromium
from test_serve import answer_on, behind_a_port, image_file, request, served_by

KEPT = """
const [first, ...rest] = document.querySelectorAll("#stages canvas"), [rows, columns] = model.grid;
const pixel = (canvas, k) => canvas.getContext("2d").getImageData(
    Math.round((k % columns + .5) * canvas.width / columns),
    Math.round((Math.floor(k / columns) + .5) * canvas.height / rows), 1, 1).data.join();
const patches = [...Array(rows * columns).keys()];
return rest.map(canvas => patches.filter(k => pixel(canvas, k) === pixel(first, k)));
"""


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "the page does not come to it"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def page():
    with chromium() as page:
        yield page


@contextlib.contextmanager
def open_page(page, served, **options):
    with behind_a_port(served, **options) as address:
        page.get(f"http://{address[0]}:{address[1]}/")
        yield address


def find(page, selector):
    return page.find_elements("css selector", selector)


def texts(page, selector):
    return [" ".join(found.text.split()) for found in find(page, selector)]


def choose(page, folder, data, name="a <i>picture</i>.png"):
    file = folder / name.replace("/", "_")
    file.write_bytes(data)
    find(page, "#file")[0].send_keys(str(file))
    wait_for(lambda: not find(page, "[aria-busy]"))


def test_patches_classes_and_times_follow_the_slider(page, tmp_path):
    served, hold = served_by("life_regression", (1.0, 0.5), (1,)), threading.Event()
    with open_page(page, served, progress=lambda done: hold.wait(30)) as address:
        wait_for(lambda: "Compiling: 1 of 2 programs" in texts(page, "#compiled"))
        hold.set()
        wait_for(lambda: texts(page, "#title") == ["a tiny life_regression"])
        data = image_file()
        choose(page, tmp_path, data)
        said = {rate: answer_on(request(address, data, path=f"/classify?keep_rate={rate}"))[1] for rate in ("1", "0.5")}

        def check(rate, layers):
            assert texts(page, "#rate") == [rate]
            best = said[rate]["classes"]
            shown = [f"{guess['name']} {100 * guess['probability']:.1f} %" for guess in best]
            assert texts(page, "#classes .line") == shown and not find(page, "#classes b")
            assert texts(page, "#stages figcaption:not(.ends)") == [*layers, "Life in layers"]
            assert page.execute_script(KEPT)[: len(said[rate]["kept"])] == [sorted(kept) for kept in said[rate]["kept"]]
            assert float(texts(page, "#ms")[0]) > 0

        check("0.5", ["Layers 1–2 all 20", "Layer 3 10 of 20", "Layer 4 5 of 20"])
        slider = find(page, "#range")[0]
        slider.send_keys("\ue012")  # the left arrow
        check("1", ["Layers 1–4 all 20"])
        assert slider.get_attribute("aria-valuetext") == "keep rate 1"
        find(page, "#rates button")[1].click()
        assert texts(page, "#rate") == ["0.5"] and slider.get_attribute("value") == "1"

        choose(page, tmp_path, b"hello", "text.png")
        assert "no image of a known kind" in texts(page, "#message")[0] and len(find(page, "#stages figure")) == 4
        choose(page, tmp_path, data)
        assert texts(page, "#message") == [""]
        for width in (360, 1180):
            size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": False}
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            assert page.execute_script("return document.documentElement.scrollWidth") <= width
        origin = page.execute_script("return location.origin")
        loaded = page.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert {url.removeprefix(origin) for url in loaded if not url.startswith("data:")} == {
            "/health",
            "/model",
            "/compare",
        }
    severe = [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("503" in message or "400" in message for message in severe), severe


def test_merged_patches_show_what_they_are_part_of(page, tmp_path):
    with open_page(page, served_by("dpcknn", (0.5,), (2,))):
        wait_for(lambda: texts(page, "#title") == ["a tiny dpcknn"])
        assert not find(page, "#range")[0].is_displayed(), "one budget, no slider"
        choose(page, tmp_path, image_file())
        captions = texts(page, "#stages figcaption")
        assert captions[:3] == ["Layer 1 all 20", "Layer 2 10 of 20", "Layers 3–4 5 of 20"]


def test_patches_merged_inside_layers_show_what_every_layer_takes_in(page, tmp_path):
    """ToMe merges between attention and MLP of every layer: what the last one merges is there at the end alone."""
    with open_page(page, served_by("tome", (0.5,), (1,))) as address:
        wait_for(lambda: texts(page, "#title") == ["a tiny tome"])
        data = image_file()
        choose(page, tmp_path, data)
        found = answer_on(request(address, data, path="/classify"))[1]
        left = [len(set(owner)) for owner in found["groups"]]
        assert left[:-1] == found["token_counts"][1:] and left[-1] < left[-2]
        heads = ["Layer 1", "Layer 2", "Layer 3", "Layer 4", "At the end"]
        captions = [f"{head} {count} of 20" for head, count in zip(heads, [20, *left], strict=True)]
        assert texts(page, "#stages figcaption") == [captions[0].replace("20 of", "all"), *captions[1:]]
        whole = page.execute_script("return shown.results[0].groups")
        assert whole == found["groups"]
