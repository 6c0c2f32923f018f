"""Curves of trainings as a picture on paper: .png, .svg or .pdf."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from projects.SegFormer.engine.metrics import SCORES, SMOOTHED_OVER, Series, last_iteration, smooth

# Okabe and Ito's colours, which colour-blind people can tell apart too, darkest first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw(runs: dict[str, dict[str, Series]]) -> Figure:
    """Panels one above the other over the same iterations, a colour a run."""
    panels = {"total_loss": ("loss", 3.0), "lr": ("learning rate", 1.2)}
    panels |= {score: (f"{score} in %", 2.0) for score in SCORES}
    panels = {
        name: panel
        for name, panel in panels.items()
        if any(name in metrics for metrics in runs.values())
    }
    last = max(map(last_iteration, runs.values()))
    heights = [height for _, height in panels.values()]
    figure = Figure(figsize=(9, 1.1 + 1.05 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)
    axes = dict(zip(panels, axes[:, 0]))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(runs)}
    for name, metrics in runs.items():
        for key in metrics.keys() & axes.keys():
            iterations, values = metrics[key]
            if key == "total_loss":
                axes[key].plot(
                    *(iterations, values), color=colours[name], alpha=0.3, linewidth=0.8, zorder=1
                )
                values = smooth(metrics[key], SMOOTHED_OVER * last)
            marker = "o" if key in SCORES else None
            axes[key].plot(iterations, values, color=colours[name], linewidth=1.8, marker=marker)
    for axis, (label, _) in zip(axes.values(), panels.values()):
        axis.set_ylabel(label)
        axis.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        axis.grid(color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
    axis.set_xlabel("iteration")
    figure.align_ylabels()
    figure.legend(
        [Line2D([], [], color=colour, linewidth=3) for colour in colours.values()],
        list(colours),
        loc="outside upper left",
        ncols=3,
        frameon=False,
    )
    return figure
