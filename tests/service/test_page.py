"""The page of the API's interactive documentation: all of it comes from this server, and its policy lets it work."""

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from kineograph.service import page
from kineograph.service.api import create_app
from kineograph.service.api.context import Service
from kineograph.service.api.settings import ServeSettings
from kineograph.service.queue import JobQueue
from kineograph.service.tokens import add_token


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    add_token(tmp_path / "tokens", "ann")
    service = Service(JobQueue.open(tmp_path / "service"), ServeSettings(token_file=tmp_path / "tokens"))
    return TestClient(create_app(service), base_url="http://localhost")


def test_the_page_has_no_script_of_its_own_and_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert {*links} == {f"/page/{name}" for name in page.FILES}
    assert not re.search(r"<script[^>]*>[^<]|<style|\son\w+=|style=|https?:", answer.text)
    for each in links:
        file = client.get(each)
        kind = {"js": "javascript", "css": "text/css", "png": "image/png"}[each.rpartition(".")[2]]
        assert file.status_code == 200 and kind in file.headers["content-type"]


def test_only_files_of_the_page_are_served(client: TestClient) -> None:
    for name in ("index.html", "__init__.py", "nothing", "..%2f__init__.py", "%2e%2e", "swagger-ui.css.map"):
        assert client.get(f"/page/{name}").status_code in (401, 404), name


def test_the_page_names_what_the_bundled_version_reads() -> None:
    """Swagger UI 4 reads a schema whose number begins with 3.0; version 5 reads 3.1, and needs no change of it."""
    bundle = (page.BUNDLE / "swagger-ui-bundle.js").read_text()
    assert '"3.0.")' in bundle and "3.0.3" in (page.OWN / "page.js").read_text()
