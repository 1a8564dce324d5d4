//! Connections at a time, of everybody and from each address.
//!
//! Nobody keeps others out by being there and saying nothing: when there is no room, the connection goes that has been
//! silent for longest, of the address that wants one more if it has all it may have, else of the address that has the
//! most. Only when all of those have a request under way, the new one is refused; and how long a request may be under way
//! without getting on is bounded elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::service::limits::Address;

/// The connections that are open.
#[derive(Debug)]
pub(in crate::service) struct Seats {
    most: usize,
    most_of_one: usize,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    next: u64,
    seats: HashMap<u64, Taken>,
    of_each: HashMap<Address, usize>,
}

#[derive(Debug)]
struct Taken {
    address: Address,
    /// Requests under way.
    requests: usize,
    silent_since: Instant,
    end: Arc<Notify>,
}

/// One connection's place, until this is dropped.
#[derive(Debug)]
pub(in crate::service) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    end: Arc<Notify>,
}

/// A request under way on a connection, until this is dropped.
#[derive(Debug)]
pub(in crate::service) struct Busy(Arc<Seat>);

impl Seats {
    pub(in crate::service) fn new(most: usize, most_of_one: usize) -> Self {
        Self { most: most.max(1), most_of_one: most_of_one.max(1), now: Mutex::default() }
    }

    /// Makes room for one more connection; nothing if there is none to be made.
    pub(in crate::service) fn take(self: &Arc<Self>, address: Address) -> Option<Arc<Seat>> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let own = now.of_each.get(&address).copied().unwrap_or_default();
        if own >= self.most_of_one {
            now.end_the_most_silent(address)?;
        } else if now.seats.len() >= self.most {
            let crowd = now.of_each.iter().max_by_key(|(_, seats)| **seats).map(|(address, _)| *address)?;
            now.end_the_most_silent(crowd)?;
        }
        let number = now.next;
        now.next += 1;
        let end = Arc::new(Notify::new());
        let taken = Taken { address, requests: 0, silent_since: Instant::now(), end: Arc::clone(&end) };
        now.seats.insert(number, taken);
        *now.of_each.entry(address).or_default() += 1;
        Some(Arc::new(Seat { seats: Arc::clone(self), number, end }))
    }

    fn with(&self, number: u64, change: impl FnOnce(&mut Taken)) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = now.seats.get_mut(&number) {
            change(taken);
        }
    }
}

impl Now {
    fn end_the_most_silent(&mut self, address: Address) -> Option<()> {
        let silent = self.seats.iter().filter(|(_, taken)| taken.address == address && taken.requests == 0);
        let number = *silent.min_by_key(|(number, taken)| (taken.silent_since, **number))?.0;
        self.leave(number)?.end.notify_one();
        Some(())
    }

    fn leave(&mut self, number: u64) -> Option<Taken> {
        let taken = self.seats.remove(&number)?;
        if let Some(seats) = self.of_each.get_mut(&taken.address) {
            *seats -= 1;
            if *seats == 0 {
                self.of_each.remove(&taken.address);
            }
        }
        Some(taken)
    }
}

impl Seat {
    /// Says that a request has come.
    pub(in crate::service) fn begin(self: &Arc<Self>) -> Busy {
        self.seats.with(self.number, |taken| taken.requests += 1);
        Busy(Arc::clone(self))
    }

    /// Waits until the place is needed for another connection.
    pub(in crate::service) async fn ended(&self) {
        self.end.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.now.lock().unwrap_or_else(PoisonError::into_inner).leave(self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.seats.with(self.0.number, |taken| {
            taken.requests = taken.requests.saturating_sub(1);
            taken.silent_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Address {
        Address::V4([192, 0, 2, last].into())
    }

    fn has_ended(seat: &Seat) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let soon = std::time::Duration::from_millis(1);
        runtime.block_on(async { tokio::time::timeout(soon, seat.ended()).await.is_ok() })
    }

    #[test]
    fn an_address_that_has_all_it_may_have_gives_up_its_own() {
        let seats = Arc::new(Seats::new(10, 2));
        let other = seats.take(address(1)).unwrap();
        let [first, second] = [seats.take(address(2)).unwrap(), seats.take(address(2)).unwrap()];
        let asks = first.begin();
        let third = seats.take(address(2)).unwrap();
        assert_eq!(
            [&first, &second, &third, &other].map(|seat| has_ended(seat)),
            [false, true, false, false]
        );
        let also_asks = third.begin();
        assert!(seats.take(address(2)).is_none(), "both have requests under way");
        drop(asks);
        assert!(seats.take(address(2)).is_some());
        assert!(has_ended(&first));
        drop(also_asks);
    }

    #[test]
    fn when_all_are_taken_the_address_with_the_most_gives_one_up() {
        let seats = Arc::new(Seats::new(4, 3));
        let one = seats.take(address(1)).unwrap();
        let crowd: Vec<_> = (0..3).map(|_| seats.take(address(2)).unwrap()).collect();
        let new = seats.take(address(3)).unwrap();
        assert!(!has_ended(&one) && !has_ended(&new));
        assert_eq!(crowd.iter().filter(|seat| has_ended(seat)).count(), 1);
    }

    #[test]
    fn the_tables_are_as_long_as_there_are_connections() {
        let seats = Arc::new(Seats::new(100, 10));
        for last in 0..=255 {
            let many: Vec<_> = (0..20).filter_map(|_| seats.take(address(last))).collect();
            assert!(seats.now.lock().unwrap().seats.len() <= 10);
            drop(many);
        }
        let now = seats.now.lock().unwrap();
        assert_eq!((now.seats.len(), now.of_each.len()), (0, 0));
    }
}
