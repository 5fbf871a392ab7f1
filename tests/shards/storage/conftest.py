"""The hub on this machine, as its client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.servers import running
from tests.servers_hub import WRITE, HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, short_pauses: None) -> Iterator[HubServer]:
    """A hub without a repository. The client finds it, is the user `someone`, and does not sleep between attempts."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http, close_session

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("HF_TOKEN", WRITE)
    with running(server):
        yield server
    close_session()
