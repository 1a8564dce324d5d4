//! The jobs that are swept: a table.
//!
//! Each line says what is there before, which commands are traced, and what is acknowledged when each of them has ended
//! with 0. To add a job, add a line.

use serde::{Deserialize, Serialize};

/// A disk: its family and its version. Disks share some segments with all others, some with their family, and have some of
/// their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Disk(pub u8, pub u8);

/// A backup that is no disk: the archive of a machine's moment. It must restore; its bytes are not compared.
const ARCHIVE: Disk = Disk(u8::MAX, 0);

/// How many families and versions there are.
pub const FAMILIES: u8 = 8;
pub const VERSIONS: u8 = 4;

const SEGMENT: usize = crate::common::SEGMENT;

/// Returns the bytes of a disk; nothing for an archive.
pub fn content(Disk(family, version): Disk) -> Option<Vec<u8>> {
    if family == ARCHIVE.0 {
        return None;
    }
    // Three sectors and more of noise, so that a record can be torn, and the rest compresses to nothing.
    let segment = |seed: [u8; 3], length: usize| {
        let mut bytes = vec![seed[0]; length];
        let noise = length.min(3000);
        blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes[..noise]);
        bytes
    };
    Some(
        [
            segment([1, 0, 0], SEGMENT),
            vec![0; SEGMENT],
            segment([2, family, 0], SEGMENT),
            segment([3, family, version], SEGMENT),
            segment([4, family, version], 1024),
        ]
        .concat(),
    )
}

/// A command, and what it is acknowledged to have done when it has ended with 0.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub command: &'static str,
    /// The exit code of the command when it is done.
    pub code: i32,
    pub adds: &'static [(&'static str, Disk)],
    pub removes: &'static [&'static str],
}

const fn run(command: &'static str) -> Step {
    Step { command, code: 0, adds: &[], removes: &[] }
}

const fn adds(command: &'static str, adds: &'static [(&'static str, Disk)]) -> Step {
    Step { command, code: 0, adds, removes: &[] }
}

const fn removes(command: &'static str, removes: &'static [&'static str]) -> Step {
    Step { command, code: 0, adds: &[], removes }
}

/// What is traced.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// These commands, one after the other.
    Commands(&'static [Step]),
    /// A service, and beside it each of these lines of clients at once.
    Service(&'static [&'static [Step]]),
    /// These clients of a service, which is not traced itself. Their sends count as well.
    Clients(&'static [Step]),
}

impl Work {
    /// Returns the lines of commands, which run beside each other.
    pub fn lines(&self) -> Vec<&'static [Step]> {
        match self {
            Self::Commands(steps) | Self::Clients(steps) => vec![steps],
            Self::Service(lines) => lines.to_vec(),
        }
    }
}

/// A file that the commands write for somebody.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub file: &'static str,
    /// What the command makes of it; nothing if it is what a command that was not disturbed makes.
    pub disk: Option<Disk>,
    /// Whether the file is complete as soon as it has its name.
    pub is_atomic: bool,
    /// The disk that the file was before. An atomic one is never anything else than one of the two.
    pub old: Option<Disk>,
    /// What makes the file complete after a crash.
    pub again: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub name: &'static str,
    /// Commands before. `@other` works on another repository, `!kill N` kills the command before its changing call N,
    /// `!harm FILE` changes a byte of the first record in a pack, and `!room FILE` makes a file larger.
    pub before: &'static [&'static [&'static str]],
    /// Backups that are there then.
    pub there: &'static [(&'static str, Disk)],
    pub work: Work,
    /// Those of them that a damaged record belongs to, until all commands are done.
    pub harmed: &'static [&'static str],
    pub together: &'static [&'static [&'static str]],
    pub one_of: &'static [(&'static str, &'static str)],
    pub target: Option<Target>,
}

impl Job {
    /// Where the repository is that is verified.
    pub fn repository(&self) -> &'static str {
        match self.work {
            Work::Clients(_) => "service/R",
            _ => "R",
        }
    }
}

