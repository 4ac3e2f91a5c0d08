//! The threads that do the work of calls, and the path of every answer back to the caller.
//!
//! Owns the bounded queue, its named threads, the containment of panics and the one log line at the end of each call.
//! gRPC's own threads never block: they queue the work and send the answer when it comes. What the work is, is not
//! known here.

use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use futures_channel::oneshot;
use grpcio::{RpcContext, RpcStatus, UnarySink};
use log::{Level, debug, error, log};

use crate::error::{Chain, Error, OneLine, Result};
use crate::logging::Label;
use crate::rpc::status;

type Job = Box<dyn FnOnce() + Send>;
type Answer<T> = Result<T, RpcStatus>;

/// Stack of a worker; the deepest calls, into JSON and TLS, take a fraction of it.
const STACK: usize = 1 << 20;

/// Most bytes that the log shows of what a call is about: a volume's id with a droplet's, and names of usual length.
const MAX_ABOUT: usize = 100;

/// Numbers the calls of this process, so that the lines of one call can be found among those of others.
static NEXT_CALL: AtomicU64 = AtomicU64::new(1);

/// Which call it is: what the log shows of it.
#[derive(Debug, Clone)]
pub struct Call {
    /// The RPC's name as in the CSI specification.
    pub rpc: &'static str,
    /// What it is about: a volume's id or name, or nothing.
    pub about: String,
    /// Whether it changes something; then its end is logged at info, otherwise at debug.
    pub is_mutating: bool,
    /// What becomes of the refusal of a call for which there is no room.
    pub refused: fn(Error) -> Error,
}

impl Call {
    /// A call that changes something.
    #[must_use]
    pub fn change(rpc: &'static str, about: impl Into<String>) -> Call {
        Call { rpc, about: about.into(), is_mutating: true, refused: |refusal| refusal }
    }

    /// A call that only asks.
    #[must_use]
    pub fn question(rpc: &'static str, about: impl Into<String>) -> Call {
        Call { is_mutating: false, ..Call::change(rpc, about) }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rpc)?;
        if self.about.is_empty() { Ok(()) } else { write!(OneLine::new(f, MAX_ABOUT), " {}", self.about) }
    }
}

/// A bounded queue, and threads that are started when there is work for them, up to a number. They stay.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    most_threads: usize,
    queue_length: usize,
    stack: usize,
    queue: Sender<Job>,
    jobs: Receiver<Job>,
    load: Mutex<Load>,
}

/// How many threads there are, and how many jobs are queued or running.
#[derive(Debug, Default)]
struct Load {
    threads: usize,
    jobs: usize,
}

impl Pool {
    /// Makes a pool, with no thread yet.
    #[must_use]
    pub fn new(name: &'static str, most_threads: usize, queue_length: usize) -> Pool {
        Pool::with_stack(name, most_threads, queue_length, STACK)
    }

    fn with_stack(name: &'static str, most_threads: usize, queue_length: usize, stack: usize) -> Pool {
        // Room also for what free threads are about to take: a burst comes faster than they start.
        let (queue, jobs) = bounded(most_threads.saturating_add(queue_length));
        let load = Mutex::new(Load::default());
        Pool { shared: Arc::new(Shared { name, most_threads, queue_length, stack, queue, jobs, load }) }
    }

    /// Queues a job, and starts a thread for it when all that there are have work.
    fn submit(&self, job: Job) -> Result<()> {
        let shared = &self.shared;
        let mut load = shared.load();
        if load.jobs >= shared.most_threads.saturating_add(shared.queue_length) {
            return Err(Error::Overloaded(shared.queue_length));
        }
        match shared.queue.try_send(job) {
            Ok(()) => load.jobs += 1,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                return Err(Error::Bug("the queue of calls has less room than it should".to_owned()));
            }
        }
        if load.jobs > load.threads && load.threads < shared.most_threads {
            let name = format!("{}-{}", shared.name, load.threads);
            let work = Arc::clone(shared);
            match thread::Builder::new().name(name).stack_size(shared.stack).spawn(move || work.work_off()) {
                Ok(_) => load.threads += 1,
                Err(err) if load.threads == 0 => {
                    // Nobody would ever take the job, and its caller is better off with an answer. It is the only one, as
                    // the load is locked and those before it were taken back, too.
                    load.jobs -= shared.jobs.try_iter().count();
                    error!("the system gives no thread for the first call: {err}");
                    return Err(Error::NoThread(err));
                }
                Err(err) => error!("the system gives no thread, calls wait for the {} that run: {err}", load.threads),
            }
        }
        Ok(())
    }

    /// Queues a call and answers it when its work is done. The work is told when the call came, as the time that it waited
    /// for a thread is the caller's time too; a call whose caller has given up by then is not worked on at all.
    ///
    /// A panic in the work is answered INTERNAL and stays without consequence for other calls; a full queue is answered
    /// at once: UNAVAILABLE, unless the call says otherwise.
    pub fn answer<T, F>(&self, ctx: &RpcContext<'_>, sink: UnarySink<T>, call: Call, work: F)
    where
        T: Send + 'static,
        F: FnOnce(Instant) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let (came, deadline, refused) = (Instant::now(), ctx.deadline(), call.refused);
        let job = Box::new(move || {
            let work = || if deadline.exceeded() { Err(Error::Abandoned) } else { work(came) };
            let outcome = run(&call, came, work);
            // Before the caller knows, so that its next call finds the room that this one leaves.
            shared.load().jobs -= 1;
            // The caller may be gone; then nobody waits for the answer.
            drop(answer.send(outcome));
        });
        let admitted = self.submit(job);
        ctx.spawn(async move {
            let answer = match admitted {
                Ok(()) => answered.await.unwrap_or_else(|_| Err(status::panicked())),
                Err(refusal) => Err(status::status(&refused(refusal))),
            };
            send(sink, answer).await;
        });
    }
}

