//! `ekko list`

use std::collections::HashMap;

use jiff::Timestamp;
use wildmatch::WildMatch;

use crate::api::{self, BackupList, BackupRow, ListFilter, MOST_LISTED, View};
use crate::cli::args::ListArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::format::Zone;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::remote::{RemoteRepository, part};
use crate::repository::{Hint, RepositoryError};

pub(super) fn run(args: &ListArgs, context: &Context) -> Result<Outcome, CliError> {
    // What one name has is asked for by it; what several have, or a pattern, is chosen here.
    let name = match args.names.as_slice() {
        [name] if !name.contains(['*', '?']) => Some(name.clone()),
        _ => None,
    };
    let filter = ListFilter { name, tag: args.tag.clone(), deleted: args.deleted, ..ListFilter::default() };
    let mut document = listed(&filter, context)?;
    choose(&mut document.backups, args, context)?;
    if args.deleted {
        return deleted(&document, Zone::of(args.utc), context);
    }
    context.print(&document, |out| {
        if document.backups.is_empty() {
            return writeln!(out, "no backups");
        }
        let (now, zone) = (crate::time::now(), Zone::of(args.utc));
        let rows = document.backups.iter().map(|row| {
            vec![
                row.backup.clone(),
                format::age_text(&row.timestamp, now),
                zone.text(&row.timestamp),
                format::bytes(row.size_of_disk),
                format::bytes(row.used_bytes),
                format::bytes(row.new_bytes),
                row.tags.join(","),
                marks(row).join(" "),
            ]
        });
        let header = ["BACKUP", "AGE", "TIME", "SIZE", "USED", "NEW", "TAGS", "MARKS"];
        format::table(out, &header, &[1, 3, 4, 5], rows)?;
        let mut suspects =
            document.backups.iter().filter_map(|row| Some((&row.backup, row.suspect.as_ref()?)));
        suspects.try_for_each(|(backup, why)| writeln!(out, "{backup} is suspect: {why}"))?;
        document.backups.iter().try_for_each(|row| {
            if let Some(why) = &row.inconsistent {
                writeln!(out, "{} is inconsistent: {why}", row.backup)?;
            }
            if row.unreadable_bytes > 0 {
                let bytes = format::bytes(row.unreadable_bytes);
                writeln!(out, "{} has zeros in place of {bytes} that could not be read", row.backup)?;
            }
            Ok(())
        })
    })?;
    Ok(context.outcome())
}

/// Returns what is special about a backup, in one word each.
fn marks(row: &BackupRow) -> Vec<&'static str> {
    let marks = [
        (row.incomplete, "incomplete"),
        (row.damaged, "damaged"),
        (row.suspect.is_some(), "suspect"),
        (row.inconsistent.is_some(), "inconsistent"),
        (row.unreadable_bytes > 0, "bad-sectors"),
        (row.smaller, "smaller"),
        (row.protected, "protected"),
        (row.machine, "machine"),
    ];
    marks.into_iter().filter(|(holds, _)| *holds).map(|(_, mark)| mark).collect()
}

/// Leaves out the backups that were not asked for.
///
/// # Errors
/// A name has none.
fn choose(rows: &mut Vec<BackupRow>, args: &ListArgs, context: &Context) -> Result<(), CliError> {
    for name in &args.names {
        let pattern = WildMatch::new(name);
        if !rows.iter().any(|row| pattern.matches(&row.name)) {
            return Err(nothing_of(name, args, context)?);
        }
    }
    let patterns: Vec<_> = args.names.iter().map(|name| WildMatch::new(name)).collect();
    let is_named = |row: &BackupRow| patterns.is_empty() || patterns.iter().any(|it| it.matches(&row.name));
    let is_since = |row: &BackupRow| {
        let time = row.timestamp.parse::<Timestamp>();
        args.since.is_none_or(|since| time.is_ok_and(|time| time >= since))
    };
    rows.retain(|row| is_named(row) && is_since(row));
    if args.latest {
        let mut last: HashMap<String, u32> = HashMap::new();
        for row in rows.iter() {
            let last = last.entry(row.name.clone()).or_default();
            *last = row.number.max(*last);
        }
        rows.retain(|row| last.get(&row.name) == Some(&row.number));
    }
    Ok(())
}

/// Says why nothing is listed of a name.
fn nothing_of(name: &str, args: &ListArgs, context: &Context) -> Result<CliError, CliError> {
    let names = |deleted| -> Result<Vec<String>, CliError> {
        let filter = ListFilter { deleted, ..ListFilter::default() };
        Ok(listed(&filter, context)?.backups.into_iter().map(|row| row.name).collect())
    };
    let (mut names, deleted) = (names(false)?, names(true)?);
    let is_among = |names: &[String]| names.iter().any(|known| WildMatch::new(name).matches(known));
    if !args.deleted && !is_among(&names) && deleted.iter().any(|known| known == name) {
        return Ok(RepositoryError::AllDeleted { name: name.to_owned() }.into());
    }
    names.extend(deleted);
    let is_known = is_among(&names);
    if !is_known && !name.contains(['*', '?']) {
        let hint = Hint::among(name, names.iter().map(String::as_str));
        return Ok(RepositoryError::UnknownName { name: name.to_owned(), hint }.into());
    }
    let deleted = if args.deleted { "deleted " } else { "" };
    let tag = args.tag.as_ref().map_or_else(String::new, |tag| format!(" with the tag {tag}"));
    let repository = context.repository_name()?.display();
    let message = format!("there is no {deleted}backup of {name}{tag} in {repository}");
    Ok(CliError::new(ErrorKind::NotFound, message))
}

/// Reads the list of backups, here or from the service.
fn listed(filter: &ListFilter, context: &Context) -> Result<BackupList, CliError> {
    match context.network()? {
        Some(remote) => from_service(filter, &remote),
        None => Ok(api::list(&context.open()?, &View::everything(), filter, context.progress())?),
    }
}

/// Lists deleted backups.
fn deleted(document: &BackupList, zone: Zone, context: &Context) -> Result<Outcome, CliError> {
    context.print(document, |out| {
        if document.backups.is_empty() {
            return writeln!(out, "no deleted backups");
        }
        let rows = document.backups.iter().map(|row| {
            let text = |time: &Option<String>| time.as_deref().map(|it| zone.text(it)).unwrap_or_default();
            let (time, deleted, until) = (zone.text(&row.timestamp), &row.deleted, &row.deleted_until);
            vec![row.backup.clone(), time, format::bytes(row.size_of_disk), text(deleted), text(until)]
        });
        format::table(out, &["BACKUP", "TIME", "SIZE", "DELETED", "UNDELETE UNTIL"], &[2], rows)
    })?;
    Ok(context.outcome())
}

/// Asks for page after page.
fn from_service(filter: &ListFilter, remote: &RemoteRepository) -> Result<BackupList, CliError> {
    let mut all = BackupList { backups: Vec::new(), next_marker: None };
    loop {
        let name = filter.name.iter().map(|name| format!("&name={}", part(name)));
        let tag = filter.tag.iter().map(|tag| format!("&tag={}", part(tag)));
        let marker = all.next_marker.iter().map(|marker| format!("&marker={}", part(marker)));
        let deleted = filter.deleted.then(|| "&deleted=true".to_owned());
        let query: String = name.chain(tag).chain(marker).chain(deleted).collect();
        let page: BackupList = remote.get(&format!("/v1/backups?limit={MOST_LISTED}{query}"))?;
        all.backups.extend(page.backups);
        all.next_marker = page.next_marker;
        if all.next_marker.is_none() {
            return Ok(all);
        }
    }
}
