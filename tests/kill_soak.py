#!/usr/bin/env python3
"""Kills ekko at random moments of mixed work, and checks that nothing acknowledged is lost.

usage: EKKO=path/to/ekko tests/kill_soak.py [KILLS [SEGMENTS [SEED [FOLDER]]]]

A store of SEGMENTS segments (100,000) is made first. Then a backup, a deletion, a collection, an
undeletion, a check with repair or a rebuild begins, and is killed with SIGKILL at a random moment, until KILLS (200) were
killed before they were done. After each the
next opening is timed, every acknowledged backup must be listed and every deleted one gone; every tenth time, and at the
end, all are restored and compared, and everything is checked.
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import time

EKKO = os.environ.get("EKKO", "target/release/ekko")
KILLS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
SEGMENTS = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
SEED = int(sys.argv[3]) if len(sys.argv) > 3 else 1
SEGMENT = 64 << 10
NAMES = ["web", "db", "mail", "git"]


class Soak:
    def __init__(self, folder):
        self.folder = folder
        self.random = random.Random(SEED)
        self.store = os.path.join(folder, "store")
        self.disks = {name: self.random.randbytes(20 * SEGMENT) for name in NAMES}
        self.known = {}  # what each acknowledged backup holds
        self.deleted = {}
        self.opens = []
        self.killed = 0
        self.rounds = 0
        self.took = {}  # how long each kind of work takes that is not killed, in seconds

    def command(self, *arguments):
        return [EKKO, "-r", self.store, "--json", *arguments]

    def run(self, *arguments, codes=(0,)):
        ran = subprocess.run(self.command(*arguments), capture_output=True)
        if ran.returncode not in codes:
            sys.exit(f"{arguments}: exit {ran.returncode}\n{ran.stdout.decode()}{ran.stderr.decode()}")
        return json.loads(ran.stdout)

    def prepare(self):
        self.run("init", "--segment-size", "64KiB")
        big = os.path.join(self.folder, "big")
        with open(big, "wb") as file:
            # A block of each segment; the rest is hole.
            for number in range(SEGMENTS):
                file.seek(number * SEGMENT)
                file.write((number + 1).to_bytes(8, "little") * 512)
            file.truncate(SEGMENTS * SEGMENT)
        document = self.run("backup", f"big={big}", "--compression", "zstd:1")
        assert document["backups"][0]["new_segments"] == SEGMENTS, document

    def path(self, name):
        return os.path.join(self.folder, name)

    def change(self, name):
        disk = bytearray(self.disks[name])
        for _ in range(self.random.randrange(1, 8)):
            place = self.random.randrange(20) * SEGMENT
            if self.random.random() < 0.3:
                other = self.disks[self.random.choice(NAMES)]
                disk[place:place + SEGMENT] = other[place:place + SEGMENT]
            else:
                disk[place:place + SEGMENT] = self.random.randbytes(SEGMENT)
        self.disks[name] = bytes(disk)
        with open(self.path(name), "wb") as file:
            file.write(disk)

    def listed(self):
        return {row["backup"] for row in self.run("list")["backups"]}

    def step(self):
        kind = self.random.choice(["backup"] * 4 + ["delete"] * 3 + ["gc"] * 3 + ["undelete", "check", "rebuild"])
        name = self.random.choice(NAMES)
        coming = going = back = None
        if kind == "backup":
            self.change(name)
            arguments = ["backup", f"{name}={self.path(name)}"]
            coming = self.disks[name]
        elif kind == "delete" and len(self.known) > 3:
            going = self.random.choice(sorted(self.known))
            arguments = ["delete", going]
        elif kind == "undelete" and self.deleted:
            back = self.random.choice(sorted(self.deleted))
            arguments = ["undelete", back]
        elif kind == "check":
            arguments = ["check", "--read-data=20", "--repair"]
        elif kind == "rebuild":
            arguments = ["rebuild"]
        else:
            arguments = ["gc", "--now", "--keep-unfinished", "0s"]
        child = subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started = time.monotonic()
        try:
            out, err = child.communicate(timeout=self.random.random() * self.took.get(kind, 5.0))
            done = child.returncode
            self.took[kind] = time.monotonic() - started
            if done not in (0,) and not (kind == "undelete" and done == 1):
                sys.exit(f"{arguments}: exit {done}\n{out.decode()}{err.decode()}")
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            done = None
            self.killed += 1
        begun = time.monotonic()
        # The shortest change there is: it opens the repository, says something of a backup, and closes it.
        self.run("unprotect", "big@0")
        self.opens.append(time.monotonic() - begun)
        listed = self.listed() - {"big@0"}
        if going:
            disk = self.known.pop(going)
            if going in listed:
                assert done is None, f"{going} was deleted, and is there"
                self.known[going] = disk
            else:
                self.deleted[going] = disk
        if back and back in listed:
            self.known[back] = self.deleted.pop(back)
        elif back:
            assert done != 0, f"{back} was undeleted, and is not there"
        for new in listed - self.known.keys():
            assert coming is not None, f"{new} came from nowhere"
            self.known[new] = coming
            coming = None
        assert done != 0 or coming is None, "an acknowledged backup is gone"
        assert listed == self.known.keys(), f"{self.known.keys() - listed} are gone"
        if kind == "gc" and done == 0:
            self.deleted.clear()

    def compare(self):
        for name, disk in sorted(self.known.items()):
            out = subprocess.run(self.command("restore", name, "-"), capture_output=True)
            assert out.returncode == 0, f"{name}: {out.stderr.decode()}"
            assert out.stdout == disk, f"{name} differs"
        self.run("check")


def main():
    base = sys.argv[4] if len(sys.argv) > 4 else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        soak = Soak(folder)
        soak.prepare()
        while soak.killed < KILLS:
            soak.step()
            soak.rounds += 1
            if soak.rounds % 10 == 0:
                soak.compare()
        soak.compare()
        document = soak.run("check", "--read-data")
        assert document["index"] == "agrees" and not document["problems"], document
        soak.run("gc", "--now", "--keep-unfinished", "0s")
        soak.compare()
        opens = sorted(soak.opens)
        print(f"seed {SEED}: {soak.killed} of {soak.rounds} commands killed, {SEGMENTS} segments: nothing acknowledged was lost; "
              f"an opening, a change and a closing took {opens[len(opens) // 2]:.2f} s in the median, "
              f"{opens[-1]:.2f} s at most")


main()
