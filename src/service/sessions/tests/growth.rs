//! What sessions leave and take: names, files, memory, and how many there may be.

use crate::api::SourceFlaws;
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::{NewSession, Refusal, View};
use crate::manifest::Incremental;
use crate::progress::Silent;
use crate::repository::{Deletion, GcOptions};
use crate::service::sessions::session::Session;
use crate::service::sessions::tests::{World, caller, entry, frame, new, segment};
use crate::service::sessions::{begin, commit, extend, give_up, receive};
use crate::service::{Caller, Limits, Refused, ServiceSettings};

/// The files and folders that sessions may leave.
fn left(world: &World) -> Vec<PathBuf> {
    let layout = world.app().repository().layout();
    let within = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten();
    let entries = within(layout.sets()).chain(within(layout.sessions()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn empty_backup(world: &World, caller: &Caller, name: &str) -> Result<(), Refused> {
    let state = begin(world.app(), caller, &new(name, 0))?;
    let session = world.app().sessions().find(caller, &state.session)?;
    commit(world.app(), caller, &session, 0, &SourceFlaws::default()).map(drop)
}

fn limited(limits: Limits) -> World {
    World::with(ServiceSettings { limits, ..ServiceSettings::default() })
}

fn names(world: &World, view: &View) -> Vec<String> {
    let (sets, problems) = view.sets(world.app().repository()).unwrap();
    assert!(problems.is_empty());
    sets.iter().map(|set| set.name.to_string()).collect()
}

#[test]
fn a_session_that_is_given_up_leaves_no_name_no_folder_and_no_file() {
    let world = World::new();
    let blue = caller("blue");
    let session = world.begin(&blue, "web", 4);
    assert_eq!(begin(world.app(), &blue, &new("web", 1)).unwrap_err().refusal(), Refusal::Busy);
    give_up(world.app(), &session);
    assert_eq!(left(&world), Vec::<PathBuf>::new());
    // What is refused after it was begun leaves nothing either.
    assert!(begin(world.app(), &blue, &new("huge", u64::MAX)).is_err());
    assert!(begin(world.app(), &blue, &NewSession { format: "x".into(), ..new("f", 1) }).is_err());
    assert_eq!(left(&world), Vec::<PathBuf>::new());
    // What was sent is kept for the next session of the image, and for nobody to see.
    let session = world.begin(&blue, "web", 4);
    receive(world.app(), &session, &[frame(&segment(1))]).unwrap();
    give_up(world.app(), &session);
    drop(session);
    assert_eq!(left(&world).len(), 1);
    assert_eq!(names(&world, &View::everything()), [""; 0]);
    assert_eq!(world.send(&blue, "web", &[segment(1), segment(2)]), 1);
    assert_eq!(left(&world).len(), 1, "its folder");
    // A name that has backups keeps them, and nothing else.
    let session = world.begin(&blue, "web", 4);
    give_up(world.app(), &session);
    let folder = left(&world).pop().unwrap();
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2);
}

#[test]
fn sessions_share_what_their_project_has_and_a_commit_frees_it() {
    let world = World::new();
    let (blue, red) = (caller("blue"), caller("red"));
    let disk: Vec<_> = (0..10).map(segment).collect();
    world.send(&blue, "web", &disk);
    let alive = || world.app().sessions().owned.alive();
    assert_eq!(alive(), 0);
    let sessions: Vec<_> = (0..5).map(|number| world.begin(&blue, &format!("vm{number}"), 1)).collect();
    assert_eq!(alive(), 10, "one set for five sessions");
    let other = world.begin(&red, "web", 1);
    assert_eq!(alive(), 10);
    for session in &sessions {
        commit(world.app(), &blue, session, 0, &SourceFlaws::default()).unwrap();
    }
    // They are remembered, and asked for once more they say the same.
    assert_eq!(alive(), 0);
    assert_eq!(commit(world.app(), &blue, &sessions[0], 0, &SourceFlaws::default()).unwrap().incremental, 0);
    for _ in 0..20 {
        empty_backup(&world, &blue, "empty").unwrap();
        assert_eq!(alive(), 0);
    }
    // One that began before the newest backups changed keeps what it was told of.
    let before = world.begin(&blue, "db", 10);
    world.send(&blue, "web", &[segment(11)]);
    let after = world.begin(&blue, "mail", 1);
    assert_eq!(alive(), 11);
    let named = |session: &Session, number| extend(world.app(), session, 0, &[entry(0, &segment(number))]);
    named(&before, 3).unwrap();
    assert_eq!(named(&after, 3).unwrap_err().refusal(), Refusal::Conflict);
    named(&after, 11).unwrap();
    give_up(world.app(), &before);
    assert_eq!(alive(), 1);
    give_up(world.app(), &after);
    give_up(world.app(), &other);
    assert_eq!(alive(), 0);
}

#[test]
fn a_project_has_two_sets_at_most_however_often_it_commits_and_begins() {
    let world = World::new();
    let blue = caller("blue");
    let alive = || world.app().sessions().owned.alive();
    let named = |session: &Session, number| extend(world.app(), session, 0, &[entry(0, &segment(number))]);
    let begin = |name: &str| world.begin(&blue, name, 1);
    world.send(&blue, "web", &[segment(1)]);
    let first = begin("a");
    world.send(&blue, "web", &[segment(2)]);
    let second = begin("b");
    world.send(&blue, "web", &[segment(3)]);
    let third = begin("c");
    assert_eq!(alive(), 2);
    named(&third, 2).unwrap();
    assert_eq!(named(&second, 3).unwrap_err().refusal(), Refusal::Conflict);
    // As soon as one is free, the next session has what the project has now.
    give_up(world.app(), &first);
    assert_eq!(alive(), 1);
    let fourth = begin("d");
    named(&fourth, 3).unwrap();
    assert_eq!(alive(), 2);
    for session in [&second, &third, &fourth] {
        give_up(world.app(), session);
    }
    assert_eq!(alive(), 0);
}

#[test]
fn all_sets_together_have_a_bound_and_a_session_without_one_sends_everything() {
    let world = World::new();
    let blue = caller("blue");
    world.send(&blue, "web", &[segment(1)]);
    let first = world.begin(&blue, "a", 1);
    world.send(&blue, "web", &[segment(2)]);
    let full = world.app().sessions().owned.fill(0);
    // The set of an earlier session is used as long as there is one.
    let second = world.begin(&blue, "b", 1);
    let named = |session: &Session, number| extend(world.app(), session, 0, &[entry(0, &segment(number))]);
    named(&second, 1).unwrap();
    assert_eq!(named(&first, 2).unwrap_err().refusal(), Refusal::Conflict);
    give_up(world.app(), &first);
    give_up(world.app(), &second);
    drop((first, second));
    let third = world.begin(&blue, "c", 1);
    assert_eq!(named(&third, 2).unwrap_err().refusal(), Refusal::Conflict);
    receive(world.app(), &third, &[frame(&segment(2))]).unwrap();
    named(&third, 2).unwrap();
    drop(full);
    named(&world.begin(&blue, "d", 1), 2).unwrap();
}

#[test]
fn a_caller_begins_and_commits_so_many_and_others_are_not_touched() {
    let world = limited(Limits { sessions_per_minute: 1, ..Limits::default() });
    let (blue, red) = (caller("blue"), caller("red"));
    for _ in 0..10 {
        empty_backup(&world, &blue, "web").unwrap();
    }
    let refused = empty_backup(&world, &blue, "web").unwrap_err();
    assert_eq!(refused.refusal(), Refusal::TooMany);
    empty_backup(&world, &red, "web").unwrap();
    for _ in 0..12 {
        empty_backup(&world, &Caller::owner(), "web").unwrap();
    }
    let world = limited(Limits { commits_per_minute: 1, ..Limits::default() });
    let last = (0..10).map(|_| {
        let session = world.begin(&blue, "web", 0);
        commit(world.app(), &blue, &session, 0, &SourceFlaws::default()).unwrap();
        session
    });
    let last = last.last().unwrap();
    let session = world.begin(&blue, "web", 0);
    assert_eq!(
        commit(world.app(), &blue, &session, 0, &SourceFlaws::default()).unwrap_err().refusal(),
        Refusal::TooMany
    );
    // What was committed is told again, and the session waits for its turn.
    commit(world.app(), &blue, &last, 0, &SourceFlaws::default()).unwrap();
    assert!(!session.is_over());
    empty_backup(&world, &red, "web").unwrap();
}

#[test]
fn an_image_has_so_many_backups_and_a_project_so_many_images() {
    let world = limited(Limits { backups_per_name: 3, names_per_project: 2, ..Limits::default() });
    let (blue, red) = (caller("blue"), caller("red"));
    let refusal = |caller: &Caller, name: &str| empty_backup(&world, caller, name).map_err(|it| it.refusal());
    for _ in 0..3 {
        assert_eq!(refusal(&blue, "web"), Ok(()));
    }
    assert_eq!(refusal(&blue, "web"), Err(Refusal::QuotaExceeded));
    // The first backup of a name that is being made counts as well.
    let growing = world.begin(&blue, "db", 0);
    assert_eq!(refusal(&blue, "mail"), Err(Refusal::QuotaExceeded));
    give_up(world.app(), &growing);
    assert_eq!(refusal(&blue, "mail"), Ok(()));
    assert_eq!(refusal(&blue, "db"), Err(Refusal::QuotaExceeded));
    assert_eq!(refusal(&blue, "mail"), Ok(()));
    for name in ["web", "db"] {
        assert_eq!(refusal(&red, name), Ok(()), "another project's");
    }
    for number in 0..4 {
        assert_eq!(refusal(&Caller::owner(), &format!("blue:{number}")), Ok(()), "a local command's");
        assert_eq!(refusal(&Caller::owner(), "blue:web"), Ok(()));
    }
    // A deletion makes room when it is collected.
    let (sets, _) = blue.view.sets(world.app().repository()).unwrap();
    let web = sets.iter().find(|set| set.name.as_str() == "blue:web").unwrap();
    for number in 0..5 {
        let backup = Deletion { backupset: web.id, incremental: Incremental(number) };
        world.app().writer().with(|writer| writer.delete(backup)).unwrap();
    }
    assert_eq!(refusal(&blue, "web"), Err(Refusal::QuotaExceeded));
    world
        .app()
        .writer()
        .with(|writer| writer.gc(&GcOptions { now: Some(""), ..GcOptions::default() }, &Silent))
        .unwrap();
    assert_eq!(refusal(&blue, "web"), Ok(()));
}

#[test]
fn a_begin_and_a_list_read_no_lists_of_others_and_say_what_the_files_say() {
    let world = World::new();
    let (blue, red) = (caller("blue"), caller("red"));
    for number in 0..20 {
        empty_backup(&world, &red, &format!("vm{number}")).unwrap();
    }
    let repository = world.app().repository();
    let reads = repository.list_reads();
    for number in 0..5 {
        empty_backup(&world, &blue, "web").unwrap();
        assert_eq!(blue.view.sets(repository).unwrap().0[0].backups.len(), number + 1);
    }
    give_up(world.app(), &world.begin(&blue, "db", 1));
    assert_eq!(names(&world, &blue.view), ["blue:web"]);
    assert_eq!(repository.list_reads(), reads);
    for view in [View::everything(), blue.view.clone(), red.view.clone()] {
        let files = view.seen(repository.backupsets().unwrap().0.into_iter().map(Arc::new).collect());
        assert_eq!(view.sets(repository).unwrap().0, files);
    }
    // A reader beside the service reads the files.
    let beside = crate::repository::Repository::open(repository.layout().root()).unwrap();
    assert_eq!(blue.view.sets(&beside).unwrap().0, blue.view.sets(repository).unwrap().0);
    assert_eq!(beside.list_reads(), 1);
}

#[test]
fn what_is_over_is_remembered_in_a_bounded_number() {
    let world = World::new();
    let blue = caller("blue");
    let first = world.begin(&blue, "web", 0);
    commit(world.app(), &blue, &first, 0, &SourceFlaws::default()).unwrap();
    let id = first.state().session;
    assert!(world.app().sessions().find(&blue, &id).is_ok());
    let copy = Arc::clone(&first);
    for number in 0..crate::service::sessions::REMEMBERED {
        world.app().sessions().open().insert(number.to_string(), Arc::clone(&copy));
    }
    let session = world.begin(&blue, "web", 0);
    assert_eq!(world.app().sessions().open().len(), crate::service::sessions::REMEMBERED + 1);
    give_up(world.app(), &session);
}

#[test]
fn tags_and_words_of_a_session_that_break_the_rules_are_refused_before_anything_is_begun() {
    let world = World::new();
    let blue = caller("blue");
    let tags = |tags: Vec<String>| NewSession { tags, ..new("web", 0) };
    let in_use = |text: &str| NewSession { in_use: Some(text.to_owned()), ..new("web", 0) };
    let controls = ('\0'..='\u{ff}').filter(|letter| letter.is_control());
    let controls =
        controls.flat_map(|letter| [tags(vec![format!("a{letter}")]), in_use(&format!("a{letter}"))]);
    let wrong = [
        tags(vec!["x".to_owned(); 17]),
        tags(vec!["x".repeat(65)]),
        tags(vec![String::new()]),
        tags(vec!["a b".to_owned()]),
        in_use(&"x".repeat(1025)),
        in_use(""),
    ];
    for wrong in controls.chain(wrong) {
        assert_eq!(begin(world.app(), &blue, &wrong).unwrap_err().refusal(), Refusal::Invalid, "{wrong:?}");
    }
    assert_eq!(left(&world), Vec::<PathBuf>::new());
    begin(world.app(), &blue, &NewSession { tags: vec!["x".repeat(64); 16], ..in_use("B\u{fc}ro") }).unwrap();
}
