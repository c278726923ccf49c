# Sourced by the scripts here: makes .venv and installs the project into it, once per extra.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.10 or newer with venv is needed (on Debian: apt install python3-venv); set PYTHON to use another one" >&2
  return 1
}

# ensure_venv EXTRA: afterwards $venv holds the project with that extra, as pyproject.toml and constraints.txt say now.
ensure_venv() {
  local stamp="$venv/installed-$1" python
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    echo "Creating $venv with $("$python" --version)" >&2
    "$python" -m venv "$venv"
  fi
  if [ ! "$stamp" -nt "$root/pyproject.toml" ] || [ ! "$stamp" -nt "$root/constraints.txt" ]; then
    echo "Installing umd-edge[$1]; the first time takes a few minutes" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$root/constraints.txt" --editable "$root[$1]" >&2
    touch "$stamp"
  fi
}
