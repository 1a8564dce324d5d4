//! Reading from a server of ours. QEMU's own servers are in `tests/qemu.py`.

mod server;

use std::fs;
use std::sync::atomic::Ordering;

use super::*;
use crate::error::ErrorKind;
use crate::image::nbd::tests::server::{BAD_SECTOR, K, Manner, Server, certificates, disk};

/// Reads the whole disk where data is said to lie, by four threads.
fn read(image: &NbdImage) -> Result<Vec<u8>, ImageError> {
    let mut extents = Vec::new();
    let mut at = 0;
    while let Some(extent) = image.next_data(at)? {
        assert!(extent.offset >= at && extent.length > 0);
        at = extent.offset + extent.length;
        extents.push(extent);
    }
    let disk = Mutex::new(vec![0; usize::try_from(image.size()).unwrap()]);
    std::thread::scope(|scope| {
        let (extents, disk) = (&extents, &disk);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    for Extent { offset, length } in extents.iter().skip(thread).step_by(4) {
                        let mut bytes = vec![9; usize::try_from(*length).unwrap()];
                        image.read_at(&mut bytes, *offset)?;
                        let from = usize::try_from(*offset).unwrap();
                        disk.lock().unwrap()[from..from + bytes.len()].copy_from_slice(&bytes);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })?;
    Ok(disk.into_inner().unwrap())
}

#[test]
fn a_disk_is_what_the_server_says_and_holes_are_not_asked_for() {
    let server = Server::start(Manner::Good);
    let image = server.open().unwrap();
    assert!(read(&image).unwrap() == disk());
    let extent = |offset: u64, length: u64| Some(Extent { offset: offset * K, length: length * K });
    assert_eq!(image.next_data(0).unwrap(), extent(0, 2));
    assert_eq!(image.next_data(2 * K).unwrap(), extent(3, 2));
    assert_eq!(image.next_data(39 * K).unwrap(), extent(39, 1));
    assert_eq!(image.next_data(40 * K).unwrap(), None);
    let mut bytes = [0; 2];
    image.read_at(&mut bytes, K - 1).unwrap();
    assert_eq!(bytes, [1, 2]);
    assert!(matches!(image.read_at(&mut bytes, 40 * K - 1), Err(ImageError::ShortRead { missing: 1, .. })));
    let changes = image.changes("b0").unwrap();
    assert_eq!(changes.ranges(), [(0..K, RangeState::Data), (39 * K..40 * K, RangeState::Data)]);
    assert_eq!((changes.kind(), changes.granularity()), (ListKind::NbdDirty, K));
    assert_eq!(image.overlaid().unwrap(), [0..K, 20 * K..21 * K]);
    assert_eq!(server.links.load(Ordering::SeqCst), 1);
}

#[test]
fn a_server_that_knows_the_oldest_way_to_choose_an_export_alone_is_read() {
    for manner in [Manner::ExportName, Manner::NotFixed] {
        let server = Server::start(manner);
        let image = NbdImage::open(&server.path(), None, None).unwrap();
        assert!(read(&image).unwrap() == disk(), "{manner:?}");
        // Such a server only closes the link if it has not the export.
        let other = server.path().display().to_string().replace("vda", "other");
        let error = NbdImage::open(Path::new(&other), None, None).unwrap_err();
        assert!(error.to_string().ends_with("the server has no export \"other\""), "{manner:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[test]
fn a_server_that_says_nothing_is_said_to_have_been_silent_and_for_how_long() {
    let error = Server::start(Manner::Silent).open().unwrap_err();
    let said = "the server did not answer within 2 s; if it takes no further client, start it for more: qemu-nbd -e 4";
    assert!(error.to_string().ends_with(said), "{error}");
}

/// Each of the two links is silent for as long as one may be: a third is not made.
#[test]
fn a_server_that_answers_no_read_ends_the_reading_within_the_total_limit() {
    let server = Server::start(Manner::NoReads);
    let image = server.open().unwrap();
    let error = image.read_at(&mut [0; 512], 0).unwrap_err();
    assert!(error.to_string().ends_with("the server did not answer within 2 s"), "{error}");
    assert_eq!(server.links.load(Ordering::SeqCst), 2);
    assert!(SILENCE + ANOTHER_TRY <= TOTAL);
}

#[test]
fn a_server_that_drops_the_link_at_a_bad_sector_is_asked_again_in_one_piece() {
    let server = Server::start(Manner::BadSector);
    let image = server.open().unwrap();
    let error = image.read_at(&mut [0; 4096], 4 * K).unwrap_err();
    assert!(error.to_string().contains("input/output error on the server"), "{error}");
    assert!(error.is_unreadable_place());
    assert_eq!(server.links.load(Ordering::SeqCst), 2);
    // From now on the link is not dropped for it.
    let found = crate::image::UnreadableRanges::default();
    let mut bytes = vec![9; disk().len()];
    found.read_around(&image, &mut bytes, 0).unwrap();
    assert_eq!(found.ranges(), std::slice::from_ref(&(BAD_SECTOR..BAD_SECTOR + 512)));
    let at = usize::try_from(BAD_SECTOR).unwrap();
    bytes[at..at + 512].copy_from_slice(&disk()[at..at + 512]);
    assert!(bytes == disk());
    assert_eq!(server.links.load(Ordering::SeqCst), 2);
}

#[test]
fn a_write_that_fails_says_where_and_why() {
    let server = Server::start(Manner::Full);
    let target = NbdTarget::open(&server.path(), None).unwrap();
    // Requests are as long as the server takes them: the second one fails.
    let error = target.write_at(&vec![1; 200_000], 1 << 20).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("cannot write to nbd+unix:///vda?socket="), "{text}");
    assert!(text.ends_with(" at 1.0 MiB (byte 1148576): no space left on the server (ENOSPC)"), "{text}");
}

#[test]
fn a_socket_whose_path_is_longer_than_the_kernel_takes_is_reached() {
    let server = Server::start(Manner::Good);
    let folder = server.folder.path().join("d".repeat(120));
    fs::create_dir(&folder).unwrap();
    fs::rename(server.folder.path().join("socket"), folder.join("socket")).unwrap();
    let path = PathBuf::from(format!("nbd+unix:///vda?socket={}", folder.join("socket").display()));
    assert_eq!(NbdImage::open(&path, None, None).unwrap().size(), disk().len() as u64);
}

#[test]
fn a_server_that_knows_little_is_read_whole() {
    let server = Server::start(Manner::Simple);
    let error = server.open().unwrap().changes("b0").unwrap_err();
    assert!(error.to_string().contains("the server has no dirty bitmap \"b0\""), "{error}");
    let image = NbdImage::open(&server.path(), None, None).unwrap();
    assert_eq!(image.next_data(5).unwrap(), Some(Extent { offset: 5, length: 40 * K - 5 }));
    let mut whole = vec![0; 40 * 65_536];
    image.read_at(&mut whole, 0).unwrap();
    assert!(whole == disk());
}

#[test]
fn replies_may_come_in_any_order_and_in_parts() {
    let server = Server::start(Manner::Mixed);
    let image = server.open().unwrap();
    // Two are asked at once, or the server would wait for the second.
    std::thread::scope(|scope| {
        for offset in [0, 3 * K] {
            let image = &image;
            scope.spawn(move || {
                let mut bytes = vec![9; 65_536];
                image.read_at(&mut bytes, offset).unwrap();
                assert!(bytes.iter().all(|byte| u64::from(*byte) == offset / K + 1));
            });
        }
    });
}

#[test]
fn a_link_that_is_dropped_anywhere_is_made_anew_and_nothing_is_missing() {
    for bytes in [0, 1, 3, 4, 19, 20, 27, 28, 100, 30_000, 65_536, 70_001, 200_000] {
        let server = Server::start(Manner::Drops(bytes));
        let image = server.open().unwrap();
        assert!(read(&image).unwrap() == disk(), "{bytes}");
        assert!(server.links.load(Ordering::SeqCst) > 1, "{bytes}");
    }
}

#[test]
fn a_server_that_always_drops_the_link_or_exports_another_disk_then_is_an_error() {
    let server = Server::start(Manner::AlwaysDrops);
    let error = read(&server.open().unwrap()).unwrap_err();
    assert!(error.to_string().contains("dropped"), "{error}");
    assert!(server.links.load(Ordering::SeqCst) > 10);
    let server = Server::start(Manner::Grows);
    let error = read(&server.open().unwrap()).unwrap_err();
    assert!(error.to_string().contains("after the link was dropped, and had"), "{error}");
}

#[test]
fn a_server_that_is_gone_is_waited_for_once_and_not_by_each_thread() {
    let server = Server::start(Manner::AlwaysDrops);
    let image = server.open().unwrap();
    fs::remove_file(server.folder.path().join("socket")).unwrap();
    let read = || {
        let mut bytes = vec![0; 4096];
        image.read_at(&mut bytes, 0).unwrap_err().to_string()
    };
    let errors: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let told = errors.iter().filter(|error| error.contains("the server is gone")).count();
    assert_eq!(told, 7, "{errors:?}");
}

#[test]
fn an_encrypted_link_is_read_like_any_other_and_believed_from_nobody_else() {
    let server = Server::start(Manner::Encrypted);
    let path = |query: &str| {
        PathBuf::from(format!(
            "nbds+unix{}{query}",
            server.path().display().to_string().trim_start_matches("nbd+unix")
        ))
    };
    let image = NbdImage::open(&path(""), Some("b0"), Some(&certificates())).unwrap();
    assert!(read(&image).unwrap() == disk());
    assert_eq!(server.links.load(Ordering::SeqCst), 3);
    let refused =
        |path: &Path, folder: Option<&Path>| NbdImage::open(path, None, folder).unwrap_err().to_string();
    assert!(refused(&path(""), None).contains("--tls-certificates"));
    assert!(refused(&path("&tls-hostname=other"), Some(&certificates())).contains("certificate"));
    // Another authority, no authority, no certificate of our own.
    let folder = tempfile::tempdir().unwrap();
    let problem = refused(&path(""), Some(folder.path()));
    assert!(problem.contains("ca-cert.pem"), "{problem}");
    fs::copy(certificates().join("client-cert.pem"), folder.path().join("ca-cert.pem")).unwrap();
    refused(&path(""), Some(folder.path()));
    fs::copy(certificates().join("ca-cert.pem"), folder.path().join("ca-cert.pem")).unwrap();
    refused(&path(""), Some(folder.path()));
    // A server that wants encryption is not read without.
    NbdImage::open(&server.path(), None, None).unwrap_err();
}

#[test]
fn whatever_does_not_keep_to_the_protocol_is_an_error() {
    use Manner::*;
    for (manner, what) in [
        (WrongCookie, "nothing that was asked"),
        (WrongMagic, "is no reply"),
        (SendsTwice, "parts of it twice"),
        (SendsLess, "has not sent what was asked for"),
        (SendsMore, "more than was asked for"),
        (SendsElsewhere, "was"),
        (Fails, "at byte 0: input/output error on the server (EIO): bad"),
        (SaysNothing, "dropped"),
        (EmptyRange, "a range is empty"),
        (NoRanges, "range"),
    ] {
        let server = Server::start(manner);
        let error = server.open().and_then(|image| read(&image)).unwrap_err();
        assert!(error.to_string().contains(what), "{manner:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::Io);
    }
    let error = Server::start(NoExport).open().unwrap_err();
    assert!(error.to_string().ends_with("the server has no export \"vda\""), "{error}");
    let error = Server::start(Old).open().unwrap_err();
    assert!(error.to_string().contains("speaks only the oldstyle protocol"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = NbdImage::open(Path::new("nbd+unix:///?socket=/nowhere/socket"), None, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}
