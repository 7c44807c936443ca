"""How many test rows would show a difference, as the command says it."""

import random
import sys
from pathlib import Path

import pytest
from conftest import EVALUATE, copy_params, edit_yaml

from commands import sample_size
from library.errors import InputError
from library.files import write_json, write_jsonl
from library.paths import EVALUATION_PATH, SCORES_PATH, SPLITS_PATH
from library.records import SPLITS, ScoredRow
from library.verdict.scoring import compare_systems, comparison_record

VOTES = {"rows": 20, "wins": 9, "losses": 3, "ties": 8}


def test_smaller_differences_take_more_rows_and_a_detectable_one_those_that_there_are(
    tmp_path, monkeypatch, capsys
):
    copy_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    drawn = random.Random(3)
    scored = [
        ScoredRow(
            f"r{at}",
            f"g{at // 2}",
            None,
            {"zeroshot": {"rouge_l": 0.3}, "sft": {"rouge_l": 0.5 + drawn.gauss(0, 0.1)}},
        )
        for at in range(120)
    ]
    found = compare_systems(scored, ["rouge_l"], EVALUATE)["rouge_l"]
    write_jsonl(SCORES_PATH, (row.to_record() for row in scored))
    write_json(EVALUATION_PATH, {"primary": comparison_record(found), "votes": VOTES})
    write_json(SPLITS_PATH, {name: {"rows": 120} for name in SPLITS})
    monkeypatch.setattr(sys, "argv", ["sample_size", "0.005", f"{found.detectable + 1e-6:.9f}"])
    sample_size.main()
    out = capsys.readouterr().out
    rows = [line.split("|")[2:-1] for line in out.splitlines()[2:4]]
    as_many, more = ([int(cell.replace(",", "")) for cell in row] for row in rows)
    assert as_many == [60, 120, 360]
    assert more[0] > 10 * as_many[0]
    assert "120 test rows in 60 groups, and found +0.185 (0.300 to 0.485)" in out
    # 12 of 20 pairs were decided: 23 decisions take ceil(23 · 20 / 12) = 39 pairs, 19 more
    assert "| 80% | 23 | 39 | 19 |" in out
    assert "chance of 80%, at 95% confidence. A pair counts once" in out

    edit_yaml("params.yaml", evaluate__primary="chrf")
    sample_size.main()
    assert (
        "All test rows have the same difference in chrF++, or none has this metric"
        in capsys.readouterr().out
    )
    Path(EVALUATION_PATH).unlink()
    with pytest.raises(InputError, match=r"evaluation\.json: no such file; run `dvc repro`"):
        sample_size.main()
