#!/usr/bin/env python3
"""What a hostile client, a hostile repository and hostile text can do, against a real process: for anyone who wants to see it.

usage: EKKO=target/release/ekko tests/attack.py [commits|abandoned|links|text ...]     COMMITS=2000  FOLDER=/var/tmp/ekko-attack

commits     one token commits empty disks with as many tags as it can, as fast as it can: it is slowed or refused, another project's
            requests are answered in time, and the service's memory and the lists do not grow without end
abandoned   one token begins backups of new names and gives them up: no file and no name stays
links       names in a repository are links and FIFOs: each command ends, and nothing outside of the repository changes
text        tags, names and requests with control characters: none reaches a terminal, a log or an answer

Each part prints a line of figures, and "held" or what did not hold. The exit code is 1 if something did not. Nothing leaves this machine.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import unicodedata

EKKO = os.path.realpath(os.environ.get("EKKO", "target/release/ekko"))
COMMITS = int(os.environ.get("COMMITS", "2000"))
FOLDER = pathlib.Path(os.environ.get("FOLDER", "/var/tmp/ekko-attack"))
STORE = FOLDER / "store"
# A command that takes longer is taken to hang, in seconds.
LIMIT = 60

failures = []


def hold(is_so, what):
    """Notes what does not hold."""
    if not is_so:
        failures.append(what)
        print(f"    DOES NOT HOLD: {what}")


def run(*arguments, **more):
    done = subprocess.run([EKKO, *map(str, arguments)], capture_output=True, text=True, timeout=LIMIT, **more)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def token(project, role):
    return json.loads(run("--json", "-r", STORE, "token", "create", "--project", project, "--role", role))["token"]


def fresh():
    """Makes a repository with a disk of each of two projects."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    run("-r", STORE, "init", "--segment-size", "64KiB")
    disk = FOLDER / "disk"
    disk.write_bytes(os.urandom(1 << 20))
    for name in ("blue:web", "red:db"):
        run("-r", STORE, "backup", f"{name}={disk}")


class Service:
    """A service, and what it takes."""

    def __init__(self, *arguments):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.log = FOLDER / "service.log"
        command = [EKKO, "-r", STORE, "serve", "--listen", f"127.0.0.1:{self.port}", *arguments]
        self.process = subprocess.Popen([str(it) for it in command], stderr=open(self.log, "wb"))
        deadline = time.monotonic() + LIMIT
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def ask(self, method, path, secret=None, body=None):
        """Asks once, on a connection of its own; returns the status and the body."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        headers = {"Content-Type": "application/json"}
        if secret:
            headers["Authorization"] = f"Bearer {secret}"
        link.request(method, path, None if body is None else json.dumps(body), headers)
        answer = link.getresponse()
        text = answer.read()
        link.close()
        return answer.status, text

    def memory(self):
        """What it takes now, in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        hold(self.process.wait(LIMIT) == 0, "the service ends in order")


def answers_in(service, secret, times=20):
    """How long a request of another project takes, in milliseconds."""
    taken = []
    for _ in range(times):
        begun = time.monotonic()
        status, _ = service.ask("GET", "/v1/images", secret)
        taken.append(1000 * (time.monotonic() - begun))
        hold(status == 200, f"another project's list is answered ({status})")
    return statistics.median(taken)


def session(name, tags=()):
    return {"name": name, "size_of_disk": 0, "format": "raw", "recognised": False, "tags": list(tags)}


def commits():
    fresh()
    service = Service("-q")
    attacker, other = token("blue", "backup"), token("red", "restore")
    before, memory = answers_in(service, other), service.memory()
    tags = [f"{number:02}" + "x" * 62 for number in range(16)]
    answers = {}
    done = 0
    begun = time.monotonic()
    for number in range(COMMITS):
        status, body = service.ask("POST", "/v1/sessions", attacker, session("web", tags))
        if status == 201:
            path = f"/v1/sessions/{json.loads(body)['session']}/commit?parts=0"
            status, body = service.ask("POST", path, attacker)
            done += status == 200
        answers[status] = answers.get(status, 0) + 1
    seconds = time.monotonic() - begun
    after, grown = answers_in(service, other), service.memory() - memory
    size = max(path.stat().st_size for path in STORE.glob("manifests/*/set.toml"))
    print(f"commits: {done} of {COMMITS} committed in {seconds:.0f} s, by status {answers}; another project's list {before:.1f} ms "
          f"before, {after:.1f} ms after; {grown:.0f} MiB more; the longest list of backups has {size >> 10} KiB")
    hold(after < 1000, "another project's list is answered within a second")
    hold(grown < 200, "memory does not grow without end")
    status, _ = service.ask("GET", "/v1/backups/web@0", attacker)
    hold(status == 200, "the image's first backup is there")
    service.stop()
    hold("db@0" in run("-r", STORE, "list", "red:db"), "the other project's backup is there")


