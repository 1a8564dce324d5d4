#!/usr/bin/env python3
"""Harms random bytes of a repository, over and over, and checks what must hold whatever was harmed.

Each trial takes a fresh copy of a repository with a chain of backups, one of them deleted, and flips a bit, zeroes a
block, cuts a file short or removes it, once or twice: packs, manifests, settings, state, index. Then it restores,
checks, backs up, undeletes, deletes and rebuilds. At every step: no panic; a restore that ends with 0 gives the disk,
one that ends with 3 gives each segment as it was or as zeros; no failure is silent; nothing but harm to a pack, a
manifest or settings keeps a backup from being restored; and a check that finds nothing means that all restores work.

usage: EKKO=path/to/ekko tests/damage_soak.py SEED SECONDS [FOLDER]
"""
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

EKKO = os.path.abspath(os.environ.get("EKKO", "target/release/ekko"))
SEGMENT = 65536
wrong = 0


def tell(what, *more):
    global wrong
    wrong += 1
    print(what, *more, flush=True)


def run(*arguments):
    ran = subprocess.run([EKKO, "-r", "R", *arguments], capture_output=True)
    if b"panicked" in ran.stderr or ran.returncode not in (0, 1, 2, 3):
        tell("PANIC", arguments, ran.returncode, ran.stderr[-800:].decode())
    if ran.returncode in (1, 2) and not ran.stderr:
        tell("SILENT", arguments)
    return ran


def put(name, content):
    with open(name, "wb") as out:
        out.write(content)


def make(rng):
    """Makes the repository that is harmed. Returns the disk of each backup."""
    run("init", "--segment-size", "64KiB")
    web = rng.randbytes(6 * SEGMENT + 100)
    db = rng.randbytes(2 * SEGMENT) + bytes(SEGMENT) + web[: 2 * SEGMENT]
    put("web", web)
    put("db", db)
    run("backup", "web", "db")
    disks = {"web@0": web, "db@0": db}
    web = bytes([web[0] ^ 1]) + web[1 : 3 * SEGMENT] + bytes(SEGMENT) + web[4 * SEGMENT :] + rng.randbytes(SEGMENT)
    put("web", web)
    run("backup", "web")
    web = web[: 5 * SEGMENT] + rng.randbytes(SEGMENT) + web[6 * SEGMENT :]
    put("web", web)
    run("backup", "web", "--compression", "none")
    disks["web@2"] = web
    run("delete", "web@1")
    return disks


def harm(rng, path):
    kind = rng.choice(["flip", "flip", "flip", "cut", "gone", "zero"])
    with open(path, "rb") as file:
        content = bytearray(file.read())
    if kind == "gone" or not content:
        os.remove(path)
        return kind
    at = rng.randrange(len(content))
    if kind == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        content = content[:at]
    else:
        content[at : at + 4096] = bytes(min(4096, len(content) - at))
    put(path, content)
    return kind


def check_restores(disks, harmed, when):
    """Restores every backup. Says whether all of them were whole."""
    all_whole = True
    for name, disk in disks.items():
        ran = run("restore", name, "-")
        all_whole &= ran.returncode == 0
        if ran.returncode == 0 and ran.stdout != disk:
            tell("WRONG DATA", when, name, harmed)
        if ran.returncode == 3:
            for at in range(0, len(disk), SEGMENT):
                expected = disk[at : at + SEGMENT]
                if ran.stdout[at : at + SEGMENT] not in (expected, bytes(len(expected))):
                    tell("WRONG SEGMENT", when, name, harmed)
        guilty = any(part in path for _, path in harmed for part in ("/packs/", "/manifests/", "ekko.toml"))
        if ran.returncode != 0 and not guilty:
            tell("NEEDLESS", when, name, harmed, ran.stderr[-300:])
    return all_whole


def trial(rng, base, files):
    shutil.rmtree("R", ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", "base", "R"], check=True)
    harmed = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        path = rng.choice(files).replace("base", "R", 1)
        if os.path.exists(path):
            harmed.append((harm(rng, path), path))
    disks = dict(base)
    all_whole = check_restores(disks, harmed, "first")
    if run("check", "--read-data").returncode == 0 and not all_whole:
        tell("CHECK FOUND NOTHING", harmed)
    web = disks["web@2"]
    web = web[:SEGMENT] + rng.randbytes(SEGMENT) + web[2 * SEGMENT :]
    put("web", web)
    ran = run("backup", "web", "db")
    for line in ran.stdout.decode().splitlines():
        name = line.split(":")[0]
        disks.update({name: web} if name.startswith("web@") else {name: base["db@0"]} if name.startswith("db@") else {})
    run("undelete", "web@1")
    if run("delete", "db@0").returncode in (0, 3):
        disks.pop("db@0")
    check_restores(disks, harmed, "after the next backup")
    run("rebuild")
    check_restores(disks, harmed, "rebuilt")
    run("list")
    run("backup", "web")


def main():
    rng = random.Random(int(sys.argv[1]))
    end = time.monotonic() + float(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as folder:
        os.chdir(folder)
        disks = make(rng)
        os.rename("R", "base")
        files = [os.path.join(at, name) for at, _, names in os.walk("base") for name in names]
        files = sorted(path for path in files if os.path.basename(path) not in ("lock", "reserve"))
        trials = 0
        while time.monotonic() < end:
            trial(rng, disks, files)
            trials += 1
        print(f"seed {sys.argv[1]}: {trials} trials, {wrong} times something did not hold")
        os.chdir("/")
    sys.exit(1 if wrong else 0)


main()
