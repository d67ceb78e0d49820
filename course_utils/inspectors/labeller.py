"""PreferenceLabeller: the student is the human in the feedback loop.

    labeller = PreferenceLabeller(pairs, "labels.jsonl", against={"gold reward": lab.gold})
    labeller                               # ← A is better, → B is better, = equal, ↓ skip, ⌫ undo
    # in a later cell
    reward = train_reward_model(policy, lab.tokenizer, labeller.preferences(), lab.settings.reward)

A label is written in the browser's storage first, then sent, and kept there until the kernel has
answered that it is on the disk. So a killed kernel, a closed tab or a long training loses none: the
next labeller on the same file, in the same browser, is sent what is missing.
"""

import hashlib
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.data.label_file import LabelFile
from course_utils.data.labels import CHOICES, Labels, Record, new_id, now, read_labels
from course_utils.data.pairs import Pair, Pairs, pair_id, read_pairs
from course_utils.data.report import RowFault
from course_utils.data.shapes import check_messages, check_text
from course_utils.errors import CourseError, DataError
from course_utils.inspectors import frames, page
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup
from course_utils.inspectors.judges import DECIDED, Judge, as_shown, verdicts

if TYPE_CHECKING:
    from datasets import Dataset

    from course_utils.evaluation.agreement import Agreement

DATASET = "the dataset"  # the judge behind the rows' own chosen and rejected
_FIRST_FRAME = 900  # characters of an answer in the first frame


