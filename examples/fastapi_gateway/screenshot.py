"""Take docs/gateway.png: ``python -m examples.fastapi_gateway.screenshot docs/gateway.png``.

``--phone`` uses the width of a phone.
"""

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect

from examples.fastapi_gateway.browser import opened
from examples.fastapi_gateway.launch import Launched


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of the page.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--phone", action="store_true")
    options = parser.parse_args()
    width, height = (390, 844) if options.phone else (1000, 640)
    with Launched("examples.fastapi_gateway", "--child") as gateway, opened() as browser:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.goto(gateway.address)
        press_in_trouble(page)
        page.screenshot(path=options.path, full_page=True)


def press_in_trouble(page: Page) -> None:
    """Lose a reply, then double-click. At the end, move the pointer off the button."""
    pay = page.get_by_role("button", name="Pay")
    answers = page.get_by_role("log").get_by_role("listitem")
    page.get_by_role("switch", name="Lose the next reply").check()
    pay.click()
    expect(answers).to_have_count(1)
    pay.dblclick()
    expect(answers).to_have_count(3)
    expect(page.get_by_role("status")).to_have_text("Charged once")
    page.get_by_role("heading", name="Pay once").click()


if __name__ == "__main__":
    main()
