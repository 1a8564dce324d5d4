//! How far the threads of a backup may be ahead of the order in which its pieces are taken.

use crossbeam_channel::{Receiver, Sender, bounded};

/// So many pieces for each thread may have been begun and not be in order yet.
pub(super) const AHEAD: usize = 64;

/// Leave to begin a piece, given back when the piece is in order, or is not going to be.
#[derive(Debug)]
pub(super) struct Leave(Sender<()>);

impl Drop for Leave {
    fn drop(&mut self) {
        // There is room for all of them; when nobody takes any, the backup has ended.
        let _ = self.0.try_send(());
    }
}

/// What leave is taken from.
#[derive(Debug)]
pub(super) struct Leaves {
    back: Sender<()>,
    free: Receiver<()>,
}

impl Leaves {
    pub(super) fn new(workers: usize) -> Self {
        let count = workers * AHEAD;
        let (back, free) = bounded(count + workers);
        for _ in 0..count {
            drop(Leave(back.clone()));
        }
        Self { back, free }
    }

    /// Returns one more, for a thread to give back when it ends: if it has failed, others may wait for the piece that it had
    /// to come in order; one of them wakes, sees that, and wakes the next as it ends.
    pub(super) fn one_more(&self) -> Leave {
        Leave(self.back.clone())
    }

    /// Waits for leave. Who has the piece that is next in order has it already.
    pub(super) fn take(&self) -> Leave {
        // It has the other end itself.
        let _ = self.free.recv();
        Leave(self.back.clone())
    }
}
