#!/usr/bin/env python3
"""Backups of a guest's disk over NBD, as docs/qemu.md describes them, from a qemu-storage-daemon over its QMP socket.

A writer changes the disk between backups and while they run. Says what each backup read and how long it took; fails if
anything is not what it should be. Needs qemu-storage-daemon, qemu-img, qemu-io, qemu-nbd (Debian: qemu-utils) and nbdinfo
(libnbd-bin).

usage: EKKO=target/release/ekko tests/qemu.py [FOLDER]
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

EKKO = os.path.abspath(os.environ.get("EKKO", "target/release/ekko"))
MIB = 1 << 20
SEGMENT = 4 * MIB
SIZE = 8 << 30


def run(*command, code=0, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
    return done.stdout


def ekko(*arguments, code=0):
    return json.loads(run(EKKO, "-q", "-r", "store", "--json", *arguments, code=code))


def backup(*arguments, code=0):
    begun = time.monotonic()
    done = ekko("backup", *arguments, code=code)["backups"][0]
    done["took"] = time.monotonic() - begun
    return done


class Daemon:
    """A qemu-storage-daemon with a disk, which a guest writes to by the export "guest"."""

    def __init__(self, disk):
        self.process = subprocess.Popen([
            "qemu-storage-daemon", "--chardev", "socket,path=qmp.sock,server=on,wait=off,id=c",
            "--monitor", "chardev=c", "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
            "--blockdev", f"driver=file,node-name=file0,filename={disk}",
            "--blockdev", "driver=qcow2,node-name=disk,file=file0",
            "--export", "type=nbd,id=guest,node-name=disk,name=guest,writable=on"], stderr=subprocess.DEVNULL)
        while not os.path.exists("qmp.sock") or not os.path.exists("nbd.sock"):
            time.sleep(0.01)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("qmp.sock")
        self.lines = self.socket.makefile("rw")
        json.loads(self.lines.readline())
        self.qmp("qmp_capabilities")

    def qmp(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "error" in answer:
                sys.exit(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def wait_event(self, name):
        while json.loads(self.lines.readline()).get("event") != name:
            pass

    def begin(self, before, after):
        """Keeps this moment of the disk under the export "backup", with the bitmap of what changed since the last one."""
        run("qemu-img", "create", "-q", "-f", "qcow2", "fleece.qcow2", str(SIZE))
        self.qmp("blockdev-add", driver="qcow2", **{"node-name": "fleece"},
                 file={"driver": "file", "filename": "fleece.qcow2"}, backing="disk")
        actions = [
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": after, "persistent": True}},
            {"type": "blockdev-backup", "data": {"job-id": "fleecing", "device": "disk", "target": "fleece", "sync": "none"}},
        ]
        if before:
            actions.insert(1, {"type": "block-dirty-bitmap-disable", "data": {"node": "disk", "name": before}})
        self.qmp("transaction", actions=actions)
        self.qmp("block-export-add", type="nbd", id="backup", name="backup", bitmaps=[before] if before else [],
                 **{"node-name": "fleece"})

    def end(self, before):
        """The backup is there: what it was made of goes."""
        self.qmp("block-export-del", id="backup", mode="hard")
        self.qmp("block-job-cancel", device="fleecing", force=True)
        while self.qmp("query-block-jobs"):
            time.sleep(0.01)
        self.qmp("blockdev-del", **{"node-name": "fleece"})
        if before:
            self.qmp("block-dirty-bitmap-remove", node="disk", name=before)

    def stop(self):
        self.qmp("quit")
        self.process.wait()


def uri(export, path="nbd.sock"):
    return f"nbd+unix:///{export}?socket={os.path.abspath(path)}"


def write(count, seed, where=None):
    """Writes as a guest does: count times 4 KiB at random places. Returns the segments."""
    numbers = random.Random(seed)
    places = where or [numbers.randrange(SIZE // 4096) * 4096 for _ in range(count)]
    commands = [f"write -P {numbers.randrange(1, 255)} {place} 4k" for place in places]
    run("qemu-io", "-f", "raw", uri("guest"), input="\n".join(commands) + "\n")
    return {place // SEGMENT for place in places}


def same(name, reference):
    """Restores a backup and compares it."""
    run(EKKO, "-q", "-r", "store", "restore", "--force", name, "out.raw")
    run("cmp", "out.raw", reference)


def reference():
    """The disk as it is under the export "backup", by QEMU's own reading."""
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri("backup"), "reference.raw")


