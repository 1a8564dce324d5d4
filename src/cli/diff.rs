//! `ekko diff`

use std::io::Write;

use crate::api::write_diff;
use crate::cli::args::DiffArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::terminal::{Json, Lines, Stream};
use crate::cli::{Outcome, format, manifest};
use crate::manifest::{Difference, ManifestDiff};

pub(super) fn run(args: &DiffArgs, context: &Context) -> Result<Outcome, CliError> {
    let older = manifest::open(&args.older, context)?;
    let newer = manifest::open(&args.newer, context)?;
    let diff = ManifestDiff::of(&older, &newer)?;
    let [before, after] = [older.info(), newer.info()];
    if before.name == after.name && before.timestamp > after.timestamp {
        let (older, newer) = (&args.newer, &args.older);
        context.progress().line(&format!(
            "note: {newer} is newer than {older}; \"ekko diff {older} {newer}\" shows what changed since {older}"
        ));
    }
    // Written as it is found: the ranges of a large disk are no document to hold in memory.
    if context.json {
        let mut out = Json::to(Stream::Stdout);
        write_diff(&diff, &mut out)?;
        out.flush()?;
        return Ok(context.outcome());
    }
    let mut out = Lines::to(Stream::Stdout);
    let (mut changed, mut zeroed) = (0, 0);
    diff.for_each(|difference| {
        let Difference { offset, length, exists } = difference;
        *if exists { &mut changed } else { &mut zeroed } += length;
        writeln!(out, "{offset:>16} {length:>16} {}", if exists { "data" } else { "zero" })
    })?;
    let sizes = [&older, &newer].map(|manifest| manifest.info().geometry.size_of_disk());
    if let [before, after] = sizes
        && before != after
    {
        writeln!(out, "the disk had {before} bytes and has {after}")?;
    }
    let (changed, zeroed) = (format::bytes(changed), format::bytes(zeroed));
    writeln!(out, "{changed} hold other data, {zeroed} became zero")?;
    out.finish()?;
    Ok(context.outcome())
}
