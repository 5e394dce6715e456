"""The results of ensembles and early exits in a test: as plain data, as a table, and as a curve over their cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from hsakd_pl.errors import UsageError
from hsakd_pl.modules.ensembles import THRESHOLDS
from hsakd_pl.networks.cost import multiply_adds_until
from hsakd_pl.networks.exits import branch_exits, ensemble_exits
from hsakd_pl.records.figures import PALETTE, blank_figure, save_figure
from hsakd_pl.records.formats import ensemble_title
from hsakd_pl.records.text_table import text_table

Results = dict[str, Any]
PICTURE = "ensemble.png"
EXITS = ("early_exit", "cascade")


def ensemble_results(sums: dict[str, Tensor], networks: Any, image_size: int) -> Results:
    """Return accuracies, calibration errors and mean multiply-adds per image, from the sums of `EnsembleMetrics`.

    ``ensemble`` has them for each ensemble by name. ``early_exit`` (the branches first) and ``cascade`` (increasingly
    large ensembles) have them for each threshold, with the fraction of the images that ``left`` at each exit.
    """
    images = int(sums["images"])
    cascade_costs = _costs(networks, image_size, ensemble_exits)
    class_head_cost, all_heads_cost, all_views_cost = cascade_costs
    costs = {
        "class_head": class_head_cost,
        "all_heads": all_heads_cost,
        "class_head_all_views": networks[0].transforms.count * class_head_cost,
        "all_heads_all_views": all_views_cost,
    }
    scores = zip(*((sums[name] / images).tolist() for name in ("right", "loss", "gaps")), strict=True)
    ensembles = {}
    # without views only the first two are measured
    for (name, cost), (accuracy, loss, gaps) in zip(costs.items(), scores, strict=False):
        ensembles[name] = {
            "acc": rounded(accuracy),
            "nll": round(loss, 4),
            "ece": rounded(sum(map(abs, gaps))),
            "multiply_adds": cost,
        }
    return {
        "ensemble": ensembles,
        "early_exit": _exits(sums["early_exit"] / images, _costs(networks, image_size, branch_exits)),
        "cascade": _exits(sums["cascade"] / images, cascade_costs),
    }


def _costs(networks: Any, image_size: int, exits: Callable[..., Any]) -> list[int]:
    """Return the multiply-adds of an image until each exit, summed over the peers."""
    costs_of_peers = [multiply_adds_until(network, image_size, exits) for network in networks]
    return [sum(costs) for costs in zip(*costs_of_peers, strict=True)]


def _exits(parts: Tensor, costs: list[int]) -> list[Results]:
    """Return the results at each threshold, from the shares (2, thresholds, exits) of leaving and of right images."""
    return [
        {
            "threshold": threshold,
            "acc": rounded(sum(right)),
            "multiply_adds": round(sum(part * cost for part, cost in zip(left, costs, strict=False))),
            "left": [rounded(part) for part in left],
        }
        for threshold, left, right in zip(THRESHOLDS, *parts.tolist(), strict=True)
    ]


def rounded(fraction: float) -> float:
    """Round a fraction to the digits that float32 holds."""
    return round(fraction, 6)


def show(results: Results, picture: Path) -> None:
    """Print the table, and draw the curve where matplotlib is installed."""
    print(as_table(results), flush=True)
    try:
        save_figure(draw(results), picture)
    except UsageError as error:
        rank_zero_info(f"No {picture.name}: {error}")


def as_table(results: Results) -> str:
    """Format the ensembles and early exits as a table, one per line."""
    rows = [(ensemble_title(name), row) for name, row in results["ensemble"].items()]
    for name in EXITS:
        rows += [(f"{ensemble_title(name)} at {row['threshold']}", row) for row in results[name]]
    return text_table(
        [
            {
                "answer": title,
                "accuracy %": f"{100 * row['acc']:.2f}",
                "nll": f"{row['nll']:.3f}" if "nll" in row else "",
                "ece %": f"{100 * row['ece']:.2f}" if "ece" in row else "",
                "M multiply-adds": f"{row['multiply_adds'] / 1e6:,.1f}",
                "left at each exit %": "  ".join(f"{100 * part:5.1f}" for part in row.get("left", ())),
            }
            for title, row in rows
        ]
    )


def draw(results: Results) -> Any:
    """Draw accuracy over multiply-adds: a mark for each ensemble, a line over the thresholds for early exits."""
    figure = blank_figure(7, 4.5)
    axis = figure.subplots()
    for colour, name in zip(PALETTE, EXITS, strict=False):
        costs = [row["multiply_adds"] / 1e6 for row in results[name]]
        accuracies = [100 * row["acc"] for row in results[name]]
        axis.plot(costs, accuracies, marker="o", ms=4, color=colour, label=ensemble_title(name))
    ensembles = results["ensemble"].items()
    for colour, marker, (name, row) in zip(PALETTE[2:], "s^Dv", ensembles, strict=False):
        cost = row["multiply_adds"] / 1e6
        axis.plot(cost, 100 * row["acc"], marker, ms=8, color=colour, label=ensemble_title(name))
    axis.set(xlabel="million multiply-adds per image", ylabel="accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return figure
