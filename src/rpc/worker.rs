//! The threads that do the work of calls, and the path of every answer back to the caller.
//!
//! Owns the bounded queue, its named threads, the queues of calls for one volume, the containment of panics and the one log
//! line at the end of each call. gRPC's own threads never block: they queue the work and send the answer when it comes. What
//! the work is, is not known here.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use futures_channel::oneshot;
use grpcio::{RpcContext, RpcStatus, UnarySink};
use log::{Level, debug, error, log};

use crate::activity::{About, Call, Label, Open, enter};
use crate::error::{Chain, Error, Result};
use crate::metrics;
use crate::metrics::Queued;
use crate::metrics::events::{EventKind, record};
use crate::rpc::front::callers::caller_of;
use crate::rpc::status;
use crate::sync::caller::Caller;
use crate::sync::fifo_lock::NoLock;
use crate::sync::volume_lock::{VolumeBusy, VolumeKey};

type Job = Box<dyn FnOnce() + Send>;
type Answer<T> = Result<T, RpcStatus>;

/// Stack of a worker; the deepest calls, into JSON and TLS, take a fraction of it.
const STACK: usize = 1 << 20;

/// How many calls for one volume have a thread at once: one at work, and one that sees to it that the longest waiting caller
/// is answered in time. The others would only wait for the volume's lock, with threads that other volumes need.
const MOST_AT_WORK: usize = 2;

/// How long the thread of a call with a large reply waits at most until that is sent, to a caller that does not read it.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// How many calls for one volume may be ahead of one that comes. The room of a pool is for all volumes.
const MAX_QUEUE: usize = 8;

/// How long a thread waits for work before it ends, and gives its stack back.
const IDLE: Duration = Duration::from_secs(5);

/// How often it is said at most that calls were refused as there is no room for them: they come by the thousand.
const REFUSALS_TOLD: Duration = Duration::from_secs(1);

/// Which call it is: what the log shows of it.
#[derive(Debug, Clone)]
pub struct RpcInfo {
    /// The RPC's name as in the CSI specification.
    pub rpc: &'static str,
    /// What it is about: a volume's id or name, a droplet, or nothing.
    pub about: About,
    /// Whether it changes something; then its end is logged at info, otherwise at debug.
    pub is_mutating: bool,
    /// What becomes of the refusal of a call for which there is no room.
    pub refused: fn(Error) -> Error,
    /// The volume whose calls have two threads at most; `None` for a call that waits for no other call.
    pub volume: Option<VolumeKey>,
    /// Whether its reply may have megabytes. Then its thread begins with nothing else until it is sent, so that no more
    /// of them are in memory than there are threads.
    pub is_large: bool,
}

impl RpcInfo {
    /// A call that changes something.
    #[must_use]
    pub fn change(rpc: &'static str, about: About) -> RpcInfo {
        let refused = |refusal| refusal;
        RpcInfo { rpc, about, is_mutating: true, refused, volume: None, is_large: false }
    }

    /// A call that only asks.
    #[must_use]
    pub fn question(rpc: &'static str, about: About) -> RpcInfo {
        RpcInfo { is_mutating: false, ..RpcInfo::change(rpc, about) }
    }

    /// The same call, as one that may wait for other calls for this volume.
    #[must_use]
    pub fn on(self, volume: VolumeKey) -> RpcInfo {
        RpcInfo { volume: Some(volume), ..self }
    }
}

/// When a call came, and who waits for its answer.
#[derive(Debug)]
pub struct Incoming {
    /// When it came: the time that it waited for a thread is the caller's time too.
    pub came: Instant,
    /// Who waits.
    pub caller: Arc<Caller>,
}

/// A bounded queue, and threads that are started when there is work for them, up to a number, and end when there has been
/// none for some seconds.
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
    idle: Duration,
    queue: Sender<Job>,
    jobs: Receiver<Job>,
    load: Mutex<Load>,
    refusals: Mutex<Refusals>,
}

/// The calls for which there was no room, to be said in the log now and then.
#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    said: Option<Instant>,
}

impl Refusals {
    /// Counts one more; gives the number that is to be said now, if any is.
    fn plan_line(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < REFUSALS_TOLD) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// How many threads there are, and how many jobs wait or run.
#[derive(Debug, Default)]
struct Load {
    threads: usize,
    /// All jobs.
    jobs: usize,
    /// Those that have a thread, or the next free one.
    dispatched: usize,
    lines: HashMap<VolumeKey, VolumeLine>,
}

/// The jobs for one volume.
#[derive(Default)]
struct VolumeLine {
    dispatched: usize,
    waiting: VecDeque<Job>,
}

impl fmt::Debug for VolumeLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at work, {} waiting", self.dispatched, self.waiting.len())
    }
}