class PreferenceLabeller(Inspector):
    """Shows pairs of answers and records which is better.

    Args:
        pairs: a preference Dataset, rows {prompt, chosen, rejected} or {prompt, a, b}, or tuples
            (prompt, answer, answer): see `read_pairs`. Left and right are drawn by `seed`.
        path: the JSONL file that labels are added to; an existing one is continued.
        against: name -> judge, to compare the labels with; shown only when asked for. Rows with
            chosen and rejected bring the judge "the dataset" along.
        annotator: who labels. Several may use one file.
        seed: of the order of the two answers.

    Raises:
        DataError: a row is not a pair (names row and column), or `path` is another kind of file.
    """

    module, css, title = "labeller.js", ("labeller.css",), "Which answer is better?"

    def __init__(
        self,
        pairs: Iterable[Any],
        path: Path | str,
        against: Mapping[str, Judge] | None = None,
        annotator: str = "me",
        seed: int = 0,
    ) -> None:
        self._pairs: Pairs = read_pairs(pairs, seed)
        self._by_id = {pair.id: pair for pair in self._pairs.kept}
        self.annotator = annotator
        self.file = LabelFile(path)
        judges = dict(against or {})
        if any(pair.given for pair in self.pairs):
            judges.setdefault(DATASET, None)
        self._verdicts = {name: verdicts(judge, self.pairs) for name, judge in judges.items()}
        super().__init__(self._whole_state())

    def _whole_state(self) -> dict[str, Any]:
        return {
            "labeller": self.file.id,
            "page": _page_id(self.pairs),
            "file": self.file.path.name,
            "annotator": self.annotator,
            "kernel": True,
            "pairs": [pair.shown() for pair in self.pairs],
            "left_out": 0,
            "notes": self._pairs.notes(),
            "log": [_entry(r) for r in self._mine(self.file.records)],
            "against": [{"name": name, "verdicts": said} for name, said in self._verdicts.items()],
            "refused": {},
        }

    # ---- labels ------------------------------------------------------------------------------

    @property
    def pairs(self) -> list[Pair]:
        """What is shown, in order; `.left` and `.right` are the two answers."""
        return self._pairs.kept

    @property
    def labels(self) -> Labels:
        """This annotator's labels; those of a kernel that is gone, and of other pairs, too."""
        return Labels(self._mine(self.file.records), self.file.path.name)

    def label(self, index: int, choice: str, seconds: float | None = None) -> Record:
        """Labels pair `index` without a browser; on the disk when this returns.

        Args:
            choice: "left", "right", "tie" or "skip".
            seconds: how long it took, if known.
        """
        if choice not in CHOICES:
            raise CourseError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
        if not -len(self.pairs) <= index < len(self.pairs):
            raise CourseError(f"there is no pair {index}: this labeller has {len(self.pairs)}")
        record = self._record(self.pairs[index], choice, {"seconds": seconds})
        self._add([record])
        return record

    def undo(self) -> Record | None:
        """Takes the last label back (by one more line in the file); None if there is none."""
        standing = [r for r in self.labels.standing() if r["pair"] in self._by_id]
        if not standing:
            return None
        record = {
            "kind": "undo",
            "id": new_id(),
            "of": standing[-1]["id"],
            "annotator": self.annotator,
            "at": now(),
        }
        self._add([record])
        return record

    def refresh(self) -> int:
        """Reads what another labeller has added to the file; returns the number of records."""
        return self._take(self.file.refresh())

    def merge(self, path: Path | str) -> int:
        """Adds the records of another file, such as one that a static page has downloaded."""
        before = len(self.file.records)
        self._add(read_labels(path).records)
        return len(self.file.records) - before

    def preferences(self, conversational: bool | None = None) -> "Dataset":
        """{prompt, chosen, rejected} of the labels that prefer a side: see `Labels`."""
        self.refresh()
        return self.labels.preferences(conversational)

    def _mine(self, records: Iterable[Record]) -> list[Record]:
        return [r for r in records if r["annotator"] == self.annotator]

    def _record(self, pair: Pair, choice: str, said: Mapping[str, Any]) -> Record:
        seconds = said.get("seconds")
        timed = isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0
        return {
            "kind": "label",
            "id": said.get("id") or new_id(),
            "pair": pair.id,
            "prompt": pair.prompt,
            "left": pair.left,
            "right": pair.right,
            "choice": choice,
            "annotator": self.annotator,
            "seconds": round(float(seconds), 2) if timed and seconds is not None else None,
            "at": said.get("at") or now(),
            "peeked": bool(said.get("peeked")),
        }

    def _add(self, records: Iterable[Record]) -> None:
        self._take(self.file.append(records))

    def _take(self, grown: list[Record]) -> int:
        """Shows what the file has grown by. This tells the browser that it is on the disk."""
        entries = [_entry(r) for r in self._mine(grown)]
        if entries:
            self.append(log=entries, set={"notice": None})
        return len(grown)

    # ---- what the browser sends --------------------------------------------------------------

    def received(self, message: dict[str, Any]) -> None:
        """{kind: "labels", have, records}: records to write, from a page that knows `have` entries.

        A record that is there already is not written again; the page is then told what it has
        missed. One that cannot be written is refused, and stays in the browser.
        """
        if message.get("kind") != "labels":
            return
        known = len(self._state["log"])
        good, refused = [], {}
        for sent in message["records"]:
            try:
                good.append(self._checked(sent))
            except DataError as error:
                refused[str(sent.get("id"))] = str(error)
        try:
            self._add(good)
        except (CourseError, OSError) as error:
            self.append(set={"notice": f"not written: {error}"})
            raise
        if refused:
            self.append(set={"refused": {**self._state["refused"], **refused}})
        log, have = self._state["log"], int(message.get("have", 0))
        if good and len(log) == known and have < known and self._live is not None:
            self._live.send({"kind": "append", "at": {"log": have}, "add": {"log": log[have:]}})

    def _checked(self, sent: Any) -> Record:
        """A record from the browser, made whole. Raises DataError if it says nothing sensible."""
        if not isinstance(sent, dict) or not _is_id(sent.get("id")):
            raise DataError(f"a label from the browser has no id: {str(sent)[:80]}")
        if sent.get("kind") == "undo" and _is_id(sent.get("of")):
            keep = {k: sent[k] for k in ("kind", "id", "of")}
            return {**keep, "annotator": self.annotator, "at": str(sent.get("at") or now())}
        if sent.get("kind") != "label" or sent.get("choice") not in CHOICES:
            raise DataError(f"not a label: {str(sent)[:80]}")
        pair = self._by_id.get(sent.get("pair", "")) or _sent_pair(sent)
        return self._record(pair, sent["choice"], sent)

    # ---- agreement ---------------------------------------------------------------------------

    @property
    def against(self) -> list[str]:
        """The judges that `agreement` knows."""
        return list(self._verdicts)

    def agreement(self, name: str | None = None) -> "Agreement":
        """How far the labels agree with a judge, on the pairs that both have decided.

        Share of equal verdicts with Wilson's interval, Cohen's kappa with a bootstrap interval.
        Ties and skips are left out and counted. None: the first judge.
        """
        from course_utils.evaluation.agreement import agreement

        if not self.against:
            raise CourseError('nobody to compare with: pass against={"gold reward": lab.gold}')
        name = self.against[0] if name is None else name
        if name not in self._verdicts:
            raise CourseError(f"no judge {name!r}; there are: {', '.join(self.against)}")
        mine = {r["pair"]: as_shown(r, self._by_id[r["pair"]]) for r in self._standing()}
        seen = [i for i, pair in enumerate(self.pairs) if pair.id in mine]
        both = [(mine[self.pairs[i].id], self._verdicts[name][i]) for i in seen]
        return agreement(
            [a if a in DECIDED else None for a, _ in both],
            [b if b in DECIDED else None for _, b in both],
        )

    def _standing(self) -> list[Record]:
        return [r for r in self.labels.standing() if r["pair"] in self._by_id]

    # ---- showing -----------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Progress, what was chosen, how often the left side, seconds; nothing about agreement."""
        standing = self._standing()
        of = {choice: sum(r["choice"] == choice for r in standing) for choice in CHOICES}
        times = [r["seconds"] for r in standing if r.get("seconds") is not None]
        decided = of["left"] + of["right"]
        return {
            "pairs": len(self.pairs),
            "labelled": len(standing),
            **of,
            "left_share": of["left"] / decided if decided else None,
            "median_seconds": statistics.median(times) if times else None,
            "left_out": len(self._pairs.equal) + len(self._pairs.repeated),
        }

    def line(self) -> str:
        said = self.summary()
        decided = said["left"] + said["right"]
        return (
            f"PreferenceLabeller: {said['labelled']} of {said['pairs']} pairs labelled "
            f"({decided} preferred, {said['tie']} ties, {said['skip']} skips) in {self.file.path}"
        )

    def first_frame(self) -> Markup:
        said = self.summary()
        done = {r["pair"] for r in self._standing()}
        pair = next((pair for pair in self.pairs if pair.id not in done), None)
        facts = frames.facts([("labelled", f"{said['labelled']} of {said['pairs']}")])
        if pair is None:
            empty = "All pairs are labelled." if self.pairs else "There are no pairs to label."
            return frames.card(self.title, facts, frames.fine(empty))
        cell = "vertical-align:top;width:50%;padding:6px 14px 6px 0;white-space:pre-wrap"
        row = (frames.tag("td", _brief(s), style=cell, dir="auto") for s in (pair.left, pair.right))
        answers = frames.tag(
            "table",
            frames.tag("tr", frames.tag("th", "A"), frames.tag("th", "B")),
            frames.tag("tr", *row),
            style="width:100%;table-layout:fixed;text-align:left;overflow-wrap:anywhere",
        )
        how = "Labelling needs this page's script: run the cell, or trust the notebook."
        return frames.card(
            self.title, facts, frames.prompt(_brief(pair.prompt)), answers, frames.fine(how)
        )

    def shortened(self, budget: int) -> dict[str, Any]:
        """For a page without a kernel: whole pairs while they fit, those not labelled yet first."""
        done = {r["pair"] for r in self._standing()}
        state = {**self._state, "kernel": False, "pairs": [], "against": [], "log": []}
        room = budget - page.json_bytes(state) - 200
        order = sorted(range(len(self.pairs)), key=lambda i: self.pairs[i].id in done)
        kept: list[int] = []
        for i in order:
            room -= page.json_bytes(self._state["pairs"][i]) + 12 * len(self._verdicts) + 2
            if room < 0:
                break
            kept.append(i)
        kept.sort()
        ids = {self.pairs[i].id for i in kept}
        log = [_entry(r) for r in self._standing() if r["pair"] in ids]
        if page.json_bytes(log) > room:  # the labels made so far do not fit: show none as done
            log = []
        return {
            **state,
            "pairs": [self._state["pairs"][i] for i in kept],
            "left_out": len(self.pairs) - len(kept),
            "log": log,
            "against": [
                {"name": name, "verdicts": [said[i] for i in kept]}
                for name, said in self._verdicts.items()
            ],
        }


