#!/bin/sh
# Written by unetpp init; runs the unetpp of the environment whose dvc called it, active or not; else that on PATH.
process=$PPID
while [ "${process:-0}" -gt 1 ]; do
    if [ -r "/proc/$process/cmdline" ]; then
        program=$(tr '\000' '\n' <"/proc/$process/cmdline" | head -n 1)
        process=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$process/status")
    else
        program=$(ps -o args= -p "$process")
        process=$(ps -o ppid= -p "$process" | tr -d ' ')
    fi
    bin=${program%%/bin/python*}/bin
    if [ "$bin" != "$program/bin" ] && [ -x "$bin/unetpp" ]; then
        PATH=$bin:$PATH
        export PATH
        break
    fi
done
if ! command -v unetpp >/dev/null; then
    echo "error: found no unetpp on PATH or beside dvc: activate the environment in which it is installed" >&2
    exit 2
fi
exec unetpp "$@"
