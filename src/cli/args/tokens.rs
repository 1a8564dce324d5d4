//! The arguments about tokens.

use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::api::Project;
use crate::cli::args::changes::moment;
use crate::manifest::Note;
use crate::repository::span;
use crate::service::{Role, TokenId};

/// The commands about tokens.
#[derive(Debug, Subcommand)]
pub(in crate::cli) enum TokenCommand {
    /// Make a token, and show it once
    #[command(
        after_help = "The token is printed to stdout and kept nowhere: whoever has it can do what its role allows. Roles, each \
                            with all before it: restore reads, backup adds, operator deletes and collects garbage, admin looks \
                            after the service.\n\n\
                            Example:\n  ekko -r /backup/store token create --project blue --role backup --expires 365d --note host7"
    )]
    Create(TokenCreateArgs),
    /// List the tokens, never what they are
    #[command(after_help = "Example:\n  ekko -r /backup/store token list")]
    List,
    /// End a token: the next request that shows it is refused
    #[command(after_help = "Example:\n  ekko -r /backup/store token revoke 3f9a0c11d2e45b67")]
    Revoke(TokenRevokeArgs),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct TokenCreateArgs {
    /// Whose images it is for: those whose names begin with PROJECT:
    #[arg(long, value_name = "PROJECT")]
    pub(in crate::cli) project: Project,
    /// What it allows: restore, backup, operator or admin
    #[arg(long, value_name = "ROLE")]
    pub(in crate::cli) role: Role,
    /// When its time is over: after a duration, or at a date or time in UTC, e.g. 90d, 2027-01-31 or 2027-01-31T12:00:00Z
    /// [default: never]
    #[arg(long, value_name = "DURATION|DATE", value_parser = end)]
    pub(in crate::cli) expires: Option<Timestamp>,
    /// A note, e.g. the host that uses it
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) note: Option<Note>,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct TokenRevokeArgs {
    /// The token, by its id
    pub(in crate::cli) id: TokenId,
}

fn end(text: &str) -> Result<Timestamp, String> {
    let after = || crate::time::now().checked_add(span(text)?).ok();
    let end = moment(text).ok().or_else(after);
    end.ok_or_else(|| "a duration is e.g. 90d, a date 2027-01-31, a time 2027-01-31T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_date_a_time_or_a_while_from_now() {
        assert_eq!(end("2027-01-31").unwrap(), "2027-01-31T00:00:00Z".parse().unwrap());
        assert_eq!(end("2027-01-31T12:00:00Z").unwrap(), "2027-01-31T12:00:00Z".parse().unwrap());
        let hours = end("90d").unwrap().duration_since(crate::time::now()).as_hours();
        assert!((90 * 24 - 1..=90 * 24).contains(&hours), "{hours}");
        for text in ["", "soon", "-1h", "2027-13-01"] {
            assert!(end(text).is_err(), "{text}");
        }
    }
}
