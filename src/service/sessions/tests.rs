//! Sessions, without HTTP around them.

mod accounts;
mod growth;

use crate::api::SourceFlaws;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::api::frames::{Entry, Question, SegmentHead};
use crate::api::{NewSession, Refusal, SessionState, View};
use crate::codec::{Codec, Compression, CompressionSetting, Encoder};
use crate::progress::Silent;
use crate::repository::{InitOptions, OpenOptions, Repository, RepositoryWriter, SharedWriter};
use crate::restore::{RestoreOptions, restore_to_stream};
use crate::segment::{Fingerprint, SegmentHash, SegmentIndex, SegmentKey, SegmentSize, Twin};
use crate::service::sessions::receive::Received;
use crate::service::sessions::session::Session;
use crate::service::sessions::{begin, commit, extend, give_up, lacking, parent, receive};
use crate::service::{App, Caller, Role, ServiceSettings};

const SIZE: usize = 64 << 10;
const MORE: u32 = (64 << 10) + 1;

struct World {
    folder: tempfile::TempDir,
    app: Option<App>,
}

fn caller(project: &str) -> Caller {
    let view = View::of(project.parse().unwrap());
    Caller { who: format!("token of {project}"), view, role: Role::Backup }
}

fn open(path: &Path) -> App {
    open_with(path, ServiceSettings::default())
}

fn open_with(path: &Path, settings: ServiceSettings) -> App {
    let writer = RepositoryWriter::open(path, &OpenOptions::default(), &Silent).unwrap();
    App::new(SharedWriter::new(writer), settings).unwrap()
}

impl World {
    fn new() -> Self {
        Self::with(ServiceSettings::default())
    }

    fn with(settings: ServiceSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let segment_size = SegmentSize::new(SIZE as u64).unwrap();
        Repository::init(&path, &InitOptions { segment_size, ..InitOptions::default() }).unwrap();
        let app = Some(open_with(&path, settings));
        Self { folder, app }
    }

    fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// Ends as a crash would, and opens the repository again.
    fn crash(&mut self) {
        drop(self.app.take());
        self.app = Some(open(&self.folder.path().join("store")));
    }

    fn begin(&self, caller: &Caller, name: &str, segments: u64) -> Arc<Session> {
        let state = begin(self.app(), caller, &new(name, segments * SIZE as u64)).unwrap();
        self.app().sessions().find(caller, &state.session).unwrap()
    }

    /// Sends a disk as a client does, but for what is not lacking. Returns how many segments were sent.
    fn send(&self, caller: &Caller, name: &str, disk: &[Vec<u8>]) -> usize {
        let session = self.begin(caller, name, disk.len() as u64);
        let questions: Vec<_> = disk.iter().map(|plain| question(plain)).collect();
        let lacks = lacking(self.app(), &session, &questions).unwrap();
        let sent: Vec<_> =
            disk.iter().zip(&lacks).filter(|(_, lacks)| **lacks).map(|(it, _)| frame(it)).collect();
        receive(self.app(), &session, &sent).unwrap();
        let entries: Vec<_> = (0..).zip(disk).map(|(at, plain)| entry(at, plain)).collect();
        extend(self.app(), &session, 0, &entries).unwrap();
        commit(self.app(), caller, &session, 1, &SourceFlaws::default()).unwrap();
        sent.len()
    }

    fn restore(&self, caller: &Caller, backup: &str) -> Vec<u8> {
        let repository = self.app().repository();
        let seen = caller.view.seen(repository.backupsets().unwrap().0);
        let (set, backup) = caller.view.find(repository, &seen, &backup.parse().unwrap()).unwrap();
        let manifest = repository.manifest(set, backup).unwrap();
        let options = RestoreOptions { jobs: 1, sync: false, ..RestoreOptions::default() };
        let mut bytes = Vec::new();
        restore_to_stream(repository, &manifest, &mut bytes, &options, &Silent).unwrap();
        bytes
    }
}

fn new(name: &str, size_of_disk: u64) -> NewSession {
    NewSession {
        name: name.to_owned(),
        size_of_disk,
        tags: Vec::new(),
        format: "raw".to_owned(),
        recognised: false,
        looks_like: None,
        in_use: None,
        source: None,
        host: None,
        client: None,
    }
}

