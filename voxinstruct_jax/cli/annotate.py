"""`voxinstruct annotate MANIFEST --out MANIFEST`."""

import argparse
import json
import os
import sys
from importlib import util

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError

__all__ = ["run"]


def run(arguments: list[str]) -> int:
    """Annotates a manifest."""
    parser = argparse.ArgumentParser(
        "voxinstruct annotate",
        description="Measure gender, pitch, energy, speed and stressed words of every clip, name the classes, write "
        "instructions; resumable. Example: voxinstruct annotate speech/manifest.jsonl --out named/manifest.jsonl",
    )
    parser.add_argument("manifest", help="JSONL or Parquet; attributes that a row has are kept")
    parser.add_argument("--out", required=True, help="new manifest; bins.json and rejected.jsonl are put beside it")
    parser.add_argument("--bins", help="boundaries of the classes (default: terciles of this manifest)")
    parser.add_argument("--attributes", help="such as pitch,energy (default: all that have a judge)")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="ATTRIBUTE=MODULE:CLASS",
        help="a judge of your own; for age and emotion the only way",
    )
    parser.add_argument("--instructions", type=int, default=0, metavar="N", help="write N for each row without any")
    parser.add_argument("--language-model", metavar="URL", help="OpenAI-compatible server that rewrites them (…/v1)")
    parser.add_argument("--model", help="name of the model on that server")
    parser.add_argument("--api-key-env", default="", help="environment variable that holds the server's key")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: a core each)")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parse(parser, arguments)
    if bool(options.language_model) != bool(options.model):
        raise ConfigError("--language-model and --model belong together: where the server is, and which model it has")
    if options.workers < 1 or options.instructions < 0:
        raise ConfigError("--workers must be 1 or more, --instructions 0 or more")
    from voxinstruct_jax.data.annotate import Request, annotate
    from voxinstruct_jax.data.engines import open_engine
    from voxinstruct_jax.data.language_models import OpenAICompatible
    from voxinstruct_jax.judges.registry import judge_places

    places = judge_places(dict(_pair(text) for text in options.judge))
    if "stress" not in places:
        places |= _stress_place()
    wanted = tuple(dict.fromkeys(options.attributes.split(","))) if options.attributes else tuple(places)
    request = Request(
        manifest=options.manifest,
        out=options.out,
        attributes=wanted,
        judges=places,
        bins=options.bins,
        instructions=options.instructions,
        language_model=OpenAICompatible(
            base_url=options.language_model, model=options.model, api_key_env=options.api_key_env
        )
        if options.language_model
        else None,
    )
    done = annotate(request, open_engine(options.engine, options.workers), progress=not options.json)
    if options.json:
        result = {"out": options.out, "rows": done.rows, "hours": done.hours, "rejected": done.rejected}
        result["without_instructions"] = done.without_instructions
        print(json.dumps(result | {"classes": done.classes, "bins": done.bins.fingerprint}))
        return 0
    print(f"{options.out}: {done.rows} clips, {done.hours:.2f} h; {done.rejected} set aside, see rejected.jsonl")
    if request.instructions and done.without_instructions:
        print(
            f"  {done.without_instructions} clips got no instructions: the grammar lacks their language or attributes"
        )
    for attribute, counts in done.classes.items():
        print(f"  {attribute:<8}" + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


def _stress_place() -> dict[str, str]:
    """The judge of stressed words, which is above the other judges' room, where what it needs is installed."""
    if any(util.find_spec(name) is None for name in ("faster_whisper", "jieba")):
        print(
            "stress is left out: its judge needs the extras asr and prepare (`uv run --extra asr --extra prepare`)",
            file=sys.stderr,
        )
        return {}
    return {"stress": "voxinstruct_jax.data.stress_judge:StressJudge"}


def _pair(text: str) -> tuple[str, str]:
    attribute, equals, place = text.partition("=")
    if not equals or ":" not in place:
        raise ConfigError(f"--judge {text!r}: expected ATTRIBUTE=MODULE:CLASS, such as emotion=my_judges:Emotion")
    return attribute, place
