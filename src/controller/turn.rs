//! One event at a time for each droplet.
//!
//! Owns a queue for each droplet: DigitalOcean refuses a second event while one is running, so the calls of this process
//! wait for each other here, in order, instead of colliding there. Other processes of the cluster are not known here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::id::DropletId;

type Queues = HashMap<DropletId, VecDeque<u64>>;

/// The queues of all droplets that something is being done to.
#[derive(Debug, Default)]
pub struct DropletTurns {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queues: Queues,
    next_ticket: u64,
}

/// A droplet's turn; the next in its queue has it when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a DropletTurns,
    droplet: DropletId,
    ticket: u64,
}

impl DropletTurns {
    /// Waits for the droplet's turn; `None` when the deadline came first.
    pub fn take(&self, droplet: DropletId, deadline: Instant) -> Option<Turn<'_>> {
        let mut state = self.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queues.entry(droplet).or_default().push_back(ticket);
        // From here on the turn's Drop takes the ticket out again, however this ends.
        let turn = Turn { turns: self, droplet, ticket };
        while !state.is_first(droplet, ticket) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                drop(state);
                return None;
            }
            state = self.moved.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        Some(turn)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_first(&self, droplet: DropletId, ticket: u64) -> bool {
        self.queues.get(&droplet).and_then(VecDeque::front) == Some(&ticket)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if let Some(queue) = state.queues.get_mut(&self.droplet) {
            queue.retain(|ticket| *ticket != self.ticket);
            if queue.is_empty() {
                state.queues.remove(&self.droplet);
            }
        }
        self.turns.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    fn droplet(id: u64) -> DropletId {
        DropletId::new(id).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn calls_for_one_droplet_come_in_order() {
        let turns = Arc::new(DropletTurns::default());
        let done = Arc::new(Mutex::new(Vec::new()));
        let first = turns.take(droplet(1), soon()).unwrap();
        let mut waiting = Vec::new();
        for number in 0..5 {
            let (turns, done) = (Arc::clone(&turns), Arc::clone(&done));
            let before = turns.lock().next_ticket;
            let watched = Arc::clone(&turns);
            waiting.push(thread::spawn(move || {
                let _turn = turns.take(droplet(1), soon()).unwrap();
                done.lock().unwrap().push(number);
            }));
            while watched.lock().next_ticket == before {
                thread::yield_now();
            }
        }
        drop(first);
        for thread in waiting {
            thread.join().unwrap();
        }
        assert_eq!(*done.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert!(turns.lock().queues.is_empty());
    }

    #[test]
    fn droplets_do_not_wait_for_each_other_and_a_deadline_ends_the_wait() {
        let turns = DropletTurns::default();
        let _first = turns.take(droplet(1), soon()).unwrap();
        assert!(turns.take(droplet(2), Instant::now()).is_some());
        assert!(turns.take(droplet(1), Instant::now() + Duration::from_millis(5)).is_none());
        assert_eq!(turns.lock().queues.get(&droplet(1)).map(VecDeque::len), Some(1));
    }
}
