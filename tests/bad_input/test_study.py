"""Wrong input to studies, from Python and from configuration files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyro_vae import data
from pyro_vae.study import Study, StudyConfig, diagnose_again, make_pair, report_again, run_study, split_data
from pyro_vae.study.config import read_config
from tests.bad_input.cases import Case, check, table

FIELDS = tuple(
    Case(f"{name}={value!r}", lambda n=name, v=value: StudyConfig(**{n: v}), ValueError, f"{name} is", remedy)
    for name, values, remedy in (
        ("data", (None, 3, ["digits"]), "give text"),
        ("device", (None, 0), "give text"),
        ("root", (3,), "give text"),
        ("likelihood", (3,), "give text"),
        ("seeds", (0, -1, 1.5, "3", True, None), "integer of at least 1"),
        ("epochs", (0, "100"), "integer of at least 1"),
        ("batch_size", (0, 64.0), "integer of at least 1"),
        ("latent_dim", (0, -8), "integer of at least 1"),
        ("draws", (99, "1000"), "integer of at least 100"),
        ("gap_observations", (-1, 2.5), "integer of at least 0"),
        ("hidden", ((), (0,), (1.5,), 128, [128], "128"), "such as (128, 128)"),
        ("lr", (0, -1, np.nan, np.inf, "0.1", True), "positive number"),
        ("init_scale", (0, np.nan, "1"), "positive number"),
        ("held_out", (0, 1, 1.5, -0.2, np.nan, "0.2"), "share between 0 and 1"),
        ("scales", ("logvar", ["logvar"], (1,), ()), "logvar"),
    )
    for value in values
)
OTHERS = (
    Case("scales unknown", lambda: StudyConfig(scales=("softpls",)), ValueError, "'softpls'", "'softplus'"),
    Case(
        "scales twice",
        lambda: StudyConfig(scales=("abs", "abs")),
        ValueError,
        "'abs' twice",
        "not with itself",
    ),
    Case(
        "init_scale out of reach",
        lambda: StudyConfig(scales=("bounded",), init_scale=5.0),
        ValueError,
        "init_scale is 5.0",
        "another map",
    ),
    Case(
        "unknown setting", lambda: StudyConfig.from_mapping({"epoch": 3}), ValueError, "'epoch'", "'epochs'"
    ),
    Case(
        "foreign setting", lambda: StudyConfig.from_mapping({"qqq": 3}), ValueError, "'qqq'", "there are data"
    ),
    Case("mapping a list", lambda: StudyConfig.from_mapping([1]), TypeError, "values is a list", "by name"),  # type: ignore[arg-type]
    Case("config a dict", lambda: run_study({"epochs": 1}), TypeError, "config is a dict", "StudyConfig"),  # type: ignore[arg-type]
    Case("config a name", lambda: run_study("digits"), TypeError, "config is a str", "StudyConfig('digits')"),  # type: ignore[arg-type]
    Case("out a number", lambda: run_study(out=3), TypeError, "out is 3", "folder"),  # type: ignore[arg-type]
    Case("data unknown", lambda: run_study(StudyConfig("digit")), ValueError, "'digit'", "'digits'"),
    Case("device unknown", lambda: run_study(StudyConfig(device="gpu")), ValueError, "'gpu'", "'cuda'"),
    Case("likelihood unknown", lambda: run_study(StudyConfig(likelihood="x")), ValueError, "'x'", "normal"),
    Case("study a folder", lambda: diagnose_again("runs"), TypeError, "study is a str", "Study.load"),  # type: ignore[arg-type]
    Case("study None", lambda: report_again(None), TypeError, "study is None", "Study.load"),  # type: ignore[arg-type]
    Case("folder a number", lambda: Study.load(3), TypeError, "folder is 3", "path"),  # type: ignore[arg-type]
    Case("no run", lambda: Study.load("docs"), FileNotFoundError, "docs holds no run", "pyro-vae compare"),
    Case("no folder", lambda: Study.load("nowhere"), FileNotFoundError, "nowhere", "pyro-vae compare"),
    Case(
        "no configuration",
        lambda: read_config("nowhere.toml"),
        FileNotFoundError,
        "nowhere.toml",
        "TOML file",
    ),
    Case(
        "split of an array",
        lambda: split_data(np.eye(3), 0.2),
        TypeError,
        "data is an ndarray",
        "DataSet(name, x)",
    ),  # type: ignore[arg-type]
    Case("pair of an array", lambda: pair(np.eye(3)), TypeError, "data is an ndarray", "DataSet(name, x)"),
    Case(
        "pair of no map", lambda: pair(data.load("digits"), scale="lgvar"), ValueError, "'lgvar'", "'logvar'"
    ),
    Case(
        "pair of seed -1", lambda: pair(data.load("digits"), seed=-1), ValueError, "seed is -1", "at least 0"
    ),
)


def pair(given: Any, scale: str = "logvar", seed: int = 0) -> Any:
    return make_pair(StudyConfig(), given, scale, seed)


@table(*FIELDS, *OTHERS)
def test_wrong_input(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(
    ("name", "text", "place", "remedy"),
    [
        ("a.toml", "epochs = ", "a.toml is not TOML", "value"),
        ("b.json", "{", "b.json is not JSON", "line 1"),
        ("c.json", "[]", "c.json has schema None", "damaged or foreign"),
        ("d.json", '{"schema": 99}', "d.json has schema 99", "update pyro-vae"),
        ("e.json", '{"schema": 1}', "e.json has no 'config'", "damaged"),
        ("f.toml", "epochs = 'many'", "epochs is 'many'", "integer"),
        ("g.toml", "epoch = 3", "'epoch'", "'epochs'"),
        ("h.toml", "[data]\nname = 'digits'", "data is {'name': 'digits'}", "give text"),
    ],
)
def test_wrong_configuration(name: str, text: str, place: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    check(Case(name, lambda: StudyConfig.from_mapping(read_config(path)), ValueError, place, remedy))


def test_output_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name, place, remedy in (("mine", "thesis.tex", "name a new"), ("file", "file", "name another")):
        check(Case(name, lambda n=name: run_study(out=tmp_path / n), ValueError, place, remedy))  # type: ignore[misc]
