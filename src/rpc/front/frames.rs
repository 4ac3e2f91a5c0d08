//! The frames of HTTP/2 that pass on one connection.
//!
//! Owns what a caller may do to gRPC with well-formed frames, and which calls are open. Nothing is changed on the way but the
//! headers of a call, which get one more.
//!
//! Source: RFC 9113, sections 3.4, 4.1 and 6.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::rpc::front::callers::Place;
use crate::rpc::front::hpack::HeaderReader;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame before its content.
const HEAD: usize = 9;
/// The largest frame that both sides must take without being asked.
const MAX_FRAME: usize = 16_384;
/// Most bytes of the headers of a call, which leaves room for the one that is added.
const MAX_HEADERS: usize = MAX_FRAME - 64;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Most calls that are open on a connection: more than gRPC takes, which is the one to refuse them.
const MAX_OPEN: usize = 1000;
/// Calls that one connection may take back, at once and then in a second. A caller whose calls all run out of time at once
/// stays below; gRPC itself would work on calls that are made and taken back as fast as they can be sent.
const MAX_TAKEN_BACK: u32 = 300;
const FORGIVEN_A_SECOND: u32 = 50;
/// How long a request may take to come.
const UNFINISHED: Duration = Duration::from_secs(10);

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    #[error("it does not speak HTTP/2")]
    NotHttp2,
    #[error("the headers of a call are larger than {MAX_HEADERS} bytes")]
    LargeHeaders,
    #[error("it takes calls back as fast as it makes them")]
    TakesBack,
    #[error("a request has not come to its end within {} s", UNFINISHED.as_secs())]
    Unfinished,
}

/// The beginning of a frame.
#[derive(Debug, Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Head> {
        let &[a, b, c, kind, flags, w, x, y, z] = bytes.first_chunk::<HEAD>()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        Some(Head { length, kind, flags, stream: u32::from_be_bytes([w & 0x7f, x, y, z]) })
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A call that is open.
#[derive(Debug)]
struct Open {
    _place: Place,
    began: Instant,
    is_complete: bool,
    /// Bytes that have come of it.
    bytes: usize,
}

/// Headers of which more comes.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
}

/// What comes from a caller.
#[derive(Debug)]
pub(super) struct Requests {
    /// Bytes that are not yet a whole frame, or the head of one.
    pending: Vec<u8>,
    is_greeted: bool,
    /// How much of a frame is passed on without a look at it.
    passing: usize,
    block: Option<Block>,
    /// Gone once it cannot read what gRPC may be able to; then calls have no time limit here.
    reader: Option<HeaderReader>,
    last_stream: u32,
    open: BTreeMap<u32, Open>,
    /// From how many open calls on no other one is begun.
    most_open: usize,
    /// What came from the beginning of such a call on.
    held: Vec<u8>,
    taken_back: u32,
    forgiven: Instant,
}

impl Requests {
    pub(super) fn new(now: Instant) -> Requests {
        Requests {
            pending: Vec::new(),
            is_greeted: false,
            passing: 0,
            block: None,
            reader: Some(HeaderReader::new()),
            last_stream: 0,
            open: BTreeMap::new(),
            most_open: usize::MAX,
            held: Vec::new(),
            taken_back: 0,
            forgiven: now,
        }
    }

