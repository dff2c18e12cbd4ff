"""Argument parsing with the project's exit codes and one-line errors."""

import argparse
from typing import NoReturn

from voxinstruct_jax.config import ConfigError

__all__ = ["parse", "parse_known"]


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parses all arguments.

    Raises:
        ConfigError: They do not fit; `--help` prints and leaves as usual.
    """
    options, rest = parse_known(parser, arguments)
    if rest:
        raise ConfigError(f"unknown argument {rest[0]}; see --help")
    return options


def parse_known(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """As `parse`, and returns what it does not know."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")

    parser.error = refuse  # argparse would print its usage and leave the process
    return parser.parse_known_args(arguments)
