//! Threads that do one job together.

/// Has `work` done by `count` threads at once, of which this one is the first, and waits for all of them. If the system gives no
/// more threads, those that there are do the whole job.
///
/// # Panics
/// If one of the threads panics.
pub fn on_threads(count: usize, name: &str, work: impl Fn() + Sync) {
    each_on_a_thread(0..count.max(1), name, |_| work());
}

/// The same, with something of its own for each thread. What a thread would have had that the system does not give is dropped.
///
/// # Panics
/// If one of the threads panics.
pub fn each_on_a_thread<T: Send>(own: impl IntoIterator<Item = T>, name: &str, work: impl Fn(T) + Sync) {
    let mut own = own.into_iter();
    let Some(first) = own.next() else { return };
    std::thread::scope(|scope| {
        let work = &work;
        for it in own {
            let thread = std::thread::Builder::new().name(name.to_owned());
            if let Err(error) = thread.spawn_scoped(scope, move || work(it)) {
                tracing::info!(%error, "{name} goes on with fewer threads");
                break;
            }
        }
        work(first);
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::{Barrier, Mutex};

    use super::*;

    #[test]
    fn all_threads_work_at_once_and_one_is_enough() {
        for count in [0, 1, 5] {
            let (all, seen) = (Barrier::new(count.max(1)), Mutex::new(HashSet::new()));
            on_threads(count, "test", || {
                all.wait();
                seen.lock().unwrap().insert(std::thread::current().id());
            });
            assert_eq!(seen.lock().unwrap().len(), count.max(1));
        }
    }
}
