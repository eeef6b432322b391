"""What infra/ holds is legal to the tools that read it, and names the versions of the lock."""

import gzip
import json
import os
import re
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.cli import build_parser

REPOSITORY = Path(__file__).parents[2]
INFRA = REPOSITORY / "infra"
SCHEMAS = (
    Path(__file__).parent / "schemas"
)  # as published: KubeRay 1.7.0's CRDs, the Compose Specification (Apache-2.0)


def schema(name: str) -> dict:
    return json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes()))


def strict(node: Any) -> Any:
    """A Kubernetes schema as `kubectl apply --validate=strict` reads it: an unknown field is an error."""
    if isinstance(node, list):
        return [strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: strict(value) for key, value in node.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def kuberay(name: str) -> tuple[dict, dict]:
    """A manifest, and its schema."""
    manifest = load(INFRA / "kuberay" / f"{name}.yaml")
    rules = strict(schema(f"{name}s"))
    rules["properties"]["metadata"] = {"type": "object"}
    return manifest, rules


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_takes_the_manifest(name):
    manifest, rules = kuberay(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.validate(manifest, rules)


@pytest.mark.parametrize(
    ("path", "value"),
    [(("spec", "authOption"), {}), (("spec", "authOptions", "mode"), "password"), (("spec", "rayVersion"), 2.6)],
)
def test_kuberay_s_schema_refuses_what_is_wrong(path, value):
    manifest, rules = kuberay("raycluster")
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, rules)


def cluster_specs() -> list[dict]:
    return [
        load(INFRA / "kuberay" / "raycluster.yaml")["spec"],
        load(INFRA / "kuberay" / "rayjob.yaml")["spec"]["rayClusterSpec"],
    ]


@pytest.mark.parametrize("spec", cluster_specs(), ids=["raycluster", "rayjob"])
def test_kuberay_s_nodes_are_what_training_needs(spec):
    assert spec["rayVersion"] == metadata.version("ray")
    assert spec["authOptions"]["mode"] == "token"
    pods = [spec["headGroupSpec"]["template"]["spec"]] + [one["template"]["spec"] for one in spec["workerGroupSpecs"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted >= {"/dev/shm", "/home/unetpp/.cache/unetpp"}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == container["image"].endswith(":cuda")


def test_gcs_fault_tolerance_is_on_for_the_cluster_that_stays():
    assert load(INFRA / "kuberay" / "raycluster.yaml")["spec"]["gcsFaultToleranceOptions"]["redisAddress"]


def test_compose_takes_the_file():
    jsonschema.Draft7Validator(schema("compose")).validate(load(INFRA / "compose.yaml"))


def test_compose_asks_for_every_secret_and_publishes_to_this_machine_alone():
    text = (INFRA / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)", text))
    offered = {line.partition("=")[0] for line in (INFRA / "env.example").read_text().splitlines() if "=" in line}
    assert asked == offered
    services = load(INFRA / "compose.yaml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for service in services.values():
        assert ":latest" not in service["image"]


@pytest.mark.slow
def test_compose_starts_commands_that_exist():
    """Each command's options are known to the very programs of the lock."""
    services = load(INFRA / "compose.yaml")["services"]
    checked = 0
    for service in services.values():
        words = shlex.split(service["command"]) if isinstance(service.get("command"), str) else []
        if words[:1] not in (["mlflow"], ["ray"]):
            continue
        module = {"mlflow": "mlflow", "ray": "ray.scripts.scripts"}[words[0]]
        shown = subprocess.run(
            ["python", "-m", module, words[1], "--help"], capture_output=True, text=True, check=True, env=os.environ
        ).stdout
        for word in words[2:]:
            if word.startswith("--"):
                assert re.search(rf"{word.partition('=')[0]}\b", shown), f"{words[0]} {words[1]} knows no {word}"
                checked += 1
    assert checked > 8


def test_ray_s_launcher_takes_the_cluster_for_aws():
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = fillout_defaults(load(INFRA / "aws.yaml"))
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config | {"idle_timeout": 10})
    assert config["head_node_type"] in config["available_node_types"]


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_dockerfile_copies_what_exists_and_the_context_has_it():
    allowed = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert source in allowed, f"{source} is not in the context that .dockerignore leaves"


def test_dockerfile_ends_without_root_and_installs_the_lock():
    found = instructions()
    assert {name for name, _ in found} <= {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    users = [rest for name, rest in found if name == "USER"]
    assert users[-1:] == ["unetpp"]
    assert any(name == "RUN" and "-r requirements.lock" in rest for name, rest in found)
    bases = {rest.split()[0] for name, rest in found if name == "FROM"}
    assert len(bases) == 1, "what was built for one Python runs on the same one"
    assert all(":" in base and not base.endswith(":latest") for base in bases)


def test_image_turns_every_call_home_off():
    from unetpp.offline import TELEMETRY_OFF

    environment = next(rest for name, rest in instructions() if name == "ENV")
    for name, value in TELEMETRY_OFF.items():
        assert f"{name}={value}" in environment


def test_every_command_of_ours_that_infra_names_exists():
    parser = build_parser()
    found = re.findall(
        r"#\s+unetpp (.+?)(?:\s{2,}#.*)?$", (INFRA / "kuberay" / "rayjob.yaml").read_text(), re.MULTILINE
    )
    assert len(found) == 2
    for line in found:
        parser.parse_args(shlex.split(line))


COUNT = "import ray; ray.init(logging_level='ERROR'); print(len(ray.nodes()), 'nodes')"
SHIMS = {
    "scontrol": 'printf "127.0.0.1\\n127.0.0.1\\n"',
    # As Slurm does: the command on the node, in the foreground.
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@" --node-ip-address=127.0.0.1',
    "dvc": f'echo "dvc $*"; exec python -c "{COUNT}"',
}


@pytest.mark.ray
def test_slurm_script_starts_a_cluster_runs_the_stage_on_it_and_leaves_nothing(tmp_path):
    from tests.servers import free_port

    folder = tmp_path / "shims"
    folder.mkdir()
    for name, body in SHIMS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    # The stand-ins of Slurm come first; `.venv` of the folder that the script is submitted from is not there.
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "UNETPP_RAY_PORT": str(free_port()),
    }
    command = ["bash", str(INFRA / "slurm.sh"), "train", "-S", "train.num_workers=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dvc exp run -S train.num_workers=2 train" in done.stdout
    assert "2 nodes" in done.stdout
    assert not list(tmp_path.glob(".ray-token*"))
    left = subprocess.run(["pgrep", "-f", f"=127.0.0.1:{environment['UNETPP_RAY_PORT']}"], capture_output=True)
    assert left.returncode == 1, left.stdout
