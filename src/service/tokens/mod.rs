//! Tokens: by what a client shows that it may do something for a project.
//!
//! A token is made by the repository's owner, told once, and kept as its BLAKE3 alone, in `tokens.toml` in the repository.
//! Owns that file, how a token is written, and the service's view of both; knows nothing of requests.

mod file;
mod known;
mod secret;

pub use file::{NewToken, Token, TokenFile};
pub(super) use known::{KnownTokens, TokenTable, WrongToken};
pub use secret::{InvalidTokenId, TokenId, TokenText};
