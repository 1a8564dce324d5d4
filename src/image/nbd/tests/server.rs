//! A server of ours, which keeps to the protocol or not as a test wants it.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

use crate::image::ImageError;
use crate::image::nbd::wire::{
    DONT_FRAGMENT, OPTION_MAGIC, REPLY_MAGIC, ReadNumbers, SERVER_MAGIC, SIMPLE_MAGIC, STRUCTURED_MAGIC,
    chunk, command, info, option, reply, transmission,
};
use crate::image::nbd::{ALLOCATION, DEPTH, NbdImage};

pub(super) const K: u64 = 64 << 10;
/// The first byte of the sector that [`Manner::BadSector`] cannot read.
pub(super) const BAD_SECTOR: u64 = 4 * K + 1024;

/// What a server does otherwise than it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Good,
    /// It knows neither chunks nor contexts.
    Simple,
    /// It answers two reads in the other order, each in two chunks that are mixed.
    Mixed,
    /// The link ends after so many bytes of replies, on each of the first ten links.
    Drops(usize),
    /// The same, on every link.
    AlwaysDrops,
    /// The export is larger on the second link; the first ends at once.
    Grows,
    SaysNothing,
    WrongCookie,
    WrongMagic,
    SendsTwice,
    SendsLess,
    SendsMore,
    SendsElsewhere,
    Fails,
    EmptyRange,
    NoRanges,
    NoExport,
    Old,
    /// It knows one option, `NBD_OPT_EXPORT_NAME`, and says of others that it does not.
    ExportName,
    /// The same, and it cannot say so.
    NotFixed,
    /// It accepts links and says nothing.
    Silent,
    /// It answers no read.
    NoReads,
    /// It cannot read one sector: it drops the link, unless the reply is to be one piece.
    BadSector,
    /// Its disk has room for one write.
    Full,
    /// The link goes on encrypted, if the client shows who it is.
    Encrypted,
}

pub(super) struct Server {
    pub(super) folder: tempfile::TempDir,
    pub(super) links: Arc<AtomicUsize>,
}

/// 40 times 64 KiB, of which each third is a hole.
pub(super) fn disk() -> &'static [u8] {
    static DISK: LazyLock<Vec<u8>> = LazyLock::new(|| {
        (0..40_u8).flat_map(|part| vec![if part % 3 == 2 { 0 } else { part + 1 }; 65_536]).collect()
    });
    &DISK
}

fn put(stream: &mut impl Write, fields: &[&[u8]]) -> io::Result<()> {
    stream.write_all(&fields.concat())
}

impl Server {
    pub(super) fn start(manner: Manner) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let links = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&links);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let link = count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // The client has gone, or the server wanted to.
                    let _ = match manner {
                        Manner::Encrypted => serve_encrypted(stream, link),
                        _ => greet(&stream, manner).and_then(|()| serve(&stream, manner, link)),
                    };
                });
            }
        });
        Self { folder, links }
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("nbd+unix:///vda?socket={}", self.folder.path().join("socket").display()).into()
    }

    pub(super) fn open(&self) -> Result<NbdImage, ImageError> {
        NbdImage::open(&self.path(), Some("b0"), None)
    }
}

fn option_reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    put(stream, &[&REPLY_MAGIC.to_be_bytes(), &option.to_be_bytes(), &kind.to_be_bytes(), &length, data])
}

fn greet(mut stream: &UnixStream, manner: Manner) -> io::Result<()> {
    let magic = if manner == Manner::Old { 0x0000_4202_8186_1253 } else { OPTION_MAGIC };
    let flags: u16 = match manner {
        // Zeros follow the export's size.
        Manner::ExportName => 1,
        Manner::NotFixed => 0,
        Manner::Silent => return stream.read_exact(&mut [0]),
        _ => 3,
    };
    put(&mut stream, &[&SERVER_MAGIC.to_be_bytes(), &magic.to_be_bytes(), &flags.to_be_bytes()])?;
    stream.u32()?;
    Ok(())
}

pub(super) fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls")
}

