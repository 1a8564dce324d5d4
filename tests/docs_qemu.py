#!/usr/bin/env python3
"""Runs every command of docs/qemu.md and docs/machines.md against a running guest of QEMU and of libvirt, for three days each.

The guest is a boot sector that writes 4 KiB at random places of its second and third disk, about 18 times a second. Before each
backup it is stopped and its disks are copied; then the moment of the backup is taken, and the guest goes on. What Ekko restores
must be exactly the copy. Then the guest crashes, and a used fleecing image is given to Ekko, which must refuse it.

Needs root, and of Debian: qemu-system-x86, qemu-utils, libvirt-daemon-system, libvirt-clients. Everything runs in a mount
namespace of its own, with a libvirtd of its own, under TCG.

usage: EKKO=target/release/ekko tests/docs_qemu.py [FOLDER]
"""

import atexit
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
DOCS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs")

# The guest, 16-bit code for 0x7c00. It takes a seed from the time stamp counter; then, for ever, it chooses the other disk (BIOS
# drives 0x81 and 0x82), makes the next number of a linear congruential generator, fills 4 KiB with it, writes them by "extended
# write" (int 0x13, ah=0x43) at one of 65,536 places of 4 KiB, and waits for the next interrupt.
GUEST = bytes.fromhex(
    "31c08ed88ec08ed0bc007cfcfb0f3166a3677c666906677c0d66190066055ff36e3c66a3677cbf0080b9000466f3ab66c1e8096625ffff00"
    "0066c1e00366a35d7cbe557c8036657c038a16657cb80043cd13f4ebbe10000800008000000000000000000000820000")

DOMAIN = """<domain type='qemu'><name>web</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><on_crash>destroy</on_crash>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/><memballoon model='none'/>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{folder}/boot.raw'/>
<target dev='hda' bus='ide'/><boot order='1'/></disk>
{disks}</devices></domain>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{file}'/>
<target dev='{name}' bus='virtio'/><boot order='{order}'/></disk>
"""