def abandoned():
    fresh()
    service = Service("-q")
    attacker = token("blue", "backup")
    refused = 0
    for number in range(200):
        status, body = service.ask("POST", "/v1/sessions", attacker, session(f"new-{number}"))
        if status == 201:
            service.ask("DELETE", f"/v1/sessions/{json.loads(body)['session']}", attacker)
        refused += status != 201
    service.stop()
    sets = len(list(STORE.glob("manifests/*")))
    files = len(list(STORE.glob("sessions/*")))
    print(f"abandoned: 200 begun and given up, {refused} refused: {sets} sets and {files} files of sessions")
    hold(sets == 2 and files == 0, "nothing stays of what was given up")


def command_of(name):
    """What is run on a hostile repository, so that it meets the name."""
    disk = FOLDER / "disk"
    everything = [["list"], ["show", "blue:web@0"], ["check"], ["restore", "--force", "blue:web@0", FOLDER / "out"],
                  ["backup", f"blue:web={disk}"], ["gc"], ["delete", "blue:web@0"], ["rebuild"]]
    return everything if name != "sessions" else [*everything, ["serve"]]


def snapshot(folder):
    """The names and bytes of all files in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def links():
    met = 0
    for kind in ("link to a folder", "link to a file", "FIFO"):
        for name in ("leases", "sessions", "index", "lock", "reserve", "packs", "manifests", "ekko.toml", "state", "a set", "a pack"):
            fresh()
            outside = FOLDER / "outside"
            outside.mkdir()
            for precious in ("precious", "2021/photo", "1/db", "x.tmp"):
                (outside / precious).parent.mkdir(exist_ok=True)
                (outside / precious).write_bytes(b"precious")
            old = time.time() - 10 * 86400
            os.utime(outside / "precious", (old, old))
            place = {"a set": next(STORE.glob("manifests/*/set.toml")), "a pack": next(STORE.glob("packs/*"))}.get(name, STORE / name)
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            place.unlink(missing_ok=True)
            if kind == "FIFO":
                os.mkfifo(place)
            else:
                place.symlink_to(outside if kind == "link to a folder" else outside / "precious")
            before = snapshot(outside)
            for arguments in command_of(name):
                command = [EKKO, "-r", STORE, *arguments]
                if arguments == ["serve"]:
                    command = ["timeout", "--preserve-status", "3", *command, "--listen", "127.0.0.1:0"]
                met += 1
                try:
                    done = subprocess.run([str(it) for it in command], capture_output=True, timeout=LIMIT)
                    hold(b"panicked" not in done.stderr, f"{name} is a {kind}: {arguments[0]} does not panic")
                except subprocess.TimeoutExpired:
                    hold(False, f"{name} is a {kind}: {arguments[0]} ends within {LIMIT} s")
            hold(snapshot(outside) == before, f"{name} is a {kind}: nothing outside changes")
    print(f"links: {met} commands met a link or a FIFO")


def is_harmless(text):
    return all(letter == "\n" or unicodedata.category(letter) != "Cc" for letter in text)


def text():
    fresh()
    service = Service("-vv")
    secret = token("blue", "backup")
    controls = "".join(map(chr, [*range(0x20), *range(0x7f, 0xa0)]))
    looked = 0
    for letter in controls:
        for body in (session(f"a{letter}b"), session("web", [f"t{letter}"]), {**session("web"), "in_use": f"u{letter}"},
                     {**session("web"), "format": f"raw{letter}"}, {**session("web"), f"field{letter}": 1}):
            status, answer = service.ask("POST", "/v1/sessions", secret, body)
            if status == 201:
                path = f"/v1/sessions/{json.loads(answer)['session']}/commit?parts=0"
                _, more = service.ask("POST", path, secret)
                answer += more
            looked += 1
            hold(is_harmless(answer.decode()), f"an answer is safe to look at: {answer!r}")
    for path in ("/v1/images", "/v1/backups", "/v1/backups/web@latest"):
        hold(is_harmless(service.ask("GET", path, secret)[1].decode()), f"{path} is safe to look at")
    service.stop()
    for arguments in (["list"], ["show", "blue:web@latest"], ["check"], ["--json", "list"], ["--json", "show", "blue:web@latest"]):
        done = subprocess.run([EKKO, "-r", STORE, *arguments], capture_output=True, timeout=LIMIT)
        hold(is_harmless((done.stdout + done.stderr).decode()), f"{arguments} is safe to look at")
    hold(is_harmless(service.log.read_text()), "the log is safe to look at")
    print(f"text: {looked} requests with control characters")


PARTS = {"commits": commits, "abandoned": abandoned, "links": links, "text": text}


def main():
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
    shutil.rmtree(FOLDER, ignore_errors=True)
    print("all of it held" if not failures else f"{len(failures)} times something did not hold")
    sys.exit(1 if failures else 0)


main()
