//! Looking up the address of a name, within the caller's time.
//!
//! Owns the threads that look names up: at most one for each name, no matter how many callers wait for it, and none for
//! what is already an address. The library's own resolver starts a thread for each look-up, and panics if the system
//! gives none.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Most addresses of one name that are kept; the library has room for so many.
const MAX_ADDRESSES: usize = 16;
/// Stack of a thread that looks up a name: the system's own resolver wants more than a worker.
const STACK: usize = 256 << 10;
/// How long a look-up is waited for when the library sets no limit.
const PATIENCE: Duration = Duration::from_secs(30);

/// The addresses of a name, or why there are none.
type Found = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

/// Looks names up; those who ask for one at the same time wait for one look-up.
#[derive(Debug)]
pub(super) struct SharedLookup {
    running: Arc<Mutex<HashMap<String, Arc<Flight>>>>,
    look_up: fn(&str) -> io::Result<Vec<SocketAddr>>,
    stack: usize,
}

impl Default for SharedLookup {
    fn default() -> SharedLookup {
        let look_up = |name: &str| Ok(name.to_socket_addrs()?.collect());
        SharedLookup { running: Arc::default(), look_up, stack: STACK }
    }
}

/// One look-up and those who wait for it.
#[derive(Debug, Default)]
struct Flight {
    found: Mutex<Option<Found>>,
    ended: Condvar,
}

impl Flight {
    fn end(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        self.ended.notify_all();
    }

    /// What was found, or nothing when the time is over.
    fn wait(&self, patience: Duration) -> Option<Found> {
        let deadline = Instant::now().checked_add(patience)?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        while found.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            found = self.ended.wait_timeout(found, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        found.clone()
    }
}

impl SharedLookup {
    /// The addresses of `host:port`; nothing when they are not known in time.
    fn find(&self, name: &str, patience: Duration) -> io::Result<Option<Vec<SocketAddr>>> {
        if let Ok(address) = name.parse() {
            return Ok(Some(vec![address]));
        }
        let found = self.join(name)?.wait(patience);
        found.transpose().map_err(|(kind, why)| io::Error::new(kind, why))
    }

    /// The look-up of this name that runs, or a new one.
    fn join(&self, name: &str) -> io::Result<Arc<Flight>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(name) {
            return Ok(Arc::clone(flight));
        }
        let flight = Arc::<Flight>::default();
        let (ours, table, look_up, key) =
            (Arc::clone(&flight), Arc::clone(&self.running), self.look_up, name.to_owned());
        let work = move || {
            let found = look_up(&key).map_err(|err| (err.kind(), err.to_string()));
            table.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            ours.end(found);
        };
        let builder = thread::Builder::new().name("resolver".to_owned()).stack_size(self.stack);
        builder
            .spawn(work)
            .map_err(|err| io::Error::new(err.kind(), format!("cannot start a thread to look up {name}: {err}")))?;
        running.insert(name.to_owned(), Arc::clone(&flight));
        Ok(flight)
    }
}

impl Resolver for SharedLookup {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let parts = uri.scheme().zip(uri.authority());
        let name = parts.and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority));
        let name = name.ok_or_else(|| Error::BadUri(format!("no host and port in {uri}")))?;
        let patience = if timeout.after.is_not_happening() { PATIENCE } else { *timeout.after };
        let found = self.find(&name, patience)?.ok_or(Error::Timeout(timeout.reason))?;
        let mut wanted = self.empty();
        for address in config.ip_family().keep_wanted(found.into_iter()).take(MAX_ADDRESSES) {
            wanted.push(address);
        }
        if wanted.is_empty() { Err(Error::HostNotFound) } else { Ok(wanted) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const PLENTY: Duration = Duration::from_secs(60);

    #[test]
    fn a_name_and_an_address_are_found_and_nonsense_is_not() {
        let lookup = SharedLookup::default();
        assert!(lookup.find("localhost:80", PLENTY).unwrap().unwrap().iter().all(|address| address.ip().is_loopback()));
        assert_eq!(lookup.find("[::1]:80", PLENTY).unwrap().unwrap(), ["[::1]:80".parse().unwrap()]);
        assert!(lookup.find("no such name:80", PLENTY).is_err());
    }

    #[test]
    fn a_look_up_for_which_there_is_no_thread_fails_and_an_address_needs_none() {
        // More than a process has addresses for.
        let lookup = SharedLookup { stack: 1 << 48, ..SharedLookup::default() };
        let why = lookup.find("localhost:80", PLENTY).unwrap_err().to_string();
        assert!(why.contains("cannot start a thread to look up localhost:80"), "{why}");
        assert!(lookup.running.lock().unwrap().is_empty());
        lookup.find("127.0.0.1:80", PLENTY).unwrap().unwrap();
    }

    #[test]
    fn those_who_ask_at_once_wait_for_one_look_up_each_in_its_own_time() {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        static GO: Mutex<()> = Mutex::new(());
        let held = GO.lock().unwrap();
        let look_up = |_: &str| {
            COUNT.fetch_add(1, Ordering::SeqCst);
            drop(GO.lock().unwrap());
            Ok(vec!["192.0.2.1:443".parse().unwrap()])
        };
        let lookup = SharedLookup { look_up, ..SharedLookup::default() };
        assert_eq!(lookup.find("api:443", Duration::from_millis(1)).unwrap(), None);
        let flight = lookup.join("api:443").unwrap();
        drop(held);
        assert_eq!(flight.wait(PLENTY).unwrap().unwrap().len(), 1);
        assert_eq!(COUNT.load(Ordering::SeqCst), 1);
        while !lookup.running.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        lookup.find("api:443", PLENTY).unwrap().unwrap();
        assert_eq!(COUNT.load(Ordering::SeqCst), 2);
    }
}
