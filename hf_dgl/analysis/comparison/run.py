"""The same recipe under several methods, seeds and settings: what each leaves on the test split, and how sure that is.

Every run is the command that a user would type, in a process of its own:

    hf-dgl train RECIPE --method METHOD --seed SEED --output_dir OUT/METHOD-SEED

Runs differ in nothing but method, seed and what is swept or tuned: the Trainer draws the order of the data from the
seed. Model selection uses the validation split; the test split is scored once.

`unimodal` trains one model per modality that has this encoder only (`--method unimodal --modality image`): what the
encoder could learn if no other modality were there. Beside it stands what it does learn in the company of others.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from hf_dgl.method.methods import UNIMODAL
from hf_dgl.recipe.output_folder import check_writable
from hf_dgl.recipe.recipe import Recipe, load_recipe
from hf_dgl.reports.drawing import check_drawing, drawn_if_possible

from .outcome import Score, files_of_scores, result_of, wanted_scores
from .picture import plot_comparison
from .plan import Run, plan
from .result import Comparison
from .tuning import Search, chosen_among, searches, trials_among

fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None

_LAST_LINES = 12  # of a run that failed

Progress = Callable[[str, int, int], None]
"""Called with the name of a run that has ended (at first: none), the number of those, and the number of all."""


def compare(
    recipe: str | os.PathLike[str],
    methods: Sequence[str] = ("joint", "dgl"),
    seeds: Sequence[int] = (0, 1, 2),
    output_dir: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    jobs: int | None = None,
    sweeps: Mapping[str, Sequence[str]] | None = None,
    contributions: bool = False,
    probes: bool = False,
    tune: Mapping[str, Sequence[str]] | None = None,
    missing: Sequence[float] = (),
    calibration: bool = False,
    progress: Progress = lambda name, done, total: None,
) -> Comparison:
    """Trains every method with every seed, and writes comparison.json, comparison.md and comparison.png.

    Args:
        recipe: Path of a recipe.
        methods: Of [`ALL_METHODS`]; `unimodal` stands for one training per modality. Differences are taken to
            `joint`, if it is among them. `joint+modality_dropout=0.3` is a row with a key of its own.
        seeds: Of the runs; the same for all methods, so that they can be compared pair by pair.
        output_dir: One folder per run goes there. A run that is complete there, of the same recipe, is not repeated.
            Default: `outputs/compare-<recipe>`.
        overrides: Further words for `hf-dgl train`, the same for all runs.
        jobs: How many runs at a time: each on a GPU of its own, or with its share of the CPU's cores. Default: as many
            as there are GPUs, else 1.
        sweeps: Key of the recipe -> values, as a command line has them; several make a grid. Those that a
            method fixes or does not have (`alpha`, `multimodal_to_encoders`, `ogm_alpha`, ...) are left out for it.
        contributions: Also score every model with each subset of its modalities, for their Shapley values.
        probes: Also fit a linear probe on the features of each encoder.
        tune: Key of the recipe -> values; several make a grid. Every method is trained with each point of it and the
            first seed, and the best by the recipe's metric on the validation split (the first, if several are) is used
            for all seeds. Keys that a method does not have are left out for it, as in `sweeps`.
        missing: Shares of the test rows that lose one of their modalities: also score every model on these.
        calibration: Also measure the expected calibration error of every model.
        progress: Is told whenever a run has ended.

    Returns:
        A [`Comparison`]. Runs that failed are named in its `failures`.

    Raises:
        ValueError: an unknown method or key, no seeds, a recipe without test split, `unimodal` of a checkpoint.
        RuntimeError: every run failed; with the end of what the first one said.

    Example:

        >>> comparison = compare("recipes/quickstart/image_text.yaml", ["joint", "dgl"], seeds=[0, 1, 2])
        >>> print(comparison.to_markdown())
    """
    folder = Path(output_dir or Path("outputs") / f"compare-{Path(recipe).stem}")
    scores = wanted_scores(contributions, probes, missing, calibration)
    runs = plan(recipe, methods, seeds, folder, overrides, sweeps or {}, tune or {})
    wanted = load_recipe(recipe, overrides)
    check_drawing()
    check_writable(folder)
    _check_models(recipe, runs, folder)
    places = environments(jobs, [] if wanted.training.use_cpu else visible_devices())
    runs, found, failures = _tuned(recipe, runs, seeds[0], places, progress)
    failures |= _run_all(recipe, runs, places, scores, progress)
    results = [result_of(run, scores) for run in runs if run.marker.is_file()]
    if not any(result.method != UNIMODAL for result in results):
        name, message = next(iter(failures.items()))
        raise RuntimeError(f"No run was successful. {name} ended with:\n{message}")
    comparison = Comparison(str(recipe), results, failures, _selection(wanted), searches=found)
    save_comparison(comparison, folder)
    return comparison


def _tuned(
    recipe: str | os.PathLike[str],
    runs: Sequence[Run],
    seed: int,
    places: Sequence[dict[str, str]],
    progress: Progress,
) -> tuple[list[Run], list[Search], dict[str, str]]:
    """Searches, if there is something to tune: the runs that are to be compared, what was found, what failed."""
    trials = trials_among(runs, seed)
    failures = _run_all(recipe, trials, places, (), progress) if trials else {}
    found = searches(recipe, trials)
    return chosen_among(runs, found), found, failures


def environments(jobs: int | None, devices: Sequence[str]) -> list[dict[str, str]]:
    """The environment variables of each place where a run can be: one GPU, in turn, and a share of the cores.

    Args:
        jobs: Number of places. Default: one per device, at least one.
        devices: Names as `CUDA_VISIBLE_DEVICES` has them; none: the CPU.

    Raises:
        ValueError: fewer than one job.

    Example:

        >>> [place["CUDA_VISIBLE_DEVICES"] for place in environments(3, ["0", "1"])]
        ['0', '1', '0']
    """
    jobs = max(1, len(devices)) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs: expected at least 1, got {jobs}.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    cores = max(1, cores // jobs)
    threads = str(min(cores, int(wanted)) if wanted.isdigit() and int(wanted) else cores)
    places = [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]
    for place, device in zip(places, itertools.cycle(devices), strict=False):
        place["CUDA_VISIBLE_DEVICES"] = device
    return places


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


class _Processes:
    """The processes of a comparison, started by several threads; once ended, none is left and none can start."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False
        self._changing = threading.Lock()

    def call(self, command: Sequence[str], **settings: Any) -> int:
        """Runs a command to its end; its exit code."""
        with self._changing:
            if self._ended:
                raise RuntimeError("The comparison has ended.")
            process = subprocess.Popen(command, **settings)
            self._running.add(process)
        code = process.wait()
        with self._changing:
            self._running.discard(process)
        return code

    def end(self) -> None:
        with self._changing:
            self._ended = True
            for process in self._running:
                process.terminate()


