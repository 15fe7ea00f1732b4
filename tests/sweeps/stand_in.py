"""A stand-in for `python -m dtl.train` in a trial: the same files and exit codes, in a tenth of a second.

`plan=` among its overrides selects the behaviour; a resumed one follows the plan that is stored in its folder.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from dtl.base.json_files import sealed

words = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
resumed = "resume" in words
folder = Path((words["resume"] if resumed else words["hydra.run.dir"]).strip("'"))
folder.mkdir(parents=True, exist_ok=True)
kept = folder / "kept.json"
state = json.loads(kept.read_text()) if resumed else {"plan": words["plan"], "step": 0, "arguments": []}
plan, wanted = state["plan"], float(words.get("lr", state.get("lr", 0.5)))
state |= {"lr": wanted, "arguments": [*state["arguments"], sys.argv[1:]]}


def write_result(outcome: str, **more: object) -> None:
    result = {"state": outcome, "value": wanted, "step": state["step"], "config_hash": "x", **more}
    (folder / "result.json").write_text(json.dumps(sealed(result)))


def save() -> None:
    kept.write_text(json.dumps(state))
    (folder / "checkpoints" / f"step-{state['step']:08}").mkdir(parents=True, exist_ok=True)


def stop(number: int, frame: object) -> None:
    save()
    write_result("interrupted")
    sys.exit(128 + number)


signal.signal(signal.SIGINT, signal.SIG_IGN if plan == "deaf" else stop)


def watch() -> None:
    import threading

    def end() -> None:
        while os.read(0, 1):
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=end, daemon=True).start()


watch()
(folder / "ready").touch()
if plan == "crash":
    (folder / "error.json").write_text(json.dumps({"type": "ValueError", "message": "ValueError: planted\nmore"}))
    (folder / "traceback.txt").write_text("Traceback ... planted")
    write_result("failed", error="ValueError: planted")
    sys.exit(1)
if plan == "too large":
    (folder / "error.json").write_text(
        json.dumps({"type": "DoesNotFitError", "message": "This run needs about 71.0 GiB"})
    )
    sys.exit(3)
if plan == "exit":
    sys.exit(7)
if plan == "leave":  # a part of the user's own that calls exit() in the middle of the training
    write_result("failed", error="SystemExit: 0")
    sys.exit(0)
if plan == "vanish":
    os._exit(0)
if plan in ("kill", "killed once"):
    state["plan"] = "finish"
    if plan == "killed once":
        save()
    os.kill(os.getpid(), signal.SIGKILL)
if plan == "segv":
    os.kill(os.getpid(), signal.SIGSEGV)
if plan == "paused":
    write_result("stopped")
    sys.exit(0)
while plan in ("wait", "deaf"):
    time.sleep(0.02)
if plan == "wait once":
    state["plan"] = "finish"
    while True:
        time.sleep(0.02)
state["step"] += 5
save()
write_result("finished")
