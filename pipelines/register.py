"""The register stage: log a run, register a version for every depth, and move the aliases that deploy them.

The order: upload, read back, compare hashes, load in a new process, compare predictions; only then move the aliases.
Registering the same model and metrics again gives the same run and versions. If the store is lost on the way,
the aliases stay on the previous family, and rerunning the command completes what was started.
"""

import argparse
import hashlib
from pathlib import Path

from pipelines import detail
from pipelines.console.progress import watched
from pipelines.core.checksums import SUMS
from pipelines.core.delivery_sections import Register
from pipelines.core.files import check_outputs, read_results, scratch, write_json
from pipelines.core.git import git_commit
from pipelines.core.params import load_params
from pipelines.core.redaction import redacted
from pipelines.evaluation.depth_table import summary
from pipelines.evaluation.scored import read_depth
from pipelines.registry import aliases, evidence, mlflow_store, model_versions, read_back, run_log, runs
from pipelines.registry.lock import exclusive
from pipelines.registry.model_card import Family, family_description, version_description, with_history
from pipelines.registry.promotion_rules import Verdict, judge
from pipelines.registry.run_log import Inputs, flatten
from unetpp.data.manifest import Manifest, read_manifest
from unetpp.errors import UserError
from unetpp.files import check_sha256, sha256
from unetpp.models.listing import read_exports
from unetpp.models.model_file import load_model


def register(inputs: Inputs, params: dict, settings: Register, uri: str) -> dict:
    """Log and register the family; returns the contents of versions.json.

    Args:
        params: all of params.yaml, to be logged.

    Raises:
        UserError: files do not belong together, the store is unreachable, or a version does not predict what its
            network predicts.
    """
    family = read_family(inputs, settings)
    return mlflow_store.persistent(uri, lambda: register_family(family, inputs, params, settings, uri))


def register_family(family: Family, inputs: Inputs, params: dict, settings: Register, uri: str) -> dict:
    """One attempt; a further one resumes where it ended."""
    name, client = family.name, mlflow_store.connect(uri)
    where = runs.experiment_id(client, settings.experiment)
    mlflow_store.create_once(client.create_registered_model, name)
    with exclusive(client, name) as check_turn:
        run_name = f"{name} {family.fingerprint[:8]}"
        with runs.open_run(client, where, run_name, family.fingerprint, family.trained.info.get("run")) as run:
            if run.info.status != "FINISHED":
                detail(f"logging run {run.info.run_name}: params, curves, datasets, report")
                with scratch() as folder:
                    run_log.log_run(client, run, family, inputs, params, folder)
            depths = watched(family.trained.depths, "registering, depths")
            versions = {depth: register_depth(client, run, family, inputs, depth) for depth in depths}
            check_versions(client, family, versions)
        describe(client, run, family, versions)
        candidate = versions[family.candidate]
        verdict = decide(client, family, inputs, candidate, settings)
        # Last: until here, loading by alias gives the previous family.
        check_turn()
        aliases.deploy(client, family, versions, candidate, verdict)
        found = aliases.find_aliases(client, name)
    promotion = client.get_model_version(name, candidate).tags
    return {
        "model_name": name,
        "tracking_uri": redacted(uri),
        "run_id": run.info.run_id,
        "experiment_id": where,
        "versions": {f"L{depth}": int(version) for depth, version in versions.items()},
        "recommended": None if family.recommended is None else f"L{family.recommended}",
        "candidate": int(candidate),
        "promotion": promotion.get("promotion"),
        "promotion_reason": promotion.get("promotion_reason"),
        "champion": int(found[aliases.CHAMPION]) if aliases.CHAMPION in found else None,
    }


def read_family(inputs: Inputs, settings: Register) -> Family:
    """Read and check the files of the earlier stages."""
    trained = load_model(inputs.model)
    report, manifest_path = inputs.evaluation / "report.json", inputs.prepared / "manifest.json"
    metrics = read_results(report, "evaluate", ("depths", "recommended_depth", "recommendation", "test"))
    manifest = read_manifest(inputs.prepared)
    manifest.check(inputs.prepared, "test")  # overlays are drawn on these images
    assert trained.sha256 is not None
    advice = "it was measured on another model: run `dvc repro evaluate`"
    check_sha256(f"{report}: model_sha256", str(metrics.get("model_sha256")), trained.sha256, advice)
    engines = inputs.evaluation / evidence.ENGINES
    if engines.is_file():  # evaluations of earlier versions did not write it
        found = str(read_results(engines, "evaluate", ("engines", "model_sha256"))["model_sha256"])
        check_sha256(f"{engines}: model_sha256", found, trained.sha256, advice)
    advice = "it was measured on other test images: run `dvc repro evaluate`"
    check_sha256(f"{report}: test", str(metrics["test"].get("sha256")), manifest.splits["test"].sha256, advice)
    if inputs.exports:
        read_exports(inputs.exports, trained.sha256)
    hashes = trained.sha256 + sha256(report)
    commit, dirty = git_commit(Path.cwd())
    return Family(
        name=settings.model_name,
        trained=trained,
        metrics=metrics,
        manifest=manifest,
        data_sha256=sha256(manifest_path),
        fingerprint=hashlib.sha256(hashes.encode()).hexdigest(),
        commit=commit,
        dirty=dirty,
        licence=settings.licence,
        intended_use=settings.intended_use,
        leak_check=read_leak_check(inputs.prepared, manifest),
        exports=evidence.find_carried(inputs.exports, trained.depths[-1]),
    )


