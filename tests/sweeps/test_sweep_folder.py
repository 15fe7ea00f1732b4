"""The folder of a sweep is one for all processes that take part in it."""

from datetime import datetime

import cloudpickle  # as joblib and submitit send a config to their workers
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

import dtl.config
from dtl.base.paths import conf_dir


@pytest.fixture
def loader():
    dtl.config.register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the stamp as a worker does: another time, another process."""
    monkeypatch.setattr(dtl.config, "_started", datetime(2031, 2, 3, 4, 5, 7))
    monkeypatch.setattr("os.getpid", lambda: 7)
    dtl.config.register()


def test_a_worker_takes_the_folder_of_the_process_that_started_the_sweep(loader, monkeypatch):
    config = loader.load_configuration("train", ["seed=1,2"], RunMode.MULTIRUN)
    folder = str(config.hydra.sweep.dir)  # read by Hydra's sweeper, which writes multirun.yaml there
    sent = cloudpickle.dumps(config)
    in_another_process(monkeypatch)
    received = cloudpickle.loads(sent)
    assert isinstance(received, DictConfig)
    job = loader.load_sweep_config(received, ["seed=1"])
    assert str(job.hydra.sweep.dir) == folder


def test_another_sweep_has_another_folder(loader, monkeypatch):
    folder = str(loader.load_configuration("train", [], RunMode.MULTIRUN).hydra.sweep.dir)
    in_another_process(monkeypatch)
    other = str(loader.load_configuration("train", [], RunMode.MULTIRUN).hydra.sweep.dir)
    assert other == "outputs/multirun/2031-02-03/04-05-07-7" != folder
