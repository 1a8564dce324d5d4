#!/usr/bin/env python3
"""Sends each signal at random moments of backup, restore, gc and check, and closes their pipes.

Usage: tests/signals.py [--ekko target/release/ekko] [--rounds 20] [--jobs restore,...] [--seed N]

After each: the exit code is not 0, stderr has at most one line that says why, no incomplete file has its final name and no
temporary one stays, and the next command works. Signals are INT, TERM, HUP and PIPE (by kill); "reader" closes the other ends of
stdout and stderr instead.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SIGNALS = ["INT", "TERM", "HUP", "PIPE"]
MIB = 1 << 20


class Job:
    """A command, how its world is prepared before each round, and what must hold after it."""

    def __init__(self, name, command, before=None, holds=None):
        self.name, self.command, self.before, self.holds = name, command, before, holds


class World:
    def __init__(self, ekko, folder):
        self.ekko, self.folder = ekko, folder
        self.disk = self.at("disk")
        noise = random.Random(1)
        with open(self.disk, "wb") as out:
            for _ in range(24):
                out.write(noise.randbytes(2 * MIB))
                out.seek(2 * MIB, os.SEEK_CUR)
            out.truncate(96 * MIB)
        shutil.copy(self.disk, self.at("second"))
        self.run("init", "--segment-size", "64KiB")
        self.run("backup", "web=disk")
        self.run("backup", "--machine", "shop", "shop/vda=disk", "shop/vdb=second")

    def at(self, name):
        return os.path.join(self.folder, name)

    def start(self, arguments):
        return subprocess.Popen(
            [self.ekko, "-r", "R", *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments):
        child = self.start(arguments)
        out, said = child.communicate(timeout=300)
        assert child.returncode == 0, (arguments, child.returncode, said.decode())
        return out

    def remove(self, *names):
        for name in names:
            path = self.at(name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.remove(path)

    def same(self, name):
        return subprocess.run(["cmp", "-s", self.disk, self.at(name)], check=False).returncode == 0


def jobs(world):
    old = b"the disk before"

    def no(*names):
        def check(is_done):
            left = [it for it in os.listdir(world.folder) if "ekko-partial" in it or it.startswith(".ekko")]
            assert not left, left
            for name in names:
                assert is_done or not os.path.exists(world.at(name)), f"{name} has its name"

        return check

    def write_old():
        with open(world.at("old"), "wb") as out:
            out.write(old)

    def old_stays(is_done):
        no()(is_done)
        with open(world.at("old"), "rb") as file:
            assert is_done or file.read() == old, "the old file was touched"

    def change():
        noise = random.Random()
        with open(world.at("changing"), "wb") as out:
            for _ in range(24):
                out.write(noise.randbytes(MIB))

    def garbage():
        change()
        world.run("backup", "garbage=changing")
        world.run("delete", "garbage@all", "--yes")

    def intact(_):
        world.run("check")
        assert world.run("restore", "web@0", "-") == open(world.disk, "rb").read()

    restore = ["restore", "web@0"]
    all_jobs = [
        Job("restore-new", [*restore, "new"], lambda: world.remove("new"), no("new")),
        Job("restore-force", [*restore, "old", "--force"], write_old, old_stays),
        Job("restore-stdout", [*restore, "-"], None, no()),
        Job("restore-machine", ["restore", "--machine", "shop@0", "out"], lambda: world.remove("out"), no("out")),
        Job("backup", ["backup", "again=changing"], change, intact),
        Job("gc", ["gc", "--now"], garbage, intact),
        Job("check", ["check", "--read-data"], None, intact),
    ]
    if shutil.which("qemu-nbd"):
        qcow2 = [*restore, "new.qcow2", "--format", "qcow2"]
        all_jobs.insert(4, Job("restore-qcow2", qcow2, lambda: world.remove("new.qcow2"), no("new.qcow2")))
    return all_jobs


def drain(child):
    out, said = child.communicate(timeout=300)
    return out, said.decode()


def catches(child, number):
    """Whether the process listens for a signal yet."""
    try:
        with open(f"/proc/{child.pid}/status", encoding="ascii") as status:
            caught = next(line for line in status if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def strike(world, job, how, longest, chance):
    """Runs the job once and disturbs it. Returns whether it was disturbed before it ended."""
    if job.before:
        job.before()
    child = world.start(job.command)
    wait = chance.uniform(0, longest)
    if how == "reader":
        # What is read meanwhile is not more than a pipe holds.
        time.sleep(wait)
        was_running = child.poll() is None
        child.stdout.close()
        child.stderr.close()
        child.wait(timeout=300)
        is_data = job.name == "restore-stdout"
        assert not (was_running and is_data) or child.returncode != 0, "exit code 0 without a reader"
        if job.holds:
            job.holds(child.returncode == 0)
        if job.before:
            job.before()
        world.run(*job.command)
        return was_running
    begun = time.monotonic()
    if job.name == "restore-stdout":
        reader = subprocess.Popen(["cat"], stdin=child.stdout, stdout=subprocess.DEVNULL)
        child.stdout.close()
        child.stdout = None
    time.sleep(max(0, wait - (time.monotonic() - begun)))
    is_struck = child.poll() is None
    is_caught = is_struck and catches(child, getattr(signal, f"SIG{how}"))
    if is_struck:
        child.send_signal(getattr(signal, f"SIG{how}"))
    _, said = drain(child)
    if job.name == "restore-stdout":
        reader.wait(timeout=300)
    code = child.returncode
    lines = [line for line in said.splitlines() if "stopped by" in line]
    # It may have ended between the look and the signal.
    if is_struck and code != 0:
        # A signal that comes before the program listens kills it without a word.
        assert len(lines) == 1 or (not said and not is_caught), (code, said)
        # Before the line there may be notices, of a recovery for example.
        assert not lines or said.splitlines()[-1] == lines[0], said
    else:
        assert code == 0, (code, said)
    if job.holds:
        job.holds("is complete" in said or code == 0)
    if job.before:
        job.before()
    world.run(*job.command)
    return is_struck and code != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ekko", default="target/release/ekko")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--jobs", default="")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    chance = random.Random(arguments.seed)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        world = World(os.path.abspath(arguments.ekko), folder)
        for job in jobs(world):
            if arguments.jobs and not any(job.name.startswith(it) for it in arguments.jobs.split(",")):
                continue
            if job.before:
                job.before()
            begun = time.monotonic()
            world.run(*job.command)
            longest = time.monotonic() - begun
            for how in [*SIGNALS, "reader"]:
                struck = tried = 0
                while struck < arguments.rounds and tried < 5 * arguments.rounds:
                    tried += 1
                    try:
                        struck += strike(world, job, how, longest, chance)
                    except (AssertionError, subprocess.TimeoutExpired) as error:
                        failed += 1
                        print(f"FAILED: {job.name}, {how}: {error}")
                        world.remove(*[it for it in os.listdir(folder) if "ekko-partial" in it])
                print(f"{job.name}, {how}: {struck} of {tried} struck it in at most {longest:.2f} s", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
