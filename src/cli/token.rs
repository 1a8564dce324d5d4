//! `ekko token create`, `ekko token list` and `ekko token revoke`

use serde::Serialize;

use crate::cli::Outcome;
use crate::cli::args::{TokenCommand, TokenCreateArgs, TokenRevokeArgs};
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::format::{table, time};
use crate::service::{NewToken, Role, Token, TokenFile};

#[derive(Serialize)]
struct TokenRow {
    id: String,
    project: String,
    role: Role,
    created: String,
    expires: Option<String>,
    expired: bool,
    note: Option<String>,
}

#[derive(Serialize)]
struct TokenList {
    tokens: Vec<TokenRow>,
}

#[derive(Serialize)]
struct Created {
    /// The token itself, this once.
    token: String,
    #[serde(flatten)]
    row: TokenRow,
}

fn row(token: &Token) -> TokenRow {
    TokenRow {
        id: token.id.to_string(),
        project: token.project.to_string(),
        role: token.role,
        created: token.created.to_string(),
        expires: token.expires.map(|end| end.to_string()),
        expired: token.is_expired(crate::time::now()),
        note: token.note.clone(),
    }
}

pub(super) fn run(command: &TokenCommand, context: &Context) -> Result<Outcome, CliError> {
    // Tokens have a lock of their own, so all of this works beside a running service.
    let tokens = TokenFile::of(&context.open()?);
    match command {
        TokenCommand::Create(args) => create(args, &tokens, context),
        TokenCommand::List => list(&tokens, context),
        TokenCommand::Revoke(args) => revoke(args, &tokens, context),
    }
}

fn create(args: &TokenCreateArgs, tokens: &TokenFile, context: &Context) -> Result<Outcome, CliError> {
    let (token, text) = tokens.create(NewToken {
        project: args.project.clone(),
        role: args.role,
        expires: args.expires,
        note: args.note.clone(),
    })?;
    let document = Created { token: text.reveal().to_owned(), row: row(&token) };
    context.print(&document, |out| writeln!(out, "{}", document.token))?;
    if !context.json {
        let note = format!(
            "this is token {} (project {}, role {}); it is not shown again",
            token.id, token.project, token.role
        );
        context.progress().line(&note);
    }
    Ok(Outcome::Done)
}

fn list(tokens: &TokenFile, context: &Context) -> Result<Outcome, CliError> {
    let tokens = tokens.list()?;
    let document = TokenList { tokens: tokens.iter().map(row).collect() };
    let now = crate::time::now();
    context.print(&document, |out| {
        let rows = tokens.iter().map(|token| {
            let end = match token.expires {
                Some(end) if token.is_expired(now) => format!("expired {}", time(end)),
                Some(end) => time(end),
                None => "never".to_owned(),
            };
            let note = token.note.clone().unwrap_or_default();
            vec![
                token.id.to_string(),
                token.project.to_string(),
                token.role.to_string(),
                time(token.created),
                end,
                note,
            ]
        });
        table(out, &["ID", "PROJECT", "ROLE", "CREATED", "EXPIRES", "NOTE"], &[], rows)
    })?;
    Ok(Outcome::Done)
}

fn revoke(args: &TokenRevokeArgs, tokens: &TokenFile, context: &Context) -> Result<Outcome, CliError> {
    let document = row(&tokens.revoke(args.id)?);
    context.print(&document, |out| {
        writeln!(out, "token {} of {} ({}) is no longer let in", document.id, document.project, document.role)
    })?;
    Ok(Outcome::Done)
}
