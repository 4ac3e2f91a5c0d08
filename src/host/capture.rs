//! What a child writes, read while it runs.
//!
//! Owns how much of an output is kept. The caller decides when it is read and what it means.

use std::collections::VecDeque;
use std::io::{ErrorKind, PipeReader, Read};
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// How much is read from a child at once.
const PIECE: usize = 16 * 1024;

/// One output of a child, read while it runs: nothing that the child writes can fill a pipe or memory. Its beginning and its
/// end are kept.
pub(super) struct Capture {
    pipe: PipeReader,
    pub(super) head: Vec<u8>,
    most_head: usize,
    pub(super) tail: VecDeque<u8>,
    most_tail: usize,
    is_cut: bool,
    /// Why the last reading ended before there was nothing more to read.
    failed: Option<std::io::Error>,
}

impl Capture {
    /// A capture, and what the child writes to.
    pub(super) fn new(most_head: usize, most_tail: usize) -> std::io::Result<(Self, Stdio)> {
        let (pipe, writer) = std::io::pipe()?;
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let (head, tail) = (Vec::new(), VecDeque::new());
        Ok((Capture { pipe, head, most_head, tail, most_tail, is_cut: false, failed: None }, Stdio::from(writer)))
    }

    /// Reads what is there at the moment, and returns whether there was anything. It does not wait for the end: a
    /// process that the child has left behind may keep the pipe open. A failure is no end either: the child still runs
    /// and must not be left alone with a disk, and what could not be read is still there.
    pub(super) fn drain(&mut self) -> bool {
        let mut piece = [0; PIECE];
        let mut was_any = false;
        self.failed = None;
        loop {
            match self.pipe.read(&mut piece) {
                Ok(0) => return was_any,
                Ok(length) => {
                    self.keep(piece.get(..length).unwrap_or_default());
                    was_any = true;
                }
                Err(err) if err.kind() == ErrorKind::WouldBlock => return was_any,
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => {
                    self.failed = Some(err);
                    return was_any;
                }
            }
        }
    }

    /// Makes sure that everything was read, after the child has ended.
    ///
    /// # Errors
    /// The system's answer, if a second try failed too.
    pub(super) fn ensure_read(&mut self) -> std::io::Result<()> {
        if self.failed.is_some() {
            self.drain();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.most_head.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend(first);
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(self.most_tail);
        self.is_cut |= over > 0;
        self.tail.drain(..over);
    }

    /// What was kept, with a sign where something is missing.
    pub(super) fn text(self) -> String {
        let tail: Vec<u8> = self.tail.into();
        let gap: &[u8] = if self.is_cut { b"\n[...]\n" } else { b"" };
        String::from_utf8_lossy(&[self.head.as_slice(), gap, tail.as_slice()].concat()).into_owned()
    }
}
