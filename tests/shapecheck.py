"""The run-time checker of annotations in tests: an int is a float, as type checkers have it (PEP 484)."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_completed: set[str] = set()
# Modules whose imports for type checkers are made here, so that their annotations can be read.
COMPLETED = ("kineograph.methods.", "kineograph.plan", "kineograph.models.unet.frame_attention")


def checked(function: Any) -> Any:
    """Return the function, or class, with its arguments and result checked at run time."""
    names = getattr(inspect.unwrap(function), "__globals__", {}) if isinstance(function, Callable) else {}
    module = names.get("__name__", "")
    if module.startswith(COMPLETED) and module not in _completed:
        _completed.add(module)
        _import_for_type_checkers(names)
    return _check(function)


def _import_for_type_checkers(names: dict[str, Any]) -> None:
    """Make the imports of a module's `if TYPE_CHECKING:` block."""
    tree = ast.parse(Path(names["__file__"]).read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            code = compile(ast.Module(node.body, []), names["__file__"], "exec")
            exec(code, names)