impl Load {
    /// Puts a job where it belongs: gives it back when it may have a thread, and keeps it while its volume has enough of them.
    fn admit(&mut self, volume: Option<&VolumeKey>, job: Job) -> Result<Option<Job>, VolumeBusy> {
        if let Some(volume) = volume {
            let line = self.lines.entry(volume.clone()).or_default();
            if line.dispatched + line.waiting.len() > MAX_QUEUE {
                return Err(VolumeBusy::new(volume.clone(), NoLock::Full));
            }
            if line.dispatched >= MOST_AT_WORK {
                line.waiting.push_back(job);
                self.jobs += 1;
                return Ok(None);
            }
            line.dispatched += 1;
        }
        self.jobs += 1;
        self.dispatched += 1;
        Ok(Some(job))
    }

    /// Counts a job as done; gives the next one for its volume, which gets its thread.
    fn finish(&mut self, volume: Option<&VolumeKey>) -> Option<Job> {
        self.jobs -= 1;
        let next = volume.and_then(|volume| {
            let line = self.lines.get_mut(volume)?;
            let next = line.waiting.pop_front();
            if next.is_none() {
                line.dispatched -= 1;
                if line.dispatched == 0 {
                    self.lines.remove(volume);
                }
            }
            next
        });
        if next.is_none() {
            self.dispatched -= 1;
        }
        next
    }

    /// Forgets everything that was queued; nothing is at work.
    fn forget(&mut self) {
        *self = Load::default();
    }
}

impl Pool {
    /// Makes a pool, with no thread yet.
    #[must_use]
    pub fn new(name: &'static str, most_threads: usize, queue_length: usize) -> Pool {
        Pool::with(name, most_threads, queue_length, STACK, IDLE)
    }

    fn with(name: &'static str, most_threads: usize, queue_length: usize, stack: usize, idle: Duration) -> Pool {
        // Room also for what free threads are about to take: a burst comes faster than they start.
        let (queue, jobs) = bounded(most_threads.saturating_add(queue_length));
        let (load, refusals) = (Mutex::default(), Mutex::default());
        let shared = Shared { name, most_threads, queue_length, stack, idle, queue, jobs, load, refusals };
        Pool { shared: Arc::new(shared) }
    }

    /// Queues a job, and starts a thread for it when all that there are have work.
    fn submit(&self, volume: Option<&VolumeKey>, job: Job) -> Result<()> {
        let shared = &self.shared;
        let mut load = shared.load();
        if load.jobs >= shared.most_threads.saturating_add(shared.queue_length) {
            return Err(Error::Overloaded(shared.queue_length));
        }
        let Some(job) = load.admit(volume, job)? else { return Ok(()) };
        shared.dispatch(job)?;
        if load.dispatched > load.threads && load.threads < shared.most_threads {
            let name = format!("{}-{}", shared.name, load.threads);
            let work = Arc::clone(shared);
            match thread::Builder::new().name(name).stack_size(shared.stack).spawn(move || work.work_off()) {
                Ok(_) => load.threads += 1,
                Err(err) if load.threads == 0 => {
                    // Nobody would ever take the job, and its caller is better off with an answer. It is the only one, as
                    // the load is locked and those before it were taken back, too.
                    drop(shared.jobs.try_iter().collect::<Vec<_>>());
                    load.forget();
                    error!("cannot start a thread for the first call: {err}");
                    return Err(Error::NoThread(err));
                }
                Err(err) => {
                    error!("cannot start another thread, so calls wait for the {} that run: {err}", load.threads)
                }
            }
        }
        Ok(())
    }

