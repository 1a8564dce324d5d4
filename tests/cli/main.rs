//! The command line as a person or a script meets it: every command, every exit code, every JSON document.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

mod backup;
mod bad_sectors;
mod cbt;
mod check;
mod clock;
mod delete;
mod exchange;
mod full_disk;
mod gc;
mod harness;
mod hypervisor;
mod in_place;
mod inconsistent;
mod index;
mod init;
mod known_damage;
mod limits;
mod lost;
mod machine;
mod machine_parts;
mod manifest;
mod policy;
mod reading;
mod refused_targets;
mod restore;
mod screen;
mod signals;
mod status;
mod targets;
mod terminal;
mod usage;
