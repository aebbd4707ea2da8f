# SPDX-License-Identifier: Apache-2.0
# Sourced by the launchers: where the project is, and which Python runs it.

SCRIPTS=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname -- "$SCRIPTS")

# $PYTHON, else that of the active environment, else of the project's own one, else the python on the path.
project_python() {
    local python
    [ -z "${PYTHON:-}" ] || { printf '%s\n' "$PYTHON"; return; }
    for python in "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "$ROOT/.venv/bin/python" python3 python; do
        command -v -- "$python" && return
    done
    echo "no Python found; bash scripts/quickstart.sh makes one" >&2
    return 2
}

# begin COUNT ARGUMENT...: sets `python`. The comment at the top of the script answers --help, and fewer arguments.
begin() {
    local text
    text=$(sed -n '3,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0")
    case "${2:-}" in
        -h | --help) printf '%s\n' "$text"; exit 0 ;;
    esac
    [ $# -gt "$1" ] || { printf '%s\n' "$text" >&2; exit 2; }
    python=$(project_python)
}

# become COMMAND...: what this script was for; with DRY_RUN=1 it is printed, and nothing starts.
become() {
    case "${DRY_RUN:-0}" in
        0) exec "$@" ;;
    esac
    printf '%q ' "$@"
    printf '\n'
}
