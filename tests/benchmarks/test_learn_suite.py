"""suite=learn: every side learns the same sequences, and the time to a loss is that of the line through two lengths."""

import math
from dataclasses import replace

import pytest
import torch

from dtl.benchmarks import learn, learn_sides
from dtl.benchmarks.config import SUITES, BenchConfig, TextConfig
from dtl.benchmarks.learn import seconds_to
from dtl.benchmarks.learn_sides import Learning, Learnt, Modded, NorMuon, orthogonal
from dtl.benchmarks.suite import Workplace, made_articles_file

SIDES = ["published", "tuned", "modded"]


def place(tmp_path, **settings) -> Workplace:
    return Workplace(BenchConfig(suite="learn", **settings), tmp_path)


# --- the time to a loss -------------------------------------------------------------------------------------------


def test_the_time_to_a_loss_lies_between_two_lengths():
    side = Learnt(7, [100, 400], [10.0, 40.0], [3.0, 2.0])
    assert [seconds_to(loss, side) for loss in (3.0, 2.5, 2.0)] == pytest.approx([10.0, 20.0, 40.0])
    assert seconds_to(1.5, side) == pytest.approx(80.0)  # twice the last, as half a nat is before it
    assert seconds_to(2.5, Learnt(7, [100], [10.0], [2.3])) == 10.0
    for losses in ([2.0, 2.0], [2.0, 2.1], [math.nan, 2.0], [3.2, 3.1], [1.0, 0.9]):  # none of them near a loss of 2
        assert seconds_to(2.0, replace(side, losses=losses)) is None


@pytest.fixture
def ran(monkeypatch) -> list[Learning]:
    """Sides that need 10, 80, 40 and 15 seconds to a loss of 2, a tenth more in each further round; what was run."""
    works: list[Learning] = []
    times = {"dtl": 10.0, "published": 80.0, "tuned": 40.0, "modded": 15.0, "hf": 60.0}

    def run(work: Learning) -> Learnt:
        works.append(work)
        seconds = times[work.side] * (1 + 0.1 * (work.seed - 5))
        if work.side in ("published", "hf"):
            return Learnt(7_000_000, [11], [seconds], [2.0])
        weights = {"fp32": 1.5, "int8": 1.5}
        return Learnt(7_000_000, [3, 7], [seconds / 2, seconds * 2], [2.5, 1.5], weights)

    monkeypatch.setattr(learn, "_run", run)
    monkeypatch.setattr(learn, "peer", lambda *given: None)
    return works


def test_rows_of_characters(tmp_path, ran):
    (tmp_path / "a.txt").write_text("some text")
    given = BenchConfig(suite="learn", seed=5, rounds=2, data=TextConfig(str(tmp_path / "a.txt")))
    said: list[str] = []
    rows = list(learn.characters(Workplace(given, tmp_path, said.append)))
    assert [row.name for row in rows] == [f"learn_char_{side}" for side in SIDES]
    assert [row.ratio.median for row in rows if row.ratio] == pytest.approx([8.0, 4.0, 1.5])
    assert [row.reached for row in rows] == [True, True, True]
    assert (rows[0].ours, rows[0].peer) == pytest.approx((10.5, 84.0))
    assert rows[0].note == (
        "to a loss of 2.000; 7.00 million parameters: 3 steps 2.500, 7 steps 1.500; the peer 7.00 million parameters: "
        "11 steps 2.000, one thread"
    )
    assert len(said) == 8 and said[0] == "dtl, seed 5: loss 2.5000 after 5 s, loss 1.5000 after 20 s"
    assert [work.seed for work in ran] == [5] * 4 + [6] * 4
    assert [work.side for work in ran] == ["dtl", *SIDES, *SIDES, "dtl"]  # another one first each round
    assert f"data.path='{tmp_path / 'a.txt'}'" in ran[0].words and ran[0].lengths["published"] == [2000]


