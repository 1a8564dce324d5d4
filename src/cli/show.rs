//! `ekko show`

use crate::api::{self, View};
use crate::cli::args::ShowArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};

pub(super) fn run(args: &ShowArgs, context: &Context) -> Result<Outcome, CliError> {
    let document = api::show(&context.open()?, &View::everything(), &args.backup)?;
    context.print(&document, |out| {
        let segments = format!(
            "{} of {}: {} present, {} changed by this backup",
            document.segments,
            format::bytes(u64::from(document.segment_size)),
            document.present_segments,
            document.stored_by_this_backup,
        );
        let manifest = document.manifest.as_deref().unwrap_or(&document.manifest_blake3);
        let mut pairs = vec![
            ("backup", document.backup.clone()),
            ("name", document.name.clone()),
            ("backupset", document.backupset.clone()),
            ("time", format::time_text(&document.timestamp)),
            ("size of disk", format::bytes(document.size_of_disk)),
            ("segments", segments),
            ("bases", document.bases.join(", ")),
            ("tags", document.tags.join(", ")),
            ("suspect", document.suspect.clone().unwrap_or_default()),
            ("manifest", format!("{manifest} ({})", format::bytes(document.manifest_bytes))),
        ];
        pairs.extend(document.attributes.iter().map(|(key, value)| (key.as_str(), value.clone())));
        pairs.retain(|(_, value)| !value.is_empty());
        format::pairs(out, &pairs)
    })?;
    Ok(Outcome::Done)
}
