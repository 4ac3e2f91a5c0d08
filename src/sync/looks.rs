//! Questions that may never be answered, such as how a mount is whose disk hangs.
//!
//! Owns the threads that ask. Each question has one of its own, of which there is never a second one; who wants to know waits as
//! long as it likes, and what comes later is given to who asks next.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError, bounded};

/// Looks that have not ended yet, by what they are about.
#[derive(Debug)]
pub struct Looks<K, T>(Mutex<HashMap<K, Look<T>>>);

#[derive(Debug)]
struct Look<T> {
    since: Instant,
    ends: Receiver<T>,
}

/// What a look has brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// This.
    Ended(T),
    /// Nothing yet, for so long.
    Silent(Duration),
    /// Nothing, for this reason, and it is over.
    Nothing(&'static str),
}

impl<K, T> Default for Looks<K, T> {
    fn default() -> Self {
        Looks(Mutex::default())
    }
}

impl<K: Eq + Hash, T: Send + 'static> Looks<K, T> {
    /// Has a thread look, unless an earlier one is at it still; gives whether it is a new one.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn begin(&self, key: K, look: impl FnOnce() -> T + Send + 'static) -> io::Result<bool> {
        let mut running = self.lock();
        if running.contains_key(&key) {
            return Ok(false);
        }
        let (end, ends) = bounded(1);
        let ask = move || {
            let _nobody_waits_any_more = end.send(look()).is_err();
        };
        thread::Builder::new().name("look".to_owned()).spawn(ask)?;
        running.insert(key, Look { since: Instant::now(), ends });
        Ok(true)
    }

    /// Waits until a look has ended, but no longer than the deadline.
    pub fn wait(&self, key: &K, deadline: Instant) -> Seen<T> {
        let running = self.lock();
        let Some(look) = running.get(key) else { return Seen::Nothing("another look at it was just made") };
        let (ends, since) = (look.ends.clone(), look.since);
        drop(running);
        let seen = match ends.recv_deadline(deadline) {
            Ok(seen) => Seen::Ended(seen),
            Err(RecvTimeoutError::Timeout) => return Seen::Silent(since.elapsed()),
            Err(RecvTimeoutError::Disconnected) => Seen::Nothing("the look at it has failed"),
        };
        self.forget(key, &ends);
        seen
    }

    /// Forgets the looks at what is no longer there, as soon as they have ended; gives what they have brought.
    pub fn take_ended(&self, is_there: impl Fn(&K) -> bool) -> Vec<T> {
        let mut ended = Vec::new();
        self.lock().retain(|key, look| {
            if is_there(key) {
                return true;
            }
            match look.ends.try_recv() {
                Ok(seen) => ended.push(seen),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => {}
            }
            false
        });
        ended
    }

    /// Forgets a look that has ended; by now the next one may be under way.
    fn forget(&self, key: &K, ended: &Receiver<T>) {
        let mut running = self.lock();
        if running.get(key).is_some_and(|look| look.ends.same_channel(ended)) {
            running.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Look<T>>> {
        // Each change is a single one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_does_not_end_is_not_begun_again_and_its_end_is_given_to_who_asks_next() {
        let looks: Looks<&str, u32> = Looks::default();
        let (end, may_end) = bounded::<u32>(0);
        assert!(looks.begin("hung", move || may_end.recv().unwrap()).unwrap());
        for _ in 0..2 {
            assert!(!looks.begin("hung", || unreachable!()).unwrap());
            assert!(matches!(looks.wait(&"hung", Instant::now()), Seen::Silent(_)));
        }
        assert!(looks.begin("other", || 7).unwrap(), "one holds up no other");
        let later = || Instant::now() + Duration::from_secs(60);
        assert_eq!(looks.wait(&"other", later()), Seen::Ended(7));
        let Seen::Silent(first) = looks.wait(&"hung", Instant::now()) else { panic!("it has ended") };
        let Seen::Silent(second) = looks.wait(&"hung", Instant::now()) else { panic!("it has ended") };
        assert!(second >= first, "for how long it has been silent is counted from its begin");
        end.send(8).unwrap();
        assert_eq!(looks.wait(&"hung", later()), Seen::Ended(8));
        assert!(matches!(looks.wait(&"hung", later()), Seen::Nothing(_)));
        assert!(looks.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_look_at_what_has_gone_is_forgotten_when_it_has_ended_and_not_before() {
        let looks: Looks<u32, u32> = Looks::default();
        let (end, may_end) = bounded::<u32>(0);
        assert!(looks.begin(1, move || may_end.recv().unwrap()).unwrap());
        assert!(looks.take_ended(|_| false).is_empty(), "it may still be at work");
        assert!(!looks.begin(1, || unreachable!()).unwrap());
        end.send(7).unwrap();
        let ends = looks.lock()[&1].ends.clone();
        while ends.is_empty() {
            thread::yield_now();
        }
        assert!(looks.take_ended(|key| *key == 1).is_empty(), "it is there, and somebody may ask");
        assert_eq!(looks.take_ended(|_| false), [7]);
        assert!(looks.begin(1, || 8).unwrap(), "what comes in its place is looked at anew");
    }

    #[test]
    fn who_waited_for_a_look_that_has_ended_does_not_forget_the_next_one() {
        let looks: Looks<&str, u32> = Looks::default();
        assert!(looks.begin("disk", || 1).unwrap());
        // Two have waited for it, and one is late.
        let late = looks.lock()["disk"].ends.clone();
        assert_eq!(looks.wait(&"disk", Instant::now() + Duration::from_secs(60)), Seen::Ended(1));
        let (_end, may_end) = bounded::<u32>(0);
        assert!(looks.begin("disk", move || may_end.recv().unwrap_or_default()).unwrap());
        looks.forget(&"disk", &late);
        assert!(!looks.begin("disk", || unreachable!()).unwrap(), "a second one was begun beside it");
    }
}
