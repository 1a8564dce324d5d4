use super::*;
use crate::manifest::{BackupsetId, Incremental};
use crate::repository::BackupNumber;
use crate::repository::retention::Keep;

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
        let plan = ForgetPlan::divide(&View::everything(), &sets, &policy, None, allow_empty);
        let kept: Vec<_> = plan.kept.iter().map(|it| (it.row.incremental, it.reasons.join(","))).collect();
        assert_eq!(kept, [(1, "last".to_owned()), (2, "last".to_owned()), (3, NEWEST.to_owned())]);
        let goes: Vec<_> = plan.goes.rows.iter().map(|row| row.incremental).collect();
        assert_eq!((goes, plan.refused), (vec![0], Vec::<String>::new()));
    }
}
