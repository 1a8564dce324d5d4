//! Lengths that are not true: in packs, and of sparse files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::harness::World;

/// A pack whose bytes are changed so that its checksums fit: whoever makes a pack can do that, as its key stands in it.
struct Pack {
    file: File,
    key: [u8; 32],
}

impl Pack {
    fn open(path: &Path) -> Self {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut key = [0; 32];
        file.read_exact_at(&mut key, 32).unwrap();
        Self { file, key }
    }

    fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    fn checksum(&self, at: u64, covered: &[u8]) -> [u8; 32] {
        *blake3::Hasher::new_keyed(&self.key).update(&at.to_le_bytes()).update(covered).finalize().as_bytes()
    }

    /// Changes the header of the record at an offset.
    fn change_header(&self, at: u64, change: impl FnOnce(&mut [u8; 256])) {
        let mut header = [0; 256];
        self.file.read_exact_at(&mut header, at).unwrap();
        change(&mut header);
        let checksum = self.checksum(at, &header[..224]);
        header[224..].copy_from_slice(&checksum);
        self.file.write_all_at(&header, at).unwrap();
    }

    /// Where the table begins.
    fn table(&self) -> u64 {
        let mut offset = [0; 8];
        self.file.read_exact_at(&mut offset, self.size() - 64 + 8).unwrap();
        u64::from_le_bytes(offset)
    }

    /// Changes all entries of the table.
    fn change_table(&self, change: impl Fn(&mut [u8])) {
        let table = self.table();
        let mut length = [0; 8];
        self.file.read_exact_at(&mut length, table + 80).unwrap();
        let mut payload = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap()];
        self.file.read_exact_at(&mut payload, table + 256).unwrap();
        payload.chunks_exact_mut(80).for_each(change);
        self.file.write_all_at(&payload, table + 256).unwrap();
        let sum = *blake3::hash(&payload).as_bytes();
        self.change_header(table, |header| header[40..72].copy_from_slice(&sum));
    }

    /// Puts what finds the table at the end of the file as it is now.
    fn end(&self, table: u64) {
        let at = self.size() - 64;
        let mut trailer = [0; 64];
        trailer[..8].copy_from_slice(b"EKKOEND1");
        trailer[8..16].copy_from_slice(&table.to_le_bytes());
        let checksum = self.checksum(at, &trailer[..32]);
        trailer[32..].copy_from_slice(&checksum);
        self.file.write_all_at(&trailer, at).unwrap();
    }
}

/// What is said of a file, where it is, and which commands refuse it.
type Case<'a> = (&'a str, &'a dyn Fn(&World) -> PathBuf, &'a [&'a str]);

const SEGMENT: u64 = 8192;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// The pack with the newest backup of `web`.
fn pack_of(world: &World) -> PathBuf {
    world.store("packs/0000000000000002.pack")
}

#[test]
fn a_stored_length_is_not_believed() {
    let world = World::new();
    let pack = Pack::open(&pack_of(&world));
    pack.change_table(|entry| entry[8..16].copy_from_slice(&GIB.to_le_bytes()));
    pack.change_header(SEGMENT, |header| header[80..88].copy_from_slice(&GIB.to_le_bytes()));
    world.refuse("stored_length", &["restore", "check"], "");
}

#[test]
fn a_plain_length_is_not_believed() {
    let world = World::new();
    let pack = Pack::open(&pack_of(&world));
    let length = u32::MAX - 4096;
    pack.change_table(|entry| entry[16..20].copy_from_slice(&length.to_le_bytes()));
    pack.change_header(SEGMENT, |header| header[72..80].copy_from_slice(&u64::from(length).to_le_bytes()));
    world.refuse("plain_length", &["restore", "check"], "");
}

#[test]
fn a_table_that_fills_a_sparse_pack_of_a_tebibyte_takes_no_memory() {
    let world = World::new();
    let pack = Pack::open(&pack_of(&world));
    let table = pack.table();
    pack.file.set_len(TIB).unwrap();
    let length = TIB - table - 256 - 64;
    pack.change_header(table, |header| header[80..88].copy_from_slice(&length.to_le_bytes()));
    pack.end(table);
    world.refuse("a table of a tebibyte", &[], "");
    assert!(world.run(&["stats"]).code.is_some());
    assert!(world.run(&["restore", "db@0", "restored-db"]).code == Some(0), "the other packs are intact");
}

#[test]
fn a_sparse_pack_of_a_tebibyte_without_a_table_is_walked_soon() {
    let world = World::new();
    Pack::open(&pack_of(&world)).file.set_len(TIB).unwrap();
    world.refuse("a pack of holes", &[], "");
    assert_eq!(world.run(&["restore", "web@1", "again"]).code, Some(0), "what it holds is found");
}

#[test]
fn a_dead_record_of_half_a_tebibyte_takes_no_memory() {
    let world = World::new();
    let pack = Pack::open(&pack_of(&world));
    let end = pack.size();
    pack.file.set_len(TIB).unwrap();
    pack.file.write_all_at(b"EKKOREC1", end).unwrap();
    pack.change_header(end, |header| {
        header[8..12].copy_from_slice(&3_u32.to_le_bytes());
        header[72..80].copy_from_slice(&(TIB / 2).to_le_bytes());
        header[80..88].copy_from_slice(&(TIB / 2).to_le_bytes());
    });
    world.refuse("a dead record", &[], "");
}

#[test]
fn sparse_files_of_other_kinds_take_no_memory_either() {
    let set = |world: &World| world.set("web");
    let index =
        |world: &World| std::fs::read_dir(world.store("index")).unwrap().next().unwrap().unwrap().path();
    let cases: [Case<'_>; 11] = [
        ("set.toml", &|world| set(world).join("set.toml"), &["list", "restore", "check", "backup"]),
        ("1", &|world| set(world).join("1"), &["restore", "check"]),
        ("ekko.toml", &|world| world.store("ekko.toml"), &["list", "restore", "check", "gc", "backup"]),
        ("together.toml", &|world| world.store("manifests/together.toml"), &["list", "check", "backup"]),
        ("tokens.toml", &|world| world.store("tokens.toml"), &["token"]),
        ("checked", &|world| world.store("checked"), &[]),
        ("", &|world| world.store("state"), &[]),
        ("", &|world| world.store("sessions/6f0a4c6e-8d3c-4a53-9d9d-2f3b9a0c1d2e"), &[]),
        ("", &|world| index(world).join("db"), &[]),
        ("", &|world| index(world).join("conf"), &[]),
        ("", &|world| index(world).join("snap.0000000000000000"), &[]),
    ];
    // Beyond every limit, and below the limit of a file of settings.
    for length in [TIB, 60 << 20] {
        for (name, path, refusing) in &cases {
            let world = World::new();
            let path = path(&world);
            let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
            file.set_len(length).unwrap();
            world.refuse(&format!("{} of {length} bytes", path.display()), refusing, name);
        }
    }
}

#[test]
fn a_manifest_that_says_it_is_a_tebibyte_long_is_not_read() {
    let world = World::new();
    let path = world.set("web").join("1");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_len(TIB).unwrap();
    let mut header = [0; 128];
    file.read_exact_at(&mut header, 0).unwrap();
    header[24..32].copy_from_slice(&(TIB - 128).to_le_bytes());
    let sum = *blake3::hash(&header[..96]).as_bytes();
    header[96..].copy_from_slice(&sum);
    file.write_all_at(&header, 0).unwrap();
    world.refuse("a manifest of a tebibyte", &["restore", "check"], "holes");
}