    /// Queues a call and answers it when its work is done. The work is told when the call came and who
    /// waits; a call whose caller has given up before it has a thread is not worked on at all.
    ///
    /// Of the calls for one volume two have a thread at a time, the others wait without one, in order.
    ///
    /// A panic in the work is answered INTERNAL and stays without consequence for other calls; a full queue is answered
    /// at once: UNAVAILABLE, or ABORTED when it is the volume's, unless the call says otherwise.
    pub fn answer<T, F>(&self, ctx: &RpcContext<'_>, sink: UnarySink<T>, call: RpcInfo, work: F)
    where
        T: Send + 'static,
        F: FnOnce(Incoming) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (sending, sent) = bounded::<()>(0);
        let shared = Arc::clone(&self.shared);
        let (came, caller, refused) = (Instant::now(), caller_of(ctx), call.refused);
        let (volume, rpc) = (call.volume.clone(), call.rpc);
        let queued = Queued::in_pool(self.shared.name);
        let entered = Call::new(call.rpc, call.about.clone(), came);
        let open = Open::new(Arc::clone(&entered));
        let job = Box::new(move || {
            drop(queued);
            let work = || if caller.is_gone() { Err(Error::CallerGone) } else { work(Incoming { came, caller }) };
            let outcome = run(open.begin(), &call, came, work);
            drop(open);
            // Before the caller knows, so that its next call finds the room that this one leaves.
            shared.finish(call.volume.as_ref());
            // The caller may be gone; then nobody waits for the answer.
            drop(answer.send(outcome));
            if call.is_large {
                // The other end is dropped when the reply is sent.
                let _nothing_comes = sent.recv_timeout(SEND_LIMIT).is_err();
            }
        });
        let admitted = self.submit(volume.as_ref(), job);
        if let Err(refusal) = &admitted {
            self.shared.tell_of_refusal(entered, refusal);
        }
        ctx.spawn(async move {
            let answer = match admitted {
                Ok(()) => answered.await.unwrap_or_else(|_| Err(status::panicked())),
                Err(refusal) => {
                    let refusal = refused(refusal);
                    metrics::count_call(rpc, &status::name(&refusal), came.elapsed());
                    Err(status::status(&refusal))
                }
            };
            send(sink, answer).await;
            drop(sending);
        });
    }
}

/// Refuses a call on the spot.
pub fn refuse<T: Send + 'static>(ctx: &RpcContext<'_>, sink: UnarySink<T>, call: &RpcInfo, why: Error) {
    let came = Instant::now();
    let label = enter(Call::new(call.rpc, call.about.clone(), came));
    ctx.spawn(send(sink, run(label, call, came, || Err(why))));
}

