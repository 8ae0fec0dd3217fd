import pytest
from run_tables import rows, run_command, write_run

from brainuad.compare import compare_runs, read_runs
from brainuad.errors import InputError
from brainuad.study.tables import COLUMNS


def test_runs_that_cannot_be_compared(folders, tmp_path):
    other = write_run(tmp_path / "other", rows(cases={"BraTS": 4}))
    with pytest.raises(InputError, match="other has no cases of MSLUB") as error:
        compare_runs(read_runs([folders[0], other]))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has a single score"):
        compare_runs(read_runs([folders[0]]))
    with pytest.raises(InputError, match="is given twice"):
        read_runs([folders[0], folders[0] / "."])
    mixed = write_run(tmp_path / "mixed", rows(scores=("l1", "l2")))
    with pytest.raises(InputError, match="shares no score"):
        compare_runs(read_runs([folders[0], mixed]))
    single = write_run(tmp_path / "single", rows(scores=("l1",)))
    labels = {row.contestant for row in compare_runs(read_runs([folders[0], single])).rows}
    assert labels == {"single · l1"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read"),
        ("", "is no table"),
        ("a,b\n1,2\n", "lacks the columns set, case"),
        (",".join(COLUMNS) + "\nMSLUB,1,1,test,l1,model,,dice,much,\n", "holds 'much' as a value in line 2"),
        (",".join(COLUMNS) + "\nMSLUB,1,1,test,l1,model,,dice,inf,\n", "holds 'inf'"),
        (b"\xff\xfe\x00", "is no table"),
    ],
)
def test_damaged_runs(tmp_path, folders, text, fault):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (damaged / "cases.csv").write_bytes(data)
    result = run_command(folders[0], damaged, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert fault in result.stderr
    assert "damaged/cases.csv" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_cases_keep_their_names(tmp_path):
    table = [{**row, "case": name} for row in rows(cases={"MSLUB": 1}) for name in ("007", "NA", "1e3")]
    folders = write_run(tmp_path / "a", table), write_run(tmp_path / "b", table)
    (row,) = compare_runs(read_runs(folders)).rows
    assert [case for case, _ in row.differences] == ["007", "1e3", "NA"]
    assert (row.difference, row.p) == (0, 1)
