"""suite=data: from raw text to batches, beside the loops that people write without DTL."""

from dtl.benchmarks.config import SUITES
from dtl.benchmarks.dump_memory import dump_memory
from dtl.benchmarks.dump_reading import dump_reading
from dtl.benchmarks.loading import loading
from dtl.benchmarks.opening import opening
from dtl.benchmarks.suite import Suite
from dtl.benchmarks.tokenising import tokenising
from dtl.benchmarks.waste import waste

SUITES.register("data")(
    Suite(
        {
            "tokenising": tokenising,
            "dump": dump_reading,
            "dump_memory": dump_memory,
            "loader": loading,
            "opening": opening,
            "waste": waste,
        },
        long=frozenset({"dump_memory"}),
    )
)