/// Answers a call on the spot, on gRPC's own thread; only for work that neither blocks nor takes long.
pub fn answer_now<T, F>(ctx: &RpcContext<'_>, sink: UnarySink<T>, rpc: &'static str, work: F)
where
    T: Send + 'static,
    F: FnOnce() -> Result<T>,
{
    let (call, came) = (RpcInfo::question(rpc, About::default()), Instant::now());
    let label = enter(Call::new(rpc, About::default(), came));
    ctx.spawn(send(sink, run(label, &call, came, work)));
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

    /// Gives a job to the next free thread.
    fn dispatch(&self, job: Job) -> Result<()> {
        self.queue.try_send(job).map_err(|full| match full {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => {
                Error::Bug("the queue of calls has less room than it should".to_owned())
            }
        })
    }

    /// Counts a job as done, and lets the next one for its volume come.
    fn finish(&self, volume: Option<&VolumeKey>) {
        let next = self.load().finish(volume);
        // There is room for every job that was admitted, and the thread that is done takes it.
        if let Some(Err(bug)) = next.map(|job| self.dispatch(job)) {
            error!("{bug}");
        }
    }

    /// Says in the log that there was no room for a call: a warning at once, then no more than one a second, with the number of
    /// those that were refused since the last. At debug there is a line for each.
    fn tell_of_refusal(&self, call: Arc<Call>, refusal: &Error) {
        let count = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).plan_line(Instant::now());
        let (level, ms) = (if count.is_some() { Level::Warn } else { Level::Debug }, millis(call.came));
        let _label = enter(call);
        log!(level, code = status::name(refusal).as_str(), ms, count; "refused: {}", Chain(refusal));
    }

    fn work_off(&self) {
        loop {
            match self.jobs.recv_timeout(self.idle) {
                Ok(job) => job(),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    let mut load = self.load();
                    // Under the lock, as a job that is put in after this finds one thread less and gets a new one.
                    if self.jobs.is_empty() {
                        load.threads -= 1;
                        return;
                    }
                }
            }
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self.shared.load();
        let waiting: usize = load.lines.values().map(|line| line.waiting.len()).sum();
        let (name, threads, queued) = (self.shared.name, load.threads, self.shared.jobs.len());
        write!(f, "threads={name} count={threads} calls={} waiting={}", load.jobs, waiting + queued)
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Does the work of a call, and tells of its end in one line.
fn run<T>(_label: Label, call: &RpcInfo, came: Instant, work: impl FnOnce() -> Result<T>) -> Answer<T> {
    // The work owns everything it changes, or shares it behind locks that absorb poisoning.
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let code = match &outcome {
        Ok(Ok(_)) => "OK".to_owned(),
        Ok(Err(err)) => status::name(err),
        Err(_) => status::name(&Error::Bug(String::new())),
    };
    metrics::count_call(call.rpc, &code, came.elapsed());
    match outcome {
        Ok(Ok(reply)) => {
            let level = if call.is_mutating { Level::Info } else { Level::Debug };
            log!(level, code = code.as_str(), ms = millis(came); "done");
            Ok(reply)
        }
        Ok(Err(err)) => {
            if call.is_mutating {
                record(EventKind::Failed, format_args!("{} {}: {}", call.rpc, call.about, Chain(&err)));
            }
            let request = err.request_id();
            log!(level_of(&err), code = code.as_str(), ms = millis(came), request; "failed: {}", Chain(&err));
            Err(status::status(&err))
        }
        Err(panic) => {
            error!(code = code.as_str(), ms = millis(came); "panicked: {}", panic_text(panic.as_ref()));
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
        | Error::InUse { .. }
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
        | Error::NotStaged(_)
        | Error::UsedOtherwise(_)
        | Error::MountBroken(_)
        | Error::Unfinished(_)
        | Error::CannotGrow(_)
        | Error::HostUnfit(_)
        | Error::NotAsReported(_)
        | Error::VolumeBusy(_)
        | Error::Overtaken(_)
        | Error::TimedOut { .. }
        | Error::NotYet(_)
        | Error::NotReady(_)
        | Error::Overloaded(_)
        | Error::CallerGone
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

    fn volume(name: &str) -> VolumeKey {
        VolumeKey::Id(name.to_owned())
    }

    #[test]
    fn a_job_for_which_there_is_no_thread_is_refused_and_not_left_in_the_queue() {
        // More than a process has addresses for.
        let pool = Pool::with("none", 2, 2, 1 << 48, IDLE);
        for _ in 0..6 {
            assert!(matches!(pool.submit(Some(&volume("v")), Box::new(|| {})), Err(Error::NoThread(_))));
        }
        let load = pool.shared.load();
        assert_eq!((load.jobs, load.dispatched, load.lines.len(), pool.shared.jobs.len()), (0, 0, 0, 0));
        drop(load);
        let (done, heard) = bounded(1);
        Pool::new("one", 1, 1).submit(None, Box::new(move || done.send(()).unwrap())).unwrap();
        heard.recv().unwrap();
    }

    #[test]
    fn a_thread_without_work_ends_and_the_next_job_gets_a_new_one() {
        let pool = Pool::with("idle", 2, 2, STACK, Duration::from_millis(1));
        for _ in 0..3 {
            let (done, heard) = bounded(1);
            pool.submit(None, Box::new(move || done.send(()).unwrap())).unwrap();
            heard.recv().unwrap();
            pool.shared.finish(None);
            while pool.shared.load().threads > 0 {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn refusals_are_said_once_a_second_with_their_number() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let said: Vec<_> = [0, 1, 999, 1000, 1001, 5000].map(|ms| refusals.plan_line(at(ms))).into();
        assert_eq!(said, [Some(1), None, None, Some(3), None, Some(2)]);
    }

    #[test]
    fn a_volume_has_two_threads_at_most_and_its_other_calls_wait_in_order() {
        let mut load = Load::default();
        let (v, w) = (volume("v"), volume("w"));
        let (order, done) = bounded(100);
        let job = |number: usize| -> Job {
            let order = order.clone();
            Box::new(move || order.send(number).unwrap())
        };
        let admitted: Vec<bool> = (0..=MAX_QUEUE).map(|n| load.admit(Some(&v), job(n)).unwrap().is_some()).collect();
        assert_eq!(admitted.iter().filter(|has_thread| **has_thread).count(), MOST_AT_WORK);
        assert_eq!(admitted.iter().position(|has_thread| !has_thread), Some(MOST_AT_WORK));
        let refused = load.admit(Some(&v), job(0)).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("volume v") && refused.to_string().contains("others wait"), "{refused}");
        // Other volumes, and calls for none, are not concerned.
        assert!(load.admit(Some(&w), job(0)).unwrap().is_some() && load.admit(None, job(0)).unwrap().is_some());
        assert_eq!((load.jobs, load.dispatched), (MAX_QUEUE + 3, MOST_AT_WORK + 2));
        for _ in MOST_AT_WORK..=MAX_QUEUE {
            load.finish(Some(&v)).unwrap()();
            assert_eq!(load.dispatched, MOST_AT_WORK + 2);
        }
        assert_eq!(done.try_iter().collect::<Vec<_>>(), (MOST_AT_WORK..=MAX_QUEUE).collect::<Vec<_>>());
        for _ in 0..MOST_AT_WORK {
            assert!(load.finish(Some(&v)).is_none());
        }
        assert!(load.finish(Some(&w)).is_none() && load.finish(None).is_none());
        assert_eq!((load.jobs, load.dispatched, load.lines.len()), (0, 0, 0));
    }
}
