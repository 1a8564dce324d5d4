//! Who started the service, and looks after it: a person at a terminal, or systemd.

use std::time::Duration;

/// What is told of a service's life, as it goes on.
pub trait Keeper {
    /// It listens: requests are taken.
    fn listening(&self, places: &[String]);

    /// It stops: requests under way are finished.
    fn stopping(&self) {}

    /// Returns how often it is to be heard that it lives; never, if nobody waits for that.
    fn interval(&self) -> Option<Duration> {
        None
    }

    /// It lives: the store's thread answers, or has answered within five minutes.
    fn alive(&self) {}
}
