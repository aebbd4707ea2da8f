# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by quickstart.sh and run_tests.sh: `prepare_environment` makes or reuses the virtual environment of the
# repository and activates it. It is `.venv`, or `.venv-$MINDSPORE_VERSION` for another MindSpore than the pinned one.
#
#   PYTHON=/path/to/python3.11    the Python to make it with, instead of the first that fits
#   MINDSPORE_VERSION=2.10.0      another MindSpore; all other pins stay

REPOSITORY="$(CDPATH='' cd -- "${BASH_SOURCE[0]%/*}/.." && pwd -P)"
ENV_STAMP="vgg-environment"  # in the environment: what is installed there; only a complete one has it
ENV_OWNER="made-by-env.sh"   # in the environment: this script made it, so this script may remove it
ENV_ELSEWHERE="vgg-environment."  # begins the name of one that is not in the repository, for want of room
NEEDED_KB=5000000                 # its packages, what pip unpacks on the way, and what the tests write

# die LINE...: what is wrong, then what to do about it.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    [[ $# -eq 0 ]] || printf '       %s\n' "$@" >&2
    exit 2
}

# lock NAME: wait until no other script of this repository holds NAME. It is held until `unlock`, or the script's end.
lock() {
    command -v flock >/dev/null || return 0  # not everywhere; without it, two at once is the user's risk
    { exec 9>"$REPOSITORY/$1.lock"; } 2>/dev/null || die "$REPOSITORY cannot be written"
    if ! flock -n 9; then
        printf 'Waiting for another script that works on %s ...\n' "$1" >&2
        flock 9
    fi
}

unlock() { exec 9>&-; }

# The requirement lines, with the MindSpore version asked for.
wanted_requirements() {
    local file line
    for file in requirements.txt requirements-dev.txt; do
        [[ -f "$REPOSITORY/$file" ]] || die "$REPOSITORY/$file is missing: the repository is not complete"
        while IFS= read -r line || [[ -n "$line" ]]; do
            case "$line" in
                '' | '#'* | '-r '*) ;;
                'mindspore=='*) printf 'mindspore==%s\n' "${MINDSPORE_VERSION:-${line#mindspore==}}" ;;
                *) printf '%s\n' "$line" ;;
            esac
        done <"$REPOSITORY/$file"
    done
}

environment_name() {
    local version="${MINDSPORE_VERSION:-}"
    [[ "$version" =~ ^([0-9]+(\.[0-9a-z]+)*)?$ ]] || die "MINDSPORE_VERSION=$version is not a version, such as 2.9.0"
    if [[ $'\n'"$(<"$REPOSITORY/requirements.txt")"$'\n' == *$'\n'"mindspore==$version"$'\n'* ]]; then
        version=""
    fi
    printf '%s\n' ".venv${version:+-$version}"
}

python_version() { "$1" -c 'import sys; print(*sys.version.split())' 2>/dev/null || printf 'none\n'; }

python_fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

# Prints the first Python that fits and can make an environment; else says what is missing.
find_python() {
    local candidate bare=""
    local -a candidates=(python3.11 python3.12 python3.10 python3)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        python_fits "$candidate" || continue
        if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            # The one below an active environment, which may be the very one that is made anew.
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", "") or sys.executable)'
            return
        fi
        bare="${bare:-$candidate}"
    done
    [[ -z "$bare" ]] || die "$bare has no venv and pip (the modules venv and ensurepip)." \
        "On Debian and Ubuntu: sudo apt install python3-venv (or python3.11-venv, as your Python is named)."
    die "no Python 3.10, 3.11 or 3.12 was found (looked for: ${candidates[*]})." \
        "Install one, or name it: PYTHON=/path/to/python3.11 bash scripts/quickstart.sh"
}

# describe_environment FOLDER: where it is, its Python and its packages. Scripts in an environment hold its path, so one
# that was moved with the repository must be made anew.
describe_environment() {
    printf '%s\n' "$1"
    python_version "$1/bin/python"
    wanted_requirements
}

# install_requirements FOLDER: into an environment that is there; leaves no stamp behind if it fails.
install_requirements() {
    local -a quiet=(--quiet)
    [[ ! -t 1 ]] || quiet=()
    rm -f -- "$1/$ENV_STAMP"
    "$1/bin/python" -m pip --version >/dev/null 2>&1 || die "$1 has no pip. Remove that folder and start again."
    printf 'Installing the pinned packages into %s (MindSpore is large: this takes a minute or more) ...\n' "$1"
    wanted_requirements >"$1/requirements.txt"
    "$1/bin/python" -m pip install --disable-pip-version-check --no-input ${quiet[@]+"${quiet[@]}"} \
        -r "$1/requirements.txt" || die "the packages could not be installed; the lines above say why." \
        "pip needs access to the package index, and 5 GB must be free on the disk."
    describe_environment "$1" >"$1/$ENV_STAMP.new"
    mv -- "$1/$ENV_STAMP.new" "$1/$ENV_STAMP"
}

has_room() {
    local free=""
    { read -r && read -r _ _ _ free _; } < <(df -Pk -- "$1" 2>/dev/null) || true
    [[ -w "$1" && ( ! "$free" =~ ^[0-9]+$ || "$free" -ge "$NEEDED_KB" ) ]]
}

# make_folder FOLDER: an empty one in the repository or, where its disk is too full, a link to one with room.
make_folder() {
    local place home
    if has_room "$REPOSITORY"; then
        mkdir -- "$1"
        return
    fi
    for place in "${TMPDIR:-/tmp}" /dev/shm; do
        if has_room "$place" && home="$(mktemp -d "$place/${ENV_ELSEWHERE}XXXXXX")"; then
            printf 'The disk of %s is nearly full: the environment goes to %s.\n' "$REPOSITORY" "$home"
            export TMPDIR="$home/tmp"
            mkdir -- "$TMPDIR"
            ln -s -- "$home" "$1"
            return
        fi
    done
    die "an environment takes 5 GB, which are free neither in $REPOSITORY nor in ${TMPDIR:-/tmp} or /dev/shm." \
        "Make room, or name a folder on another disk: TMPDIR=/large/disk bash scripts/quickstart.sh"
}

# make_environment FOLDER: a new one, in place of an incomplete or moved one that was made here.
make_environment() {
    local python
    python="$(find_python)"
    [[ ! -L "$1" ]] || rm -rf -- "$(readlink -- "$1")"
    rm -rf -- "$1"
    printf 'Making %s with %s ...\n' "$1" "$python"
    make_folder "$1"
    : >"$1/$ENV_OWNER"
    "$python" -m venv "$(cd -P -- "$1" && pwd)" || die "$python could not make the virtual environment $1"
}

# Somebody else made it: it is used as it is, never removed.
environment_is_foreign() {
    if [[ -L "$1" && ! -e "$1" && "$(readlink -- "$1")" == *"/$ENV_ELSEWHERE"?????? ]]; then
        return 1  # made here, in memory or in /tmp, and gone with a restart of the machine
    fi
    [[ -e "$1" || -L "$1" ]] && [[ ! -e "$1/$ENV_OWNER" ]] && ! rmdir -- "$1" 2>/dev/null
}

# is_python_asked_for VERSION: any is, unless the user names one.
is_python_asked_for() { [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$1" ]]; }

# The environment can be kept: it is complete, where it was made, and of the Python that was asked for.
environment_is_whole() {
    local made_at="" made_with=""
    [[ ! -f "$1/$ENV_STAMP" ]] || { read -r made_at && read -r made_with; } <"$1/$ENV_STAMP" || true
    [[ "$made_at" == "$1" && "$made_with" == "$(python_version "$1/bin/python")" ]] && is_python_asked_for "$made_with"
}

prepare_environment() {
    local folder name
    wanted_requirements >/dev/null  # an incomplete repository shows here, before anything is made
    name="$(environment_name)"
    folder="$REPOSITORY/$name"
    lock "$name"
    if ! environment_is_whole "$folder"; then
        if ! environment_is_foreign "$folder"; then
            make_environment "$folder"
        elif ! python_fits "$folder/bin/python" || ! is_python_asked_for "$(python_version "$folder/bin/python")"; then
            die "$folder was not made by this script, and its Python does not fit." "Remove or rename that folder."
        fi
        install_requirements "$folder"
    elif [[ "$(describe_environment "$folder")" != "$(<"$folder/$ENV_STAMP")" ]]; then
        install_requirements "$folder"
    fi
    unlock
    [[ ! -L "$folder" || ! -d "$folder/tmp" ]] || export TMPDIR="$(readlink -- "$folder")/tmp"  # as when it was made
    unset PYTHONHOME
    export VIRTUAL_ENV="$folder" PATH="$folder/bin:$PATH"
}
