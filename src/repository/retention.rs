//! Which backups a policy keeps, with restic's meanings.
//!
//! The backups of one name are looked at from the newest to the oldest. `last` keeps so many; `hourly` keeps the
//! newest backup of each of the last so many hours *that have one*, and likewise for days, weeks (ISO 8601), months
//! and years, all in UTC; a rule that could keep more keeps the oldest backup as well; `within` keeps what is no older than so long before the newest; a tag keeps what has it.
//! What several rules keep counts for each of them. (restic: "Removing snapshots according to a policy".)
//!
//! A backup with a flaw (damaged, suspect, inconsistent, with unreadable ranges) takes no place of a rule: the rules count intact
//! backups. It is kept as long as a rule would keep it if it were intact.
//!
//! A wrong clock must not cost a backup. A backup dated in the future takes no place of any rule and is kept. The newest
//! backup by its number is kept whatever its date is.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// How many of a kind are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// None for this reason.
    #[default]
    None,
    /// So many.
    Number(u32),
    /// All.
    Unlimited,
}

impl Keep {
    /// Takes one away; says whether there was one.
    fn take(&mut self) -> bool {
        match self {
            Self::None | Self::Number(0) => false,
            Self::Number(left) => {
                *left -= 1;
                true
            }
            Self::Unlimited => true,
        }
    }
}

/// What is to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// The newest ones.
    pub last: Keep,
    /// The newest of each hour that has one.
    pub hourly: Keep,
    /// The newest of each day that has one.
    pub daily: Keep,
    /// The newest of each ISO week that has one.
    pub weekly: Keep,
    /// The newest of each month that has one.
    pub monthly: Keep,
    /// The newest of each year that has one.
    pub yearly: Keep,
    /// All that are no older than this before the newest.
    pub within: Option<SignedDuration>,
    /// All that have one of these tags.
    pub tags: Vec<String>,
}

