"""The page of the gateway in a real, headless Chromium: whatever the customer presses, she pays once."""

import json
import os
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from examples.fastapi_gateway.browser import find_chromium, opened
from examples.fastapi_gateway.launch import Launched
from examples.fastapi_gateway.screenshot import press_in_trouble
from tests.support.wait import until

expect.set_options(timeout=30_000)  # ms; for slow machines, and as long as other tests wait

pytestmark = pytest.mark.skipif(
    find_chromium() is None and not os.environ.get("CI"),  # in CI they fail instead
    reason="the page was NOT tested, since no Chromium was found: on Debian, apt-get install chromium",
)


# Of this module, and not of the session: while it is open, no other event loop can run on this thread.
@pytest.fixture(scope="module")
def chromium():
    with opened() as browser:
        yield browser


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def gateway(gates):
    with Launched("examples.fastapi_gateway", "--child", "--gates", str(gates)) as gateway:
        yield gateway.address


@pytest.fixture
def page(chromium, gateway):
    """A customer of her own. She has waited for the page, and nothing on it may fail unseen."""
    context = chromium.new_context()
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(gateway)
    expect_charges(page, "Not charged", runs=0)
    yield page
    context.close()
    assert not faults


def pay(page: Page):
    return page.get_by_role("button", name="Pay")


def answers(page: Page):
    return page.get_by_role("log").get_by_role("listitem")


def expect_charges(page: Page, words: str, *, runs: int) -> None:
    expect(page.get_by_role("status")).to_have_text(words)
    expect(page.locator("#runs")).to_have_text(f"{runs}×")


def expect_answers(page: Page, *expected: str) -> None:
    """Each of the answers on the page has these words, in any order."""
    expect(answers(page)).to_have_count(len(expected))
    assert sorted(" ".join(each.split()[2:]) for each in answers(page).all_inner_texts()) == sorted(expected)


def order_id(page: Page) -> str:
    order: dict[str, str] = json.loads(page.evaluate("sessionStorage.getItem('order')"))
    return order["id"]


def paid(page: Page) -> str:
    """What the page says of the payment."""
    return page.get_by_text("Paid 12.99 €").first.inner_text()


def test_a_double_click_pays_once(page):
    pay(page).dblclick()
    expect(answers(page)).to_have_count(2)
    said = paid(page)
    expect_answers(page, f"201 {said}", f"201 {said} replayed")
    expect_charges(page, "Charged once", runs=1)


def test_a_reload_and_another_press_pay_once(page):
    pay(page).click()
    expect(answers(page)).to_have_count(1)
    said, order = paid(page), order_id(page)
    page.reload()
    expect_charges(page, "Charged once", runs=1)
    expect(answers(page)).to_have_count(0)
    assert order_id(page) == order
    pay(page).click()
    expect(answers(page)).to_have_count(1)
    expect_answers(page, f"201 {said} replayed")
    expect_charges(page, "Charged once", runs=1)


def test_a_reload_while_the_payment_runs_pays_once(page, gateway, gates):
    page.get_by_label("Card").select_option("card-slow")
    pay(page).click()
    books = f"{gateway}orders/{order_id(page)}/books"
    until(lambda: httpx.get(books).json()["runs"])
    page.reload()  # the first answer is lost with the page that asked for it
    expect(page.get_by_label("Card")).to_have_value("card-slow")
    expect(page.locator("#runs")).to_have_text("1×")
    pay(page).click()
    expect(answers(page).first).to_contain_text("409 In progress. The page asks again in 1 s.")
    (gates / order_id(page)).touch()
    expect(answers(page).first).to_contain_text("replayed")
    expect_charges(page, "Charged once", runs=1)


def test_a_lost_reply_and_another_press_pay_once(page):
    lose = page.get_by_role("switch", name="Lose the next reply")
    lose.check()
    pay(page).click()
    expect(answers(page)).to_contain_text(["no reply"])
    expect_charges(page, "Charged once", runs=1)
    expect(lose).not_to_be_checked()
    pay(page).click()
    expect(answers(page)).to_have_count(2)
    expect(answers(page).first).to_contain_text("replayed")
    expect_charges(page, "Charged once", runs=1)


