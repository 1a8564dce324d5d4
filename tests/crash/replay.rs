//! Lays files out as a power loss may leave them.
//!
//! POSIX promises little: the bytes of a file last once the file was synced, and a name once its folder was. Everything
//! else may last or not. [`Keep`] says how much of it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::calls::Change;
use crate::common::Noise;

const PAGE: usize = 4096;
/// Disks write sectors of this size, each as a whole.
const SECTOR: usize = 512;

/// What lasts of the calls that no sync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything: the program was killed, and the machine runs on.
    Everything,
    /// Nothing.
    Nothing,
    /// All names, and no bytes.
    Names,
    /// All bytes, and no names.
    Bytes,
    /// Names up to a random call, and of each write nothing, all, or random sectors.
    Random(u64),
}

/// A file's bytes, with holes.
#[derive(Clone, Debug, Default)]
struct Bytes {
    length: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length && self.full_pages().eq(other.full_pages())
    }
}

impl Bytes {
    /// Returns the pages that are not all zero.
    fn full_pages(&self) -> impl Iterator<Item = (&u64, &Arc<[u8; PAGE]>)> {
        self.pages.iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let inside = usize::try_from(at % PAGE as u64).unwrap();
            let length = (PAGE - inside).min(bytes.len() - done);
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[inside..inside + length].copy_from_slice(&bytes[done..done + length]);
            done += length;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    fn zero(&mut self, offset: u64, length: u64, grow: bool) {
        let end = offset.saturating_add(length);
        for (number, page) in self.pages.range_mut(offset / PAGE as u64..end.div_ceil(PAGE as u64)) {
            let start = number * PAGE as u64;
            let from = usize::try_from(offset.saturating_sub(start)).unwrap();
            let to = usize::try_from((end - start).min(PAGE as u64)).unwrap();
            Arc::make_mut(page)[from..to.max(from)].fill(0);
        }
        if grow {
            self.length = self.length.max(end);
        }
    }

    fn resize(&mut self, length: u64) {
        if length < self.length {
            self.zero(length, self.length - length, false);
            self.pages.retain(|number, _| number * (PAGE as u64) < length);
        }
        self.length = length;
    }

    fn apply(&mut self, edit: &Edit) {
        match edit {
            Edit::Write(offset, bytes) => self.write(*offset, bytes),
            Edit::Zero(offset, length, grow) => self.zero(*offset, *length, *grow),
            Edit::Resize(length) => self.resize(*length),
        }
    }
}

/// A change of a file's bytes.
#[derive(Debug)]
enum Edit {
    Write(u64, Vec<u8>),
    Zero(u64, u64, bool),
    Resize(u64),
}

type Node = usize;

/// A call, with files and folders instead of paths.
#[derive(Debug)]
enum Event {
    /// The name in the folder means this from now on, or nothing.
    Name(Node, String, Option<Node>),
    Edit(Node, Edit),
    Sync(Node),
    SyncAll,
}

#[derive(Clone, Debug)]
enum Content {
    File(Bytes),
    Folder(BTreeMap<String, Node>),
}

#[derive(Clone, Debug)]
struct Inode {
    mode: u32,
    content: Content,
}

/// Files as they were before, and all that was done to them.
#[derive(Debug, Default)]
pub struct Recording {
    /// Files as they were before; and those made since, empty.
    before: Vec<Inode>,
    /// Each with the number of its call.
    events: Vec<(u64, Event)>,
    /// The files as they are after all that was recorded, to find paths in.
    now: Vec<Inode>,
    /// The first path of each file and folder.
    paths: Vec<String>,
}

const ROOT: Node = 0;

impl Recording {
    /// Reads the files of a folder, as they are before a recording.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let (mut nodes, mut paths) = (Vec::new(), Vec::new());
        load(folder, "", &mut nodes, &mut paths)?;
        Ok(Self { now: nodes.clone(), before: nodes, events: Vec::new(), paths })
    }

    /// Adds the changes of the calls, in their order.
    ///
    /// # Errors
    ///
    /// A path is not one that the earlier calls have left.
    pub fn add(&mut self, calls: &[Vec<Change>]) -> Result<(), String> {
        for (number, changes) in (0..).zip(calls) {
            for change in changes {
                self.change(number, change).ok_or_else(|| {
                    let mut text = format!("{change:?}");
                    text.truncate(200);
                    format!("call {number} does not fit what was recorded: {text}")
                })?;
            }
        }
        Ok(())
    }