const INIT: &str = "init --segment-size 64KiB";
const BACKUPS: &[&str] =
    &[INIT, "backup web=disks/0-0 db=disks/1-0", "backup web=disks/0-1", "backup old=disks/2-0"];
/// The first of them.
const TWO: &[&str] = &[INIT, "backup web=disks/0-0 db=disks/1-0"];
const TWO_THERE: [(&str, Disk); 2] = [("web@0", Disk(0, 0)), ("db@0", Disk(1, 0))];
const THERE: &[(&str, Disk)] =
    &[("web@0", Disk(0, 0)), ("web@1", Disk(0, 1)), ("db@0", Disk(1, 0)), ("old@0", Disk(2, 0))];
/// The same for the project that clients come from.
const PROJECT_BACKUPS: &[&str] = &[INIT, "backup blue:web=disks/0-0", "backup blue:web=disks/0-1"];
const PROJECT_THERE: &[(&str, Disk)] = &[("blue:web@0", Disk(0, 0)), ("blue:web@1", Disk(0, 1))];
const MACHINE: &str = "backup --machine vm vm/a=disks/3-0 vm/b=disks/4-0 --attach disks/1-0";
const MACHINE_BACKUPS: &[(&str, Disk)] = &[("vm@0", ARCHIVE), ("vm/a@0", Disk(3, 0)), ("vm/b@0", Disk(4, 0))];

/// A job on the usual backups; the table says what is different.
const JOB: Job = Job {
    name: "",
    before: &[BACKUPS],
    there: THERE,
    work: Work::Commands(&[]),
    harmed: &[],
    together: &[],
    one_of: &[],
    target: None,
};

const fn restored(again: &'static str) -> Target {
    Target { file: "out/disk", disk: Some(Disk(0, 1)), is_atomic: true, old: None, again }
}

const fn replaced(again: &'static str) -> Target {
    Target { old: Some(Disk(2, 0)), ..restored(again) }
}

const fn exported(file: &'static str, again: &'static str) -> Target {
    Target { file, disk: None, is_atomic: true, old: None, again }
}

