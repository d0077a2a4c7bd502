# SPDX-License-Identifier: GPL-2.0-or-later
"""Our records as JSON and back, by cattrs.

What is read was written by another process, perhaps by an earlier memhp or on another machine: a value of another type
than the declared one is refused, never converted. A range is written as [start, end], in a row of other things
as two of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints, overload

from cattrs import ClassValidationError, Converter, IterableValidationError
from cattrs.cols import is_mapping, list_structure_factory, mapping_structure_factory
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from harness.units import AddrRange

__all__ = ["Codec", "override"]

T = TypeVar("T")


class Codec(Converter):
    """A converter for the records of one kind of file: ``describe`` them, then ``dump`` and ``load``."""

    def __init__(self) -> None:
        super().__init__(unstruct_collection_overrides={tuple: list})
        for plain in (str, int, bool):
            self.register_structure_hook(plain, _exactly)
        self.register_structure_hook(
            float, lambda value, _: float(value if type(value) is int else _exactly(value, float))
        )
        self.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
        self.register_structure_hook(Path, lambda value, _: Path(_exactly(value, str)))
        self.register_unstructure_hook(Path, str)
        self.register_structure_hook_factory(lambda kind: kind is AddrRange, self._range)
        self.register_unstructure_hook(AddrRange, lambda found: [found.start, found.end])
        self.register_structure_hook_factory(_is_sequence, self._list)
        self.register_structure_hook_factory(is_mapping, self._mapping)
        self.register_structure_hook_factory(_is_row, self._row)
        self.register_unstructure_hook_factory(_is_row, self._flat)

    def describe(
        self,
        kind: type,
        *,
        since: Collection[str] = (),
        formerly: Mapping[str, str] | None = None,
        forbid_extra: bool = False,
        **fields: Any,
    ) -> None:
        """Every key of ``kind`` must be there, but those of the fields ``since``, which earlier files lack.

        ``formerly`` has keys of earlier files and what they are called now. ``fields`` are names or conversions other
        than the usual ones. What is unknown is skipped, unless ``forbid_extra``.
        """
        names = formerly or {}
        make: Any = make_dict_structure_fn
        write: Any = make_dict_unstructure_fn
        rules = {field.name: fields.get(field.name, override()) for field in dataclasses.fields(kind)}
        needed = [rule.rename or name for name, rule in rules.items() if name not in since and not rule.omit]

        # Made when it is needed for the first time: few of our commands read or write any of it.
        def reading(_: type) -> Any:
            read = make(kind, self, _cattrs_forbid_extra_keys=forbid_extra, **fields)

            def structure(value: Any, _: type) -> Any:
                if names:
                    value = {names.get(key, key): part for key, part in _exactly(value, dict).items()}
                found = read(_exactly(value, dict), kind)
                for name in needed:
                    if name not in value:
                        raise KeyError(name)
                return found

            return structure

        self.register_structure_hook_factory(lambda one: one is kind, reading)
        self.register_unstructure_hook_factory(lambda one: one is kind, lambda _: write(kind, self, **fields))

    def describe_row(self, kind: type) -> None:
        """``kind`` is written as a list of its fields."""

        def row() -> Any:
            hints = get_type_hints(kind)
            return tuple[tuple(hints[field.name] for field in dataclasses.fields(kind))]  # type: ignore[misc]

        def reading(_: type) -> Any:
            read = self.get_structure_hook(row())
            return lambda value, _: kind(*read(value, None))

        def writing(_: type) -> Any:
            names = [field.name for field in dataclasses.fields(kind)]
            write = self.get_unstructure_hook(row())
            return lambda value: write([getattr(value, name) for name in names])

        self.register_structure_hook_factory(lambda one: one is kind, reading)
        self.register_unstructure_hook_factory(lambda one: one is kind, writing)

    def dump(self, value: Any, kind: Any = None) -> Any:
        """``value``, which is declared to be of ``kind``, as what JSON can tell."""
        return self.unstructure(value, kind)

    @overload
    def load(self, value: Any, kind: type[T]) -> T: ...

    @overload
    def load(self, value: Any, kind: Any) -> Any: ...

    def load(self, value: Any, kind: Any) -> Any:
        """``value``, from JSON, as a ``kind``; raises KeyError, TypeError, ValueError with the path to the fault."""
        try:
            return self.structure(value, kind)
        except (ClassValidationError, IterableValidationError) as group:
            raise _first(group) from None

    def _range(self, kind: Any) -> Any:
        read = self.get_structure_hook(tuple[int, int])
        return lambda value, _: AddrRange(*read(value, kind))

    def _list(self, kind: Any) -> Any:
        """cattrs would take text and objects as well."""
        read, made = list_structure_factory(kind, self), get_origin(kind)
        return lambda value, _: made(read(_exactly(value, list), kind))

    def _mapping(self, kind: Any) -> Any:
        read = mapping_structure_factory(kind, self)
        return lambda value, _: read(_exactly(value, dict), kind)

    def _row(self, kind: Any) -> Any:
        kinds = get_args(kind)
        width = len(kinds) + kinds.count(AddrRange)
        hooks = [(one, self.get_structure_hook(one)) for one in kinds]

        def read(value: Any, _: Any) -> Any:
            if len(_exactly(value, list)) != width:
                raise ValueError(f"{str(value)[:40]} does not have {width} parts")
            parts = iter(value)
            return tuple(
                hook([next(parts), next(parts)] if one is AddrRange else next(parts), one) for one, hook in hooks
            )

        return read

    def _flat(self, kind: Any) -> Any:
        hooks = [(one, self.get_unstructure_hook(one)) for one in get_args(kind)]

        def write(row: Any) -> Any:
            parts = ((one, hook(part)) for part, (one, hook) in zip(row, hooks, strict=True))
            return [piece for one, part in parts for piece in (part if one is AddrRange else [part])]

        return write


def _is_row(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is not Ellipsis


def _is_sequence(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list)


def _exactly(value: Any, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} is not of the type {kind.__name__}")
    return value


def _first(error: Exception) -> Exception:
    """The first of all that is wrong, with the path to it, as the exception that it would be without one."""
    path = ""
    while isinstance(error, ClassValidationError | IterableValidationError):
        group, error = error, error.exceptions[0]
        for note in getattr(error, "__notes__", ()):
            if isinstance(group, ClassValidationError) and hasattr(note, "name"):
                path += f".{note.name}"
            elif hasattr(note, "index"):
                path += f"[{note.index}]"
    path = path.removeprefix(".")
    if isinstance(error, KeyError):
        key = f".{error.args[0]}"
        return KeyError(f"{f'.{path}'.removesuffix(key)}{key}".lstrip("."))
    kind = type(error) if isinstance(error, TypeError | ValueError) else ValueError
    return kind(f"{path}: {error}" if path else str(error))
