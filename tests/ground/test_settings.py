"""The settings: limits, invalid combinations, and their page in the docs."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cpulm.errors import SettingsError
from cpulm.settings import HORIZONS, ModelSettings, Settings, TrainSettings, changed
from cpulm.settings.resolve_settings import known_keys, replaced, validate

ROOT = Path(__file__).parents[2]
SECTIONS = {name: spec.default for name, spec in Settings.model_fields.items() if name != "preset"}


def test_every_setting_and_every_section_says_what_it_means() -> None:
    for name, section in SECTIONS.items():
        assert isinstance(section, BaseModel)
        assert (section.__doc__ or "").strip(), name
        for key, spec in type(section).model_fields.items():
            assert (spec.description or "").strip(), f"{name}.{key}"


def test_the_defaults_are_valid_and_have_no_horizon() -> None:
    settings = validate({})
    assert settings == Settings()
    assert [getattr(settings.train, name) for name in HORIZONS] == [None] * len(HORIZONS)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"n_embd": 385}, "n_embd (385) is not divisible by n_head (6)"),
        ({"n_head": 6, "n_kv_head": 4}, "n_head (6) is not divisible by n_kv_head (4)"),
        ({"n_head": 2, "n_kv_head": 4}, "n_head (2) is not divisible by n_kv_head (4)"),
        ({"n_embd": 30, "n_head": 6}, "rope needs an even head width, not 5"),
        ({"head_dim": 7}, "rope needs an even head width, not 7"),
        ({"n_embd": 15, "n_head": 3, "position": "sinusoidal"}, "even n_embd, not 15"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        validate({"model": model})
    assert message in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    "model", [{"n_embd": 30, "n_head": 6, "position": "learned"}, {"n_embd": 100, "head_dim": 32}]
)
def test_shapes_that_fit_are_taken(model: dict[str, Any]) -> None:
    assert validate({"model": model}).model.n_embd == model["n_embd"]


def test_widths_that_are_not_given_follow_from_the_others() -> None:
    model = ModelSettings(n_embd=384, n_head=6)
    assert (model.kv_heads, model.head_width, model.inner_width) == (6, 64, 1024)
    assert ModelSettings(n_embd=100, n_head=5).inner_width == 288
    assert ModelSettings(n_embd=384, n_head=6, mlp="gelu").inner_width == 1536
    given = ModelSettings(n_embd=384, n_head=6, n_kv_head=2, head_dim=32, n_inner=999)
    assert (given.kv_heads, given.head_width, given.inner_width) == (2, 32, 999)


def test_tokens_per_step() -> None:
    values = {"model": {"block_size": 128}, "train": {"micro_batch_size": 3, "grad_accum_steps": 4}}
    assert validate(values).tokens_per_step == 1536


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "lr", 0),
        ("train", "lr", True),
        ("train", "lr", float("nan")),
        ("train", "lr", float("inf")),
        ("train", "lr", "fast"),
        ("train", "lr", None),
        ("train", "steps", 0),
        ("train", "steps", 1.5),
        ("train", "steps", 10**30),
        ("train", "seed", 2**32),
        ("train", "max_time", "8 parsecs"),
        ("train", "max_time", -1),
        ("train", "optimizer", "sgd"),
        ("model", "dropout", 1),
        ("model", "n_layer", False),
        ("data", "source", []),
        ("data", "source", [1]),
        ("data", "field", True),
        ("data", "vocab_size", 1),
        ("checkpoint", "every", 0),
        ("log", "tensorboard", "perhaps"),
    ],
)
def test_a_value_beyond_its_limits_is_named_with_its_key(section: str, key: str, value: object) -> None:
    with pytest.raises(SettingsError) as raised:
        validate({section: {key: value}})
    assert f"{section}.{key}" in raised.value.message
    assert f"{section}.{key}: " in raised.value.hint or raised.value.hint.startswith("known: ")
    assert "pydantic" not in raised.value.message


WORST: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x" * 200,
    "1e3",
    b"\xff",
]
WORST += [[], [1], {}, object]


@pytest.mark.parametrize("key", [key for key in known_keys() if "." in key])
def test_a_refusal_is_in_our_own_words_and_names_the_setting(key: str) -> None:
    """Every kind of complaint of the library that validates is translated."""
    section, name = key.split(".")
    refused = [error for value in WORST if (error := refusal({section: {name: value}}))]
    assert refused
    for error in refused:
        assert name in error.message
        assert not re.search(r"[Ii]nput|valid|parse|pydantic|fractional|isoformat", error.message)
        assert "cannot be used here" not in error.message
        assert len(error.message) < 300
        assert error.hint


def refuses_text(key: str) -> bool:
    section, name = key.split(".")
    return "number" in str(refusal({section: {name: "a"}}))


def refusal(values: dict[str, Any]) -> SettingsError | None:
    try:
        validate(values)
    except SettingsError as error:
        return error
    return None


NUMBERS = [key for key in known_keys() if "." in key and refuses_text(key)]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [10**30, 1e300, math.nan, math.inf, -math.inf, -1e300])
def test_no_number_is_without_limits(key: str, value: float) -> None:
    section, name = key.split(".")
    assert refusal({section: {name: value}}), f"{key} = {value}"


def test_a_number_that_fp32_makes_zero_is_refused() -> None:
    # fp64 has it as a normal number: a denormal one is 0 already, once torch flushes them in this process.
    with pytest.raises(SettingsError, match=r"train\.lr = 1e-60: .*at least 1e-30"):
        validate({"train": {"lr": 1e-60}})


def test_an_update_has_no_more_tokens_than_can_be_counted() -> None:
    most = {"micro_batch_size": 1 << 20, "grad_accum_steps": 1 << 20}
    assert refusal({"train": most}) is None
    assert "can be counted" in str(refusal({"train": most, "model": {"block_size": 1 << 20}}))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("train.lr", -1, "train.lr = -1: must be greater than 0"),
        ("train.steps", 0, "train.steps = 0: must be at least 1"),
        ("train.steps", 1.5, "train.steps = 1.5: must be a whole number"),
        ("train.steps", "x", "train.steps = 'x': must be a whole number"),
        ("train.lr", "fast", "train.lr = 'fast': must be a number"),
        ("train.lr", float("inf"), "train.lr = inf: must be a finite number"),
        ("train.seed", 2**32, "train.seed = 4294967296: must be at most 4,294,967,295"),
        ("model.dropout", 1, "model.dropout = 1: must be less than 1"),
        ("model.bias", "maybe", "model.bias = 'maybe': must be true or false"),
        ("data.field", 3, "data.field = 3: must be text"),
        (
            "distributed.rendezvous",
            "alpha:99999",
            "distributed.rendezvous = 'alpha:99999': must be HOST:PORT with a port of 1 to 65535, such as "
            "192.168.1.5:29400",
        ),
        ("data.source", [], "data.source = []: must not be empty"),
        ("train.optimizer", "sgd", "train.optimizer = 'sgd': must be one of muon, adamw"),
    ],
)
def test_what_a_value_must_be_is_said_plainly(key: str, value: object, reason: str) -> None:
    section, name = key.split(".")
    with pytest.raises(SettingsError) as raised:
        validate({section: {name: value}})
    assert raised.value.message == reason


def test_other_values_of_settings_that_are_there_are_checked_alike() -> None:
    settings = Settings()
    assert replaced(settings, {"train.steps": 5, "runtime.nice": None}).train.steps == 5
    with pytest.raises(SettingsError, match=r"train\.steps = 0: must be at least 1"):
        replaced(settings, {"train.steps": 0})


@pytest.mark.parametrize("sign", [1, "8h", "90min"])
def test_durations_are_kept_in_seconds(sign: str | float) -> None:
    expected = {1: 1.0, "8h": 28800.0, "90min": 5400.0}[sign]
    assert validate({"train": {"max_time": sign}}).train.max_time == expected


def test_one_source_is_a_list_of_one() -> None:
    assert validate({"data": {"source": "a.txt"}}).data.source == ["a.txt"]
    assert validate({"data": {"source": Path("a.txt")}}).data.source == ["a.txt"]
    assert validate({"data": {"source": [Path("a.txt"), "b"]}}).data.source == ["a.txt", "b"]


def test_two_horizons_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"train has 2 horizons \(steps, max_time\); keep one"):
        validate({"train": {"steps": 5, "max_time": "8h"}})


def test_a_wrong_word_names_the_nearest_right_one() -> None:
    with pytest.raises(SettingsError) as raised:
        validate({"train": {"optimizer": "adam"}})
    assert raised.value.hint == "did you mean adamw?"


@pytest.mark.parametrize(
    ("values", "key", "hint"),
    [
        ({"train": {"learning_rte": 1}}, "train.learning_rte", "train"),
        ({"train": {"lrr": 1}}, "train.lrr", "did you mean train.lr?"),
        ({"modle": {}}, "modle", "did you mean model?"),
        ({"zzz": {}}, "zzz", "cpulm train --print-config"),
    ],
)
def test_unknown_keys_are_errors(values: dict[str, Any], key: str, hint: str) -> None:
    with pytest.raises(SettingsError) as raised:
        validate(values)
    assert f"there is no setting {key!r}" in raised.value.message
    assert hint in raised.value.hint


def test_settings_do_not_change_in_place() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        setattr(settings.train, "lr", 1.0)  # noqa: B010 - mypy refuses the plain form, as it should


def test_changed_makes_a_copy_and_checks_it() -> None:
    train = TrainSettings(lr=1e-3, seed=7)
    assert changed(train, lr=2e-3) == TrainSettings(lr=2e-3, seed=7)
    assert train.lr == 1e-3
    with pytest.raises(ValidationError):
        changed(train, lr=-1)


def test_known_keys_are_all_keys() -> None:
    keys = known_keys()
    assert keys["train.lr"] == TrainSettings().lr
    assert keys["data.source"] == ["builtin:python"]
    assert set(keys) == {"preset"} | {
        f"{name}.{key}" for name, section in SECTIONS.items() for key in type(section).model_fields
    }


def test_the_page_of_the_docs_is_current() -> None:
    """Mend a failure with ``python docs/generate_settings.py``."""
    program = "import generate_settings as g; print(g.page() == g.PAGE.read_text(encoding='utf-8'))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['docs', '.']; {program}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [key for key in known_keys() if f"| `{key}` |" not in page] == ["preset"]
