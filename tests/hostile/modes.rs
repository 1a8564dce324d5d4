//! What Ekko makes is for its owner alone, whatever the umask.

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::inotify;

use crate::harness::{LONGEST, World};

/// Lists what others may read or write, below a folder.
fn open_to_others(folder: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let is_open = metadata.mode() & 0o077 != 0 && !metadata.is_symlink();
        if is_open {
            found.push(format!("{:o} {}", metadata.mode() & 0o7777, path.display()));
        }
        // Nobody else reaches what is in a folder that is not open.
        if is_open && metadata.is_dir() {
            open_to_others(&path, found);
        }
    }
}

/// Runs a command with a umask of 0, and looks at what appears in two folders meanwhile.
fn run(world: &World, arguments: &[&str]) {
    let (temporary, out) = (world.at("tmp"), world.at("out"));
    let ended = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut found = Vec::new();
            while !ended.load(Ordering::Acquire) {
                open_to_others(&temporary, &mut found);
                open_to_others(&out, &mut found);
            }
            found
        });
        let output = Command::new("sh")
            .args(["-c", "umask 0; exec \"$0\" -r store \"$@\"", env!("CARGO_BIN_EXE_ekko")])
            .args(arguments)
            .current_dir(world.at(""))
            .env("TMPDIR", &temporary)
            .env_remove("EKKO_REPOSITORY")
            .output();
        ended.store(true, Ordering::Release);
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        looking.join().unwrap()
    });
    assert_eq!(found, Vec::<String>::new(), "{arguments:?}");
}

fn modes(paths: &[PathBuf]) -> Vec<(PathBuf, u32)> {
    paths.iter().map(|path| (path.clone(), fs::metadata(path).unwrap().mode() & 0o7777)).collect()
}

#[test]
fn exports_restores_and_attached_files_are_the_owners_from_the_first_moment_on() {
    let world = World::new();
    for folder in ["tmp", "out"] {
        fs::create_dir(world.at(folder)).unwrap();
    }
    fs::write(world.at("domain.xml"), "<password/>").unwrap();
    run(&world, &["backup", "--machine", "m", "--attach", "domain.xml", "m/vda=disk.raw"]);
    run(&world, &["restore", "web@1", "out/disk.raw"]);
    run(&world, &["restore", "--machine", "m@latest", "out/machine"]);
    for (format, name) in [("sqlite", "out/sqlite"), ("osdk", "out/osdk")] {
        run(&world, &["manifest", "export", "--format", format, "web@1", name]);
    }
    run(&world, &["manifest", "export", "--segments", "out/flat", "web@1", "out/with-segments"]);
    run(&world, &["manifest", "import", "--name", "copy", "out/sqlite", "--output", "out/ekko"]);
    let mut found = Vec::new();
    open_to_others(&world.at("out"), &mut found);
    assert_eq!(found, Vec::<String>::new());
    let made = ["out/disk.raw", "out/machine/domain.xml", "out/sqlite", "out/osdk", "out/ekko"];
    let made: Vec<_> = made.iter().map(|name| world.at(name)).collect();
    assert!(modes(&made).iter().all(|(_, mode)| *mode == 0o600), "{:?}", modes(&made));
}

#[test]
fn the_socket_is_the_owners_from_the_moment_it_appears() {
    let world = World::new();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, world.at("store"), inotify::WatchFlags::ATTRIB).unwrap();
    let mut service = Command::new("sh")
        .args(["-c", "umask 0; exec \"$0\" -r store serve --listen 127.0.0.1:0", env!("CARGO_BIN_EXE_ekko")])
        .current_dir(world.at(""))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (socket, begun) = (world.store("ekko.sock"), Instant::now());
    while UnixStream::connect(&socket).is_err() {
        assert!(begun.elapsed() < LONGEST, "the service does not listen");
    }
    let mode = fs::symlink_metadata(&socket).unwrap().mode() & 0o7777;
    service.kill().unwrap();
    service.wait().unwrap();
    assert_eq!(mode, 0o600, "{mode:o}");
    // It had that mode when it appeared: nobody has changed it.
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    while let Ok(event) = events.next() {
        assert_ne!(event.file_name(), Some(c"ekko.sock"), "its mode was changed");
    }
}

#[test]
fn a_target_that_was_there_keeps_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let target = world.at("target.raw");
    fs::write(&target, "").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(world.run(&["restore", "--force", "web@1", "target.raw"]).code, Some(0));
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn every_file_of_a_repository_is_the_owners_alone_with_any_umask() {
    for umask in ["0", "022"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("disk.raw"), vec![7; 3 << 20]).unwrap();
        let commands: [&[&str]; 6] = [
            &["init"],
            &["backup", "web=disk.raw"],
            &["check", "--read-data"],
            &["rebuild"],
            &["delete", "--yes", "web@0"],
            &["gc", "--now"],
        ];
        for arguments in commands {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("umask {umask}; exec \"$0\" -r store \"$@\"")]);
            command.arg(env!("CARGO_BIN_EXE_ekko")).args(arguments).current_dir(folder.path());
            let output = command.env_remove("EKKO_REPOSITORY").output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{arguments:?}: {said}");
            let mut open = Vec::new();
            all_open_to_others(&folder.path().join("store"), &mut open);
            assert_eq!(open, Vec::<PathBuf>::new(), "{umask} {arguments:?}");
        }
    }
}

/// Lists what has a mode for others, in folders that are not open to them, too.
fn all_open_to_others(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.mode() & 0o077 != 0 {
            found.push(path.clone());
        }
        if metadata.is_dir() {
            all_open_to_others(&path, found);
        }
    }
}
