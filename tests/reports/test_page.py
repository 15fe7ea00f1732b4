"""The page and its pictures: complete, without a network, safe with anybody's texts, looked at in a browser."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, make_sweep

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'dtl[report]'")

from dtl.base.json_files import sealed
from dtl.reports.build import PAGE, PICTURES, build, write
from dtl.reports.canvas import GROUND, SERIES, Skipped
from dtl.reports.config import ReportConfig
from dtl.reports.configurations import group_runs
from dtl.reports.curves import band, smoothed
from dtl.reports.metric import Metric
from dtl.reports.page import Report
from dtl.reports.reading import read_run
from dtl.reports.selection import select

HOSTILE = "<script>alert('x')</script><img src=https://example.com/x.png onerror=alert(1)>&amp;${x}$\\frac$"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MAX_BYTES = 8 * 2**20

DRAWN = [name for name in PICTURES if name != "forecast"]  # none is asked for here


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside <style>."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._open:
            self.text += data

    def named(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


def report_of(words: str, out: Path, **settings) -> tuple[Report, str]:
    """The report on `runs=words`, written to `out`; and its page."""
    config = ReportConfig(runs=words, **settings)
    config.validate()
    report = build(config, select(config.wanted(), Path("outputs")).folders, "A sweep", "python ...", lambda _: None)
    write(report, out)
    return report, (out / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def of_sweep(tmp_path_factory) -> tuple[Report, str, Path]:
    """24 runs: four learning rates, two models, three seeds; four did not finish."""
    folder = tmp_path_factory.mktemp("report")
    sweep = make_sweep(folder / "multirun/2031-01-02/03-04-05-6", steps=100)
    return *report_of(str(sweep), folder / "out"), folder / "out"


@pytest.mark.slow
def test_a_sweep_of_24_runs(of_sweep):
    report, page, out = of_sweep
    assert (len(report.runs), len(report.configurations)) == (24, 8)
    assert sorted(file.name for file in out.iterdir()) == sorted([PAGE, *(f"{name}.png" for name in DRAWN)])
    assert all((out / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in DRAWN)
    shown = Elements(page)
    for expected in (
        "n = 3 is too small to name a better configuration",
        "4 of 24 runs did not finish",
        "The loss is not finite at step 97",
        "Out of memory with micro-batches of 8 x 256 tokens",
        "model.n_heads=7: must divide model.dim=256",
        "TrainingError: nan",
        "Question: What is two plus two?",
        "loss_seconds.png",
    ):
        assert expected in shown.text, expected
    assert shown.text.count("is better than") == 0


@pytest.mark.fault("html")
def test_the_page_needs_no_network_and_runs_no_script(of_sweep):
    page = of_sweep[1]
    assert len(page.encode()) < MAX_BYTES
    shown = Elements(page)
    names = ("src", "href", "xlink:href", "srcset", "data", "action", "poster")
    targets = [value for _, attributes in shown.found for name in names if (value := attributes.get(name))]
    assert targets and all(target.startswith(("#", "data:")) for target in targets)
    assert not shown.named("script", "iframe", "object", "embed", "base", "form")
    assert not re.search(r"@import|url\((?!#)", page)
    policy = next(one for one in shown.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_it_is_accessible(of_sweep):
    shown = Elements(of_sweep[1])
    assert shown.named("html") == [{"lang": "en"}] and len(shown.named("h1")) == 1
    assert len(shown.named("caption")) == len(shown.named("table")) >= 3
    assert all(one.get("scope") in ("col", "row") for one in shown.named("th"))
    pictures = [one for one in shown.named("div") if one.get("role") == "img"]
    assert len(pictures) == len(shown.named("svg", "img")) == len(DRAWN)
    assert all(len(one.get("aria-label") or "") > 40 for one in pictures)
    identities = [attributes["id"] for _, attributes in shown.found if "id" in attributes]
    anchors = {one["href"][1:] for one in shown.named("a") if one.get("href")}
    assert anchors <= set(identities) and len(identities) == len(set(identities))


def test_colours_can_be_seen_on_both_grounds():
    """WCAG asks for a contrast of 3:1 of what is no text."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for pair in SERIES:
        for colour, ground in zip(pair, GROUND, strict=True):
            bright, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 3, (colour, ground)


