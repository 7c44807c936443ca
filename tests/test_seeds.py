from stages.verdict.seeds import choose_runs, flatten, render_seeds

PARAMS = flatten(
    {"model": "tiny", "clean": {"rules": {"mojibake": True}}, "sft": {"seed": 7, "learning_rate": 2e-3}, "column": None}
)


def shown(seed, sft, **changes):
    """A row as dvc.api.exp_show makes it: every number a float."""
    primary = {"zeroshot": 0.3, "sft": sft, "delta": sft - 0.3, "low": sft - 0.4, "high": sft - 0.2}
    params = {
        "model": "tiny",
        "clean.rules.mojibake": True,
        "sft.seed": seed and float(seed),
        "sft.learning_rate": 0.002,
        "column": None,
    }
    return {"Experiment": "x", "rev": "abc", **{f"primary.{key}": value for key, value in primary.items()}, **params, **changes}


def test_runs_that_differ_in_the_seed_alone_are_shown_with_their_spread():
    experiments = [
        shown(7, 0.9),
        shown(1, 0.8),
        shown(2, 0.7),
        shown(3, 0.6, **{"sft.learning_rate": 0.001}),
        shown(4, 0.6, model="local"),
        shown(5, 0.6, **{"clean.rules.mojibake": False}),
        shown(6, 0.6, **{"primary.sft": None}),  # queued, or failed
    ]
    runs = choose_runs(experiments, PARAMS)
    assert {seed: run["sft"] for seed, run in runs.items()} == {7: 0.9, 1: 0.8, 2: 0.7}
    table = render_seeds(runs, "rouge_l")
    assert "| 1 | 0.300 | 0.800 | +0.500 | +0.400 … +0.600 |" in table
    # the changes 0.6, 0.5 and 0.4: mean 0.5, standard deviation 0.1
    assert "Over 3 seeds the change is +0.500 on average, from +0.400 to +0.600, with a standard deviation of 0.100." in table


def test_one_seed_has_no_spread():
    assert "One seed has no spread" in render_seeds(choose_runs([shown(7, 0.9)], PARAMS), "rouge_l")
    assert choose_runs([], PARAMS) == {}
