#!/usr/bin/env python3
"""What one caller's backups cost the service and other callers: memory, time, and how many are refused.

usage: EKKO=target/release/ekko tests/service_growth.py [memory|commits|names ...]
       SEGMENTS=262144  COMMITS=20000  NAMES=3000  FOLDER=/var/tmp/ekko-growth

memory   300 empty commits by a project whose newest backup has SEGMENTS different segments
commits  COMMITS empty commits by one token with the default limits; another project's list and backup beside them.
         Then the same without the limits of a minute, until the image has as many backups as it may have
names    a list and a begin of another project beside NAMES names
All traffic stays on this machine.
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

EKKO = os.path.realpath(os.environ.get("EKKO", "target/release/ekko"))
FOLDER = pathlib.Path(os.environ.get("FOLDER", "/var/tmp/ekko-growth"))
STORE = FOLDER / "store"
SEGMENT = 64 << 10
# The service closes a connection that is idle for ten seconds.
IDLE = 5


def number(name, default):
    return int(os.environ.get(name, default))


def ekko(*arguments):
    done = subprocess.run([EKKO, "-q", "-r", STORE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


SERVICES = []


class Service:
    def __init__(self, limits=""):
        SERVICES.append(self)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        settings = FOLDER / "service.toml"
        settings.write_text(f'listen = ["127.0.0.1:{self.port}"]\n[limits]\n{limits}\n')
        command = [EKKO, "-q", "-r", str(STORE), "serve", "--config", str(settings)]
        self.process = subprocess.Popen(command, stderr=open(FOLDER / "service.log", "a"))
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "the service does not come up"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def memory(self):
        """Resident MiB."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "it did not end in order"


class Caller:
    def __init__(self, service, project):
        self.token = ekko("token", "create", "--project", project, "--role", "backup")
        self.link = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
        self.last = time.monotonic()

    def ask(self, method, path, document=None):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        body = None if document is None else json.dumps(document)
        if time.monotonic() - self.last > IDLE:
            self.link.close()
        self.last = time.monotonic()
        self.link.request(method, path, body, headers)
        answer = self.link.getresponse()
        return answer.status, answer.read()

    def begin(self, name):
        return self.ask("POST", "/v1/sessions", {"name": name, "size_of_disk": 0, "format": "raw"})

    def back_up(self, name):
        """Returns the status of the answer that ended it."""
        status, body = self.begin(name)
        if status != 201:
            return status
        session = json.loads(body)["session"]
        status, _ = self.ask("POST", f"/v1/sessions/{session}/commit?parts=0")
        if status != 200:
            self.ask("DELETE", f"/v1/sessions/{session}")
        return status

    def milliseconds(self, times=20):
        """The median times of a list, and of a begin that is given up."""
        lists, begins = [], []
        for _ in range(times):
            begun = time.monotonic()
            assert self.ask("GET", "/v1/images")[0] == 200
            lists.append(time.monotonic() - begun)
            begun = time.monotonic()
            status, body = self.begin("timed")
            begins.append(time.monotonic() - begun)
            assert status == 201, (status, body)
            self.ask("DELETE", f"/v1/sessions/{json.loads(body)['session']}")
        return statistics.median(lists) * 1000, statistics.median(begins) * 1000


def fresh():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    ekko("init", "--segment-size", "64KiB")


def memory():
    fresh()
    disk = FOLDER / "disk"
    with open(disk, "wb") as file:
        for segment in range(number("SEGMENTS", 1 << 18)):
            file.seek(segment * SEGMENT)
            file.write(segment.to_bytes(8, "little") + b"x")
        file.truncate(number("SEGMENTS", 1 << 18) * SEGMENT)
    ekko("backup", f"blue:large={disk}")
    disk.unlink()
    service = Service("sessions_per_minute = 100000\ncommits_per_minute = 100000\n")
    blue = Caller(service, "blue")
    assert blue.back_up("small") == 200
    before, begun = service.memory(), time.monotonic()
    most = before
    for _ in range(300):
        assert blue.back_up("small") == 200
        most = max(most, service.memory())
    seconds = time.monotonic() - begun
    print(f"300 commits of a project with {number('SEGMENTS', 1 << 18)} segments in {seconds:.0f} s: {before:.0f} MiB before, "
          f"{most:.0f} MiB at most, {service.memory():.0f} MiB after: {most - before:+.0f} MiB")
    service.stop()


def commits():
    fresh()
    service = Service()
    red, blue = Caller(service, "red"), Caller(service, "blue")
    red.back_up("web")
    before = red.milliseconds()
    many, begun, answers = number("COMMITS", 20_000), time.monotonic(), {}
    for _ in range(many):
        status = blue.back_up("empty")
        answers[status] = answers.get(status, 0) + 1
    seconds = time.monotonic() - begun
    assert red.back_up("web") == 200, "another caller is refused"
    tell(f"{many} empty backups asked for in {seconds:.0f} s with the default limits: {answers}", before, red.milliseconds())
    service.stop()
    # Without the limits of a minute.
    service = Service("sessions_per_minute = 1000000\ncommits_per_minute = 1000000\n")
    red, blue = Caller(service, "red"), Caller(service, "blue")
    assert red.back_up("web") == 200
    begun, done = time.monotonic(), answers.get(200, 0)
    while (status := blue.back_up("empty")) == 200:
        done += 1
    assert red.back_up("web") == 200, "another caller is refused"
    seconds = time.monotonic() - begun
    tell(f"without limits of a minute: {status} after {done} backups, {seconds:.0f} s later", before, red.milliseconds())
    service.stop()


def names():
    fresh()
    service = Service("sessions_per_minute = 1000000\ncommits_per_minute = 1000000\n")
    red, blue = Caller(service, "red"), Caller(service, "blue")
    red.back_up("web")
    before = red.milliseconds()
    for name in range(number("NAMES", 3000)):
        assert blue.back_up(f"vm{name}") == 200
    tell(f"beside {number('NAMES', 3000)} names of another project", before, red.milliseconds())
    service.stop()


def tell(what, before, after):
    print(f"{what}; another project's list {before[0]:.1f} ms before, {after[0]:.1f} ms after; its begin {before[1]:.1f} "
          f"and {after[1]:.1f} ms", flush=True)


if __name__ == "__main__":
    try:
        for what in sys.argv[1:] or ["memory", "commits", "names"]:
            {"memory": memory, "commits": commits, "names": names}[what]()
    finally:
        if SERVICES:
            SERVICES[-1].process.kill()
        shutil.rmtree(FOLDER, ignore_errors=True)
