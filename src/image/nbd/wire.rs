//! The numbers of the NBD protocol (`doc/proto.md` of the NBD project), and reading them. All are big-endian.

use std::io::{self, Read};

pub(super) const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What a server of the oldstyle protocol sends in the place of [`OPTION_MAGIC`].
pub(super) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_MAGIC: u32 = 0x668e_33ef;

/// Flags of the handshake: fixed newstyle, and no zeros behind the old way to choose an export.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

/// Options.
pub(super) mod option {
    pub(in crate::image::nbd) const EXPORT_NAME: u32 = 1;
    pub(in crate::image::nbd) const ABORT: u32 = 2;
    pub(in crate::image::nbd) const STARTTLS: u32 = 5;
    pub(in crate::image::nbd) const GO: u32 = 7;
    pub(in crate::image::nbd) const STRUCTURED_REPLY: u32 = 8;
    pub(in crate::image::nbd) const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options.
pub(super) mod reply {
    pub(in crate::image::nbd) const ACK: u32 = 1;
    pub(in crate::image::nbd) const INFO: u32 = 3;
    pub(in crate::image::nbd) const META_CONTEXT: u32 = 4;
    /// All from here on are errors.
    pub(in crate::image::nbd) const ERROR: u32 = 1 << 31;
    pub(in crate::image::nbd) const UNSUPPORTED: u32 = ERROR + 1;
    pub(in crate::image::nbd) const UNKNOWN_EXPORT: u32 = ERROR + 6;
    pub(in crate::image::nbd) const TLS_REQUIRED: u32 = ERROR + 5;
}

/// What is told of an export.
pub(super) mod info {
    pub(in crate::image::nbd) const EXPORT: u16 = 0;
    pub(in crate::image::nbd) const BLOCK_SIZE: u16 = 3;
}

/// Commands.
pub(super) mod command {
    pub(in crate::image::nbd) const READ: u16 = 0;
    pub(in crate::image::nbd) const WRITE: u16 = 1;
    pub(in crate::image::nbd) const DISCONNECT: u16 = 2;
    pub(in crate::image::nbd) const FLUSH: u16 = 3;
    pub(in crate::image::nbd) const WRITE_ZEROES: u16 = 6;
    pub(in crate::image::nbd) const BLOCK_STATUS: u16 = 7;
}

/// What an export can do.
pub(super) mod transmission {
    pub(in crate::image::nbd) const READ_ONLY: u16 = 1 << 1;
    pub(in crate::image::nbd) const FLUSH: u16 = 1 << 2;
    pub(in crate::image::nbd) const WRITE_ZEROES: u16 = 1 << 6;
    pub(in crate::image::nbd) const SEND_DF: u16 = 1 << 7;
}

/// The flag of a read whose reply is one chunk: data or an error.
pub(super) const DONT_FRAGMENT: u16 = 1 << 2;

/// Chunks of structured replies.
pub(super) mod chunk {
    /// The flag of the last chunk of a reply.
    pub(in crate::image::nbd) const DONE: u16 = 1;
    pub(in crate::image::nbd) const NONE: u16 = 0;
    pub(in crate::image::nbd) const DATA: u16 = 1;
    pub(in crate::image::nbd) const HOLE: u16 = 2;
    pub(in crate::image::nbd) const BLOCK_STATUS: u16 = 5;
    /// All from here on are errors.
    pub(in crate::image::nbd) const ERROR: u16 = 1 << 15;
}

/// The header of a request.
pub(super) fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    let fields: [&[u8]; 6] = [
        &REQUEST_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    for (byte, from) in bytes.iter_mut().zip(fields.concat()) {
        *byte = from;
    }
    bytes
}

/// Reads numbers from a stream.
pub(super) trait ReadNumbers: Read {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

impl<R: Read + ?Sized> ReadNumbers for R {}
