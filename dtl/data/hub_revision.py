"""Which commit of a hub's dataset is read: asked for once, then remembered beside the texts that are made of it."""

import json
import re
from contextlib import suppress
from pathlib import Path

from dtl.base.files import read_json, write_atomically
from dtl.base.network import hub_endpoint, without_password
from dtl.errors import CheckpointError, DataError

NEWEST = "main"  # the hub's name for the newest commit
FOLDER = "hub"  # in the cache: a small file for each dataset
DEADLINE_S = 10.0  # for the hub's answer; whether it answers at all has been asked before


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a commit's full sha, which needs no hub to be known."""
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def remembered(cache: Path, dataset: str) -> str | None:
    """The sha of the commit that earlier starts with this cache used; None when there was none."""
    try:
        sha = read_json(_file(cache, dataset)).get("sha")
    except (OSError, CheckpointError):  # missing or damaged: the hub is asked again
        return None
    return sha if isinstance(sha, str) and is_commit(sha) else None


def remember(cache: Path, dataset: str, sha: str) -> None:
    """Use this commit from now on. A cache that cannot be written is no error: the next start asks again."""
    with suppress(OSError):
        (cache / FOLDER).mkdir(parents=True, exist_ok=True)
        write_atomically(_file(cache, dataset), json.dumps({"dataset": dataset, "sha": sha}) + "\n")


def _file(cache: Path, dataset: str) -> Path:
    return cache / FOLDER / f"{dataset.replace('/', '--')}.json"


def ask_for_commit(dataset: str, revision: str, key: str) -> str:
    """The sha of the commit that the hub has under this name now. `key` is where its settings stand, for messages.

    Raises DataError when there is no such dataset or revision, when it may not be read, or when the hub fails.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        sha = HfApi().dataset_info(dataset, revision=revision, timeout=DEADLINE_S).sha
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{key}={dataset}: the hub has no such dataset, or it is private. Look for it at "
            f"{without_password(hub_endpoint())}/datasets; a private one needs `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{dataset}: has no revision '{revision}'. Give a branch, a tag or a commit's sha, or none."
        ) from error
    except HFValidationError as error:
        raise DataError(f"{key}={dataset}: is no name of a dataset, such as roneneldan/TinyStories.") from error
    except Exception as error:  # whatever its network, proxy and parser raise
        raise DataError(
            f"{dataset}: the hub did not say its revision ({type(error).__name__}: "
            f"{without_password(str(error))[:200]}). Try again."
        ) from error
    if not is_commit(sha):
        raise DataError(f"{dataset}: the hub named '{sha}' as its revision, which is no commit. Try again.")
    return str(sha)
