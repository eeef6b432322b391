"""The aliases of a registered model: where they point, who moved them, when and why.

Production loads `champion`. The tag champion.stack lists all versions that were champion, the current one last, so that
`rollback` finds the previous one. The tag history, of each version and of the model, records every move.
"""

import getpass
import json
import socket
from contextlib import suppress
from datetime import UTC, datetime

from pipelines.core.files import scratch
from pipelines.evaluation.scored import read_depth
from pipelines.registry import mlflow_store
from pipelines.registry.model_card import Event, Family, with_history
from pipelines.registry.promotion_rules import Champion, Verdict
from unetpp.errors import UserError

CHAMPION, CHALLENGER = "champion", "challenger"
STACK, HISTORY = "champion.stack", "history"
MAX_CHARS = 4500  # of a tag: PostgreSQL keeps 5000


def whoami() -> str:
    """USER@MACHINE, as far as they are known."""
    user = "unknown"
    with suppress(OSError, KeyError):  # a container may have a user without a name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"


def find_aliases(client, name: str) -> dict[str, str]:
    """Version by alias."""
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def find_champion(client, name: str) -> Champion | None:
    """The champion with its scores on every test image."""
    version = find_aliases(client, name).get(CHAMPION)
    if version is None:
        return None
    tags = client.get_model_version(name, version).tags
    if "depth" not in tags or "test_sha256" not in tags:
        return Champion(version, None, "was not registered by this pipeline")
    with scratch() as folder:
        path = mlflow_store.download(name, version, "evidence/images.csv", folder)
        if path is None:
            return Champion(version, None, "has no evidence/images.csv")
        try:
            return Champion(version, read_depth(path, int(tags["depth"]), tags["test_sha256"]))
        except UserError as error:
            return Champion(version, None, str(error))


def record(client, name: str, version: str, what: str, why: str) -> None:
    """Add an event to the history of a version and of the model, and to both descriptions.

    If an earlier attempt already added it as the last event, it is not added again.
    """
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    event = Event(when, whoami(), version, what, " ".join(why.split())[:1000])
    of_version = (name, version), client.get_model_version, client.set_model_version_tag, client.update_model_version
    of_model = (name,), client.get_registered_model, client.set_registered_model_tag, client.update_registered_model
    for which, get, set_tag, update in (of_version, of_model):
        found = get(*which)
        events = read_history(found.tags)
        if events and events[-1].same_as(event):
            continue
        events.append(event)
        while len(text := json.dumps([vars(one) for one in events])) > MAX_CHARS:
            del events[0]
        set_tag(*which, HISTORY, text)
        update(*which, with_history(found.description or "", events))


def read_history(tags: dict[str, str]) -> list[Event]:
    """The events of a version or a model, the latest last."""
    return [Event(**one) for one in json.loads(tags.get(HISTORY, "[]"))]


def deploy(client, family: Family, versions: dict[int, str], candidate: str, verdict: Verdict | None) -> None:
    """Move the aliases to a family whose versions were all read back; `recommended` and `champion` last.

    Args:
        candidate: the version to be judged.
        verdict: the decision on it; None if it was judged before, and that verdict stands.
    """
    name = family.name
    for depth, version in versions.items():
        client.set_registered_model_alias(name, f"L{depth}", version)
    if family.recommended is not None:
        client.set_registered_model_alias(name, "recommended", versions[family.recommended])
    if verdict is None:
        return
    if verdict.promote:
        crown(client, name, candidate, CHAMPION, verdict.reason)
    else:
        record(client, name, candidate, CHALLENGER, verdict.reason)
        client.set_registered_model_alias(name, CHALLENGER, candidate)
        _mark(client, name, candidate, CHALLENGER, verdict.reason)


def crown(client, name: str, version: str, what: str, why: str) -> None:
    """Make a version the champion, and record it; the alias `challenger` is removed."""
    aliases, stack = find_aliases(client, name), read_stack(client, name)
    former = aliases.get(CHAMPION)
    for one in (former, version):  # the former one may have been made champion by hand, on MLflow's page
        if one is not None and stack[-1:] != [one]:
            stack.append(one)
    record(client, name, version, what, why)
    client.set_registered_model_tag(name, STACK, " ".join(stack[-100:]))
    client.set_registered_model_alias(name, CHAMPION, version)
    if former not in (None, version):
        _mark(client, name, str(former), "former champion", f"version {version} is champion now")
    _mark(client, name, version, CHAMPION, why)
    if CHALLENGER in aliases:
        client.delete_registered_model_alias(name, CHALLENGER)


def read_stack(client, name: str) -> list[str]:
    """The versions that were champion, the latest last, without deleted ones."""
    numbers = client.get_registered_model(name).tags.get(STACK, "").split()
    known = {str(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    return [number for number in numbers if number in known]


def roll_back(client, name: str, why: str) -> tuple[str, str]:
    """Make the previous champion the champion again; returns the replaced version and the new champion.

    Raises:
        UserError: there is no champion, or no previous one.
    """
    present = find_aliases(client, name).get(CHAMPION)
    if present is None:
        raise UserError(f"{name} has no champion; `unetpp promote {name}/VERSION --why ...` makes one")
    stack = read_stack(client, name)
    if present in stack:
        stack = stack[: len(stack) - 1 - stack[::-1].index(present)]
    if not stack:
        raise UserError(
            f"{name}: version {present} is its first champion, so there is none to return to; "
            f"`unetpp promote {name}/VERSION --why ...` makes another version the champion"
        )
    former = stack[-1]
    record(client, name, present, f"no longer champion, rolled back to version {former}", why)
    record(client, name, former, f"champion again, rolled back from version {present}", why)
    client.set_registered_model_alias(name, CHAMPION, former)
    client.set_registered_model_tag(name, STACK, " ".join(stack))
    _mark(client, name, present, "rolled back", why)
    _mark(client, name, former, CHAMPION, why)
    return present, former


def _mark(client, name: str, version: str, promotion: str, why: str) -> None:
    """Set tags to filter by. They are set after the alias: a version with these tags is not judged again."""
    tags = {"promotion_reason": " ".join(why.split())[:MAX_CHARS], "promotion_by": whoami(), "promotion": promotion}
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
