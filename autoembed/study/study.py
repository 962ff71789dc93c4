"""A study as one object: what it found, and what can be made of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import polars as pl

from autoembed.bundle import Bundle, copy_bundle, load_bundle
from autoembed.data.dataset import Dataset
from autoembed.errors import StudyError, option
from autoembed.plugins import without_imports
from autoembed.shipped import space_file
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, prepare, run_study
from autoembed.study.results import bundles, pareto
from autoembed.study.results.explain import explain
from autoembed.study.results.leaderboard import Leaderboard, best
from autoembed.study.results.pareto import Front
from autoembed.study.results.retrain import ArmsContent, retrain_arms, retrain_seeds
from autoembed.study.run_dir import Ended, RunDir, Trial
from autoembed.study.show.progress import Display, Log
from autoembed.training import pick_device
from autoembed.trial import TrialResult, limits


class Study:
    """A study that has been begun. `Study.open` finds one by its folder, `autoembed.search` runs one.

    Everything is read from the study's folder when it is asked for, so a study that is running can be looked at.

    Args:
        run: its folder.
        data: the data, where they are no longer where the study found them.
        shown: is told how far an action is; the logger `autoembed` by default.
        imports: whether modules that the folder names, such as a backbone of yours, may be imported.
    """

    def __init__(
        self, run: RunDir, *, data: str | None = None, shown: Display | None = None, imports: bool = False
    ) -> None:
        self.run = run
        self._data, self._shown = data, shown or Log()
        self._imports = nullcontext if imports else without_imports

    @classmethod
    def open(cls, path: str | Path, *, data: str | None = None, shown: Display | None = None) -> Study:
        """The study in a folder; StudyError if there is none.

        The folder may be a stranger's: no module that it names is imported, but by `resize`, which searches.
        """
        study = cls(RunDir.existing(Path(path)), data=data, shown=shown)
        study.space  # noqa: B018  (a space that cannot be read is told at once)
        return study

    def __repr__(self) -> str:
        ended = self.ended
        return f"Study({str(self.path)!r}: {len(ended)} trials have ended, arms {', '.join(self.space.arms())})"

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.run.path

    @property
    def name(self) -> str:
        """Its name, that of the folder."""
        return self.run.name

    @cached_property
    def space(self) -> SearchSpace:
        """What is searched."""
        with self._imports():
            return SearchSpace.read(self.run.space)

    @cached_property
    def dataset(self) -> Dataset:
        """The encoded data, cut down to the columns that the ranking keeps; StudyError if they have changed."""
        return prepare(self.run, self.space, self._data, self._shown)

    @property
    def trials(self) -> list[Trial]:
        """The trials that ended well, by arm and number."""
        return self.run.trials()

    @property
    def ended(self) -> list[Ended]:
        """Every trial that has ended, with its state and the reason if it was pruned or has failed."""
        return self.run.ended()

    @property
    def finished(self) -> bool:
        """Whether the study has a leaderboard."""
        return Leaderboard.read(self.run) is not None

    @property
    def leaderboard(self) -> Leaderboard:
        """The best trial of each arm by valid, and what it reaches on test; StudyError before the study has ended."""
        board = Leaderboard.read(self.run)
        if board is None:
            raise StudyError(f"{self.path} has no leaderboard yet: go on with it by {option('resume', True)}")
        return board

    @property
    def best(self) -> Trial:
        """The best trial by the objective on valid; StudyError if none has ended well."""
        return self.trial()

    @property
    def pareto(self) -> Front:
        """The trials that no other one beats in quality and cost."""
        return pareto.of_run(self.run, self.space)

    def trial(self, which: str | None = None) -> Trial:
        """A trial by its id, an arm's best, or the study's best; StudyError lists what there is."""
        trials = self.trials
        if which is None:
            return best(trials, self.space)
        if which in self.space.arms():
            own = [trial for trial in trials if trial.arm == which]
            if not own:
                raise StudyError(f"arm {which!r} of {self.path} has no trial that is done")
            return best(own, self.space)
        return self.run.read_trial(which)

    def pick(self, rule: str) -> Trial:
        """A trial of the Pareto front: knee, "smallest-within 0.001" (of the best metric), or an id.

        StudyError if the study was searched for quality alone.
        """
        objective = self.space.objective
        if objective.cost is None:
            named = f"valid.{objective.direction.name}"
            such = f"maximize: {named}, minimize: bytes" if objective.mode == "max" else f"minimize: [{named}, bytes]"
            raise StudyError(
                f"{option('pick')} goes by quality and cost, and {self.path} was searched for quality alone: add a "
                f"cost to its objective, such as {{{such}}}, or name a {option('trial')}"
            )
        return self.pareto.pick(rule)

    def export(self, out: str | Path, trial: str | None = None, *, pick: str | None = None) -> Bundle:
        """Writes a trial's architecture, weights and vocabulary as a bundle.

        The study's own best bundle is copied, for which the data need not be there.

        Args:
            out: the bundle's folder; a bundle that is there is replaced.
            trial: as in `trial`.
            pick: as in `pick`, in place of `trial`.

        Raises:
            StudyError: there is no such trial, or the data have changed.
            BundleError: something else than a bundle is in the way.
        """
        if pick is not None and trial is not None:
            raise StudyError(f"{option('trial')} and {option('pick')} each name a trial: give one of them")
        chosen = self.trial(trial) if pick is None else self.pick(pick)
        if self._data is None and bundles.trial_of(self.run.best) == chosen.id:
            return load_bundle(copy_bundle(self.run.best, Path(out)))
        with self._imports():
            return load_bundle(bundles.export(self.run, self.space, self.dataset, chosen.id, Path(out)))

    def retrain(self, trial: str | None = None, *, seeds: int = 3, device: str | None = None) -> pl.DataFrame:
        """Trains a trial's architecture from fresh weights with seeds 1, 2, ...; a row per seed.

        Columns: seed, the metrics on valid and test (valid_auc and so on), those of auxiliary labels (test_auc.LABEL),
        best_epoch, seconds. Test is read once a seed, for the weights of the best epoch by valid.
        """
        with self._imports():
            rows = retrain_seeds(self.run, self.trial(trial).id, self.dataset, seeds, device, self._shown)
        return pl.DataFrame(rows)

    def retrain_arms(self, *, seeds: int = 3, device: str | None = None) -> ArmsContent:
        """The same for the best trial of each arm, and paired tests against the best; see `retrain.retrain_arms`."""
        with self._imports():
            return retrain_arms(self.run, self.space, self.dataset, seeds, device, self._shown)

    def resize(
        self,
        out: str | Path,
        trial: str | None = None,
        *,
        widths: Sequence[float] = (),
        sizes: Sequence[int] = (),
        epochs: int | None = None,
    ) -> list[tuple[TrialResult, Path]]:
        """Searches once as a trial did, and writes a retrained bundle for each of several limits to `out`.

        Args:
            out: the folder of the bundles.
            trial: as in `trial`.
            widths: limits as embedding parameters of a model of that many dims.
            sizes: limits in bytes of the whole model.
            epochs: trains each model on for so many epochs, the largest from the supernet's weights and each other one
                from those of the next larger, in place of retraining each.
        """
        wanted, chosen = limits(widths=widths, sizes=sizes), self.trial(trial).id
        return bundles.resize(self.run, self.space, self.dataset, chosen, wanted, Path(out), self._shown, epochs)

    def explain(self, trial: str | None = None, *, device: str | None = None) -> pl.DataFrame:
        """What each column of the data brings to a trial's model; see `explain.explain` for the columns."""
        where = pick_device(device or str(self.space.device))
        with self._imports():
            return explain(self.run, self.trial(trial), self.dataset, where, self._shown.step)

    def report(self, out: str | Path | None = None, *, explained: bool = False, device: str | None = None) -> Path:
        """Writes the study as one HTML page and returns its path.

        Args:
            out: the file; report.html in the study's folder by default.
            explained: also measure what the best trial's model loses without each column, for which the data are read.
            device: of that measurement.
        """
        from autoembed.study.show.study_page.write import write_report

        table = self.explain(self.leaderboard.winner, device=device) if explained else None
        with self._imports():
            return write_report(self.run, self.space, None if out is None else Path(out), table)

    def sync(self) -> str:
        """Writes to MLflow what it lacks of the study; its URI."""
        from autoembed.study.trackers.mlflow.tracker import sync

        with self.run.locked():
            return sync(self.run, self.space)


