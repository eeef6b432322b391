"""What of an address is shown."""

import pytest

from pipelines.core.command import run_command
from pipelines.core.redaction import redacted
from unetpp.errors import UserError

SHOWN = {
    "https://hidden@host/a.zip": "https://***@host/a.zip",
    "https://me:hidden@host:8443/a.zip": "https://***@host:8443/a.zip",
    "postgresql+psycopg2://me:hid/hidden@db:5432/x?sslmode=hidden": "postgresql+psycopg2://***@db:5432/x?sslmode=***",
    "mysql://me:hid@hidden@db/x": "mysql://***@db/x",
    "https://host/a.zip?access_token=hidden&part=hidden": "https://host/a.zip?access_token=***&part=***",
    "https://host/a.zip?apikey=hidden#token=hidden": "https://host/a.zip?apikey=***#token=***",
    "https://host/x?X-Goog-Signature=hidden%2F=&X-Goog-Date=hidden": "https://host/x?X-Goog-Signature=***&X-Goog-Date=***",
    "https://host/x?sv=hidden;sig=hidden": "https://host/x?sv=***;sig=***",
    "https://host/x?hidden": "https://host/x?***",
    "refused with url: /set.zip?auth=hidden (no route)": "refused with url: /set.zip?auth=*** (no route)",
    'two: "ssh://hidden@host/x" and ftp://me:hidden@host': 'two: "ssh://***@host/x" and ftp://***@host',
}
KEPT = (
    "s3://bucket/a@b/c.zip",
    "https://host:8080/a@b.zip",
    "models:/nuclei@champion",
    "sqlite:////a b/mlflow.db",
    "what? did you mean train.epochs=3?",
    "found (64, 64); expected (H, W)",
)


@pytest.mark.parametrize("text", SHOWN)
def test_no_secret_of_an_address_is_shown(text):
    assert redacted(text) == SHOWN[text]
    assert redacted(SHOWN[text]) == SHOWN[text]


@pytest.mark.parametrize("text", KEPT)
def test_what_holds_no_secret_is_shown_as_it_is(text):
    assert redacted(text) == text


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (RuntimeError, 1)])
def test_neither_an_error_nor_a_traceback_shows_a_secret(capsys, kind, code):
    def fail():
        raise kind("cannot fetch https://hidden@host/a.zip?access_token=hidden")

    with pytest.raises(SystemExit) as ended:
        run_command(fail)
    printed = capsys.readouterr().err
    assert ended.value.code == code
    assert "https://***@host/a.zip?access_token=***" in printed
    assert "hidden" not in printed.replace('raise kind("cannot fetch https://***@host/a.zip?access_token=***', "")
