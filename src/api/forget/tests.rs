use super::*;
use crate::repository::retention::Keep;
use crate::repository::{BackupNumber, Protection};

#[test]
fn the_newest_backup_is_kept_whatever_its_date_is() {
    let name = ImageName::new("web").unwrap();
    let time = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    let mut set = Backupset::new(BackupsetId::random(), name.clone(), time("2026-02-01T00:00:00Z"));
    // The battery of the clock was empty on the fourth day.
    let days = ["2026-02-01", "2026-02-02", "2026-02-03", "1970-01-01"];
    for (number, day) in (0..).zip(days) {
        set.backups.push(BackupRecord {
            number: BackupNumber(number),
            incremental: Incremental(number),
            manifest: crate::segment::Fingerprint::of(b"manifest"),
            timestamp: time(&format!("{day}T00:05:00Z")),
            size_of_disk: 1,
            segments: 1,
            amounts: crate::repository::BackupAmounts::default(),
            is_machine: false,
            disks: Vec::new(),
            tags: Vec::new(),
            protection: Protection::None,
            note: None,
            suspect: None,
            flaws: crate::manifest::FlawMarks::default(),
        });
    }
    let policy = RetentionPolicy { last: Keep::Number(2), ..RetentionPolicy::default() };
    let sets = [Arc::new(set)];
    for allow_empty in [false, true] {
        let plan =
            Division { view: &View::everything(), seen: &sets, policy: &policy, name: None, allow_empty }
                .plan(&BTreeSet::new());
        let kept: Vec<_> = plan.kept.iter().map(|it| (it.row.incremental, it.reasons.join(","))).collect();
        assert_eq!(kept, [(1, "last".to_owned()), (2, "last".to_owned()), (3, NEWEST.to_owned())]);
        let goes: Vec<_> = plan.goes.rows.iter().map(|row| row.incremental).collect();
        assert_eq!((goes, plan.refused), (vec![0], Vec::<String>::new()));
    }
}

/// A backupset with a backup a day.
fn days(name: &str, days: u32) -> Backupset {
    let time = |day: u32| format!("2026-02-{:02}T00:05:00Z", day + 1).parse::<jiff::Timestamp>().unwrap();
    let mut set = Backupset::new(BackupsetId::random(), ImageName::new(name).unwrap(), time(0));
    set.backups.extend((0..days).map(|number| BackupRecord {
        number: BackupNumber(number),
        incremental: Incremental(number),
        manifest: crate::segment::Fingerprint::of(b"manifest"),
        timestamp: time(number),
        size_of_disk: 1,
        segments: 1,
        amounts: crate::repository::BackupAmounts::default(),
        is_machine: false,
        disks: Vec::new(),
        tags: Vec::new(),
        protection: Protection::None,
        note: None,
        suspect: None,
        flaws: crate::manifest::FlawMarks::default(),
    }));
    set
}

/// Returns what goes, and what is kept with its flaw.
fn last(sets: Vec<Backupset>, damaged: &[Key], last: u32) -> (Vec<String>, Vec<String>) {
    let policy = RetentionPolicy { last: Keep::Number(last), ..RetentionPolicy::default() };
    let sets: Vec<_> = sets.into_iter().map(Arc::new).collect();
    let (view, damaged) = (View::everything(), damaged.iter().copied().collect());
    let division = Division { view: &view, seen: &sets, policy: &policy, name: None, allow_empty: false };
    let plan = division.plan(&damaged);
    let kept = plan.kept.into_iter().map(|it| {
        let flaw = it.flaw.map_or_else(String::new, |flaw| format!(" ({flaw})"));
        format!("{}: {}{flaw}", it.row.backup, it.reasons.join(", "))
    });
    (plan.goes.rows.into_iter().map(|row| row.backup).collect(), kept.collect())
}

#[test]
fn a_backup_with_any_flaw_takes_no_place_and_the_newest_intact_one_stays() {
    type Spoil = fn(&mut BackupRecord);
    let flaws: [(&str, Spoil); 5] = [
        ("damaged", |_| ()),
        ("suspect", |it| it.suspect = Some("a list of changes was wrong".to_owned())),
        ("inconsistent", |it| it.flaws.inconsistent = Some("the source grew".to_owned())),
        ("bad-sectors", |it| it.flaws.unreadable_bytes = 512),
        ("empty", |it| it.size_of_disk = 0),
    ];
    for (flaw, spoil) in flaws {
        let mut set = days("web", 4);
        set.backups[2..].iter_mut().for_each(spoil);
        let damaged =
            if flaw == "damaged" { vec![(set.id, Incremental(2)), (set.id, Incremental(3))] } else { vec![] };
        let (goes, kept) = last(vec![set.clone()], &damaged, 1);
        assert_eq!(goes, ["web@0", "web@2"], "{flaw}");
        assert_eq!(kept, ["web@1: last".to_owned(), format!("web@3: last ({flaw})")]);
        // By time, too, and with the rules of days.
        let (goes, kept) = last(vec![set], &damaged, 2);
        assert_eq!(goes, [""; 0], "{flaw}");
        assert_eq!(kept[0], "web@0: last");
    }
}

#[test]
fn a_moment_is_flawed_if_one_of_its_disks_is() {
    let (mut machine, mut vda, vdb) = (days("web", 2), days("web/vda", 2), days("web/vdb", 2));
    for (moment, number) in machine.backups.iter_mut().zip(0..) {
        moment.is_machine = true;
        moment.disks = vec![(vda.id, Incremental(number)), (vdb.id, Incremental(number))];
    }
    let sets = |vda: &Backupset| vec![machine.clone(), vda.clone(), vdb.clone()];
    assert_eq!(last(sets(&vda), &[], 1).0, ["web@0", "web/vda@0", "web/vdb@0"]);
    vda.backups[1].flaws.inconsistent = Some("the source grew".to_owned());
    let (goes, kept) = last(sets(&vda), &[], 1);
    assert_eq!(goes, [""; 0]);
    assert_eq!(kept[1], "web@1: last (inconsistent)");
    assert_eq!(kept[4], "web/vdb@0: part of web@0");
    // A disk that shrank, though not to nothing: the moment before stays, and its other disk.
    vda.backups[1].flaws.inconsistent = None;
    vda.backups[0].size_of_disk = 2;
    let (goes, kept) = last(sets(&vda), &[], 1);
    assert_eq!(goes, [""; 0]);
    assert_eq!(kept[0], "web@0: larger than the newest");
    // A moment that lacks a disk.
    vda.backups.pop();
    let (_, kept) = last(sets(&vda), &[], 1);
    assert_eq!(kept[..2], ["web@0: last", "web@1: last (incomplete)"]);
}

#[test]
fn the_last_intact_backup_from_before_each_time_that_a_disk_shrank_stays() {
    let mut set = days("web", 6);
    for (backup, size) in set.backups.iter_mut().zip([9, 9, 9, 5, 0, 0]) {
        backup.size_of_disk = size;
    }
    let (goes, kept) = last(vec![set.clone()], &[], 1);
    assert_eq!(goes, ["web@0", "web@1", "web@4"]);
    assert_eq!(kept, ["web@2: larger than the newest", "web@3: last", "web@5: last (empty)"]);
    // One that is damaged does not stand for an intact one.
    let damaged = [(set.id, Incremental(2))];
    let (goes, kept) = last(vec![set], &damaged, 1);
    assert_eq!(goes, ["web@0", "web@2", "web@4"]);
    assert_eq!(kept[0], "web@1: larger than the newest");
}
