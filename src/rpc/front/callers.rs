//! Which caller a call of gRPC's has.
//!
//! Owns the numbers by which the front tells them apart, and the header in which the number comes with the call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use grpcio::RpcContext;

use crate::sync::caller::Caller;

/// The header that the front puts at the end of each call's.
pub(super) const HEADER: &str = "x-caller";

static NEXT: AtomicU64 = AtomicU64::new(1);
static WAITING: Mutex<Option<HashMap<u64, Arc<Caller>>>> = Mutex::new(None);

/// A caller's place among those who wait. Dropping it means that he has his answer, or does not want it any more.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    caller: Arc<Caller>,
}

impl Place {
    pub(super) fn take(deadline: Option<Instant>) -> Place {
        let place = Place { number: NEXT.fetch_add(1, Ordering::Relaxed), caller: Arc::new(Caller::until(deadline)) };
        lock().get_or_insert_default().insert(place.number, Arc::clone(&place.caller));
        place
    }

    /// The header with its number, as HPACK writes one that is not to be remembered.
    pub(super) fn header(&self) -> Vec<u8> {
        let number = self.number.to_string();
        let mut bytes = vec![0];
        for text in [HEADER, &number] {
            // Both are far shorter than the 127 bytes up to which a length is one byte.
            bytes.push(u8::try_from(text.len()).unwrap_or_default());
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.caller.leave();
        lock().get_or_insert_default().remove(&self.number);
    }
}

/// Who waits for the answer of this call.
#[must_use]
pub(in crate::rpc) fn caller_of(ctx: &RpcContext<'_>) -> Arc<Caller> {
    // The last one, as the others are the caller's own.
    let number = ctx.request_headers().iter().filter(|(name, _)| *name == HEADER).last();
    let number = number.and_then(|(_, number)| std::str::from_utf8(number).ok()?.parse().ok());
    let Some(number) = number else { return Arc::default() };
    lock().get_or_insert_default().get(&number).cloned().unwrap_or_else(|| {
        let caller = Caller::default();
        caller.leave();
        Arc::new(caller)
    })
}

fn lock() -> MutexGuard<'static, Option<HashMap<u64, Arc<Caller>>>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}