def read_leak_check(prepared: Path, manifest: Manifest) -> str:
    """Whether any group or near-duplicates are in two splits, according to stage prepare.

    That stage refuses such data; data prepared by other means have no fingerprint.
    """
    path = prepared / "fingerprint.json"
    if manifest.num_groups is None or not path.is_file():
        return "not known: the data have no fingerprint of stage prepare"
    found = read_results(path, "prepare", ("duplicates",))["duplicates"]
    what = f"{manifest.num_groups} groups and {found['num_pairs']} pairs of near-duplicates"
    if found["across"]:
        return f"failed: of {what}, {found['across']} pairs are in two splits"
    return f"passed: of {what}, none is in two splits"


def register_depth(client, run, family: Family, inputs: Inputs, depth: int) -> str:
    """Log, measure and register one depth with its evidence; returns its version."""
    tags = family.tags(depth) | {"run_id": run.info.run_id}
    config = flatten(family.trained.segmenter(depth).network.config() | {"depth": depth})
    measured = inputs.evaluation / evidence.ENGINES
    model = model_versions.find_or_log_model(
        client, run, f"L{depth}", family.trained, depth, config, tags, inputs.exports, measured
    )
    # The depth is the step, so that the run's charts show each number by depth.
    metrics = [(key, value, depth) for key, value in run_log.numbers(family.metrics["depths"][f"L{depth}"])]
    test = ("test", family.manifest.splits["test"].sha256)
    runs.log_metrics(client, run, metrics, model.model_id, test)
    if "evidence_sha256" not in model.tags:
        with scratch() as folder:
            evidence.gather(folder, inputs.evaluation, inputs.prepared, family.trained, depth)
            client.log_model_artifacts(model.model_id, str(folder), "evidence")
            client.set_logged_model_tags(model.model_id, {"evidence_sha256": sha256(folder / SUMS)})
    tags |= {"model_id": model.model_id}
    return str(model_versions.find_or_create_version(client, family.name, model, run, tags).version)


def check_versions(client, family: Family, versions: dict[int, str]) -> None:
    """Read every version back: verify its files by their hashes, and its predictions in a new process.

    Raises:
        UserError: names the versions that failed; they are tagged, and never used again.
    """
    models = {depth: client.get_model_version(family.name, version).tags for depth, version in versions.items()}
    models = {depth: client.get_logged_model(tags["model_id"]) for depth, tags in models.items()}
    reasons = {}
    for depth, model in models.items():
        expected = model.tags["evidence_sha256"]
        if reason := read_back.check_evidence(family.name, versions[depth], expected):
            reasons[depth] = reason
    reasons = read_back.check_in_clean_process(family.name, versions, family.trained) | reasons
    for depth, version in versions.items():
        model_versions.mark_verified(client, family.name, version, models[depth].model_id, depth not in reasons)
        if depth not in reasons:
            detail(f"L{depth} is version {version}: read back and verified")
    if reasons:
        lines = [
            f"version {versions[depth]} of {family.name} (L{depth}), read back from "
            f"{redacted(client.tracking_uri)}, {reason}"
            for depth, reason in sorted(reasons.items())
        ]
        raise UserError(
            "; ".join(lines)
            + ". No alias was moved. Each is tagged verified = false; rerun the command to register new versions"
        )


def decide(client, family: Family, inputs: Inputs, candidate: str, settings: Register) -> Verdict | None:
    """Whether the candidate becomes champion; None if this stage or a person decided that before."""
    champion = aliases.find_aliases(client, family.name).get(aliases.CHAMPION)
    tags = client.get_model_version(family.name, candidate).tags
    if champion is not None and "promotion" in tags:
        return None
    if champion == candidate:  # an earlier attempt ended after moving the alias, before setting the tags
        return Verdict(True, aliases.read_history(tags)[-1].why)
    test = family.manifest.splits["test"].sha256
    return judge(
        family.metrics,
        read_depth(inputs.evaluation / "images.csv", family.candidate, test),
        aliases.find_champion(client, family.name),
        settings.promotion_tolerance_iou,
        settings.promotion_min_images,
        settings.promotion_tolerance_ap,
    )


def describe(client, run, family: Family, versions: dict[int, str]) -> None:
    """Write the descriptions of every version, of the registered model, and of the run; their history is kept."""
    for depth, version in versions.items():
        history = aliases.read_history(client.get_model_version(family.name, version).tags)
        text = with_history(version_description(family, versions, depth), history)
        client.update_model_version(family.name, version, text)
    text = family_description(family, versions)
    history = aliases.read_history(client.get_registered_model(family.name).tags)
    client.update_registered_model(family.name, with_history(text, history))
    client.set_tag(run.info.run_id, "mlflow.note.content", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Register every depth of the trained network in MLflow.")
    parser.add_argument("--prepared", type=Path, required=True, help="folder of the prepare stage")
    parser.add_argument("--model", type=Path, required=True, help="folder of the train stage")
    parser.add_argument("--curves", type=Path, required=True, help="curves.csv of the train stage")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of the evaluate stage")
    parser.add_argument("--search", type=Path, help="folder of search.csv and curves.csv of the search stage")
    parser.add_argument("--exports", type=Path, help="folder of the export stage")
    parser.add_argument("--out", type=Path, required=True, help="versions.json to write")
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    check_outputs(files=[out], inputs=filter(None, arguments.values()))
    params = load_params()
    uri = mlflow_store.tracking_uri(params.registry.tracking_uri)
    found = register(Inputs(**arguments), params.model_dump(by_alias=True, mode="json"), params.registry, uri)
    write_json(out, found)
    print(f"register: version {found['candidate']} is {found['promotion']}: {found['promotion_reason']}")
    print(f"\n{summary(arguments['evaluation'], out)}")


if __name__ == "__main__":
    from pipelines.core.command import run_command

    run_command(main)