    fn change(&mut self, number: u64, change: &Change) -> Option<()> {
        match change {
            Change::Create(path, mode) => self.make(number, path, *mode, Content::File(Bytes::default())),
            Change::MakeFolder(path, mode) => {
                self.make(number, path, *mode, Content::Folder(BTreeMap::new()))
            }
            Change::Write(path, offset, bytes) => {
                self.edit(number, path, Edit::Write(*offset, bytes.clone()))
            }
            Change::Zero(path, offset, length, grow) => {
                self.edit(number, path, Edit::Zero(*offset, *length, *grow))
            }
            Change::Resize(path, length) => self.edit(number, path, Edit::Resize(*length)),
            Change::Sync(path) => {
                let node = self.find(path)?;
                self.events.push((number, Event::Sync(node)));
                Some(())
            }
            Change::SyncAll => {
                self.events.push((number, Event::SyncAll));
                Some(())
            }
            Change::Rename(from, to) => {
                let node = self.find(from)?;
                // The new name first: a file that moves to another folder may be in both, and is not lost.
                self.name(number, to, Some(node))?;
                self.name(number, from, None)
            }
            Change::Link(from, to) => {
                let node = self.find(from)?;
                self.name(number, to, Some(node))
            }
            Change::Remove(path) => self.name(number, path, None),
        }
    }

    fn make(&mut self, number: u64, path: &str, mode: u32, content: Content) -> Option<()> {
        let node = self.now.len();
        self.now.push(Inode { mode, content: content.clone() });
        self.before.push(Inode { mode, content });
        self.paths.push(path.to_owned());
        self.name(number, path, Some(node))
    }

    fn edit(&mut self, number: u64, path: &str, edit: Edit) -> Option<()> {
        let node = self.find(path)?;
        self.events.push((number, Event::Edit(node, edit)));
        Some(())
    }

    fn name(&mut self, number: u64, path: &str, node: Option<Node>) -> Option<()> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = self.find(folder)?;
        let event = Event::Name(folder, name.to_owned(), node);
        apply_name(&mut self.now, &event);
        self.events.push((number, event));
        Some(())
    }

    fn find(&self, path: &str) -> Option<Node> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |node, name| {
            match &self.now[node].content {
                Content::Folder(names) => names.get(name).copied(),
                Content::File(_) => None,
            }
        })
    }

    /// Forgets every sync of files whose path holds this, as a program without them would. Returns how many there were.
    pub fn forget_syncs(&mut self, of: &str) -> usize {
        let count = self.events.len();
        let paths = &self.paths;
        self.events.retain(|(_, event)| !matches!(event, Event::Sync(node) if paths[*node].contains(of)));
        count - self.events.len()
    }

    /// Returns the files after the first `calls` calls, if so much of them lasts.
    pub fn layout(&self, calls: u64, keep: Keep) -> Layout {
        let end = self.events.partition_point(|(number, _)| *number < calls);
        let events = &self.events[..end];
        // Up to where each file or folder is synced.
        let mut synced = vec![0; self.before.len()];
        for (at, (_, event)) in events.iter().enumerate() {
            match event {
                Event::Sync(node) => synced[*node] = at,
                Event::SyncAll => synced.fill(at),
                _ => {}
            }
        }
        let mut noise = Noise::new(match keep {
            // Seeds that follow each other are to have nothing in common.
            Keep::Random(seed) => {
                u64::from_le_bytes(blake3::hash(&seed.to_le_bytes()).as_bytes()[..8].try_into().unwrap())
            }
            _ => 0,
        });
        let names_until = match keep {
            Keep::Everything | Keep::Names => end,
            Keep::Nothing | Keep::Bytes => 0,
            // A call lasts as a whole: a rename takes one name and gives another.
            Keep::Random(_) => {
                let at = noise.below(end + 1);
                let number = events.get(at).map_or(u64::MAX, |(number, _)| *number);
                events.partition_point(|(other, _)| *other < number)
            }
        };
        let mut nodes = self.before.clone();
        for (at, (_, event)) in events.iter().enumerate() {
            match event {
                Event::Name(folder, ..) if at < names_until.max(synced[*folder]) => {
                    apply_name(&mut nodes, event);
                }
                Event::Edit(node, edit) => {
                    let lasts = at < synced[*node];
                    let Content::File(bytes) = &mut nodes[*node].content else { continue };
                    match keep {
                        _ if lasts => bytes.apply(edit),
                        Keep::Everything | Keep::Bytes => bytes.apply(edit),
                        Keep::Random(_) => apply_in_part(bytes, edit, &mut noise),
                        Keep::Nothing | Keep::Names => {}
                    }
                }
                _ => {}
            }
        }
        Layout { nodes }
    }
}

fn apply_name(nodes: &mut [Inode], event: &Event) {
    let Event::Name(folder, name, node) = event else { return };
    let Content::Folder(names) = &mut nodes[*folder].content else { return };
    match node {
        Some(node) => drop(names.insert(name.clone(), *node)),
        None => drop(names.remove(name)),
    }
}

