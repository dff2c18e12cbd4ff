#!/bin/bash
# Trains on Cloud TPU machines that are asked for as a queued resource, and asks for new ones when they are taken away.
#
#   launch/tpu_queued_resource.sh --name NAME --zone ZONE --type v5litepod-256 --runtime v2-alpha-tpuv5-lite \
#       [--slices 2] [--spot] [--setup COMMAND] [--retries 3] [--poll 60] \
#       -- voxinstruct train CONFIG --out /mnt/runs/NAME
#
# Runs where gcloud is set up (a small machine that stays), until training is done; then the TPUs are given back. New
# machines are bare: --setup runs on every host after each creation, and makes the package and one shared folder
# appear there (a file system that all hosts mount). --out and the compile cache ($JAX_COMPILATION_CACHE_DIR) lie in it.
# Machines that were taken away and runs that were preempted and saved (exit code 75) are free of charge; failures of
# the program are started again up to --retries times; wrong use (exit code 2) is not.

set -uo pipefail

preempted=75
wrong_use=2
name='' zone='' type='' runtime='' slices=1 spot='' setup='' retries=3 poll=60

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit "$wrong_use"
}

while [ $# -gt 0 ]; do
    case $1 in
    --spot) spot=--spot && shift && continue ;;
    --) shift && break ;;
    --name | --zone | --type | --runtime | --slices | --setup | --retries | --poll)
        [ $# -ge 2 ] || usage
        printf -v "${1#--}" %s "$2" && shift 2
        ;;
    *) usage ;;
    esac
done
if [ -z "$name" ] || [ -z "$zone" ] || [ -z "$type" ] || [ -z "$runtime" ] || [ $# -eq 0 ]; then usage; fi

queued_resources() { gcloud compute tpus queued-resources "$1" "$name" --zone="$zone" "${@:2}"; }

state() { queued_resources describe --format='value(state.state)' 2>/dev/null || echo ABSENT; }

create() {
    if [ "$slices" -gt 1 ]; then
        set -- --node-count="$slices" --node-prefix="$name"
    else
        set -- --node-id="$name"
    fi
    queued_resources create --accelerator-type="$type" --runtime-version="$runtime" ${spot:+"$spot"} "$@"
}

# Returns once the machines are there and set up.
have_machines() {
    local now
    while :; do
        now=$(state)
        case $now in
        ACTIVE) [ -z "$fresh" ] || [ -z "$setup" ] || on_all_hosts "$setup" || { pause "set-up failed" && continue; }
            fresh=
            return ;;
        ABSENT)
            fresh=1
            create || pause "no queued resource yet"
            ;;
        SUSPENDED | FAILED) queued_resources delete --quiet --force || pause "cannot be deleted yet" ;;
        *) pause "$now" ;; # ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, DELETING ...
        esac
    done
}

pause() {
    echo "$name: $1" >&2
    sleep "$poll"
}

# One connection a slice: gcloud does not hold more than 64 hosts of a queued resource at once, of a slice all.
on_all_hosts() {
    local slice node code=0 own connections=()
    for ((slice = 0; slice < slices; slice++)); do
        node=$name
        [ "$slices" -eq 1 ] || node=$name-$slice
        gcloud compute tpus tpu-vm ssh "$node" --zone="$zone" --worker=all --batch-size=all --command="$1" &
        connections+=($!)
    done
    for connection in "${connections[@]}"; do
        wait "$connection"
        own=$?
        # A failure counts more than a preemption.
        if [ "$own" -ne 0 ] && { [ "$code" -eq 0 ] || [ "$code" -eq "$preempted" ]; }; then code=$own; fi
    done
    return "$code"
}

command=$(printf '%q ' "$@")
cache=${JAX_COMPILATION_CACHE_DIR:+JAX_COMPILATION_CACHE_DIR=$(printf %q "$JAX_COMPILATION_CACHE_DIR")}
# What an earlier connection may have left running still holds the chips.
train="kill -KILL \$(cat /tmp/voxinstruct.pid) 2>/dev/null; echo \$\$ >/tmp/voxinstruct.pid;
exec env VOXINSTRUCT_CLUSTER=gcetpu PYTHONUNBUFFERED=1 $cache $command"

failures=0
fresh=1 # machines that were found here may not be set up either
while :; do
    have_machines
    on_all_hosts "$train"
    code=$?
    case $code in
    0) break ;;
    "$wrong_use") break ;;
    "$preempted") echo "$name: preempted and saved" >&2 ;;
    *)
        pause "exit code $code" # a machine that was taken away shows as such a little later
        if [ "$(state)" = ACTIVE ]; then
            failures=$((failures + 1))
            [ "$failures" -le "$retries" ] || break
        fi
        ;;
    esac
done
queued_resources delete --quiet --force
exit "$code"