fn segment(number: u32) -> Vec<u8> {
    let mut bytes = vec![7; SIZE];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn question(plain: &[u8]) -> Question {
    let plain_length = u32::try_from(plain.len()).unwrap();
    Question { hash: SegmentHash::of(plain), fingerprint: Fingerprint::of(plain), plain_length }
}

fn entry(at: u32, plain: &[u8]) -> Entry {
    let Question { hash, fingerprint, .. } = question(plain);
    Entry::Segment { index: SegmentIndex(at), hash, fingerprint }
}

fn head(plain: &[u8], codec: Codec, stored: &[u8]) -> SegmentHead {
    let Question { hash, fingerprint, plain_length } = question(plain);
    SegmentHead {
        index: SegmentIndex(0),
        plain_length,
        stored_length: u32::try_from(stored.len()).unwrap(),
        compression: codec.compression.id(),
        encryption: codec.encryption.id(),
        key: SegmentKey { hash, twin: Twin(0) },
        fingerprint,
    }
}

fn frame(plain: &[u8]) -> Received {
    let mut stored = Vec::new();
    let codec = Encoder::new(CompressionSetting::default()).unwrap().encode(plain, &mut stored);
    Received { head: head(plain, codec, &stored), stored }
}

#[test]
fn what_is_sent_comes_back_and_what_a_project_has_is_not_sent_again() {
    let world = World::new();
    let blue = caller("blue");
    let disk: Vec<_> = (0..10).map(segment).collect();
    assert_eq!(world.send(&blue, "web", &disk), 10);
    assert_eq!(world.restore(&blue, "web@0"), disk.concat());
    assert_eq!(world.send(&blue, "copy", &disk), 0, "another image of the project");
    assert_eq!(world.send(&blue, "web", &disk[..5]), 0);
    assert_eq!(world.restore(&blue, "web@1"), disk[..5].concat());
}

#[test]
fn knowing_a_hash_is_not_owning_data() {
    let world = World::new();
    let (blue, red) = (caller("blue"), caller("red"));
    let secret = segment(1);
    world.send(&blue, "web", std::slice::from_ref(&secret));
    let session = world.begin(&red, "web", 1);
    assert_eq!(lacking(world.app(), &session, &[question(&secret)]).unwrap(), [true]);
    let named = extend(world.app(), &session, 0, &[entry(0, &secret)]).unwrap_err();
    assert_eq!(named.refusal(), Refusal::Conflict);
    // Whoever has the bytes may have them stored; that they were there already is not told.
    receive(world.app(), &session, &[frame(&secret)]).unwrap();
    extend(world.app(), &session, 0, &[entry(0, &secret)]).unwrap();
    commit(world.app(), &red, &session, 1, &SourceFlaws::default()).unwrap();
    assert_eq!(world.restore(&red, "web@0"), secret);
    let stored = world.app().repository().statistics(&Silent).unwrap();
    assert_eq!(stored.segments, 1, "it is stored once all the same");
    // Another project's session is none.
    let session = world.begin(&blue, "db", 1);
    let id = session.state().session;
    assert_eq!(world.app().sessions().find(&red, &id).unwrap_err().refusal(), Refusal::NotFound);
}

#[test]
fn segments_that_are_not_what_they_are_said_to_be_are_refused() {
    let world = World::new();
    let blue = caller("blue");
    let session = world.begin(&blue, "web", 4);
    let good = frame(&segment(1));
    let with = |change: &dyn Fn(&mut Received)| {
        let mut changed = Received { head: good.head, stored: good.stored.clone() };
        change(&mut changed);
        changed
    };
    let zeros = vec![0; SIZE];
    let bomb = zstd::bulk::compress(&vec![1; 64 << 20], 1).unwrap();
    let short = segment(1)[..SIZE - 1].to_vec();
    let none = Codec::default();
    let zstd = Codec { compression: Compression::Zstd, ..none };
    let cases = [
        ("another BLAKE3", with(&|it| it.head.fingerprint = Fingerprint::of(b"x"))),
        ("another SHA-1", with(&|it| it.head.key.hash = SegmentHash::of(b"x"))),
        ("changed bytes", with(&|it| *it.stored.last_mut().unwrap() ^= 1)),
        ("cut bytes", with(&|it| it.stored.truncate(it.stored.len() - 1))),
        ("another length", with(&|it| it.head.plain_length -= 1)),
        ("no length", with(&|it| it.head.plain_length = 0)),
        ("more than a segment", with(&|it| it.head.plain_length = MORE)),
        ("more stored than plain", with(&|it| it.head.stored_length = MORE)),
        ("an unknown compression", with(&|it| it.head.compression = 9)),
        ("an unknown encryption", with(&|it| it.head.encryption = 1)),
        ("zeros", Received { head: head(&zeros, none, &zeros), stored: zeros.clone() }),
        ("a bomb", Received { head: head(&short, zstd, &bomb), stored: bomb }),
    ];
    for (what, received) in cases {
        let refused = receive(world.app(), &session, &[received]).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::Unprocessable, "{what}");
    }
    // The session goes on, and so does the store.
    receive(world.app(), &session, &[good]).unwrap();
    extend(world.app(), &session, 0, &[entry(2, &segment(1))]).unwrap();
    commit(world.app(), &blue, &session, 1, &SourceFlaws::default()).unwrap();
    let expected = [vec![0; 2 * SIZE], segment(1), vec![0; SIZE]].concat();
    assert_eq!(world.restore(&blue, "web@0"), expected);
}

