"""Prints the table of benches/fleet.sh from what it measured. usage: fleet_table.py FOLDER"""

import json
import os
import pathlib
import statistics
import sys

folder = pathlib.Path(sys.argv[1])
PEERS = ["borg", "restic", "rustic", "bupstash"]
# Each row: what was done, how much better than the best peer it is to be, and how the best is found.
ROWS = [
    ("first", "first backup", 2),
    ("again", "the same, unchanged and re-read", 4),
    ("next", "next day", 3),
    ("restore", "restore to a new file", 2),
]


def runs(tool, what):
    path = folder / f"{tool}.{what}.times"
    if not path.exists():
        return []
    return [[float(field) for field in line.split()] for line in path.read_text().splitlines()]


def wall(tool, what):
    return statistics.median(run[0] for run in runs(tool, what))


def cpu(tool, what):
    return statistics.median(run[1] + run[2] for run in runs(tool, what))


def memory(tool, what):
    return max(run[3] for run in runs(tool, what)) / 1024


def verdict(met):
    return "met" if met else "NOT MET"


def table():
    peers = [peer for peer in PEERS if runs(peer, "first")]
    count = len(runs("ekko", "first"))
    print(f"\nwall seconds, medians of {count} rounds; in brackets CPU seconds, user and system\n")
    print(f"{'':34}" + "".join(f"{tool:>15}" for tool in ["ekko", *peers]) + "   beside the best peer")
    for what, name, factor in ROWS:
        cells = "".join(f"{wall(tool, what):8.2f} ({cpu(tool, what):4.1f})" for tool in ["ekko", *peers])
        line = f"{name:34}{cells}"
        if peers:
            ratio = min(wall(peer, what) for peer in peers) / wall("ekko", what)
            line += f"   {ratio:.2f}x faster, at least {factor}x: {verdict(ratio >= factor)}"
        print(line)
    print(f"{'cp of the disk, to a new file':34}{wall('ekko', 'copy'):8.2f} ({cpu('ekko', 'copy'):4.1f})")
    print(f"{'restore, target synced':34}{wall('ekko', 'restore-synced'):8.2f} ({cpu('ekko', 'restore-synced'):4.1f})")
    cells = "".join(
        f"{max(memory(tool, what) for what, _, _ in ROWS):11.0f} MiB" for tool in ["ekko", *peers]
    )
    peak = max(memory("ekko", what) for what, _, _ in ROWS)
    print(f"{'peak memory':34}{cells}   at most 200 MB: {verdict(peak * 1.048576 <= 200)}")

    def stored(tool):
        return int((folder / f"{tool}.stored").read_text()) / 1e6

    cells = "".join(f"{stored(tool):12.0f} MB" for tool in ["ekko-4MiB", *peers])
    line = f"{'six disks stored':34}{cells}"
    if "borg" in peers:
        ratio = stored("ekko-4MiB") / stored("borg")
        line += f"   {ratio:.3f} of borg, at most {615 / 681:.3f}: {verdict(ratio <= 615 / 681)}"
    print(line)
    small = f"{'six disks, segments of 256 KiB':34}{stored('ekko-256KiB'):12.0f} MB"
    if "restic" in peers:
        ratio = stored("ekko-256KiB") / stored("restic")
        small += f"{'':{15 * len(peers)}}   {ratio:.3f} of restic, at most {540 / 522:.3f}: {verdict(ratio <= 540 / 522)}"
    print(small)


def bounds():
    rounds = [json.loads(path.read_text()) for path in folder.glob("benchmark.*.json")]

    def median(of):
        return {name: statistics.median(measured[of][name] for measured in rounds) for name in rounds[0][of]}

    rates = ", ".join(f"{name} {rate / 1e9:.2f}" for name, rate in median("bytes_per_second").items())
    print(f"\none core in GB/s on the first day's disk, in each round: {rates}; {rounds[0]['cores']} cores")
    # The bounds are of computing alone. Bytes also come out of the page cache, and go into it, at the speed of this machine.
    cores = rounds[0]["cores"]
    read = statistics.median(of["data_bytes"] / of["bytes_per_second"]["read"] for of in rounds) / cores
    copied = {"first": read, "again": read, "restore": cpu("ekko", "copy") / cores}
    for what, bound in median("bound_seconds").items():
        took = wall("ekko", what)
        line = f"bound of {what}: {bound:.2f} s; it took {took:.2f} s, {took / bound:.2f}x"
        if what == "first":
            line += f", at most 1.25x: {verdict(took <= 1.25 * bound)}"
        both = bound + copied[what]
        line += f"; with the copy {'into' if what == 'restore' else 'out of'} the page cache {both:.2f} s, {took / both:.2f}x"
        print(line)


def many():
    for place, where in [("", "on this machine"), ("far_", "behind 20 ms")]:
        for what in ["first", "again"]:
            if not runs("ekko", f"{place}together-{what}"):
                continue
            together, in_turn = (wall("ekko", f"{place}{way}-{what}") for way in ["together", "in_turn"])
            ratio = in_turn / together
            # Cores that are busy already leave no more than this to be gained; where that is less, being slower is what fails.
            most = in_turn / (cpu("ekko", f"{place}in_turn-{what}") / os.cpu_count())
            least = 1.3 if most >= 1.3 else 1
            wanted = f"at least {least}x" + ("" if least > 1 else f", as full cores allow {most:.2f}x")
            print(
                f"six disks {where}, {what}: in one call {together:.2f} s, in six {in_turn:.2f} s: {ratio:.2f}x,"
                f" {wanted}: {verdict(ratio >= least)}"
            )


if runs("ekko", "first"):
    table()
    bounds()
many()
