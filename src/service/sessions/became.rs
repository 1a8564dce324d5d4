//! A commit that is asked for again after the service has forgotten the session.
//!
//! A client that gets no answer to its commit asks again. If the service was restarted meanwhile, or if the commit failed after the
//! backup came to exist, there is no session any longer that could say so, and a client that began again would make a second
//! backup of the same moment. So the backup itself says of which session it is: a session's id names the backup that it may
//! become, its backupset and number, and a random word, which is an attribute of the backup's manifest ([`SESSION`]).
//!
//! The answer is the backup's only if all three are those of the id: another session may have got the number since. Nothing
//! is told of it that its caller could not list.

use crate::api::{Committed, View};
use crate::manifest::{BackupsetId, Incremental, SESSION};
use crate::repository::{BackupDraft, Repository};
use crate::service::Refused;

/// What the id of a session consists of: its text is these three with dots between them.
struct SessionId<'a> {
    backupset: BackupsetId,
    incremental: Incremental,
    word: &'a str,
}

impl<'a> SessionId<'a> {
    fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split('.');
        let (backupset, incremental, word) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || word.is_empty() {
            return None;
        }
        let incremental = Incremental(incremental.parse().ok()?);
        Some(Self { backupset: backupset.parse().ok()?, incremental, word })
    }
}

/// Gives the session of a draft an id, which its backup will remember.
pub(super) fn name_session(draft: &mut BackupDraft) -> String {
    let word = uuid::Uuid::new_v4().simple().to_string();
    draft.set_attribute(SESSION, word.clone().into_bytes());
    let info = draft.info();
    format!("{}.{}.{word}", info.backupset, info.incremental)
}

/// Finds the backup that a session has become, among those that are seen.
///
/// # Errors
///
/// If the lists of backups cannot be read, or its manifest.
pub(super) fn backup_of(
    repository: &Repository,
    view: &View,
    session: &str,
) -> Result<Option<Committed>, Refused> {
    let Some(id) = SessionId::read(session) else { return Ok(None) };
    let (sets, _) = view.sets(repository)?;
    let Some(set) = sets.iter().find(|set| set.id == id.backupset) else { return Ok(None) };
    let Some(backup) = set.backups.iter().find(|backup| backup.incremental == id.incremental) else {
        return Ok(None);
    };
    let manifest = repository.manifest(set, backup)?;
    let is_its = manifest.info().attribute(SESSION) == Some(id.word.as_bytes());
    Ok(is_its.then(|| {
        Committed::of(view, &set.name, (set.id, backup.incremental), backup.number, backup.timestamp)
    }))
}
