"""A real Label Studio server for the session, and projects of one's own on it."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import sync_playwright

from feedback.labelstudio.client import LabelStudioClient
from feedback.labelstudio.journal import Journal, Project, add_project
from feedback.labelstudio.projects import create_projects
from feedback.labelstudio.server import LabelStudioServer
from feedback.labelstudio.templates import Template
from feedback.ports import free_port
from feedback.records import new_item
from feedback.store import FeedbackStore

NUMBERS = itertools.count()
LATE = 6.0  # seconds that a late request takes to arrive
HELD = 2.0  # seconds that the proxied client waits for what the proxy holds back
SIZE = (1280, 800)  # of the browser's window
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NASTY = [
    "<script>document.title='hacked'</script><b>bold</b>",
    "\u202eright to left\u202c שלום مرحبا",
    "\U0001f4e6\U0001f468\u200d\U0001f469\u200d\U0001f467 emoji",
    "# Markdown\n\n* a\n* b\n\n```python\nprint('&amp;')\n```\n\t tab  two spaces ",
    "line\r\nbreaks\r and \u2028 separators",
    "x" * 50_000,
]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = LabelStudioServer(
        tmp_path_factory.mktemp("label-studio"), free_port(), local_webhooks=True
    )
    server.start(print)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(server):
    return LabelStudioClient(server.login.url, server.login.token)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}") as opened:
        yield opened


@pytest.fixture
def make_project(client, store):
    """`make_project(kind="pair", **settings)`: a project that the store knows."""

    def make(kind="pair", **settings):
        name = f"test {next(NUMBERS)}"
        template = Template(kind, correction=True)
        (project,) = create_projects(client, store, name, template, **settings)
        return project

    return make


@pytest.fixture
def pairs():
    """`pairs(n)`: items, the first few with text that breaks pages and parsers."""

    def make(n):
        texts = [*NASTY, *(f"answer {i}" for i in range(max(n - len(NASTY), 0)))][:n]
        chat = [{"role": "user", "content": "Is it open? <i>Sundays</i>"}]
        return [
            new_item("pair", chat, (text, f"other {i}"), ("sft", "dpo"), seed=5)
            for i, text in enumerate(texts)
        ]

    return make


@pytest.fixture
def label(client, store):
    """`label(project, item, level, ...)`: submit what the page would, for one item."""

    def submit(project, item, level="a1", reason=None, correction=None, key=None):
        task = Journal(store, project).tasks()[key or item.id]
        result = [said("pref", "choices", choices=[level])]
        if reason is not None:
            result.append(said("reason", "textarea", text=[reason]))
        if correction is not None:
            result.append(said("correction", "textarea", text=[correction]))
        return client.create_annotation(task, result=result, lead_time=3.5)["id"]

    return submit


def said(control, kind, **value):
    """One entry of a result."""
    return {"from_name": control, "to_name": "chat", "type": kind, "value": value}


class Proxy:
    """Passes requests on; `faults` maps "METHOD path-part" to what goes wrong, once each."""

    def __init__(self, target):
        self.target, self.faults, self.happened = target, [], []
        self.quiet, self.lock, self.passing = threading.Event(), threading.Lock(), 0
        self.quiet.set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def handle_any(self):
                proxy.answer(self)

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fault(self, method, path):
        """The first that applies to a request, if any."""
        return next((f for f in self.faults if f[0] == method and f[1] in path), None)

    def rest(self):
        """Wait until the server has answered all that was passed on to it, late ones too."""
        assert self.quiet.wait(60)

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        fault = self.fault(handler.command, handler.path)
        if fault:
            self.faults.remove(fault)
            self.happened.append(fault[2])
        kind = fault[2] if fault else ""
        if kind == "hide":  # an answer that is well-formed and wrong
            self.send(handler, 200, "application/json", b'{"tasks": [], "total": 0}')
            return
        if kind == "drop before":
            handler.connection.close()
            return
        if isinstance(kind, int):
            handler.send_response(kind)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        with self.counted():
            if kind == "late":  # whoever asked has given up before the server hears of it
                time.sleep(LATE)
            answer = self.forward(handler, body)
        if kind == "drop after":  # the server has done it, and nobody hears of it
            handler.connection.close()
            return
        if kind == "fail after":  # it has done it, and says that it has not
            self.send(handler, 500, "text/plain", b"")
            return
        if kind == "slow":
            time.sleep(HELD + 1)
        kept = [(k, v) for k, v in answer.headers.multi_items() if k in ("set-cookie", "location")]
        kind = answer.headers.get("Content-Type", "")
        self.send(handler, answer.status_code, kind, answer.content, kept)

    @contextlib.contextmanager
    def counted(self):
        """A request that the server has yet to answer."""
        with self.lock:
            self.passing += 1
            self.quiet.clear()
        try:
            yield
        finally:
            with self.lock:
                self.passing -= 1
                if not self.passing:
                    self.quiet.set()

    def forward(self, handler, body):
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "host"}
        return httpx.request(
            handler.command, self.target + handler.path, headers=headers, content=body, timeout=60
        )

    @staticmethod
    def send(handler, status, kind, content, headers=()):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


class ProxiedClient(LabelStudioClient):
    """Waits briefly for what the proxy holds back, and long for the server, which may be busy."""

    def __init__(self, proxy, token):
        super().__init__(proxy.url, token, timeout=60)
        self.proxy = proxy

    def request(self, method, path, **options):
        fault = self.proxy.fault(method, f"/{path}")
        held = fault is not None and fault[2] in ("slow", "late")
        self._sdk._client_wrapper._timeout = HELD if held else 60
        return super().request(method, path, **options)


@pytest.fixture
def proxied(server, store, make_project):
    """A proxy, a client through it, and a project seen through it."""
    proxy = Proxy(server.login.url)
    made = make_project()
    project = Project(**(vars(made) | {"server": proxy.url}))
    add_project(store, project)
    yield proxy, ProxiedClient(proxy, server.login.token), project
    proxy.server.shutdown()


@pytest.fixture(scope="module")
def annotator(server):
    """A person in a real browser; closed with the module: its event loop bars asyncio.run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on the PATH; Debian has it: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield Annotator(browser.new_page(), server.login)
        browser.close()


