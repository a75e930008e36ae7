#!/bin/sh
# Installs blip-edge from this folder, without a network, and answers the sample:
#   sh run.sh
# Then, whatever blip-edge can do with this bundle:
#   sh run.sh caption photo.jpg
#
# PYTHON  the interpreter (python3)
# VENV    folder to install into (beside this one); "none" uses PYTHON as it is, installing nothing
# DEVICE  where the sample runs: OpenVINO's device, a chip's number, or simulator
here=$(cd "$(dirname "$0")" && pwd) || exit 2
python=${PYTHON:-python3}
venv=${VENV:-$here.venv}
wheels=$here/wheels
say() { echo "error: $*" >&2; exit 2; }

if [ "$venv" = none ]; then
    set_path=$(echo "$wheels"/blip_edge-*.whl)
    PYTHONPATH=$set_path${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
elif ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    "$python" -m venv @VENV_OPTIONS@"$venv" ||
        say "$python cannot make $venv; install its venv module, or set PYTHON, VENV"
    # No settings of this machine, no index: these very files, by their digests.
    (cd "$wheels" && PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -m pip --isolated \
        --disable-pip-version-check install --quiet --no-compile --no-index --no-deps \
        --require-hashes --find-links . -r "$here/requirements.txt") ||
        say "pip cannot install these wheels; they are for @PYTHON@"
    cp "$here/requirements.txt" "$venv/installed.txt" || exit 2
fi
[ "$venv" = none ] || python=$venv/bin/python

"$python" -c "import @IMPORTS@" ||
    say "a package is missing: install @PACKAGES@ for $python@HINT@"
BLIP_EDGE_ARTIFACTS=$here
export BLIP_EDGE_ARTIFACTS
[ $# -gt 0 ] && exec "$python" -m blip_edge "$@"
exec "$python" -m blip_edge.bundles.smoke_test "$here" ${DEVICE:+--device "$DEVICE"}
