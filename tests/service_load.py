#!/usr/bin/env python3
"""Many hosts at once: clients, each a process of its own, back up different disks to one service over TLS, while garbage is
collected, everything is checked and backups are restored; then the service is killed in mid-load, again and again.

"fair" lets one token read and send as slowly as the service allows it, and times what another project asks meanwhile.

usage: EKKO=target/release/ekko tests/service_load.py [load|kill|speed|fair ...]   CLIENTS=16  SIZE=96 (MiB a disk)  KILLS=20
                                                                            FOLDER=/var/tmp/ekko-load
All traffic stays on this machine.
"""

import hashlib
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

EKKO = os.path.realpath(os.environ.get("EKKO", "target/release/ekko"))
CLIENTS = int(os.environ.get("CLIENTS", "16"))
SIZE = int(os.environ.get("SIZE", "96"))
KILLS = int(os.environ.get("KILLS", "20"))
FOLDER = pathlib.Path(os.environ.get("FOLDER", "/var/tmp/ekko-load"))
STORE = FOLDER / "store"


def run(*arguments, **more):
    done = subprocess.run([str(it) for it in arguments], capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Service:
    """A service that can be killed and started again at the same address."""

    def __init__(self):
        self.port = free_port()
        self.process = None
        self.peak = 0

    def start(self):
        log = open(FOLDER / "service.log", "a")
        command = [EKKO, "-q", "-r", STORE, "serve", "--listen", f"127.0.0.1:{self.port}"]
        command += ["--tls-certificate", FOLDER / "cert.pem", "--tls-key", FOLDER / "key.pem"]
        self.process = subprocess.Popen([str(it) for it in command], stderr=log)
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, "the service ended"
            assert time.monotonic() < deadline, "the service does not come up"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def look(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                self.peak = max(self.peak, int(line.split()[1]))

    def kill(self):
        self.look()
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.look()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "it did not end in order"


def set_up():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext", "basicConstraints=critical,CA:FALSE",
        "-keyout", FOLDER / "key.pem", "-out", FOLDER / "cert.pem")
    run(EKKO, "-r", STORE, "init")
    (FOLDER / "service.toml").write_text("")


def token(project, role):
    return json.loads(run(EKKO, "--json", "-r", STORE, "token", "create", "--project", project, "--role", role))["token"]


def environment(service, secret):
    return {**os.environ, "EKKO_REPOSITORY": f"https://localhost:{service.port}/", "EKKO_TOKEN": secret,
            "EKKO_CACERT": str(FOLDER / "cert.pem")}


def blocks():
    """Text of 4 KiB each, which compresses to about a quarter."""
    source = random.Random(1)
    words = [bytes(source.choices(b"etaoin shrdlu", k=source.randint(3, 12))) for _ in range(4096)]
    return [b" ".join(source.choices(words, k=600))[:4096] for _ in range(2048)]


BLOCKS = blocks()


def content(seed, size):
    """Bytes that compress to about a third, no mebibyte of them like another."""
    source = random.Random(seed)
    parts = []
    for _ in range(size // (1 << 20) + 1):
        parts.append(b"".join(source.choices(BLOCKS, k=230)) + source.randbytes(26 * 4096))
    return b"".join(parts)[:size]


def make_disks():
    """A disk for each client: a third in common, the rest its own."""
    common = content(0, SIZE * 1024 * 1024 // 3)
    disks = []
    for client in range(CLIENTS):
        disk = FOLDER / f"disk{client}.raw"
        own = content(1000 + client, SIZE * 1024 * 1024 - len(common))
        with open(disk, "wb") as file:
            file.write(common + own)
        disks.append(disk)
    return disks


def change(disk, seed):
    source = random.Random(seed)
    with open(disk, "r+b") as file:
        for _ in range(5):
            file.seek(source.randrange(disk.stat().st_size - 4096))
            file.write(source.randbytes(4096))


def backup(env, client, disk, *more):
    command = [EKKO, "--json", "backup", *more, f"vm{client}={disk}"]
    return subprocess.Popen([str(it) for it in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process, what):
    out, err = process.communicate()
    assert process.returncode == 0, f"{what}: {process.returncode}\n{out}\n{err}"
    return json.loads(out) if out else None


def same(env, name, expected, out):
    run(EKKO, "-q", "restore", "--no-sync", name, out, env=env)
    run("cmp", out, expected)
    out.unlink()


def load(service, disks):
    """All clients at once, while everything else goes on."""
    secrets = [token(f"p{client % 4}", "backup") for client in range(CLIENTS)]
    envs = [environment(service, secret) for secret in secrets]
    admin = environment(service, token("p0", "admin"))
    over, troubles, done = threading.Event(), [], {"gc": 0, "check": 0, "restore": 0}

    def again_and_again(name, job):
        while not over.is_set():
            try:
                job()
                done[name] += 1
            except AssertionError as error:
                troubles.append(f"{name}: {error}")
            service.look()
            over.wait(0.2)

    first = [backup(env, client, disk) for client, (env, disk) in enumerate(zip(envs, disks))]
    threads = [
        threading.Thread(target=again_and_again, args=("gc", lambda: run(EKKO, "-q", "gc", "--now", env=admin))),
        threading.Thread(target=again_and_again, args=("check", lambda: run(EKKO, "-q", "check", "--read-data", env=admin))),
    ]
    [thread.start() for thread in threads]
    for client, process in enumerate(first):
        ended(process, f"client {client}")
    copies = []
    for client, disk in enumerate(disks):
        copy = disk.with_suffix(".day0")
        shutil.copyfile(disk, copy)
        copies.append(copy)
    reader = threading.Thread(target=again_and_again, args=(
        "restore", lambda: same(envs[done["restore"] % CLIENTS], f"vm{done['restore'] % CLIENTS}@0",
                                copies[done["restore"] % CLIENTS], FOLDER / "out.raw")))
    reader.start()
    for day in range(1, 3):
        for client, disk in enumerate(disks):
            change(disk, day * 100 + client)
        days = [backup(env, client, disk) for client, (env, disk) in enumerate(zip(envs, disks))]
        for client, process in enumerate(days):
            ended(process, f"client {client} on day {day}")
    over.set()
    [thread.join() for thread in [*threads, reader]]
    assert not troubles, troubles
    for client, disk in enumerate(disks):
        same(envs[client], f"vm{client}@latest", disk, FOLDER / "out.raw")
        same(envs[client], f"vm{client}@0", copies[client], FOLDER / "out.raw")
        copies[client].unlink()
    service.look()
    print(f"{CLIENTS} clients, {SIZE} MiB each, three days: all restore exactly; beside them {done['gc']} collections, "
          f"{done['check']} checks of all data, {done['restore']} restores; the service had {service.peak / 1024:.0f} MiB at most")
    assert service.peak < 500e6 / 1024, "it took more than 500 MB"


def kill(service, disks):
    """The service is killed in mid-load; clients go on with it when it is there again."""
    few = disks[:4]
    envs = [environment(service, token("kill", "backup")) for _ in few]
    source = random.Random(7)
    kills, numbers, resumed = 0, {}, 0
    day = 0
    while kills < KILLS:
        day += 1
        for client, disk in enumerate(few):
            # Half of it is new, so that there is something to lose.
            with open(disk, "r+b") as file:
                file.write(content(day * 1000 + client, SIZE * 1024 * 1024 // 2))
        processes = [backup(env, f"k{client}", disk, "--limit-rate", "24MiB") for client, (env, disk) in enumerate(zip(envs, few))]
        while any(process.poll() is None for process in processes) and kills < KILLS:
            time.sleep(source.uniform(0.3, 1.5))
            if all(process.poll() is not None for process in processes):
                break
            service.kill()
            kills += 1
            service.start()
        for client, process in enumerate(processes):
            document = ended(process, f"client {client} on day {day}")["backups"][0]
            numbers[client] = document["incremental"]
            resumed += document["deduplicated_segments"]
        for client, disk in enumerate(few):
            # What was acknowledged is there, and is the disk.
            same(envs[client], f"vmk{client}@{numbers[client]}", disk, FOLDER / "out.raw")
    print(f"{kills} times killed in {day} days of {len(few)} clients: all went on, nothing acknowledged was lost; "
          f"{resumed} segments were there already when a backup went on")


def speed(service, disks):
    """The sum of all clients beside one local backup of as much, in the same run."""
    total = sum(disk.stat().st_size for disk in disks) / 1e6
    local = FOLDER / "local"
    ratios = {"new": [], "unchanged": []}
    for turn in range(3):
        env = [environment(service, token(f"s{turn}", "backup")) for _ in disks]
        figures = {}
        shutil.rmtree(local, ignore_errors=True)
        run(EKKO, "-r", local, "init")
        for what in ["new", "unchanged"]:
            begun = time.monotonic()
            # One after the other, all cores to each: a local backup.
            run(EKKO, "-q", "-r", local, "backup", "--at-once", "1", *[f"vm{n}={disk}" for n, disk in enumerate(disks)])
            figures["local", what] = total / (time.monotonic() - begun)
            begun = time.monotonic()
            for client, process in enumerate([backup(it, f"s{turn}-{client}", disk) for client, (it, disk) in enumerate(zip(env, disks))]):
                ended(process, f"client {client}")
            figures["remote", what] = total / (time.monotonic() - begun)
        for what in ratios:
            ratios[what].append(figures["remote", what] / figures["local", what])
            print(f"{what}: one local backup {figures['local', what]:.0f} MB/s, {CLIENTS} clients together {figures['remote', what]:.0f} MB/s: "
                  f"{ratios[what][-1]:.2f}")
        # Every segment is new to the next turn.
        for client, disk in enumerate(disks):
            disk.write_bytes(content(50_000 + turn * 1000 + client, SIZE * 1024 * 1024))
    service.look()
    middle = {what: sorted(all_of)[1] for what, all_of in ratios.items()}
    print(f"medians: new {middle['new']:.2f} (at least 0.45), unchanged {middle['unchanged']:.2f} (at least 0.8); the service had "
          f"{service.peak / 1024:.0f} MiB at most")


SEGMENT = 4 << 20
ENTRIES = 1 << 20


class Asker:
    """One who asks the service over a connection of their own."""

    def __init__(self, service, secret):
        context = ssl.create_default_context(cafile=FOLDER / "cert.pem")
        self.link = http.client.HTTPSConnection("localhost", service.port, timeout=30, context=context)
        self.headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}

    def ask(self, method, path, body=None):
        self.link.request(method, path, body, self.headers)
        answer = self.link.getresponse()
        content = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {content[:200]}"
        return content

    def begin(self, name, size):
        new = {"name": name, "size_of_disk": size, "format": "raw"}
        return "/v1/sessions/" + json.loads(self.ask("POST", "/v1/sessions", json.dumps(new)))["session"]


def slow_link(service, secret, method, path, length=0):
    """A request over a link whose buffers hide nothing."""
    link = socket.socket()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    link.connect(("127.0.0.1", service.port))
    link = ssl.create_default_context(cafile=FOLDER / "cert.pem").wrap_socket(link, server_hostname="localhost")
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\nContent-Length: {length}\r\n\r\n"
    link.sendall(head.encode())
    return link


def slow_reader(service, secret, path, rate, over, states):
    with slow_link(service, secret, "GET", path) as link:
        link.settimeout(60)
        began = link.recv(4096)
        states.append(began[9:12].decode())
        while not over.wait(1) and link.recv(rate):
            pass


def slow_writer(service, secret, path, head, rate, over, states):
    with slow_link(service, secret, "POST", path, SEGMENT + len(head)) as link:
        states.append("sends")
        link.sendall(head)
        while not over.wait(1):
            link.sendall(bytes(rate))


def fair(service, disks):
    """The load of one token, and what another project waits meanwhile."""
    slow, other = token("slow", "backup"), token("other", "backup")
    seed = FOLDER / "seed.raw"
    seed.write_bytes(content(77, SEGMENT))
    for secret in [slow, other]:
        run(EKKO, "-q", "backup", f"wide={seed}", env=environment(service, secret))
    asker = Asker(service, slow)
    session = asker.begin("wide", ENTRIES * SEGMENT)
    # The service tells what it compares the segment with: so its BLAKE3 is known here.
    blake3 = asker.ask("GET", f"{session}/parent?first=0&behind=1")[8:40]
    sha1 = hashlib.sha1(seed.read_bytes()).digest()
    part = 1 << 14
    for number in range(ENTRIES // part):
        entries = b"".join(struct.pack("<II", place, 0) + sha1 + blake3 for place in range(number * part, (number + 1) * part))
        asker.ask("POST", f"{session}/entries?part={number}", entries)
    asker.ask("POST", f"{session}/commit?parts={ENTRIES // part}")
    size = len(asker.ask("GET", "/v1/backups/wide@latest/manifest"))
    head = struct.pack("<IIIBBH", 0, SEGMENT, SEGMENT, 0, 0, 0) + sha1 + blake3
    writes = asker.begin("writes", 100 * SEGMENT)
    manifest = "/v1/backups/wide@latest/manifest"
    loads = {
        "48 manifest readers, 16 KiB/s each": lambda *more: [(slow_reader, (service, slow, manifest, 16 << 10, *more))] * 48,
        "100 manifest readers, 8 KiB/s each": lambda *more: [(slow_reader, (service, slow, manifest, 8 << 10, *more))] * 100,
        "60 readers of a disk, 16 KiB/s each": lambda *more: [(slow_reader, (service, slow, "/v1/backups/wide@latest/data", 16 << 10, *more))] * 60,
        "14 uploads, 5 KiB/s each": lambda *more: [(slow_writer, (service, slow, f"{writes}/segments", head, 5 << 10, *more))] * 14,
        "100 uploads, 5 KiB/s each": lambda *more: [(slow_writer, (service, slow, f"{writes}/segments", head, 5 << 10, *more))] * 100,
    }
    print(f"a manifest of {size / 1e6:.0f} MB; another project's requests, each with what it waited:")
    worst = 0
    for what, jobs in loads.items():
        over, states = threading.Event(), []
        threads = [threading.Thread(target=job, args=arguments) for job, arguments in jobs(over, states)]
        [thread.start() for thread in threads]
        time.sleep(8)
        waits = []

        def timed(job, *arguments):
            begun = time.monotonic()
            result = job(*arguments)
            waits.append(time.monotonic() - begun)
            return result

        for _ in range(20):
            asker = Asker(service, other)
            timed(asker.ask, "GET", "/v1/images")
            session = timed(asker.begin, "web", SEGMENT)
            timed(asker.ask, "POST", f"{session}/segments", head + seed.read_bytes())
            timed(asker.ask, "GET", "/readyz")
            timed(asker.ask, "DELETE", session)
        service.look()
        over.set()
        [thread.join() for thread in threads]
        waits.sort()
        count = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        print(f"{what} ({count}): {sum(wait < 1 for wait in waits)} of {len(waits)} under 1 s, the slowest {waits[-1] * 1000:.0f} ms, "
              f"half under {waits[len(waits) // 2] * 1000:.0f} ms")
        worst = max(worst, waits[-1])
    print(f"the service had {service.peak / 1024:.0f} MiB at most")
    assert worst < 1, "another project waited for a second"


def main():
    parts = sys.argv[1:] or ["load", "kill", "speed", "fair"]
    set_up()
    service = Service()
    service.start()
    disks = make_disks()
    try:
        for part in parts:
            globals()[part](service, disks)
        service.stop()
        print(run(EKKO, "-r", STORE, "check", "--read-data").strip().splitlines()[-1])
    finally:
        if service.process.poll() is None:
            service.process.kill()
    shutil.rmtree(FOLDER)


main()
