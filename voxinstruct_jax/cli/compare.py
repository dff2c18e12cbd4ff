"""`voxinstruct compare A B … --out DIR`, or `voxinstruct compare CONFIG --out DIR`."""

import argparse
import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxinstruct_jax.cli.evaluate import add_judging, judging, write_report
from voxinstruct_jax.cli.experiments import load_experiment
from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.cli.synthesize import job_bar
from voxinstruct_jax.config import ConfigError, to_dict

if TYPE_CHECKING:
    from voxinstruct_jax.evaluation.experiment import CompareExperiment, Speaking
    from voxinstruct_jax.jobs.requests import Request
    from voxinstruct_jax.voices import AnyVoice

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Compares evaluated systems, results, or what an experiment file names."""
    parser = argparse.ArgumentParser(
        "voxinstruct compare",
        description="Systems side by side on the same requests: paired differences, who wins, quality against compute. "
        "Example: voxinstruct compare results_a results_b --out compared",
    )
    parser.add_argument(
        "systems",
        nargs="+",
        type=Path,
        help="evaluated folders or results, the baseline first; or one experiment file (configs/compare_*.py); "
        "or, with --ablation, one voice folder",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for compare.json, compare.csv and all systems")
    parser.add_argument("--requests", type=Path, help="as in `evaluate`; with --ablation what to speak")
    parser.add_argument("--ablation", action="store_true", help="the paper's table 6 over one checkpoint")
    parser.add_argument("--voice", type=Path, help="with an experiment file: the voice of systems that name none")
    parser.add_argument("--match", choices=("request", "id"), default="request", help="how items find their partner")
    parser.add_argument("--allow-partial", action="store_true", help="go on where under 95 %% of the items have one")
    parser.add_argument("--figures", type=int, default=40, help="worst items to draw in the report (default: 40)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    add_judging(parser)
    options = parse(parser, arguments)
    from voxinstruct_jax.evaluation.compare import compare, comparison_table, open_system, write_comparison

    settings = judging(options)
    experiment = _experiment(options)
    if experiment is not None:
        sources = {each.name: _speak(each, experiment, options) for each in experiment.systems}
        requests: Path | None = options.out / REQUESTS_FILE
    else:
        sources, requests = _named(options.systems), options.requests
    folders = {
        name: path if (path / "summary.json").is_file() else _evaluated(name, path, requests, settings, options)
        for name, path in sources.items()
    }
    if experiment is not None:
        for system in experiment.systems:
            _write_cost(system, folders[system.name])
    systems = [open_system(path, name) for name, path in folders.items()]
    found = compare(systems, match=options.match, allow_partial=options.allow_partial, seed=options.seed)
    write_comparison(found, options.out)
    page = write_report(folders, options)
    if options.json:
        print(json.dumps(to_dict(found), ensure_ascii=False))
        return 0
    for line in comparison_table(found):
        print(line)
    print(page)
    return 0


REQUESTS_FILE = "requests.jsonl"


def _experiment(options: argparse.Namespace) -> "CompareExperiment | None":
    """What is to be spoken; None where all was spoken before."""
    from voxinstruct_jax.evaluation.experiment import CompareExperiment, ablation

    first, alone = options.systems[0], len(options.systems) == 1
    if options.ablation:
        if not alone or options.requests is None:
            raise ConfigError("--ablation takes one voice folder and --requests FILE")
        systems = tuple(dataclasses.replace(each, voice=str(first)) for each in ablation())
        return CompareExperiment(systems=systems, requests=str(options.requests))
    if first.suffix != ".py":
        return None
    if not alone:
        raise ConfigError("an experiment file names all systems itself; give nothing beside it")
    experiment = load_experiment(str(first))
    if not isinstance(experiment, CompareExperiment):
        raise ConfigError(f"{first}: holds no comparison; configurations of `compare` are configs/compare_*.py")
    voice = str(options.voice) if options.voice else None
    for system in experiment.systems:
        if system.trained_by and not Path(system.voice or "").is_dir():
            raise ConfigError(
                f"{first}: system {system.name!r}: no voice in {system.voice}; train "
                f"{' and '.join(system.trained_by)} and convert the run to there, or all systems with "
                "benchmarks/train_baselines.py"
            )
    return dataclasses.replace(
        experiment, systems=tuple(dataclasses.replace(each, voice=each.voice or voice) for each in experiment.systems)
    )


COST_S = 4.0
"""Length of the speech that costs are told for: about a sentence."""


def _write_cost(system: "Speaking", folder: Path) -> None:
    """Writes what a system costs beside its evaluation."""
    from voxinstruct_jax.evaluation.compare import COST_FILE
    from voxinstruct_jax.evaluation.evaluate import write_whole
    from voxinstruct_jax.voice_folder import embedded_release

    cost = _voice(system.voice).cost(COST_S, system.guidance)
    found = {"operations_per_s": cost.operations_per_s, "evaluations": cost.evaluations}
    trained = (Path(system.voice) if system.voice else embedded_release()) / TRAINING_FILE
    if trained.is_file():
        found["training_operations"] = json.loads(trained.read_text())["operations"]
    write_whole(folder / COST_FILE, json.dumps(found, indent=1) + "\n")


TRAINING_FILE = "training.json"
"""Of a voice folder: with how many `operations` it was trained, and of its `parts` by which configuration, for how many
steps and with how many; a codec that lay there before is not among them. A part of several stages stands there once a
stage, as `ar.1`, `ar.2`."""


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Names of systems: of their folders, with as many parents as it takes to tell them apart."""
    if len(paths) < 2:
        raise ConfigError("give two or more systems, an experiment file, or --ablation with a voice folder")
    whole = [path.resolve().with_suffix("") for path in paths]
    for depth in range(1, max(len(path.parts) for path in whole)):
        names = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    return {f"{path.name} ({number})": given for number, (path, given) in enumerate(zip(whole, paths, strict=True), 1)}


