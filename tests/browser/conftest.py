import os

import environment
import pytest
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="module")
def browser():
    """Closed after the module: while Playwright is open, an event loop runs in this thread and asyncio.run fails."""
    executable = os.environ.get("UNIPIC_BROWSER") or environment.find_browser()
    assert executable, "no Chromium or Chrome found; run the tests with: python scripts/test.py"
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, comfy_server):
    """ComfyUI's page, ready, with the welcome dialogs out of the way."""
    comfy_server.post("/settings/Comfy.TutorialCompleted", True)
    page = browser.new_page(viewport={"width": 1920, "height": 1000})
    page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
    page.goto(f"http://{comfy_server.address}/")
    page.wait_for_function("window.app?.graph && window.app.vueAppReady", timeout=60_000)
    yield page
    page.close()
