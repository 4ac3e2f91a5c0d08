//! The way of the log's lines to standard error: whoever logs never waits for whoever reads.
//!
//! Owns a queue that is bounded in bytes, and the one thread that writes. When nobody reads, as with a log pipe whose reader
//! hangs, or when a disk is full, lines are lost; their number is said as soon as there is room again. Nothing is known here of
//! what a line says.
//!
//! Source: hashicorp/nomad#11278, where a plugin hung for ever as nobody read its log.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::warn;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most bytes of lines that wait: more than a thousand lines.
const MAX_WAITING: usize = 256 << 10;

/// The end of the queue at which lines are put in; a clone is the same queue.
#[derive(Debug, Clone, Default)]
pub(super) struct LogQueue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// A line has come, or the last one has been written.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many had no room, or could not be written, since it was last said.
    lost: u64,
    is_writing: bool,
}

impl LogQueue {
    /// A queue, and the thread that writes its lines to `out`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(out: impl Write + AsFd + Send + 'static) -> io::Result<LogQueue> {
        let queue = LogQueue::default();
        let shared = Arc::clone(&queue.shared);
        thread::Builder::new().name("log".to_owned()).spawn(move || shared.write_all(out))?;
        Ok(queue)
    }

    /// Takes a line at once, whatever becomes of it.
    pub(super) fn put(&self, line: Vec<u8>) {
        self.shared.lock().push(line);
        self.shared.changed.notify_all();
    }

    /// Waits until everything has been written, or the time is over; says whether it has.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut waiting = self.shared.lock();
        while waiting.is_writing || !waiting.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            waiting = self.shared.changed.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Waiting {
    fn push(&mut self, line: Vec<u8>) {
        if self.bytes.saturating_add(line.len()) > MAX_WAITING {
            self.lost += 1;
        } else {
            self.bytes += line.len();
            self.lines.push_back(line);
        }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_all(&self, mut out: impl Write + AsFd) {
        loop {
            let line = self.next_line();
            let is_written = write_whole(&mut out, &line).is_ok();
            self.tell_of_lost(is_written);
        }
    }

    fn next_line(&self) -> Vec<u8> {
        let mut waiting = self.lock();
        loop {
            if let Some(line) = waiting.pop() {
                waiting.is_writing = true;
                return line;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says in the log itself how many lines were lost, once one could be written.
    fn tell_of_lost(&self, is_written: bool) {
        let mut waiting = self.lock();
        let lost = if is_written { std::mem::take(&mut waiting.lost) } else { 0 };
        waiting.lost += u64::from(!is_written);
        drop(waiting);
        if lost > 0 {
            warn!("{lost} lines of the log before this one are lost: they could not be written as fast as they came");
        }
        self.lock().is_writing = false;
        self.changed.notify_all();
    }
}

/// Writes a line, also where somebody made the file one that does not block.
fn write_whole(out: &mut (impl Write + AsFd), mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match out.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{BufRead, BufReader, pipe};

    #[test]
    fn what_nobody_reads_is_dropped_and_the_rest_comes_whole_and_in_order() {
        let (reader, writer) = pipe().unwrap();
        let queue = LogQueue::start(writer).unwrap();
        let line = |number: usize| format!("{number:099}\n");
        let count = 2 * MAX_WAITING / line(0).len();
        for number in 0..count {
            queue.put(line(number).into_bytes());
        }
        assert!(!queue.drain(Duration::from_millis(10)));
        // The pipe takes less than the other half, so the rest was dropped. How many were is told with the first line that is
        // written, which may be before or after this.
        assert!(queue.shared.lock().bytes <= MAX_WAITING);
        let mut lines = BufReader::new(reader).lines();
        for number in 0..MAX_WAITING / line(0).len() {
            assert_eq!(lines.next().unwrap().unwrap() + "\n", line(number));
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        let queue = LogQueue::start(File::options().write(true).open("/dev/full").unwrap()).unwrap();
        for _ in 0..3 {
            queue.put(b"a line\n".to_vec());
        }
        assert!(queue.drain(Duration::from_secs(60)));
        assert_eq!(queue.shared.lock().lost, 3);
    }
}
