"""The rows of `data/invoices.csv`, and in Python what the children make of them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Dict, List

DATA = Path(__file__).parent / "data" / "invoices.csv"
NUMBERS = ("quantity", "unit_cents", "vat_percent", "instalments")


def rows() -> List[Dict[str, Any]]:
    with DATA.open(encoding="utf-8", newline="") as lines:
        return [
            {name: int(v) if name in NUMBERS else v for name, v in row.items()}
            for row in csv.DictReader(lines)
        ]


def charge(row: Dict[str, Any]) -> Dict[str, Any]:
    """What every child must answer, but for its pid: the children are checked by it.

    Raises:
        ZeroDivisionError: an invoice is to be paid in no instalments at all.
    """
    net = row["quantity"] * row["unit_cents"]
    tax = (net * row["vat_percent"] + 50) // 100
    total = net + tax
    first = total - total // row["instalments"] * (row["instalments"] - 1)
    iban_ok = _iban_ok(row["iban"])
    risk = 0 if iban_ok else 60
    risk += 0 if row["iban"].startswith(row["country"]) else 20
    risk += 0 if total < 1_000_000 else 15
    return {
        "invoice": row["invoice"],
        "customer": row["customer"],
        "tax_cents": tax,
        "total_cents": total,
        "total": f"{total // 100:,}.{total % 100:02d} {row['currency']}",
        "first_instalment_cents": first,
        "iban_ok": iban_ok,
        "risk": risk,
    }


def _iban_ok(iban: str) -> bool:
    digits = "".join(str(int(char, 36)) for char in iban[4:] + iban[:4])
    return int(digits) % 97 == 1