    /// Takes what came, and puts what gRPC is to get behind `out`.
    pub(super) fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>, now: Instant) -> Result<(), Cut> {
        while !bytes.is_empty() {
            if self.passing > 0 {
                let (passed, rest) = bytes.split_at(self.passing.min(bytes.len()));
                out.extend_from_slice(passed);
                self.passing -= passed.len();
                bytes = rest;
            } else if self.is_greeted {
                bytes = self.take_frame(bytes, out, now)?;
            } else {
                bytes = self.fill(PREFACE.len(), bytes);
                if !PREFACE.starts_with(&self.pending) {
                    return Err(Cut::NotHttp2);
                }
                if self.pending.len() == PREFACE.len() {
                    self.is_greeted = true;
                    out.append(&mut self.pending);
                }
            }
        }
        Ok(())
    }

    /// How many calls are open.
    pub(super) fn open_calls(&self) -> usize {
        self.open.len()
    }

    /// Begins no other call as long as so many are open.
    pub(super) fn limit_open_calls(&mut self, most: usize) {
        self.most_open = most;
    }

    /// Whether a call has come that was not begun; then nothing more is to be read.
    pub(super) fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Goes on with what was held.
    pub(super) fn resume(&mut self, out: &mut Vec<u8>, now: Instant) -> Result<(), Cut> {
        let held = std::mem::take(&mut self.held);
        self.take(&held, out, now)
    }

    /// Fills what is pending up to a length, and gives what is left.
    fn fill<'a>(&mut self, length: usize, bytes: &'a [u8]) -> &'a [u8] {
        let wanted = length.saturating_sub(self.pending.len()).min(bytes.len());
        let (taken, rest) = bytes.split_at(wanted);
        self.pending.extend_from_slice(taken);
        rest
    }

    fn take_frame<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>, now: Instant) -> Result<&'a [u8], Cut> {
        let rest = self.fill(HEAD, bytes);
        let Some(head) = Head::parse(&self.pending) else { return Ok(rest) };
        if self.block.as_ref().is_some_and(|block| head.kind != CONTINUATION || head.stream != block.stream) {
            return Err(Cut::NotHttp2);
        }
        let is_new = head.kind == HEADERS && head.stream > self.last_stream;
        if is_new && self.open.len() >= self.most_open {
            self.held.append(&mut self.pending);
            self.held.extend_from_slice(rest);
            return Ok(&[]);
        }
        match head.kind {
            HEADERS | CONTINUATION => {
                if head.length > MAX_FRAME {
                    return Err(Cut::LargeHeaders);
                }
                let rest = self.fill(HEAD + head.length, rest);
                if self.pending.len() == HEAD + head.length {
                    let frame = std::mem::take(&mut self.pending);
                    self.take_headers(head, frame.get(HEAD..).unwrap_or_default(), out, now)?;
                }
                return Ok(rest);
            }
            RST_STREAM if self.open.remove(&head.stream).is_some() => self.count_taken_back(now)?,
            DATA => {
                if let Some(open) = self.open.get_mut(&head.stream) {
                    open.bytes = open.bytes.saturating_add(head.length);
                }
                if head.has(END_STREAM) {
                    self.complete(head.stream);
                }
            }
            // Whatever else there is concerns the connection, and gRPC.
            _ => {}
        }
        self.passing = head.length;
        out.append(&mut self.pending);
        Ok(rest)
    }

    fn take_headers(&mut self, head: Head, content: &[u8], out: &mut Vec<u8>, now: Instant) -> Result<(), Cut> {
        let mut block = match self.block.take() {
            Some(mut block) => {
                block.bytes.extend_from_slice(content);
                block
            }
            None if head.kind == CONTINUATION => return Err(Cut::NotHttp2),
            None => {
                let bytes = without_padding(head, content).ok_or(Cut::NotHttp2)?.to_vec();
                Block { stream: head.stream, ends_stream: head.has(END_STREAM), bytes }
            }
        };
        if block.bytes.len() > MAX_HEADERS {
            return Err(Cut::LargeHeaders);
        }
        if !head.has(END_HEADERS) {
            self.block = Some(block);
            return Ok(());
        }
        let limit = self.reader.as_mut().map(|reader| reader.read(&block.bytes));
        let limit = match limit {
            Some(Ok(limit)) => limit,
            Some(Err(_)) | None => {
                self.reader = None;
                None
            }
        };
        if block.stream > self.last_stream {
            if block.stream % 2 == 0 || self.open.len() >= MAX_OPEN {
                return Err(Cut::NotHttp2);
            }
            self.last_stream = block.stream;
            let place = Place::take(limit.and_then(|limit| now.checked_add(limit)));
            block.bytes.extend(place.header());
            self.open.insert(block.stream, Open { _place: place, began: now, is_complete: false, bytes: 0 });
        }
        if block.ends_stream {
            self.complete(block.stream);
        }
        let flags = END_HEADERS | if block.ends_stream { END_STREAM } else { 0 };
        out.extend_from_slice(&head_of(block.bytes.len(), HEADERS, flags, block.stream).ok_or(Cut::LargeHeaders)?);
        out.append(&mut block.bytes);
        Ok(())
    }

    fn complete(&mut self, stream: u32) {
        if let Some(open) = self.open.get_mut(&stream) {
            open.is_complete = true;
        }
    }

    fn count_taken_back(&mut self, now: Instant) -> Result<(), Cut> {
        let seconds = now.saturating_duration_since(self.forgiven).as_secs();
        if seconds > 0 {
            self.forgiven = now;
            let forgiven = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(FORGIVEN_A_SECOND);
            self.taken_back = self.taken_back.saturating_sub(forgiven);
        }
        self.taken_back += 1;
        if self.taken_back > MAX_TAKEN_BACK { Err(Cut::TakesBack) } else { Ok(()) }
    }

    /// Takes in that gRPC has done with a call.
    pub(super) fn answered(&mut self, stream: u32) {
        self.open.remove(&stream);
    }

    /// Takes in that gRPC is gone.
    pub(super) fn all_answered(&mut self) {
        self.open.clear();
    }

    /// Whether a call has come to its end and waits for its answer; then the connection is not to be closed.
    pub(super) fn is_waiting(&self) -> bool {
        self.open.values().any(|open| open.is_complete)
    }

    /// Whether there is a request that has not come to its end.
    pub(super) fn is_unfinished(&self) -> bool {
        self.open.values().any(|open| !open.is_complete)
    }

    /// How much has come of requests that have not come to their end, and that gRPC keeps until then.
    pub(super) fn unfinished_bytes(&self) -> usize {
        self.open.values().filter(|open| !open.is_complete).map(|open| open.bytes).fold(0, usize::saturating_add)
    }

    /// Fails when a request takes too long to come.
    pub(super) fn check_time(&self, now: Instant) -> Result<(), Cut> {
        let is_late = |open: &Open| !open.is_complete && now.saturating_duration_since(open.began) > UNFINISHED;
        // The rest of it may be among what is held here.
        if !self.is_held() && self.open.values().any(is_late) { Err(Cut::Unfinished) } else { Ok(()) }
    }
}

