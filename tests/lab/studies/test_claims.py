"""Claims: bars, margins, corrections; the errors of the stored records; reports computed from them."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from kineograph_lab.studies import claims
from kineograph_lab.studies.claims import SMOOTH, Values, correct_claims
from kineograph_lab.studies.report import StudyReport, claim_as_json
from kineograph_lab.studies.report import _study_to_markdown as report_as_markdown
from kineograph_lab.studies.reproduce import CASES, PAPERS, report_from_records
from kineograph_lab.studies.still_moving import baselines
from kineograph_lab.studies.study import metric_values, read_study_records
from kineograph_lab.studies.text2video_zero import dreambooth

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def values(each, clusters=None) -> Values:
    each = tuple(map(float, each))
    return Values(each, tuple(range(len(each))), tuple(clusters or range(len(each))))


def noisy(mean: float, count: int, spread: float = 0.1, seed: int = 0) -> Values:
    return values(np.random.default_rng(seed).normal(mean, spread, count))


def test_a_bar_is_for_the_lower_bound() -> None:
    claim = claims.claim_at_least("a", values([0.5, 1.0, 0.75, 0.75]), 0.74)
    assert (claim.value, claim.count, claim.clusters, claim.bar) == (0.75, 4, 4, ">= 0.74")
    assert claim.low < 0.74 < claim.value and not claim.holds
    assert claims.claim_at_least("a", noisy(0.9, 50), 0.8).holds
    assert not claims.claim_at_least("nothing to count", values([]), 0.95).holds
    assert not claims.claim_at_least("one cluster", values([0.99, 1.0], [3, 3]), 0.5).holds


def test_ratios_have_both_bounds() -> None:
    usual = noisy(0.025, 40, 0.005)
    half = values([each / 2 + 0.0001 * (k % 2 - 0.5) for k, each in enumerate(usual.values)])
    claim = claims.claim_ratio_within("speed", half, usual, 0.4, 0.6)
    assert claim.holds and claim.value == pytest.approx(0.5, abs=0.01) and claim.low < 0.5 < claim.high
    assert not claims.claim_ratio_within("speed", usual, usual, 0.4, 0.6).holds
    assert claims.claim_ratio_at_least("share", half, usual, 0.45).holds
    assert claims.claim_ratio_at_most("share", half, usual, 0.55).holds
    assert not claims.claim_ratio_at_least("share", values([1.0]), values([0.0]), 0.8).holds


def test_a_frozen_seam_fails_as_a_jump_does() -> None:
    inside = noisy(10, 40, 1)
    for factor, holds in ((0.0, False), (0.5, False), (1.0, True), (1.5, False)):
        seam = values([factor * each + 0.1 * (k % 3) for k, each in enumerate(inside.values)])
        assert claims.claim_ratio_within("seam", seam, inside, *SMOOTH).holds == holds


def test_fewer_cases_never_make_it_easier_not_to_be_below() -> None:
    ours, theirs = noisy(0.8, 200, seed=1), noisy(0.8, 200, seed=2)
    for state in (claims.claim_not_below, claims.claim_unchanged):
        assert state("x", ours, theirs, 0.05).holds
        held = {
            count: sum(
                state("x", noisy(0.8, count, seed=k), noisy(0.8, count, seed=k + 50), 0.05).holds for k in range(50)
            )
            for count in (4, 20, 100)
        }
        assert held[4] <= held[20] < held[100] and held[100] > 45
    worse = values([each - 0.06 for each in theirs.values])
    assert not claims.claim_not_below("x", worse, theirs, 0.05).holds
    assert claims.claim_better("x", ours, worse).holds and not claims.claim_better("x", theirs, ours).holds


def test_equal_values_are_bounded_by_their_number() -> None:
    assert claims.claim_at_least("x", values([1.0] * 100), 0.97).p == pytest.approx(0.97**100)
    assert claims.claim_at_least("x", values([1.0] * 100), 0.97).low == pytest.approx(0.05**0.01)
    assert not claims.claim_at_least("x", values([1.0] * 7), 0.95).holds
    assert not claims.claim_at_least("x", values([0.9, 0.9]), 0.95).holds
    same = values([1.0] * 7)
    assert not claims.claim_not_below("x", same, same, 0.05).holds
    assert claims.claim_counted_at_most("calls", values([20.0] * 7), values([25.0] * 7), 1).holds
    assert not claims.claim_counted_at_most("calls", values([25.0] * 7), values([20.0] * 7), 1).holds


def test_paired_claims_refuse_other_cases() -> None:
    with pytest.raises(ValueError, match="the same cases on both sides"):
        claims.claim_better("x", values([1.0, 2.0]), values([1.0]))


def test_a_claim_whose_arm_is_missing_is_reported_as_not_measured() -> None:
    there, missing = noisy(0.9, 20), values([])
    stated = [
        claims.claim_better("new arm", there, missing),
        claims.claim_not_below("new arm", missing, there, 0.05),
        claims.claim_unchanged("new arm", missing, there, 0.05),
        claims.claim_ratio_at_least("new baseline", there.minus(missing), noisy(0.9, 20).minus(missing), 0.5),
        claims.claim_as_sharp(missing, missing, "on over off"),
        claims.claim_at_least("new metric", missing, 0.5),
    ]
    assert not any(each.measured or each.holds or each.holds_uncorrected for each in correct_claims(stated))
    assert all(claim_as_json(each)["measured"] is False and claim_as_json(each)["value"] is None for each in stated)
    study = StudyReport("a", [*stated, claims.claim_at_least("old", there, 0.5)], {"row": {"arm": there.mean}}, {}, {})
    text = report_as_markdown(study)
    assert text.count("| not measured |") == len(stated) and "**no**" not in text


def test_a_blurred_video_does_not_win_by_less_flicker() -> None:
    sharp = noisy(0.9, 40, 0.02)
    for factor, holds in ((1.0, True), (0.97, True), (0.8, False)):
        ours = values([factor * each + 0.001 * (k % 3) for k, each in enumerate(sharp.values)])
        assert claims.claim_as_sharp(ours, sharp, "ours over theirs").holds == holds


def test_claims_of_a_paper_are_corrected_for_one_another() -> None:
    stated = [claims.claim_at_least("x", noisy(0.54, 9, seed=seed), 0.45) for seed in range(12)]
    corrected = correct_claims(stated)
    assert sum(each.holds_uncorrected for each in corrected) > sum(each.holds for each in corrected)
    assert [each.p for each in corrected] == [each.p for each in stated]


def stored(analysis, paper):
    return read_study_records(analysis, RESULTS / paper, CASES)


def test_errors_of_still_moving_are_over_items() -> None:
    records = stored(baselines.ANALYSIS, "still-moving")
    ours = metric_values(records, baselines.OURS, "CLIP-I")
    theirs = metric_values(records, baselines.INTERLEAVED, "CLIP-I")
    gain = claims.claim_better("x", ours, theirs)
    assert (gain.count, gain.clusters) == (100, 10)
    assert (gain.value, gain.error) == (pytest.approx(10.77, abs=0.01), pytest.approx(4.04, abs=0.01))
    moved = [metric_values(records, arm, "moved") for arm in (baselines.OURS, baselines.VIDEO)]
    kept = claims.ratio_of_means(*moved)
    assert (kept.value, kept.error) == (pytest.approx(0.865, abs=5e-4), pytest.approx(0.082, abs=5e-4))


def test_errors_of_the_lora_are_over_subjects() -> None:
    records = stored(dreambooth.ANALYSIS, "text2video-zero")
    lora, base = (metric_values(records, arm, "CLIP-I") for arm in ("LoRA", "base"))
    gain = claims.claim_better("x", lora, base)
    assert (gain.value, gain.error, gain.clusters) == (
        pytest.approx(0.384, abs=5e-4),
        pytest.approx(0.085, abs=5e-4),
        4,
    )


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_stored_reports_are_those_of_the_stored_records(paper: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "claims" not in json.loads((RESULTS / f"{paper}.json").read_text()):
        pytest.skip(f"{paper}.json was written before claims had bounds: kineograph reproduce {paper} --from-records")
    shutil.copy(RESULTS / f"{paper}.json", tmp_path)
    shutil.copytree(RESULTS / paper, tmp_path / paper, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr("torch.nn.Module.__init__", lambda *arguments: pytest.fail("a network is loaded"))
    found = report_from_records(paper, tmp_path)
    assert (tmp_path / f"{paper}.md").read_text() == (RESULTS / f"{paper}.md").read_text()
    written = json.loads((RESULTS / f"{paper}.json").read_text())["claims"]
    assert [each["name"] for each in written] == [each.name for each in found.claims]
    assert all({"name", "value", "low", "high", "holds", "study", "p_corrected"} <= each.keys() for each in written)


def test_doubt_about_records_is_in_the_report() -> None:
    written = json.loads((RESULTS / "still-moving.json").read_text())["parts"][0]["records"]
    assert written["count"] == 600 and "380 of 600 records were measured under other" in written["doubt"]
    assert len(written["commits"]) == 10
    records = stored(baselines.ANALYSIS, "still-moving")
    assert all(math.isfinite(each["moved"]) for each in records)
