#!/bin/bash
# Trains on several nodes of a SLURM cluster, and goes on by itself after preemption, time limit or the loss of a node.
#
#   sbatch --nodes 4 --gpus-per-node 8 --time 24:00:00 launch/slurm.sh voxinstruct train CONFIG --out DIR
#
# One process a node with all its GPUs; `--ntasks-per-node 8 --gpus-per-task 1` gives each GPU its own. All else that
# sbatch takes can stand before this file. The folder of submission is shared by the nodes: there lie the log, the
# compile cache and two small files that count. A run that was preempted and has saved (exit code 75) is queued again,
# free of charge; one that failed is queued again $RETRIES times (default 3); wrong use (exit code 2) is not.
#
#SBATCH --job-name=voxinstruct
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=TERM@120

set -uo pipefail

if [ $# -eq 0 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "usage: sbatch [--nodes N ...] $0 voxinstruct train CONFIG --out DIR [--a.b value ...]" >&2
    exit 2
fi

preempted=75
wrong_use=2
retries=${RETRIES:-3}
restarts=${SLURM_RESTART_COUNT:-0}
folder=${SLURM_SUBMIT_DIR:-$PWD}
failures="$folder/voxinstruct-$SLURM_JOB_ID.failures" # one line a failure: preemptions raise SLURM_RESTART_COUNT as well
export SAID="$folder/voxinstruct-$SLURM_JOB_ID.said" # the exit codes of those tasks that ended in an orderly way
rm -f "$SAID"

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Below the ports that systems give out by themselves; another one after each restart.
export JAX_COORDINATOR_ADDRESS="$head_node:$((20000 + (SLURM_JOB_ID + restarts) % 10000))"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$folder/.jax-cache}
export PYTHONUNBUFFERED=1

# What a task does. It outlives the signal that its program answers by saving. That a program was preempted or wrongly
# used is told by a file: a bad exit code has the others killed, before they are through, and theirs hides it.
# shellcheck disable=SC2016 # expanded in the task
task='
trap : TERM
export JAX_NUM_PROCESSES=$SLURM_STEP_NUM_TASKS JAX_PROCESS_ID=$SLURM_PROCID
"$@"
code=$?
case $code in 2 | 75) echo "$code" >>"$SAID" ;; esac
if [ "$code" -eq 75 ]; then exit 0; fi
exit "$code"
'

queue_again() {
    # A job that was cancelled, or that SLURM has taken back itself, is not ours to queue.
    case $(scontrol show job --oneliner "$SLURM_JOB_ID") in
    *" JobState=RUNNING "*) scontrol requeue "$SLURM_JOB_ID" ;;
    esac
}

echo "start $((restarts + 1)) of job $SLURM_JOB_ID: $*"
signalled=
trap 'signalled=1; kill -TERM "$step" 2>/dev/null' TERM # with `--signal=B:` or `scancel --full` it comes here
srun --kill-on-bad-exit=1 --unbuffered --label bash -c "$task" task "$@" &
step=$!
while :; do
    wait "$step"
    code=$?
    [ -n "$signalled" ] || break
    signalled= # the wait was cut short, not the step
done

said() { grep -qx "$1" "$SAID" 2>/dev/null; }
if said "$wrong_use"; then
    code=$wrong_use
elif [ "$code" -eq 0 ] && said "$preempted"; then
    code=$preempted
    echo "preempted and saved"
    queue_again
elif [ "$code" -ne 0 ]; then
    echo "start $((restarts + 1)): exit code $code" >>"$failures"
    if [ "$(wc -l <"$failures")" -le "$retries" ]; then
        echo "failed with exit code $code; starting again"
        queue_again
    else
        echo "failed with exit code $code more than $retries times; giving up"
    fi
else
    rm -f "$failures"
fi
rm -f "$SAID"
exit "$code"
