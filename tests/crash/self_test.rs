//! The sweep can fail: what it must find is put before it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bench::{Bench, Case};
use crate::calls::Area;
use crate::jobs::JOBS;
use crate::replay::{Keep, Recording};
use crate::tracer::{Ended, Plan, Tracer};

/// Runs a script of the shell in a new folder under a plan.
fn script(folder: &Path, plan: Plan, text: &str) -> Result<(Ended, Tracer), String> {
    fs::create_dir_all(folder).unwrap();
    let area = Area {
        root: folder.to_owned(),
        below: folder.to_owned(),
        devices: std::collections::HashMap::new(),
        sends: false,
    };
    let mut tracer = Tracer::new(area, plan);
    let mut command = Command::new("sh");
    command.args(["-ec", text]).current_dir(folder);
    let ended = tracer.run(&command, &folder.with_extension("output"), |_| ())?;
    Ok((ended, tracer))
}

/// Returns what each power loss at the end of a script leaves in the file `a`.
fn left_of(folder: &Path, text: &str, keeps: &[Keep]) -> Result<Vec<Option<Vec<u8>>>, String> {
    fs::create_dir_all(folder).unwrap();
    let mut recording = Recording::of(folder).unwrap();
    let (ended, tracer) = script(folder, Plan::Record, text)?;
    if ended != Ended::Code(0) {
        return Err(format!("the script fails: {text}"));
    }
    recording.add(&tracer.changes)?;
    let end = tracer.changes.len() as u64;
    let left = |keep| {
        let copy = folder.with_extension("left");
        let _ = fs::remove_dir_all(&copy);
        recording.layout(end, keep).write(&copy).unwrap();
        fs::read(copy.join("a")).ok()
    };
    expect("a full replay", &left(Keep::Everything), &fs::read(folder.join("a")).ok())?;
    Ok(keeps.iter().map(|keep| left(*keep)).collect())
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, wanted: &T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: {found:?}, not {wanted:?}")) }
}

/// The replay keeps what was synced and nothing else.
fn replay_loses_what_is_not_synced(scratch: &Path) -> Result<(), String> {
    let whole = Some(b"new\n".to_vec());
    let safe = "echo new > t; sync t; mv t a; sync .";
    let cases = [
        (safe, Keep::Nothing, whole.clone()),
        ("echo new > t; mv t a; sync .", Keep::Nothing, Some(Vec::new())),
        ("echo new > t; mv t a; sync .", Keep::Bytes, whole.clone()),
        ("echo new > t; sync t; mv t a", Keep::Nothing, None),
        ("echo new > t; sync t; mv t a", Keep::Names, whole.clone()),
        ("mkdir d; echo new > d/t; sync d/t; sync d; mv d/t a; sync .", Keep::Nothing, whole.clone()),
        (
            "echo new > t; sync t; ln t a; rm t; sync .; echo more > a; sync -f .",
            Keep::Nothing,
            Some(b"more\n".to_vec()),
        ),
    ];
    for (number, (text, keep, wanted)) in cases.into_iter().enumerate() {
        let left = left_of(&scratch.join(format!("replay-{number}")), text, &[keep])?;
        expect(text, &left, &vec![wanted])?;
    }
    // A random subset of sectors is the same for one seed, and can be nothing, all, or a part.
    let keeps: Vec<_> = (0..80).map(|seed| Keep::Random(seed % 40)).collect();
    let left = left_of(&scratch.join("random"), "printf '%2000s' x > a; sync .", &keeps)?;
    expect("the same seeds", &&left[..40], &&left[40..])?;
    let ends_well = |bytes: &[u8]| bytes.last() == Some(&b'x');
    let begins_well = |bytes: &[u8]| bytes.first() == Some(&b' ');
    for wanted in [(false, false), (true, true), (true, false), (false, true)] {
        let is_there = |left: &Option<Vec<u8>>| {
            left.as_deref().is_some_and(|bytes| (begins_well(bytes), ends_well(bytes)) == wanted)
        };
        if !left.iter().any(is_there) {
            return Err(format!("no seed leaves beginning and end as {wanted:?}"));
        }
    }
    Ok(())
}

/// The tracer counts the calls of all children in one order, and strikes where it is told to.
fn tracer_strikes_where_it_is_told(scratch: &Path) -> Result<(), String> {
    let text = "mkdir a; (mkdir b); mkdir c";
    let (ended, tracer) = script(&scratch.join("count"), Plan::Record, text)?;
    expect("an undisturbed script", &(ended, tracer.changes.len()), &(Ended::Code(0), 3))?;
    for (plan, wanted, left) in [
        (Plan::Kill(1), Ended::Killed, ["a"].as_slice()),
        (Plan::Fail(1, libc::EIO), Ended::Code(1), &["a"]),
        (Plan::Full(2), Ended::Code(1), &["a", "b"]),
        (Plan::Kill(3), Ended::Code(0), &["a", "b", "c"]),
    ] {
        let folder = scratch.join(format!("{plan:?}"));
        let (ended, _) = script(&folder, plan, text)?;
        let there: Vec<_> = ["a", "b", "c"].into_iter().filter(|name| folder.join(name).exists()).collect();
        expect(&format!("{plan:?}"), &(ended, there.as_slice()), &(wanted, left))?;
    }
    Ok(())
}

/// A backup that does not sync one kind of its files is found out.
fn a_missing_sync_is_found(scratch: &Path) -> Result<(), String> {
    let job = JOBS.iter().find(|job| job.name == "backup").ok_or("no job is named backup")?;
    let mut bench = Bench::new(job, &scratch.join("backup"))?;
    let end = bench.calls();
    bench.try_case(Case::Power(end, Keep::Nothing)).map_err(|error| format!("with all syncs: {error}"))?;
    for file in [".pack", "/manifests/", "set.toml"] {
        let mut bench = Bench::new(job, &scratch.join(file.trim_matches(['/', '.'])))?;
        let end = bench.calls();
        let mut count = 0;
        bench.replace_recording(|recording| count = recording.forget_syncs(file));
        let verdict = bench.try_case(Case::Power(end, Keep::Nothing));
        if count == 0 || verdict.is_ok() {
            return Err(format!("{count} syncs of {file} are gone, and nobody has noticed"));
        }
    }
    Ok(())
}

/// Runs all of it.
pub fn run(scratch: &Path) -> Result<(), String> {
    tracer_strikes_where_it_is_told(scratch)?;
    replay_loses_what_is_not_synced(scratch)?;
    a_missing_sync_is_found(scratch)
}