/// What comes from gRPC.
#[derive(Debug, Default)]
pub(super) struct Answers {
    head: Vec<u8>,
    passing: usize,
}

impl Answers {
    /// Looks at what passes, and gives the calls that are done with.
    pub(super) fn look(&mut self, mut bytes: &[u8]) -> Vec<u32> {
        let mut done = Vec::new();
        while !bytes.is_empty() {
            let (passed, rest) = bytes.split_at(self.passing.min(bytes.len()));
            self.passing -= passed.len();
            let wanted = HEAD.saturating_sub(self.head.len()).min(rest.len());
            let (head, rest) = rest.split_at(wanted);
            self.head.extend_from_slice(head);
            bytes = rest;
            if self.passing == 0
                && let Some(head) = Head::parse(&self.head)
            {
                self.head.clear();
                self.passing = head.length;
                if head.kind == RST_STREAM || matches!(head.kind, DATA | HEADERS) && head.has(END_STREAM) {
                    done.push(head.stream);
                }
            }
        }
        done
    }
}

fn head_of(length: usize, kind: u8, flags: u8, stream: u32) -> Option<[u8; HEAD]> {
    let [_, a, b, c] = u32::try_from(length).ok()?.to_be_bytes();
    let [w, x, y, z] = stream.to_be_bytes();
    Some([a, b, c, kind, flags, w, x, y, z])
}

