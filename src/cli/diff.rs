//! `ekko diff`

use std::io::{self, BufWriter, Write};

use serde::Serialize;

use crate::cli::args::DiffArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format, manifest};
use crate::manifest::{Difference, ManifestDiff};

/// A range as `rbd diff --format json` prints it: `exists` is text there.
#[derive(Serialize)]
struct Row {
    offset: u64,
    length: u64,
    exists: &'static str,
}

pub(super) fn run(args: &DiffArgs, context: &Context) -> Result<Outcome, CliError> {
    let older = manifest::open(&args.older, context)?;
    let newer = manifest::open(&args.newer, context)?;
    let diff = ManifestDiff::of(&older, &newer)?;
    // Written as it is found: the ranges of a large disk are no document to hold in memory.
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut first = true;
    let (mut changed, mut zeroed) = (0, 0);
    if context.json {
        write!(out, "[")?;
    }
    diff.for_each(|difference| {
        let Difference { offset, length, exists } = difference;
        *if exists { &mut changed } else { &mut zeroed } += length;
        if context.json {
            out.write_all(if first { b"\n" } else { b",\n" })?;
            first = false;
            let exists = if exists { "true" } else { "false" };
            serde_json::to_writer(&mut out, &Row { offset, length, exists }).map_err(io::Error::from)
        } else {
            writeln!(out, "{offset:>16} {length:>16} {}", if exists { "data" } else { "zero" })
        }
    })?;
    if context.json {
        writeln!(out, "\n]")?;
    } else {
        let sizes = [&older, &newer].map(|manifest| manifest.info().geometry.size_of_disk());
        if let [before, after] = sizes
            && before != after
        {
            writeln!(out, "the disk had {before} bytes and has {after}")?;
        }
        let (changed, zeroed) = (format::bytes(changed), format::bytes(zeroed));
        writeln!(out, "{changed} hold other data, {zeroed} became zero")?;
    }
    out.flush()?;
    Ok(context.outcome())
}
