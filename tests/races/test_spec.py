"""What a race file may say, and what it is told when it is wrong."""

import copy

import pytest

from trainlore.errors import Bad
from trainlore.races import entry
from trainlore.races.spec import budget_of, read, recipe_of

RACE = {
    "name": "toy",
    "seeds": 3,
    "budget": "20-steps",
    "given": {
        "noisy": {"data": "world:digits/noisy", "rows": 200},
        "test": {"data": "world:digits/test", "skip": 200},
        "valid": {"data": "world:digits/test", "rows": 200},
        "net": {"model": "mlp", "width": 16},
    },
    "arms": {"plain": None, "smooth": {"with": [{"label_smoothing": {"amount": 0.2}}]}, "ema": {"with": [{"ema": {"decay": 0.9}}]}},
    "then": [{"train": {"model": "$net", "data": "$noisy", "lr": 1e-2, "precision": "fp32", "as": "trained"}}],
    "valid": {"accuracy": {"model": "$trained", "data": "$valid"}},
    "test": {"accuracy": {"model": "$trained", "data": "$test"}},
}  # fmt: skip


def changed(**more):
    return {**copy.deepcopy(RACE), **more}


def test_every_arm_is_a_recipe_that_differs_in_the_arm_only():
    race = read(RACE)
    assert race.baseline == "plain" and race.watched == "trained" and race.seeds == [0, 1, 2]
    plain, smooth = (recipe_of(race, race.arms[n], 2) for n in ("plain", "smooth"))
    assert smooth["steps"][0]["train"].pop("with") == [{"label_smoothing": {"amount": 0.2}}]
    assert plain["steps"] == smooth["steps"] and plain["given"] == smooth["given"] and plain["seed"] == 2
    assert plain["steps"][0]["train"]["steps"] == 20 and plain["steps"][-1]["accuracy"]["as"] == "verdict"
    assert recipe_of(race, race.arms["plain"], 0, valid=True)["steps"][-1]["accuracy"]["data"] == "$valid"


def test_tuned_values_reach_the_training_and_the_part():
    race = read(RACE)
    made = recipe_of(race, race.arms["ema"], 0, {"train.lr": 0.5, "ema.decay": 0.7})
    assert made["steps"][0]["train"]["lr"] == 0.5 and made["steps"][0]["train"]["with"] == [{"ema": {"decay": 0.7}}]
    with pytest.raises(Bad, match="no 'sam'"):
        recipe_of(race, race.arms["ema"], 0, {"sam.rho": 1})


def test_budgets_as_people_write_them():
    assert budget_of("2M-tokens") == ("tokens", 2e6) and budget_of("300 steps") == ("steps", 300)
    assert budget_of("1e13-work") == ("work", 1e13) and budget_of("90 seconds") == ("seconds", 90)
    assert budget_of("5T-flops") == ("work", 5e12) and budget_of("1-step") == ("steps", 1)
    for bad in ("2M", "fast", "2M-apples", "-3-steps", "0-steps"):
        with pytest.raises(Bad, match="budget"):
            budget_of(bad)
    assert (
        recipe_of(read(changed(budget="1G-work")), read(RACE).arms["plain"], 0)["steps"][0]["train"]["work"] == "rest"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": {"one": None}}, "two arms or more"),
        ({"baseline": "plian"}, "the baseline 'plian' is no arm; did you mean plain"),
        ({"arms": {"a": None, "b": {"with": [{"smooth": {}}]}}}, "arm b: .*no method 'smooth'"),
        ({"arms": {"a": None, "b": {"with": [{"ema": {"decoy": 1}}]}}}, "no field 'decoy'"),
        ({"arms": {"a": None, "b": {"wiht": {}}}}, "arm b: .*no method 'wiht'"),
        ({"arms": {"a": None, "b": {"with": [], "wiht": []}}}, "arm b: no key 'wiht'; did you mean with"),
        ({"test": {"accuracie": {"model": "$trained", "data": "$test"}}}, "no metric 'accuracie'; did you mean accuracy"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"level": 1.5}, "level must be between 0 and 1"),
        ({"colour": "red"}, "unknown field"),
        ({"arms": {"a/b": None, "c": None}}, "no slash"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change, says):
    with pytest.raises(Bad, match=says):
        read(changed(**change))


def test_all_mistakes_at_once():
    with pytest.raises(Bad, match="3 errors"):
        read(changed(seeds=0, level=7, baseline="nobody"))


def test_overrides():
    race = read(RACE, ["seeds=7", "given.net.width=24", "budget=40-steps"])
    assert len(race.seeds) == 7 and race.spec.given["net"]["width"] == 24 and race.budget == ("steps", 40)
    with pytest.raises(Bad, match="there is no 'gvien'"):
        read(RACE, ["gvien.net=1"])


def test_a_race_from_a_few_words():
    raw, left = entry.make(["el2n", "random-rows"], "world:digits/noisy", target="world:digits/test", family=None)
    assert left["el2n"].startswith("needs a Model `proxies` (--given proxies=SOURCE)")
    assert list(raw["arms"]) == ["random_rows", "all rows"] and raw["baseline"] == "random_rows"
    parts, _ = entry.make(["ema", "label_smoothing"], "world:digits/noisy", budget="30-steps")
    race = read(parts)
    assert list(race.arms) == ["plain", "ema", "label_smoothing"] and race.budget == ("steps", 30)
    text, left = entry.make([], "world:two-domains/pool", target="world:two-domains/target", family="data/select")
    assert "dsir" in text["arms"] and read(text).baseline == "random_rows"
    assert all(why.startswith(("needs", "is a")) for why in left.values()) and left


def test_a_few_wrong_words():
    with pytest.raises(Bad, match="do the same kind of thing: dsir is a Curate, ema is a Part"):
        entry.make(["dsir", "ema"], "world:digits/noisy")
    with pytest.raises(Bad, match="no method 'dsri'; did you mean dsir"):
        entry.make(["dsri"], "world:digits/noisy")
    with pytest.raises(Bad, match="accuracy measures and changes nothing"):
        entry.make(["accuracy"], "world:digits/noisy")
    with pytest.raises(Bad, match="no family 'data/selct'"):
        entry.make([], "world:digits/noisy", family="data/selct")
    with pytest.raises(Bad, match="no such arm"):
        entry.make(["ema"], "world:digits/noisy", fields={"sam": {"rho": 1}})