def certificates(folder, host):
    """Makes an authority, and certificates of it for a server and a client, as QEMU names them."""
    os.mkdir(folder)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    run("openssl", "req", "-x509", *key, "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign",
        "-keyout", "authority.pem", "-out", "ca-cert.pem", cwd=folder)
    for side in ("server", "client"):
        with open(f"{folder}/extensions", "w") as file:
            file.write(f"subjectAltName=DNS:{host}\nextendedKeyUsage={side}Auth\nkeyUsage=digitalSignature\n"
                       "basicConstraints=CA:FALSE\n")
        run("openssl", "req", "-new", *key[:5], "-subj", f"/CN={side}", "-keyout", f"{side}-key.pem",
            "-out", "request.pem", cwd=folder)
        run("openssl", "x509", "-req", "-in", "request.pem", "-CA", "ca-cert.pem", "-CAkey", "authority.pem",
            "-CAcreateserial", "-days", "2", "-extfile", "extensions", "-out", f"{side}-cert.pem", cwd=folder)


class Proxy:
    """Passes a link through and cuts it after so many bytes, so many times."""

    def __init__(self, target, cuts):
        self.target, self.cuts, self.made = target, list(cuts), 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind("proxy.sock")
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            left = self.cuts.pop(0) if self.cuts else None
            self.made += 1
            threading.Thread(target=self.pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, left), daemon=True).start()

    def pump(self, source, target, left):
        try:
            while True:
                bytes = source.recv(1 << 16 if left is None else min(left, 1 << 16))
                if not bytes:
                    break
                target.sendall(bytes)
                if left is not None:
                    left -= len(bytes)
                    if left <= 0:
                        break
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="ekko-qemu-")
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    run("sh", "-c", "rm -rf store certificates others *.sock *.qcow2 *.raw *.json")
    run(EKKO, "-q", "-r", "store", "init")
    print(run("qemu-storage-daemon", "--version").splitlines()[0] + ", " + run(EKKO, "--version").strip())
    run("qemu-img", "create", "-q", "-f", "qcow2", "disk.qcow2", str(SIZE))
    # 512 MiB that do not compress, in 16 places.
    noise = random.Random(1)
    with open("part.raw", "wb") as part:
        part.write(noise.randbytes(32 * MIB))
    daemon = Daemon("disk.qcow2")
    fill = [f"write -s part.raw {place * (SIZE // 16)} 32M" for place in range(16)]
    run("qemu-io", "-f", "raw", uri("guest"), input="\n".join(fill) + "\n")

    # The first day: everything that is allocated is read.
    daemon.begin(None, "day1")
    done = backup(f"web={uri('backup')}")
    reference()
    same("web@0", "reference.raw")
    daemon.end(None)
    assert done["read_bytes"] == 512 * MIB, done
    print(f"first backup over NBD: {done['read_bytes'] // MIB} MiB read, {done['took']:.2f} s")

    # The next day: 100 writes at random places, and more while the backup runs, which are of the day after.
    touched = write(100, 2)
    daemon.begin("day1", "day2")
    later = write(50, 3)
    done = backup("--bitmap", "day1", "--cbt-base", "web@0", f"web={uri('backup')}")
    reference()
    same("web@1", "reference.raw")
    # A list of the same bitmap by another program.
    listed = run("nbdinfo", "--map=qemu:dirty-bitmap:day1", "--json", uri("backup"))
    daemon.end("day1")
    audited = done["cbt"]["audited_segments"]
    assert done["read_bytes"] <= (len(touched) + audited) * SEGMENT, done
    assert done["took"] < 1, done
    print(f"100 writes: {len(touched)} segments touched, {audited} audited, {done['read_bytes'] // SEGMENT} read, "
          f"{done['new_segments']} new, {done['took']:.2f} s")
    with open("map.json", "w") as file:
        file.write(listed)
    again = json.loads(listed)
    dirty = {place // SEGMENT for it in again if it["type"] == 1
             for place in range(it["offset"], it["offset"] + it["length"], 4096)}
    assert dirty == touched, (dirty, touched)

    # What was written meanwhile is in the next bitmap. The link is cut ten times.
    daemon.begin("day2", "day3")
    proxy = Proxy("nbd.sock", [random.Random(4).randrange(100, 8 * MIB) for _ in range(10)])
    done = backup("--bitmap", "day2", "--cbt-base", "web@1", "--cbt-audit", "20", f"web={uri('backup', 'proxy.sock')}")
    reference()
    same("web@2", "reference.raw")
    daemon.end("day2")
    assert proxy.made == 11, proxy.made
    assert done["read_bytes"] <= (len(later) + done["cbt"]["audited_segments"]) * SEGMENT
    print(f"link cut ten times: {done['read_bytes'] // SEGMENT} segments read, {done['took']:.2f} s, as it was")

    # A bitmap that misses a write: found by the audit, and the whole disk is read.
    write(10, 5)
    daemon.qmp("block-dirty-bitmap-disable", node="disk", name="day3")
    write(1, 6, [3 * (SIZE // 16) + 8 * MIB])
    daemon.qmp("block-dirty-bitmap-enable", node="disk", name="day3")
    daemon.begin("day3", "day4")
    done = backup("--bitmap", "day3", "--cbt-base", "web@2", "--cbt-audit", "100", f"web={uri('backup')}", code=3)
    reference()
    same("web@3", "reference.raw")
    daemon.end("day3")
    assert done["cbt"]["suspects"] == [1, 2], done["cbt"]
    print(f"a write that the bitmap misses: {done['cbt']['full_read']}; backups {done['cbt']['suspects']} are suspect")

    # The server goes away in the middle and does not come back.
    daemon.begin("day4", "day5")
    killer = threading.Timer(0.3, daemon.process.kill)
    killer.start()
    process = subprocess.run([EKKO, "-q", "-r", "store", "backup", "--limit-rate", "100MiB", f"web={uri('backup')}"],
                             capture_output=True, text=True)
    assert process.returncode == 1, process
    print(f"a server that dies: {process.stderr.strip().splitlines()[-1]}")
    assert len(ekko("list")["backups"]) == 4

    # qemu-nbd takes one link at a time, and TCP.
    server = subprocess.Popen(["qemu-nbd", "-r", "-f", "qcow2", "-p", "10839", "-x", "vda", "-t", "disk.qcow2"])
    time.sleep(0.5)
    run("qemu-img", "convert", "-U", "-O", "raw", "disk.qcow2", "reference.raw")
    done = backup("other=nbd://localhost:10839/vda")
    server.kill()
    server.wait()
    same("other", "reference.raw")
    print(f"qemu-nbd by TCP: {done['read_bytes'] // MIB} MiB read, {done['took']:.2f} s")
    # Encrypted, with certificates for both sides.
    certificates("certificates", "localhost")
    certificates("others", "localhost")
    server = subprocess.Popen([
        "qemu-nbd", "-r", "-f", "qcow2", "-p", "10841", "-x", "vda", "-t", "--object",
        f"tls-creds-x509,id=tls,endpoint=server,dir={os.path.abspath('certificates')}", "--tls-creds", "tls",
        "disk.qcow2"], stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    done = backup("--tls-certificates", "certificates", "encrypted=nbds://localhost:10841/vda")
    same("encrypted", "reference.raw")
    print(f"qemu-nbd by TLS: {done['read_bytes'] // MIB} MiB read, {done['took']:.2f} s")
    for arguments, what in [
        (["x=nbds://localhost:10841/vda"], "needs certificates"),
        (["x=nbd://localhost:10841/vda"], "nbds://"),
        (["--tls-certificates", "others", "x=nbds://localhost:10841/vda"], "certificate"),
        (["--tls-certificates", "certificates", "x=nbds://127.0.0.1:10841/vda"], "certificate"),
    ]:
        refused = subprocess.run([EKKO, "-q", "-r", "store", "backup", *arguments], capture_output=True, text=True)
        assert refused.returncode in (1, 2) and what in refused.stderr, (arguments, refused)
    server.kill()
    server.wait()

    # Back to an export: a new image, then the same one rolled back after a few writes.
    run("qemu-img", "create", "-q", "-f", "qcow2", "back.qcow2", str(SIZE))
    server = subprocess.Popen(["qemu-nbd", "-f", "qcow2", "--discard=unmap", "-p", "10840", "-t", "back.qcow2"])
    time.sleep(0.5)
    target = "nbd://localhost:10840"
    begun = time.monotonic()
    done = ekko("restore", "--force", "other", target)
    print(f"restored to NBD: {done['written_bytes'] // MIB} MiB written, {time.monotonic() - begun:.2f} s")
    run("qemu-io", "-f", "raw", target, "-c", "write -P 1 0 1M", "-c", "write -P 1 1G 1M", "-c", "write -z 2G 4M")
    done = ekko("restore", "--force", "--in-place", "other", target)
    print(f"rolled back in place: {done['segments']} segments of {SIZE // SEGMENT}")
    server.terminate()
    server.wait()
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "back.qcow2", "reference.raw")
    ekko("check", "--read-data")
    run("sh", "-c", "rm -rf store certificates others *.sock *.qcow2 *.raw")
    print("all as it should be")


main()
