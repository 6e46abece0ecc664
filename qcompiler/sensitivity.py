"""How much a model suffers when one of its tensors gets few bits: plain data, measured by any metric, saved, edited, read back, compared.

A table has one number for each item and bit-width: the larger, the worse. Numbers of one table may be added up (that is what bit
allocation minimizes); numbers of two tables have units of their own, so that tables are compared by ranks.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

from qcompiler.errors import CalibrationError
from qcompiler.files import replacing

ItemKind = Literal["weight", "activation"]
ITEM_KINDS: tuple[ItemKind, ...] = get_args(ItemKind)

_FORMAT = 1
_COLUMNS = ("metric", "model", "settings", "kind", "name", "bits", "sensitivity")


@dataclass(frozen=True, order=True)
class Item:
    """A tensor that can get bits of its own, by the name of its node.

    ``weight``: of the layer with that name. ``activation``: the value of that name, and all that share its parameters.
    """

    name: str
    kind: ItemKind

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'"


Rows = Mapping[tuple[Item, int], float]


@dataclass(frozen=True)
class SensitivityTable:
    """What each item costs at each bit-width.

    metric: name of the metric that measured it.
    model: fingerprint of the program that was measured (``passes/allocate/table.py``); empty: any program with these names, as for a
        table that was written by hand.
    rows: (item, bits) -> sensitivity, finite; a measured difference may be negative.
    settings: how it was measured (samples, seed, what the rest of the network had), for the reader.
    channels: weight -> how much a squared error in each of its output channels counts beside one in another; only where these were told
        apart. CSV files leave it out.

    Raises:
        CalibrationError: there are no rows, or one has bits outside 2..16 or a number that is not finite.
    """

    metric: str
    model: str
    rows: Rows
    settings: Mapping[str, str] = field(default_factory=dict)
    channels: Mapping[Item, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise CalibrationError(f"sensitivity table of metric '{self.metric}': it has no rows")
        for (item, bits), value in self.rows.items():
            if not 2 <= bits <= 16:
                raise CalibrationError(f"sensitivity table: {item} has {bits} bits: use 2..16")
            if not math.isfinite(value):
                raise CalibrationError(f"sensitivity table: {item} at {bits} bits has the sensitivity {value}: give a finite number")
        for item, weights in self.channels.items():
            if not all(math.isfinite(weight) and weight >= 0.0 for weight in weights):
                raise CalibrationError(f"sensitivity table: the channels of {item} must have finite numbers, none negative")

    @property
    def items(self) -> tuple[Item, ...]:
        """In the order of the rows."""
        return tuple(dict.fromkeys(item for item, _ in self.rows))

    def bits_of(self, item: Item) -> tuple[int, ...]:
        """The bit-widths that were measured for an item, rising."""
        return tuple(sorted(bits for other, bits in self.rows if other == item))

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.csv``, all or nothing; ``load`` gives an equal table.

        Raises:
            CalibrationError: the file cannot be written, or its name has another ending.
        """
        path = Path(path)
        text = _csv_text(self) if _ending(path) == ".csv" else _json_text(self)
        try:
            with replacing(path) as file:
                file.write_text(text, encoding="utf-8", newline="")
        except OSError as error:
            raise CalibrationError(f"cannot write the sensitivity table '{path}': {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> SensitivityTable:
        """Read what ``save`` wrote, edited or not.

        Raises:
            CalibrationError: the file is missing or no table; the message says which row and why.
        """
        path = Path(path)
        ending = _ending(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(f"sensitivity table '{path}' cannot be read: {error}") from error
        try:
            return _from_csv(text) if ending == ".csv" else _from_json(text)
        except CalibrationError as error:
            raise error.within(f"'{path}'") from None


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two tables over their common rows: Spearman's rho and Kendall's tau-b; 1 for the same order, -1 for the reverse."""

    spearman: float
    kendall: float
    rows: int


def rank_correlation(
    first: SensitivityTable, second: SensitivityTable, *, bits: int | None = None, kind: ItemKind | None = None
) -> RankCorrelation:
    """How far two tables order the same rows alike.

    Args:
        bits: compare the rows of one bit-width: over several, any two metrics agree in that fewer bits are worse.
        kind: compare weights or activations alone.

    Raises:
        CalibrationError: they have fewer than three rows in common, or one of them has the same number everywhere.
    """
    from scipy import stats

    common = [row for row in first.rows if row in second.rows and bits in (None, row[1]) and kind in (None, row[0].kind)]
    if len(common) < 3:
        raise CalibrationError(
            f"the tables of '{first.metric}' and '{second.metric}' have {len(common)} rows in common: ranks need three or more"
        )
    columns = [[table.rows[row] for row in common] for table in (first, second)]
    for table, column in zip((first, second), columns, strict=True):
        if len(set(column)) == 1:
            raise CalibrationError(f"the table of '{table.metric}' has the same number in all {len(common)} rows: it has no order")
    return RankCorrelation(float(stats.spearmanr(*columns).statistic), float(stats.kendalltau(*columns).statistic), len(common))


# ---- files ------------------------------------------------------------------------------------------------------------------------


def _ending(path: Path) -> str:
    if path.suffix not in (".json", ".csv"):
        raise CalibrationError(f"sensitivity table '{path}': its name must end in .json or .csv")
    return path.suffix


def _json_text(table: SensitivityTable) -> str:
    rows = [{"kind": item.kind, "name": item.name, "bits": bits, "sensitivity": value} for (item, bits), value in table.rows.items()]
    content = {"format": _FORMAT, "metric": table.metric, "model": table.model, "settings": dict(table.settings), "rows": rows}
    if table.channels:
        content["channels"] = {item.name: list(weights) for item, weights in table.channels.items()}
    return json.dumps(content, indent=1) + "\n"


def _csv_text(table: SensitivityTable) -> str:
    """The same facts; what holds for the whole table stands in each row, so that a spreadsheet can sort them."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(_COLUMNS)
    settings = json.dumps(dict(table.settings))
    for (item, bits), value in table.rows.items():
        writer.writerow((table.metric, table.model, settings, item.kind, item.name, bits, repr(value)))
    return stream.getvalue()


def _from_json(text: str) -> SensitivityTable:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise CalibrationError(f"not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CalibrationError(f"not a sensitivity table of format {_FORMAT}: measure again, or add the key 'format'")
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CalibrationError("the key 'rows' must hold a list of objects with kind, name, bits and sensitivity")
    channels, settings = _channels(content.get("channels", {})), _settings(content.get("settings"))
    return SensitivityTable(str(content.get("metric", "")), str(content.get("model", "")), _rows(rows), settings, channels)


def _from_csv(text: str) -> SensitivityTable:
    reader = csv.DictReader(io.StringIO(text))
    missing = set(_COLUMNS[3:]) - set(reader.fieldnames or ())
    if missing:
        raise CalibrationError(f"no column '{min(missing)}': a table has the columns {', '.join(_COLUMNS)}")
    records = list(reader)
    whole = {column: {record.get(column) or "" for record in records} for column in _COLUMNS[:3]}
    for column, values in whole.items():
        if len(values) > 1:
            raise CalibrationError(f"column '{column}' differs between rows: {', '.join(sorted(values)[:2])}; one table has one")
    metric, model, settings = (next(iter(values), "") for values in whole.values())
    try:
        return SensitivityTable(metric, model, _rows(records), _settings(json.loads(settings or "{}")))
    except ValueError as error:
        raise CalibrationError(f"column 'settings' is not JSON: {error}") from None


def _rows(records: Iterable[Mapping[str, Any]]) -> dict[tuple[Item, int], float]:
    rows: dict[tuple[Item, int], float] = {}
    for number, record in enumerate(records, 1):
        key, value = _row(number, record)
        if key in rows:
            _fail(number, f"{key[0]} at {key[1]} bits stands there twice")
        rows[key] = value
    return rows


def _row(number: int, record: Mapping[str, Any]) -> tuple[tuple[Item, int], float]:
    kind, name = record.get("kind"), record.get("name")
    if kind not in ITEM_KINDS:
        _fail(number, f"kind is '{kind}': use {' or '.join(ITEM_KINDS)}")
    if not isinstance(name, str) or not name:
        _fail(number, "it has no name")
    try:
        bits, value = int(record.get("bits", "")), float(record.get("sensitivity", ""))
    except (TypeError, ValueError):
        _fail(number, f"bits '{record.get('bits')}' and sensitivity '{record.get('sensitivity')}' must be numbers")
    return (Item(name, cast("ItemKind", kind)), bits), value


def _channels(found: object) -> dict[Item, tuple[float, ...]]:
    try:
        return {Item(str(name), "weight"): tuple(map(float, weights)) for name, weights in found.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        raise CalibrationError("the key 'channels' must hold a list of numbers for each name of a weight") from None


def _settings(found: object) -> dict[str, str]:
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def _fail(number: int, reason: str) -> NoReturn:
    raise CalibrationError(f"row {number}: {reason}")
