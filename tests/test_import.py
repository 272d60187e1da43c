"""`import kineograph` is cheap, and every public name leads somewhere."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import kineograph


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, kineograph; kineograph.__version__; print(*{name.split('.')[0] for name in sys.modules})"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "numpy", "diffusers", "transformers", "peft", "PIL", "av"} & set(modules)


@pytest.mark.parametrize("name", kineograph.__all__)
def test_every_public_name_leads_somewhere(name: str) -> None:
    assert getattr(kineograph, name) is not None
    assert name in dir(kineograph)


def test_what_checkers_see_is_what_there_is() -> None:
    tree = ast.parse(Path(kineograph.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.asname or alias.name for node in block.body for alias in getattr(node, "names", ())}
    assert imported | {"__version__"} == set(kineograph.__all__)


def test_the_version_is_the_installed_one() -> None:
    assert kineograph.__version__ == version("kineograph")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        kineograph.lod  # noqa: B018