fn serve_encrypted(mut stream: UnixStream, link: usize) -> io::Result<()> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    greet(&stream, Manner::Encrypted)?;
    stream.u64()?;
    if stream.u32()? != option::STARTTLS {
        return option_reply(&mut stream, option::STRUCTURED_REPLY, reply::TLS_REQUIRED, &[]);
    }
    stream.u32()?;
    option_reply(&mut stream, option::STARTTLS, reply::ACK, &[])?;
    let folder = certificates();
    let chain =
        |file: &str| CertificateDer::pem_file_iter(folder.join(file)).unwrap().map(Result::unwrap).collect();
    let mut roots = rustls::RootCertStore::empty();
    let all: Vec<CertificateDer<'_>> = chain("ca-cert.pem");
    for one in all {
        roots.add(one).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let configuration = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            chain("server-cert.pem"),
            PrivateKeyDer::from_pem_file(folder.join("server-key.pem")).unwrap(),
        )
        .unwrap();
    let connection = rustls::ServerConnection::new(Arc::new(configuration)).unwrap();
    // The first two links end in the middle, as an attacker could have them end.
    let manner = if link < 2 { Manner::Drops(300_000) } else { Manner::Good };
    serve(rustls::StreamOwned::new(connection, stream), manner, link)
}

fn serve(mut stream: impl Read + Write, manner: Manner, link: usize) -> io::Result<()> {
    let size = (disk().len() as u64) + if manner == Manner::Grows && link > 0 { 512 } else { 0 };
    let mut structured = false;
    loop {
        stream.u64()?;
        let (option, length) = (stream.u32()?, stream.u32()?);
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        let is_oldest = matches!(manner, Manner::ExportName | Manner::NotFixed);
        match option {
            option::EXPORT_NAME if is_oldest && data == b"vda" => {
                put(&mut stream, &[&size.to_be_bytes(), &1_u16.to_be_bytes(), &[0; 124]])?;
                break;
            }
            _ if manner == Manner::ExportName && option != option::EXPORT_NAME => {
                option_reply(&mut stream, option, reply::UNSUPPORTED, b"what?")?;
            }
            option::STRUCTURED_REPLY | option::SET_META_CONTEXT if manner == Manner::Simple => {
                option_reply(&mut stream, option, reply::ERROR + 1, b"what?")?;
            }
            option::STRUCTURED_REPLY => {
                structured = true;
                option_reply(&mut stream, option, reply::ACK, &[])?;
            }
            option::SET_META_CONTEXT => {
                for (number, name) in [(5_u32, ALLOCATION), (6, "qemu:dirty-bitmap:b0"), (7, DEPTH)] {
                    let data = [&number.to_be_bytes(), name.as_bytes()].concat();
                    option_reply(&mut stream, option, reply::META_CONTEXT, &data)?;
                }
                option_reply(&mut stream, option, reply::ACK, &[])?;
            }
            option::GO if manner == Manner::NoExport => {
                option_reply(&mut stream, option, reply::UNKNOWN_EXPORT, &[])?;
            }
            option::GO => {
                let flags = if manner == Manner::BadSector { 1 | transmission::SEND_DF } else { 1 };
                let export =
                    [&info::EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
                option_reply(&mut stream, option, reply::INFO, &export)?;
                let sizes = [
                    &info::BLOCK_SIZE.to_be_bytes()[..],
                    &[0, 0, 0, 1],
                    &[0, 0, 16, 0],
                    &100_000_u32.to_be_bytes(),
                ];
                option_reply(&mut stream, option, reply::INFO, &sizes.concat())?;
                option_reply(&mut stream, option, reply::ACK, &[])?;
                break;
            }
            _ => return Ok(()),
        }
    }
    let mut left = match manner {
        Manner::Drops(bytes) if link < 10 => bytes,
        Manner::AlwaysDrops | Manner::Grows if link == 0 || manner == Manner::AlwaysDrops => 0,
        _ => usize::MAX,
    };
    let mut held = Vec::new();
    loop {
        stream.u32()?;
        let (flags, kind, cookie) = (stream.u16()?, stream.u16()?, stream.u64()?);
        let (offset, length) = (stream.u64()?, stream.u32()?);
        let mut bytes = Vec::new();
        let has_bad_sector = offset < BAD_SECTOR + 512 && offset + u64::from(length) > BAD_SECTOR;
        match kind {
            command::READ if manner == Manner::NoReads => continue,
            command::READ if manner == Manner::BadSector && has_bad_sector => {
                if flags & DONT_FRAGMENT == 0 || length > 65_536 {
                    return Ok(());
                }
                let error = [&5_u32.to_be_bytes()[..], &0_u16.to_be_bytes()].concat();
                bytes = chunk_of(cookie, chunk::ERROR + 1, true, &error);
            }
            command::READ => bytes = read_replies(manner, structured, (cookie, offset, length)),
            command::BLOCK_STATUS => {
                for context in [5_u32, 6, 7] {
                    let mut states = Vec::new();
                    let mut at = offset;
                    while at < disk().len() as u64 && states.len() < 7 * 8 {
                        let end = (at / K + 1) * K;
                        // Every third is a hole; the bitmap has the first and the last 64 KiB.
                        let state: u32 = match (context, at / K) {
                            (5, part) => {
                                if part % 3 == 2 {
                                    3
                                } else {
                                    0
                                }
                            }
                            // The top image has the first and the 20th; all others are in the one below it.
                            (7, part) => {
                                if part == 0 || part == 20 {
                                    1
                                } else {
                                    2
                                }
                            }
                            (_, part) => u32::from(part == 0 || part == 39),
                        };
                        let length =
                            if manner == Manner::EmptyRange { 0 } else { u32::try_from(end - at).unwrap() };
                        states.extend([length.to_be_bytes(), state.to_be_bytes()].concat());
                        at = end;
                    }
                    if manner == Manner::NoRanges {
                        states.clear();
                        states.extend([0; 8]);
                    }
                    let data = [&context.to_be_bytes()[..], &states].concat();
                    bytes.extend(chunk_of(cookie, chunk::BLOCK_STATUS, context == 7, &data));
                }
            }
            command::WRITE => {
                let mut payload = vec![0; length as usize];
                stream.read_exact(&mut payload)?;
                let no_space = [&28_u32.to_be_bytes()[..], &0_u16.to_be_bytes()].concat();
                bytes = match offset {
                    0x0010_0000 => chunk_of(cookie, chunk::NONE, true, &[]),
                    _ => chunk_of(cookie, chunk::ERROR + 1, true, &no_space),
                };
            }
            _ => return Ok(()),
        }
        if manner == Manner::SaysNothing {
            return Ok(());
        }
        if manner == Manner::Mixed && kind == command::READ && held.is_empty() && length > 1000 {
            held = bytes;
            continue;
        }
        bytes.append(&mut held);
        let now = bytes.len().min(left);
        stream.write_all(&bytes[..now])?;
        left -= now;
        if left == 0 {
            // What was said so far may come, and no more.
            return stream.flush();
        }
    }
}

fn chunk_of(cookie: u64, kind: u16, last: bool, data: &[u8]) -> Vec<u8> {
    let flags = u16::from(last);
    let length = u32::try_from(data.len()).unwrap();
    let head: [&[u8]; 5] = [
        &STRUCTURED_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    [head.concat().as_slice(), data].concat()
}

fn read_replies(manner: Manner, structured: bool, (cookie, offset, length): (u64, u64, u32)) -> Vec<u8> {
    let disk = disk();
    let from = usize::try_from(offset).unwrap();
    let data = &disk[from..from + length as usize];
    if !structured {
        let magic = if manner == Manner::WrongMagic { 7 } else { SIMPLE_MAGIC };
        return [&magic.to_be_bytes()[..], &0_u32.to_be_bytes(), &cookie.to_be_bytes(), data].concat();
    }
    let part = |from: usize, part: &[u8]| [&(offset + from as u64).to_be_bytes()[..], part].concat();
    let half = data.len() / 2;
    let first = chunk_of(cookie, chunk::DATA, false, &part(0, &data[..half]));
    let rest = &data[half..];
    let second = if rest.iter().all(|byte| *byte == 0) {
        let length = u32::try_from(rest.len()).unwrap();
        chunk_of(cookie, chunk::HOLE, true, &part(half, &length.to_be_bytes()))
    } else {
        chunk_of(cookie, chunk::DATA, true, &part(half, rest))
    };
    match manner {
        Manner::WrongCookie => chunk_of(cookie + 1000, chunk::DATA, true, &part(0, data)),
        Manner::WrongMagic => [7; 40].to_vec(),
        Manner::SendsTwice => [first.clone(), first, chunk_of(cookie, chunk::NONE, true, &[])].concat(),
        Manner::SendsLess => [first, chunk_of(cookie, chunk::NONE, true, &[])].concat(),
        Manner::SendsMore => chunk_of(cookie, chunk::DATA, true, &part(1, data)),
        Manner::SendsElsewhere => {
            chunk_of(cookie, chunk::DATA, true, &[&(offset.wrapping_sub(1)).to_be_bytes()[..], data].concat())
        }
        Manner::Fails => {
            let words = [&5_u32.to_be_bytes()[..], &3_u16.to_be_bytes(), b"bad"].concat();
            chunk_of(cookie, chunk::ERROR + 1, true, &words)
        }
        // The last chunk may come first only if it is not marked so; an empty one ends it.
        Manner::Mixed => {
            let mut second = second;
            second[5] = 0;
            [second, first, chunk_of(cookie, chunk::NONE, true, &[])].concat()
        }
        _ => [first, second].concat(),
    }
}
