//! The beginning of a link: which export, which contexts, and what the server says of it.

//!
//! A server that does not know `NBD_OPT_GO` is asked by `NBD_OPT_EXPORT_NAME`, as the protocol has clients do. One that speaks
//! newstyle, but not fixed newstyle, knows no other option.

use std::io::{self, Read, Write};

use crate::image::nbd::NbdError;
use crate::image::nbd::wire::{
    FIXED_NEWSTYLE, NO_ZEROES, OLDSTYLE_MAGIC, OPTION_MAGIC, REPLY_MAGIC, ReadNumbers, SERVER_MAGIC, info,
    option, reply,
};

/// How many zeros follow the answer to `NBD_OPT_EXPORT_NAME`, unless both sides agree to leave them out.
const ZEROES: usize = 124;

/// The longest reply to an option that is read.
const REPLY_LIMIT: u32 = 64 << 10;
/// The most replies to one option.
const REPLIES_LIMIT: usize = 1024;

/// What was agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The size of the export in bytes.
    pub(super) size: u64,
    /// What the server says of it in flags.
    pub(super) flags: u16,
    /// The longest request, in bytes, if the server says one.
    pub(super) most: Option<u32>,
    /// The contexts that the server knows of those that were asked for: number and name.
    pub(super) contexts: Vec<(u32, String)>,
    /// Whether replies come in chunks.
    pub(super) structured: bool,
}

/// What a server can do, by its greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    /// Whether it answers options that it does not know.
    pub(super) fixed: bool,
    /// Whether zeros follow the answer to `NBD_OPT_EXPORT_NAME`.
    zeroes: bool,
}

/// Greets a server, as every link begins.
pub(super) fn greet(stream: &mut (impl Read + Write)) -> Result<Greeting, NbdError> {
    if stream.u64()? != SERVER_MAGIC {
        return Err(NbdError::protocol("it is no NBD server"));
    }
    match stream.u64()? {
        OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => return Err(NbdError::Oldstyle),
        _ => return Err(NbdError::protocol("its greeting is of no known form")),
    }
    let flags = stream.u16()?;
    let ours = flags & (FIXED_NEWSTYLE | NO_ZEROES);
    stream.write_all(&u32::from(ours).to_be_bytes())?;
    Ok(Greeting { fixed: ours & FIXED_NEWSTYLE != 0, zeroes: ours & NO_ZEROES == 0 })
}

/// Asks a server to go on encrypted.
pub(super) fn ask_for_tls(stream: &mut (impl Read + Write)) -> Result<(), NbdError> {
    send(stream, option::STARTTLS, &[])?;
    let refused = |(_, words)| NbdError::Refused { what: format!("it makes no encrypted links: {words}") };
    replies(stream, option::STARTTLS)?.map_err(refused)?;
    Ok(())
}

/// Agrees with a server that was greeted on an export. What it does not know of `contexts` is left out.
pub(super) fn agree(
    stream: &mut (impl Read + Write),
    greeting: Greeting,
    export: &str,
    contexts: &[String],
) -> Result<Agreed, NbdError> {
    let mut agreed = Agreed::default();
    if !greeting.fixed {
        return choose(stream, greeting, export, agreed);
    }
    send(stream, option::STRUCTURED_REPLY, &[])?;
    agreed.structured = replies(stream, option::STRUCTURED_REPLY)?.is_ok();
    if agreed.structured && !contexts.is_empty() {
        let mut data = text(export);
        data.extend(u32::try_from(contexts.len()).unwrap_or(0).to_be_bytes());
        data.extend(contexts.iter().flat_map(|context| text(context)));
        send(stream, option::SET_META_CONTEXT, &data)?;
        // A server that knows no contexts says that it does not know the option.
        for (kind, data) in replies(stream, option::SET_META_CONTEXT)?.unwrap_or_default() {
            if kind == reply::META_CONTEXT {
                let mut data = data.as_slice();
                let number = data.u32()?;
                let name = String::from_utf8_lossy(data).into_owned();
                agreed.contexts.push((number, name));
            }
        }
    }
    let mut data = text(export);
    data.extend(1_u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    send(stream, option::GO, &data)?;
    let told = replies(stream, option::GO)?;
    if matches!(told, Err((reply::UNSUPPORTED, _))) {
        return choose(stream, greeting, export, agreed);
    }
    let told = told.map_err(|(kind, words)| match kind {
        reply::UNKNOWN_EXPORT => NbdError::Export { export: export.to_owned() },
        reply::TLS_REQUIRED => NbdError::Refused { what: "it wants an encrypted link: nbds://".to_owned() },
        _ => NbdError::Refused { what: format!("it refuses the export {export:?}: {words}") },
    })?;
    let mut size = None;
    for (_, data) in told.iter().filter(|(kind, _)| *kind == reply::INFO) {
        let mut data = data.as_slice();
        match data.u16()? {
            info::EXPORT => {
                size = Some(data.u64()?);
                agreed.flags = data.u16()?;
            }
            info::BLOCK_SIZE => {
                let (_least, _best) = (data.u32()?, data.u32()?);
                agreed.most = Some(data.u32()?);
            }
            _ => {}
        }
    }
    agreed.size = size.ok_or_else(|| NbdError::protocol("it does not say how large the export is"))?;
    Ok(agreed)
}

/// Chooses the export by the oldest option, `NBD_OPT_EXPORT_NAME`.
fn choose(
    stream: &mut (impl Read + Write),
    greeting: Greeting,
    export: &str,
    mut agreed: Agreed,
) -> Result<Agreed, NbdError> {
    send(stream, option::EXPORT_NAME, export.as_bytes())?;
    agreed.size = stream.u64().map_err(|error| match error.kind() {
        // The option has no other answer for an export that the server does not have.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            NbdError::Export { export: export.to_owned() }
        }
        _ => error.into(),
    })?;
    agreed.flags = stream.u16()?;
    if greeting.zeroes {
        stream.array::<ZEROES>()?;
    }
    Ok(agreed)
}

/// A text with its length before it.
fn text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [length.to_be_bytes().as_slice(), text.as_bytes()].concat()
}

pub(super) fn send(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(data);
    Ok(stream.write_all(&bytes)?)
}

/// The replies to an option, up to the one that acknowledges it; or the one that refuses it, with its words.
type Replies = Result<Vec<(u32, Vec<u8>)>, (u32, String)>;

pub(super) fn replies(stream: &mut impl Read, option: u32) -> Result<Replies, NbdError> {
    let mut all = Vec::new();
    while all.len() < REPLIES_LIMIT {
        if stream.u64()? != REPLY_MAGIC || stream.u32()? != option {
            return Err(NbdError::protocol("its reply is to something else"));
        }
        let (kind, length) = (stream.u32()?, stream.u32()?);
        if length > REPLY_LIMIT {
            return Err(NbdError::protocol("its reply is too long"));
        }
        let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
        stream.read_exact(&mut data)?;
        match kind {
            reply::ACK => return Ok(Ok(all)),
            _ if kind & reply::ERROR != 0 => {
                let words = String::from_utf8_lossy(&data).into_owned();
                let words = if words.is_empty() { format!("error {}", kind & !reply::ERROR) } else { words };
                return Ok(Err((kind, words)));
            }
            _ => all.push((kind, data)),
        }
    }
    Err(NbdError::protocol("its replies have no end"))
}
