//! Which of a host's addresses to connect to, where some may be black holes.
//!
//! Owns the race of RFC 8305: a droplet may have an IPv6 address but no IPv6 route to the world, and packets without an
//! answer cost seconds at each connection. It starts no thread. The caller remembers the winner and tries it first from
//! then on. The connection of the race only proves that there is an answer, and is closed.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

/// How long an address has a lead before the next one is tried too.
///
/// Source: RFC 8305, section 5, Connection Attempt Delay.
const LEAD: Duration = Duration::from_millis(250);

/// Puts addresses in the order in which they are tried: the one that worked last, then those of its family, and otherwise of one
/// family and the other by turns, as the system has sorted them.
#[must_use]
pub(super) fn plan_order(addresses: &[SocketAddr], worked: Option<IpAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (mut firsts, mut others) = (0_u32, 0_u32);
    let mut ranked: Vec<_> = addresses
        .iter()
        .map(|address| {
            let rank = match worked {
                Some(worked) if address.ip() == worked => (0, 0),
                Some(worked) => (1, u32::from(address.is_ipv4() != worked.is_ipv4())),
                None if address.is_ipv4() == first_is_v4 => {
                    firsts = firsts.saturating_add(2);
                    (1, firsts)
                }
                None => {
                    others = others.saturating_add(2);
                    (1, others.saturating_add(1))
                }
            };
            (rank, *address)
        })
        .collect();
    // Stable, so that the system's own order stays within a rank.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, address)| address).collect()
}

/// Tries addresses in this order, the next one when the last was refused or has not answered for a moment, and gives the first
/// that takes a connection. Nothing when none does until then.
pub(super) fn find_first_to_answer(addresses: &[SocketAddr], give_up: Instant) -> Option<SocketAddr> {
    let mut waiting: Vec<(SocketAddr, OwnedFd)> = Vec::new();
    let mut untried = addresses.iter().copied();
    loop {
        let next = untried.next();
        if let Some(address) = next {
            match begin(address) {
                Ok(Begun::Connected) => return Some(address),
                Ok(Begun::Waiting(socket)) => waiting.push((address, socket)),
                Err(why) => {
                    log::debug!("no connection to {address}: {why}");
                    continue;
                }
            }
        }
        if next.is_none() && waiting.is_empty() {
            return None;
        }
        let lead = next.and_then(|_| Instant::now().checked_add(LEAD)).unwrap_or(give_up).min(give_up);
        if let Some(winner) = wait_for_one(&mut waiting, lead) {
            return Some(winner);
        }
        if Instant::now() >= give_up {
            return None;
        }
    }
}

/// How an attempt has begun.
enum Begun {
    Connected,
    Waiting(OwnedFd),
}

fn begin(address: SocketAddr) -> Result<Begun, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Ok(()) => Ok(Begun::Connected),
        // Source: connect(2), EINPROGRESS and, when a signal came, EINTR: the connection goes on being made.
        Err(Errno::INPROGRESS | Errno::INTR) => Ok(Begun::Waiting(socket)),
        Err(err) => Err(err),
    }
}

/// Waits until one of the attempts has a connection, all have failed, or the time is over. Those that fail are taken off.
fn wait_for_one(waiting: &mut Vec<(SocketAddr, OwnedFd)>, until: Instant) -> Option<SocketAddr> {
    while !waiting.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        // A millisecond more, as poll counts whole ones and would otherwise be asked again and again at the end.
        let timeout = PollTimeout::try_from(left.saturating_add(Duration::from_millis(1))).unwrap_or(PollTimeout::MAX);
        let mut fds: Vec<PollFd<'_>> =
            waiting.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT)).collect();
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(err) => {
                log::debug!("cannot wait for connections: {err}");
                return None;
            }
        }
        let has_news: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        let mut winner = None;
        let before = waiting.len();
        let mut news = has_news.into_iter();
        waiting.retain(|(address, socket)| {
            if !news.next().unwrap_or(false) {
                return true;
            }
            match socket_error(socket) {
                Ok(Ok(())) => winner = winner.or(Some(*address)),
                Ok(Err(why)) | Err(why) => log::debug!("no connection to {address}: {why}"),
            }
            false
        });
        if winner.is_some() {
            return winner;
        }
        if waiting.len() < before {
            // The next address need not wait for the rest of this one's lead.
            return None;
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::net::listen;

    use super::*;

    /// An address of this machine from which no answer ever comes: the kernel drops what asks a server whose line is full.
    pub(in crate::cloud) struct BlackHole {
        pub(in crate::cloud) address: SocketAddr,
        _listener: TcpListener,
        _line: Vec<OwnedFd>,
    }

    pub(in crate::cloud) fn black_hole() -> BlackHole {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        // Source: listen(2): on a socket that listens already it sets the length of the line anew.
        listen(&listener, 1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut line = Vec::new();
        // Until one is not answered, and then some, as the kernel takes a few more than it was told.
        for _ in 0..8 {
            match begin(address).unwrap() {
                Begun::Connected => {}
                Begun::Waiting(socket) => line.push(socket),
            }
        }
        let until = Instant::now() + Duration::from_secs(2);
        while find_first_to_answer(&[address], Instant::now() + Duration::from_millis(100)).is_some() {
            assert!(Instant::now() < until, "the line is never full");
        }
        BlackHole { address, _listener: listener, _line: line }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn an_address_that_never_answers_holds_up_the_others_for_a_moment_only() {
        let hole = black_hole();
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = good.local_addr().map(|address| (address, good)).unwrap();
        let began = Instant::now();
        assert_eq!(find_first_to_answer(&[hole.address, good.0], soon()), Some(good.0));
        // It is the lead and not a share of the time that is left.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        // The other way round the bad one is not even asked.
        assert_eq!(find_first_to_answer(&[good.0, hole.address], soon()), Some(good.0));
    }

    #[test]
    fn nobody_there_is_told_at_once_and_nobody_who_answers_in_time() {
        // Where no other test listens, either.
        let refused = TcpListener::bind("127.0.0.3:0").unwrap().local_addr().unwrap();
        assert_eq!(find_first_to_answer(&[refused, refused], soon()), None);
        assert_eq!(find_first_to_answer(&[], soon()), None);
        let hole = black_hole();
        let until = Instant::now() + Duration::from_millis(300);
        assert_eq!(find_first_to_answer(&[hole.address, refused, hole.address], until), None);
        assert!(Instant::now() >= until);
        drop(TcpStream::connect(refused).unwrap_err());
    }

    #[test]
    fn what_worked_comes_first_and_otherwise_the_families_take_turns() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse::<SocketAddr>().unwrap()).collect::<Vec<_>>();
        let given = of(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"]);
        assert_eq!(plan_order(&given, None), of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"]));
        let worked = "1.1.1.2".parse().ok();
        assert_eq!(plan_order(&given, worked), of(&["1.1.1.2:1", "1.1.1.1:1", "[::1]:1", "[::2]:1", "[::3]:1"]));
        // One that the name no longer has still tells the family.
        let worked = "9.9.9.9".parse().ok();
        assert_eq!(plan_order(&given, worked), of(&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(plan_order(&[], None), of(&[]));
    }
}