def _speak(system: "Speaking", experiment: "CompareExperiment", options: argparse.Namespace) -> Path:
    """Has a system speak all requests, or what it has not spoken yet; returns its results."""
    from voxinstruct_jax.jobs.claims import Claims
    from voxinstruct_jax.jobs.plan import open_plan
    from voxinstruct_jax.jobs.run import Job, in_this_process, run_job
    from voxinstruct_jax.jobs.settings import JobSettings
    from voxinstruct_jax.jobs.store import open_store

    out = options.out / "spoken" / system.name
    asked = [
        dataclasses.replace(each, guidance=system.guidance or each.guidance)
        for each in _requests(experiment, options.out)
    ]
    written = out.with_name(f"{out.name}.jsonl")
    _write_requests(written, asked)
    store = open_store(str(out))
    settings = JobSettings(job_seed=experiment.seeds[0], attempts=1)  # a second try would not be the same system
    with Claims(store) as claims:
        open_plan(store, str(written), settings, claims)
    job = Job(place=str(out.resolve()), open_voice=functools.partial(_voice, system.voice))
    with job_bar(system.name) as report:
        run_job(job, in_this_process, store, report=report)
    return out


@functools.cache
def _voice(path: str | None) -> "AnyVoice":
    """Opened and compiled once for all systems that share it."""
    from voxinstruct_jax.voices import load

    return load(path)


def _requests(experiment: "CompareExperiment", out: Path) -> "list[Request]":
    """Every request once a seed; written beside the results, since `evaluate` reads there what they don't carry."""
    from voxinstruct_jax.jobs.requests import read_requests

    read, rejected = read_requests(Path(experiment.requests))
    if rejected:
        raise ConfigError(f"{experiment.requests}: row {rejected[0].row}: {rejected[0].reason}")
    if experiment.limit is not None:
        languages = dict.fromkeys(each.language for each in read)
        chosen = [[each for each in read if each.language == name][: experiment.limit] for name in languages]
        read = list(itertools.chain.from_iterable(chosen))
    many = len(experiment.seeds) > 1
    requests = [
        dataclasses.replace(each, id=f"{each.id}~{seed}" if many else each.id, seed=seed)
        for each in read
        for seed in experiment.seeds
    ]
    _write_requests(out / REQUESTS_FILE, [dataclasses.replace(each, guidance=None) for each in requests])
    return requests


def _write_requests(path: Path, requests: "Sequence[Request]") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    located = [to_dict(each) | {"prompt": each.prompt and str(Path(each.prompt).resolve())} for each in requests]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in located), encoding="utf-8")


def _evaluated(
    name: str, source: Path, requests: Path | None, settings: dict[str, Any], options: argparse.Namespace
) -> Path:
    """Evaluates results that nobody has evaluated yet; returns the folder of what came out."""
    from voxinstruct_jax.data.engines import open_engine
    from voxinstruct_jax.evaluation.evaluate import EvaluationRequest, evaluate

    out = options.out / "evaluated" / name.replace("/", "_")
    request = EvaluationRequest(source=source, out=out, requests=requests, system=name, **settings)
    evaluate(request, open_engine("local", options.workers), progress=not options.json)
    return out