#[test]
fn every_request_can_be_repeated_and_none_is_taken_out_of_order() {
    let world = World::new();
    let blue = caller("blue");
    let session = world.begin(&blue, "web", 4);
    let sent = [frame(&segment(1)), frame(&segment(2))];
    for _ in 0..2 {
        receive(world.app(), &session, &sent).unwrap();
    }
    let refusal =
        |part, entries: &[Entry]| extend(world.app(), &session, part, entries).unwrap_err().refusal();
    assert_eq!(refusal(1, &[entry(0, &segment(1))]), Refusal::Conflict, "a part is missing");
    assert_eq!(refusal(0, &[entry(4, &segment(1))]), Refusal::Invalid, "it lies outside");
    assert_eq!(refusal(0, &[entry(1, &segment(1)), entry(0, &segment(2))]), Refusal::Invalid, "order");
    let kept = Entry::Kept { first: SegmentIndex(0), count: 1 };
    assert_eq!(refusal(0, &[kept]), Refusal::Invalid, "there is no backup before");
    for _ in 0..2 {
        extend(world.app(), &session, 0, &[entry(0, &segment(1))]).unwrap();
        assert_eq!(session.state().entries, 1);
    }
    extend(world.app(), &session, 1, &[entry(3, &segment(2))]).unwrap();
    assert_eq!(
        commit(world.app(), &blue, &session, 1, &SourceFlaws::default()).unwrap_err().refusal(),
        Refusal::Conflict
    );
    let first = commit(world.app(), &blue, &session, 2, &SourceFlaws::default()).unwrap();
    assert_eq!(commit(world.app(), &blue, &session, 2, &SourceFlaws::default()).unwrap(), first);
    assert_eq!(world.restore(&blue, "web@0"), [segment(1), vec![0; 2 * SIZE], segment(2)].concat());

    // The next day: what the parent has is told, kept, and not sent.
    let session = world.begin(&blue, "web", 5);
    assert!(session.state().has_parent);
    let frames = parent(world.app(), &session, (0, 100)).unwrap();
    let before = crate::api::frames::ParentSegment::decode_all(&frames).unwrap();
    let told: Vec<_> = before.iter().map(|it| (it.index.0, it.fingerprint)).collect();
    assert_eq!(told, [(0, Fingerprint::of(&segment(1))), (3, Fingerprint::of(&segment(2)))]);
    let kept = |first, count| Entry::Kept { first: SegmentIndex(first), count };
    assert_eq!(extend(world.app(), &session, 0, &[kept(0, 5)]).unwrap_err().refusal(), Refusal::Invalid);
    extend(world.app(), &session, 0, &[kept(0, 4)]).unwrap();
    commit(world.app(), &blue, &session, 1, &SourceFlaws::default()).unwrap();
    assert_eq!(
        world.restore(&blue, "web@1"),
        [segment(1), vec![0; 2 * SIZE], segment(2), vec![0; SIZE]].concat()
    );
}

