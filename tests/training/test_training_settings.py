"""Settings files, overrides, and the messages for invalid ones."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from kineograph.errors import InputError
from kineograph.training import TrainingSettings, load_settings


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid")
    folder: str
    size: int = Field(64, ge=8)


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    data: list[Data] | None = None
    training: TrainingSettings = TrainingSettings()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def load(file: Path, text: str, *overrides: str) -> Whole:
    file.write_text(text)
    return load_settings(file, Whole, overrides)


def test_a_file_with_overrides(file: Path) -> None:
    text = "data: [{folder: films}]\ntraining:\n  learning_rate: 1e-4\n  mixed_precision: no\n  max_grad_norm: .inf\n"
    whole = load(file, text, "training.learning_rate=3e-4", "training.optimizer=muon", "training.lr_warmup_steps = 5")
    assert whole.data == [Data(folder="films")]
    assert whole.training.learning_rate == 3e-4
    assert whole.training.mixed_precision == "no"
    assert (whole.training.optimizer, whole.training.lr_warmup_steps) == ("muon", 5)
    assert load(file, "") == Whole() and load(file, "", "training.seed=3").training.seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {learning_rat: 1}", "training.learning_rat (here 1) is not a setting: did you mean learning_rate?"),
        ("data: [{folder: a, sizee: 3}]", "data.0.sizee (here 3) is not a setting: did you mean size?"),
        ("cheese: 1", "cheese (here 1) is not a setting: expected one of data, training"),
        ("training: {learning_rate: fast}", "training.learning_rate: expected a valid number, unable to parse string "),
        ("training: {learning_rate: -1}", "training.learning_rate: expected greater than 0, not -1"),
        ("training: {optimizer: sgd}", "training.optimizer: expected 'adamw' or 'muon', not 'sgd'"),
        ("training: {seed: yes}", "training.seed: expected a valid integer"),
        ("training: {max_train_steps: 1.5}", "training.max_train_steps: expected a valid integer"),
        ("data: [{size: 9}]", "data.0.folder is missing"),
        ("training: 3", "training: expected"),
        ("- training", "holds a list; expected settings"),
        ("training: {", "is not YAML that can be used"),
    ],
)
def test_messages_name_file_field_and_expectation(file: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        load(file, text)
    assert str(raised.value).startswith(str(file)) and message in str(raised.value)


def test_an_unknown_kind_is_shown_shortly(file: Path) -> None:
    class Square(BaseModel):
        kind: Literal["square"]

    class Circle(BaseModel):
        kind: Literal["circle"]

    class Shapes(BaseModel):
        shapes: list[Annotated[Square | Circle, Field(discriminator="kind")]]

    file.write_text(f"shapes: [{{kind: {'a' * 5000}}}]")
    with pytest.raises(InputError, match="shapes.0.kind: expected one of 'square', 'circle', not 'a") as raised:
        load_settings(file, Shapes)
    assert len(str(raised.value)) < 500


def test_all_errors_are_in_one_message(file: Path) -> None:
    with pytest.raises(InputError) as raised:
        load(file, "training: {learning_rate: fast, seeed: 1}")
    assert len(str(raised.value).split("; ")) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.seed", "'training.seed' overrides nothing: expected field=value"),
        ("training.seed.x=1", "overrides a field of 3, which has no fields"),
        ("training.seed=[", "is not YAML that can be used"),
        ("training.sed=1", "training.sed (here 1) is not a setting: did you mean seed?"),
    ],
)
def test_invalid_overrides(file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        load(file, "training: {seed: 3}", override)
    assert message in str(raised.value)


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(InputError, match="settings.yaml cannot be read"):
        load_settings(file, Whole)
