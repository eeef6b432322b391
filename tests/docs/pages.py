"""The Markdown pages of the repository: their headings, links and commands, as a reader finds them."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

# Its pages are parts of another one, or what a project's run writes.
NOT_PAGES = ("studies/",)
JOINTS = {"&&", "||", "|", ";", "&", "do", "--"}  # a command begins after each


def find_pages() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\n")
    names = {name for name in listed if name and not name.startswith(NOT_PAGES)}
    return sorted(path for name in names if (path := REPOSITORY / name).is_file())


def split(page: Path) -> tuple[str, list[str]]:
    """The text of a page without its blocks of code, and the lines of those that may hold commands."""
    text, code = page.read_text(encoding="utf-8"), []

    def take(block: re.Match) -> str:
        if block["language"] in ("", "sh"):
            code.extend(re.sub(r"\\\n\s*", "", block["body"]).splitlines())
        return "\n"

    text = re.sub(r"^( *)```(?P<language>\w*)\n(?P<body>.*?)^ *```$", take, text, flags=re.MULTILINE | re.DOTALL)
    indented = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    # What a command prints stands so, too; where it tells what to do next, an explanation follows after some spaces.
    code += [re.split(r" {2,}", line.strip())[0] for line in re.sub(r"\\\n\s*", "", indented).splitlines()]
    return text, code


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page, as GitHub and the site call its headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", split(page)[0], re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = sum(one == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", one) is not None for one in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, but for addresses."""
    text = re.sub(r"`[^`\n]*`", "", split(page)[0])
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [one for one in found if not re.match(r"[a-z]+:", one)]


def commands(page: Path) -> Iterator[list[str]]:
    """The commands in a page's blocks of code, as words, without variables that are set before them."""
    for line in split(page)[1]:
        try:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
        except ValueError:
            continue  # an apostrophe: what a command prints
        command: list[str] = []
        for word in [*words, ";"]:
            if word in JOINTS:
                if command:
                    yield command
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)


def inline_commands(page: Path, program: str) -> list[list[str]]:
    """Commands of a program within sentences and tables, as words; they may leave arguments out."""
    found = re.findall(rf"`({program} [^`\n]+)`", split(page)[0])
    return [one.split() for one in found]
