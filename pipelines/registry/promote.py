"""`unetpp promote` and `unetpp rollback`: the champion by hand, with a trace of who, when and why."""

from pipelines.registry import aliases, mlflow_store
from pipelines.registry.lock import exclusive
from unetpp.errors import UserError


def promote(uri: str, model: str, why: str) -> str:
    """Make a version the champion; returns the sentence to print.

    Args:
        model: NAME@ALIAS or NAME/VERSION, with or without models:/ before it; NAME alone is its challenger.

    Raises:
        UserError: no such version, one that was never read back, one that is champion already, or no reason.
    """
    name, mark, which = _split(model)
    _check_reason(why)

    def attempt() -> str:
        client = mlflow_store.connect(uri)
        known = _find(client, name, uri)
        version = known["aliases"].get(which) if mark == "@" else which if which in known["versions"] else None
        if version is None:
            listed = ", ".join(f"@{alias}" for alias in sorted(known["aliases"]))
            raise UserError(
                f"{model}: {name} has no {mark}{which}; it has {listed or 'no alias'} and the versions "
                f"{', '.join(sorted(known['versions'], key=int)) or '(none)'}"
            )
        if client.get_model_version(name, version).tags.get("verified") != "true":
            raise UserError(
                f"{name}/{version} was not read back whole (its tag verified is not true) and is never deployed: "
                "`dvc repro --force --single-item register` registers a new version"
            )
        with exclusive(client, name) as check_turn:
            former = aliases.find_aliases(client, name).get(aliases.CHAMPION)
            if former == version:
                raise UserError(f"{name}/{version} is the champion already")
            check_turn()
            aliases.crown(client, name, version, "champion, promoted by hand", why)
        return f"{name}: version {version} is champion" + (f", version {former} was it" if former else "")

    return mlflow_store.persistent(uri, attempt)


def rollback(uri: str, name: str, why: str) -> str:
    """Make the former champion the champion again; returns the sentence to print.

    Raises:
        UserError: no such model, no former champion, or no reason.
    """
    name = name.removeprefix("models:/")
    _check_reason(why)

    def attempt() -> str:
        client = mlflow_store.connect(uri)
        _find(client, name, uri)
        with exclusive(client, name) as check_turn:
            check_turn()
            gone, back = aliases.roll_back(client, name, why)
        return f"{name}: version {back} is champion again, version {gone} was it"

    return mlflow_store.persistent(uri, attempt)


def _split(model: str) -> tuple[str, str, str]:
    name = model.removeprefix("models:/")
    for mark in ("@", "/"):
        before, found, after = name.partition(mark)
        if found:
            if before and after:
                return before, mark, after
            raise UserError(f"found {model!r}; expected NAME@ALIAS, NAME/VERSION, or NAME for its challenger")
    return name, "@", aliases.CHALLENGER


def _check_reason(why: str) -> None:
    if not why.strip():
        raise UserError("--why is empty; say in a sentence why, for those who look at this model later")


def _find(client, name: str, uri: str) -> dict:
    models = {model.name for model in client.search_registered_models()}
    if name not in models:
        raise UserError(
            f"{mlflow_store.shown(uri)} holds no registered model {name!r}; it holds "
            f"{', '.join(sorted(models)) or 'none'}"
        )
    versions = client.search_model_versions(f"name = '{name}'")
    found = {str(version.version) for version in versions}
    return {"aliases": aliases.find_aliases(client, name), "versions": found}
