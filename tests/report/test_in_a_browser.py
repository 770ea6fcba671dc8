"""The page in a real browser: it complains of nothing, and does what its controls say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, browser
from made_records import hits, made
from test_report import HOSTILE, hostile, save_picture

from harness import records
from harness.cli import main

pytestmark = pytest.mark.slow

SHOWN = """Array.from(document.querySelectorAll('.standings tr[data-model]'))
    .filter((row) => row.offsetParent !== null).map((row) => row.dataset.model)"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "results"
    for model, share in (("vits", 0.30), ("vits-reg4", 0.34), ("vitb", 0.5), ("vitb-reg4", 0.48),
                         ("mae-vitb16", 0.31), ("pixels", 0.2)):  # fmt: skip
        made(folder, model, hits(share))
    made(folder, "mae-vitb16", hits(0.4, 150), dataset="voc12")
    save_picture(folder / "voc07/lost/vits/lost.json", "worst-1-a.png", size=(900, 300))
    assert main(["report", "--results", str(folder), "--out", str(folder.parent / "r.html")]) == 0
    return folder


@pytest.fixture
def page(chromium: Browser, out: Path) -> Iterator[Browser]:
    """The page as a reader opens it for the first time."""
    chromium.window(1280)
    chromium.open(out.parent / "r.html")
    chromium.run("localStorage.clear()")
    chromium.open(out.parent / "r.html")
    yield chromium
    assert chromium.complaints == []


def click(page: Browser, what: str) -> None:
    page.run(f"document.querySelector({what!r}).click()")


def test_the_browser_shows_the_numbers_of_the_records(page: Browser, out: Path) -> None:
    shown = page.run(
        "Array.from(document.querySelectorAll('.standings tr[data-model]')).map((row) => "
        "[row.closest('section').dataset.dataset, row.dataset.model, "
        "Number(row.cells[2].dataset.value), row.cells[2].textContent.trim()])"
    )
    told = {(dataset, model): (value, text) for dataset, model, value, text in shown}
    assert len(told) == 7
    for _, record in records.find(out):
        metric = record.metrics["corloc"]
        value, text = told[record.dataset.name, record.model.name]
        assert value == metric.value
        assert text.startswith(f"{metric.value:.1f} ({metric.low:.1f}–{metric.high:.1f})")


def test_a_column_sorts_by_keyboard_and_says_which_way(page: Browser) -> None:
    page.run("document.querySelectorAll('.standings th[data-sort] button')[2].focus()")
    values = (
        "Array.from(document.querySelector('.standings').tBodies[0].rows, "
        "(row) => Number(row.cells[2].dataset.value))"
    )
    ways = []
    for way in (True, False):
        page.press("Enter", 13)
        found = page.run(values)
        assert found == sorted(found, reverse=way) and len(found) == 6
        ways.append(page.run("document.activeElement.closest('th').getAttribute('aria-sort')"))
    assert ways == ["descending", "ascending"]
    page.run("document.querySelectorAll('.standings th[data-sort] button')[1].click()")
    assert page.run("document.querySelectorAll('.standings [aria-sort]').length") == 1
    assert page.run(SHOWN)[:2] == ["mae-vitb16", "pixels"]
    gains = "document.querySelectorAll('.standings th[data-sort] button')[3]"
    for _ in range(2):
        page.run(f"{gains}.click()")
        last = page.run(
            "Array.from(document.querySelector('.standings').tBodies[0].rows, "
            "(row) => row.cells[4].dataset.value)"
        )
        assert all(last[:2]) and not any(last[2:])


def choose(page: Browser, name: str, value: str) -> None:
    page.run(
        f"(() => {{ const f = document.getElementById('filters').elements[{name!r}]; "
        f"if (f.type === 'checkbox') f.checked = true; else f.value = {value!r}; "
        "f.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("text", "REG4 voc07", ["vitb-reg4", "vits-reg4"]),
        ("dataset", "voc12", ["mae-vitb16"]),
        ("family", "mae", ["mae-vitb16", "mae-vitb16"]),
        ("registers", "", ["vitb-reg4", "vits-reg4"]),
        ("pairs", "", ["vitb", "vitb-reg4", "vits", "vits-reg4"]),
        ("text", "nothing like it", []),
    ],
)
def test_filters_leave_what_was_asked_for(
    name: str, value: str, kept: list[str], page: Browser
) -> None:
    assert len(page.run(SHOWN)) == 7
    choose(page, name, value)
    assert sorted(page.run(SHOWN)) == sorted(kept)
    said = page.run("document.querySelector('#filters output').textContent")
    assert said == f"{len(kept)} of 7 rows"
    assert page.run("document.getElementById('nothing').hidden") is bool(kept)
    boards = page.run(
        "Array.from(document.querySelectorAll('.board')).filter((b) => !b.hidden).length"
    )
    entries = page.run(
        "Array.from(document.querySelectorAll('nav [data-for]')).filter((b) => !b.hidden).length"
    )
    assert boards == entries == (0 if not kept else 2 if name == "family" else 1)
    page.run("document.querySelector('#filters [type=reset]').click()")
    page.until(f"{SHOWN}.length === 7")


