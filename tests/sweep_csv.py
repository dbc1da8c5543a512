"""Files as sweeps leave them."""

import csv


def write_runs(results, grid, accuracies, metric="test/accuracy"):
    """`runs.csv` of a grid: cell -> an accuracy a seed."""
    (results / grid).mkdir(parents=True)
    with (results / grid / "runs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "seed", "finished", "seconds", metric])
        for label, values in accuracies.items():
            writer.writerows([label, seed, True, 1.0, value] for seed, value in enumerate(values))
