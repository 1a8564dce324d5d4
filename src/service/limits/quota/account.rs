//! What one project has, and what its backups under way add to it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::manifest::ImageName;
use crate::segment::Fingerprint;

/// What was given up within this counts as given up at one time.
const SAME_TIME: Duration = Duration::from_mins(10);
/// How many images of a project are told apart whose backups were given up. What others were sent counts all the same, and
/// counts again if they go on.
const MOST_IMAGES: usize = 4096;

/// Two neighbours of a backupset: the later one, and the one before it if there is one.
pub(super) type Pair = (Option<Fingerprint>, Fingerprint);

/// What a backup under way adds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Added {
    /// Plain bytes of segments that were sent.
    pub(super) sent: u64,
    /// Plain bytes of segments that the manifest names and that are not the parent's.
    pub(super) named: u64,
    /// The length of the manifest.
    pub(super) manifest: u64,
}

/// Bytes that lie in the packs and that no backup names, and since when.
#[derive(Debug, Default)]
struct GivenUp(Vec<(Instant, u64)>);

impl GivenUp {
    fn all(&self) -> u64 {
        self.0.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    fn add(&mut self, now: Instant, bytes: u64) {
        match self.0.last_mut() {
            _ if bytes == 0 => {}
            Some((when, all)) if now.saturating_duration_since(*when) < SAME_TIME => {
                *all = all.saturating_add(bytes);
            }
            _ => self.0.push((now, bytes)),
        }
    }

    /// Takes bytes out that a backup names now, the oldest first.
    fn take(&mut self, mut bytes: u64) {
        for (_, all) in &mut self.0 {
            let taken = bytes.min(*all);
            *all -= taken;
            bytes -= taken;
        }
        self.0.retain(|(_, all)| *all > 0);
    }
}

/// What the backups of an image add that are under way or were given up.
///
/// A backup that goes on after a break names what it had sent before. So what was given up counts as sent by it, and not once
/// more: an image counts what was sent for it or what its manifest names, whichever is more.
#[derive(Debug, Default)]
struct Growth {
    given_up: GivenUp,
    now: Added,
}

impl Growth {
    fn all(&self) -> u64 {
        let sent = self.given_up.all().saturating_add(self.now.sent);
        sent.max(self.now.named).saturating_add(self.now.manifest)
    }

    fn is_nothing(&self) -> bool {
        self.given_up.0.is_empty() && self.now == Added::default()
    }

    fn add(&mut self, added: Added) {
        self.now.sent = self.now.sent.saturating_add(added.sent);
        self.now.named = self.now.named.saturating_add(added.named);
        self.now.manifest = self.now.manifest.saturating_add(added.manifest);
    }

    fn remove(&mut self, added: Added) {
        self.now.sent = self.now.sent.saturating_sub(added.sent);
        self.now.named = self.now.named.saturating_sub(added.named);
        self.now.manifest = self.now.manifest.saturating_sub(added.manifest);
    }
}

/// One project's. There are only those of projects with a quota that have asked.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// What each backup adds to the one before it.
    pub(super) added: HashMap<Pair, u64>,
    /// The bytes of its backups.
    pub(super) used: u64,
    /// How many backups have been added to `used`.
    pub(super) commits: u64,
    images: HashMap<ImageName, Growth>,
    /// What all images add together.
    growing: u64,
    /// Given up of images that are not told apart.
    others: GivenUp,
}

impl Account {
    /// Returns all bytes that the project has.
    pub(super) fn all(&self) -> u64 {
        self.used.saturating_add(self.growing).saturating_add(self.others.all())
    }

    /// Returns what the project has without an image's backups that are under way or were given up.
    pub(super) fn without(&self, name: &ImageName) -> u64 {
        self.all().saturating_sub(self.images.get(name).map_or(0, Growth::all))
    }

    fn change(&mut self, name: &ImageName, change: impl FnOnce(&mut Growth)) {
        let growth = self.images.entry(name.clone()).or_default();
        let before = growth.all();
        change(growth);
        self.growing = self.growing.saturating_sub(before).saturating_add(growth.all());
        if growth.is_nothing() {
            self.images.remove(name);
        }
    }

    /// Counts what a backup under way adds more.
    pub(super) fn add(&mut self, name: &ImageName, added: Added) {
        self.change(name, |growth| growth.add(added));
    }

    /// Counts less.
    pub(super) fn remove(&mut self, name: &ImageName, added: Added) {
        self.change(name, |growth| growth.remove(added));
    }

    /// The backup exists.
    pub(super) fn commit(&mut self, name: &ImageName, added: Added) {
        self.used = self.used.saturating_add(added.named).saturating_add(added.manifest);
        self.commits += 1;
        self.change(name, |growth| {
            growth.remove(added);
            growth.given_up.add(Instant::now(), added.sent);
            growth.given_up.take(added.named);
        });
    }

    /// The backup was given up: what was sent lies in the packs.
    pub(super) fn give_up(&mut self, name: &ImageName, added: Added) {
        let is_told_apart = self.images.len() <= MOST_IMAGES;
        self.change(name, |growth| {
            growth.remove(added);
            if is_told_apart {
                growth.given_up.add(Instant::now(), added.sent);
            }
        });
        if !is_told_apart {
            self.others.add(Instant::now(), added.sent);
        }
    }

    /// What was garbage for at least `kept` has been collected.
    pub(super) fn collected(&mut self, now: Instant, kept: Duration) {
        let stays = |(when, _): &(Instant, u64)| now.saturating_duration_since(*when) < kept;
        self.others.0.retain(stays);
        for growth in self.images.values_mut() {
            growth.given_up.0.retain(stays);
        }
        self.images.retain(|_, growth| !growth.is_nothing());
        self.growing = self.images.values().fold(0, |sum, growth| sum.saturating_add(growth.all()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> ImageName {
        ImageName::new(format!("blue:{number}")).unwrap()
    }

    #[test]
    fn what_was_given_up_counts_until_it_is_named_or_collected_and_never_twice() {
        let (mut account, web) = (Account::default(), name(0));
        let added = |sent, named, manifest| Added { sent, named, manifest };
        account.add(&web, added(60, 20, 0));
        account.give_up(&web, added(60, 20, 0));
        assert_eq!(account.all(), 60);
        account.add(&web, added(30, 50, 5));
        assert_eq!((account.all(), account.without(&web)), (95, 0));
        account.commit(&web, added(30, 50, 5));
        // 40 of what was sent is named by no backup.
        assert_eq!((account.used, account.all()), (55, 95));
        account.collected(Instant::now(), Duration::ZERO);
        assert_eq!((account.all(), account.images.len()), (55, 0));
        // What another image has, and this one names as well, counts for each.
        account.add(&web, added(0, 100, 0));
        account.give_up(&web, added(0, 100, 0));
        assert_eq!((account.all(), account.images.len()), (55, 0), "nothing of it lies there");
    }

    #[test]
    fn the_table_of_images_has_a_bound_and_everything_counts_all_the_same() {
        let mut account = Account::default();
        let added = Added { sent: 1, ..Added::default() };
        for number in 0..MOST_IMAGES + 500 {
            account.add(&name(number), added);
            account.give_up(&name(number), added);
        }
        assert_eq!(account.images.len(), MOST_IMAGES);
        assert_eq!(account.all(), MOST_IMAGES as u64 + 500);
        account.collected(Instant::now(), Duration::ZERO);
        assert_eq!(account.all(), 0);
    }
}
