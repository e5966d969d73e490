"""The service's page in a headless Chromium, compared with the Predictor on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.backends.loading import load_backend
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor
from nets.net_interface import build_net
from tests.conftest import write_image
from tests.helpers.browser import CHROMIUM, Browser, FakeResponse, Page, open_browser
from tests.helpers.exported import NET
from tests.helpers.serving import flags, running

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium and no google-chrome on this machine")

CLASSES = ("circle", "<b>方块</b>", "stripes & more")
Visit = Callable[..., AbstractContextManager[Page]]
CARDS = "[...document.querySelectorAll('.card')]"
CLASSIFIED = f"{CARDS}.filter((card) => card.querySelector('.scores') && card.ariaBusy === 'false').length"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a net of random weights, whose classes have names that are not HTML."""
    torch.manual_seed(0)
    net = build_net(
        NET["module"], NET["name"], num_classes=3, img_height=32, img_width=32, model_args={"model_type": "resnet18"}
    )
    path = tmp_path_factory.mktemp("net") / "net.pth"
    save_checkpoint(Checkpoint({}, ModelMetadata(CLASSES, Preprocess(32, 32), NET), net.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        write_image(folder / f"{number} 图<i>.png", number % 3, seed=number, size=40)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor(*load_backend(weights, device="cpu"))


@pytest.fixture(scope="module")
def service(predictor: Predictor) -> Iterator[str]:
    with serving(predictor) as address:
        yield address


@contextmanager
def serving(predictor: Predictor, token: str = "") -> Iterator[str]:
    """Run the service in a thread, and yield its address."""
    with running(predictor, flags("--max_picture_mb", 1, "--workers", 1), token) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, service: str) -> Visit:
    """Return a function that opens the page; at the end no script may have failed and no other host been asked."""

    @contextmanager
    def opened(language: str = "en-GB", width: int = 1200, address: str = service) -> Iterator[Page]:
        with browser.page(f"{address}/", language, width) as page:
            page.wait("document.querySelector('#class-count').innerText || !document.querySelector('#notice').hidden")
            yield page
            assert page.errors == []
            urls = [request["url"] for request in page.requests]
            assert [url for url in urls if not url.startswith((address, "blob:", "data:"))] == []

    return opened


def predict(predictor: Predictor, image: Path) -> Prediction:
    return next(predictor.predict_files([str(image)], topk=3, workers=1))


def test_chosen_images_show_name_class_scores_as_bars_and_heat_map(
    visit: Visit, predictor: Predictor, images: list[Path]
) -> None:
    prediction = predict(predictor, images[0])
    with visit() as page:
        page.choose("#files", images[:2])
        page.wait(f"{CLASSIFIED} === 2")
        assert page.text("#summary") == "2 of 2 classified"
        assert page.text(".card:first-child .file") == images[0].name
        assert page.text(".card:first-child .prediction strong") == prediction.class_name
        rows = page.run(
            """[...document.querySelectorAll(".card:first-child .scores li")].map((row) => [row.innerText,
            row.querySelector(".track span").offsetWidth / row.querySelector(".track").offsetWidth])"""
        )
        assert [text.split("\n") for text, _ in rows] == [[name, f"{score:.1%}"] for name, score in prediction.top_k]
        assert [width for _, width in rows] == pytest.approx([score for _, score in prediction.top_k], abs=0.01)
        assert page.text("#net-summary") == "GeM_ResNet_AVP, input 32 × 32"


def test_the_heat_map_is_shown_beside_the_image_or_alone(visit: Visit, images: list[Path]) -> None:
    shown = "[...document.querySelectorAll('.images img')].map((image) => image.src.split(':')[0])"
    with visit() as page:
        page.choose("#files", images[:1])
        page.wait(f"{CLASSIFIED} === 1")
        assert page.run(shown) == ["blob", "data"]
        decoded = "[...document.querySelectorAll('.images img')].every((image) => image.naturalWidth)"
        page.wait(decoded)
        page.click("#views label:nth-of-type(2)")
        assert page.run(shown) == ["data"]
        assert page.run("document.querySelector('.images img').alt").startswith("Heat map for ")
        page.click("#views label:nth-of-type(3)")
        assert page.run(shown) == ["blob"]
        page.choose("#files", images[1:2])  # without a map, until it is looked at
        page.wait(f"{CLASSIFIED} === 2")
        page.click("#views label:nth-of-type(1)")
        page.wait(f"{shown}.join() === 'blob,data,blob,data'")


def test_the_browser_s_language_and_the_one_chosen_here(visit: Visit, images: list[Path]) -> None:
    with visit("zh-CN,zh;q=0.9,en;q=0.5") as page:
        page.choose("#files", images[:1])
        page.wait(f"{CLASSIFIED} === 1")
        assert page.run("[document.documentElement.lang, document.title]") == ["zh-CN", "图像分类"]
        assert page.text("#drop strong") == "选择图片"
        assert page.text("#class-count") == "3 个类别"
        assert page.text("#summary") == "共 1 张，已完成 1 张"
        page.click("#language")
        assert page.run("[document.documentElement.lang, document.title]") == ["en", "Image classifier"]
        assert page.text("#summary") == "1 of 1 classified"
        page.call("Page.reload")
        page.wait("document.title === 'Image classifier' && document.querySelectorAll('.card').length === 0")


def test_the_content_security_policy_blocks_other_scripts(visit: Visit) -> None:
    script = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = true'}))"
    with visit() as page:
        page.run(script)
        assert page.run("window.ran") is None
        assert "Content Security Policy" in page.errors.pop()


def test_both_languages_have_the_same_texts(visit: Visit) -> None:
    with visit() as page:
        english, chinese = page.run("import('./texts.js').then(({TEXTS}) => [TEXTS.en, TEXTS.zh].map(Object.keys))")
        assert english == chinese


def test_images_dropped_and_pasted(visit: Visit, predictor: Predictor, images: list[Path]) -> None:
    with visit() as page:
        page.drop(images[:2])
        page.wait(f"{CLASSIFIED} === 2")
        page.paste(images[2].read_bytes())
        page.wait(f"{CLASSIFIED} === 3")
        assert page.text(".card:last-child .prediction strong") == predict(predictor, images[2]).class_name
        page.drop([images[0].parent])
        page.wait("document.querySelector('#notice').innerText")
        assert page.text("#notice") == "A folder cannot be read here; drop the images in it instead."
        page.click("#clear")
        assert page.run("document.querySelectorAll('.card').length") == 0
        assert page.text("#bar") == page.text("#notice") == ""


def test_many_images_go_three_at_a_time(visit: Visit, images: list[Path]) -> None:
    with visit() as page:
        page.choose("#files", images)
        page.wait(f"{CLASSIFIED} === 8")
        spans = page.run(
            """performance.getEntriesByType("resource").filter((entry) => entry.name.endsWith("/predict"))
            .map((entry) => [entry.startTime, entry.responseEnd])"""
        )
        at_once = [sum(start <= moment < end for start, end in spans) for moment, _ in spans]
        assert (len(spans), max(at_once)) == (8, 3)


def test_a_bad_file_does_not_affect_the_others(visit: Visit, images: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    with visit() as page:
        page.choose("#files", [images[0], bad, images[1]])
        page.wait(f"{CLASSIFIED} === 2 && document.querySelector('.card .problem')")
        assert page.text(".card:nth-child(2) .problem").startswith("The service cannot use this image.\n")
        assert page.text(".card:nth-child(2) .detail")  # the service's message
        assert page.text(".card:nth-child(2) .images") == "This browser cannot show the file."
        page.click("#language")
        assert page.text(".card:nth-child(2) .problem").startswith("服务无法使用此图片。\n")
        assert page.text(".card:nth-child(2) .images") == "浏览器无法显示此文件。"


def test_an_image_larger_than_the_service_accepts(visit: Visit, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")  # 1.08 MB, and --max_picture_mb is 1
    with visit() as page:
        page.choose("#files", [tmp_path / "large.png"])
        page.wait("document.querySelector('.card .problem')")
        assert page.text(".card .problem").startswith("The file is larger than the service accepts.")
        page.click("#language")
        assert page.text(".card .problem").startswith("超出了服务允许的大小。")


def test_an_image_is_sent_again_after_retry_after(visit: Visit, images: list[Path]) -> None:
    with visit("zh") as page:
        page.fake("*/predict", [FakeResponse(503, {"code": 503, "msg": "later"}, {"Retry-After": "1"})])
        page.choose("#files", images[:1])
        page.wait("document.querySelector('.state')?.innerText === '服务繁忙，1 秒后自动重新发送。'")
        page.wait(f"{CLASSIFIED} === 1")
        assert page.run("document.querySelector('.problem:not([hidden])')") is None


def test_no_connection_and_a_second_try(visit: Visit, images: list[Path]) -> None:
    with visit() as page:
        page.fake("*/predict", [FakeResponse(0), FakeResponse(0), FakeResponse(500, {"code": 500, "msg": "sorry"})])
        page.choose("#files", images[:2])
        page.wait("document.querySelectorAll('.card .problem').length === 2")
        assert page.text(".card .problem").startswith("No response from the service: it is not running")
        assert page.text("#summary") == "0 of 2 classified, 2 failed"
        page.click("#again")
        page.wait(f"{CLASSIFIED} === 1")
        assert page.text(".card .problem").splitlines() == [
            "The service failed on this request (500); see its log.",
            "sorry",
        ]
        page.click(".card .details button")
        page.wait(f"{CLASSIFIED} === 2")


def test_a_token_is_requested_and_sent(visit: Visit, predictor: Predictor, images: list[Path]) -> None:
    with serving(predictor, "a secret") as address, visit(address=address) as page:
        assert page.text("#notice").startswith("The service requires an access token.")
        page.choose("#files", images[:2])
        page.wait(f"{CARDS}.length === 2")
        enter_token(page, "a guess")
        page.wait("document.querySelector('#notice').innerText === 'The service did not accept this token.'")
        enter_token(page, "a secret")
        page.wait(f"{CLASSIFIED} === 2")
        assert page.text("#notice") == "" and page.run("document.querySelector('#token-form').hidden")
        page.call("Page.reload")
        page.wait("document.querySelector('#class-count').innerText")  # it is remembered in this tab
        assert not any("secret" in request["url"] for request in page.requests)


def test_a_late_401_for_an_old_token_does_not_reject_the_new_one(
    visit: Visit, predictor: Predictor, images: list[Path]
) -> None:
    with serving(predictor, "a secret") as address, visit(address=address) as page:
        page.run(
            """(() => {
                window.late = [];
                const send = window.fetch;
                window.fetch = async (path, options) => {
                    const response = await send(path, options);
                    if (response.status === 401 && path === "predict") await new Promise((go) => late.push(go));
                    return response;
                };
            })()"""
        )
        page.choose("#files", images[:2])
        enter_token(page, "a guess")
        page.wait("late.length === 2 && document.querySelector('#notice').innerText.includes('did not accept')")
        enter_token(page, "a secret")
        page.wait("document.querySelector('#class-count').innerText")
        page.run("late.forEach((go) => go())")
        page.wait(f"{CLASSIFIED} === 2")
        assert page.text("#notice") == "" and page.run("document.querySelector('#token-form').hidden")


def enter_token(page: Page, token: str) -> None:
    page.click("#token")
    page.run("document.querySelector('#token').select()")
    page.write(token)
    page.press("Enter", 13, text="\r")


def test_the_decisions_of_a_calibrated_net_are_shown(visit: Visit, images: list[Path]) -> None:
    entry = {"class": "circle", "score": 0.5, "top_k": [["circle", 0.5]], "uncertainty": 0.61234}
    sets: dict[str, list[str]] = {"accept": ["circle"], "set_aside": ["circle", CLASSES[1]]}
    cases = [*sets.items(), ("set_aside", [])]
    entries = [{**entry, "decision": decision, "conformal_set": names} for decision, names in cases]
    with visit() as page:
        for number, one in enumerate(entries):
            page.fake("*/predict", [FakeResponse(200, {"code": 200, "msg": "ok", "data": [one]})])
            page.choose("#files", images[number : number + 1])
            page.wait(f"{CLASSIFIED} === {number + 1}")
        seen = page.run(f"{CARDS}.map((card) => card.querySelector('.uncertainty').innerText.split(/\\s*\\n\\s*/))")
        set_aside = "Set aside: too uncertain to rely on Uncertainty 0.612"
        assert seen == [
            ["Accepted Uncertainty 0.612", "The true class is probably circle."],
            [set_aside, f"The true class is probably one of: circle, {CLASSES[1]}"],
            [set_aside, "None of the classes fits well enough."],
        ]
        page.click("#language")
        assert "真实类别很可能是其中之一：circle、<b>方块</b>" in page.text(".card:nth-child(2) .uncertainty")


def test_a_phone_s_width_is_enough_and_the_keyboard_reaches_all(visit: Visit, images: list[Path]) -> None:
    with visit(width=360) as page:
        page.choose("#files", images[:2])
        page.wait(f"{CLASSIFIED} === 2")
        assert page.run("document.documentElement.scrollWidth") <= 360
        reached = []
        for _ in range(5):
            page.press("Tab", 9)
            reached.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        assert reached == ["language", "class-count", "files", "INPUT", "clear"]
        page.press("Tab", 9, modifiers=8)  # back to the views
        page.press("ArrowRight", 39)
        assert page.run("document.querySelector('#cards').className") == "map"
        page.press("Tab", 9)
        page.press("Enter", 13, text="\r")
        assert page.run("document.querySelectorAll('.card').length") == 0
