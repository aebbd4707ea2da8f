# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by quickstart.sh and run_tests.sh: `prepare_environment [FILE]` makes or reuses a virtual environment with the
# packages of requirements.txt and of the file, and activates it. It is `.venv` in the repository, or
# `.venv-$MINDSPORE_VERSION` for another MindSpore than the pinned one.
# Nothing is ever deleted: an environment that cannot be used is named, and the user removes it.
#
#   PYTHON=/path/to/python3.11    the Python to make it with
#   MINDSPORE_VERSION=2.10.0      another MindSpore; all other pins stay
#   VENV=/other/disk/venv         another place for the environment

REPOSITORY="$(CDPATH='' cd -- "${BASH_SOURCE[0]%/*}/.." && pwd -P)"
STAMP="vgg-environment"  # a file in a complete environment: where it was made, and what is installed there
NEEDED_KB=5000000        # the packages, and what pip unpacks while it installs them

# die LINE...: what is wrong, then what to do about it.
die() {
    printf 'error: %s\n' "$1" >&2
    shift
    [[ $# -eq 0 ]] || printf '       %s\n' "$@" >&2
    exit 2
}

python_version() { "$1" -c 'import sys; print(".".join(map(str, sys.version_info[:2])))' 2>/dev/null || true; }

# Prints the first Python that fits and can make an environment.
find_python() {
    local candidate
    local -a candidates=(python3.11 python3.12 python3.10 python3)
    [[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        case "$(python_version "$candidate")" in
            3.10 | 3.11 | 3.12)
                "$candidate" -c 'import venv, ensurepip' 2>/dev/null && printf '%s\n' "$candidate" && return
                die "$candidate has no venv and pip." "On Debian and Ubuntu: sudo apt install python3-venv" ;;
        esac
    done
    die "no Python 3.10, 3.11 or 3.12 was found (looked for: ${candidates[*]})." \
        "Install one, or name it: PYTHON=/path/to/python3.11"
}

# install FOLDER REQUIREMENTS: make the environment if it does not exist, and let pip complete it.
install() {
    local free python
    mkdir -p -- "$1" || die "$1 cannot be made"
    if [[ ! -e "$1/bin/python" && ! -L "$1/bin/python" ]]; then
        [[ -z "$(ls -A -- "$1")" ]] || die "$1 is not a virtual environment." "Remove or rename it, or set VENV=..."
        free="$(df -Pk -- "$1" | awk 'NR == 2 { print $4 }')"
        [[ ! "$free" =~ ^[0-9]+$ || "$free" -ge "$NEEDED_KB" ]] ||
            die "the environment takes 5 GB, and the disk of $1 has $((free / 1000)) MB free." \
                "Free some space, or name another place: VENV=/other/disk/venv"
        python="$(find_python)" || exit 2
        printf 'Making %s with %s ...\n' "$1" "$python"
        "$python" -m venv "$1" || die "$python could not make the virtual environment $1" "Remove it and try again."
    fi
    printf 'Installing the pinned packages into %s (MindSpore is large: this takes minutes) ...\n' "$1"
    printf '%s\n' "$2" >"$1/requirements.txt"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$1/requirements.txt" ||
        die "the packages could not be installed; the lines above say why." "The same command tries again."
    printf '%s\n' "$1" "$2" >"$1/$STAMP"
}

prepare_environment() {
    local version="${MINDSPORE_VERSION:-}" pinned folder wanted
    [[ "$version" =~ ^([0-9]+(\.[0-9a-z]+)*)?$ ]] || die "MINDSPORE_VERSION=$version is not a version, such as 2.9.0"
    pinned="$(sed -n 's/^mindspore==//p' "$REPOSITORY/requirements.txt")" || die "$REPOSITORY is not complete"
    [[ "$version" != "$pinned" ]] || version=""
    folder="${VENV:-$REPOSITORY/.venv${version:+-$version}}"
    [[ "$folder" == /* ]] || folder="$PWD/$folder"
    wanted="$(sed -e '/^#/d' -e '/^-r /d' -e "s/^mindspore==.*/mindspore==${version:-$pinned}/" \
        "$REPOSITORY/requirements.txt" ${1:+"$REPOSITORY/$1"})" || die "$REPOSITORY is not complete"
    if [[ -L "$folder/bin/python" || -e "$folder/bin/python" ]]; then
        [[ "$(python_version "$folder/bin/python")" =~ ^3\.1[0-2]$ ]] ||
            die "the Python of $folder does not run or does not fit." "Remove that environment, or set VENV=..."
        [[ ! -L "$folder" || -f "$folder/requirements.txt" ]] ||
            die "$folder is a link to an environment that was not made by this script." "Remove the link, or set VENV=..."
        [[ -z "${PYTHON:-}" || "$(python_version "$PYTHON")" == "$(python_version "$folder/bin/python")" ]] ||
            die "$folder was made with another Python than PYTHON=$PYTHON." "Remove that environment, or set VENV=..."
    fi
    [[ ! -f "$folder/$STAMP" || "$(head -n 1 "$folder/$STAMP")" == "$folder" ]] ||
        die "$folder was made as $(head -n 1 "$folder/$STAMP") and moved." "Remove that environment, or set VENV=..."
    [[ -f "$folder/$STAMP" && "$(<"$folder/$STAMP")"$'\n' == "$folder"$'\n'"$wanted"$'\n'* ]] ||
        install "$folder" "$wanted"
    unset PYTHONHOME
    export VIRTUAL_ENV="$folder" PATH="$folder/bin:$PATH"
}
