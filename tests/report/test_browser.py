"""The page in a real browser."""

import json
import re

import numpy as np
import pytest
from chromium import chromium, programs
from scored_folder import EVIL, RARE
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from brainuad.report.page import build_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(programs() is None, reason="no Chromium with its driver: apt-get install chromium-driver"),
]


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def report(cohort):
    return build_report(cohort)


@pytest.fixture(scope="module")
def opened(window, report):
    window.open_report(report)
    return window


@pytest.fixture
def page(opened):
    """The page on its first scan, with all layers shown."""
    opened.run("location.hash = '#scan-0'")
    wait_for_scan(opened, 0)
    opened.run("""
        for (const key of "aft") document.querySelector(`#viewer [data-key=${key}][aria-pressed=false]`)?.click();
        document.querySelector("#viewer [data-key=s]").click();
        document.querySelector("article.current tr[data-centre]").click();
    """)
    return opened


def wait_for_scan(window, number):
    window.wait(
        f"document.querySelector('article.current').id === 'scan-{number}' && document.getElementById('loading').hidden"
    )


def centres(report, number=0):
    name = ["patient19_t1", EVIL, "uncalibrated"][number]
    sidecar = json.loads((report.parent / f"{name}.json").read_text())
    return [finding["centre_mm"] for finding in sidecar["findings"]]


def press(window, *keys):
    ActionChains(window.driver).send_keys(*keys).perform()


def pressed(window, key):
    return window.run(f"return document.querySelector('#viewer [data-key={key}]').getAttribute('aria-pressed')")


