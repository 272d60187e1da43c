"""The run-time checker of annotations in tests: an int is a float, as type checkers have it (PEP 484).

A function without shapes in its annotations is checked by beartype alone: jaxtyping's wrapper, which compares the names
of axes, takes longer than many of these functions.
"""

import ast
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_completed: set[str] = set()
# Modules whose imports for type checkers are made here, so that their annotations can be read.
COMPLETED = ("kineograph.methods.", "kineograph.plan", "kineograph.models.unet.frame_attention")


_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Let jaxtyping's import hook decorate with `jaxtyped` below."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """Return the function, or class, checked at run time: with shapes by jaxtyping, without by beartype alone."""
    if function is None:
        return partial(jaxtyped, typechecker=typechecker)
    is_plain = inspect.isfunction(function) and not inspect.isgeneratorfunction(function)
    if is_plain and "<locals>" not in function.__qualname__ and not _has_shapes(function):
        return _check(function)  # which would keep alive what a nested function refers to
    return _jaxtyped(function, typechecker=typechecker)


def _has_shapes(function: Any) -> bool:
    """Return True for a function with an array's shape in its annotations, or one that cannot be read yet."""
    _complete(function)
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return True
    return any(map(_is_shape, hints.values()))


def _is_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_is_shape, hint if isinstance(hint, list) else get_args(hint)))


def checked(function: Any) -> Any:
    """Return the function, or class, with its arguments and result checked at run time."""
    _complete(function)
    return _check(function)


def _complete(function: Any) -> None:
    names = getattr(inspect.unwrap(function), "__globals__", {}) if isinstance(function, Callable) else {}
    module = names.get("__name__", "")
    if module.startswith(COMPLETED) and module not in _completed:
        _completed.add(module)
        _import_for_type_checkers(names)


def _import_for_type_checkers(names: dict[str, Any]) -> None:
    """Make the imports of a module's `if TYPE_CHECKING:` block."""
    tree = ast.parse(Path(names["__file__"]).read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            code = compile(ast.Module(node.body, []), names["__file__"], "exec")
            exec(code, names)
