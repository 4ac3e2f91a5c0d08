//! The caller's time limit out of the compressed headers of HTTP/2.
//!
//! Owns just enough of HPACK to find `grpc-timeout`: gRPC's library keeps the limit to itself. Of all other headers only the
//! sizes are kept, as the compression depends on them.
//!
//! Source: RFC 7541; gRPC over HTTP2, "Timeout".

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Duration;

/// The name looked for.
const TIMEOUT: &[u8] = b"grpc-timeout";
/// The largest table of headers that a client may use: gRPC's server does not allow more than HTTP/2 does by itself.
const MAX_TABLE: usize = 4096;
/// What an entry of the table costs beside its texts. Source: RFC 7541, section 4.1.
const ENTRY_OVERHEAD: usize = 32;

/// Lengths of the names in the static table. None of them is the one looked for. Source: RFC 7541, appendix A.
const STATIC_NAMES: [usize; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13, 12, 6, 4,
    4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3, 16,
];

/// Bits of the Huffman code of each byte, and of the end at last. The code is canonical, so these are all of it.
/// Source: RFC 7541, appendix B.
const CODE_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

static HUFFMAN: LazyLock<Huffman> = LazyLock::new(Huffman::new);

/// The header block is none that HPACK allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads the header blocks of one connection, all of them and in order.
#[derive(Debug)]
pub(super) struct HeaderReader {
    /// Newest first.
    table: VecDeque<Entry>,
    size: usize,
    max: usize,
}

/// A header of the table.
#[derive(Debug, Clone)]
struct Entry {
    name: usize,
    value: usize,
    /// The value, when the name is the one looked for.
    timeout: Option<Vec<u8>>,
}

impl Entry {
    fn size(&self) -> usize {
        self.name + self.value + ENTRY_OVERHEAD
    }
}

impl HeaderReader {
    pub(super) fn new() -> HeaderReader {
        HeaderReader { table: VecDeque::new(), size: 0, max: MAX_TABLE }
    }

    /// The time limit that a block gives, if it gives one.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Option<Duration>, Malformed> {
        let mut rest = block;
        let mut limit = None;
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                if let Some(value) = self.entry(index)?.and_then(|entry| entry.timeout.as_deref()) {
                    limit = parse_timeout(value);
                }
            } else if first & 0xe0 == 0x20 {
                let max = integer(&mut rest, 5)?;
                if max > MAX_TABLE {
                    return Err(Malformed);
                }
                self.max = max;
                self.shrink(max);
            } else {
                let is_kept = first & 0x40 != 0;
                let index = integer(&mut rest, if is_kept { 6 } else { 4 })?;
                let entry = self.literal(index, &mut rest)?;
                if let Some(value) = entry.timeout.as_deref() {
                    limit = parse_timeout(value);
                }
                if is_kept {
                    self.keep(entry);
                }
            }
        }
        Ok(limit)
    }

    /// The entry of the table by its number; nothing for one that never changes.
    fn entry(&self, index: usize) -> Result<Option<&Entry>, Malformed> {
        match index.checked_sub(STATIC_NAMES.len() + 1) {
            None if index == 0 => Err(Malformed),
            None => Ok(None),
            Some(kept) => self.table.get(kept).map(Some).ok_or(Malformed),
        }
    }

    /// A header that is written out, at least its value.
    fn literal(&self, index: usize, rest: &mut &[u8]) -> Result<Entry, Malformed> {
        let (name, is_timeout) = if index == 0 {
            let name = string(rest)?;
            (name.len(), name == TIMEOUT)
        } else {
            match self.entry(index)? {
                Some(entry) => (entry.name, entry.timeout.is_some()),
                None => (STATIC_NAMES.get(index - 1).copied().ok_or(Malformed)?, false),
            }
        };
        let value = string(rest)?;
        Ok(Entry { name, value: value.len(), timeout: is_timeout.then_some(value) })
    }

    fn keep(&mut self, entry: Entry) {
        let size = entry.size();
        self.shrink(self.max.saturating_sub(size));
        // One that is too large leaves the table empty.
        if size <= self.max {
            self.size += size;
            self.table.push_front(entry);
        }
    }

    fn shrink(&mut self, max: usize) {
        while self.size > max {
            self.size -= self.table.pop_back().map_or(self.size, |oldest| oldest.size());
        }
    }
}

/// A number that begins in the low bits of a byte. Source: RFC 7541, section 5.1.
fn integer(rest: &mut &[u8], bits: u32) -> Result<usize, Malformed> {
    let mask = (1_usize << bits) - 1;
    let mut number = usize::from(byte(rest)?) & mask;
    if number < mask {
        return Ok(number);
    }
    for shift in [0, 7, 14] {
        let next = usize::from(byte(rest)?);
        number += (next & 0x7f) << shift;
        if next & 0x80 == 0 {
            return Ok(number);
        }
    }
    // More than two million.
    Err(Malformed)
}

fn byte(rest: &mut &[u8]) -> Result<u8, Malformed> {
    let (first, others) = rest.split_first().ok_or(Malformed)?;
    *rest = others;
    Ok(*first)
}

fn string(rest: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, others) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = others;
    if is_coded { HUFFMAN.decode(text) } else { Ok(text.to_vec()) }
}

/// The Huffman code by the lengths of its words.
struct Huffman {
    /// For each length: its first word, how many there are, and where their symbols begin.
    lengths: [(usize, usize, usize); 31],
    symbols: Vec<usize>,
}