#[test]
fn after_a_crash_what_was_sent_is_gone_on_from_by_the_same_image_alone() {
    let mut world = World::new();
    let blue = caller("blue");
    let disk: Vec<_> = (0..8).map(segment).collect();
    let session = world.begin(&blue, "web", 8);
    let sent: Vec<_> = disk[..6].iter().map(|plain| frame(plain)).collect();
    receive(world.app(), &session, &sent).unwrap();
    extend(world.app(), &session, 0, &[entry(0, &disk[0])]).unwrap();
    // What reached the packs is there after the crash.
    world.app().writer().with(|writer| Ok(writer.store().flush()?)).unwrap();
    drop(session);
    world.crash();
    let questions: Vec<_> = disk.iter().map(|plain| question(plain)).collect();
    let other = world.begin(&blue, "db", 8);
    assert_eq!(lacking(world.app(), &other, &questions).unwrap(), [true; 8]);
    let again = world.begin(&blue, "web", 8);
    let lacks = lacking(world.app(), &again, &questions).unwrap();
    assert_eq!(lacks, [[false; 6].as_slice(), &[true; 2]].concat());
    give_up(world.app(), &again);
    give_up(world.app(), &other);
    assert_eq!(world.app().sessions().count(), 0);
    assert_eq!(world.send(&blue, "web", &disk), 2);
    assert_eq!(world.restore(&blue, "web@0"), disk.concat());
}

#[test]
fn one_backup_of_an_image_is_sent_at_a_time_and_their_number_has_a_bound() {
    let world = World::new();
    let blue = caller("blue");
    let first = world.begin(&blue, "web", 1);
    assert_eq!(begin(world.app(), &blue, &new("web", 1)).unwrap_err().refusal(), Refusal::Busy);
    give_up(world.app(), &first);
    assert_eq!(lacking(world.app(), &first, &[question(b"x")]).unwrap_err().refusal(), Refusal::Gone);
    let most = world.app().settings().limits.sessions_each;
    for number in 0..most {
        begin(world.app(), &blue, &new(&format!("vm{number}"), 1)).unwrap();
    }
    assert_eq!(begin(world.app(), &blue, &new("one-more", 1)).unwrap_err().refusal(), Refusal::TooMany);
    for (name, size) in [("../x", 1), ("a@1", 1), ("", 1), ("huge", u64::MAX)] {
        assert!(begin(world.app(), &caller("red"), &new(name, size)).is_err(), "{name}");
    }
}

#[test]
fn a_session_yields_to_its_own_client_and_to_others_when_it_has_missed_its_signs_of_life() {
    let mut settings = ServiceSettings::default();
    // A sign of life each 0.4 s: it yields after 1.2 s.
    settings.limits.silence_seconds = 2;
    let world = World::with(settings);
    let blue = caller("blue");
    let neighbour = Caller { who: "another token of blue".to_owned(), ..caller("blue") };
    let begin = |caller: &Caller, word: Option<&str>| {
        begin(world.app(), caller, &NewSession { client: word.map(str::to_owned), ..new("web", 1) })
    };
    let first = begin(&blue, Some("a")).unwrap();
    for (caller, word) in [(&blue, Some("b")), (&blue, None), (&neighbour, Some("a"))] {
        let refused = begin(caller, word).unwrap_err();
        assert_eq!(refused.refusal(), Refusal::Busy);
        assert!(refused.detail().contains("another client (token of blue)"), "{}", refused.detail());
    }
    let second = begin(&blue, Some("a")).unwrap();
    let find = |session: &SessionState| world.app().sessions().find(&blue, &session.session);
    assert_eq!(find(&first).unwrap_err().refusal(), Refusal::NotFound);
    // Every request is a sign of life.
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(500));
        find(&second).unwrap();
        assert_eq!(begin(&blue, Some("b")).unwrap_err().refusal(), Refusal::Busy);
    }
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(begin(&neighbour, None).unwrap_err().refusal(), Refusal::Busy, "only when it is gone");
    begin(&blue, None).unwrap();
    assert_eq!(find(&second).unwrap_err().refusal(), Refusal::NotFound);
    for word in ["", "a b", "\n", "\u{e4}", &"x".repeat(65)] {
        assert_eq!(begin(&blue, Some(word)).unwrap_err().refusal(), Refusal::Invalid, "{word:?}");
    }
}