def run(*command, code=0, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != code:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
    return done.stdout


def started(command, **options):
    """Starts a process that ends with this one at the latest."""
    process = subprocess.Popen(command, **options)
    atexit.register(process.kill)
    return process


class Page:
    """The blocks of a page that are commands, by their headings. Each must be run at least once."""

    def __init__(self, name):
        self.name, self.blocks, self.ran = name, {}, set()
        heading, language, lines = "", None, []
        for line in open(os.path.join(DOCS, name)):
            if line.startswith("```") and language is None:
                language, lines = line[3:].strip(), []
            elif line.startswith("```"):
                if language in ("sh", "json"):
                    self.blocks.setdefault(heading, []).append((language, "".join(lines)))
                language = None
            elif language is not None:
                lines.append(line)
            elif line.startswith("#"):
                heading = line.strip("# \n")

    def under(self, heading, day=0):
        """Returns the blocks under a heading, as they are so many days later."""
        self.ran.add(heading)

        def later(text):
            text = re.sub(r"\bday(\d)\b", lambda it: f"day{int(it[1]) + day}", text)
            return re.sub(r"\bweb@(\d)\b", lambda it: f"web@{int(it[1]) + day}", text)
        return [(language, later(text)) for language, text in self.blocks[heading]]

    def assert_all_ran(self):
        missing = set(self.blocks) - self.ran
        assert not missing, f"{self.name}: nobody ran the commands under {missing}"


def shell(text, code=0):
    """Runs a block as a person does, and stops at the first command that fails."""
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", text], capture_output=True, text=True)
    if done.returncode != code:
        sys.exit(f"exit {done.returncode}, not {code}:\n{text}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def make_disk(file, size):
    """A disk with a MiB of noise every 4 MiB of the first 256 MiB, which is where the guest writes."""
    with open("noise.raw", "wb") as noise:
        noise.truncate(size)
        for at in range(64):
            noise.seek(at * 4 * MIB)
            noise.write(os.urandom(MIB))
    run("qemu-img", "convert", "-f", "raw", "-O", "raw" if file.endswith("raw") else "qcow2", "noise.raw", file)
    os.remove("noise.raw")


def compare(backup, reference, format="qcow2"):
    """Restores a backup and compares it with a copy of the stopped guest's disk."""
    run("ekko", "-q", "restore", "--force", backup, "out.raw")
    run("qemu-img", "compare", "-f", "raw", "-F", format, "out.raw", reference)
    os.remove("out.raw")


def read(name):
    """Says how much of the newest backup's disk was read, and how."""
    shown = json.loads(run("ekko", "--json", "show", name))
    return "by its bitmap" if "cbt" in shown["attributes"] else "in full"


class Qemu:
    """QEMU alone."""

    def start(self):
        if os.path.exists("qmp.sock"):
            os.remove("qmp.sock")
        self.process = started([
            "qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none",
            "-qmp", "unix:qmp.sock,server=on,wait=off",
            "-blockdev", "driver=raw,node-name=boot,file.driver=file,file.filename=boot.raw",
            "-device", "ide-hd,drive=boot,bootindex=1",
            "-blockdev", "driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2",
            "-device", "virtio-blk-pci,drive=disk,bootindex=2"])
        while not os.path.exists("qmp.sock"):
            time.sleep(0.05)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("qmp.sock")
        self.lines = self.socket.makefile("rw")
        json.loads(self.lines.readline())
        self.qmp('{"execute": "qmp_capabilities"}')
        time.sleep(4)

    def qmp(self, line):
        """Sends a command, and waits for the event that the page says to wait for."""
        self.lines.write(line + "\n")
        self.lines.flush()
        events = {"block-export-del": "BLOCK_EXPORT_DELETED", "block-job-cancel": "BLOCK_JOB_CANCELLED"}
        wanted = events.get(json.loads(line)["execute"])
        answer = None
        while answer is None or wanted:
            told = json.loads(self.lines.readline())
            if "error" in told:
                sys.exit(f"{line}: {told['error']}")
            if "return" in told:
                answer = told["return"]
            if told.get("event") == wanted:
                wanted = None
        return answer

    def bitmaps(self):
        nodes = self.qmp('{"execute": "query-named-block-nodes"}')
        return next(node for node in nodes if node["node-name"] == "disk").get("dirty-bitmaps", [])

    def quit(self):
        self.qmp('{"execute": "quit"}')
        self.process.wait()

    def day(self, blocks, code=0, fleece=None):
        """Runs a day's blocks in their order. The guest stands still until the moment is taken."""
        said = ""
        self.qmp('{"execute": "stop"}')
        shutil.copy("disk.qcow2", "reference.qcow2")
        for language, text in blocks:
            if language == "json":
                for line in text.splitlines():
                    self.qmp(line)
            elif "ekko backup" in text:
                self.qmp('{"execute": "cont"}')
                time.sleep(4)
                said = shell(text, code)
            else:
                if text.startswith("rm fleece"):
                    shutil.copy("fleece.qcow2", "used.qcow2")
                shell(text)
                if fleece and "qemu-img create" in text:
                    shutil.copy(fleece, "fleece.qcow2")
        return said


def qemu_alone(page):
    make_disk("disk.qcow2", 8 << 30)
    guest = Qemu()
    guest.start()
    first, next_day = "With QEMU alone, over QMP", "The next day with QMP"
    guest.day(page.under(first))
    compare("web@0", "reference.qcow2")
    print(f"QEMU alone, day 1: {read('web@0')}, exact")
    for day in range(2):
        time.sleep(2)
        guest.day(page.under(next_day, day))
        compare(f"web@{day + 1}", "reference.qcow2")
        assert read(f"web@{day + 1}") == "by its bitmap"
        print(f"QEMU alone, day {day + 2}: {read(f'web@{day + 1}')}, exact")
        # The bitmap outlives the guest's process.
        guest.quit()
        guest.start()
    # A used fleecing image: refused, and the bitmaps are kept.
    time.sleep(2)
    said = guest.day(page.under(next_day, 2)[:-2], 1, fleece="used.qcow2")
    assert "fleecing image" in said, said
    print("a used fleecing image: " + said.strip().splitlines()[-1])
    for line in page.under(next_day, 2)[-2][1].splitlines()[:-1]:
        guest.qmp(line)
    guest.qmp('{"execute": "block-dirty-bitmap-remove", "arguments": {"node": "disk", "name": "day4"}}')
    # A crash. The bitmap was stored when the process ended in order, so it is there and inconsistent.
    guest.process.kill()
    guest.process.wait()
    guest.start()
    assert [(it["name"], it.get("inconsistent")) for it in guest.bitmaps()] == [("day3", True)], guest.bitmaps()
    for _, text in page.under("After a crash with QMP"):
        guest.qmp(text)
    guest.day(page.under(first, 3))
    compare("web@3", "reference.qcow2")
    print(f"QEMU alone, after a crash: {read('web@3')}, exact")
    guest.quit()


class Libvirt:
    """A libvirtd of our own."""

    def __init__(self):
        shutil.copytree("/etc/libvirt", "etc")
        with open("etc/qemu.conf", "w") as conf:
            conf.write('security_driver = "none"\nuser = "root"\ngroup = "root"\nnamespaces = []\ncgroup_controllers = []\n'
                       'stdio_handler = "file"\nremember_owner = 0\n')
        run("mount", "--bind", "etc", "/etc/libvirt")
        log = open("libvirtd.log", "w")
        self.daemon = started(["libvirtd", "-p", os.path.abspath("libvirtd.pid")], stdout=log, stderr=log)
        while subprocess.run(["virsh", "version"], capture_output=True).returncode != 0:
            assert self.daemon.poll() is None, open("libvirtd.log").read()
            time.sleep(0.2)

    def start(self, disks, format="qcow2"):
        described = "".join(DISK.format(format=format, file=file, name=name, order=order)
                            for order, (name, file) in enumerate(disks.items(), 2))
        with open("web.xml", "w") as file:
            file.write(DOMAIN.format(folder=os.getcwd(), disks=described))
        run("virsh", "define", "web.xml")
        run("virsh", "start", "web")
        time.sleep(4)

    def day(self, disks, blocks):
        run("virsh", "suspend", "web")
        for name, file in disks.items():
            shutil.copy(file, f"reference-{name}.qcow2")
        for _, text in blocks:
            shell(text)

    def kill(self):
        """Ends the guest's process without any order, as a crash does."""
        with open("/run/libvirt/qemu/web.pid") as pid:
            os.kill(int(pid.read()), 9)
        while "shut off" not in run("virsh", "domstate", "web"):
            time.sleep(0.1)

    def end(self):
        subprocess.run(["virsh", "destroy", "web"], capture_output=True)
        self.daemon.terminate()
        self.daemon.wait()


def one_disk(libvirt, page):
    make_disk("vda.qcow2", 8 << 30)
    disks = {"vda": os.path.abspath("vda.qcow2")}
    libvirt.start(disks)
    libvirt.day(disks, page.under("With libvirt"))
    compare("web@0", "reference-vda.qcow2")
    print(f"libvirt, day 1: {read('web@0')}, exact")
    for day in range(2):
        time.sleep(2)
        libvirt.day(disks, page.under("The next day", day))
        compare(f"web@{day + 1}", "reference-vda.qcow2")
        assert read(f"web@{day + 1}") == "by its bitmap"
        print(f"libvirt, day {day + 2}: {read(f'web@{day + 1}')}, exact")
    libvirt.kill()
    run("virsh", "start", "web")
    time.sleep(4)
    libvirt.day(disks, page.under("After the guest or the host crashed"))
    compare("web@3", "reference-vda.qcow2")
    print(f"libvirt, after a crash: {read('web@3')}, exact")
    assert not os.listdir("/var/lib/ekko"), "a scratch file was left"


def machine(libvirt, page):
    disks = {name: os.path.abspath(f"{name}.qcow2") for name in ("vda", "vdb")}
    for file in disks.values():
        make_disk(file, 2 << 30)
    libvirt.start(disks)
    first, next_day = page.under("libvirt, without snapshots of a storage")
    for day in range(3):
        blocks = [first] if day == 0 else [page.under("libvirt, without snapshots of a storage", day - 1)[1]]
        libvirt.day(disks, blocks)
        for name in disks:
            compare(f"web/{name}@{day}", f"reference-{name}.qcow2")
        how = [read(f"web/{name}@{day}") for name in disks]
        assert how == ["in full" if day == 0 else "by its bitmap"] * 2, how
        print(f"machine, day {day + 1}: both disks {how[0]}, exact")
        time.sleep(2)


LVCREATE = """#!/bin/sh -e
# lvcreate -qq -s -n NAME -L SIZE VG/LV
cp --sparse=always "/dev/$7" "/dev/vg/$4"
cp --sparse=always "/dev/vg/$4" "reference-$4"
"""
LVREMOVE = """#!/bin/sh -e
rm "/dev/$2"
"""


def snapshots(libvirt, page):
    os.mkdir("vg")
    os.symlink(os.path.abspath("vg"), "/dev/vg")
    try:
        for name, text in (("lvcreate", LVCREATE), ("lvremove", LVREMOVE)):
            write_script(f"../bin/{name}", text)
        disks = {f"vd{it}": f"/dev/vg/web-{it}" for it in "ab"}
        for it in "ab":
            make_disk(f"vg/web-{it}.raw", 2 << 30)
            os.rename(f"vg/web-{it}.raw", f"vg/web-{it}")
        libvirt.start(disks, "raw")
        for _, text in page.under("LVM snapshots"):
            shell(text)
        for day in range(3):
            shutil.rmtree("/srv/vm", ignore_errors=True)
            os.mkdir("/srv/vm")
            for _, text in page.under("Machines of several disks"):
                shell(text)
            for it in "ab":
                run("cmp", f"/srv/vm/web/vd{it}.raw", f"reference-web-{it}-snap")
            assert "domain.xml" in os.listdir("/srv/vm/web") and sorted(os.listdir("vg")) == ["web-a", "web-b"]
            print(f"machine of snapshots, day {day + 1}: exact")
            time.sleep(2)
    finally:
        os.remove("/dev/vg")


def back(page):
    """A restore to an export."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "back.qcow2", "8G")
    server = started(["qemu-nbd", "-f", "qcow2", "-x", "vda", "-t", "back.qcow2"])
    time.sleep(0.5)
    for _, text in page.under("Back to an export"):
        shell(text)
    server.terminate()
    server.wait()
    run("ekko", "-q", "restore", "web@0", "out.raw")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "out.raw", "back.qcow2")
    print("restored to an export: exact")


def write_script(path, text):
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o755)


def fresh(folder):
    """A repository and a folder of its own for each part."""
    os.mkdir(folder)
    os.chdir(folder)
    os.environ["EKKO_REPOSITORY"] = os.path.abspath("store")
    run("ekko", "-q", "init")
    with open("boot.raw", "wb") as boot:
        boot.write(GUEST.ljust(510, b"\0") + b"\x55\xaa")
        boot.truncate(MIB)


def main():
    if os.environ.get("EKKO_ISOLATED") != "1":
        os.environ["EKKO_ISOLATED"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    ekko = os.path.abspath(os.environ.get("EKKO", "target/release/ekko"))
    folder = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="ekko-docs-")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(f"{folder}/bin")
    for place in ("/run", "/var/lib/libvirt", "/var/cache/libvirt", "/srv"):
        run("mount", "-t", "tmpfs", "none", place)
    os.makedirs("/var/lib/ekko", exist_ok=True)
    run("mount", "-t", "tmpfs", "none", "/var/lib/ekko")
    os.chdir(folder)
    with open("hosts", "w") as hosts:
        hosts.write("127.0.0.1 localhost host\n")
    run("mount", "--bind", "hosts", "/etc/hosts")
    os.symlink(ekko, "bin/ekko")
    # The guest stands still from the copy of its disks to the moment of the backup; then it goes on.
    virsh = shutil.which("virsh")
    write_script("bin/virsh", f"""#!/bin/sh
{virsh} -q "$@" || exit
[ "$1" != backup-begin ] || {{ {virsh} -q resume web >&2 && sleep 4; }}
""")
    os.environ["PATH"] = f"{folder}/bin:{os.environ['PATH']}"
    os.environ["LIBVIRT_DEFAULT_URI"] = "qemu:///system"
    print(run("qemu-system-x86_64", "--version").splitlines()[0] + ", libvirt " + run(virsh, "--version").strip()
          + ", " + run("ekko", "--version").strip())
    qemu, machines = Page("qemu.md"), Page("machines.md")
    parts = os.environ.get("PARTS", "qemu libvirt machine snapshots").split()
    if "qemu" in parts:
        fresh(f"{folder}/qemu")
        qemu_alone(qemu)
        back(qemu)
    for part, work, page in (("libvirt", one_disk, qemu), ("machine", machine, machines), ("snapshots", snapshots, machines)):
        if part in parts:
            fresh(f"{folder}/{part}")
            libvirt = Libvirt()
            try:
                work(libvirt, page)
            finally:
                libvirt.end()
                run("umount", "/etc/libvirt")
    if len(parts) == 4:
        qemu.assert_all_ran()
        machines.assert_all_ran()
    os.chdir("/")
    shutil.rmtree(folder)
    print("all as it should be")


main()
