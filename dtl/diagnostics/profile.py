"""What trainer=amp4060, the default profile, would choose on this machine. Imports torch when asked."""

import yaml
from omegaconf import OmegaConf

from dtl.base.paths import conf_dir
from dtl.config import RunConfig
from dtl.diagnostics.findings import Finding

PROFILE = "amp4060"
DATA = ("qa", "wiki")


def profiled(data: str) -> RunConfig:
    """The run of trainer=amp4060 with data=`data`, all else by default; its plugins are not loaded."""
    files = {"trainer": conf_dir() / "trainer" / f"{PROFILE}.yaml", "data": conf_dir() / "data" / f"{data}.yaml"}
    values = {section: yaml.safe_load(file.read_text(encoding="utf-8")) for section, file in files.items()}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), values))
    assert isinstance(config, RunConfig)
    return config


def look_at_profile() -> Finding:
    """Device and precision with their reasons, and the batches that data recommends."""
    from dtl.base.runtime import choose_device, choose_precision

    configs = {data: profiled(data) for data in DATA}
    trainer = configs[DATA[0]].trainer
    device, device_reason = choose_device(configs[DATA[0]].device)
    precision, precision_reason = choose_precision(trainer.precision, device)
    batches = ", ".join(
        f"{config.micro_batch_size} x {config.grad_accum_steps} (data={data})" for data, config in configs.items()
    )
    compiled = "compiled" if trainer.compile else "eager"
    return Finding(
        [
            (f"trainer={PROFILE}", f"{device} ({device_reason}); {precision} ({precision_reason}); {compiled}"),
            ("", f"micro-batch x accumulation: {batches}"),
        ]
    )