@pytest.mark.parametrize("what", ["record", "picture"])
def test_a_record_and_a_picture_open_in_a_dialog_that_escape_and_its_button_close(
    what: str, page: Browser
) -> None:
    page.run(f"document.querySelector('a.{what}').focus()")
    page.press("Enter", 13)
    assert page.run("document.getElementById('dialog').open") is True
    body = page.run("document.getElementById('dialog-body').innerText")
    assert ("git" in body or "python" in body) if what == "record" else "not reduced" in body
    assert page.run("document.querySelectorAll('#dialog-body img').length") == (what == "picture")
    page.press("Escape", 27)
    assert page.run("document.getElementById('dialog').open") is False
    assert page.run("document.activeElement.className") == what
    page.press("Enter", 13)
    assert page.run("document.getElementById('dialog').open") is True
    page.run("document.activeElement.click()")
    assert page.run("document.getElementById('dialog').open") is False
    assert page.run("location.hash") == ""


def test_the_theme_is_the_systems_until_the_button_chooses(page: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground)
    page.window(1280, dark=True)
    dark = page.run(ground)
    assert dark != light
    page.until("document.getElementById('theme').textContent === 'Light'")
    click(page, "#theme")
    assert page.run(ground) == light
    page.again()
    assert page.run(ground) == light
    page.window(1280)
    page.until("document.getElementById('theme').textContent === 'Dark'")
    click(page, "#theme")
    assert page.run(ground) == dark


def luminance(colour: str) -> float:
    """Of ``rgb(r, g, b)``, relative (WCAG 2)."""
    shares = [int(each) / 255 for each in colour.partition("(")[2].rstrip(")").split(",")]
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_dark_on_light_or_light_on_dark_enough(dark: bool, page: Browser) -> None:
    page.window(1280, dark=dark)
    ground = luminance(page.run("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.1) is dark
    for what in ("h1", "caption", "td", ".interval", "a.record", ".note", "thead button"):
        found = page.run(f"getComputedStyle(document.querySelector({what!r})).color")
        light, deep = sorted((luminance(found), ground), reverse=True)
        assert (light + 0.05) / (deep + 0.05) > 4.5, what


def test_paper_is_white_whatever_the_screen_was(page: Browser) -> None:
    page.window(1280)
    click(page, "#theme")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    page.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    hidden = page.run("getComputedStyle(document.querySelector('#filters')).display")
    page.call("Emulation.setEmulatedMedia", media="", features=[])
    assert (ground, hidden) == ("rgb(255, 255, 255)", "none")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_the_window_and_tables_scroll_inside(
    width: int, page: Browser
) -> None:
    page.window(width)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run("document.documentElement.scrollWidth") > width - 30


def test_what_is_read_aloud_has_names(page: Browser) -> None:
    found = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(each["role"]["value"], each.get("name", {}).get("value", ""))
             for each in found if not each["ignored"]]  # fmt: skip
    for role in ("banner", "navigation", "main", "contentinfo", "form"):
        assert role in {each for each, _ in roles}
    unnamed = {"button", "link", "image", "combobox", "searchbox", "checkbox", "table", "region"}
    assert [role for role, name in roles if role in unnamed and not name.strip()] == []


def test_without_scripts_tables_records_and_pictures_are_there(page: Browser) -> None:
    page.again(scripts=False)
    assert len(page.run(SHOWN)) == 7
    assert page.run("getComputedStyle(document.getElementById('filters')).display") == "none"
    assert page.run("document.querySelectorAll('th button').length") == 0


def test_names_in_records_run_nothing(chromium: Browser, tmp_path: Path) -> None:
    made(tmp_path / "results", "vits", hits(0.3))
    page = tmp_path / "hostile.html"
    hostile(tmp_path / "results", page, HOSTILE)
    chromium.complaints.clear()
    chromium.open(page)
    chromium.run("document.querySelectorAll('a.record').forEach((each) => each.click())")
    assert chromium.run("document.getElementById('dialog').open") is True
    chromium.run("document.querySelectorAll('summary').forEach((each) => each.click())")
    choose(chromium, "text", "script")
    choose(chromium, "text", "")
    assert set(chromium.run(SHOWN)) == {name.replace("\0", "\ufffd") for name in HOSTILE}
    assert (
        chromium.run("document.title") == "Frozen Vision Transformers, with and without registers"
    )
    assert chromium.complaints == []