def test_rows_of_articles(tmp_path, ran):
    row, bits = learn.articles(place(tmp_path, seed=5, rounds=1, quick=True))
    assert (row.name, row.ratio and row.ratio.median, row.reached) == ("learn_wiki_hf", 6.0, True)
    assert (bits.name, bits.ours, bits.peer, bits.ratio and bits.ratio.median) == ("bits_int8", 1.5, 1.5, 1.0)
    assert ran[0].lengths == learn.QUICK_ARTICLES and "trainer.eval_max_batches=4" in ran[0].words


def test_what_cannot_be_measured_is_a_skipped_row(tmp_path, ran, monkeypatch):
    rows = [row for measure in SUITES.get("learn").measurements.values() for row in measure(place(tmp_path))]
    why = [learn.TEXT_HINT] * 3 + [learn.WIKI_HINT] * 2
    assert [row.skipped for row in rows] == why and not ran
    useless = Learnt(7, [3, 5], [1.0, 2.0], [2.0, 2.0])
    row = learn._timed(rows[1], [Learnt(7, [3], [1.0], [2.0])], [useless], 2.0)
    assert row.skipped == (
        "nanoGPT, learning rate 4e-3 and fewer steps: losses after 3 and 5 steps tell no time to a loss of 2.000"
    )
    assert learn._bits(rows[-1], [{"fp32": 1.5}]).skipped == "this device decodes with fp32 weights alone"


# --- sides --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_side_learns_the_text(tmp_path, one_thread_one_seed):
    """Of the words of a run of DTL; the first loss is that of a model that knows nothing."""
    given = place(tmp_path, tiny=True)
    words = [*learn.ARTICLES, *learn.TINY_SIZE, "data.seq_len=64", "tokenizer.vocab_size=300"]
    words += ["trainer.precision=fp32", "trainer.eval_max_batches=2", f"data.cache_dir={tmp_path / 'cache'}"]
    words.append(f"data.path={made_articles_file(given, 40_000)}")
    lengths: dict[str, list[float]] = {side: [5, 23] for side in ("dtl", *SIDES)}
    for side in lengths:
        done = learn_sides.learnt(Learning(side, words, lengths, 3, "cpu"))
        assert done.steps == [5, 23] and 20_000 < done.parameters < 80_000 and min(done.seconds) > 0
        assert math.log(300) + 0.5 > done.losses[0] > done.losses[1] > 3
        if side == "dtl":
            assert done.bits["fp32"] == pytest.approx(done.bits.get("int8", done.bits["fp32"]), rel=0.01)


def test_the_port_is_causal_and_its_head_begins_at_zero(one_thread_one_seed):
    model = Modded(61, 30, 128, 4, 4)
    ids = torch.randint(61, (1, 30))
    assert model(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(61))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    changed = ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 61
    losses = [
        torch.stack([model(given[:, :n], given[:, 1 : n + 1]) * n for n in (10, 19, 20, 23)])
        for given in (ids, changed)
    ]  # fmt: skip
    same = losses[0].isclose(losses[1], rtol=1e-5)
    assert same.tolist() == [True, True, False, False]


def test_updates_have_singular_values_near_one_and_rows_of_one_size(one_thread_one_seed):
    for shape in ((3, 17, 29), (2, 29, 17)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert values.min() > 0.8 and values.max() < 1.2
    weight = torch.nn.Parameter(torch.zeros(17, 29))
    optimizer = NorMuon([weight], 0.1)
    for gradient in (torch.zeros(17, 29), torch.randn(17, 29)):  # a head of zeros gives the blocks none at first
        weight.grad = gradient
        optimizer.step()
    rows = weight.detach().norm(dim=1)
    assert rows.std() < 0.01 * rows.mean() and rows.mean().item() == pytest.approx(0.1, rel=0.2)


@pytest.mark.slow  # a process of each side
def test_the_whole_suite_runs(tmp_path):
    pytest.importorskip("transformers", reason="the peer is Hugging Face's")
    rows = [
        row
        for measure in SUITES.get("learn").measurements.values()
        for row in measure(place(tmp_path, tiny=True, rounds=1, device="cpu"))
    ]
    assert [row.name for row in rows] == [*(f"learn_char_{side}" for side in SIDES), "learn_wiki_hf", "bits_int8"]
    assert all(row.ratio is not None or "tell no time" in (row.skipped or "") for row in rows)