/// The headers in a frame's content, without padding and the priority that HTTP/2 has given up.
fn without_padding(head: Head, content: &[u8]) -> Option<&[u8]> {
    let (padding, content) = if head.has(PADDED) {
        content.split_first().map(|(length, rest)| (usize::from(*length), rest))?
    } else {
        (0, content)
    };
    let content = if head.has(PRIORITY) { content.get(5..)? } else { content };
    content.get(..content.len().checked_sub(padding)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
        [&head_of(content.len(), kind, flags, stream).unwrap()[..], content].concat()
    }

    /// A header that is written out, for 10 s.
    const LIMIT: &[u8] = b"\x00\x0cgrpc-timeout\x0310S";

    fn take(requests: &mut Requests, bytes: &[u8]) -> Result<Vec<u8>, Cut> {
        let mut out = Vec::new();
        requests.take(bytes, &mut out, Instant::now()).map(|()| out)
    }

    fn greeted() -> Requests {
        let mut requests = Requests::new(Instant::now());
        assert_eq!(take(&mut requests, PREFACE).unwrap(), PREFACE);
        requests
    }

    #[test]
    fn a_call_gets_one_header_more_in_whatever_pieces_it_comes() {
        let padded = [&[3, 0, 0, 0, 0, 0][..], LIMIT, &[0; 3]].concat();
        let (begin, end) = LIMIT.split_at(7);
        let cut = [frame(HEADERS, END_STREAM, 1, begin), frame(CONTINUATION, END_HEADERS, 1, end)].concat();
        for bytes in [
            frame(HEADERS, END_STREAM | END_HEADERS, 1, LIMIT),
            frame(HEADERS, END_STREAM | END_HEADERS | PADDED | PRIORITY, 1, &padded),
            cut,
        ] {
            for size in [1, 5, bytes.len()] {
                let mut requests = greeted();
                let out =
                    bytes.chunks(size).map(|piece| take(&mut requests, piece).unwrap()).collect::<Vec<_>>().concat();
                let head = Head::parse(&out).unwrap();
                assert_eq!((head.length, head.kind, head.flags), (out.len() - HEAD, HEADERS, END_STREAM | END_HEADERS));
                assert!(out[HEAD..].starts_with(LIMIT) && out[HEAD + LIMIT.len()..].starts_with(b"\x00\x08x-caller"));
                assert!(requests.is_waiting() && !requests.is_unfinished());
                requests.answered(1);
                assert!(!requests.is_waiting());
            }
        }
    }

    #[test]
    fn everything_else_passes_as_it_is() {
        let mut requests = greeted();
        let mut bytes = [frame(4, 0, 0, &[]), frame(DATA, 0, 1, &[7; 100]), frame(6, 0, 0, &[1; 8])].concat();
        bytes.extend(frame(DATA, END_STREAM, 1, b"x"));
        for size in [1, 8, 64] {
            let out = bytes.chunks(size).map(|piece| take(&mut requests, piece).unwrap()).collect::<Vec<_>>().concat();
            assert_eq!(out, bytes);
        }
    }

    #[test]
    fn what_no_client_does_ends_the_connection() {
        assert_eq!(take(&mut Requests::new(Instant::now()), b"GET / HTTP/1.1\r\n"), Err(Cut::NotHttp2));
        let large = vec![0; MAX_FRAME];
        assert_eq!(take(&mut greeted(), &frame(HEADERS, END_HEADERS, 1, &large)), Err(Cut::LargeHeaders));
        let mut requests = greeted();
        take(&mut requests, &frame(HEADERS, 0, 1, LIMIT)).unwrap();
        assert_eq!(take(&mut requests, &frame(DATA, 0, 1, b"")), Err(Cut::NotHttp2));
    }

    #[test]
    fn a_call_beyond_the_limit_is_held_until_another_one_is_over() {
        let calls: Vec<u8> = [1, 3, 5]
            .map(|id| [frame(HEADERS, END_HEADERS, id, LIMIT), frame(DATA, END_STREAM, id, b"x")].concat())
            .concat();
        for size in [1, 20, calls.len()] {
            let (mut requests, now) = (greeted(), Instant::now());
            requests.limit_open_calls(2);
            let mut rest = calls.chunks(size);
            let mut out = Vec::new();
            while !requests.is_held() {
                requests.take(rest.next().unwrap(), &mut out, now).unwrap();
            }
            assert_eq!((requests.open_calls(), requests.is_unfinished()), (2, false));
            requests.resume(&mut out, now).unwrap();
            assert!(requests.is_held() && requests.check_time(now + UNFINISHED * 2).is_ok());
            requests.answered(1);
            requests.resume(&mut out, now).unwrap();
            rest.for_each(|piece| requests.take(piece, &mut out, now).unwrap());
            assert!(!requests.is_held());
            assert_eq!(requests.open.keys().copied().collect::<Vec<_>>(), [3, 5]);
            assert!(requests.is_waiting() && !requests.is_unfinished());
            let begun = Answers::default().look(&out[..]);
            assert_eq!(begun, [1, 3, 5], "all passed on, in order");
        }
    }

    #[test]
    fn a_caller_may_take_calls_back_but_not_without_end() {
        let mut requests = greeted();
        let start = Instant::now();
        let mut count = 0;
        let mut take_back = |at: Duration| {
            count += 1;
            let id = 2 * count - 1;
            let bytes = [frame(HEADERS, END_HEADERS, id, LIMIT), frame(RST_STREAM, 0, id, &[0; 4])].concat();
            requests.take(&bytes, &mut Vec::new(), start + at)
        };
        for _ in 0..MAX_TAKEN_BACK {
            take_back(Duration::ZERO).unwrap();
        }
        for _ in 0..FORGIVEN_A_SECOND {
            take_back(Duration::from_secs(2)).unwrap();
        }
        let cut = (0..2 * FORGIVEN_A_SECOND).find_map(|_| take_back(Duration::from_secs(2)).err());
        assert_eq!(cut, Some(Cut::TakesBack));
    }

    #[test]
    fn a_request_that_does_not_come_to_its_end_is_not_waited_for() {
        let mut requests = greeted();
        take(&mut requests, &frame(HEADERS, END_HEADERS, 1, LIMIT)).unwrap();
        assert!(requests.is_unfinished());
        take(&mut requests, &frame(DATA, 0, 1, &[7; 50])).unwrap();
        assert_eq!(requests.unfinished_bytes(), 50);
        let late = Instant::now() + UNFINISHED + Duration::from_secs(1);
        assert_eq!((requests.check_time(Instant::now()), requests.check_time(late)), (Ok(()), Err(Cut::Unfinished)));
        take(&mut requests, &frame(DATA, END_STREAM, 1, b"")).unwrap();
        assert_eq!((requests.check_time(late), requests.unfinished_bytes()), (Ok(()), 0));
    }

    #[test]
    fn an_answer_is_over_with_its_last_frame() {
        let bytes = [
            frame(HEADERS, END_HEADERS, 1, b"abc"),
            frame(DATA, 0, 1, &[1; 50]),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"z"),
            frame(RST_STREAM, 0, 3, &[0; 4]),
            frame(4, 1, 0, &[]),
        ]
        .concat();
        for size in [1, 10, bytes.len()] {
            let mut answers = Answers::default();
            let done: Vec<u32> = bytes.chunks(size).flat_map(|piece| answers.look(piece)).collect();
            assert_eq!(done, [1, 3]);
        }
    }

    /// Whatever comes, in whatever pieces it comes, the verdict is one, and no more is kept than is bounded.
    #[test]
    fn fuzz_frames_are_judged_alike_in_whatever_pieces_they_come() {
        let call =
            [frame(4, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, LIMIT), frame(DATA, END_STREAM, 1, b"body")].concat();
        let cut =
            [frame(HEADERS, END_STREAM, 1, &LIMIT[..5]), frame(CONTINUATION, END_HEADERS, 1, &LIMIT[5..])].concat();
        let back = [frame(HEADERS, END_HEADERS, 3, LIMIT), frame(RST_STREAM, 0, 3, &[0; 4])].concat();
        let heads = [frame(HEADERS, 0xff, 5, &[]), frame(CONTINUATION, 0, 5, &[]), frame(8, 0, 0, &[0; 4])].concat();
        crate::fuzz::fuzz(
            "frames",
            &[&call, &cut, &back, &heads],
            &[&[0, 0, 0], &[0xff; 3], &[0x80, 0, 0, 1]],
            |bytes| {
                let now = Instant::now();
                let verdicts = [1, 7, usize::MAX].map(|size| {
                    let (mut requests, mut out) = (greeted(), Vec::new());
                    let ended = bytes
                        .chunks(size.min(bytes.len().max(1)))
                        .try_for_each(|piece| requests.take(piece, &mut out, now));
                    assert!(requests.pending.len() <= HEAD + MAX_FRAME);
                    assert!(requests.block.as_ref().is_none_or(|block| block.bytes.len() <= MAX_HEADERS));
                    assert!(requests.open.len() <= MAX_OPEN);
                    let mut answers = Answers::default();
                    let done: Vec<u32> =
                        bytes.chunks(size.min(bytes.len().max(1))).flat_map(|piece| answers.look(piece)).collect();
                    (ended, requests.open.keys().copied().collect::<Vec<_>>(), done)
                });
                assert!(verdicts[0] == verdicts[1] && verdicts[1] == verdicts[2], "{verdicts:?}");
            },
        );
    }
}
