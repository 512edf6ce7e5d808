"""ETTh1: the hourly load and oil temperature of a power transformer over two years.

Layout: a CSV of a date and seven numbers a line. Source: Zhou et al. 2021, "Informer: Beyond
Efficient Transformer for Long Sequence Time-Series Forecasting".
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import Payload, Source, fetch
from lo_framework.spec import UserError, shown

COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")  # six loads, oil temperature
HEADER = ",".join(("date", *COLUMNS))
ROWS = 17_420  # hours, from 2016-07-01 00:00 to 2018-06-26 19:00
_MOST = 1 << 25  # bytes of such a file; the published one has 2.6 million
_WHAT = "the CSV of ETTh1"

ETTH1 = Source(
    name="ett",
    folders=("ETT-small",),
    files=("ETTh1.csv",),
    url="https://raw.githubusercontent.com/zhouhaoyi/ETDataset/"
    "1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/",
    sha256={"ETTh1.csv": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"},
    size=lambda header: _MOST,  # no header says it
)


def load_etth1(data_dir: str | None) -> Tensor:
    """The numbers of all columns, float64 [ROWS, 7], in order of time and in their own units.

    Raises:
        UserError: the file is missing, truncated, or of another format.
    """
    return parse(fetch(ETTH1, data_dir)["ETTh1.csv"])


def parse(payload: Payload) -> Tensor:
    """The numbers of one file; see `load_etth1`.

    Raises:
        UserError: another header, a line that is no date and seven finite numbers, dates that are
            not an hour apart, or another number of rows.
    """
    header, *lines = payload.text(_MOST).splitlines() or [""]
    if header != HEADER:
        raise UserError(
            f"{payload.where}: expected {_WHAT}, with the header {HEADER}, found {shown(header)}"
        )
    values = np.empty((len(lines), len(COLUMNS)))
    dates = np.empty(len(lines), dtype="datetime64[s]")
    for i, line in enumerate(lines):
        date, *numbers = line.split(",")
        try:
            dates[i], values[i] = np.datetime64(date, "s"), [float(x) for x in numbers]
            good = len(numbers) == len(COLUMNS) and np.isfinite(values[i]).all()
        except ValueError:
            good = False
        if not good:
            raise UserError(
                f"{payload.where}: line {i + 2}: expected a date and {len(COLUMNS)} numbers, found "
                f"{shown(line)}"
            )
    if (odd := np.flatnonzero(np.diff(dates) != np.timedelta64(1, "h"))).size:
        raise UserError(
            f"{payload.where}: line {odd[0] + 3}: expected the hour after "
            f"{str(dates[odd[0]]).replace('T', ' ')}, found {lines[odd[0] + 1].partition(',')[0]}"
        )
    if len(lines) != ROWS:
        raise UserError(f"{payload.where}: expected {ROWS:,} hours, found {len(lines):,}")
    return torch.from_numpy(values)