fn apply_in_part(bytes: &mut Bytes, edit: &Edit, noise: &mut Noise) {
    match (noise.below(3), edit) {
        (0, _) => {}
        (1, Edit::Write(offset, written)) => {
            let mut at = 0;
            while at < written.len() {
                let sector = SECTOR - usize::try_from((offset + at as u64) % SECTOR as u64).unwrap();
                let length = sector.min(written.len() - at);
                if noise.below(2) == 0 {
                    bytes.write(offset + at as u64, &written[at..at + length]);
                }
                at += length;
            }
        }
        _ => bytes.apply(edit),
    }
}

fn load(path: &Path, below: &str, nodes: &mut Vec<Inode>, paths: &mut Vec<String>) -> io::Result<Node> {
    let metadata = path.symlink_metadata()?;
    let node = nodes.len();
    let mode = metadata.permissions().mode() & 0o7777;
    let empty = if metadata.is_dir() {
        Content::Folder(BTreeMap::new())
    } else {
        let mut bytes = Bytes::default();
        // A reserve is long, and nothing but zeros.
        if metadata.len() <= 16 << 20 {
            let all = fs::read(path)?;
            for (number, page) in
                (0..).zip(all.chunks(PAGE)).filter(|(_, page)| page.iter().any(|byte| *byte != 0))
            {
                bytes.write(number * PAGE as u64, page);
            }
        }
        bytes.length = metadata.len();
        Content::File(bytes)
    };
    nodes.push(Inode { mode, content: empty });
    paths.push(below.to_owned());
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() || entry.file_type()?.is_dir() {
                let name = entry.file_name().into_string().unwrap_or_default();
                let child = load(&entry.path(), &format!("{below}/{name}"), nodes, paths)?;
                let Content::Folder(names) = &mut nodes[node].content else { continue };
                names.insert(name, child);
            }
        }
    }
    Ok(node)
}

/// Files that can be written to a folder.
#[derive(Debug)]
pub struct Layout {
    nodes: Vec<Inode>,
}

impl Layout {
    /// Writes the files to a folder, which must not exist.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        self.write_node(ROOT, folder)
    }

    fn write_node(&self, node: Node, path: &Path) -> io::Result<()> {
        let Inode { mode, content } = &self.nodes[node];
        match content {
            Content::Folder(names) => {
                fs::create_dir(path)?;
                names.iter().try_for_each(|(name, child)| self.write_node(*child, &path.join(name)))?;
            }
            Content::File(bytes) => {
                let file = OpenOptions::new().write(true).create_new(true).open(path)?;
                file.set_len(bytes.length)?;
                for (number, page) in bytes.full_pages() {
                    let start = number * PAGE as u64;
                    let length = usize::try_from(bytes.length.saturating_sub(start)).unwrap_or(PAGE);
                    file.write_all_at(&page[..length.min(PAGE)], start)?;
                }
            }
        }
        fs::set_permissions(path, Permissions::from_mode(*mode))
    }

    /// Returns the first path that differs from another layout.
    pub fn difference(&self, other: &Self) -> Option<String> {
        self.node_difference(ROOT, other, ROOT, "")
    }

    fn node_difference(&self, node: Node, other: &Self, theirs: Node, path: &str) -> Option<String> {
        match (&self.nodes[node].content, &other.nodes[theirs].content) {
            (Content::Folder(ours), Content::Folder(others)) => {
                let names: BTreeSet<_> = ours.keys().chain(others.keys()).collect();
                names.into_iter().find_map(|name| {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    match (ours.get(name), others.get(name)) {
                        (Some(node), Some(theirs)) => self.node_difference(*node, other, *theirs, &path),
                        _ => Some(path),
                    }
                })
            }
            (Content::File(ours), Content::File(others)) if ours == others => None,
            _ => Some(path.to_owned()),
        }
    }

    /// Returns a digest of all names and bytes: equal layouts have equal ones.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.digest_node(ROOT, &mut hasher);
        hasher.finalize()
    }

    fn digest_node(&self, node: Node, hasher: &mut blake3::Hasher) {
        match &self.nodes[node].content {
            Content::Folder(names) => {
                hasher.update(&[0]).update(&(names.len() as u64).to_le_bytes());
                for (name, child) in names {
                    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
                    self.digest_node(*child, hasher);
                }
            }
            Content::File(bytes) => {
                hasher.update(&[1]).update(&bytes.length.to_le_bytes());
                for (number, page) in bytes.full_pages() {
                    hasher.update(&[2]).update(&number.to_le_bytes()).update(&page[..]);
                }
            }
        }
    }
}
