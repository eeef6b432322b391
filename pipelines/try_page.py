"""`unetpp try`: a page on this machine on which a model is tried with one's own images, depth by depth."""

from threading import Thread

from pipelines.registry.find_report import open_address
from pipelines.trying.page import build_page
from pipelines.trying.server import Server, limits
from pipelines.trying.subject import find_subject


def try_model(model: str, port: int = 0, browser: bool = True) -> None:
    """Serve the page on 127.0.0.1 until Ctrl-C.

    Args:
        model: as `unetpp predict` takes it.
        port: 0 is any that is free.
        browser: open it there.

    Raises:
        UserError: no such model, a damaged one, or a port that is taken.
    """
    subject = find_subject(model)
    page = build_page(subject, limits(subject))
    with Server(subject, page, port) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            print(f"{model}: {subject.why}\nthe page is open for this machine alone; Ctrl-C ends it")
            open_address(server.address, browser)
            server.work()
        except KeyboardInterrupt:
            print("\nended; the page answers no more")
        finally:
            server.shutdown()
