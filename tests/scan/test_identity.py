"""Which scan the results of a name are of; what a whole run makes of it is in ``test_run``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from brainuad.errors import InputError
from brainuad.inputs.scans import Scan
from brainuad.scan import identity


def test_two_series_of_one_folder_are_two_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Scan("study", tmp_path, "dicom", series="1.2.3")
    told = {"source": str(tmp_path), "series": identity.series_hash(one), "sha256": "of one"}
    assert "1.2.3" not in json.dumps(told)
    (tmp_path / "study.json").write_text(json.dumps({"scan": told}))
    identity.check_name_free(one, tmp_path)
    other = replace(one, series="1.2.4")
    monkeypatch.setattr(identity, "hash_of", lambda scan: "of another")
    with pytest.raises(InputError, match="has the name study, but"):
        identity.check_name_free(other, tmp_path)
    monkeypatch.setattr(identity, "hash_of", lambda scan: "of one")
    identity.check_name_free(other, tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"scan": null}', '{"scan": {"source": "elsewhere"}}'])
def test_a_sidecar_that_tells_of_no_scan_is_none(tmp_path: Path, text: str) -> None:
    scan = Scan("a", tmp_path / "a.nii", "nifti")
    assert identity.may_replace(scan, tmp_path / "a.json")
    (tmp_path / "a.json").write_text(text)
    assert identity.may_replace(scan, tmp_path / "a.json")
    identity.check_name_free(scan, tmp_path)
