//! `ekko list`

use crate::api::{self, ListFilter, View};
use crate::cli::args::ListArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;

pub(super) fn run(args: &ListArgs, context: &Context) -> Result<Outcome, CliError> {
    let repository = context.open()?;
    let name = args.name.as_ref().map(ToString::to_string);
    let filter = ListFilter { name, ..ListFilter::default() };
    let document = api::list(&repository, &View::everything(), &filter, context.progress())?;
    if let Some(name) = args.name.as_ref().filter(|_| document.backups.is_empty()) {
        let message = format!("there is no backup of {name} in {}", repository.layout().root().display());
        return Err(CliError::new(ErrorKind::NotFound, message));
    }
    context.print(&document, |out| {
        let rows = document.backups.iter().map(|row| {
            let (time, size) = (format::time_text(&row.timestamp), format::bytes(row.size_of_disk));
            vec![row.backup.clone(), time, size, row.segments.to_string(), row.name.clone()]
        });
        format::table(out, &["BACKUP", "TIME", "SIZE OF DISK", "SEGMENTS", "NAME"], &[2, 3], rows)?;
        let mut suspects =
            document.backups.iter().filter_map(|row| Some((&row.backup, row.suspect.as_ref()?)));
        suspects.try_for_each(|(backup, why)| writeln!(out, "{backup} is suspect: {why}"))
    })?;
    Ok(context.outcome())
}