impl Huffman {
    fn new() -> Huffman {
        let mut lengths = [(0, 0, 0); 31];
        let mut symbols = Vec::with_capacity(CODE_BITS.len());
        let mut word = 0;
        for (bits, length) in lengths.iter_mut().enumerate() {
            word <<= 1;
            let begin = symbols.len();
            symbols.extend(
                (0..CODE_BITS.len()).filter(|symbol| CODE_BITS.get(*symbol).copied().map(usize::from) == Some(bits)),
            );
            let count = symbols.len() - begin;
            *length = (word, count, begin);
            word += count;
        }
        Huffman { lengths, symbols }
    }

    fn decode(&self, text: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut decoded = Vec::with_capacity(text.len() * 2);
        let (mut word, mut bits) = (0, 0);
        for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |place| usize::from(byte >> place & 1))) {
            word = word << 1 | bit;
            bits += 1;
            let (first, count, begin) = self.lengths.get(bits).copied().ok_or(Malformed)?;
            if let Some(nth) = word.checked_sub(first).filter(|nth| *nth < count) {
                let symbol = self.symbols.get(begin + nth).copied().ok_or(Malformed)?;
                decoded.push(u8::try_from(symbol).map_err(|_| Malformed)?);
                (word, bits) = (0, 0);
            }
        }
        // The last byte is filled up with the beginning of the end's word, all ones.
        if bits < 8 && word == (1 << bits) - 1 { Ok(decoded) } else { Err(Malformed) }
    }
}

/// Reads a time limit: at most eight digits and a unit.
fn parse_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let is_number = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// Source: RFC 7541, appendix C.4: three requests on one connection, with Huffman coding.
    #[test]
    fn the_examples_of_the_standard_leave_the_tables_that_it_shows() {
        let mut reader = HeaderReader::new();
        for (block, size) in [
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", 57),
            ("8286 84be 5886 a8eb 1064 9cbf", 110),
            ("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf", 164),
        ] {
            assert_eq!(reader.read(&hex(block)), Ok(None));
            assert_eq!(reader.size, size);
        }
        assert_eq!(HUFFMAN.decode(&hex("f1e3 c2e5 f23a 6ba0 ab90 f4ff")).unwrap(), b"www.example.com");
        assert_eq!(HUFFMAN.decode(&hex("25a8 49e9 5bb8 e8b4 bf")).unwrap(), b"custom-value");
    }

    /// A header written out; with the first byte of its kind.
    fn literal(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut block = vec![kind];
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text);
        }
        block
    }

    #[test]
    fn a_limit_is_found_however_it_is_written() {
        let mut reader = HeaderReader::new();
        let ten = Some(Duration::from_secs(10));
        for kind in [0x00, 0x10, 0x40] {
            assert_eq!(reader.read(&literal(kind, TIMEOUT, b"10S")), Ok(ten), "{kind:x}");
        }
        // As the newest entry, by its name alone, and further down after another one.
        assert_eq!(reader.read(&[0xbe]), Ok(ten));
        assert_eq!(reader.read(&[0x7e, 3, b'2', b'0', b'm']), Ok(Some(Duration::from_millis(20))));
        assert_eq!(reader.read(&literal(0x40, b"x-other", b"1")), Ok(None));
        assert_eq!(reader.read(&[0xc0]), Ok(ten));
        // A table that is made smaller forgets.
        assert_eq!(reader.read(&[0x20]), Ok(None));
        assert_eq!(reader.read(&[0xbe]), Err(Malformed));
    }

    #[test]
    fn units_are_those_of_grpc_and_anything_else_is_no_limit() {
        let seconds = |text: &[u8]| parse_timeout(text).map(|limit| limit.as_secs_f64());
        for (text, limit) in [("1H", 3600.0), ("2M", 120.0), ("99999999S", 99_999_999.0), ("5m", 0.005), ("7u", 7e-6)] {
            assert_eq!(seconds(text.as_bytes()), Some(limit), "{text}");
        }
        for text in ["", "S", "10", "1s", "-1S", "+1S", "123456789S", "1 S"] {
            assert_eq!(seconds(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..10)) {
            let mut reader = HeaderReader::new();
            for block in blocks {
                let _read = reader.read(&block);
                prop_assert!(reader.size <= MAX_TABLE);
                prop_assert_eq!(reader.size, reader.table.iter().map(Entry::size).sum::<usize>());
            }
        }
    }

    #[test]
    fn fuzz_headers_never_take_more_room_than_the_table_has() {
        let first = hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff");
        let (second, limit) = (hex("8286 84be 5886 a8eb 1064 9cbf"), literal(0x40, b"grpc-timeout", b"10S"));
        let both = [second.as_slice(), &limit].concat();
        crate::fuzz::fuzz(
            "hpack",
            &[&first, &second, &limit, &both],
            &[b"\x20", b"\x3f\xe1\x1f", b"\xbe", b"\x7f\xff\xff\xff\x7f"],
            |bytes| {
                let mut reader = HeaderReader::new();
                // Two blocks, so that the second finds what the first has left.
                for block in [bytes, bytes.get(bytes.len() / 2..).unwrap_or_default()] {
                    let _read = reader.read(block);
                    assert!(reader.size <= MAX_TABLE);
                    assert_eq!(reader.size, reader.table.iter().map(Entry::size).sum::<usize>());
                }
            },
        );
    }
}