@pytest.mark.fault("html")
def test_anybodys_texts_stay_texts(elsewhere):
    """In the name of a run, in settings, samples, reasons and tracebacks, and in what the plots say."""
    hostile = {"optimizer": {"name": HOSTILE, "lr": 1e-3}}
    make_run(Path("in/a"), name=HOSTILE, samples=[(HOSTILE, HOSTILE)], settings=hostile)
    make_run(Path("in/b"), samples=[(HOSTILE, "\x1b]0;title\x07\u202e")])
    failed = make_run(Path("in/c"), seed=2, state="failed", error=HOSTILE)
    (failed / "traceback.txt").write_text(HOSTILE)
    (failed / "trial.json").write_text(
        json.dumps(sealed({"state": "failed", "reason": HOSTILE, "overrides": [HOSTILE]}))
    )
    _, page = report_of("in", Path("out"))
    shown = Elements(page)
    assert not shown.named("script", "img") and "onerror" not in {name for _, one in shown.found for name in one}
    assert shown.text.count("<script>alert('x')</script>") == 5
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.slow
def test_a_large_sweep_stays_small(elsewhere):
    for number in range(70):
        make_run(Path(f"in/{number}"), lr=1e-4 * (number % 35 + 1), seed=number // 35, value=2 + number / 70, steps=600)
    report, page = report_of("in", Path("out"))
    assert len(report.configurations) == 35 and len(report.comparisons) == 35 * 34 // 2
    assert len(page.encode()) < MAX_BYTES


def test_one_run_alone(elsewhere):
    make_run(Path("run"))
    _, page = report_of("run", Path("out"))
    assert "There is one configuration: nothing to compare." in Elements(page).text
    assert "No learning rate varies" in page and "This plot needs 20 finished runs" in page


def test_scores_of_questions_have_a_table(elsewhere, without_drawings):
    """A column where a run has the score: records from before the natural wordings lack theirs."""
    make_run(Path("in/a"), lr=1e-3, figures={"exact_match/test": 0.75})
    for seed, natural in ((1, 0.5), (2, 0.75)):
        figures = {"exact_match/test": 0.875, "exact_match/natural": natural, "abstention/refused/natural": 0.5}
        make_run(Path(f"in/b{seed}"), lr=1e-2, seed=seed, figures=figures)
    _, page = report_of("in", Path("out"))
    text = " ".join(Elements(page).text.split())
    assert "configuration test natural near misses rejected lr=" in text
    assert "lr=0.01 87.5 ± 0.0 % 62.5 ± 17.7 % 50.0 ± 0.0 %" in text and "lr=0.001 75.0 % - -" in text
    make_run(Path("text"))
    assert 'id="answers"' not in report_of("text", Path("out"))[1]


def test_runs_that_never_began(elsewhere):
    Path("run").mkdir()
    Path("run/trial.json").write_text(
        json.dumps(sealed({"state": "refused", "reason": "no such key", "overrides": ["a=1"]}))
    )
    _, page = report_of("run", Path("out"))
    assert "no such key" in page and "No run has a config.yaml" in page


def test_changed_data_behind_equal_settings_is_said(elsewhere, without_drawings):
    for number, fingerprint in enumerate("aab"):
        folder = make_run(Path(f"in/{number}"), lr=1e-3 * (number + 1))
        (folder / "evaluation.json").write_text(json.dumps(sealed({"data_fingerprint": fingerprint})))
    assert "saw different data" in " ".join(report_of("in", Path("out"))[0].findings.notices)
    assert "saw different data" not in " ".join(report_of("in/[01]", Path("out"))[0].findings.notices)


@pytest.fixture
def without_drawings(monkeypatch):
    """For tests of what is said."""
    monkeypatch.setattr("dtl.reports.build._drawings", lambda *_: {})


def test_a_better_one_is_named_with_everything_that_says_why(elsewhere, without_drawings):
    noise = np.random.default_rng(5)
    for seed in range(1, 6):
        of_seed = noise.normal(0, 0.2)
        make_run(Path(f"in/a{seed}"), lr=1e-3, seed=seed, value=2.0 + of_seed + noise.normal(0, 0.01))
        make_run(Path(f"in/b{seed}"), lr=1e-2, seed=seed, value=2.1 + of_seed + noise.normal(0, 0.01))
    report, page = report_of("in", Path("out"))
    assert "lr=0.001 is better; the noise of the seeds does not explain it." in Elements(page).text
    told = report.findings.sentences[0]
    number = r"-?\d\.\d+(e-\d+)?"
    assert re.fullmatch(
        f"lr=0.001 is better than lr=0.01; difference in best validation loss {number} "
        rf"\(95 % interval {number} to {number}\), p [=<] {number}, n = 5 pairs of equal seeds; "
        f"smallest difference that this n could have shown: {number}.",
        told,
    ), told


def test_another_metric_goes_the_other_way(elsewhere, without_drawings):
    for seed in range(1, 6):
        for name, lr, score in (("a", 1e-3, 0.9), ("b", 1e-2, 0.5)):
            score += 0.001 * (seed * (3 if name == "a" else 7) % 5)
            make_run(Path(f"in/{name}{seed}"), lr=lr, seed=seed, figures={"exact_match/test": score})
    report, _ = report_of("in", Path("out"), metric="exact_match/test")
    assert report.findings.verdict == "lr=0.001 is better; the noise of the seeds does not explain it."
    assert report_of("in", Path("out"), metric="exact_match/test", higher_is_better=False)[0].comparisons[0].better == (
        "lr=0.01"
    )


@pytest.mark.slow
def test_pictures_of_an_earlier_report_go(elsewhere):
    make_run(Path("run"))
    Path("out").mkdir()
    for name in ("importance.png", "mine.png"):
        (Path("out") / name).write_text("old")
    report_of("run", Path("out"))
    assert Path("out/importance.png").exists()  # of whatever: there was no report
    report_of("run", Path("out"))
    assert not Path("out/importance.png").exists() and Path("out/mine.png").exists()


def test_importance_finds_the_setting_that_matters(elsewhere):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install optuna")
    from dtl.reports.parameters import importances

    noise = np.random.default_rng(3)
    runs = [
        ({"model": model, "lr": str(lr)}, abs(np.log10(lr) + 2.5) + 0.01 * float(noise.normal()))
        for model in ("small", "medium")
        for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
        for _ in range(3)
    ]
    before = optuna.logging.get_verbosity()
    shares = importances(["model", "lr"], runs, higher=False)
    assert next(iter(shares)) == "lr" and shares["lr"] > 0.8 and sum(shares.values()) == pytest.approx(1)
    assert optuna.logging.get_verbosity() == before


def test_importance_is_of_the_better_end(elsewhere):
    """Of 2 x 5 runs `a` alone decides the best, and mostly `b` the worst."""
    pytest.importorskip("optuna", reason="optuna is not installed: pip install optuna")
    from dtl.reports.parameters import importances

    runs = [
        ({"a": a, "b": str(b)}, 0.01 * k if a == "x" else 1.0 + b + 0.01 * k)
        for a in "xy"
        for b in range(1, 6)
        for k in range(4)
    ]
    lower, higher = (importances(["a", "b"], runs, higher) for higher in (False, True))
    assert lower["a"] > 0.8 and higher["b"] > higher["a"]


def test_without_optuna_importance_says_so(elsewhere, monkeypatch):
    from dtl.reports.parameters import importance

    for seed in range(10):
        for lr in (1e-3, 1e-2):
            make_run(Path(f"in/{lr}-{seed}"), lr=lr, seed=seed, value=2 + lr + 0.01 * seed)
    found = group_runs([read_run(folder) for folder in Path("in").iterdir()])
    assert not isinstance(importance(found, Metric()), Skipped)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert importance(found, Metric()) == Skipped("Optuna is not installed: pip install optuna")


# --- curves -------------------------------------------------------------------------------------------------------


def test_a_band_is_mean_and_range_where_all_seeds_are():
    first = np.arange(1.0, 12.0), np.arange(1.0, 12.0)
    second = np.arange(3.0, 8.0), np.full(5, 5.0)
    found = band([first, second])
    assert found and (found.x[0], found.x[-1]) == (3.0, 7.0)
    assert found.mean == pytest.approx((found.x + 5) / 2)
    assert found.low == pytest.approx(np.minimum(found.x, 5)) and found.high == pytest.approx(np.maximum(found.x, 5))
    assert band([first, (np.array([20.0]), np.array([1.0]))]) is None and band([]) is None
    long = band([(np.arange(5000.0), np.arange(5000.0))], points=101)
    assert long and len(long.x) == 101 and (long.x[0], long.x[-1]) == (0, 4999)


def test_a_running_mean_keeps_a_line():
    line = np.linspace(3.0, 7.0, 101)
    assert smoothed(line, 10)[20:80] == pytest.approx(line[20:80])
    assert smoothed(np.array([1.0, 2.0]), 10).tolist() == [1.0, 2.0]


# --- on narrow and wide windows -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_mixed_runs(tmp_path_factory) -> tuple[Report, str, Path]:
    """Runs of several kinds: many settings differ, recipes and settings have long names."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(9):
        settings = {f"part_{other}": {"a_rather_long_setting": int(other == number)} for other in range(9)}
        settings["data"] = {"path": "/home/somebody/texts/of/many/kinds/and-one-that-has-a-long-name.jsonl"[number:]}
        text = [("Once upon a time", f"there was a number, {number}")]
        run = make_run(folder / "runs" / str(number), settings=settings, value=2.0 + number / 10, samples=text)
        record = json.loads((run / "run.json").read_text())
        record["choices"]["experiment"] = "night_of_the_long_learning_rates" if number == 3 else "None"
        (run / "run.json").write_text(json.dumps(record))
    return *report_of(str(folder / "runs" / "*"), folder / "out"), folder / "out"


def rules(page: str) -> dict[str, str]:
    """The style sheet: declarations by selector."""
    style = page.partition("<style>")[2].partition("</style>")[0]
    found: dict[str, str] = {}
    for selectors, declarations in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", style)):
        for selector in selectors.split(","):
            found[selector.strip()] = f"{found.get(selector.strip(), '')} {declarations}"
    return found


@pytest.mark.slow
def test_a_table_of_many_columns_is_as_wide_as_the_window(of_mixed_runs):
    """The text is 64rem wide: at 1400 px a table of that width hides columns beside an empty margin."""
    page = of_mixed_runs[1]
    regions = [one for one in Elements(page).named("div") if one.get("aria-label") == "Table of configurations"]
    assert [str(one["class"]).split() for one in regions] == [["scroll", "wide"]]
    style = rules(page)
    assert "max-width: calc(100vw - 2.5rem)" in style[".wide"] and "max-content" in style[".wide"]
    assert "overflow-x: auto" in style[".scroll"] and "local" in style[".scroll"], "a shadow where columns are hidden"
    assert "max-width: calc(100vw - 2.5rem)" in style["caption"], "the caption is not as wide as the table"


@pytest.mark.slow
def test_what_was_measured_stands_before_the_settings_and_keys_can_break(of_mixed_runs):
    report, page, _ = of_mixed_runs
    head = page.partition("Table of configurations")[2].partition("</thead>")[0]
    assert "experiment</th>" not in head and "experiment" in report.configurations[0].settings, "it begins the label"
    assert head.index("peak GiB") < head.index("part_<wbr>0.<wbr>a_<wbr>rather_<wbr>long_<wbr>setting")
    rows = page.partition("Table of configurations")[2].partition("</tbody>")[0].split("<tr>")[2:]
    assert {row.count("<td") for row in rows} == {head.count("<th ") - 1}
    assert page.count('<td class="long">') == 9 and "overflow-wrap: anywhere" in rules(page)["td.long"]
    assert "None" not in Elements(page).text.replace("None.", "")


@pytest.mark.slow  # draws a report of its own, as the other tests of these runs do
def test_headings_of_samples_stay_in_their_columns(of_mixed_runs):
    """They hold labels: one word of 32 letters is wider than a fifth of a narrow window."""
    report, page, _ = of_mixed_runs
    assert report.samples and len(report.samples.columns) == 4
    style = rules(page)
    assert "overflow-wrap: anywhere" in style[".samples thead th"] and "white-space: normal" in style["thead th.name"]
    table = page.partition("Table of samples")[2]
    assert table.partition("<table")[2].startswith(' style="min-width: 45rem">')
    assert table.partition("</thead>")[0].count('class="name"') == 4


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")
def test_a_browser_has_nothing_to_complain_of(of_sweep, tmp_path):
    picture = tmp_path / "page.png"
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,5000", f"--screenshot={picture}"]
    page = (of_sweep[2] / PAGE).resolve().as_uri()
    done = subprocess.run([*command, page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    from matplotlib.image import imread

    pixels = imread(picture)[:, :, :3]
    assert pixels.shape[:2] == (5000, 1200)
    # Something is drawn everywhere down the page: in every tenth of it more than one colour.
    assert all(np.unique(part.reshape(-1, 3), axis=0).shape[0] > 20 for part in np.array_split(pixels, 10))


MEASURE = """<script>addEventListener("load", () => {
  const wide = document.querySelector(".wide"), root = document.documentElement;
  const cells = [...document.querySelectorAll("th, td, h1, h2, h3, dd")];
  const spilled = cells.filter((e) => e.scrollWidth > e.clientWidth + 1);
  document.title = JSON.stringify({page: root.scrollWidth - root.clientWidth, spilled: spilled.map((e) => e.innerText),
    region: wide.clientWidth, table: wide.firstElementChild.offsetWidth, window: root.clientWidth});
});</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")
@pytest.mark.parametrize("width", [500, 1000, 1400, 1920])
def test_nothing_spills_at_any_width(of_mixed_runs, tmp_path, width):
    page = re.sub(r"<meta http-equiv.*?>", "", of_mixed_runs[1]).replace("</head>", f"{MEASURE}</head>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000"]
    done = subprocess.run([*command, (tmp_path / "page.html").as_uri()], capture_output=True, text=True, timeout=120)
    measured = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert (measured["window"], measured["page"], measured["spilled"]) == (width, 0, [])
    assert measured["region"] == pytest.approx(max(min(measured["table"], width - 40), min(width - 40, 984)), abs=1)
