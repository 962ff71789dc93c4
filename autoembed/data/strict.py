"""The base of what is read from a file: frozen, and an unknown key is an error that names the allowed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from autoembed.errors import DataError, first_line


def with_new_names(values: object, renamed: Mapping[str, str]) -> object:
    """The values under the names that keys have today; `renamed` maps earlier ones, which stored files keep."""
    if not isinstance(values, Mapping):
        return values
    for old, new in renamed.items():
        if old in values and new in values:
            raise ValueError(f"{old} is the earlier name of {new}: give one of them")
    return {renamed.get(key, key): value for key, value in values.items()}


class StrictModel(BaseModel):
    """A frozen pydantic model whose error for an unknown key says which keys exist."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def checked(cls, values: Mapping[str, object]) -> Self:
        """The model of these values; DataError with the first rule that they break."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise DataError(first_line(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: object) -> object:
        if isinstance(values, dict):
            strange = sorted(str(key) for key in values if key not in cls.model_fields)
            if strange:
                allowed = ", ".join(sorted(cls.model_fields))
                raise ValueError(f"unknown key {', '.join(map(repr, strange))}: must be one of {allowed}")
        return values