impl RetentionPolicy {
    /// Says whether it keeps nothing at all: such a policy is a mistake.
    pub fn is_empty(&self) -> bool {
        let kept = [self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        kept.iter().all(|keep| matches!(keep, Keep::None | Keep::Number(0)))
            && self.within.is_none()
            && self.tags.is_empty()
    }

    /// Returns for each backup why it is kept; for no reason means that it goes. Backups are given, and answered,
    /// in any order.
    ///
    /// What is kept for a time is kept for that time before the newest backup, so that nothing goes while no more are
    /// made. The newest backup of all gets no reason for that here: a policy for which no rule keeps any backup is a mistake,
    /// which the caller sees.
    pub fn apply(&self, backups: &[Candidate<'_>], now: Timestamp) -> Vec<Vec<&'static str>> {
        let mut order: Vec<usize> = (0..backups.len()).collect();
        let at = |index: &usize| backups.get(*index).map(|backup| (backup.timestamp, backup.order));
        order.sort_by_key(|index| std::cmp::Reverse(at(index)));
        let mut reasons = vec![Vec::new(); backups.len()];
        for (backup, why) in backups.iter().zip(&mut reasons) {
            if is_to_come(backup.timestamp, now) {
                why.push(FUTURE);
            }
        }
        order.retain(|index| reasons.get(*index).is_some_and(Vec::is_empty));
        let is_intact = |index: &usize| backups.get(*index).is_some_and(|backup| !backup.flawed);
        let intact: Vec<_> = order.iter().copied().filter(is_intact).collect();
        // With flawed backups among them, intact ones can only lose places.
        if intact.len() < order.len() {
            self.mark(backups, intact, &mut reasons);
        }
        self.mark(backups, order, &mut reasons);
        reasons
    }

    /// Adds why backups are kept, of those that `order` names, from the newest to the oldest.
    fn mark(&self, backups: &[Candidate<'_>], order: Vec<usize>, reasons: &mut [Vec<&'static str>]) {
        let newest = order.first().and_then(|index| backups.get(*index)).map(|backup| backup.timestamp);
        let mut rules = self.rules();
        let oldest = order.last().copied();
        for index in order {
            let (Some(backup), Some(known)) = (backups.get(index), reasons.get_mut(index)) else { continue };
            let mut why = Vec::new();
            let time = TimeZone::UTC.to_datetime(backup.timestamp);
            for Rule { name, keep, bucket, last } in &mut rules {
                // `last` has no bucket: each backup is its own.
                let here = bucket(time);
                if (here.is_none() || here != *last || Some(index) == oldest) && keep.take() {
                    why.push(*name);
                }
                *last = here;
            }
            if let (Some(within), Some(newest)) = (self.within, newest)
                && newest.duration_since(backup.timestamp) <= within
            {
                why.push("within");
            }
            if backup.tags.iter().any(|tag| self.tags.contains(tag)) {
                why.push("tag");
            }
            if backup.protected {
                why.push(PROTECTED);
            }
            why.retain(|reason| !known.contains(reason));
            known.append(&mut why);
        }
    }

    fn rules(&self) -> [Rule; 6] {
        let rule = |name, keep, bucket| Rule { name, keep, bucket, last: None };
        [
            rule("last", self.last, |_| None),
            rule("hourly", self.hourly, |time| {
                Some([time.year().into(), time.day_of_year().into(), time.hour().into()])
            }),
            rule("daily", self.daily, |time| Some([time.year().into(), time.day_of_year().into(), 0])),
            rule("weekly", self.weekly, |time| {
                let week = time.date().iso_week_date();
                Some([week.year().into(), week.week().into(), 0])
            }),
            rule("monthly", self.monthly, |time| Some([time.year().into(), time.month().into(), 0])),
            rule("yearly", self.yearly, |time| Some([time.year().into(), 0, 0])),
        ]
    }
}

/// The reason of a protected backup.
pub const PROTECTED: &str = "protected";

/// The reason of a backup that is dated in the future.
pub const FUTURE: &str = "future";

/// The reason of the newest backup of a name.
pub const NEWEST: &str = "newest";

/// The reason of the newest intact backup of a name.
pub const INTACT: &str = "newest intact";

/// The reason of the newest backup that is larger than the newest one of its name.
pub const LARGER: &str = "larger than the newest";

/// How far the clocks of hosts may be apart.
const CLOCKS: SignedDuration = SignedDuration::from_mins(15);

/// Says whether a time is still to come, by more than clocks are apart.
pub fn is_to_come(time: Timestamp, now: Timestamp) -> bool {
    time.duration_since(now) > CLOCKS
}

struct Rule {
    name: &'static str,
    keep: Keep,
    bucket: fn(DateTime) -> Option<[i32; 3]>,
    last: Option<[i32; 3]>,
}

/// A backup that a policy looks at.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// When it was begun.
    pub timestamp: Timestamp,
    /// What tells backups of one moment apart: the higher, the newer.
    pub order: u32,
    /// Its tags.
    pub tags: &'a [String],
    /// Whether it is kept whatever the policy says.
    pub protected: bool,
    /// Whether it may not be what the disk was: then it takes no place of a rule.
    pub flawed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the backups that are kept, of backups at these times.
    fn kept(policy: &RetentionPolicy, times: &[&str]) -> Vec<usize> {
        let candidates: Vec<_> = times
            .iter()
            .zip(0..)
            .map(|(time, order)| Candidate {
                timestamp: time.parse().unwrap(),
                order,
                tags: &[],
                protected: false,
                flawed: false,
            })
            .collect();
        let reasons = policy.apply(&candidates, "2026-02-11T00:01:00Z".parse().unwrap());
        (0..times.len()).filter(|index| !reasons[*index].is_empty()).collect()
    }

    const TIMES: [&str; 8] = [
        "2025-12-28T23:00:00Z", // Sunday, week 52
        "2025-12-29T01:00:00Z", // Monday, week 1 of 2026
        "2026-01-01T10:00:00Z",
        "2026-01-01T10:30:00Z",
        "2026-01-01T12:00:00Z",
        "2026-02-10T00:00:00Z",
        "2026-02-11T00:00:00Z",
        "2026-02-11T00:00:00Z", // of the same moment, and newer by its number
    ];

    #[test]
    fn each_rule_keeps_the_newest_of_its_stretch_of_time() {
        let policy = RetentionPolicy::default;
        let number = Keep::Number;
        for (policy, expected) in [
            (RetentionPolicy { last: number(3), ..policy() }, &[5, 6, 7][..]),
            (RetentionPolicy { hourly: number(4), ..policy() }, &[3, 4, 5, 7]),
            (RetentionPolicy { daily: number(3), ..policy() }, &[4, 5, 7]),
            (RetentionPolicy { weekly: number(3), ..policy() }, &[0, 4, 7]),
            (RetentionPolicy { monthly: number(2), ..policy() }, &[4, 7]),
            (RetentionPolicy { monthly: Keep::Unlimited, ..policy() }, &[0, 1, 4, 7]),
            (RetentionPolicy { yearly: number(9), ..policy() }, &[0, 1, 7]),
            (RetentionPolicy { last: number(1), yearly: number(2), ..policy() }, &[1, 7]),
            (RetentionPolicy { within: Some(SignedDuration::from_hours(24)), ..policy() }, &[5, 6, 7]),
            (RetentionPolicy { last: Keep::Unlimited, ..policy() }, &[0, 1, 2, 3, 4, 5, 6, 7]),
        ] {
            assert!(!policy.is_empty());
            assert_eq!(kept(&policy, &TIMES), expected, "{policy:?}");
            let backwards: Vec<_> = TIMES.iter().rev().copied().collect();
            let times = kept(&policy, &backwards).into_iter().rev().map(|index| backwards[index]);
            let forwards = expected.iter().map(|index| TIMES[*index]);
            assert!(times.eq(forwards), "the order in which they are given says nothing: {policy:?}");
        }
        assert!(policy().is_empty() && RetentionPolicy { daily: number(0), ..policy() }.is_empty());
    }

    #[test]
    fn a_backup_dated_in_the_future_is_kept_and_takes_no_place() {
        let within = |hours| RetentionPolicy {
            within: Some(SignedDuration::from_hours(hours)),
            ..RetentionPolicy::default()
        };
        let times =
            ["2026-02-09T00:00:00Z", "2026-02-10T12:00:00Z", "2026-02-11T00:00:00Z", "2036-01-01T00:00:00Z"];
        assert_eq!(kept(&within(24), &times), [1, 2, 3]);
        // A clock that is a little ahead is none that was wrong.
        let times = ["2026-02-11T00:00:00Z", "2026-02-11T00:05:00Z"];
        assert_eq!(kept(&within(0), &times), [1]);
        // Today's clock may be the wrong one.
        let times = ["2036-01-01T00:00:00Z", "2036-02-01T00:00:00Z", "2036-02-01T12:00:00Z"];
        assert_eq!(kept(&within(24), &times), [0, 1, 2]);
        let daily = RetentionPolicy { daily: Keep::Number(1), ..RetentionPolicy::default() };
        let times =
            ["2099-01-01T00:00:00Z", "2026-02-10T00:00:00Z", "2099-01-02T00:00:00Z", "2026-02-11T00:00:00Z"];
        assert_eq!(kept(&daily, &times), [0, 2, 3]);
    }

    #[test]
    fn tags_and_protection_keep_whatever_the_time_says() {
        let policy =
            RetentionPolicy { last: Keep::Number(1), tags: vec!["gold".to_owned()], ..Default::default() };
        let gold = ["gold".to_owned()];
        let candidate = |order, tags, protected| Candidate {
            timestamp: Timestamp::UNIX_EPOCH,
            order,
            tags,
            protected,
            flawed: false,
        };
        let candidates = [
            candidate(0, &gold[..], false),
            candidate(1, &[], true),
            candidate(2, &[], false),
            candidate(3, &gold[..], true),
        ];
        assert_eq!(
            policy.apply(&candidates, Timestamp::UNIX_EPOCH),
            [vec!["tag"], vec!["protected"], vec![], vec!["last", "tag", "protected"]]
        );
    }
}
