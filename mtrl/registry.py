"""Classes by name: what a name stands for, which options it takes, and names of the form ``module:Class``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from mtrl.config import nearest
from mtrl.values import fitting, words

T = TypeVar("T")
_trusted: set[str] = set()


def trust(name: str) -> str:
    """Let a module be imported and what is in it be called, or this one ``module:name``: a person named it, not a file.

    Returns it.
    """
    _trusted.add(name)
    return name


def require_trusted(name: str, called: bool = False) -> None:
    """Raise ValueError unless something of the module of ``module:Class`` is trusted, or it is imported already.

    Args:
        called: it is a function that will be called; then the module or the function itself has to be trusted, for
            ``sys:exit`` is imported already.
    """
    module = name.partition(":")[0]
    imported = module in sys.modules or module in {trusted.partition(":")[0] for trusted in _trusted}
    if not (name in _trusted or module in _trusted or (imported and not called)):
        raise ValueError(
            f"{name!r} needs the module {module}, which no file may import; add --import {module} to trust it"
        )


def import_options(names: Iterable[str]) -> str:
    """`` --import MODULE`` for each module that some of these names are of: what a command line has to allow."""
    own = [name for name in names if ":" in name and not name.startswith("torchjd:")]
    return "".join(f" --import {module}" for module in dict.fromkeys(name.partition(":")[0] for name in own))


def find(name: str, known: Mapping[str, type[T]], base: type[T], what: str, *more: str) -> type[T]:
    """The class that a name stands for: one of ``known``, or ``module:Class`` of one's own.

    A module is imported from the current folder too, after everywhere else, and only if it is imported already or was
    given to :func:`trust`: no file runs code by naming a module.

    Args:
        what: the kind of class, for an error.
        more: further forms of a name, for an error.

    Raises:
        ValueError: there is no such name, module or class, or it is no ``base``. One line.
    """
    if name in known:
        return known[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        valid = ", ".join((*known, *more, "module:Class"))
        raise ValueError(f"no {what} {name!r}{nearest(name.lower(), known)}; there are {valid}")
    require_trusted(name)
    sys.path.append(os.getcwd())
    try:
        there = vars(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # whatever a module raises when it is imported
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name!r}: the module {module} cannot be imported ({detail})") from None
    finally:
        sys.path.remove(os.getcwd())
    classes = {key: item for key, item in there.items() if isinstance(item, type) and issubclass(item, base)}
    if attribute not in classes:
        own = [key for key, item in classes.items() if item.__module__ == module]
        told = f"; it has {', '.join(own)}" if own else ""
        raise ValueError(f"{name!r}: {module} has no {base.__name__} called {attribute!r}{told}")
    return classes[attribute]


def options_of(cls: type, own: tuple[str, ...]) -> dict[str, Any]:
    """The options of a class and their defaults: its constructor's named parameters but ``self`` and ``own``."""
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    return {
        name: p.default
        for name, p in parameters.items()
        if name not in ("self", *own) and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


class OptionError(ValueError):
    """What to say after a class's name of an ``option`` that it does not take as it is given."""

    def __init__(self, option: str, text: str) -> None:
        super().__init__(text)
        self.option = option


def checked(cls: type, own: tuple[str, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a class's constructor declares them.

    Raises:
        OptionError: there is no such option, or the value is of another type.
    """
    known, hints = options_of(cls, own), get_type_hints(cls.__init__)  # type: ignore[misc]
    taken: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            valid = f"its options are {', '.join(known)}" if known else "it has none"
            raise OptionError(option, f" has no option {option!r}{nearest(option, known)}: {valid}")
        hint = hints.get(option, tuple if isinstance(known[option], tuple) else Any)
        found = fitting(hint, value)
        if not found:
            raise OptionError(option, f": {option} = {value!r} is not valid: must be {words(hint)}")
        taken[option] = found[0]
    return taken
