//! `ekko init`

use serde::Serialize;

use crate::cli::args::InitArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format, mounts};
use crate::codec::CompressionSetting;
use crate::error::ErrorKind;
use crate::repository::{InitOptions, Repository, RepositoryError};

#[derive(Serialize)]
struct Document {
    repository: String,
    id: String,
    segment_size: u32,
    compression: String,
}

pub(super) fn run(args: &InitArgs, context: &Context) -> Result<Outcome, CliError> {
    let path = context.repository_path()?;
    if let Some(advice) = mounts::advice(path) {
        let message = format!("cannot create repository {}: {advice}", path.display());
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let compression = args.compression.unwrap_or_else(|| CompressionSetting::for_segments(args.segment_size));
    let options = InitOptions { segment_size: args.segment_size, compression };
    let repository = Repository::init(path, &options).map_err(|error| match error {
        // The path is wrong, not the repository.
        RepositoryError::Occupied { .. } => CliError::new(ErrorKind::Invalid, error.to_string()),
        error => error.into(),
    })?;
    let settings = repository.settings();
    let document = Document {
        repository: path.display().to_string(),
        id: settings.repository.to_string(),
        segment_size: settings.segment_size.bytes(),
        compression: settings.compression.to_string(),
    };
    context.print(&document, |out| {
        let size = format::bytes(u64::from(document.segment_size));
        writeln!(out, "made repository {} with segments of {size}", document.repository)
    })?;
    Ok(Outcome::Done)
}
