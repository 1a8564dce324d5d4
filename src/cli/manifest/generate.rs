//! `ekko manifest generate`

use serde::Serialize;

use crate::cli::args::GenerateArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::manifest::check_output;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::manifest::{GenerateOptions, ManifestReader, generate};
use crate::segment::Geometry;

#[derive(Serialize)]
struct Document {
    file: String,
    size_of_disk: u64,
    segments: u32,
    runs: usize,
    bytes: u64,
    seed: u64,
}

pub(super) fn run(args: &GenerateArgs, context: &Context) -> Result<Outcome, CliError> {
    let invalid = |what: String| CliError::new(ErrorKind::Invalid, what);
    let size_of_disk = args.backupsize.checked_mul(1 << 30);
    let size_of_disk =
        size_of_disk.ok_or_else(|| invalid(format!("{} GiB is no size of a disk", args.backupsize)))?;
    let geometry =
        Geometry::new(size_of_disk, args.segment_size).map_err(|error| invalid(error.to_string()))?;
    let seed = match args.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let options = GenerateOptions { geometry, seed, fragmented_percent: args.fragmented };
    check_output(&args.file, args.force, args.target_in_use)?;
    generate(&args.file, args.force, &options)?;
    let manifest = ManifestReader::read(&args.file)?;
    let document = Document {
        file: args.file.display().to_string(),
        size_of_disk,
        segments: manifest.present(),
        runs: manifest.runs(),
        bytes: manifest.file_size(),
        seed,
    };
    context.print(&document, |out| {
        let Document { file, segments, runs, seed, .. } = &document;
        let bytes = format::bytes(document.bytes);
        writeln!(out, "generated {file}: {segments} segments in {runs} runs, {bytes}, seed {seed}")
    })?;
    Ok(Outcome::Done)
}

fn random_seed() -> Result<u64, CliError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| {
        CliError::new(ErrorKind::Io, format!("the system has no random numbers: {error}"))
    })?;
    Ok(u64::from_le_bytes(bytes))
}
