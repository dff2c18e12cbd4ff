#!/usr/bin/env bash
# Trains on this machine, with all its devices in one process, and starts again after a stop that left the run unfinished.
# Usage: launch/local.sh CONFIG OUT [--a.b value ...]
# Exit codes of `train`: 0 finished, 1 failed or interrupted (run the same line again to go on), 2 wrong use.
set -euo pipefail
config=${1:?usage: launch/local.sh CONFIG OUT [--a.b value ...]}
out=${2:?usage: launch/local.sh CONFIG OUT [--a.b value ...]}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/voxinstruct/jax}
exec uv run voxinstruct train "$config" --out "$out" "${@:3}"
