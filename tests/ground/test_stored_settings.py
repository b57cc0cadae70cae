"""The settings that a run stores are the same settings with ``--config``."""

from __future__ import annotations

from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cpulm.preset_files import preset_names
from cpulm.settings import HORIZONS, Settings, settings_yaml
from cpulm.settings.resolve_settings import resolve, validate
from cpulm.yaml_file import read_yaml


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


TRAPS = [
    "3e-4",
    "08",
    "1_0",
    "on",
    "~",
    "null",
    "true",
    "1:30",
    "2024-01-01",
    ".inf",
    "=",
    "<<",
    " a",
    "- b",
    "#",
]
TEXTS = st.text(max_size=20) | st.sampled_from(TRAPS)
ZONES = st.sampled_from([timezone.utc, timezone(timedelta(hours=-3, minutes=-30))])
MOMENTS = st.datetimes(timezones=ZONES).map(lambda moment: moment.isoformat(timespec="seconds"))


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values within the limits that a setting's JSON schema gives."""
    if "anyOf" in schema:
        return st.one_of([values_of(part) for part in schema["anyOf"]])
    if schema.get("format") == "date-time":
        return MOMENTS
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "integer":
        return st.integers(schema["minimum"], schema.get("maximum"))
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        return st.floats(
            low,
            high,
            exclude_min="exclusiveMinimum" in schema,
            exclude_max="exclusiveMaximum" in schema,
            allow_infinity=False,
        ).filter(lambda value: not 0 < value < 1e-30)
    if kind == "array":
        return st.lists(values_of(schema["items"]), min_size=1, max_size=3)
    simple: dict[str, st.SearchStrategy[Any]] = {
        "boolean": st.booleans(),
        "string": TEXTS,
        "null": st.none(),
    }
    return simple[kind]


@st.composite
def any_settings(draw: st.DrawFn) -> Settings:
    """Settings of any kind whose shapes fit, with one horizon or none."""
    values: dict[str, Any] = {"preset": draw(st.sampled_from(["", *preset_names()]))}
    for name, spec in Settings.model_fields.items():
        if name != "preset":
            schemas = type(spec.default).model_json_schema()["properties"]
            values[name] = {key: draw(values_of(schema)) for key, schema in schemas.items()}
    kv_heads, width = draw(st.integers(1, 8)), draw(st.integers(1, 64))
    values["model"].update(n_kv_head=kv_heads, n_head=kv_heads * draw(st.integers(1, 4)), head_dim=2 * width)
    values["model"]["n_embd"] = 2 * draw(st.integers(1, 4096))
    values["train"]["grad_accum_steps"] = draw(st.integers(1, 8))
    values["data"]["encoding"] = draw(st.sampled_from(["utf-8", "cp1252", "utf-16", "shift_jis"]))
    values["data"]["weights"] = draw(st.sampled_from([[], [2.0] * len(values["data"]["source"])]))
    values["distributed"]["nodes"] = draw(st.sampled_from(["1", "2", "1:4"]))
    values["distributed"]["rendezvous"] = draw(
        st.sampled_from(["", "alpha", "192.168.1.5:29400", "[::1]:29400"])
    )
    values["train"]["outer_steps"] = draw(st.sampled_from([0, 30]))
    if not values["train"]["outer_steps"]:
        values["distributed"]["mode"] = "sync"
    if values["distributed"]["mode"] == "sync" and values["distributed"]["compression"] == "int2":
        values["distributed"]["compression"] = None
    values["train"]["records"] = values["train"]["records"] or values["data"]["chat"]
    values["lora"]["projections"] = draw(st.sampled_from([[], ["q", "v"]]))
    if not values["train"]["init_from"]:
        values["lora"]["rank"] = 0
    kept = draw(st.sampled_from(HORIZONS))
    values["train"].update({name: None for name in HORIZONS if name != kept})
    return validate(values)


@given(settings=any_settings())
@hypothesis_settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
def test_stored_settings_given_as_config_are_the_same_settings(tmp_path: Path, settings: Settings) -> None:
    assert resolve(config=write(tmp_path, settings_yaml(settings))) == settings


@pytest.mark.parametrize("text", TRAPS)
def test_text_that_looks_like_something_else_stays_text(tmp_path: Path, text: str) -> None:
    settings = validate({"data": {"field": text}})
    assert resolve(config=write(tmp_path, settings_yaml(settings))) == settings


def test_what_is_printed_is_what_is_read(tmp_path: Path) -> None:
    settings = resolve(preset="tiny", assignments=["train.lr=1e-5", r'sample.prompt="é\n\t漢"'])
    assert validate(read_yaml(write(tmp_path, settings_yaml(settings)))) == settings
