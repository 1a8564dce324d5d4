//! Writing a large file so that little is left to wait for at its end.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};

/// After how many bytes what was written is synced beside.
const INTERVAL: u64 = 64 << 20;

/// A file that is written from its begin to its end, and synced beside every 64 MiB.
#[derive(Debug)]
pub struct WriteBehind {
    file: Arc<File>,
    unsynced: u64,
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBehind {
    /// Begins to write to `file`.
    pub fn new(file: File) -> io::Result<Self> {
        let file = Arc::new(file);
        let (wake, woken) = bounded::<()>(1);
        let synced = Arc::clone(&file);
        let thread = std::thread::Builder::new()
            .name("ekko-sync".to_owned())
            .spawn(move || woken.iter().try_for_each(|()| synced.sync_data()))?;
        Ok(Self { file, unsynced: 0, wake: Some(wake), thread: Some(thread) })
    }

    /// Waits for what is being synced and returns the file; what was written last is still to be synced.
    ///
    /// # Errors
    /// A sync failed: the system tells of that once, so the file is not to be believed.
    pub fn finish(mut self) -> io::Result<Arc<File>> {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the syncing thread ended")))?;
        }
        Ok(Arc::clone(&self.file))
    }
}

impl Write for WriteBehind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = (&*self.file).write(bytes)?;
        self.unsynced += written as u64;
        if self.unsynced >= INTERVAL
            && let Some(wake) = &self.wake
        {
            self.unsynced = 0;
            // If it is still busy with the last part, it takes this one with the next; if it failed, `finish` tells.
            let _ = wake.try_send(());
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // A file that is not finished is not kept.
            let _ = thread.join();
        }
    }
}
