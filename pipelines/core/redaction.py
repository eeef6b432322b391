"""What of an address may be printed, written or kept: neither user, password nor the values of its query.

Any of them may be a token or a signature, whatever the key is called, so none is shown. `redacted` is for each address
that leaves the process: manifests, logs, pages, MLflow's params, errors.
"""

import re

_ADDRESS = re.compile(r"\b[A-Za-z][\w+.-]*://[^\s\"<>]+")
# A password may hold a slash; a port is no password.
_USER = re.compile(r"://(?:[^:/?#\s]*:(?!\d+(?:[/?#]|$))[^?#\s]*|[^/?#\s]*)@")
_VALUE = re.compile(r"([?&#;][\w.\[\]%~+-]+=)[^&#;\s\"<>]+")
_BARE = re.compile(r"([?#])[^=&#\s\"<>]+(?=#|$)")  # a query or fragment without a key

_SECRET_KEY = r"secret|password|passwd|pwd|token|credential|access_?key|api_?key|signature"
SECRET_KEYS = re.compile(_SECRET_KEY, re.IGNORECASE)
SECRET_VALUES = {
    "an AWS access key id": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a password in an address": re.compile(r"\w://[^/\s@]*:[^/\s@]+@"),
    "a token in an address": re.compile(r"\bhttps?://[^/\s@]+@", re.IGNORECASE),
    "a signed address": re.compile(
        rf"[?&#;](X-(Amz|Goog)-[\w-]+|sig|auth|key|code|jwt|[\w-]*({_SECRET_KEY})[\w-]*)=", re.IGNORECASE
    ),
}


def redacted(text: str) -> str:
    """The text with `***` for user and password of each address in it, and for each value of a query or fragment."""
    text = _ADDRESS.sub(lambda found: _BARE.sub(r"\1***", _USER.sub("://***@", found[0])), text)
    return _VALUE.sub(r"\1***", text)