def _run_all(
    recipe: str | os.PathLike[str],
    runs: Sequence[Run],
    places: Sequence[dict[str, str]],
    scores: Sequence[Score],
    progress: Progress,
) -> dict[str, str]:
    """Trains what is not complete yet; the failures, by name. When interrupted, no process is left behind."""
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    for place in places:
        free.put(place)
    processes = _Processes()

    def work(run: Run) -> None:
        place = free.get()
        try:
            of_run = [score for score in scores if run.modality is None or score.is_of_one_modality]
            _run(recipe, run, place, of_run, processes)
        finally:
            free.put(place)

    failures = {}
    progress("", 0, len(runs))
    pool = ThreadPoolExecutor(len(places))
    futures = {pool.submit(work, run): run for run in runs}
    try:
        for done, future in enumerate(as_completed(futures), start=1):
            name = futures[future].folder.name
            if (error := future.exception()) is not None:
                failures[name] = str(error)
            progress(name, done, len(runs))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        processes.end()
        raise
    pool.shutdown()
    return {run.folder.name: failures[run.folder.name] for run in runs if run.folder.name in failures}


def _run(
    recipe: str | os.PathLike[str],
    run: Run,
    place: Mapping[str, str],
    scores: Sequence[Score],
    processes: _Processes,
) -> None:
    """Trains, unless that is done; likewise what else is scored of the model."""
    log = run.folder / "run.log"
    with _held(run.folder) as lock:
        if not _is_complete(recipe, run):
            overwrite = ["--overwrite_output_dir"] if log.is_file() else []  # what a comparison began, it may replace
            for stale in run.folder.glob("checkpoint-*"):  # of a run that was killed, or of another recipe
                shutil.rmtree(stale)
            for stale in (log, run.folder / "metrics.json", *files_of_scores(run), run.marker):
                stale.unlink(missing_ok=True)
            _call(["train", str(recipe), *run.words, *overwrite], log, log, place, processes, lock)
            run.marker.write_text(_recipe_text(recipe, run), encoding="utf-8")
        lacking = [score for score in scores if not score.file(run).is_file()]
        if lacking:  # in one process: reading libraries, model and data takes longer than most scores
            draft = run.folder / "scores.partial"
            options = [word for score in lacking for word in score.option]
            words = ["evaluate", str(run.folder), *options, "--recipe", str(recipe), *run.words]
            _call(words, draft, log, place, processes, lock)
            for score in lacking:
                score.keep(run, json.loads(draft.read_text(encoding="utf-8")))
            draft.unlink()


