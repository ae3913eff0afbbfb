"""The registry: which versions exist, what was said about them, and which one is in production. One JSON file.

Belongs here: the file's format, its state machine and its lock. Does not belong here: making the artifacts
(`export`), and what an operator does with the registry (`registry`).

Format of registry.json (schema 1)::

    {"schema": 1,
     "production": version or null,
     "previous": [earlier production versions, oldest first],
     "versions": {version: {"registered_at", "folder" (relative to the training root), "files": {path: sha256},
                            "verdict": {"verdict", "id", "path", "sha256", "against", "against_version",
                                        "against_first", "settings"},
                            "sign_offs": [{"reviewer", "decision", "notes", "at", "test" (the A/B test looked at),
                                           "blind_review" (where the decision rests on one)}]}},
     "history": [{"at", "event", "version", ...}]}          (append-only)

States of a version: candidate -> (verdict approve against the present production, sign-off approve of that test,
hashes intact) -> production -> previous. `registry.json.bak` beside it is a copy, written after each change; where that
fails, the change stands all the same.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from hair_pipeline import files
from hair_pipeline.errors import PipelineError
from hair_pipeline.evaluation.registered import backup_of, damaged_files, read_registry, require_intact

log = logging.getLogger(__name__)

Decision = Literal["approve", "reject"]
Names = list[str]
AS_READ = "as read"
DEPLOYMENT_EVENTS = ("promoted", "rolled_back", "deploy_failed", "deployed")
COMPARE_AGAIN = (
    "while it is the current Stage 2 model, compare it with what is in production: "
    'hair-pipeline run --select "key:ab_verdict+" --force'
)
REJECTED = "train another model; or, if they change their mind, they sign off again with approve"
"""What to do about a version that a person rejected."""


@dataclass(frozen=True)
class Obstacle:
    """What keeps a version from production.

    Attributes:
        kind: its A/B verdict is not approve; that was won against another opponent; a person rejected it; nobody has
            signed it off.
        text: the same of this version, in words.
    """

    kind: Literal["verdict", "opponent", "rejection", "sign-off"]
    text: str

    def __str__(self) -> str:
        return self.text


Obstacles = list[Obstacle]


class Registry:
    """Reads and changes one registry file. Every change happens under a lock and replaces the file atomically.

    A process killed at any moment leaves the file as it was before or after its change.

    Args:
        path: registry.json; it and its folder are made by the first change.
        artifacts_root: what the versions' folders are relative to; by default the training root, two folders up.
    """

    def __init__(self, path: Path, artifacts_root: Path | None = None) -> None:
        self.path = path
        self.backup = backup_of(path)
        self.artifacts_root = artifacts_root or path.parent.parent

    # --- reading ---

    def state(self) -> dict[str, Any]:
        """The whole content.

        Raises:
            PipelineError: as `read_registry`.
        """
        return read_registry(self.path)

    def production(self) -> str | None:
        """The version in production, or None."""
        version: str | None = self.state()["production"]
        return version

    def list(self) -> dict[str, dict[str, Any]]:
        """Every version with its record, oldest first, each with its `status`."""
        state = self.state()
        return {version: record | {"status": status(state, version)} for version, record in state["versions"].items()}

    def show(self, version: str) -> dict[str, Any]:
        """One version's record with its `status` and its part of the history.

        Raises:
            PipelineError: no such version.
        """
        state = self.state()
        record = self._record(state, version)
        history = [event for event in state["history"] if event["version"] == version]
        return record | {"status": status(state, version), "history": history}

    def folder(self, version: str) -> Path:
        """The version's exported folder."""
        return files.confined_in_folder(self.artifacts_root, self._record(self.state(), version)["folder"])

    def damaged_files(self, version: str) -> Names:
        """Artifacts that are gone or whose content is not what was registered."""
        record = self._record(self.state(), version)
        return damaged_files(files.confined_in_folder(self.artifacts_root, record["folder"]), record["files"])

    def require_intact(self, version: str) -> None:
        """Check that every artifact is what was registered.

        Raises:
            PipelineError: no such version, or a file is gone or changed.
        """
        require_intact(self.state(), version, self.folder(version))

    def obstacles(self, version: str) -> Obstacles:
        """Why the version may not be promoted; empty when it may. Hashes are not checked here: they take time."""
        state = self.state()
        return _obstacles(self._record(state, version), state["production"])

    def promotable(self) -> dict[str, bool]:
        """Version that nothing but a person keeps from production, oldest first -> whether its sign-off is missing."""
        state = self.state()  # read once: there may be hundreds of versions
        waiting = {
            version: _obstacles(record, state["production"])
            for version, record in state["versions"].items()
            if status(state, version) in ("candidate", "approved")
        }
        return {v: bool(found) for v, found in waiting.items() if all(each.kind == "sign-off" for each in found)}

    def promoted_since_sign_off(self, version: str) -> bool:
        """Whether the last sign-off has been used: the version was rolled back since, or deploying it failed.

        Then only a person puts it into production again: by a new sign-off, or with `promote`.
        """
        events = [event["event"] for event in self.show(version)["history"]]
        return [event for event in events if event in ("sign_off", "promoted")][-1:] == ["promoted"]

    def deployed(self, version: str) -> bool:
        """Whether a deployment ended well since the version last came into production."""
        events = [event["event"] for event in self.show(version)["history"]]
        return [event for event in events if event in DEPLOYMENT_EVENTS][-1:] == ["deployed"]

    # --- changing ---

    def register(self, version: str, folder: Path, hashes: Mapping[str, str], verdict: Mapping[str, Any]) -> None:
        """Add a version, or give a known one the verdict of a later A/B test.

        Args:
            version: its name. folder: where its files are, inside the artifacts' root.
            hashes: path relative to `folder` -> SHA-256.
            verdict: at least {"verdict": approve|reject|inconclusive}.

        Raises:
            PipelineError: the version is known with other files.
        """
        with self._changing() as state:
            known = state["versions"].get(version)
            if known is None:
                state["versions"][version] = {
                    "registered_at": _now(),
                    "folder": self._relative(folder),
                    "files": dict(hashes),
                    "verdict": dict(verdict),
                    "sign_offs": [],
                }
                _log(state, "registered", version, verdict=verdict["verdict"])
                return
            if known["files"] != dict(hashes):
                raise PipelineError(
                    f"version {version} is registered with other files",
                    file=self.path,
                    remedy="a version never changes: export the new model as a version of its own",
                )
            if known["verdict"] != dict(verdict):
                known["verdict"] = dict(verdict)
                _log(state, "verdict", version, verdict=verdict["verdict"])

    def sign_off(
        self, version: str, reviewer: str, decision: str, notes: str = "", *, review: Mapping[str, Any] | None = None
    ) -> None:
        """Record what a person who looked at the pictures says. A reviewer's last word counts.

        Args:
            review: numbers of a blind review that the decision rests on, with its "test"; without one the reviewer
                looked at the test that the version is registered with.

        Raises:
            PipelineError: no such version, no reviewer, or a decision that is neither approve nor reject.
        """
        if decision not in get_args(Decision):
            raise PipelineError(f"the decision {decision!r} is not allowed", remedy="say approve or reject")
        if not reviewer.strip():
            raise PipelineError("the reviewer has no name", remedy="pass --reviewer NAME")
        if any("\ud800" <= character <= "\udfff" for character in reviewer + notes):
            raise PipelineError("the reviewer's name or notes are not UTF-8", remedy="type them in a UTF-8 terminal")
        with self._changing() as state:
            record = self._record(state, version)
            entry: dict[str, Any] = {"reviewer": reviewer.strip(), "decision": decision, "notes": notes, "at": _now()}
            entry["test"] = record["verdict"].get("id")
            if review is not None:
                entry |= {"test": review["test"], "blind_review": dict(review)}
            record["sign_offs"].append(entry)
            _log(state, "sign_off", version, reviewer=entry["reviewer"], decision=decision)

    def promote(self, version: str, *, replacing: str | None = AS_READ) -> str | None:
        """Put a version into production.

        Args:
            version: the candidate.
            replacing: the version the caller believes to be in production (None: no version); by default the one
                found when the call begins. If it is another one when the change is made, nothing changes.

        Returns:
            The version that was in production before.

        Raises:
            PipelineError: unknown version, verdict not approve or won against another version than the one in
                production, not signed off, a damaged file, already in production, or somebody else changed
                production meanwhile.
        """
        now = self.production()
        expected = now if replacing == AS_READ else replacing
        self._require_unmoved(version, expected, now)
        obstacles = [] if now == version else self.obstacles(version)
        if obstacles:
            raise PipelineError(
                f"version {version} cannot be promoted: {'; '.join(map(str, obstacles))}",
                file=self.path,
                remedy=_next_step(version, obstacles),
            )
        self.require_intact(version)
        with self._changing() as state:
            current: str | None = state["production"]
            if current == version:
                raise PipelineError(f"version {version} is in production already", file=self.path)
            self._require_unmoved(version, expected, current)
            if self.obstacles(version):
                raise PipelineError(f"version {version} was rejected or compared anew meanwhile", file=self.path)
            if current is not None:
                state["previous"].append(current)
            state["production"] = version
            _log(state, "promoted", version, replaced=current)
            return current

    def rollback(
        self, reason: str = "", *, leaving: str | None = None, force: bool = False, past_erased: bool = False
    ) -> str:
        """Restore the version that was in production before the present one.

        Args:
            leaving: the version to be taken out of production; if it is another one by now, nothing changes.
            force: also if a person has rejected the earlier version since.
            past_erased: pass over earlier versions without a folder (erased, say because of a person in their training
                data): they can never come back.

        Returns:
            The version in production now.

        Raises:
            PipelineError: there is none, a person has rejected it, or its files are erased or damaged.
        """
        state = self.state()
        before: Names = state["previous"]
        kept = list(before)
        while past_erased and kept and not self.folder(kept[-1]).exists():
            kept.pop()
        passed_over = before[len(kept) :]
        if not kept:
            gone = f" (the folders of {', '.join(passed_over)} are gone)" if passed_over else ""
            raise PipelineError(
                f"there is no earlier version to go back to{gone}", file=self.path, remedy="promote another version"
            )
        target = kept.pop()
        if not self.folder(target).exists():
            raise PipelineError(
                f"the folder of the earlier version {target} is gone; nothing was rolled back",
                file=self.folder(target),
                remedy="mount or restore it; if it was erased for good, pass over it (and over a person's rejection of "
                "the one before it): registry rollback --force",
            )
        rejected = _rejected_by(self._record(state, target))
        if rejected and not force:
            raise PipelineError(
                f"the earlier version {target} was rejected by {', '.join(rejected)}; nothing was rolled back",
                file=self.path,
                remedy="to restore it all the same (and from it the one before): registry rollback --force",
            )
        self.require_intact(target)
        with self._changing() as state:
            moved_on = leaving is not None and state["production"] != leaving
            if moved_on or state["previous"] != before:
                raise PipelineError("the registry changed meanwhile; nothing was rolled back", file=self.path)
            left = state["production"]
            state["previous"] = kept
            state["production"] = target
            details = {"passed_over": passed_over} if passed_over else {}
            _log(state, "rolled_back", target, left=left, reason=reason, **details)
            return target

    def withdraw(self, version: str, reason: str) -> None:
        """Take the first version ever promoted out of production again: there is none to roll back to."""
        with self._changing() as state:
            if state["production"] == version:
                state["production"] = state["previous"].pop() if state["previous"] else None
                _log(state, "withdrawn", version, reason=reason, production=state["production"])

    @contextlib.contextmanager
    def deploying(self) -> Iterator[None]:
        """Held while a version is promoted or rolled back and the server follows: one at a time.

        Raises:
            PipelineError: another process is at it.
        """
        under_way = PipelineError(
            "another promotion or rollback is being deployed",
            file=self.path,
            remedy="wait until it has ended, look at `registry list`, then try again",
        )
        with files.one_at_a_time(self.path.with_name("deploy.lock"), instead=under_way):
            yield

    def note(self, event: str, version: str, reason: str) -> None:
        """Add an event that changes nothing else to the history."""
        with self._changing() as state:
            _log(state, event, version, reason=reason)

    # --- inside ---

    def _record(self, state: dict[str, Any], version: str) -> dict[str, Any]:
        record: dict[str, Any] | None = state["versions"].get(version)
        if record is None:
            known = ", ".join(state["versions"]) or "none yet"
            raise PipelineError(
                f"no version {version} (known: {known})",
                file=self.path,
                remedy="run: uv run hair-pipeline registry list",
            )
        return record

    def _relative(self, folder: Path) -> str:
        """The folder relative to the artifacts' root, as named: a folder on the way may be a link to another disk."""
        root = self.artifacts_root
        if not folder.is_relative_to(root):
            folder, root = folder.resolve(), root.resolve()
        return folder.relative_to(root).as_posix()

    def _require_unmoved(self, version: str, expected: str | None, current: str | None) -> None:
        if current != expected:
            raise PipelineError(
                f"production changed from {expected} to {current} meanwhile; {version} was not promoted",
                file=self.path,
                remedy=f"compare with {current} and run: uv run hair-pipeline registry promote {version}",
            )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The state, to be changed in place under an exclusive lock; written when the block ends well."""
        with files.one_at_a_time(self.path.with_suffix(".lock")):
            for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
                leftover.unlink(missing_ok=True)  # of a process that was killed while writing
            state = self.state()
            yield state
            files.write_json(self.path, state)
            try:
                files.write_json(self.backup, state)
            except PipelineError as error:  # the change is made; an error would say that it is not
                log.warning("the registry's copy is older than the registry: %s", error.message)


def status(state: Mapping[str, Any], version: str) -> str:
    """production, previous, rejected, approved (signed off, not promoted), or candidate."""
    if state["production"] == version:
        return "production"
    if version in state["previous"]:
        return "previous"
    record = state["versions"][version]
    decisions = _last_decisions(record).values()
    if record["verdict"]["verdict"] == "reject" or "reject" in decisions:
        return "rejected"
    return "approved" if "approve" in decisions and record["verdict"]["verdict"] == "approve" else "candidate"


def _obstacles(record: Mapping[str, Any], production: str | None) -> Obstacles:
    """Why a version may not take the place of the one in production."""
    found = []
    if record["verdict"]["verdict"] != "approve":
        found.append(Obstacle("verdict", f"its A/B verdict is {record['verdict']['verdict']}, not approve"))
    elif other := _other_opponent(record["verdict"], production):
        found.append(Obstacle("opponent", other))
    if rejected := _rejected_by(record):
        found.append(Obstacle("rejection", f"rejected by {', '.join(rejected)}"))
    elif "approve" not in _last_decisions(record).values():
        since = " since its last A/B test" if record["sign_offs"] else ""
        found.append(Obstacle("sign-off", f"nobody has signed it off{since}"))
    return found


def _next_step(version: str, obstacles: Obstacles) -> str:
    """What to do about the obstacles."""
    remedies = {
        "opponent": COMPARE_AGAIN,
        "verdict": "train a better model, or run: uv run hair-pipeline ab-test --help",
        "rejection": REJECTED,
        "sign-off": sign_off_command(version),
    }
    kinds = {each.kind for each in obstacles}
    return next(remedy for kind, remedy in remedies.items() if kind in kinds)


def sign_off_command(version: str) -> str:
    """What a person types after looking at the A/B report."""
    return (
        "look at the A/B report, then run: "
        f"uv run hair-pipeline registry sign-off {version} --reviewer NAME --decision approve"
    )


def _last_decisions(record: Mapping[str, Any]) -> dict[str, str]:
    """Reviewer -> last word: an approval counts for the A/B test it was given on, a rejection until taken back."""
    test = record["verdict"].get("id")
    last = {entry["reviewer"]: entry for entry in record["sign_offs"]}
    return {
        name: entry["decision"]
        for name, entry in last.items()
        if entry["decision"] == "reject" or entry.get("test") == test
    }


def _rejected_by(record: Mapping[str, Any]) -> Names:
    return sorted(name for name, decision in _last_decisions(record).items() if decision == "reject")


def _other_opponent(verdict: Mapping[str, Any], production: str | None) -> str | None:
    """What is wrong if the approval was won against another model than the one that would be replaced."""
    if "against_first" not in verdict:
        return "its verdict does not say which version it was compared with"
    against = verdict.get("against_version")
    if production is None and not verdict.get("against_first"):
        return (
            f"it was compared with {verdict.get('against', against)}, neither the untrained base nor "
            "ab_test.first_opponent, and nothing is in production"
        )
    if production is not None and against != production:
        return f"it was compared with {against}, but {production} is in production"
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _log(state: dict[str, Any], event: str, version: str, **details: Any) -> None:
    state["history"].append({"at": _now(), "event": event, "version": version} | details)