# ---- pieces --------------------------------------------------------------------------------------


def _entry(record: Record) -> dict[str, Any]:
    """What the browser needs of a record: the texts are in the pairs."""
    if record["kind"] == "undo":
        return {"kind": "undo", "id": record["id"], "of": record["of"]}
    keep = ("kind", "id", "pair", "choice", "seconds", "at", "peeked")
    return {key: record.get(key) for key in keep}


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 8 <= len(value) <= 64


def _sent_pair(sent: Record) -> Pair:
    """The pair of a label that was made on pairs that this labeller does not have."""
    cells = {name: sent.get(name) for name in ("prompt", "left", "right")}
    try:
        for name, cell in cells.items():
            (check_messages if isinstance(cell, list) else check_text)(cell, name)
    except RowFault as fault:
        raise fault.at("a label from the browser") from None
    return Pair(pair_id(*cells.values()), row=0, **cells)


def _page_id(pairs: list[Pair]) -> str:
    """Where a page without a kernel keeps labels: the same place for the same pairs."""
    return hashlib.sha256("".join(pair.id for pair in pairs).encode()).hexdigest()[:16]


def _brief(cell: Any) -> str:
    text = cell if isinstance(cell, str) else "\n".join(m["content"] for m in cell)
    return text if len(text) <= _FIRST_FRAME else f"{text[:_FIRST_FRAME]} … (more when it runs)"
