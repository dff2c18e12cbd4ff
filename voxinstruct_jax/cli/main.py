"""`voxinstruct COMMAND ...`: finds the command, turns errors into one line and an exit code."""

import importlib
import keyword
import os
import select
import sys

from voxinstruct_jax.config import ConfigError, VoxError

__all__ = ["main"]

COMMANDS = {
    "demo": "speak a handful of instructions with the embedded voice and write a report",
    "import": "turn a speech corpus into a manifest, or filter a manifest",
    "annotate": "measure the attributes of a manifest's clips and write instructions",
    "prepare": "turn a manifest of audio and text into token shards",
    "train": "train a codec, units, AR, NAR or a diffusion baseline from a configuration",
    "plan": "compile a train step for a pod that is not here: does it fit, how fast can it be",
    "listening": "write a listening test as a folder that opens from disk, or analyse one",
    "testset": "write a test set as a request file",
    "synthesize": "speak one instruction, or a file of requests",
    "evaluate": "judge results: words, voice, naturalness, prosody, control, with intervals",
    "compare": "systems or settings side by side on the same requests, paired",
    "convert": "turn a training run into weights",
    "inspect": "say what a manifest, shard folder, checkpoint, run or configuration holds",
}
WRONG_USE = 2


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        0 on success, 1 on failure, 2 on wrong use.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else WRONG_USE
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"voxinstruct: no command {command!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return WRONG_USE
    # No module can be named as a keyword is: `import` lives in import_.py.
    module = importlib.import_module(f"voxinstruct_jax.cli.{command}{'_' * keyword.iskeyword(command)}")
    try:
        code = module.run(rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _nobody_reads_on():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is written on the way out
        return 1
    except VoxError as error:
        print(f"voxinstruct {command}: {error}", file=sys.stderr)
        return WRONG_USE if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"voxinstruct {command}: stopped", file=sys.stderr)
        return 1


def _nobody_reads_on() -> bool:
    """Whether the reader of our output has closed it, as `head` does once it has its lines."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _usage() -> str:
    lines = [f"  {name:<11} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: voxinstruct COMMAND [options]",
            "",
            *lines,
            "",
            "`voxinstruct COMMAND --help` has an example for each.",
        ]
    )
