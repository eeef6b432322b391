#!/bin/bash
# One stage on the nodes of a Slurm allocation: a Ray head on the first node, a raylet on each other, then the stage.
#   sbatch --nodes=4 --gpus-per-node=8 infra/slurm.sh train -S train.num_workers=32 -S train.use_gpu=true
# The project's folder, with its .venv, must be on storage that all nodes share. Checkpoints are in runs/, so
# that an interrupted or requeued job resumes from the last one when the command is rerun.
#SBATCH --job-name=unetpp
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=unetpp-%j.log
set -euo pipefail
stage="${1:?the stage to run, such as train; further arguments go to dvc exp run}"
shift
cd "${SLURM_SUBMIT_DIR:-$PWD}"
export PATH="$PWD/.venv/bin:$PATH"
# Ray's port on the head: jobs that share a node must use different ones.
port="${UNETPP_RAY_PORT:-6379}"
cpus="${SLURM_CPUS_PER_TASK:-1}"
gpus="${SLURM_GPUS_ON_NODE:-0}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# Only those who can read this user's files can use the cluster. The file is on shared storage, so all nodes have it.
umask 077
token="$PWD/.ray-token-$SLURM_JOB_ID"
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token" RAY_USAGE_STATS_ENABLED=0
# A socket's path has at most 107 bytes, and belongs on node-local storage.
folder="$(mktemp -d /tmp/ray-XXXXXX)"
address="${nodes[0]}:$port"
raylets=()
cleanup() {
    for pid in "${raylets[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$token" "$folder"
}
trap cleanup EXIT
start() {  # on node $1: ray start with the other arguments
    local node="$1"
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
        ray start --block --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats "$@" &
    raylets+=("$!")
}
start "${nodes[0]}" --head --port="$port" --include-dashboard=false --temp-dir="$folder" \
    --resources='{"trial_driver": 1000}'
python - "$address" <<'PYTHON'
import socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
for _ in range(300):
    with socket.socket() as probe:
        if probe.connect_ex((socket.gethostbyname(host), int(port))) == 0:
            sys.exit(0)
    time.sleep(0.4)
sys.exit(f"error: {sys.argv[1]}: no Ray head after two minutes; its log is above")
PYTHON
for node in "${nodes[@]:1}"; do start "$node" --address="$address"; done
python - "$address" "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray
ray.init(address=sys.argv[1], logging_level="ERROR")
for _ in range(300):
    if sum(node["Alive"] for node in ray.nodes()) >= int(sys.argv[2]):
        sys.exit(0)
    time.sleep(0.4)
sys.exit(f"error: {sum(n['Alive'] for n in ray.nodes())} of {sys.argv[2]} nodes joined {sys.argv[1]} in two minutes")
PYTHON
export RAY_ADDRESS="$address"
if [ "$#" -gt 0 ]; then dvc exp run "$@" "$stage"; else dvc repro "$stage"; fi
