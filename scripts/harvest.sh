#!/usr/bin/env bash
# Have a model write training conversations in the background, at the lowest priority.
#
#     scripts/harvest.sh start MODEL [--tokens N]   start, or continue with the conversations in the cache
#     scripts/harvest.sh pause                      pause it in memory, before a benchmark or the tests
#     scripts/harvest.sh resume                     continue; restarts it if it has ended or was killed
#     scripts/harvest.sh stop                       end it; finished conversations are on the disk already
#     scripts/harvest.sh status                     show its progress
#     scripts/harvest.sh collect [MODEL] [FLAG ...] pack the conversations into files that come with the project
#
# --tokens: answer tokens to have in the end, including those that come with the project. Further flags are passed to
# `run_bench.py train conversations` (--workers N: several processes write), and those of collect to `train collect`. Only
# one of them runs at a time, with its workers.
# Needs Linux. PYTHON names the interpreter (default: .venv/bin/python), ROOBENCH_CACHE the cache.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
state=${ROOBENCH_CACHE:-$HOME/.cache/roobench}/harvest
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
fail() { echo "harvest.sh: $1" >&2; exit 2; }

# The writer's process id, if it is running or paused. Ids are reused, so the command is checked as well.
writer() {
    local pid
    pid=$(cat "$state/pid" 2>/dev/null) && [ -n "$pid" ] || return 1
    { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q "run_bench.py train conversations" || return 1
    echo "$pid"
}

is_paused() { grep -q '^State:[[:space:]]*T' "/proc/$1/status"; }

signal() { kill "-$1" -- "-$2"; } # to the whole process group

launch() { # the arguments of `train conversations`
    command -v "$python" >/dev/null || fail "there is no $python: run \`make test\` once, or set PYTHON"
    printf '%s\n' "$@" >"$state/arguments"
    cd "$root"
    # In a new session, so that closing the terminal does not end it. 9 is the lock, which it must not inherit. A kernel
    # that groups processes by session (autogroup) shares the processor evenly among them whatever `nice` says.
    # shellcheck disable=SC2016 # for the inner shell
    setsid bash -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null || true; exec nice -n 19 ionice -c 3 "$@"' - \
        "$python" run_bench.py train conversations "$@" >"$state/log" 2>&1 </dev/null 9>&- &
    echo $! >"$state/pid"
    echo "writing conversations in the background (process $!); its messages are in $state/log"
}

last_line() { tr '\r' '\n' <"$state/log" | sed '/^[[:space:]]*$/d' | tail -n 1; }

absolute() { if [ -e "$1" ]; then realpath "$1"; else echo "$1"; fi; } # a folder or a file; other names stay

mkdir -p "$state" || fail "cannot create $state: set ROOBENCH_CACHE to a folder that you can write to"
exec 9>"$state/lock"
flock 9

case "${1:-}" in
start)
    [ $# -ge 2 ] && [ "${2#-}" = "$2" ] || fail "give a model: scripts/harvest.sh start MODEL [--tokens N]"
    pid=$(writer) && fail "process $pid is writing already ($(paste -sd ' ' "$state/arguments")): stop it first"
    model=$(absolute "$2")
    launch --model "$model" "${@:3}"
    ;;
pause)
    pid=$(writer) || fail "nothing is running"
    signal STOP "$pid"
    echo "paused"
    ;;
resume)
    if pid=$(writer); then
        signal CONT "$pid"
        echo "going on"
    else
        [ -f "$state/arguments" ] || fail "nothing was started yet: scripts/harvest.sh start MODEL"
        mapfile -t arguments <"$state/arguments"
        launch "${arguments[@]}"
    fi
    ;;
stop)
    pid=$(writer) || fail "nothing is running"
    signal TERM "$pid"
    signal CONT "$pid" # a paused process takes no other signal
    for _ in $(seq 100); do writer >/dev/null || break; sleep 0.1; done
    writer >/dev/null && signal KILL "$pid"
    echo "stopped"
    ;;
status)
    [ -f "$state/arguments" ] || { echo "nothing was started yet"; exit 0; }
    if pid=$(writer); then
        is_paused "$pid" && echo "paused (process $pid)" || echo "running (process $pid)"
    else
        echo "not running"
    fi
    paste -sd ' ' "$state/arguments"
    last_line
    ;;
collect)
    shift
    if [ $# -ge 1 ] && [ "${1#-}" = "$1" ]; then
        model=$1
        shift
    else
        model=$(sed -n 2p "$state/arguments" 2>/dev/null) || fail "nothing was started yet: name a model"
    fi
    model=$(absolute "$model")
    cd "$root"
    "$python" run_bench.py train collect --model "$model" "$@"
    ;;
-h | --help | help) usage ;;
*)
    usage >&2
    exit 2
    ;;
esac
