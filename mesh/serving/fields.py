"""Typed reading of one JSON object: what does not fit is refused by the field's path, never by its value."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mesh.errors import Code, MeshError, field_path

Document = Mapping[str, object]
"""A decoded body: what `json` makes of an object."""


class Fields:
    """One object and where it stands in the body. A field that is null counts as not given."""

    __slots__ = ("_steps", "_values")

    def __init__(self, values: Document, *steps: str | int) -> None:
        self._values = values
        self._steps = steps

    def path(self, *steps: str | int) -> str:
        """The path of something within."""
        return field_path(*self._steps, *steps)

    def invalid(self, hint: str, *steps: str | int) -> MeshError:
        """A value that is not valid; `hint` says what is."""
        return MeshError(Code.INVALID_PARAMETER, param=self.path(*steps), hint=hint)

    def unsupported(self, *steps: str | int) -> MeshError:
        """A parameter, or a value of it, that the mesh does not do."""
        return MeshError(Code.UNSUPPORTED_PARAMETER, param=self.path(*steps))

    def only(self, known: Collection[str]) -> None:
        """Refuses the first field that is not known.

        Raises:
            MeshError: UNSUPPORTED_PARAMETER.
        """
        for name in self._values:
            if name not in known:
                raise self.unsupported(name)

    def get(self, name: str) -> object:
        """The value as it came; None if it is not given."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """A string.

        Raises:
            MeshError: INVALID_PARAMETER.
        """
        value = self._values.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self.invalid("It must be a string.", name)

    def flag(self, name: str) -> bool:
        """True or false; false if it is not given.

        Raises:
            MeshError: INVALID_PARAMETER.
        """
        value = self._values.get(name)
        if value is None or isinstance(value, bool):
            return value is True
        raise self.invalid("It must be true or false.", name)

    def integer(self, name: str, low: int, high: int | None = None) -> int | None:
        """A whole number from `low` to `high`, both included; `high` None means no bound.

        Raises:
            MeshError: INVALID_PARAMETER.
        """
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
            return value
        bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
        raise self.invalid(f"It must be a whole number {bounds}.", name)

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        """A number from `low` (left out with `above`) to `high`. NaN is in no range.

        Raises:
            MeshError: INVALID_PARAMETER.
        """
        value = self._values.get(name)
        if value is None:
            return None
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (low < value if above else low <= value)
            and value <= high
        ):
            return float(value)
        bounds = f"above {low:g} and up to {high:g}" if above else f"from {low:g} to {high:g}"
        raise self.invalid(f"It must be a number {bounds}.", name)

    def table(self, name: str) -> Fields | None:
        """An object within.

        Raises:
            MeshError: INVALID_PARAMETER.
        """
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, dict):
            return Fields(value, *self._steps, name)
        raise self.invalid("It must be an object.", name)
