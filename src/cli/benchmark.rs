//! `ekko benchmark`

use std::collections::BTreeMap;

use serde::Serialize;

use crate::backup::BackupError;
use crate::backup::benchmark::{Bounds, Sample, write_rate};
use crate::cli::args::BenchmarkArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, format};
use crate::error::ErrorKind;
use crate::image::RawImage;
use crate::repository::RepositoryError;
use crate::storage::OsStorage;

#[derive(Serialize)]
struct Document {
    cores: usize,
    segment_size: u32,
    compression: String,
    bytes_per_second: BTreeMap<&'static str, f64>,
    stored_ratio: f64,
    data_bytes: u64,
    bound_seconds: Seconds,
}

#[derive(Serialize)]
struct Seconds {
    first: f64,
    again: f64,
    restore: f64,
}

pub(super) fn run(args: &BenchmarkArgs, context: &Context) -> Result<Outcome, CliError> {
    let cores = args.jobs.number();
    let compression = args.compression.unwrap_or_default();
    let sample = match &args.source {
        Some(path) => Sample::of(&RawImage::open(path)?, args.segment_size)?,
        None => Sample::made_up(args.segment_size),
    };
    if sample.is_empty() {
        return Err(CliError::new(
            ErrorKind::Invalid,
            "the source has no data: there is nothing to measure with",
        ));
    }
    let rates = sample.rates(compression, cores).map_err(BackupError::from)?;
    let folder = context.repository_path().ok().filter(|path| path.is_dir());
    let write =
        folder.map(|folder| write_rate(&OsStorage, folder)).transpose().map_err(RepositoryError::from)?;
    let bytes_per_second: BTreeMap<_, _> = [
        ("zero_test", Some(rates.zero_test)),
        ("blake3", Some(rates.blake3)),
        ("sha1", Some(rates.sha1)),
        ("compress", Some(rates.compress)),
        ("decompress", Some(rates.decompress)),
        ("read", sample.read),
        ("write", write),
    ]
    .into_iter()
    .filter_map(|(what, rate)| Some((what, rate?)))
    .collect();
    let Bounds { first, again, restore } = rates.bounds(sample.data_bytes, cores);
    let document = Document {
        cores,
        segment_size: args.segment_size.bytes(),
        compression: compression.to_string(),
        bytes_per_second,
        stored_ratio: rates.stored,
        data_bytes: sample.data_bytes,
        bound_seconds: Seconds { first, again, restore },
    };
    context.print(&document, |out| {
        let meaning = [
            ("zero_test", "the test for zeros"),
            ("blake3", "BLAKE3"),
            ("sha1", "SHA-1"),
            ("compress", "compression"),
            ("decompress", "decompression"),
            ("read", "reading the source, one thread"),
            ("write", "writing to the repository, durably"),
        ];
        let data = format::bytes(document.data_bytes);
        let mut rows: Vec<(&str, String)> = meaning
            .into_iter()
            .filter_map(|(key, text)| {
                Some((text, format!("{:.2} GB/s", document.bytes_per_second.get(key)? / 1e9)))
            })
            .collect();
        rows.push(("stored", format!("{:.0} % with {compression}", document.stored_ratio * 100.0)));
        rows.push(("a first backup", format!("at least {first:.2} s for {data} on {cores} threads")));
        rows.push(("an unchanged one", format!("at least {again:.2} s")));
        rows.push(("a restore", format!("at least {restore:.2} s")));
        writeln!(out, "one thread, while {cores} are busy:")?;
        format::pairs(out, &rows)
    })?;
    Ok(Outcome::Done)
}
