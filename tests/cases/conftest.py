"""Folders with tiny models that the cases read and never write to."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import tiny_models


@pytest.fixture
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder whose path says nothing: paths are in the messages that the cases read."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "sd"
    tiny_models.sd().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "xl"
    tiny_models.sdxl().save_pretrained(folder)
    return folder
