"""Weights that studies declare, and records: complete cases, splits, what was trained, and doubts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kineograph.errors import InputError
from kineograph.models.pocket.models import built_in_names
from kineograph_lab.studies.protocol import Case, describe_records, held_out_cases
from kineograph_lab.studies.reproduce import MODELS, PAPERS
from kineograph_lab.studies.study import Analysis, Study, read_study_records, run_study
from kineograph_lab.studies.weights import JUDGES, MODEL_FILES, hash_models

GREY = np.full((2, 8, 8, 3), 128, np.uint8)
ANALYSIS = Analysis("study", "Study", held_out_cases, lambda records: [], {"grey": "grey level"})


def study(count: int, split: str = "test", **changes: object) -> Study:
    return Study(
        ANALYSIS,
        settings={},
        cases=held_out_cases(count, split),  # type: ignore[arg-type]
        arms={arm: lambda batch: [GREY] * len(batch) for arm in ("plain", "LoRA")},
        measure=lambda frames, case: {"grey": float(frames.mean())},
    )._replace(**changes)


def test_every_declared_model_has_known_files_and_built_in_models_are_all_known() -> None:
    names = {name for studies in PAPERS.values() for analysis, _ in studies for name in analysis.models}
    assert {*names, *MODELS.values(), *JUDGES, *built_in_names()} <= MODEL_FILES.keys()
    shipped = {name: files for name, files in hash_models(MODEL_FILES).items() if not name.startswith("recipe")}
    assert all(shipped.values()) and all(len(sha256) == 64 for files in shipped.values() for sha256 in files.values())
    assert shipped["pocket"].items() < shipped["pocket-video"].items() < shipped["pocket-animate"].items()
    assert [*shipped["controlnet pose"]] == ["pose.safetensors"]


def test_hashes_follow_the_content_of_a_folder(tmp_path) -> None:
    file = tmp_path / "model" / "unet" / "weights.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    before = hash_models([str(tmp_path / "model")])
    assert [*before] == ["model"] and [*before["model"]] == ["model/unet/weights.safetensors"]
    file.write_bytes(b"other weights")
    assert hash_models([str(tmp_path / "model")]) != before
    with pytest.raises(InputError, match="no weights are known of pocket-nothing"):
        hash_models(["pocket-nothing"])


def test_a_case_without_all_arms_is_left_out_and_completed_later(tmp_path) -> None:
    stamp = {"protocol": "now", "split": "test", "commit": "none", "machine": "this"}
    assert len([*run_study(study(3), tmp_path, stamp)]) == 6
    file = tmp_path / "study.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]))
    assert {record["case"] for record in read_study_records(ANALYSIS, tmp_path, 10)} == {0, 1}
    assert len([*run_study(study(3), tmp_path, stamp)]) == 6
    assert len(read_study_records(ANALYSIS, tmp_path, 10)) == 6
    assert len(read_study_records(ANALYSIS, tmp_path, 1)) == 2
    first = json.loads(lines[1])
    assert first["prompt"] == held_out_cases(1, "test")[0].prompt and first["seconds"] >= 0


def test_what_was_trained_is_hashed_in_each_record_and_doubted_if_it_differs(tmp_path) -> None:
    file = tmp_path / "subject" / "lora.safetensors"
    file.parent.mkdir()
    stamp = {"protocol": "now", "split": "test", "commit": "none", "machine": "this"}

    def trained(arm: str, case: Case) -> list[Path]:
        file.write_text(f"weights {case.number}")
        return [file] if arm == "LoRA" else []

    one_cluster = [Case(case.number, case.prompt, case.shot, 0, case.split) for case in held_out_cases(2, "test")]
    records = [*run_study(study(2, trained=trained, cases=one_cluster), tmp_path, stamp)]
    assert [[*record.get("trained", {})] for record in records[:2]] == [[], ["subject/lora.safetensors"]]
    described = describe_records(records, {})
    assert described["doubt"] == "Adapters were trained again among the records of LoRA, cluster 0."
    assert described["splits"] == {"test": 4}
    assert describe_records(records[:2], {})["doubt"] is None
    assert describe_records(records[:2], {"stale": "Stale: no versions."})["doubt"] == "Stale: no versions."
