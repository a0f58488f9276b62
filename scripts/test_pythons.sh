#!/usr/bin/env bash
# Run what needs no torch with other Pythons: scripts/test_pythons.sh 3.12 3.13 -- tests/values ...
# One that is not on this machine, by its name or by pyenv, is passed over and said to be.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=()
while [ "$1" != "--" ]; do versions+=("$1"); shift; done
shift

# The path of a Python of a version; pyenv's own names stand for one that may not be there.
find_python() {
  local candidate
  for candidate in "python$1" "$(pyenv root 2> /dev/null || true)"/versions/"$1"*/bin/python; do
    if "$candidate" -c '' 2> /dev/null; then echo "$candidate"; return; fi
  done
}

for version in "${versions[@]}"; do
  python=$(find_python "$version")
  if [ -z "$python" ]; then echo "Python $version is not on this machine: not tested"; continue; fi
  venv=.venv-python$version
  if [ ! -f "$venv/ready" ]; then
    "$python" -m venv "$venv"
    "$python" scripts/requirements_without_torch.py > "$venv/requirements.txt"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$venv/requirements.txt"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --editable .
    touch "$venv/ready"
  fi
  "$venv/bin/pytest" -n "${WORKERS:-auto}" "$@"
done
