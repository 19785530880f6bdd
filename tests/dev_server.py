"""`langgraph dev`, started for real: on loopback, without browser, tunnel or telemetry."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import servers

if TYPE_CHECKING:
    from typing_extensions import Self

OURS = "langgraph_harness_saver.server.checkpointer"
GRAPHS = Path(__file__).with_name("server_graphs.py")
NAMES = ("steps", "nested", "remembers", "chat", "slow", "approved", "fan", "loop")

# Loaded by the server's process before anything else: what would reach outside is refused and written down,
# and so is what is left at the end.
SITE = """
import atexit, ipaddress, sys, threading

def is_local(host):
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False

def note(text):
    with open("notes.txt", "a") as notes:
        notes.write(text + "\\n")

def watch(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if not is_local(host):
        note(f"outside: {event} {host!r}")
        raise PermissionError(f"tests stay on this machine, and this is {host!r}")

sys.addaudithook(watch)
MAIN = threading.main_thread()

@atexit.register
def tell():
    for thread in threading.enumerate():
        if thread is not MAIN and thread.name.startswith("harness"):
            note(f"thread: {thread.name}")
"""


def reason_not_to_run() -> str | None:
    """Say why no dev server can run here, or nothing where one can."""
    if sys.version_info < (3, 11):
        return "LangGraph's dev server needs Python 3.11"
    if importlib.util.find_spec("langgraph_api") is None or importlib.util.find_spec("langgraph_cli") is None:
        return "LangGraph's dev server is not installed: pip install 'langgraph-cli[inmem]'"
    return None


def environment(variables: dict[str, str]) -> dict[str, str]:
    prefixes = ("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_", "HARNESS_SAVER_", "OTEL_", "PG")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(prefixes)},
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        "LANGSMITH_TRACING": "false",
        "PYTHONUTF8": "1",
        **variables,
    }


class DevServer:
    """One server process after another in one folder, which keeps their threads and runs."""

    def __init__(
        self,
        folder: Path,
        *,
        checkpointer: str | None = OURS,
        config: dict[str, Any] | None = None,
        **env: str,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        site = folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        graphs = {name: f"{GRAPHS}:{name}" for name in NAMES}
        settings: dict[str, Any] = {"dependencies": ["."], "graphs": graphs, **(config or {})}
        if checkpointer is not None:
            settings["checkpointer"] = {"path": checkpointer}
        (folder / "langgraph.json").write_text(json.dumps(settings), encoding="utf-8")
        self.env = environment({"PYTHONPATH": str(site), **env})
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            print(self.log()[-8000:])
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        path = self.folder / "server.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def notes(self) -> str:
        path = self.folder / "notes.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def start(self) -> None:
        self.port = servers.free_port()
        command = [
            sys.executable,
            "-m",
            "langgraph_cli",
            "dev",
            "--no-browser",
            "--no-reload",
            "--n-jobs-per-worker",
            "20",
        ]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if not self._answers():
            text = self.log()
            self.stop()
            raise AssertionError(f"the server did not start:\n{text[-8000:]}")

    def _answers(self) -> bool:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process is not None and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/ok", timeout=5) as answer:
                    if answer.status == 200:
                        return True
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        return False

    def stop(self) -> int | None:
        """Stop as Ctrl-C does; return the exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        process.send_signal(signal.SIGINT)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not stop:\n{self.log()[-8000:]}") from None