@contextmanager
def _held(folder: Path) -> Iterator[int]:
    """Waits until no other comparison works in a run's folder, and keeps others out.

    The run's process inherits the lock: should this one be killed and started again, it waits for what it left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if fcntl is not None:  # not on Windows
            with suppress(OSError):  # nor on every network drive
                fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _check_models(recipe: str | os.PathLike[str], runs: Sequence[Run], folder: Path) -> None:
    """Refuses to train over the finished models of another recipe, or of other settings."""
    if load_recipe(recipe, runs[0].words).training.overwrite_output_dir:
        return
    others = [run.folder.name for run in runs if run.is_finished and not _is_complete(recipe, run)]
    if others:
        raise ValueError(
            f"{folder} holds runs of another recipe, or with other settings: {', '.join(others)}. Keep them, "
            "and write elsewhere: `--output_dir FOLDER`; or replace them: `--overwrite_output_dir`."
        )


def _recipe_text(recipe: str | os.PathLike[str], run: Run) -> str:
    return load_recipe(recipe, run.words).to_yaml()


def _is_complete(recipe: str | os.PathLike[str], run: Run) -> bool:
    """Whether this very recipe was run to its end."""
    return run.is_finished and run.marker.read_text(encoding="utf-8") == _recipe_text(recipe, run)


def _call(
    words: Sequence[str],
    out: Path,
    log: Path,
    place: Mapping[str, str],
    processes: _Processes,
    lock: int,
) -> None:
    """Runs an `hf-dgl` command to its end; what it says goes to the log."""
    with open(log, "ab") as errors, open(out, "ab" if out == log else "wb") as output:
        code = processes.call(
            [sys.executable, "-m", "hf_dgl", *words],
            env={**os.environ, **place},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=(lock,) if fcntl is not None else (),
        )
    if code:
        said = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
        how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        raise RuntimeError("\n".join([*said[-_LAST_LINES:], f"({how}; all of it: {log})"]))


def save_comparison(comparison: Comparison, folder: Path) -> None:
    """Writes comparison.json, comparison.md and comparison.png."""
    comparison.notes += drawn_if_possible(
        lambda: plot_comparison(comparison, folder / "comparison.png"), "comparison.png"
    )
    comparison.save(folder)


def _selection(recipe: Recipe) -> str:
    training = recipe.training
    if not training.load_best_model_at_end:
        return "Scored is the model at the end of training: the recipe sets no `load_best_model_at_end`."
    return f"Scored is the best model on the validation split by {training.metric_for_best_model or 'loss'}."
