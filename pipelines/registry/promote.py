"""`unetpp promote` and `unetpp rollback`: change the champion by hand, and record who, when and why."""

from pipelines.registry import aliases, mlflow_store, model_versions
from pipelines.registry.lock import exclusive
from unetpp.errors import UserError


def promote(uri: str, model: str, why: str) -> str:
    """Make a version the champion; returns the sentence to print.

    Args:
        model: NAME@ALIAS or NAME/VERSION, with or without models:/; NAME alone means its challenger.

    Raises:
        UserError: there is no such version, it was not read back, it is already the champion, or no reason is given.
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
                f"{name}/{version} was not verified after registration (its tag `verified` is not true) and cannot be "
                "promoted: `dvc repro --force --single-item register` registers a new version"
            )
        with exclusive(client, name) as check_turn:
            former = aliases.find_aliases(client, name).get(aliases.CHAMPION)
            if former == version:
                raise UserError(f"{name}/{version} is already the champion; nothing was changed")
            check_turn()
            aliases.crown(client, name, version, "champion, promoted by hand", why)
        return f"{name}: version {version} is now champion" + (f", replacing version {former}" if former else "")

    return mlflow_store.persistent(uri, attempt)


def rollback(uri: str, name: str, why: str) -> str:
    """Make the previous champion the champion again; returns the sentence to print.

    Raises:
        UserError: there is no such model, no previous champion, or no reason is given.
    """
    name = name.removeprefix("models:/")
    _check_reason(why)

    def attempt() -> str:
        client = mlflow_store.connect(uri)
        model_versions.find_model(client, name)
        with exclusive(client, name) as check_turn:
            check_turn()
            gone, back = aliases.roll_back(client, name, why)
        return f"{name}: version {back} is champion again, replacing version {gone}"

    return mlflow_store.persistent(uri, attempt)


def _check_reason(why: str) -> None:
    if not why.strip():
        raise UserError("--why is empty; give the reason in a sentence, for those who look at this model later")