/// The jobs. `{device}` is a block device where this machine lets us make one, else a file of fixed size.
pub const JOBS: &[Job] = &[
    Job { name: "init", before: &[], there: &[], work: Work::Commands(&[run(INIT)]), ..JOB },
    Job {
        name: "backup",
        work: Work::Commands(&[adds("backup web=disks/0-2", &[("web@2", Disk(0, 2))])]),
        ..JOB
    },
    Job {
        name: "backup-then-gc",
        work: Work::Commands(&[
            adds("backup web=disks/0-2", &[("web@2", Disk(0, 2))]),
            removes("delete web@0 db@0", &["web@0", "db@0"]),
            run("gc --now --keep-unfinished 0s"),
            adds("backup db=disks/1-1", &[("db@1", Disk(1, 1))]),
        ]),
        ..JOB
    },
    Job {
        name: "backup-new-names",
        work: Work::Commands(&[adds(
            "backup a=disks/3-0 b=disks/4-0",
            &[("a@0", Disk(3, 0)), ("b@0", Disk(4, 0))],
        )]),
        ..JOB
    },
    Job {
        name: "backup-after-kill",
        before: &[TWO, &["!kill 30 backup web=disks/0-1"]],
        there: &TWO_THERE,
        work: Work::Commands(&[adds("backup web=disks/0-2", &[("web@1", Disk(0, 2))])]),
        ..JOB
    },
    Job {
        name: "machine",
        before: &[TWO, &[MACHINE]],
        there: &[
            ("web@0", Disk(0, 0)),
            ("db@0", Disk(1, 0)),
            MACHINE_BACKUPS[0],
            MACHINE_BACKUPS[1],
            MACHINE_BACKUPS[2],
        ],
        work: Work::Commands(&[adds(
            "backup --machine vm vm/a=disks/3-1 vm/b=disks/4-1 --attach disks/1-1",
            &[("vm@1", ARCHIVE), ("vm/a@1", Disk(3, 1)), ("vm/b@1", Disk(4, 1))],
        )]),
        together: &[&["vm@1", "vm/a@1", "vm/b@1"]],
        ..JOB
    },
    Job {
        name: "machine-new-names",
        work: Work::Commands(&[adds(MACHINE, MACHINE_BACKUPS)]),
        together: &[&["vm@0", "vm/a@0", "vm/b@0"]],
        ..JOB
    },
    Job {
        name: "delete",
        work: Work::Commands(&[removes("delete web@1 old@0", &["web@1", "old@0"])]),
        ..JOB
    },
    Job {
        name: "delete-machine",
        before: &[&[INIT, MACHINE]],
        there: MACHINE_BACKUPS,
        work: Work::Commands(&[removes("delete --machine vm@0", &["vm@0", "vm/a@0", "vm/b@0"])]),
        together: &[&["vm@0", "vm/a@0", "vm/b@0"]],
        ..JOB
    },
    Job {
        name: "delete-range",
        work: Work::Commands(&[removes("delete web@0-1", &["web@0", "web@1"])]),
        together: &[&["web@0", "web@1"]],
        ..JOB
    },
    Job {
        name: "delete-gc",
        work: Work::Commands(&[removes("delete web@0 db@0 --gc", &["web@0", "db@0"])]),
        ..JOB
    },
    Job {
        name: "forget-gc",
        work: Work::Commands(&[removes("forget web --keep-last 1 --gc", &["web@0"])]),
        ..JOB
    },
    Job {
        name: "forget-machine",
        before: &[&[INIT, MACHINE, "backup --machine vm vm/a=disks/3-1 vm/b=disks/4-1 --attach disks/1-1"]],
        there: &[
            MACHINE_BACKUPS[0],
            MACHINE_BACKUPS[1],
            MACHINE_BACKUPS[2],
            ("vm@1", ARCHIVE),
            ("vm/a@1", Disk(3, 1)),
            ("vm/b@1", Disk(4, 1)),
        ],
        work: Work::Commands(&[removes("forget vm --keep-last 1", &["vm@0", "vm/a@0", "vm/b@0"])]),
        together: &[&["vm@0", "vm/a@0", "vm/b@0"]],
        ..JOB
    },
    Job {
        name: "undelete",
        before: &[BACKUPS, &["delete web@all"]],
        there: &[("db@0", Disk(1, 0)), ("old@0", Disk(2, 0))],
        work: Work::Commands(&[adds("undelete web@all", &[("web@0", Disk(0, 0)), ("web@1", Disk(0, 1))])]),
        together: &[&["web@0", "web@1"]],
        ..JOB
    },
    Job {
        name: "undelete-machine",
        before: &[&[INIT, MACHINE, "delete --machine vm@0"]],
        there: &[],
        work: Work::Commands(&[adds("undelete vm@0", MACHINE_BACKUPS)]),
        together: &[&["vm@0", "vm/a@0", "vm/b@0"]],
        ..JOB
    },
    Job {
        name: "rename",
        work: Work::Commands(&[Step {
            command: "rename web post",
            code: 0,
            adds: &[("post@0", Disk(0, 0)), ("post@1", Disk(0, 1))],
            removes: &["web@0", "web@1"],
        }]),
        together: &[&["post@0", "post@1"]],
        one_of: &[("web@0", "post@0"), ("web@1", "post@1")],
        ..JOB
    },
    Job {
        name: "rename-sets",
        before: &[BACKUPS, &["restore --over web web@0 over", "backup web=disks/0-2"]],
        there: &[
            ("web@0", Disk(0, 0)),
            ("web@1", Disk(0, 1)),
            ("web@2", Disk(0, 2)),
            ("db@0", Disk(1, 0)),
            ("old@0", Disk(2, 0)),
        ],
        work: Work::Commands(&[Step {
            command: "rename web post",
            code: 0,
            adds: &[("post@0", Disk(0, 0)), ("post@1", Disk(0, 1)), ("post@2", Disk(0, 2))],
            removes: &["web@0", "web@1", "web@2"],
        }]),
        together: &[&["post@0", "post@1", "post@2"]],
        one_of: &[("web@0", "post@0"), ("web@1", "post@1"), ("web@2", "post@2")],
        ..JOB
    },
    Job {
        name: "failure-and-retire",
        work: Work::Commands(&[
            Step { command: "backup new=disks/none", code: 1, adds: &[], removes: &[] },
            run("retire new"),
            run("retire web"),
        ]),
        ..JOB
    },
    Job { name: "protect", work: Work::Commands(&[run("protect web@0"), run("unprotect web@0")]), ..JOB },
    Job {
        name: "gc",
        before: &[BACKUPS, &["delete web@0 old@0"]],
        there: &[("web@1", Disk(0, 1)), ("db@0", Disk(1, 0))],
        work: Work::Commands(&[run("gc --now --keep-unfinished 0s")]),
        ..JOB
    },
    Job {
        name: "gc-keeps-deleted",
        before: &[BACKUPS, &["delete web@0 old@0"]],
        there: &[("web@1", Disk(0, 1)), ("db@0", Disk(1, 0))],
        work: Work::Commands(&[
            run("gc --keep-unfinished 0s"),
            adds("undelete web@0 old@0", &[("web@0", Disk(0, 0)), ("old@0", Disk(2, 0))]),
        ]),
        ..JOB
    },
    Job {
        name: "gc-after-kill",
        before: &[BACKUPS, &["delete web@0 old@0", "!kill 40 gc --now --keep-unfinished 0s"]],
        there: &[("web@1", Disk(0, 1)), ("db@0", Disk(1, 0))],
        work: Work::Commands(&[run("gc --now --keep-unfinished 0s")]),
        ..JOB
    },
    Job {
        name: "import",
        before: &[
            TWO,
            &[
                "@other init --segment-size 64KiB",
                "@other backup web=disks/5-0",
                "@other manifest export web@0 web.sqlite --segments flat",
            ],
        ],
        there: &TWO_THERE,
        work: Work::Commands(&[adds(
            "manifest import web.sqlite --segments flat --name guest",
            &[("guest@0", Disk(5, 0))],
        )]),
        ..JOB
    },
    Job {
        name: "import-of-a-chain",
        before: &[&[
            INIT,
            "@other init --segment-size 64KiB",
            "@other backup web=disks/5-0",
            "@other backup web=disks/5-1",
            "@other manifest export web@0 0.sqlite --segments flat",
            "@other manifest export web@1 1.sqlite --segments flat",
            "manifest import 0.sqlite --segments flat --name guest",
        ]],
        there: &[("guest@0", Disk(5, 0))],
        work: Work::Commands(&[adds(
            "manifest import 1.sqlite --segments flat --name guest",
            &[("guest@1", Disk(5, 1))],
        )]),
        ..JOB
    },
    Job { name: "check", work: Work::Commands(&[run("check --read-data")]), ..JOB },
    Job {
        name: "check-after-kill",
        before: &[BACKUPS, &["!kill 12 delete old@0", "!kill 50 backup new=disks/3-0"]],
        work: Work::Commands(&[run("check --read-data --repair")]),
        ..JOB
    },
    Job {
        name: "repair",
        before: &[BACKUPS, &["!harm R/packs/0000000000000003.pack"]],
        work: Work::Commands(&[
            // It is done, and it tells of the damage.
            Step { code: 3, ..run("check --read-data --repair") },
            adds("backup old=disks/2-0", &[("old@1", Disk(2, 0))]),
        ]),
        harmed: &["old@0"],
        ..JOB
    },
    Job { name: "rebuild", work: Work::Commands(&[run("rebuild")]), ..JOB },
    Job {
        name: "verify",
        work: Work::Commands(&[run("verify web@1 disks/0-1"), run("restore web@1 -")]),
        ..JOB
    },
    Job { name: "token", work: Work::Commands(&[run("token create --project blue --role backup")]), ..JOB },
    Job {
        name: "restore",
        work: Work::Commands(&[run("restore web@1 out/disk")]),
        target: Some(restored("restore --force web@1 out/disk")),
        ..JOB
    },
    Job {
        name: "restore-force",
        before: &[BACKUPS, &["restore old@0 out/disk"]],
        work: Work::Commands(&[run("restore --force web@1 out/disk")]),
        target: Some(replaced("restore --force web@1 out/disk")),
        ..JOB
    },
    Job {
        name: "restore-machine",
        before: &[&[INIT, MACHINE]],
        there: MACHINE_BACKUPS,
        work: Work::Commands(&[run("restore --machine vm out/vm")]),
        target: Some(Target {
            file: "out/vm/b.raw",
            disk: Some(Disk(4, 0)),
            ..restored("restore --machine --force vm out/vm")
        }),
        ..JOB
    },
    Job {
        name: "restore-over",
        work: Work::Commands(&[run("restore --force --over web web@1 out/disk")]),
        target: Some(restored("restore --force --over web web@1 out/disk")),
        ..JOB
    },
    Job {
        name: "restore-in-place",
        before: &[BACKUPS, &["restore old@0 out/disk"]],
        work: Work::Commands(&[run("restore --force --in-place web@1 out/disk")]),
        target: Some(Target { is_atomic: false, ..replaced("restore --force --in-place web@1 out/disk") }),
        ..JOB
    },
    Job {
        name: "restore-to-a-device",
        before: &[BACKUPS, &["restore old@0 out/device", "!room out/device"]],
        work: Work::Commands(&[run("restore --force web@1 {device}")]),
        target: Some(Target {
            file: "out/device",
            disk: Some(Disk(0, 1)),
            is_atomic: false,
            old: Some(Disk(2, 0)),
            again: "restore --force web@1 {device}",
        }),
        ..JOB
    },
    Job {
        name: "restore-to-a-device-in-place",
        before: &[BACKUPS, &["restore old@0 out/device", "!room out/device"]],
        work: Work::Commands(&[run("restore --force --in-place web@1 {device}")]),
        target: Some(Target {
            file: "out/device",
            disk: Some(Disk(0, 1)),
            is_atomic: false,
            old: Some(Disk(2, 0)),
            again: "restore --force --in-place web@1 {device}",
        }),
        ..JOB
    },
    Job {
        name: "export-sqlite",
        work: Work::Commands(&[run("manifest export web@1 out/web.sqlite --segments out/flat")]),
        target: Some(exported(
            "out/web.sqlite",
            "manifest export --force web@1 out/web.sqlite --segments out/flat",
        )),
        ..JOB
    },
    Job {
        name: "export-osdk",
        work: Work::Commands(&[run("manifest export --format osdk web@1 out/web.osdk")]),
        target: Some(exported("out/web.osdk", "manifest export --force --format osdk web@1 out/web.osdk")),
        ..JOB
    },
    Job {
        name: "service",
        work: Work::Service(&[
            &[adds("backup web=disks/0-2", &[("web@2", Disk(0, 2))])],
            &[adds("backup new=disks/3-0 db=disks/1-1", &[("new@0", Disk(3, 0)), ("db@1", Disk(1, 1))])],
            &[removes("delete old@0 web@0", &["old@0", "web@0"]), run("gc --now --keep-unfinished 0s")],
        ]),
        ..JOB
    },
    Job {
        name: "client-backup",
        before: &[PROJECT_BACKUPS],
        there: PROJECT_THERE,
        work: Work::Clients(&[adds("backup web=disks/0-2", &[("blue:web@2", Disk(0, 2))])]),
        ..JOB
    },
    Job {
        name: "client-restore",
        before: &[PROJECT_BACKUPS],
        there: PROJECT_THERE,
        work: Work::Clients(&[run("restore web@1 out/disk")]),
        target: Some(restored("restore --force web@1 out/disk")),
        ..JOB
    },
    Job {
        name: "client-export",
        before: &[PROJECT_BACKUPS],
        there: PROJECT_THERE,
        work: Work::Clients(&[run("manifest export web@1 out/web.sqlite")]),
        target: Some(exported("out/web.sqlite", "manifest export --force web@1 out/web.sqlite")),
        ..JOB
    },
];
