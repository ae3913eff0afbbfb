"""Which people a run was trained on, and who has come since.

Belongs here: the record in a run's folder, and comparing it with the catalog. Does not belong here: deciding what is
done about new people (`orchestration.sensors`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hair_pipeline.errors import PipelineError
from hair_pipeline.files import read_json, write_json
from hair_pipeline.settings import Settings
from hair_pipeline.training.runs import PEOPLE_FILE, current


def people_to_train_on(settings: Settings, shards: Collection[str] | None = None) -> list[str]:
    """The people of the catalog's train split, sorted.

    Args:
        shards: only people in these; all if None.
    """
    filters = [("accepted", "=", True), ("split", "=", "train")]
    rows = pq.read_table(settings.catalog_path, columns=["source", "shard"], filters=filters)
    if shards is not None:
        rows = rows.filter(pc.is_in(rows.column("shard"), pa.array(list(shards), pa.string())))
    return sorted(pc.unique(rows.column("source")).to_pylist())


def record_people(run_dir: Path, settings: Settings, built_on: Iterable[Path] = ()) -> None:
    """Note in a run's folder whom its weights are trained on: also those whom the checkpoints it goes on from were.

    Args:
        built_on: folders of other trainers' runs whose weights it starts from or is exported with.
    """
    before = [person for folder in (run_dir, *built_on) for person in _recorded(folder)]
    write_json(run_dir / PEOPLE_FILE, {"people": sorted({*before, *people_to_train_on(settings)})})


def _recorded(run_dir: Path) -> list[str]:
    try:
        return list(read_json(run_dir / PEOPLE_FILE)["people"])
    except (PipelineError, KeyError, TypeError):
        return []


def new_people(stage: str, settings: Settings, shards: Collection[str] | None = None) -> list[str]:
    """People to train on that the stage's current run has not seen; everybody while there is no such run.

    Args:
        stage: the trainer.
        shards: only people in these.
    """
    known: list[str] = []
    if (settings.runs / stage / "current.json").exists():
        path = current(stage, settings).run_dir / PEOPLE_FILE
        try:
            known = read_json(path)["people"]
        except (PipelineError, KeyError, TypeError) as error:
            raise PipelineError(
                "does not say whom the current run was trained on",
                file=path,
                remedy=f"run: hair-pipeline train {stage} (a finished run is not trained again)",
            ) from error
    return sorted(set(people_to_train_on(settings, shards)) - set(known))
