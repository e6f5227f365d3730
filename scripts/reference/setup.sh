#!/usr/bin/env bash
# Makes the virtual environment of the reference implementations (torch, transformers, peft, llama.cpp; about 5.7 GB), that of
# AdapterHub's library, which needs an older transformers, or that of the programs for pictures (Ultralytics, torchvision, OpenCV).
#
#   scripts/reference/setup.sh
#   scripts/reference/setup.sh adapterhub
#   scripts/reference/setup.sh detectors
#   RETUNE_REFERENCE_VENV=/some/folder scripts/reference/setup.sh        # RETUNE_ADAPTERHUB_VENV, RETUNE_DETECTORS_VENV for the others
#
# Default folders: ~/.cache/retune/{reference,adapterhub,detectors}-venv (XDG_CACHE_HOME is honoured). Running it again only mends what is missing.
# Prints the path of the environment's python as its last line.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/retune
case ${1:-reference} in
    reference) venv=${RETUNE_REFERENCE_VENV:-$cache/reference-venv} requirements=requirements.txt modules="torch transformers peft" ;;
    adapterhub) venv=${RETUNE_ADAPTERHUB_VENV:-$cache/adapterhub-venv} requirements=requirements-adapterhub.txt modules="torch transformers adapters" ;;
    detectors) venv=${RETUNE_DETECTORS_VENV:-$cache/detectors-venv} requirements=requirements-detectors.txt modules="torch torchvision ultralytics cv2 peft" ;;
    *) echo "setup.sh: there is no environment '$1': reference, adapterhub, detectors" >&2; exit 2 ;;
esac
python=${PYTHON:-python3}

command -v "$python" >/dev/null || { echo "setup.sh: no '$python' found: install Python 3.10 or later, or name one in PYTHON" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "setup.sh: $("$python" --version) is too old: 3.10 or later is needed (name one in PYTHON)" >&2; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "setup.sh: this Python cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }

[ -x "$venv/bin/python" ] || nice -n 10 "$python" -m venv "$venv"
nice -n 10 "$venv/bin/pip" install --disable-pip-version-check --quiet -r "$here/$requirements"
"$venv/bin/python" - $modules <<'PY'
import importlib, sys
print("reference: " + ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in sys.argv[1:]))
PY
echo "$venv/bin/python"
