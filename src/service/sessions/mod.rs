//! Backups that clients send.
//!
//! A session is a backup that has been begun: clients ask which segments are lacking, send those, send the manifest part
//! after part in the order of the disk, and have it committed. Every request can be repeated. What a client may name
//! without sending it is in [`known`]; what it sends is verified in [`receive`]. A session that goes silent is given up, and
//! what it stored is left to garbage collection, or to a session that goes on from it.

mod became;
mod journal;
mod known;
mod owned;
pub(super) mod receive;
pub(super) mod session;
#[cfg(test)]
mod tests;
mod way;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::frames::{Entry, Question};
use crate::api::{Committed, NewSession, Refusal, SessionState, SourceFlaws};
use crate::backup::{BackupError, BackupOptions, SourceFormat, describe};
use crate::codec::CompressionSetting;
use crate::manifest::{HostName, ImageName, InvalidText, SourceName, SourceOrigin, SourceUse, Tags};
use crate::progress::Silent;
use crate::repository::{GrowthLimits, RepositoryError, RepositoryWriter};
use crate::service::limits::{Flight, Pass, Shares};
use crate::service::sessions::became::{backup_of, name_session};
use crate::service::sessions::known::Known;
use crate::service::sessions::owned::OwnedSets;
use crate::service::sessions::receive::{Decoders, Received, RepositoryOrRefused};
use crate::service::sessions::session::Session;
use crate::service::sessions::way::{make_way, take_place};
use crate::service::{App, Caller, Limits, Refused};
use crate::storage::{Storage, StorageError};

/// The longest word that a client may choose for its backup, in bytes.
const LONGEST_WORD: usize = 64;
/// How often the files of sessions that were cut off are looked at.
const TIDIED: Duration = Duration::from_hours(1);
/// How many sessions are remembered that are over, to answer a commit that is asked for again.
const REMEMBERED: usize = 4096;

/// The sessions that are open.
#[derive(Debug)]
pub(super) struct Sessions {
    open: Mutex<HashMap<String, Arc<Session>>>,
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    tidied: Mutex<Option<Instant>>,
    owned: OwnedSets,
    decoders: Decoders,
    places: Arc<Flight>,
    /// Memory for what was sent in sessions.
    room: Arc<Shares>,
}

impl Sessions {
    pub(super) fn new(storage: Arc<dyn Storage>, folder: PathBuf, limits: &Limits) -> Self {
        Self {
            open: Mutex::default(),
            storage,
            folder,
            tidied: Mutex::default(),
            owned: OwnedSets::default(),
            decoders: Decoders::default(),
            places: Arc::new(Flight::new(limits.sessions, limits.sessions_each)),
            room: Arc::new(Shares::new("its memory of what was sent", known::SHARES, 0, Duration::ZERO)),
        }
    }

    fn places(&self) -> &Arc<Flight> {
        &self.places
    }

    /// Removes the files of sessions that nobody will go on from any longer, if it is time to.
    ///
    /// # Errors
    /// The folder is not one that Ekko made.
    pub(super) fn tidy(&self) -> Result<(), StorageError> {
        let mut tidied = self.tidied.lock().unwrap_or_else(PoisonError::into_inner);
        if tidied.is_none_or(|last| last.elapsed() > TIDIED) {
            *tidied = Some(Instant::now());
            drop(tidied);
            journal::tidy(self.storage.as_ref(), &self.folder)?;
        }
        Ok(())
    }

