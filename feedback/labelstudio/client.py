"""A thin client of Label Studio's API, on the connection of label-studio-sdk.

The SDK signs in (legacy token, or a personal access token that it refreshes) and is used for
nothing else: its models turn a task's annotations into text, and it repeats a POST three times,
which can import the same tasks three times. Here nothing that writes is repeated; `DoubtfulError`
says that a request may or may not have happened, and the caller finds out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feedback.errors import LabelStudioError, MissingDependencyError

Json = dict[str, Any]
PAGE = 500
INSTALL = 'pip install "align-rlhf[labelstudio]"'


class DoubtfulError(LabelStudioError):
    """The answer to a request was lost: it may or may not have happened on the server."""


class NotFoundError(LabelStudioError):
    """The server has no such object."""


class LabelStudioClient:
    """Calls by name, JSON in and out; every wait has a time-out."""

    def __init__(self, url: str, token: str, timeout: float = 120.0):
        """Prepare a connection; nothing is sent yet.

        Args:
            url: such as http://localhost:8080.
            token: legacy or personal access token of a user.
            timeout: seconds to wait for one answer.

        Raises:
            MissingDependencyError: label-studio-sdk is not installed.
            LabelStudioError: the URL is not one.
        """
        try:
            from label_studio_sdk import LabelStudio
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"Label Studio: {error.name} is not installed. Fix: {INSTALL}"
            ) from error
        if not url.startswith(("http://", "https://")):
            raise LabelStudioError(
                f"Label Studio: {url!r} is not a URL. Fix: write http://HOST:PORT."
            )
        self.url = url.rstrip("/")
        self._sdk = LabelStudio(base_url=self.url, api_key=token, timeout=timeout)

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any:
        """One request, sent once; its answer as JSON (None where there is none).

        Raises:
            DoubtfulError: the connection broke, timed out, or the server failed (500 and above).
            NotFoundError: the object is not there.
            LabelStudioError: the server refused: token, permission, unknown object, bad request.
        """
        import httpx
        from label_studio_sdk.core.api_error import ApiError

        where = f"Label Studio at {self.url}: {method} {path}"
        try:
            wrapper = self._sdk._client_wrapper  # the SDK has no public way to send a request
            answer = wrapper.httpx_client.request(
                path,
                method=method,
                params=dict(params) if params else None,
                # Encoded here: the SDK would walk through all of it first, which takes longer.
                content=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
                request_options={"max_retries": 0},
            )
        except httpx.ConnectError as error:
            raise DoubtfulError(
                f"{where}: no connection ({error}). Fix: check that the server runs and the URL."
            ) from error
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise DoubtfulError(
                f"{where}: the connection broke ({what}). Fix: try again."
            ) from error
        except ApiError as error:  # while exchanging a personal access token
            raise LabelStudioError(
                f"{where}: the token was refused ({error.status_code}). {_TOKEN}"
            ) from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise DoubtfulError(
                f"{where}: the server answered {answer.status_code}. Fix: try again."
            )
        if answer.status_code == 401:
            raise LabelStudioError(f"{where}: 401, access refused. {_TOKEN}")
        if answer.status_code == 404:
            raise NotFoundError(f"{where}: 404, the server has no such object. {_GONE}")
        if answer.status_code >= 400:
            raise LabelStudioError(f"{where}: {answer.status_code}, {answer.text[:300]}")
        return answer.json() if answer.content else None

    def check(self) -> Json:
        """Who the token belongs to.

        Raises:
            LabelStudioError: no server, or the token is refused.
        """
        user: Json = self.request("GET", "api/current-user/whoami")
        return user

    def users(self) -> dict[int, str]:
        """E-mail addresses by user number."""
        return {user["id"]: user["email"] for user in self.request("GET", "api/users")}

    def create_project(self, **fields: Any) -> Json:
        """Create a project from fields of the API (title, label_config, ...)."""
        project: Json = self.request("POST", "api/projects/", body=fields)
        return project

    def project(self, number: int, *, fields: Sequence[str] = ()) -> Json:
        """A project's settings and counts: those named, which is faster, or all."""
        params = {"include": ",".join(fields)} if fields else None
        project: Json = self.request("GET", f"api/projects/{number}/", params=params)
        return project

    def update_project(self, number: int, **fields: Any) -> None:
        """Change fields of a project."""
        self.request("PATCH", f"api/projects/{number}/", body=fields)

    def import_tasks(self, project: int, data: Sequence[Json]) -> list[int]:
        """Import tasks in one request; their numbers, in the order given."""
        answer = self.request(
            "POST",
            f"api/projects/{project}/import",
            params={"return_task_ids": "true"},
            body=[{"data": item} for item in data],
        )
        return list(answer["task_ids"])

    def tasks(
        self, project: int, filters: Sequence[Json] = (), *, fields: Sequence[str] = ()
    ) -> Iterator[Json]:
        """Tasks of a project, page by page, by number.

        Args:
            project: its number.
            filters: conditions that all hold, see `condition`.
            fields: only these, which is many times faster, the more so without `annotations`; by
                default all.
        """
        query: Json = {"ordering": ["tasks:id"]}
        if filters:
            query["filters"] = {"conjunction": "and", "items": list(filters)}
        params: Json = {"project": project, "page_size": PAGE, "query": json.dumps(query)}
        whole = not fields or "annotations" in fields
        params["fields"] = "all" if whole else "task_only"
        if fields:
            params["include"] = ",".join(fields)
        seen, page = 0, 1
        while True:
            answer = self.request("GET", "api/tasks", params=params | {"page": page})
            yield from answer["tasks"]
            seen, page = seen + len(answer["tasks"]), page + 1
            if not answer["tasks"] or seen >= answer["total"]:
                return

    def annotations(self, task: int) -> list[Json]:
        """The annotations of one task, skips included."""
        found: list[Json] = self.request("GET", f"api/tasks/{task}/annotations/")
        return found

    def create_annotation(self, task: int, **fields: Any) -> Json:
        """Submit an annotation as a person would (result, lead_time, was_cancelled, ...)."""
        made: Json = self.request("POST", f"api/tasks/{task}/annotations/", body=fields)
        return made

    def update_annotation(self, annotation: int, **fields: Any) -> Json:
        """Change an annotation."""
        made: Json = self.request("PATCH", f"api/annotations/{annotation}/", body=fields)
        return made

    def delete_annotation(self, annotation: int) -> None:
        """Delete an annotation on the server; the store keeps its versions."""
        self.request("DELETE", f"api/annotations/{annotation}/")

    def import_scores(
        self, project: int, scores: Sequence[tuple[int, float]], version: str
    ) -> None:
        """Give tasks a score without a suggestion: (task, score) under a model version."""
        body = [
            {"task": task, "result": [], "score": score, "model_version": version}
            for task, score in scores
        ]
        self.request("POST", f"api/projects/{project}/import/predictions", body=body)

    def model_versions(self, project: int) -> dict[str, int]:
        """How many predictions a project has of each model version."""
        found: dict[str, int] = self.request("GET", f"api/projects/{project}/model-versions")
        return found

    def create_webhook(
        self, project: int, url: str, *, headers: Mapping[str, str], actions: Sequence[str]
    ) -> int:
        """Have the server tell a URL of what happens in a project; the hook's number."""
        body = {
            "project": project,
            "url": url,
            "headers": dict(headers),
            "actions": list(actions),
            "send_payload": True,
            "send_for_all_actions": False,
            "is_active": True,
        }
        return int(self.request("POST", "api/webhooks/", body=body)["id"])

    def delete_webhook(self, hook: int) -> None:
        """Have a hook sent no more."""
        self.request("DELETE", f"api/webhooks/{hook}/")

    def delete_webhooks(self, project: int, url: str) -> None:
        """Have a project's hooks to a URL sent no more."""
        for hook in self.request("GET", "api/webhooks/", params={"project": project}):
            if hook["url"] == url:
                self.delete_webhook(hook["id"])

    def invitation(self) -> str:
        """The address at which people make accounts of their own; whoever has it may."""
        return f"{self.url}{self.request('GET', 'api/invite')['invite_url']}"

    def delete_task(self, task: int) -> None:
        """Delete a task and what hangs on it."""
        self.request("DELETE", f"api/tasks/{task}/")


def condition(name: str, operator: str, kind: str, value: Any) -> Json:
    """A filter of the task list, such as ("updated_at", "greater", "Datetime", "2026-...")."""
    return {
        "filter": f"filter:tasks:{name}",
        "operator": operator,
        "type": kind,
        "value": value,
    }


_GONE = "Fix: check the server's address, and whether somebody deleted it there."
_TOKEN = (
    "Fix: copy the token from the server's Account & Settings page; legacy tokens must be enabled "
    "there, and a personal token may have expired."
)