@pytest.fixture(name="said")
def said_fixture():
    """`said(control, kind, **value)`, for tests that compare it with what the page sends."""
    return said


class Annotator:
    """A person at the page: logs in by the form, and from then on clicks and types."""

    def __init__(self, page, login):
        self.page, self.url = page, login.url
        self.submit = page.locator("[data-testid=bottombar-submit-button]")
        self.update = page.locator("[data-testid=bottombar-update-button]")
        page.goto(f"{self.url}/user/login/", wait_until="domcontentloaded")
        page.fill("input[name=email]", login.email)
        page.fill("input[name=password]", login.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/login" not in url, wait_until="domcontentloaded")

    def open(self, project, task, size=SIZE):
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        address = f"{self.url}/projects/{project.project}/data?task={task}"
        self.page.goto(address, wait_until="domcontentloaded")
        self._ready(task)

    def label_all(self, project, first):
        """Press the button that leads through all tasks, and close the guidelines."""
        self.page.set_viewport_size({"width": SIZE[0], "height": SIZE[1]})
        address = f"{self.url}/projects/{project.project}/data"
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.get_by_text("Label All Tasks").click()
        self.page.get_by_text("How to judge").wait_for()
        self.page.keyboard.press("Escape")
        self.page.get_by_text("How to judge").wait_for(state="hidden")
        self._ready(first)

    def choose(self, text):
        self.page.locator(".lsf-choice__checkbox").filter(has_text=re.compile(f"^{text}")).click()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(100)

    def write(self, field, text):
        self.page.locator(f"textarea[name={field}]").click()
        self.page.keyboard.type(text)
        self.page.locator(".align-prompt").click()  # inside a field, keys only write

    def stars(self, aspect, n):
        row = self.page.locator(".align-scores .ant-rate").nth(aspect)
        row.locator(".ant-rate-star").nth(n - 1).click()

    def drag(self, name, above):
        """Drag one answer of a ranking to just above another."""
        grip = "[data-ranker-id={}] [class*=itemTitle--]"
        self.page.locator(grip.format(name)).scroll_into_view_if_needed()
        start = self.page.locator(grip.format(name)).bounding_box()
        end = self.page.locator(grip.format(above)).bounding_box()
        x, y = start["x"] + 40, start["y"] + start["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x, y - 8, steps=4)
        self.page.mouse.move(x, end["y"] - 4, steps=15)
        self.page.wait_for_timeout(300)
        self.page.mouse.up()
        self.page.wait_for_timeout(600)  # the drop is animated

    def send(self, act, following=None):
        """Do what submits, wait for the following task if any; the annotation as answered."""

        def submits(answer):
            path = answer.url.partition("?")[0]
            sends = answer.request.method in ("POST", "PATCH")
            return sends and "/annotations" in path and "draft" not in path

        with self.page.expect_response(submits) as seen:
            act()
        assert seen.value.ok, seen.value.status
        if following is not None:
            self._ready(following)
        return seen.value.json()

    def _ready(self, task):
        # Its first text is the task's number; "1 of 3" may follow.
        self.page.wait_for_function(
            "task => document.querySelector('.lsf-current-task__task-id')"
            "?.firstChild.textContent.replace(/\\D/g, '') === task",
            arg=str(task),
            timeout=60_000,
        )
        self.submit.or_(self.update).wait_for()
        self.page.locator(".align-page").wait_for()
        self.page.wait_for_timeout(500)  # the editor attaches its hotkeys after it draws
