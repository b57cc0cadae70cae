"""The sources of settings, and their order of precedence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpulm.errors import SettingsError
from cpulm.preset_files import preset_names
from cpulm.settings import HORIZONS, Settings
from cpulm.settings.resolve_settings import known_keys, load_preset, nearest, resolve


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# Precedence ------------------------------------------------------------------------------------------------


def first_change(preset: str) -> tuple[str, str, Any]:
    """Section, key and value of the first setting that a preset changes."""
    layer, _ = load_preset(preset)
    for section, inside in layer.items():
        for key, value in inside.items():
            if value != known_keys()[f"{section}.{key}"]:
                return section, key, value
    raise AssertionError(f"{preset} changes nothing")


def test_a_preset_overrides_the_defaults() -> None:
    section, key, value = first_change("tiny")
    settings = resolve(preset="tiny")
    assert getattr(getattr(settings, section), key) == value
    assert settings.preset == "tiny"


def test_a_file_overrides_the_preset(tmp_path: Path) -> None:
    config = write(tmp_path, "model: {n_layer: 11}\ntrain:\n")
    settings = resolve(preset="tiny", config=config)
    assert settings.model.n_layer == 11
    assert settings.model.n_embd == resolve(preset="tiny").model.n_embd


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = write(tmp_path, "train: {lr: 0.1, seed: 1}")
    settings = resolve(config=config, environ={"CPULM_TRAIN__LR": "0.2"})
    assert (settings.train.lr, settings.train.seed) == (0.2, 1)


def test_a_wrong_value_of_the_environment_names_the_variable() -> None:
    wrong = {"CPULM_TRAIN__LR": "abc"}
    with pytest.raises(SettingsError, match=r"must be a number \(in the environment: CPULM_TRAIN__LR\)$"):
        resolve(environ=wrong)
    with pytest.raises(SettingsError, match=r"^train\.lr = 'x': must be a number$"):
        resolve(environ=wrong, assignments=["train.lr=x"])


def test_an_assignment_overrides_the_environment() -> None:
    environ = {"CPULM_TRAIN__LR": "0.2", "CPULM_TRAIN__SEED": "2"}
    settings = resolve(environ=environ, assignments=["train.lr=0.3"])
    assert (settings.train.lr, settings.train.seed) == (0.3, 2)


def test_a_flag_overrides_an_assignment() -> None:
    flags = {"train.lr": 0.4, "train.seed": None}
    settings = resolve(assignments=["train.lr=0.3", "train.seed=3"], flags=flags)
    assert (settings.train.lr, settings.train.seed) == (0.4, 3)


def test_of_two_assignments_the_last_wins() -> None:
    assert resolve(assignments=["train.lr=0.3", "train.lr=0.5"]).train.lr == 0.5


def test_a_flag_overrides_everything(tmp_path: Path) -> None:
    settings = resolve(
        preset="tiny",
        config=write(tmp_path, "model: {n_layer: 2}"),
        environ={"CPULM_MODEL__N_LAYER": "3"},
        assignments=["model.n_layer=5"],
        flags={"model.n_layer": 7},
    )
    assert settings.model.n_layer == 7


def test_one_layer_over_another_leaves_the_preset_as_it_was(tmp_path: Path) -> None:
    before = load_preset("tiny")
    resolve(preset="tiny", config=write(tmp_path, "model: {n_layer: 11}"), assignments=["train.steps=1"])
    assert load_preset("tiny") == before


# Horizons --------------------------------------------------------------------------------------------------


def horizons(settings: Settings) -> dict[str, float]:
    return {name: value for name in HORIZONS if (value := getattr(settings.train, name)) is not None}


def test_a_horizon_replaces_those_of_the_layers_below(tmp_path: Path) -> None:
    config = write(tmp_path, "train: {max_time: 8h}")
    environ = {"CPULM_TRAIN__TOKENS": "1000"}
    assignments = ["train.epochs=2"]
    assert horizons(resolve(config=config)) == {"max_time": 28800.0}
    assert horizons(resolve(config=config, environ=environ)) == {"tokens": 1000}
    assert horizons(resolve(config=config, environ=environ, assignments=assignments)) == {"epochs": 2.0}
    flags = {"train.steps": 9, "train.max_time": None}
    assert horizons(resolve(config=config, assignments=assignments, flags=flags)) == {"steps": 9}


def test_another_setting_leaves_the_horizon_alone(tmp_path: Path) -> None:
    config = write(tmp_path, "train: {steps: 5}")
    assert horizons(resolve(config=config, assignments=["train.lr=0.1"])) == {"steps": 5}


def test_a_horizon_can_be_taken_away(tmp_path: Path) -> None:
    config = write(tmp_path, "train: {steps: 5}")
    assert horizons(resolve(config=config, assignments=["train.steps=null"])) == {}


@pytest.mark.parametrize(
    "layer",
    [
        {"assignments": ["train.steps=5", "train.epochs=1"]},
        {"flags": {"train.steps": 5, "train.epochs": 1.0}},
        {"environ": {"CPULM_TRAIN__STEPS": "5", "CPULM_TRAIN__EPOCHS": "1"}},
    ],
)
def test_two_horizons_in_one_layer_are_an_error(layer: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"2 horizons \(steps, epochs\)"):
        resolve(preset="tiny", **layer)


# The environment -------------------------------------------------------------------------------------------


def test_the_environment_is_read_by_prefix_and_section() -> None:
    environ = {
        "CPULM_TRAIN__MAX_TIME": "90min",
        "CPULM_LOG__TENSORBOARD": "true",
        "CPULM_TRAIN__SEED": "",
        "CPULM_DEBUG": "1",
        "CPULM_CACHE": "/somewhere",
        "TRAIN__LR": "7",
        "PATH": "/bin",
    }
    settings = resolve(environ=environ)
    assert settings.train.max_time == 5400.0
    assert settings.log.tensorboard is True
    assert settings.train.seed == Settings().train.seed
    assert settings.train.lr == Settings().train.lr


def test_lower_case_is_the_same_variable() -> None:
    assert resolve(environ={"cpulm_train__lr": "0.5"}).train.lr == 0.5


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CPULM_TRIAN__LR", "did you mean train?"),
        ("CPULM_TRAIN__LRR", "did you mean train.lr?"),
        ("CPULM_TRAIN_LR", "did you mean CPULM_TRAIN__LR?"),
        ("cpulm_data_val_fraction", "did you mean CPULM_DATA__VAL_FRACTION?"),
    ],
)
def test_a_misspelt_variable_is_named(name: str, hint: str) -> None:
    with pytest.raises(SettingsError, match=name) as raised:
        resolve(environ={name: "1"})
    assert raised.value.hint == hint


def test_other_variables_of_that_prefix_are_no_settings() -> None:
    assert resolve(environ={"CPULM_CACHE": "/tmp", "CPULM_DEBUG": "1", "CPULM_MODEL_ZOO": "x"}) == Settings()


# --set -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.lr=3e-4", 3e-4),
        ("train.grad_clip=3E4", 3e4),
        ("train.lr=.5", 0.5),
        ("train.lr = 1", 1.0),
        ("train.steps=1_000_000", 1_000_000),
        ("train.steps=1e3", 1000),
        ("train.steps=010", 10),
        ("train.steps=null", None),
        ("train.max_time=8h", 28800.0),
        ("model.qk_norm=false", False),
        ("log.tensorboard=true", True),
        ("runtime.compile=on", "on"),
        ("runtime.compile=off", "off"),
        ("runtime.compile='on'", "on"),
        ("data.source=a.txt", ["a.txt"]),
        ("data.source=[a.txt, 'b, c.txt']", ["a.txt", "b, c.txt"]),
        ("data.source=2024", ["2024"]),
        ("data.field=null", "null"),
        ("data.field=yes", "yes"),
        ("sample.prompt=", ""),
        ("sample.prompt=007", "007"),
        ("sample.prompt=def f(x): # {", "def f(x): # {"),
        ("sample.prompt= a = b", " a = b"),
        (r'sample.prompt="a\nb"', "a\nb"),
        ("sample.prompt='it''s'", "it's"),
        ("sample.prompt='tis", "'tis"),
        ("data.tokenizer=C:\\texts\\tokenizer.json", "C:\\texts\\tokenizer.json"),
        ("train.teacher=null", None),
        ("train.teacher=~", None),
        ("train.teacher=123", "123"),
        ("train.teacher=runs/a #2", "runs/a #2"),
        ("train.teacher=a: b", "a: b"),
        ("train.init_from=[a", "[a"),
        ("train.init_from='null'", "null"),
    ],
)
def test_values_of_assignments(assignment: str, value: object) -> None:
    section, _, key = assignment.partition("=")[0].strip().partition(".")
    assert getattr(getattr(resolve(assignments=[assignment]), section), key) == value


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        ("train.lr", "not of the form key=value", "--set train.lr=3e-4"),
        ("=3", "not of the form key=value", "--set train.lr=3e-4"),
        ("lr=3", "there is no setting 'lr'", "did you mean train.lr?"),
        ("every=3", "there is no setting 'every'", "did you mean eval.every or checkpoint.every?"),
        ("train=3", "there is no setting 'train'", "train"),
        ("train.lr.x=3", "there is no setting 'train.lr.x'", "train.lr"),
        ("train.learning_rate=3", "'train.learning_rate'", "train"),
        ("model.n_layers=3", "'model.n_layers'", "did you mean model.n_layer?"),
        ("preset=small", "cannot choose a preset", "--preset"),
        ("train.lr=[", "cannot read the value '['", "Peak learning rate"),
        ("train.lr=", "train.lr = ''", "Peak learning rate"),
        ("train.lr=true", "train.lr = True", "Peak learning rate"),
        ("train.max_time=1:30", "train.max_time = '1:30': this is not a duration", "8h"),
        ("train.steps=" + "9" * 5000, "train.steps", "optimizer updates"),
    ],
)
def test_assignments_that_cannot_be_read(assignment: str, message: str, hint: str) -> None:
    with pytest.raises(SettingsError) as raised:
        resolve(assignments=[assignment])
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"train\.lrr"):
        resolve(flags={"train.lrr": 1})


# Files -----------------------------------------------------------------------------------------------------


def test_a_file_is_yaml_without_its_traps(tmp_path: Path) -> None:
    text = "\ufeffruntime: {compile: on, precision: fp32}\ntrain: {lr: 3e-4, steps: 010}\ndata: {field: 'no'}"
    settings = resolve(config=write(tmp_path, text))
    assert settings.runtime.compile == "on"
    assert (settings.train.lr, settings.train.steps) == (3e-4, 10)
    assert settings.data.field == "no"


def test_a_copied_preset_is_a_file_of_settings(tmp_path: Path) -> None:
    config = write(tmp_path, "about: {title: mine, time: long}\nmodel: {n_layer: 3}")
    assert resolve(config=config).model.n_layer == 3


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert resolve(config=write(tmp_path, "# nothing\n")) == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: [}", "my.yaml is not valid YAML: in line 1"),
        ("train:\n  lr: 1\n  lr: 2\n", "not valid YAML: in line 3: 'lr' is given twice"),
        ("train: {lr: 1}\nmodel: {}\ntrain: {seed: 1}\n", "line 3: 'train' is given twice"),
        ("- train\n", "my.yaml does not contain sections"),
        ("5: 6\n", "my.yaml does not contain sections"),
        ("train: 5\n", "my.yaml: train is a section of settings, not 5"),
        ("train: {lrr: 5}\n", "my.yaml: there is no setting 'train.lrr'"),
        ("trian: {lr: 5}\n", "my.yaml: there is no setting 'trian'"),
        ("train: {5: 5}\n", "my.yaml: there is no setting 'train.5'"),
        ("preset: tinny\n", "there is no preset 'tinny'"),
        ("preset: [5]\n", "there is no preset"),
        ("train: {seed: " + "9" * 5000 + "}\n", "my.yaml is not valid YAML"),
    ],
)
def test_a_file_that_is_not_one_of_settings_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        resolve(config=write(tmp_path, text))
    assert message in raised.value.message
    assert raised.value.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: No such file"):
        resolve(config=tmp_path / "nowhere.yaml")
    with pytest.raises(SettingsError, match="cannot read settings from"):
        resolve(config=tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00train")
    with pytest.raises(SettingsError, match=r"binary\.yaml is not valid YAML"):
        resolve(config=tmp_path / "binary.yaml")


# Presets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_has_a_horizon(name: str) -> None:
    settings = resolve(preset=name)
    assert settings.preset == name
    assert len(horizons(settings)) == 1
    _, about = load_preset(name)
    assert str(about["title"]).strip()


def test_the_presets_that_the_readme_promises_are_there() -> None:
    assert {"tiny", "small", "medium", "large"} <= set(preset_names())


@pytest.mark.parametrize(("name", "near"), [("tinny", "tiny"), ("nanogpt", "nanogpt-char"), ("TINY", "tiny")])
def test_a_misspelt_preset_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(SettingsError, match=f"there is no preset {name!r}") as raised:
        resolve(preset=name)
    assert near in raised.value.hint


@pytest.mark.parametrize("name", ["../presets/tiny", "tiny.yaml", "."])
def test_a_preset_is_a_name_and_not_a_path(name: str) -> None:
    with pytest.raises(SettingsError, match="there is no preset"):
        resolve(preset=name)


def test_a_file_may_name_the_preset_that_it_builds_on(tmp_path: Path) -> None:
    config = write(tmp_path, "preset: tiny\nmodel: {n_layer: 3}")
    settings = resolve(config=config)
    tiny = resolve(preset="tiny")
    assert settings.model.n_layer == 3
    assert settings.train == tiny.train
    assert settings.preset == "tiny"
    assert resolve(preset="nano", config=config).preset == "nano"


def test_the_nearest_word() -> None:
    assert nearest("tinny", ["small", "tiny"]) == "did you mean tiny?"
    assert nearest("zzz", ["small", "tiny"]) == "known: small, tiny"
