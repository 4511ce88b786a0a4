"""An annotator's session: an account, the next task, an answer, over what the page itself uses.

Simulated annotators and tests answer through this. It signs in by the login form, so the server
knows the person; results have the shapes that the page sends (tests/feedback/labelstudio/
test_browser.py compares them with a real browser's).
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import httpx

from feedback.errors import LabelStudioError
from feedback.labelstudio.client import Json
from feedback.labelstudio.templates import CORRECTION, LEVELS, PREFERENCE, REASON

LOGIN = "/user/login/"
SECONDS = 120.0
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a server that failed is asked again


class AnnotatorSession:
    """One person at one server; a context manager."""

    def __init__(self, url: str, email: str, password: str):
        """Prepare; nothing is sent yet."""
        self.url, self.email, self._password = url.rstrip("/"), email, password
        self._http = httpx.Client(base_url=self.url, follow_redirects=True, timeout=SECONDS)

    def __enter__(self) -> AnnotatorSession:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()

    def join(self, invitation: str) -> None:
        """Make the account by an invitation (`LabelStudioClient.invitation`), and sign in.

        A server on SQLite fails (500, "database is locked") when many join at once: it is asked
        again, after a look whether the account was made all the same.

        Raises:
            LabelStudioError: the server made no such account.
        """
        form = invitation.removeprefix(self.url)
        pauses = iter(PAUSES)
        while (status := self._form(form)) is not None:
            pause = next(pauses, None)
            if status < 500 or pause is None:
                raise self._refused(status)
            time.sleep(pause * random.uniform(0.5, 1.5))
            if self._form(LOGIN) is None:
                return

    def log_in(self) -> None:
        """Sign in to an account that exists.

        Raises:
            LabelStudioError: the server refuses the e-mail or the password.
        """
        if (status := self._form(LOGIN)) is not None:
            raise self._refused(status)

    def next_task(self, project: int) -> Json | None:
        """The task that the server hands this person now; None when there is none left."""
        answer = self._http.get(f"/api/projects/{project}/next")
        if answer.status_code == 404:
            return None
        self._check(answer)
        task: Json = answer.json()
        return task

    def tasks(self, project: int) -> Iterator[Json]:
        """Task after task, for as long as each is submitted or skipped before the next is asked."""
        while (task := self.next_task(project)) is not None:
            yield task

    def submit(
        self, task: int, result: list[Json], *, lead_time: float = 0.0, skip: bool = False
    ) -> int:
        """Submit an answer (or a skip) as the page does; the annotation's number."""
        body = {"result": result, "lead_time": lead_time, "was_cancelled": skip}
        answer = self._http.post(f"/api/tasks/{task}/annotations/", json=body, headers=self._token)
        self._check(answer)
        return int(answer.json()["id"])

    def _form(self, path: str) -> int | None:
        """Send a form: None when it signed this person in, the answer's status otherwise."""
        self._http.get(path)
        data = {"email": self.email, "password": self._password}
        answer = self._http.post(
            path,
            data=data | {"csrfmiddlewaretoken": self._http.cookies.get("csrftoken", "")},
            headers={"Referer": self.url + path},
        )
        who = self._http.get("/api/current-user/whoami")
        signed_in = answer.is_success and who.is_success and who.json()["email"] == self.email
        return None if signed_in else answer.status_code

    def _refused(self, status: int) -> LabelStudioError:
        return LabelStudioError(
            f"Label Studio at {self.url}: {self.email} could not sign in (status {status}). Fix: "
            "check the password, or that the account does not exist already."
        )

    @property
    def _token(self) -> dict[str, str]:
        return {"X-CSRFToken": self._http.cookies.get("csrftoken") or "", "Referer": self.url}

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_error:
            raise LabelStudioError(
                f"Label Studio at {self.url}: {answer.request.method} {answer.request.url.path}: "
                f"{answer.status_code}, {answer.text[:200]}"
            )


def pair_result(level: str, reason: str = "", correction: str = "") -> list[Json]:
    """What the page of a pair sends: a level of `LEVELS` (A is the left pane), and texts.

    Raises:
        KeyError: an unknown level.
    """
    LEVELS[level]
    result = [entry(PREFERENCE, "choices", choices=[level])]
    for name, text in ((REASON, reason), (CORRECTION, correction)):
        if text:
            result.append(entry(name, "textarea", text=[text]))
    return result


def entry(control: str, kind: str, **value: Any) -> Json:
    """One control's part of a result."""
    return {"from_name": control, "to_name": "chat", "type": kind, "value": value}