def test_it_loads_in_silence_and_asks_the_network_for_nothing(opened, report):
    assert opened.run("return document.body.classList.contains('live')")
    assert opened.requests() == [report.resolve().as_uri()]
    assert opened.complaints() == []
    assert opened.run("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    assert opened.driver.title == "4 scans · brainuad"  # no name has run as code
    assert opened.run("return document.querySelectorAll('img[src=x]').length") == 0


def test_the_planes_show_scan_and_map(page, report):
    page.run("document.querySelector('[data-key=f]').click(); document.querySelector('[data-key=t]').click()")
    with_map = page.colours()
    assert with_map > 1000  # an empty scene has about 200
    press(page, "a")
    assert pressed(page, "a") == "false"
    assert 100 < page.colours() < with_map / 2  # greys only


def test_outlines_follow_the_findings_and_the_annotation(page):
    def cyan_and_green() -> tuple[int, int]:
        red, green, blue = np.moveaxis(page.picture(".stage"), -1, 0)
        vivid = (green > 0.75) & (red < 0.4)
        return int((vivid & (blue > 0.75)).sum()), int((vivid & (blue < 0.3)).sum())

    findings, annotation = cyan_and_green()
    assert findings > 200
    assert annotation > 200
    press(page, "t")
    assert cyan_and_green() == (pytest.approx(findings, rel=0.2), 0)
    press(page, "f")
    assert cyan_and_green() == (0, 0)


def test_the_scan_lies_beside_its_map_and_moves_with_it(page, report):
    def vivid() -> tuple[int, int]:
        picture = page.picture(".stage")
        halves = np.split(picture[:, : picture.shape[1] // 2 * 2], 2, axis=1)
        left, right = (int((np.ptp(half, axis=-1) > 0.3).sum()) for half in halves)
        return left, right

    press(page, "b")
    page.wait("document.getElementById('bare').clientWidth > 100")
    assert pressed(page, "b") == "true"
    left, right = vivid()
    assert left < 50 < 500 < right
    before = page.picture("#bare")
    press(page, "n")
    assert np.abs(page.picture("#bare") - before).mean() > 0.001
    canvas = page.driver.find_element(By.ID, "bare")
    ActionChains(page.driver).move_to_element_with_offset(canvas, 30, 20).click().perform()
    assert page.where()[2] == pytest.approx(centres(report)[1][2], abs=0.51)  # in the same slice
    assert page.where()[:2] != pytest.approx(centres(report)[1][:2], abs=5)
    press(page, "b")
    page.wait("document.getElementById('bare').clientWidth === 0")


def test_a_click_or_enter_on_a_finding_moves_the_crosshair_there(page, report):
    known = centres(report)
    assert page.where() == pytest.approx(known[0], abs=0.51)
    rows = page.driver.find_elements(By.CSS_SELECTOR, "article.current tr[data-centre]")
    rows[1].find_elements(By.TAG_NAME, "td")[1].click()
    assert page.where() == pytest.approx(known[1], abs=0.51)
    assert "selected" in rows[1].get_attribute("class")
    rows[2].find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert page.where() == pytest.approx(known[2], abs=0.51)
    assert float(page.text("at-value")) > 0
    assert "healthy brain's voxels are this high" in page.text("at-meaning")


def test_common_findings_are_folded_away_until_they_are_asked_for(page, report):
    known = centres(report)
    folded = "return document.querySelector('article.current details.common').open"
    assert not page.run(folded)
    press(page, *"n" * (RARE - 1))
    assert not page.run(folded)
    press(page, "n")
    assert page.run(folded)
    assert page.where() == pytest.approx(known[RARE], abs=0.51)


def test_keys_and_sliders(page, report):
    known = centres(report)
    press(page, "n")
    assert page.where() == pytest.approx(known[1], abs=0.51)
    press(page, "p")
    start = page.where()
    assert start == pytest.approx(known[0], abs=0.51)
    page.run("document.getElementById('planes').focus()")
    press(page, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.PAGE_DOWN)
    moved = [after - before for after, before in zip(page.where(), start, strict=True)]
    assert moved == pytest.approx([4, 2, -2], abs=1.01)
    press(page, "r")
    assert (pressed(page, "s"), pressed(page, "r")) == ("false", "true")
    press(page, "+")
    assert page.run("return document.getElementById('opacity').value") == "70"
    slider = page.driver.find_element(By.CSS_SELECTOR, "input[data-axis='2']")
    before = page.where()[2]
    slider.send_keys(Keys.ARROW_RIGHT)
    assert page.where()[2] == pytest.approx(before + 2, abs=1.01)
    assert slider.get_attribute("aria-valuetext").startswith("z = ")
    assert page.complaints() == []


@pytest.mark.long
def test_darker_and_brighter_greys(page):
    def shown() -> int:
        page.run("document.activeElement.blur(); document.querySelector('.stage').scrollIntoView()")
        picture = page.picture(".stage")
        return int(((np.ptp(picture, axis=-1) < 0.02) & (picture[..., 0] > 0.05) & (picture[..., 0] < 0.95)).sum())

    def middling() -> int:
        """Count the greys between black and white, once the picture no longer changes."""
        counts = [shown(), shown()]
        while counts[-1] != counts[-2]:
            counts.append(shown())
        return counts[-1]

    press(page, "a", "f", "t")
    before = middling()
    darkest, brightest = (page.driver.find_element(By.ID, end) for end in ("darkest", "brightest"))
    darkest.send_keys(*[Keys.ARROW_RIGHT] * 10)
    assert page.text("darkest-shown") == darkest.get_attribute("aria-valuetext") == "50 %"
    narrow = middling()
    assert narrow < 0.9 * before  # what lies below is black
    brightest.send_keys(*[Keys.ARROW_LEFT] * 9)
    assert page.text("brightest-shown") == "55 %"
    assert middling() < 0.95 * narrow  # what lies above is white
    press(page, "r")
    assert page.text("darkest-shown") == "50 %"  # of the reconstruction, too
    brightest.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.text("darkest-shown") == "40 %"  # the other end gives way
    darkest.send_keys(Keys.HOME)
    brightest.send_keys(*[Keys.ARROW_RIGHT] * 11)
    press(page, "s")
    assert middling() == pytest.approx(before, rel=0.02)
    assert page.complaints() == []


def test_a_page_that_is_not_laid_out_is_not_drawn_into(page):
    before = page.colours()
    width = "document.getElementById('planes').width"
    page.run("document.querySelector('.stage').style.display = 'none'")
    page.wait(f"{width} === 0")
    page.run("document.querySelector('input[data-axis]').dispatchEvent(new Event('input'))")
    page.run("document.querySelector('.stage').style.display = ''")
    page.wait(f"{width} > 0")
    assert page.complaints() == []  # of sizes below 0
    assert page.colours() == pytest.approx(before, rel=0.2)


def test_choosing_another_scan_and_sorting(page, report):
    page.run("location.hash = '#scan-1'")
    wait_for_scan(page, 1)
    assert page.driver.find_element(By.CSS_SELECTOR, "article.current h2").text == EVIL
    assert page.run("return document.querySelector('[data-key=t]').hidden")  # no annotation
    press(page, "[")
    wait_for_scan(page, 0)
    assert page.where() == pytest.approx(centres(report)[0], abs=0.51)
    page.driver.find_element(By.LINK_TEXT, "uncalibrated").click()
    wait_for_scan(page, 2)
    assert "has not been calibrated" in page.text("legend-words")
    names = "return [...document.querySelectorAll('table.scores tbody th')].map((cell) => cell.textContent)"
    heading = page.driver.find_element(By.XPATH, "//table[@class='scores']//button[text()='Score']")
    heading.click()
    assert page.run(names)[-1] == "broken_t1"  # failures have no score and stay at the end
    assert page.run(names)[-2] == "patient19_t1"
    heading.click()
    assert page.run(names)[0] == "patient19_t1"
    assert page.run(names)[-1] == "broken_t1"
    assert page.driver.title == "4 scans · brainuad"
    assert page.complaints() == []


def test_paper_cuts_nothing_off(page):
    a4 = {"width": 680, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # 210 mm less the margins
    cut = "return [...document.querySelectorAll('.scroll')].filter((box) => box.scrollWidth > box.clientWidth).length"
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", a4)
    assert page.run(cut) > 0  # on the screen it scrolls
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert page.run(cut) == 0
        shown = "return [...document.querySelectorAll('.montage')].every((box) => box.clientWidth > 0)"
        assert page.run(shown)  # those of scans that are not open, too
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_pictures_take_over_when_the_graphics_are_lost(page, report):
    shown = "return getComputedStyle(document.querySelector('.montage')).display"
    assert page.run(shown) == "none"
    page.run("document.getElementById('planes').dispatchEvent(new Event('webglcontextlost'))")
    assert page.run(shown) == "block"
    assert not page.run("return document.getElementById('no-viewer').hidden")


def test_the_checks_of_silence_can_fail(window, report, tmp_path):
    """Without its policy, a page with a picture from elsewhere is noticed; with it, the attempt is."""
    html = report.read_text(encoding="utf-8")
    html = re.sub(r"<script>/\* NiiVue.*?</script>\s*<script>.*?</script>", "", html, flags=re.DOTALL)  # the viewer
    loud = html.replace("<h1>", '<img src="http://127.0.0.1:9/x.png"><script>console.error("loud")</script><h1>')
    with_policy, without = tmp_path / "with.html", tmp_path / "without.html"
    with_policy.write_text(loud, encoding="utf-8")
    without.write_text(loud.replace("Content-Security-Policy", "x"), encoding="utf-8")
    window.open(without)
    assert "http://127.0.0.1:9/x.png" in window.requests()
    assert any("loud" in message for message in window.complaints())
    window.open(with_policy)
    assert any("Content Security Policy" in message for message in window.complaints())


def test_without_webgl_the_page_shows_pictures(report, tmp_path):
    with chromium(tmp_path / "profile", webgl=False) as window:
        window.open_report(report)
        assert "WebGL 2" in window.driver.find_element(By.ID, "no-viewer").text
        pictures = window.driver.find_elements(By.CSS_SELECTOR, ".montage img")
        assert len(pictures) == 3
        assert all(picture.is_displayed() for picture in pictures)
        assert window.run("return [...document.images].every((image) => image.naturalWidth > 1)")
        assert not window.driver.find_element(By.ID, "viewer").is_displayed()
        assert window.complaints() == []
