"""One kind of error for a config that is not valid, on every road to it.

The strict dataclass behind configs checks a field's type whenever it is set, and calls the class's validators at
construction and at saving. Its own errors are no `ValueError`, and say the same over three lines.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, TypeVar, dataclass_transform

from ..library.upstream import StrictDataclassError
from .fields import says
from .messages import begun

ConfigClass = TypeVar("ConfigClass", bound=type)


class InvalidConfigError(StrictDataclassError, ValueError):
    """A field of a config that has the wrong type or a value that makes no model; both kinds of error in one."""


@dataclass_transform(
    kw_only_default=True, field_specifiers=(says,)
)  # a class of fields, as `@strict` makes it
def with_value_errors(config_class: ConfigClass) -> ConfigClass:
    """Decorate a `@strict` class so that what it refuses is an `InvalidConfigError` of one line."""

    def guarded(method: Any) -> Any:
        @wraps(method)
        def checked(self: Any, *args: Any) -> None:
            try:
                method(self, *args)
            except InvalidConfigError:
                raise
            except (
                StrictDataclassError,
                KeyError,
            ) as error:  # the library names missing rope settings by the latter
                cause = error.args[0] if isinstance(error, KeyError) else error.__cause__ or error
                reason = " ".join(str(cause).split())
                raise InvalidConfigError(f"{type(self).__name__}: {begun(reason, 500)}") from error

        return checked

    for name in ("__setattr__", "validate"):
        setattr(config_class, name, guarded(getattr(config_class, name)))
    return config_class
