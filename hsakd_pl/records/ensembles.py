"""What ensembles and early exits found in a test: as plain data, as a table, and as a curve against what they cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.ensembles import THRESHOLDS
from hsakd_pl.networks.cost import multiply_adds_until
from hsakd_pl.networks.exits import branch_exits, ensemble_exits
from hsakd_pl.report.charts import COLOURS
from hsakd_pl.report.curves import blank, save_figure
from hsakd_pl.report.findings import answer
from hsakd_pl.report.table import plain

Found = dict[str, Any]
PICTURE = "ensemble.png"
EXITS = ("early_exit", "cascade")


def ensemble_results(sums: dict[str, Tensor], networks: Any, image_size: int) -> Found:
    """Give, of what :class:`EnsembleMetrics` summed up, percentages, and mean multiply-adds of an image.

    ``ensemble``: of each ensemble by name; ``early_exit``, which asks the branches first, and ``cascade``, which asks
    ever larger ensembles: of each threshold, with the percentage of images that ``left`` at each exit.
    """

    def costs(exits: Callable[..., Any]) -> list[int]:
        peers = [multiply_adds_until(network, image_size, exits) for network in networks]
        return [sum(peer) for peer in zip(*peers, strict=True)]

    cascade, images = costs(ensemble_exits), int(sums["images"])
    alone, heads, everything = cascade
    every = {
        "class_head": alone,
        "all_heads": heads,
        "class_head_all_views": networks[0].transforms.count * alone,
        "all_heads_all_views": everything,
    }
    scores = zip(*((sums[name] / images).tolist() for name in ("right", "loss", "gaps")), strict=True)
    return {
        "ensemble": {
            name: {
                "acc": percent(right),
                "nll": round(loss, 4),
                "ece": percent(sum(map(abs, gaps))),
                "multiply_adds": cost,
            }
            for (name, cost), (right, loss, gaps) in zip(every.items(), scores, strict=False)
        },
        "early_exit": _exits(sums["early_exit"] / images, costs(branch_exits)),
        "cascade": _exits(sums["cascade"] / images, cascade),
    }


def _exits(parts: Tensor, costs: list[int]) -> list[Found]:
    return [
        {
            "threshold": threshold,
            "acc": percent(sum(right)),
            "multiply_adds": round(sum(part * cost for part, cost in zip(left, costs, strict=False))),
            "left": [percent(part) for part in left],
        }
        for threshold, left, right in zip(THRESHOLDS, *parts.tolist(), strict=True)
    ]


def percent(fraction: float) -> float:
    """Round to what float32 knows of it."""
    return round(100 * fraction, 4)


def show(found: Found, picture: Path) -> None:
    """Print the table, and draw the curve where matplotlib is installed."""
    print(as_table(found), flush=True)
    try:
        save_figure(draw(found), picture)
    except UsageError as error:
        rank_zero_info(f"No {picture.name}: {error}")


def as_table(found: Found) -> str:
    """Write all answers, one a line."""
    lines = [(answer(name), row) for name, row in found["ensemble"].items()]
    lines += [(f"{answer(name)} at {row['threshold']}", row) for name in EXITS for row in found[name]]
    return plain(
        [
            {
                "answer": name,
                "accuracy %": f"{row['acc']:.2f}",
                "nll": f"{row['nll']:.3f}" if "nll" in row else "",
                "ece %": f"{row['ece']:.2f}" if "ece" in row else "",
                "M multiply-adds": f"{row['multiply_adds'] / 1e6:,.1f}",
                "left at each exit %": "  ".join(f"{part:5.1f}" for part in row.get("left", ())),
            }
            for name, row in lines
        ]
    )


def draw(found: Found) -> Any:
    """Draw accuracy against multiply-adds: a mark for each ensemble, a line over the thresholds for early exits."""
    drawn = blank(7, 4.5)
    axis = drawn.subplots()
    for colour, name in zip(COLOURS, EXITS, strict=False):
        points = [(row["multiply_adds"] / 1e6, row["acc"]) for row in found[name]]
        axis.plot(*zip(*points, strict=True), marker="o", ms=4, color=colour, label=answer(name))
    for colour, marker, (name, row) in zip(COLOURS[2:], "s^Dv", found["ensemble"].items(), strict=False):
        axis.plot(row["multiply_adds"] / 1e6, row["acc"], marker, ms=8, color=colour, label=answer(name))
    axis.set(xlabel="million multiply-adds an image", ylabel="accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return drawn
