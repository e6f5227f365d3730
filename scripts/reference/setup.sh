#!/usr/bin/env bash
# Makes the virtual environment of the reference implementations (torch, transformers, peft, llama.cpp; about 5.7 GB).
#
#   scripts/reference/setup.sh
#   RETUNE_REFERENCE_VENV=/some/folder scripts/reference/setup.sh
#
# Default folder: ~/.cache/retune/reference-venv (XDG_CACHE_HOME is honoured). Running it again only mends what is missing.
# Prints the path of the environment's python as its last line.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${RETUNE_REFERENCE_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/retune/reference-venv}
python=${PYTHON:-python3}

command -v "$python" >/dev/null || { echo "setup.sh: no '$python' found: install Python 3.10 or later, or name one in PYTHON" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "setup.sh: $("$python" --version) is too old: 3.10 or later is needed (name one in PYTHON)" >&2; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "setup.sh: this Python cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }

[ -x "$venv/bin/python" ] || nice -n 10 "$python" -m venv "$venv"
nice -n 10 "$venv/bin/pip" install --disable-pip-version-check --quiet -r "$here/requirements.txt"
"$venv/bin/python" - <<'PY'
import torch, transformers, peft
print(f"reference: torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
PY
echo "$venv/bin/python"