def test_a_lost_reply_a_reload_and_a_double_click_pay_once(page):
    press_in_trouble(page)
    page.reload()
    pay(page).dblclick()
    expect(answers(page)).to_have_count(2)
    expect(answers(page).get_by_text("replayed")).to_have_count(2)
    expect(page.locator("#presses")).to_have_text("5×")
    expect_charges(page, "Charged once", runs=1)


def test_a_declined_card_and_then_a_good_one(page):
    card = page.get_by_label("Card")
    card.select_option("card-declined")
    pay(page).dblclick()
    expect(answers(page)).to_have_count(2)
    expect_charges(page, "Not charged", runs=1)
    card.select_option("card-good")
    pay(page).click()
    expect(answers(page).first).to_contain_text("Paid 12.99 €")
    expect_charges(page, "Charged once", runs=2)


def test_a_lost_decline_and_another_card_say_how_to_go_on(page):
    """The page cannot know that the first card was declined, so the key stays: the way on is that card."""
    card = page.get_by_label("Card")
    card.select_option("card-declined")
    page.get_by_role("switch", name="Lose the next reply").check()
    pay(page).click()
    expect(answers(page)).to_contain_text(["no reply"])
    card.select_option("card-good")
    pay(page).click()
    expect(answers(page).first).to_contain_text("Choose the card that you pressed with before")
    card.select_option("card-declined")
    pay(page).click()
    expect(answers(page).first).to_contain_text("402")
    card.select_option("card-good")
    pay(page).click()
    expect(answers(page).first).to_contain_text("Paid 12.99 €")
    expect_charges(page, "Charged once", runs=2)


def test_another_card_after_the_payment_is_refused(page):
    pay(page).click()
    expect_charges(page, "Charged once", runs=1)
    page.get_by_label("Card").select_option("card-declined")
    pay(page).click()
    expect(answers(page).first).to_contain_text("422")
    expect_charges(page, "Charged once", runs=1)


def test_what_the_books_said_before_does_not_come_last(page):
    """They are read when the page is loaded, and after each answer: replies may overtake one another."""
    held: list[Route] = []
    page.route("**/books", lambda route: route.continue_() if held else held.append(route))
    page.reload()
    pay(page).click()
    expect_charges(page, "Charged once", runs=1)
    with page.expect_response("**/books") as late:
        held[0].fulfill(json={"runs": 0, "charges": 0, "minor_units": 0})
    late.value.finished()
    page.evaluate("new Promise(requestAnimationFrame)")  # the page has seen it
    expect_charges(page, "Charged once", runs=1)


def test_another_order_is_another_payment(page):
    pay(page).click()
    expect_charges(page, "Charged once", runs=1)
    first = order_id(page)
    page.get_by_role("button", name="Start another order").click()
    expect_charges(page, "Not charged", runs=0)
    assert order_id(page) != first
    pay(page).click()
    expect_charges(page, "Charged once", runs=1)
    expect(answers(page)).to_have_count(1)
    assert "replayed" not in answers(page).inner_text()


def test_another_order_loses_no_reply_unless_told_to(page):
    lose = page.get_by_role("switch", name="Lose the next reply")
    lose.check()
    page.get_by_role("button", name="Start another order").click()
    expect(lose).not_to_be_checked()
    pay(page).click()
    expect(answers(page)).to_contain_text(["Paid 12.99 €"])
    expect_charges(page, "Charged once", runs=1)


def test_it_can_be_used_by_keyboard_and_fits_a_phone(page):
    page.set_viewport_size({"width": 320, "height": 640})
    page.get_by_label("Card").focus()
    page.keyboard.press("Tab")
    expect(pay(page)).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_count(2)
    expect_charges(page, "Charged once", runs=1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_picture_in_the_docs_can_be_taken_anew(tmp_path):
    picture = tmp_path / "gateway.png"
    command = [sys.executable, "-m", "examples.fastapi_gateway.screenshot", str(picture)]
    subprocess.run(command, check=True, timeout=90)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000
