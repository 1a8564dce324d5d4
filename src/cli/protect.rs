//! `ekko protect`, `ekko unprotect`, `ekko rename` and `ekko retire`

use crate::api::{self, ProtectionDocument, View};
use crate::cli::args::{ProtectArgs, RenameArgs, RetireArgs, UnprotectArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::{Outcome, over_service};
use crate::error::ErrorKind;
use crate::repository::{BackupSelector, Protection};

pub(super) fn protect(args: &ProtectArgs, context: &Context) -> Result<Outcome, CliError> {
    if let Some(until) = args.until.filter(|until| *until <= crate::time::now()) {
        let message = format!("cannot protect {} until {until}: that is in the past", args.backup);
        return Err(CliError::new(ErrorKind::Invalid, message));
    }
    let protection = args.until.map_or(Protection::Always, Protection::Until);
    set(&args.backup, protection, args.shorten, context)
}

pub(super) fn unprotect(args: &UnprotectArgs, context: &Context) -> Result<Outcome, CliError> {
    set(&args.backup, Protection::None, false, context)
}

fn set(
    selector: &BackupSelector,
    protection: Protection,
    shorten: bool,
    context: &Context,
) -> Result<Outcome, CliError> {
    let document = if let Some(remote) = context.service()? {
        over_service::protect(selector, protection, shorten, &remote)?
    } else {
        let writer = context.open_with_reserve(1)?;
        let document = api::protect(&writer, &View::everything(), selector, protection, shorten)?;
        writer.close()?;
        document
    };
    context.print(&document, |out| {
        let ProtectionDocument { backup, until, .. } = &document;
        match (document.protected, until) {
            (false, _) => writeln!(out, "{backup} is not protected"),
            (true, None) => writeln!(out, "{backup} is protected"),
            (true, Some(until)) => writeln!(out, "{backup} is protected until {until}"),
        }
    })?;
    Ok(Outcome::Done)
}

pub(super) fn rename(args: &RenameArgs, context: &Context) -> Result<Outcome, CliError> {
    let document = if let Some(remote) = context.service()? {
        over_service::rename(args, &remote)?
    } else {
        let writer = context.open_with_reserve(1)?;
        let document = api::rename(&writer, &View::everything(), &args.from, &args.to)?;
        writer.close()?;
        document
    };
    context.print(&document, |out| writeln!(out, "{} is now {}", document.from, document.to))?;
    Ok(Outcome::Done)
}

pub(super) fn retire(args: &RetireArgs, context: &Context) -> Result<Outcome, CliError> {
    let document = if let Some(remote) = context.service()? {
        over_service::retire(args, &remote)?
    } else {
        let writer = context.open_with_reserve(1)?;
        let document = api::retire(&writer, &View::everything(), &args.name)?;
        writer.close()?;
        document
    };
    context.print(&document, |out| {
        writeln!(out, "{} is retired: \"ekko status\" expects no backups of it", document.name)
    })?;
    Ok(Outcome::Done)
}
