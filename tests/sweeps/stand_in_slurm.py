"""A SLURM of one machine and one user: sbatch, srun, scontrol and sacct, whichever name it is called by.

Jobs of an array run at once, each as often as it is requeued, with what its batch script says. Its folder keeps the
script (script.sh), what was called (calls.txt) and what jobs print outside srun (node.txt).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
JOB = "4242"


def install(folder: Path) -> None:
    """Make the commands in `folder`, for a PATH."""
    folder.mkdir()
    source = f"#!{sys.executable}\n{Path(__file__).read_text(encoding='utf-8')}"
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (folder / name).write_text(source, encoding="utf-8")
        (folder / name).chmod(0o755)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    (HERE / "script.sh").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    assert array, "only arrays are played here"
    for task in range(int(array[1]) + 1):
        with (HERE / "node.txt").open("ab") as output:
            node = [sys.executable, str(HERE / "sbatch"), "node", f"{task}"]
            subprocess.Popen(node, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    print(f"Submitted batch job {JOB}")


def node(task: str) -> None:
    """Run one job of the array until it is no longer requeued."""
    asked = HERE / f"requeue-{JOB}_{task}"
    of_job = {"SLURM_JOB_ID": f"{int(JOB) + int(task)}", "SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": task}
    of_task = {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for restarts in range(5):
        environment = os.environ | of_job | of_task | {"SLURM_RESTART_COUNT": f"{restarts}"}
        code = subprocess.call(["bash", str(HERE / "script.sh")], env=environment)
        preempted = code == 143 and restarts == 0  # it ended in its time of grace
        if not asked.exists() and not preempted:
            break
        asked.unlink(missing_ok=True)


def srun(words: list[str]) -> None:
    ids = {"%A": JOB, "%a": os.environ["SLURM_ARRAY_TASK_ID"], "%t": "0"}
    files = {}
    while words[0].startswith("--"):
        option = words.pop(0)
        if option in ("--output", "--error"):
            files[option] = re.sub("%[Aat]", lambda found: ids[found[0]], words.pop(0))
    with open(files["--output"], "ab") as output, open(files.get("--error", files["--output"]), "ab") as error:
        sys.exit(subprocess.call(words, stdout=output, stderr=error) % 256)


if __name__ == "__main__":
    name, words = Path(sys.argv[0]).name, sys.argv[1:]
    with (HERE / "calls.txt").open("a") as calls:
        calls.write(f"{name} {' '.join(words)}\n")
    if words[0] == "node":
        node(words[1])
    elif name == "sbatch":
        sbatch(words[-1])
    elif name == "srun":
        srun(words)
    elif name == "scontrol":
        (HERE / f"requeue-{words[1]}").touch()
    else:
        print("JobID|State|NodeList", *(f"{JOB}_{task}|RUNNING|here" for task in range(9)), sep="\n")
