"""`unetpp promote` and `unetpp rollback`: the champion by hand, with a trace of who, when and why."""

from pipelines.registry import aliases, mlflow_store, model_versions
from pipelines.registry.lock import exclusive
from unetpp.errors import UserError


def promote(uri: str, model: str, why: str) -> str:
    """Make a version the champion; returns the sentence to print.

    Args:
        model: NAME@ALIAS or NAME/VERSION, with or without models:/ before it; NAME alone is its challenger.

    Raises:
        UserError: no such version, one that was never read back, one that is champion already, or no reason.
    """
    address = f"models:/{model.removeprefix('models:/')}"
    if not set("@/") & set(model.removeprefix("models:/")):
        address += f"@{aliases.CHALLENGER}"
    name, _, _ = model_versions.parse_uri(address)
    _check_reason(why)

    def attempt() -> str:
        client = mlflow_store.connect(uri)
        found = model_versions.find_version(client, address)
        version = str(found.version)
        if found.tags.get("verified") != "true":
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
        model_versions.find_model(client, name)
        with exclusive(client, name) as check_turn:
            check_turn()
            gone, back = aliases.roll_back(client, name, why)
        return f"{name}: version {back} is champion again, version {gone} was it"

    return mlflow_store.persistent(uri, attempt)


def _check_reason(why: str) -> None:
    if not why.strip():
        raise UserError("--why is empty; say in a sentence why, for those who look at this model later")