    /// Adds a session. Of those that are over, the one that was silent for longest is forgotten if there are too many.
    fn add(&self, session: Session) {
        let mut open = self.open();
        if open.len() >= REMEMBERED {
            let over = open.iter().filter(|(_, session)| session.is_over());
            let oldest = over.max_by_key(|(_, session)| session.silence()).map(|(id, _)| id.clone());
            oldest.and_then(|id| open.remove(&id));
        }
        open.insert(session.id.clone(), Arc::new(session));
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many are open.
    pub(super) fn count(&self) -> usize {
        self.open().values().filter(|session| !session.is_over()).count()
    }

    /// Returns what is told of a caller's sessions.
    pub(super) fn list(&self, caller: &Caller) -> Vec<SessionState> {
        let all: Vec<_> = self.open().values().cloned().collect();
        let mut states: Vec<_> = all
            .iter()
            .filter(|session| session.belongs_to(caller) && !session.is_over())
            .map(|session| session.state())
            .collect();
        states.sort_by(|a, b| a.session.cmp(&b.session));
        states
    }

    /// Finds a session of a caller; one of somebody else is none.
    pub(super) fn find(&self, caller: &Caller, id: &str) -> Result<Arc<Session>, Refused> {
        let found = self.open().get(id).filter(|session| session.belongs_to(caller)).cloned();
        let session = found.ok_or_else(|| Refused::new(Refusal::NotFound, "there is no such session"))?;
        session.heard();
        Ok(session)
    }
}

/// Runs a part of a session on the repository; an index that fails is replaced, and the session has ended then.
fn on_repository<T>(
    app: &App,
    job: impl Fn(&RepositoryWriter) -> Result<T, RepositoryOrRefused>,
) -> Result<T, Refused> {
    Ok(app.writer().run_job(&Silent, |_| false, job)?)
}

/// Begins a session.
pub(super) fn begin(app: &App, caller: &Caller, new: &NewSession) -> Result<SessionState, Refused> {
    let invalid = |what: String| Refused::new(Refusal::Invalid, what);
    let format = new.format.parse().map_err(invalid)?;
    let looks_like = new.looks_like.as_ref().map(|it| it.parse().map_err(invalid)).transpose()?;
    let said = |error: InvalidText| invalid(error.to_string());
    let tags = new.tags.iter().map(|tag| tag.parse()).collect::<Result<_, _>>().map_err(said)?;
    let tags = Tags::new(tags).map_err(|error| invalid(error.to_string()))?;
    let in_use = new.in_use.as_deref().map(SourceUse::new).transpose().map_err(said)?;
    let source = new.source.as_deref().map(SourceName::new).transpose().map_err(said)?;
    let host = new.host.as_deref().map(HostName::new).transpose().map_err(said)?;
    let graphic = |word: &String| {
        (1..=LONGEST_WORD).contains(&word.len()) && word.bytes().all(|it| it.is_ascii_graphic())
    };
    if !new.client.as_ref().is_none_or(graphic) {
        return Err(invalid(format!("a client's word has 1 to {LONGEST_WORD} visible ASCII characters")));
    }
    let name = caller.view.full(&new.name)?;
    make_way(app, caller, &name, new)?;
    let place = take_place(app, caller)?;
    let options = BackupOptions {
        format: SourceFormat { format, recognised: new.recognised, looks_like },
        in_use,
        origin: SourceOrigin { source, host },
        ..BackupOptions::new(CompressionSetting::default(), 1)
    };
    app.count_session(caller)?;
    // What does not begin costs nothing: a client asks again while another session of the image is open.
    let begun = begin_counted(app, caller, (&name, new, place), (&tags, &options));
    begun.inspect_err(|_| app.uncount_session(caller))
}

/// Begins a session that was counted.
fn begin_counted(
    app: &App,
    caller: &Caller,
    (name, new, place): (&ImageName, &NewSession, Pass),
    (tags, options): (&Tags, &BackupOptions),
) -> Result<SessionState, Refused> {
    let limits = &app.settings().limits;
    let sessions = app.sessions();
    let invalid = |what: String| Refused::new(Refusal::Invalid, what);
    let allowance = app.allowance(caller, name)?;
    // Of the owner, who comes by the socket, no more is asked than of local commands.
    let growth = caller.view.project().map(|_| GrowthLimits {
        backups_per_name: limits.backups_per_name,
        prefix: caller.view.prefix(),
        names: limits.names_per_project,
    });
    let begun = app.writer().run_job(
        &Silent,
        |_| false,
        |writer| {
            writer.prepare_for_growth()?;
            let mut draft = writer.begin_backup_within(name, new.size_of_disk, growth.as_ref())?;
            draft.set_tags(tags);
            describe(&mut draft, options)?;
            let id = name_session(&mut draft);
            let manifest = writer.create_manifest(&draft)?;
            Ok::<_, BackupError>((id, draft, manifest))
        },
    );
    let (id, draft, manifest) = begun.map_err(|error| match error {
        BackupError::Repository(RepositoryError::Manifest(error)) => invalid(error.to_string()),
        BackupError::Repository(error) => error.into(),
        error => Refused::new(Refusal::from(error.kind()), error.to_string()),
    })?;
    let owned = sessions.owned.of(app.repository(), &caller.view, &caller.view.sets(app.repository())?.0);
    let files = (&sessions.storage, sessions.folder.as_path());
    let known = Known::new(owned, name, files, (&sessions.room, &caller.who));
    let info = draft.info();
    let state = SessionState {
        session: id,
        name: new.name.clone(),
        backupset: info.backupset.to_string(),
        incremental: info.incremental.0,
        size_of_disk: new.size_of_disk,
        segment_size: info.geometry.segment_size().bytes(),
        has_parent: draft.parent().is_some(),
        parent: draft.parent().map(|parent| parent.manifest.fingerprint().to_string()),
        parent_size_of_disk: draft.parent().map(|parent| parent.manifest.info().geometry.size_of_disk()),
        compression: app.repository().compression().to_string(),
        entries: 0,
        silence_seconds: limits.silence_seconds,
    };
    let client = new.client.clone();
    sessions.add(Session::new(caller, (draft, manifest), (known, place), allowance, state.clone(), client));
    Ok(state)
}

/// Gives a session up; what was sent can be gone on from.
pub(super) fn give_up(app: &App, session: &Session) {
    app.sessions().open().remove(&session.id);
    session.give_up();
}

/// Gives those up of which nothing was heard for too long, or all of them.
pub(super) fn give_up_silent(app: &App, all: bool) {
    if let Err(error) = app.sessions().tidy() {
        tracing::warn!(%error, "the files of sessions that were cut off stay");
    }
    let limit = Duration::from_secs(app.settings().limits.silence_seconds);
    let silent: Vec<_> =
        app.sessions().open().values().filter(|session| all || session.silence() > limit).cloned().collect();
    for session in silent {
        if !session.is_over() {
            session.log("a backup is given up: nothing was heard of its client");
        }
        give_up(app, &session);
    }
}

/// Returns what segments of the parent are compared with.
pub(super) fn parent(app: &App, session: &Session, range: (u32, u32)) -> Result<Vec<u8>, Refused> {
    on_repository(app, |writer| session.parent(writer, range))
}

/// Says of each segment whether the client is to send it.
pub(super) fn lacking(app: &App, session: &Session, questions: &[Question]) -> Result<Vec<bool>, Refused> {
    on_repository(app, |writer| session.lacking(writer, questions))
}

/// Takes segments in.
pub(super) fn receive(app: &App, session: &Session, segments: &[Received]) -> Result<(), Refused> {
    let job = |writer: &RepositoryWriter| session.receive(writer, &app.sessions().decoders, segments);
    let stored = app.writer().run_job(&Silent, |_| false, job);
    let stored = stored.map_err(|error| error.of_sender(&session.found_full))?;
    let received = segments.len() as u64;
    app.metrics().segments_received.inc_by(received);
    app.metrics().segments_stored.inc_by(stored);
    app.metrics().segments_deduplicated.inc_by(received.saturating_sub(stored));
    Ok(())
}

/// Takes a part of the manifest.
pub(super) fn extend(app: &App, session: &Session, part: u64, entries: &[Entry]) -> Result<(), Refused> {
    on_repository(app, |writer| session.extend(writer, part, entries))
}

/// Commits the backup of the session that is called `id`; says the same if the session has become one already, whether or not the
/// service remembers the session.
pub(super) fn commit_named(
    app: &App,
    caller: &Caller,
    id: &str,
    parts: u64,
    flaws: &SourceFlaws,
) -> Result<Committed, Refused> {
    let session = app.sessions().find(caller, id);
    let committed = session.clone().and_then(|session| {
        commit(app, caller, &session, parts, flaws).inspect(|_| session.log("a backup is committed"))
    });
    let refused = match committed {
        Ok(committed) => return Ok(committed),
        Err(refused) => refused,
    };
    // The last is said to a session whose segments filled the disk.
    if !matches!(refused.refusal(), Refusal::NotFound | Refusal::Gone | Refusal::QuotaExceeded) {
        return Err(refused);
    }
    let committed = backup_of(app.repository(), &caller.view, id)?.ok_or(refused)?;
    if let Ok(session) = session {
        session.became(&committed);
    }
    tracing::info!(session = id, who = caller.who, backup = committed.backup, "a commit is asked for again");
    Ok(committed)
}

/// Commits the backup.
fn commit(
    app: &App,
    caller: &Caller,
    session: &Session,
    parts: u64,
    flaws: &SourceFlaws,
) -> Result<Committed, Refused> {
    let read_bytes = flaws.read_bytes;
    let flaws = flaws.flaws(session.size_of_disk());
    let flaws = flaws.map_err(|error| Refused::new(Refusal::Invalid, error.to_string()))?;
    // Asked again, it costs nothing.
    if !session.is_over() {
        app.count_commit(caller)?;
    }
    let committed = app.writer().run_job(
        &Silent,
        |(_, backup): &(Committed, Option<crate::repository::CommittedBackup>)| {
            backup.as_ref().is_some_and(|backup| backup.replace_index)
        },
        |writer| session.commit(writer, parts, (&flaws, read_bytes)),
    );
    let committed = committed.map_err(|error| error.of_sender(&session.found_full))?;
    Ok(committed.0)
}