def search(
    space: str | Path | SearchSpace,
    data: object = None,
    *,
    runs: str | Path = "runs",
    name: str | None = None,
    resume: bool = False,
    force: bool = False,
    trials: int | None = None,
    minutes: float | None = None,
    device: str | None = None,
    cpus: int | None = None,
    address: str | None = None,
    progress: bool = False,
) -> Study:
    """Searches architectures, retrains them, and compares them with the baselines.

    Args:
        space: a search space, its YAML file, or the name of one that ships, such as "quickstart".
        data: in place of `data.path`: a file, a directory, or a frame of Polars or pandas, of which the study's folder
            keeps a copy.
        runs: the folder of the studies.
        name: of the study's folder in it; that of the file by default.
        resume: go on with the study of that name.
        force: replace the study of that name.
        trials: per arm, in place of `budget.trials`.
        minutes: after which no trial begins, in place of `budget.minutes`.
        device: in place of `device`.
        cpus: how many to use; all by default.
        address: of a running Ray cluster; the study starts a Ray of its own by default.
        progress: show bars on a terminal. The logger `autoembed` is told otherwise.

    Raises:
        SpaceError: the search space breaks a rule.
        DataError: the data do.
        StudyError: there is a study of that name, or none of its trials ended well.
    """
    from autoembed.study.show.progress import display

    shown = display(progress)
    request = Request(
        space=space if isinstance(space, SearchSpace) else space_file(Path(space), shown.tell),
        data=data,
        runs=Path(runs),
        name=name,
        resume=resume,
        force=force,
        trials=trials,
        minutes=minutes,
        device=device,
        cpus=cpus,
        address=address,
    )
    run, _ = run_study(request, shown)
    return Study(run, shown=shown, imports=True)