/// Answers a call on the spot, on gRPC's own thread; only for work that neither blocks nor takes long.
pub fn answer_now<T, F>(ctx: &RpcContext<'_>, sink: UnarySink<T>, rpc: &'static str, work: F)
where
    T: Send + 'static,
    F: FnOnce() -> Result<T>,
{
    ctx.spawn(send(sink, run(&Call::question(rpc, ""), Instant::now(), work)));
}

async fn send<T>(sink: UnarySink<T>, answer: Answer<T>) {
    let sent = match answer {
        Ok(reply) => sink.success(reply).await,
        Err(status) => sink.fail(status).await,
    };
    if let Err(err) = sent {
        debug!("answer not delivered, the caller is gone: {err}");
    }
}

impl Shared {
    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_off(&self) {
        for job in &self.jobs {
            job();
        }
    }
}

fn run<T>(call: &Call, came: Instant, work: impl FnOnce() -> Result<T>) -> Answer<T> {
    let number = NEXT_CALL.fetch_add(1, Ordering::Relaxed);
    let _label = Label::set(format!("{number} {call}"));
    // The work owns everything it changes, or shares it behind locks that absorb poisoning.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(reply)) => {
            let level = if call.is_mutating { Level::Info } else { Level::Debug };
            log!(level, "done code=OK ms={}", came.elapsed().as_millis());
            Ok(reply)
        }
        Ok(Err(err)) => {
            log!(
                level_of(&err),
                "failed code={} ms={}: {}",
                status::name(&err),
                came.elapsed().as_millis(),
                Chain(&err)
            );
            Err(status::status(&err))
        }
        Err(panic) => {
            error!("panicked ms={}: {}", came.elapsed().as_millis(), panic_text(panic.as_ref()));
            Err(status::panicked())
        }
    }
}

/// Refusals that are the caller's business are warnings; what an operator has to look at is an error.
fn level_of(err: &Error) -> Level {
    match err {
        Error::WillNotFormat { .. }
        | Error::WrongFilesystem { .. }
        | Error::DamagedFilesystem { .. }
        | Error::WrongDevice { .. }
        | Error::DeviceMissing { .. }
        | Error::Api { .. }
        | Error::AccountLimit { .. }
        | Error::OtherAccount { .. }
        | Error::Command { .. }
        | Error::Io { .. }
        | Error::NoThread(_)
        | Error::Bug(_) => Level::Error,
        Error::Invalid { .. }
        | Error::Unsupported(_)
        | Error::NotFound(_)
        | Error::Mismatch { .. }
        | Error::NotAdopted { .. }
        | Error::NotOurs { .. }
        | Error::SizeOutOfRange(_)
        | Error::RegionUnavailable { .. }
        | Error::AttachLimit { .. }
        | Error::SnapshotTooSoon { .. }
        | Error::AttachedElsewhere { .. }
        | Error::OtherRegion { .. }
        | Error::StillAttached { .. }
        | Error::TargetTaken { .. }
        | Error::MountedOtherwise { .. }
        | Error::Precondition(_)
        | Error::Locked(_)
        | Error::OutOfTime { .. }
        | Error::NotYet(_)
        | Error::NotReady(_)
        | Error::Overloaded(_)
        | Error::Abandoned
        | Error::BadPageToken(_) => Level::Warn,
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_for_which_there_is_no_thread_is_refused_and_not_left_in_the_queue() {
        // More than a process has addresses for.
        let pool = Pool::with_stack("none", 2, 2, 1 << 48);
        for _ in 0..6 {
            assert!(matches!(pool.submit(Box::new(|| {})), Err(Error::NoThread(_))));
        }
        assert_eq!((pool.shared.load().jobs, pool.shared.jobs.len()), (0, 0));
        let (done, heard) = bounded(1);
        Pool::new("one", 1, 1).submit(Box::new(move || done.send(()).unwrap())).unwrap();
        heard.recv().unwrap();
    }
}
