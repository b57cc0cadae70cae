"""The types of settings' values, and the base of their sections."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from cpulm.units import LONGEST, parse_duration

LARGEST = 10**15
"""The largest count: floats, which some counts are converted to, are exact only up to 2^53."""
LARGEST_FIGURE = 1e6
"""The largest norm and loss."""
WIDEST = 1 << 20
"""The largest width and the longest block: far beyond what a machine holds."""
LARGEST_VOCABULARY = 1 << 24
"""The largest vocabulary: more than all words of all languages."""
_SMALLEST = 1e-30
"""The smallest number above 0: fp32 rounds smaller products to 0."""


def as_list(value: Any) -> Any:
    """Convert one text or path, or several, to a list of texts."""
    values = [value] if isinstance(value, (str, Path)) else value
    if not isinstance(values, (list, tuple)):
        return values
    return [str(item) if isinstance(item, Path) else item for item in values]


def _as_seconds(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


def _as_moment(value: Any) -> Any:
    """Convert to ISO 8601 with the offset from UTC; a YAML reader may already give a datetime."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be a date and a time such as 2026-05-01T07:00:00+02:00") from None
    if not isinstance(value, datetime):
        return value
    return (value.astimezone() if value.tzinfo is None else value).isoformat()


Sources = Annotated[list[str], BeforeValidator(as_list)]
WeightOfText = Annotated[float, Field(gt=0, le=1000)]
Seconds = Annotated[float, Field(gt=0, lt=LONGEST), BeforeValidator(_as_seconds)]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"}), BeforeValidator(_as_moment)]


class Section(BaseModel):
    """Base of the sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_a_plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        if isinstance(value, float) and 0 < abs(value) < _SMALLEST:
            raise ValueError(f"must be 0 or at least {_SMALLEST:g}: arithmetic in fp32 makes it 0")
        return value
