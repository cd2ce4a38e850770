"""What a command line asks for: its options over those of a configuration file, as the study to run."""

from pathlib import Path
from typing import Any

from pyro_vae.cli import output
from pyro_vae.cli.terminal import errors_as_sentences


def run_asked(defaults: dict[str, Any], options: dict[str, Any]) -> None:
    """Run what the command line asks for; below it counts the configuration file, below that ``defaults``."""
    from pyro_vae.study import StudyConfig, follow_study, run_study
    from pyro_vae.study.config import read_config
    from pyro_vae.svi.parallel.launch import is_follower, is_launched

    root = options.pop("root")
    options["scales"], options["guides"] = options.pop("scale"), options.pop("guide")
    options["root"] = root and str(root)
    options["json"] = options.pop("as_json") or None
    config, overwrite = options.pop("config"), options.pop("overwrite")
    with errors_as_sentences():
        options |= _program_and_data(options.pop("program_data"), options["data"])
        asked = {} if config is None else read_config(config)
        asked |= {name: value for name, value in options.items() if value not in (None, [])}
        as_json, out = asked.pop("json", False), asked.pop("out", None)
        if "data" not in asked:
            raise ValueError("there is no data set; name one, such as digits, or give --config")
        if defaults:
            _refuse_several(asked, config, options)
        chosen = StudyConfig.from_mapping(defaults | asked)
        if is_follower():
            follow_study(chosen)
        else:
            anew = {"overwrite": True} if overwrite else {}
            study = run_study(chosen, out=out, distributed=is_launched(), **anew)
            output.show_study(study, as_json=as_json)


def _program_and_data(data: str | None, given: str | None) -> dict[str, str | None]:
    """What the argument is, beside ``--data``: the program, or the data themselves."""
    is_program = given is not None and ":" in given and given.rpartition(":")[2].isidentifier()
    if is_program and data is None:
        raise ValueError(f"{given} is a program, and its data are not named; give them as --data x.npy")
    if data is None or given is None:
        return {"data": data if given is None else given, "program": None}
    if not is_program:
        raise ValueError(
            f"{given} and --data {data} are two data sets; give one of them, or a program of yours: "
            f"module:function --data {data}"
        )
    return {"data": data, "program": given}


def _refuse_several(asked: dict[str, Any], config: Path | None, options: dict[str, Any]) -> None:
    for setting, option in (("scales", "--scale"), ("guides", "--guide")):
        names = asked.get(setting)
        if isinstance(names, list | tuple) and len(names) > 1:
            where = (
                f"{option} is given {len(names)} times"
                if options.get(setting)
                else f"{config} names {len(names)} {setting}"
            )
            raise ValueError(
                f"{where} ({', '.join(map(str, names))}), and fit takes one; choose one by {option}, or call "
                "pyro-vae compare"
            )
