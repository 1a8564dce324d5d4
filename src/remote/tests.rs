//! A client and services that fail, or lie.

mod disk;
mod forgotten;
mod lies;
mod scripted;
mod waits;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::progress::{Notice, Progress};
use crate::remote::link::Link;
use crate::remote::tries::Timing;
use crate::remote::{Address, Credentials, RemoteRepository};

/// Keeps what is told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<Notice>>);

impl Told {
    fn texts(&self) -> Vec<String> {
        let text = |notice: &Notice| match notice {
            Notice::Waiting { reason } => format!("waiting: {reason}"),
            Notice::GoesOn { what } => what.clone(),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().iter().map(text).collect()
    }
}

impl Progress for Told {
    fn notice(&self, notice: Notice) {
        self.0.lock().unwrap().push(notice);
    }
}

/// Everything happens a hundred times as fast.
fn quick() -> Timing {
    Timing {
        budget: Duration::from_secs(1),
        queue: Duration::from_mins(10),
        first_pause: Duration::from_millis(1),
        pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(100),
        tell_after: Duration::from_millis(100),
        tell_again: Duration::from_mins(10),
        silence: Duration::from_millis(500),
        connect: Duration::from_millis(500),
        work: Duration::from_secs(2),
        slowest: 1 << 10,
    }
}

fn link(address: &str, timing: Timing, told: &Arc<Told>) -> Link {
    let told: Arc<dyn Progress> = Arc::<Told>::clone(told);
    let credentials = Credentials { token: Some("ekko_secret".to_owned()), authority: None };
    Link::new(Address::of_url(address), &credentials, timing, told).unwrap()
}

fn repository(address: &str) -> RemoteRepository {
    RemoteRepository { link: link(address, quick(), &Arc::default()) }
}
